"""Runs refuse what is wrong before anything starts, bind one folder to one setting, and skip what is current."""

import json
import os
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from irf_lib import runner, runs, stages
from irf_lib.__main__ import main
from irf_lib.runs import CLAIM_COLUMNS, Run
from irf_lib.stages import PRESETS, STAGES, ParameterError, RunError

# A detector that trains in a moment.
TINY = {"steps": 2, "width": 64, "depth": 1, "backbone": "rgb", "image_size": 32, "feature_size": 4}


@pytest.fixture
def run(tmp_path):
    return Run.open("00_start_here", out=str(tmp_path / "out"))


@pytest.fixture
def mvtec(tmp_path):
    """A category of eight 32 px images in MVTec AD layout."""
    rng = np.random.default_rng(0)
    for name in ["train/good/0", "train/good/1", "train/good/2", "test/good/0", "test/hole/0"]:
        path = tmp_path / "mvtec_like" / "nut" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    path = tmp_path / "mvtec_like" / "nut" / "ground_truth" / "hole" / "0_mask.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(mask).save(path)
    return tmp_path / "mvtec_like"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "fast"}, "preset.*'quick', 'reference' or 'paper'"),
        ({"sede": [1]}, "sede: Extra inputs"),
        ({"seeds": 1}, "seeds: .*list"),
        ({"seeds": ["1"]}, "seeds.0: .*integer"),
        ({"seeds": [-1]}, "seeds.0: .*greater than or equal to 0"),
        ({"seeds": [1, 1]}, "seeds: .*twice"),
        ({"settings": {"width": 100}}, "multiple of its head size 64"),
        ({"settings": {"denoiser": "unet", "width": 64, "depth": 6}}, "must divide feature_size"),
        ({"categories": "bottle"}, "categories: .*list"),
        ({"unified": "maybe"}, "unified: .*'auto', 'yes' or 'no'"),
        ({"settings": {"tt": 3}}, "tt: Extra inputs"),
        ({"settings": {"t": 1000}}, "t: .*less than 1000"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
    ],
)
def test_wrong_parameters(tmp_path, parameters, message):
    with pytest.raises(RunError, match=message):
        Run.open("00_start_here", **({"out": str(tmp_path)} | parameters))


def test_presets_are_valid_settings():
    for name, preset in PRESETS.items():
        settings = runs.DetectorSettings(**preset.settings)
        assert settings.t == 200 and preset.seeds, name
    assert runs.DetectorSettings(**PRESETS["paper"].settings).for_images(3629).steps == 300 * 114


def test_one_folder_holds_one_setting(tmp_path):
    out = str(tmp_path / "out")
    Run.open("00_start_here", out=out)
    Run.open("00_start_here", out=out, seeds=[5], categories=["woven"])  # more of the same
    with pytest.raises(RunError, match=r"t: 200 there, 300 now.*choose another --out"):
        Run.open("00_start_here", out=out, settings={"t": 300})
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(RunError, match="run.json is damaged"):
        Run.open("00_start_here", out=out)


def test_a_missing_input_names_the_notebook_that_makes_it(tmp_path):
    with pytest.raises(RunError, match="detector.json is missing: run 03_train first"):
        Run.open("05_score_and_detect", out=str(tmp_path))
    with pytest.raises(RunError, match="metrics.csv is missing: run 05_score_and_detect first"):
        Run.open("10_figures", out=str(tmp_path))


def test_tables_carry_provenance_and_refuse_to_mix(run):
    run.save_table(pd.DataFrame({"a": [1]}), "metrics.csv")
    provenance = json.loads(run.path("metrics.json").read_text())
    assert {"commit", "dirty", "settings", "seeds", "packages", "device", "threads", "wall_s"} <= provenance.keys()
    assert run.read_table("metrics.csv").a.tolist() == [1]
    provenance["settings"]["t"] = 1
    run.path("metrics.json").write_text(json.dumps(provenance))
    with pytest.raises(RunError, match="made with other settings"):
        run.read_table("metrics.csv")
    with pytest.raises(RunError, match="decisions.csv is missing: run 05_score_and_detect first"):
        run.read_table("decisions.csv")


def test_pieces_add_up_and_are_replaced(run):
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        table = run.save_piece(pd.DataFrame({"category": ["01"], "x": [value]}), "metrics.csv", key)
    assert table.x.tolist() == [3, 2]
    assert table.category.tolist() == ["01", "01"], "BTAD's categories are names, not numbers"
    assert pd.read_csv(run.path("metrics.csv")).x.tolist() == [3, 2]


