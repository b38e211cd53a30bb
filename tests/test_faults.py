"""Faults: nothing that was finished is lost, nothing half-written is trusted, and every message says what to do.

Kills, full and read-only disks, two runs at once, and folders of other versions; bad bytes are in test_fuzz.py. Runs
are forked from faults_server.py, which has everything imported, so that thirty of them cost a minute of one core.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import SafetensorError

from irf_lib import datasets, embedded, feature_store, features
from irf_lib.detector import OneStepDetector
from irf_lib.runs import Run
from irf_lib.stages import RunError
from irf_lib.storage import StorageError, file_sha256, load_tensors, locked, read_json, write_json, write_text

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "backbone": "rgb", "image_size": 32, "feature_size": 4, "patch_size": 2, "width": 64, "depth": 1, "steps": 12,
    "alpha": 0.2, "precision": "fp32",
}  # fmt: skip
KILLS = 30


class Server:
    """faults_server.py at the other end of two pipes."""

    def __init__(self, cwd: Path, log: Path):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests" / "faults_server.py")]
        self.cwd, self.log, self.runs = cwd, log, 0
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **order) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, order: str, log: str = "log", **more) -> int:
        """Fork a child for ``order``; its process id. ``arguments``, ``interfere``, ``limit``: see faults_server.py."""
        return self.ask(start=order, cwd=str(self.cwd), log=str(self.log / log), **more)

    def wait(self, pid: int) -> int:
        """A child's exit status: 0 done, 1 an error, 70 an exception, -9 killed."""
        return self.ask(wait=pid)

    def run(self, order: str, **more) -> tuple[int, str]:
        """(exit status, what it printed)."""
        self.runs += 1
        log = f"run{self.runs}"  # of its own: a limit on the size of files holds for the log as well
        return self.wait(self.start(order, log=log, **more)), self.text(log)

    def text(self, log: str = "log") -> str:
        path = self.log / log
        return path.read_text() if path.exists() else ""


