"""kill -9 at random moments: the same command resumes, to the numbers of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from irf_lib.run.provenance import vouched
from irf_lib.run.results import Run

pytest.importorskip("snakemake")
KILLS, LONGEST = 10, 15.0


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(project, tiny):
    tiny = tiny | {"steps": 60}
    config = {"run": "killed", "data": "parts", "settings": tiny}
    config["notebooks"] = {"every detector": ["03", "05"], "once": []}
    (project / "tiny.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "irf_lib", "run", "tiny.yaml", "--cores", "2"]
    environment = os.environ | {"PYTHONPATH": str(project), "XDG_CACHE_HOME": str(project / "cache")}
    draw, kills, finished = random.Random(0), 0, {}
    while True:
        with (project / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        if kills < KILLS:
            try:
                process.wait(LONGEST * draw.random() ** 1.5)  # short waits are more frequent
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)  # to Snakemake alone: its notebooks have to notice
                kills += 1
        status = process.wait(300)
        whole = {path: path.stat().st_mtime_ns for path in project.glob("results/killed/*/*/*/detector.safetensors")}
        assert finished.items() <= whole.items(), "a detector that was finished is not trained again"
        finished = whole
        if status != -signal.SIGKILL:
            break
    assert status == 0 and kills == KILLS, (project / "log").read_text()
    for name in ("bolt", "nut"):
        calm = Run.open("05_score_and_detect", data="parts", category=name, seed=0, settings=tiny, out="results/calm",
                        device="cpu")  # fmt: skip
        detector = calm.detector(progress=False)
        expected = detector.read(calm.test_set(detector).x0)
        folder = project / "results/killed/parts" / name / "seed0"
        scores = pd.read_csv(folder / "image_scores.csv")
        assert scores.score.tolist() == pytest.approx(expected.scores.tolist(), rel=1e-6)
        assert vouched(folder / "metrics.csv") and vouched(folder / "image_scores.csv")
        assert {path.name for path in folder.iterdir()} == {
            "detector.safetensors", "metrics.csv", "image_scores.csv", "notebooks", "provenance", "logs"
        }  # fmt: skip
    time.sleep(1)
    assert not subprocess.run(["pgrep", "-f", str(project)], capture_output=True).stdout, "nothing is left running"