def test_a_stage_is_current_until_something_changes(tmp_path, monkeypatch):
    run = Run.open("00_start_here", out=str(tmp_path))
    assert not run.is_current()
    run.save_table(pd.DataFrame({"a": [1]}), "extra.csv")
    run.finish()
    again = Run.open("00_start_here", out=str(tmp_path))
    assert again.is_current()
    assert not Run.open("00_start_here", out=str(tmp_path), seeds=[1]).is_current()
    assert not Run.open("00_start_here", {"image": 3}, out=str(tmp_path)).is_current()
    monkeypatch.setattr(runs, "_code_hash", lambda *modules: "other code")
    assert not Run.open("00_start_here", out=str(tmp_path)).is_current()
    monkeypatch.undo()
    run.path("extra.csv").write_text("a\n2\n")
    assert not again.is_current(), "an output was changed by hand"


def test_code_that_is_edited_during_a_stage_did_not_make_it(tmp_path, monkeypatch):
    run = Run.open("00_start_here", out=str(tmp_path))
    monkeypatch.setattr(runs, "_code_hash", lambda *modules: "edited while it ran")
    monkeypatch.setattr(runs, "git_state", lambda root: ("a later commit", False))
    run.save_table(pd.DataFrame({"a": [1]}), "extra.csv")
    run.finish()
    assert not Run.open("00_start_here", out=str(tmp_path)).is_current()
    assert json.loads(run.path("extra.json").read_text())["commit"] != "a later commit"


def test_a_piece_without_its_provenance_is_no_piece(run):
    for key in "ab":
        run.save_piece(pd.DataFrame({"x": [key]}), "metrics.csv", key)
    run.path("pieces/metrics/a.json").unlink()
    assert run.save_piece(pd.DataFrame({"x": ["c"]}), "metrics.csv", "c").x.tolist() == ["b", "c"]


def test_what_a_killed_write_left_is_no_piece(run):
    run.save_piece(pd.DataFrame({"x": [1]}), "metrics.csv", "a")
    run.path("pieces/metrics/.a-k1ll3d.csv").write_text("")
    assert run.save_piece(pd.DataFrame({"x": [2]}), "metrics.csv", "b").x.tolist() == [1, 2]
    assert set(json.loads(run.path("metrics.json").read_text())["pieces"]) == {"a", "b"}


def test_the_data_hash_knows_the_labels(mvtec):
    before = runs.category_hash(runs.datasets.read_category(mvtec, "nut"))
    (mvtec / "nut" / "test" / "hole").rename(mvtec / "nut" / "test" / "dent")
    (mvtec / "nut" / "ground_truth" / "hole").rename(mvtec / "nut" / "ground_truth" / "dent")
    assert runs.category_hash(runs.datasets.read_category(mvtec, "nut")) != before


def test_a_single_category_keeps_the_name_of_its_data_set(tmp_path, mvtec):
    assert Run.open("00_start_here", data=str(mvtec / "nut"), out=str(tmp_path / "out")).dataset == "mvtec_like"


def test_a_stage_that_left_nothing_is_not_finished(tmp_path):
    with pytest.raises(RunError, match="02_toy_ddpm should have written toy.csv"):
        Run.open("02_toy_ddpm", out=str(tmp_path)).finish()


def test_jobs(tmp_path, mvtec):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "seeds": [1, 2]}
    single = Run.open("00_start_here", **keywords)
    assert [(job.name, job.seed) for job in single.jobs] == [("nut", 1), ("nut", 2)]
    unified = Run.open("00_start_here", **keywords, unified="yes")
    assert [(job.name, job.seed) for job in unified.jobs] == [("unified", 1), ("unified", 2)]
    assert single.piece_key(single.jobs[0], single.categories[0]) == "mvtec_like_nut_seed1"
    assert unified.piece_key(unified.jobs[0], unified.categories[0]) == "mvtec_like_nut_unified_seed1"


def test_a_detector_is_trained_once_and_not_trusted_for_other_data(tmp_path, mvtec):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "seeds": [0], "settings": TINY, "device": "cpu"}
    run = Run.open("00_start_here", **keywords)
    with pytest.warns(UserWarning, match="held-out normal images"):
        run.fit_detector(run.jobs[0], progress=False)
    folder = run.detector_folder(run.jobs[0])
    written = folder.joinpath("detector.json").stat().st_mtime_ns
    assert not list(folder.glob("checkpoint*")), "a finished run leaves no checkpoint"
    assert run.fit_detector(run.jobs[0], progress=False).settings.steps == 2
    assert folder.joinpath("detector.json").stat().st_mtime_ns == written, "loaded, not trained again"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(mvtec / "nut" / "train" / "good" / "0.png")
    fresh = Run.open("00_start_here", **keywords)
    with pytest.raises(RunError, match="trained on other data or by other code; run 03_train again"):
        fresh.load_detector(fresh.jobs[0])