def picture(path: Path, rng: np.random.Generator, hole: bool = False) -> None:
    pixels = 128 + 12 * rng.standard_normal((32, 32, 3))
    if hole:
        pixels[8:16, 8:16] += 25
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder of its own, with our notebooks and library and two small categories."""
    root, rng = tmp_path_factory.mktemp("project"), np.random.default_rng(0)
    for name in ("notebooks", "irf_lib"):
        (root / name).symlink_to(ROOT / name)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    for name in ("bolt", "nut"):
        for i in range(15):
            picture(root / "parts" / name / "train" / "good" / f"{i:02d}.png", rng)
        for i in range(4):
            picture(root / "parts" / name / "test" / "good" / f"{i}.png", rng)
            picture(root / "parts" / name / "test" / "hole" / f"{i}.png", rng, hole=True)
            (root / "parts" / name / "ground_truth" / "hole").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "parts" / name / "ground_truth" / "hole" / f"{i}_mask.png")
    return root


@pytest.fixture(scope="module")
def server(project, tmp_path_factory):
    server = Server(project, tmp_path_factory.mktemp("logs"))
    yield server
    server.process.stdin.close()
    server.process.wait()


def parameters(out: str, **more) -> dict:
    return {"preset": "quick", "data": "parts", "out": out, "device": "cpu", "settings": TINY, **more}


def work(out: str, *stages: str, **more) -> dict:
    return {"parameters": parameters(out, **more), "stages": list(stages or ("03", "05"))}


def results(out: Path) -> dict:
    """Everything that a run leaves, without times, commit and provenance; fails where a file is not what it says."""
    found = {}
    for name in ("metrics", "intervals", "image_scores", "decisions", "training", "denoising"):
        table = pd.read_csv(out / f"{name}.csv")
        assert read_json(out / f"{name}.json")["sha256"] == file_sha256(out / f"{name}.csv")
        found[name] = table.drop(columns=["train_s", "ms_per_image", "commit", "seconds"], errors="ignore").to_csv()
        keys = {key for key in ("category", "seed", "method", "detector", "step", "t", "image") if key in table}
        assert not table.duplicated(sorted(keys)).any(), f"each row of {name} stands there once"
    for path in sorted(out.glob("detectors/*/*/*/detector.json")):
        tensors, _ = load_tensors(path)
        tensors["history"] = tensors["history"][:, :4]  # without the seconds
        found[path.parent.parent.name] = {key: tensors[key].numpy().tobytes() for key in sorted(tensors)}
        assert not list(path.parent.glob("*checkpoint*")) and len(list(path.parent.glob("*.safetensors"))) == 1
    for path in sorted(out.glob("scores/[!.]*.npz")):
        found[path.name] = np.load(path)["nll"].tobytes()
        assert read_json(path.with_suffix(".json"))["sha256"] == file_sha256(path)
    assert len(found) == 6 + 2 + 2
    return found


def finished(out: Path) -> dict[Path, int]:
    """When each file was written that must not be made again: whole detectors, and pieces of measured categories."""
    paths = [path for path in out.glob("detectors/*/*/*/detector.json") if load_tensors(path)]
    for last in out.glob("pieces/decisions/[!.]*.json"):
        if read_json(last)["sha256"] == file_sha256(last.with_suffix(".csv")):
            paths += [out / "pieces" / name / f"{last.stem}.csv" for name in ("metrics", "intervals", "decisions")]
    return {path: path.stat().st_mtime_ns for path in paths}


def check_what_is_there(out: Path) -> None:
    """After a kill: whatever has its own name is whole."""
    for path in out.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".json":
            assert json.loads(path.read_text()), path
        elif path.suffix == ".csv":
            assert path.read_bytes().endswith(b"\n") and len(pd.read_csv(path)), path
        elif path.suffix == ".npz":
            assert np.load(path)["nll"].shape == (8, 4, 4), path


@pytest.fixture(scope="module")
def calm(project, server):
    """An undisturbed run, and how many seconds it took: (results, seconds)."""
    start = time.monotonic()
    status, text = server.run("work", arguments=work("calm"))
    assert status == 0, text
    return results(project / "calm"), time.monotonic() - start


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_runs_that_are_killed_at_random_moments_end_as_if_they_had_not_been(project, server, calm):
    expected, seconds = calm
    draw, kills, landed = random.Random(0), 0, []
    for n in range(4 * KILLS):
        out, kept = project / f"killed{n}", {}
        while True:
            pid = server.start("work", arguments=work(out.name))
            if kills < KILLS:
                # Short waits are more frequent: what was done before a kill is not done again, so that the next
                # one lands further on in the run.
                time.sleep(seconds * draw.random() ** 3)
                with contextlib.suppress(ProcessLookupError):  # it had ended already
                    os.killpg(pid, signal.SIGKILL)
            status = server.wait(pid)
            if status != -signal.SIGKILL:
                break
            kills += 1
            check_what_is_there(out)
            for path, when in kept.items():
                assert path.stat().st_mtime_ns == when, f"{path} was finished, and has been made again"
            kept |= finished(out)
            landed.append(len(kept) and "scoring" if (out / "stages").exists() else "training" if kept else "start")
        assert status == 0, server.text()[-2000:]
        assert results(out) == expected
        for path, when in kept.items():
            assert path.stat().st_mtime_ns == when, f"{path} was finished, and has been made again"
        if kills == KILLS:
            break
    print({place: landed.count(place) for place in set(landed)}, f"in {n + 1} runs of {seconds:.1f} s")
    assert kills == KILLS


# Where a kill is most dangerous, in the order in which a run comes by: (call, argument, before, after or half).
PLACES = [
    ("Path.write_text", r"run", "half"),
    ("os.replace", r"run\.json$", "before"),
    ("storage._flush_to_disk", r"features/.*\.npz$", "before"),  # an entry of the cache, half-written
    ("os.replace", r"features/.*\.npz$", "after"),
    ("storage._flush_to_disk", r"\.checkpoint-\w+\.safetensors$", "before"),
    ("os.replace", r"checkpoint\.\w{12}\.safetensors$", "after"),  # new tensors, the JSON names the old ones
    ("os.replace", r"checkpoint\.json$", "after"),  # the old tensors are still there
    ("os.replace", r"detector\.\w{12}\.safetensors$", "after"),  # tensors without their JSON
    ("os.replace", r"detector\.json$", "before"),
    ("os.replace", r"detector\.json$", "after"),  # the checkpoint is still there
    ("os.unlink", r"checkpoint\.json$", "before"),
    ("os.replace", r"pieces/training/.*\.csv$", "after"),  # a piece without its JSON, and the lock held
    ("Run._join_pieces", r"denoising", "before"),
    ("os.replace", r"(?<!pieces/)denoising\.csv$", "after"),  # a table whose JSON vouches for its predecessor
    ("os.replace", r"figures/training\.pdf$", "after"),
    ("os.replace", r"stages/03_train\.parts\.json$", "before"),
    ("os.replace", r"stages/03_train\.parts\.json$", "after"),
    ("storage._flush_to_disk", r"scores/.*\.npz$", "before"),
    ("os.replace", r"scores/.*\.npz$", "after"),
    ("Path.write_bytes", r"pieces/metrics/", "half"),
    ("os.replace", r"pieces/metrics/.*\.csv$", "after"),
    ("Path.write_text", r"pieces/decisions/", "half"),
    ("os.replace", r"pieces/decisions/.*\.json$", "before"),  # three of four pieces
    ("os.replace", r"pieces/decisions/.*\.json$", "after"),
    ("os.replace", r"stages/05_score_and_detect\.parts\.json$", "before"),
]


def test_a_run_that_is_killed_at_every_dangerous_place_ends_as_if_it_had_not_been(project, server, calm):
    shutil.rmtree(project / ".cache")
    out, kept = project / "dangerous", {}
    for place in PLACES:
        status, text = server.run("work", arguments=work(out.name), interfere=[place])
        assert status == -signal.SIGKILL, f"{place} was not met: {text[-2000:]}"
        check_what_is_there(out)
        kept |= finished(out)
    status, text = server.run("work", arguments=work(out.name))
    assert status == 0, text
    assert results(out) == calm[0]
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


# --- the command line: papermill, kernels, a full disk, and two at once ----------------------------------------------


def command(out: str, *options: str) -> dict:
    sets = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    return {"arguments": ["run", "--out", out, "--data", "parts", "--device", "cpu", "--only", "03", *sets, *options]}


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def one_error(text: str) -> str:
    """The line that the command line ends with when it fails; there is one, and no traceback before it."""
    assert "Traceback (most recent call last)" not in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


def test_the_command_line_goes_on_after_kills_and_a_full_disk(project, server, calm):
    out = project / "command"
    executed, partial = out / "notebooks" / "03_train.ipynb", out / "notebooks" / "03_train.parts.partial.ipynb"

    # No room for the notebook's copy: nothing is started.
    status, text = server.run("command", arguments=command("command"), limit=6000)
    said = "03_train.parts.partial.ipynb cannot be written (File too large): free some space"
    assert status == 1 and said in one_error(text)
    # Room for that, but none for a detector: the sentence comes through papermill.
    status, text = server.run("command", arguments=command("command"), limit=60_000)
    assert status == 1
    assert re.search(r"cell \d+: StorageError: .*cannot be written .*: free some space", one_error(text))
    assert not executed.exists() and not list(out.glob("detectors/*/*/*/detector.json"))

    # Killed as soon as there is a detector, and again when all is done but the copy's new name.
    pid = server.start("command", arguments=command("command"))
    wait_for(lambda: list(out.glob("detectors/*/*/*/detector.json")))
    os.killpg(pid, signal.SIGKILL)
    assert server.wait(pid) == -signal.SIGKILL and not executed.exists()
    first = {path: path.stat().st_mtime_ns for path in out.glob("detectors/*/bolt/*/detector.json")}
    place = ("os.replace", r"03_train\.parts\.partial\.ipynb", "before")
    status, text = server.run("command", arguments=command("command"), interfere=[place])
    assert status == -signal.SIGKILL and not executed.exists() and partial.exists()
    assert (out / "stages" / "03_train.parts.json").is_file(), "the notebook itself was through"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("detectors/*/*/*/detector.json")}
    assert len(kept) == 2 and all(kept[path] == when for path, when in first.items())

    # Two at once: one executes the notebook, the other waits and finds it done.
    executed.write_text("an earlier run's copy")  # which must not pass for this one's
    pids = [server.start("command", log=f"two{i}", arguments=command("command")) for i in range(2)]
    assert [server.wait(pid) for pid in pids] == [0, 0], server.text("two0") + server.text("two1")
    said = sorted(server.text(f"two{i}") for i in range(2))
    assert sum("done in" in text for text in said) == sum("current, skipped" in text for text in said) == 1
    code = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and not partial.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished detectors are loaded"

    status, text = server.run("work", arguments=work("command", "05"))
    assert status == 0 and results(out) == calm[0], text


# --- full and read-only disks, without papermill ---------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A tmpfs at ``folder``; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full(project, server, calm):
    out = project / "full"
    with mounted(out, "size=300k"):
        status, text = server.run("work", arguments=work("full"))
        assert status == 70 and re.search(r"full/\S+ cannot be written \(No space left on device\): free some", text)
        check_what_is_there(out)
        assert not list(out.rglob(".*-*")), "what did not fit is not left behind"
        subprocess.run(["mount", "-o", "remount,size=50m", out], check=True)
        status, text = server.run("work", arguments=work("full"))
        assert status == 0 and results(out) == calm[0], text


@contextlib.contextmanager
def unwritable(folder: Path):
    """``folder`` for reading only, for root as well."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
    else:
        with mounted(folder, "ro"):
            yield


def test_results_that_are_read_only(project, server):
    with unwritable(project / "locked"):
        status, text = server.run("command", arguments=command("locked"))
    assert status == 1
    assert re.search(r"locked/\S+ cannot be written \(.+\): check the permissions.*choose another", one_error(text))
    (project / "a_file").write_text("")
    for out in ("a_file", "a_file/below"):
        status, text = server.run("command", arguments=command(out))
        assert status == 1 and re.search(r"a_file\S* cannot be written .*: a file stands where", one_error(text))


def test_a_cache_that_is_read_only_costs_time_and_nothing_else(tmp_path):
    picture(tmp_path / "a.png", np.random.default_rng(0))
    picture(tmp_path / "b.png", np.random.default_rng(1))
    images, backbone = [tmp_path / "a.png", tmp_path / "b.png"], features.build_backbone("rgb", 4)
    expected = feature_store.FeatureStore(backbone, 32)(images)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "read_only"):
        with unwritable(cache) if cache.name == "read_only" else contextlib.nullcontext():
            store = feature_store.FeatureStore(backbone, 32, cache)
            with pytest.warns(UserWarning, match="features are not kept from here on: .* cannot be written") as caught:
                assert (store(images) == expected).all() and (store(images) == expected).all()
            assert len(caught) == 1, "said once"