def test_a_variant_is_kept_apart_and_trained_once(tmp_path, mvtec):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "settings": TINY | {"alpha": 0.5}, "device": "cpu"}
    run = Run.open("00_start_here", **keywords)
    job = run.jobs[0]
    first = run.fit_variant(job, "steps / 2", {"steps": 1})
    assert len(first.history) == 1 and not run.detector_folder(job).exists(), "the default is untouched"
    (path,) = run.folder.glob("variants/**/detector.json")
    written = path.stat().st_mtime_ns
    assert run.fit_variant(job, "steps / 2", {"steps": 1}).train_seconds == first.train_seconds
    assert path.stat().st_mtime_ns == written, "loaded, not trained again"
    run.fit_variant(job, "steps / 2", {"steps": 2})
    assert path.stat().st_mtime_ns != written, "the same name with other settings is another detector"
    with pytest.raises(ParameterError, match="variant wide: .*head size 64"):
        run.fit_variant(job, "wide", {"width": 100})


def test_a_study_computes_a_piece_once(tmp_path, mvtec, monkeypatch):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "settings": TINY | {"alpha": 0.5}, "device": "cpu"}
    run = Run.open("03_train", seeds=[0], **keywords)
    job, made = run.jobs[0], []
    run.fit_detector(job, progress=False)

    def make(run=run, job=job, depends=None):
        def rows():
            made.append(job.seed)
            return [pd.DataFrame({"seed": [job.seed], "x": [len(made)]}), pd.DataFrame({"y": [0]})]

        return run.pieces(("metrics.csv", "intervals.csv"), job, job.categories[0], rows, depends)

    assert [table.columns.tolist() for table in make()] == [["seed", "x"], ["y"]]
    assert make()[0].x.tolist() == [1] and made == [0], "kept, not made again"
    other = Run.open("03_train", seeds=[1], **keywords)
    other.fit_detector(other.jobs[0], progress=False)
    assert make(other, other.jobs[0])[0].x.tolist() == [1, 2] and made == [0, 1], "another seed adds to it"
    piece = run.path(f"pieces/metrics/{run.piece_key(job, job.categories[0])}.csv")
    piece.write_text("seed,x\n0,99\n")
    assert make()[0].x.tolist() == [3, 2], "a file that is not what was written is made again"
    monkeypatch.setattr(runs, "_code_hash", lambda *modules: "other code")
    assert make()[0].x.tolist() == [3, 2], "code that is edited while a study runs did not make its pieces"
    assert make(Run.open("03_train", seeds=[0], **keywords))[0].x.tolist() == [4, 2]
    monkeypatch.undo()
    with_own = Run.open("03_train", {"grid": [1]}, seeds=[0], **keywords)
    assert make(with_own)[0].x.tolist() == [5, 2], "a notebook's own parameters count"
    (run.detector_folder(job) / "detector.json").write_text("{}")
    assert make(with_own)[0].x.tolist() == [6, 2], "and so does the detector"
    assert make(with_own, depends=[1, 50])[0].x.tolist() == [7, 2] and make(with_own, depends=[1, 50])[0].x[0] == 7
    shutil.rmtree(run.detector_folder(job))
    with pytest.raises(RunError, match="detector.json is missing: run 03_train for nut, seed 0"):
        make(with_own)


def test_a_piece_depends_on_the_cells_that_make_it(tmp_path, mvtec):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "settings": TINY | {"alpha": 0.5}, "device": "cpu"}
    run = Run.open("03_train", seeds=[0], **keywords)
    run.fit_detector(run.jobs[0], progress=False)
    cells = ["import x", "draw()\nrun.save_figure(f, 'a')", 'run.pieces(("metrics.csv",), job)', "claims()"]

    def key(*cells):
        run._cells = cells
        return run._piece_inputs("metrics.csv", run.jobs[0], run.categories[0], None)

    same = key(*cells)
    assert key(cells[0], "draw(2)\nrun.save_figure(f, 'a')", *cells[2:]) == same, "not on figures"
    assert key(*cells[:3], "other_claims()") == same, "nor on what comes later"
    assert key("import y", *cells[1:]) != same