def test_embedded_data_that_cannot_be_written(tmp_path):
    refused = pytest.raises(datasets.DataError, match="cannot be written .*; check permissions")
    with unwritable(tmp_path / "data"), refused:
        embedded.write_embedded(tmp_path / "data" / "textures", 1, 0, 0)


def test_what_a_killed_generation_of_the_embedded_data_left_is_removed(tmp_path):
    write_text(tmp_path / "textures.tmp-k1ll3d" / "new" / "half.png", "half")
    embedded.write_embedded(tmp_path / "textures", 1, 0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["textures"]


# --- two runs in one folder ------------------------------------------------------------------------------------------


def test_two_runs_at_once_share_the_work(project, server, calm):
    pids = [server.start("work", log=f"both{i}", arguments=work("both")) for i in range(2)]
    assert [server.wait(pid) for pid in pids] == [0, 0], server.text("both0") + server.text("both1")
    said = server.text("both0") + server.text("both1")
    assert said.count("TRAINING") == 2, "each detector is trained by one of them"
    assert "another run is training it; waiting for that one to end" in said
    assert results(project / "both") == calm[0]


def test_of_two_runs_with_different_settings_that_start_at_once_one_is_refused(project, server):
    slow = [("os.replace", r"run\.json$", "slow")]  # so that both would have looked before either has written
    arguments = [{"parameters": parameters("race") | {"settings": TINY | {"t": t}}} for t in (100, 300)]
    pids = [server.start("bind", log=f"race{i}", arguments=arguments[i], interfere=slow) for i in range(2)]
    statuses = [server.wait(pid) for pid in pids]
    assert sorted(statuses) == [0, 70]
    winner, loser = statuses.index(0), statuses.index(70)
    assert re.search(r"race holds results of other settings \(t: \d00 there, \d00 now\)", server.text(f"race{loser}"))
    assert read_json(project / "race" / "run.json")["settings"]["t"] == arguments[winner]["parameters"]["settings"]["t"]
    assert sorted(path.name for path in (project / "race").iterdir()) == [".lock", "run.json"], "nothing touched"


def test_a_lock_ends_with_the_process_that_holds_it(project, server):
    place = [("os.replace", r"run\.json$", "before")]  # run.json is written under the folder's lock
    assert server.run("bind", arguments={"parameters": parameters("held")}, interfere=place)[0] == -signal.SIGKILL
    assert (project / "held" / ".lock").exists()
    assert server.run("bind", arguments={"parameters": parameters("held")})[0] == 0


# --- a folder of another version -------------------------------------------------------------------------------------


@pytest.fixture
def run(project, calm, tmp_path, monkeypatch):
    """The undisturbed run's folder, copied, and opened by notebook 05."""
    monkeypatch.chdir(project)
    shutil.copytree(project / "calm", tmp_path / "copy")
    return Run.open("05_score_and_detect", **parameters(str(tmp_path / "copy")))


def reopened(run: Run) -> Run:
    return Run.open(run.stage, **run.parameters.model_dump())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["settings"].update(magic=3), "other settings .magic: 3 there, nothing now.; choose another --out"),
        (lambda c: c["settings"].pop("importance"), "other settings .importance: nothing there, 0.9 now.; choose"),
        (lambda c: c["settings"].update(optimizer="sgd"), "optimizer: 'sgd' there, 'muon' now"),
        (lambda c: c.pop("settings"), "run.json is damaged; delete it, or choose another --out"),
        (lambda c: c.update(settings=[1]), "run.json is damaged; delete it"),
    ],
)
def test_the_settings_of_another_version(run, change, message):
    content = read_json(run.path("run.json"))
    change(content)
    write_json(run.path("run.json"), content)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with pytest.raises(RunError, match=message):
        reopened(run)
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 10**5])
def test_a_run_json_that_is_no_record(run, text):
    run.path("run.json").write_text(text)
    with pytest.raises(RunError, match="run.json is damaged; delete it"):
        reopened(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["meta"].update(format=0),
        lambda content: content["meta"]["settings"].update(magic=1),
        lambda content: content["meta"]["settings"].pop("seed", content["meta"].pop("seed")),
        lambda content: content.update(tensors="detector.safetensors"),
        lambda content: content.pop("meta"),
    ],
)
def test_a_detector_of_another_version_is_named_by_05_and_trained_again_by_03(run, change):
    job, path = run.jobs[0], run.detector_folder(run.jobs[0]) / "detector.json"
    content = read_json(path)
    change(content)
    write_json(path, content)
    with pytest.raises(RunError, match=r"detector.json .*[;.] .*Run 03_train for bolt, seed 0") as caught:
        run.load_detector(job)
    assert "\n" not in str(caught.value)
    run.fit_detector(job, progress=False)
    assert run.load_detector(job).settings == run.settings


@pytest.mark.parametrize(
    "record",
    [[], {}, {"key": 1}, {"files": 3}, {"files": {"a\0b": "c"}}, {"files": ["metrics.csv"]}, {"files": {"..": 1}}, 7],
)
def test_the_record_of_another_version_is_no_record(run, record):
    path = run.path("stages/05_score_and_detect.parts.json")
    own = reopened(run)
    own_key = read_json(path)["key"]
    assert own.is_current()
    write_json(path, record | {"key": own_key} if isinstance(record, dict) and record else record)
    assert not own.is_current()


def test_pieces_of_another_version_are_not_mixed_with_ours(run, capsys):
    whole = pd.read_csv(run.path("metrics.csv"))
    old = run.path("pieces/metrics/parts_nut_seed0.csv")
    pd.read_csv(old).drop(columns="AUPRO").to_csv(old, index=False)
    record = read_json(old.with_suffix(".json"))
    write_json(old.with_suffix(".json"), {key: record[key] for key in record if key not in ("sha256", "made_from")})
    bolt = pd.read_csv(run.path("pieces/metrics/parts_bolt_seed0.csv"))
    table = run.save_piece(bolt, "metrics.csv", "parts_bolt_seed0")
    assert set(table.category) == {"bolt"} and list(table) == list(whole)
    assert "metrics.csv is made without parts_nut_seed0, pieces of another version" in capsys.readouterr().out
    table = run.save_piece(whole[whole.category == "nut"], "metrics.csv", "parts_nut_seed0")
    assert len(table) == len(whole), "made again, it is in"