def test_parts_of_a_run_do_not_meet(tmp_path, mvtec):
    keywords = {"data": str(mvtec), "out": str(tmp_path / "out"), "settings": TINY | {"alpha": 0.5}, "device": "cpu"}
    first, second = (Run.open("03_train", seeds=[seed], **keywords) for seed in (1, 2))
    first.fit_detector(first.jobs[0], progress=False)
    for name in ("training.csv", "denoising.csv", "figures/training.pdf"):
        first.save(name, lambda path: path.write_text(""))
    first.finish()
    second.forget()
    assert first.is_finished() and not second.is_finished()
    assert len({run.partial_path for run in (first, second)}) == 2
    assert len({run.executed_path(apart=True) for run in (first, second)}) == 2
    assert first.executed_path() == second.executed_path() == first.folder / "notebooks" / "03_train.ipynb"
    second.fit_detector(second.jobs[0], progress=False)
    (second.detector_folder(second.jobs[0]) / "detector.json").unlink()
    assert first.is_current(), "it does not vouch for the other's detector"
    assert Run.open("00_start_here", out=str(tmp_path / "other")).parameters.part == ""


def test_own_rows(tmp_path, mvtec):
    run = Run.open("00_start_here", data=str(mvtec), out=str(tmp_path / "out"), seeds=[1])
    rows = [("mvtec_like", "nut", 1, False), ("mvtec_like", "nut", 2, False), ("other", "nut", 1, False)]
    rows += [("mvtec_like", "bolt", 1, False), ("mvtec_like", "nut", 1, True)]
    table = pd.DataFrame(rows, columns=["dataset", "category", "seed", "unified"])
    assert run.own_rows(table).index.tolist() == [0]
    assert run.own_rows(table.drop(columns="unified")).index.tolist() == [0, 4]


def test_a_table_that_two_stages_add_to_does_not_unsettle_the_first(tmp_path):
    def stage(name):
        run = Run.open("00_start_here", out=str(tmp_path / "out"))
        run.stage = name
        return run

    claims = [{"claim": "e", "statement": "s", "evidence": "x", "verdict": "holds", "interval": "1 [1, 1]", "n": "1"}]
    first = stage("00_start_here")
    first.save_claims(claims)
    first.finish()
    stage("07_normality").save_claims(claims)
    assert len(pd.read_csv(first.path("claims.csv"))) == 2 and first.is_current()


def test_claims_have_one_of_four_verdicts(run):
    row = {"claim": "e", "statement": "s", "evidence": "x", "verdict": "holds", "interval": "1 [1, 1]", "n": "1"}
    claims = run.save_claims([row, row | {"claim": "f", "verdict": "not tested"}])
    assert tuple(claims.columns) == CLAIM_COLUMNS and claims.notebook.tolist() == ["00_start_here"] * 2
    assert run.save_claims([row]).claim.tolist() == ["e"], "a notebook's earlier verdicts are replaced"
    with pytest.raises(ValueError, match="unknown verdict 'perhaps'; known: holds, holds under a stated condition"):
        run.save_claims([row | {"verdict": "perhaps"}])


def test_credit_names_the_licence(tmp_path, mvtec):
    run = Run.open("00_start_here", data=str(mvtec), out=str(tmp_path / "out"))
    assert "CC BY-NC-SA 4.0" in run.credit
    assert "generated" in Run.open("00_start_here", out=str(tmp_path / "out")).credit


# --- the command line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "--set", "tt=3"], 2, "tt: Extra inputs are not permitted"),
        (["run", "--set", "t=soon"], 2, "t: Input should be a valid integer"),
        (["run", "--set", "t"], 2, "--set takes NAME=VALUE, got 't'"),
        (
            ["run", "-p", "imag=3"],
            2,
            "no notebook has a parameter 'imag'; there are ablation_categories, ablation_seeds, batches,",
        ),
        (["run", "-p", "image=first"], 2, "parameter image must be int, got 'first'"),
        (["run", "-p", "preset=quick"], 2, "preset has an option of its own"),
        (["run", "--only", "77"], 2, "no notebook '77'; there are 00_start_here"),
        (["run", "--data", "no/such/folder"], 2, "no/such/folder"),
        (["run", "--device", "tpu"], 2, "device 'tpu' is not available"),
    ],
)
def test_wrong_commands_start_nothing(tmp_path, capsys, monkeypatch, arguments, status, message):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a notebook was started"))
    assert main([*arguments, "--out", str(tmp_path / "out")]) == status
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "Traceback" not in error