def test_a_piece_without_a_hash_is_taken_and_made_again_by_its_study(run):
    path = run.path("pieces/decisions/parts_bolt_seed0.json")
    write_json(path, {key: value for key, value in read_json(path).items() if key not in ("sha256", "made_from")})
    made = []

    def make():
        made.append(1)
        return [pd.read_csv(path.with_suffix(".csv"))]

    assert len(run.pieces(("decisions.csv",), run.jobs[0], run.categories[0], make)) == len(made) == 1


@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe", b'a,b\n1,"2'])
def test_a_table_or_array_that_is_not_what_was_written(run, content):
    run.path("metrics.csv").write_bytes(content)
    with pytest.raises(
        RunError, match="metrics.csv is not what the JSON beside it vouches for: run 05_score_and_detect"
    ):
        run.read_table("metrics.csv")
    job, category = run.labelled[0]
    assert run.has_nll(job, category)
    run.path("scores/parts_bolt_seed0.npz").write_bytes(content)
    assert not run.has_nll(job, category)
    with pytest.raises(RunError, match="parts_bolt_seed0.npz is damaged: run 05_score_and_detect first"):
        run.read_nll(job, category)


def test_what_a_killed_write_left_is_no_output(run):
    for path in run.folder.glob("scores/*.npz"):
        path.rename(path.with_name(f".{path.name}"))
    assert not reopened(run).is_current()
    with pytest.raises(RunError, match="should have written scores/"):
        run.finish()


def test_locks_hold_between_threads_of_one_process_and_say_that_they_wait(tmp_path, capsys):
    path, done = tmp_path / "a" / ".lock", []

    def enter():
        with locked(path, "waiting"):
            done.append(True)

    thread = threading.Thread(target=enter)
    with locked(path):
        thread.start()
        wait_for(lambda: "waiting" in capsys.readouterr().out or done)
        assert not done
    thread.join()
    assert done


def test_a_detector_whose_tensors_cannot_be_written_leaves_the_old_one(run, monkeypatch):
    folder = run.detector_folder(run.jobs[0])
    detector = OneStepDetector.load(folder, "cpu")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(
        StorageError, match=r"detector.json cannot be written \(No space left on device\): free some space"
    ):
        detector.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def full_disk(*_):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