def test_a_link_is_named_and_not_where_it_leads(tmp_path, mvtec, monkeypatch):
    opened = []
    monkeypatch.setattr(runner, "_execute", lambda run, *_: opened.append(run) or 0.0)
    (tmp_path / "link").symlink_to(mvtec)
    main(["run", "--data", str(tmp_path / "link"), "--out", str(tmp_path / "out"), "--only", "01"])
    assert opened[0].parameters.data.endswith("/link") and opened[0].data_root.samefile(mvtec)


def test_unknown_category_names_the_known_ones(tmp_path, mvtec, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a notebook was started"))
    assert main(["run", "--data", str(mvtec), "--category", "nutt", "--out", str(tmp_path / "out")]) == 2
    assert "nut" in capsys.readouterr().err


def test_a_broken_image_stops_the_run_before_it_starts(tmp_path, mvtec, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a notebook was started"))
    broken = mvtec / "nut" / "test" / "good" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert main(["run", "--data", str(mvtec), "--out", str(tmp_path / "out")]) == 2
    assert "test/good/0.png" in capsys.readouterr().err


def test_data_commands(mvtec, capsys):
    assert main(["data", "list", "--data", str(mvtec)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["nut", "mvtec", "3", "1", "1", "yes"]
    assert main(["data", "check", "--data", str(mvtec)]) == 0
    assert "every file can be read" in capsys.readouterr().out
    assert main(["data", "check", "--data", str(mvtec / "nothing")]) == 2


def in_order(names, jobs, fails=()):
    """(started, ended) in the order in which it happened, and the most that ran at once."""
    events, now, most, lock = [], set(), [0], threading.Lock()

    def start(name, side_by_side):
        with lock:
            events.append(("start", name))
            now.add(name)
            most[0] = max(most[0], len(now))
            assert not STAGES[name].alone or (now == {name} and side_by_side == 1)
        time.sleep(0.02)
        with lock:
            now.remove(name)
            events.append(("end", name))
        if name in fails:
            raise RunError(f"{name} failed")

    runner._in_order(names, start, jobs)
    return events, most[0]


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_notebooks_run_side_by_side_but_after_what_they_read(jobs):
    events, most = in_order(list(STAGES), jobs)
    assert most == jobs
    at = {event: i for i, event in enumerate(events)}
    assert {name for kind, name in events if kind == "end"} == set(STAGES)
    for name, stage in STAGES.items():
        for other, source in STAGES.items():
            if other != name and set(stage.reads) & set(source.writes):
                assert at["end", other] < at["start", name], f"{name} reads what {other} writes"
    assert events[-1] == ("end", "12_speed"), "timed when nothing else runs"
    assert events[0] == ("start", "03_train"), "most others wait for it"


def test_a_failure_starts_nothing_more_and_lets_the_rest_end():
    names, ended = ["01_data", "02_toy_ddpm", "03_train", "04_inverse_residual_field"], []

    def start(name, _):
        time.sleep(0.05 if name == "03_train" else 0.01)
        if name == "01_data":
            raise RunError("01_data failed")
        ended.append(name)

    with pytest.raises(RunError, match="01_data failed"):
        runner._in_order(names, start, 2)
    assert ended == ["03_train"], "it ran beside the one that failed"
    with pytest.raises(RunError, match="03_train failed"):
        in_order(names, 2, fails={"03_train"})


def test_kernels_get_their_share_of_the_cores(tmp_path, mvtec, monkeypatch):
    seen = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "_execute", lambda *_: seen.append(os.environ["OMP_NUM_THREADS"]) or 0.0)
    cores = len(os.sched_getaffinity(0))
    command = ["run", "--data", str(mvtec), "--out", str(tmp_path / "out"), "--only", "01", "--only", "02"]
    main([*command, "--jobs", "1"])
    main([*command, "--jobs", "2"])
    assert seen == [str(cores)] * 2 + [str(max(1, cores // 2))] * 2 and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    main([*command, "--jobs", "2"])
    assert seen[4:] == ["3", "3"] and os.environ["OMP_NUM_THREADS"] == "3", "the user's word counts"
    assert main([*command, "--jobs", "-1"]) == 2


def test_every_notebook_is_a_stage_and_back():
    assert [path.stem for path in stages.notebook_paths(stages.project_root())] == list(STAGES)
