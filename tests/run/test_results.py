"""Run: parameters, the folder and what it is bound to, detectors trained once, tables that vouch for themselves."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from irf_lib import metrics
from irf_lib.conformal import Scores
from irf_lib.files import file_sha256
from irf_lib.run import provenance
from irf_lib.run.presets import PRESETS
from irf_lib.run.results import Run


@pytest.fixture
def open_run(project, tiny):
    def opened(stage="05_score_and_detect", **changes):
        given = {"data": "parts", "category": "bolt", "seed": 0, "test": "", "settings": tiny, "reading": {}}
        return Run.open(stage, **given | {"out": "results/mine", "device": "cpu"} | changes)

    return opened


def scored(run):
    detector = run.detector(progress=False)
    test = run.test_set(detector)
    row, *_ = run.row(test, "irf", detector.read(test.x0))
    run.save_table(pd.DataFrame([row]), "metrics.csv")
    run.finish()


OUTS = (".", "..", "irf_lib/run", "parts", "parts/bolt/out", ".git/x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "fast"}, "preset: Input should be 'quick', 'reference' or 'paper'"),
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"settings": {"t": 300}}, "wrong settings: t: Extra inputs"),
        ({"settings": {"width": 32}}, "wrong settings: together: width"),
        ({"reading": {"t": True}}, "wrong reading: t: Input should be a valid integer"),
        ({"data": "nowhere"}, "nowhere: no such folder"),
        *(({"out": out}, "is, holds or lies in choose another out") for out in OUTS),
    ],
)
def test_wrong_parameters_are_one_sentence_and_nothing_is_written(open_run, project, refused, changes, words):
    before = sorted(project.rglob("*"))
    refused(words, lambda: open_run(**changes))
    assert sorted(project.rglob("*")) == before


def test_a_folder_holds_one_preset_and_one_settings_but_any_reading(open_run, tiny, refused):
    first = open_run()
    assert open_run(reading={"t": 300}).reading.t == 300
    for changes, words in (
        ({"preset": "reference"}, "preset: 'quick' there, 'reference' now"),
        ({"settings": tiny | {"steps": 13, "lr": 0.1}}, "steps: 12 there, 13 now; lr: 0.1 now"),
    ):
        refused(f"holds results of other settings {words} choose another out", lambda given=changes: open_run(**given))
    gathering = Run.open("15_results", preset="quick", out="results/mine")
    assert gathering.settings.steps == 12 and gathering.folder == gathering.top, "it works with the folder's"
    new = Run.open("15_results", preset="quick", out="results/new")
    assert new.settings.steps == PRESETS["quick"].settings["steps"] and not new.top.exists(), "and binds nothing"
    (first.top / "run.json").unlink()
    second = open_run(settings=tiny | {"steps": 13})
    refused("steps: 13 there, 12 now", first.finish)  # of two that started at once
    second.finish()


def test_folders(open_run):
    run = open_run(seed=3)
    assert run.show(run.folder) == "results/mine/parts/bolt/seed3" == run.show(run.home)
    unified = open_run(category="unified", test="nut")
    assert unified.show(unified.home) == "results/mine/parts/unified/seed0"
    assert unified.folder == unified.home / "nut" and unified.category.name == "nut"
    assert len(unified.training) == 30 and unified.label == "nut, seed 0 (unified)"
    data = Run.open("01_data", data="parts", category="", out="results/mine")
    assert data.show(data.folder) == "results/mine/parts/bolt"
    assert provenance.dataset_name(run.root / "parts" / "bolt") == "parts" == run.dataset
    assert "CC BY-NC-SA" in provenance.credit("mvtec_ad") and "own licence" in run.credit


def test_a_detector_is_trained_once_whatever_reads_it(open_run, project, trainings, monkeypatch):
    scores = {}
    for reading in ({}, {"t": 300}, {"density": "diagonal"}, {}):
        run = open_run(reading=reading)
        detector = run.detector(progress=False)
        scores[str(reading)] = detector.read(run.test_set(detector).x0).scores
        assert detector.reading == run.reading and len(detector.good[0]) == 10
    assert len(trainings) == 1 and len({tuple(one) for one in scores.values()}) == 3
    path = run.home / "detector.safetensors"
    assert list(run.home.iterdir()) == [path], "no checkpoint is left"
    assert open_run(seed=1).detector(progress=False) and len(trainings) == 2
    shutil.copy(project / "parts/nut/train/good/00.png", project / "parts/bolt/train/good/00.png")
    assert open_run().detector(progress=False) and len(trainings) == 3, "of other images"
    path.write_bytes(path.read_bytes()[:-1])
    assert open_run().detector(progress=False) and len(trainings) == 4, "a damaged one is made again"
    monkeypatch.setattr(provenance, "training_code", lambda: "edited")
    assert open_run().detector(progress=False) and len(trainings) == 5
    made = [run.variant("small", {"steps": 3}) for _ in range(2)]
    assert len(trainings) == 6 and len(made[1].history) == 3 and len(run.detector(progress=False).history) == 12


def test_what_code_does_is_hashed_and_not_what_it_says(tmp_path):
    hashes, path = [], tmp_path / "a.py"
    for text in ('"""Doc."""\ndef f(x):\n    return x  # why\n', "def f(x): return (x)", "def f(x): return 1"):
        path.write_text(text)
        hashes.append(provenance.code_hash([path]))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_unified_detector_has_held_out_images_of_each_category(open_run):
    run, bolt = (open_run(category="unified", test=name) for name in ("nut", "bolt"))
    detector = run.detector(progress=False)
    nuts, bolts = run.held_out_images(detector), bolt.held_out_images(detector)
    assert len(nuts) + len(bolts) == len(detector.calibration_index) and nuts.shape[1:] == (3, 32, 32)
    row, _, _ = run.row(run.test_set(detector), "irf", detector.read(run.test_set(detector).x0))
    assert row["method"] == "irf:unified" and row["category"] == "nut"


def test_a_row_is_what_the_metrics_say(open_run, project, refused):
    run = open_run()
    test = run.test_set(run.detector(progress=False))
    nll = torch.arange(8 * 16.0).reshape(8, 4, 4)
    found = Scores(nll, np.arange(8.0), np.arange(3.0), 32, run.reading)
    how = {"input": None, "t": None, "density": "x"}
    row, interval, images = run.row(test, "rival", found, how | {"image_score": None})
    expected = metrics.evaluate(np.arange(8.0), test.labels, found.maps, test.masks)
    assert {name: row[name] for name in expected} == expected
    assert (row["n_test_good"], row["n_test_anomalous"], row["t"]) == (4, 4, None)
    assert interval["lo"] <= interval["value"] == row["I-AUROC"] <= interval["hi"] and interval["n"] == 8
    assert images.image.tolist() == test.names and test.names[0] == "good/00.png"
    own = run.row(test, "rival", nll, run.reading, scores=-torch.arange(8))[0]
    assert own["I-AUROC"] == 1 - row["I-AUROC"] and own["t"] == run.reading.t > 0
    assert run.row(test, "rival:x", nll)[2].score.tolist() == [16 * i + 10.5 for i in range(8)], "top10"
    for folder in ("test/hole", "ground_truth"):
        shutil.rmtree(project / "parts/bolt" / folder)
    refused("no good and anomalous test images", open_run().test_set, open_run().detector(progress=False))


def test_tables_are_gathered_from_finished_notebooks(open_run, capsys, refused):
    runs = [open_run(category=name, seed=seed) for name in ("nut", "bolt") for seed in (0, 1)]
    for run in runs:
        scored(run)
    gathering = Run.open("15_results", preset="quick", out="results/mine")
    table = gathering.gather("metrics.csv")
    assert table[["category", "seed"]].to_numpy().tolist() == [["bolt", 0], ["bolt", 1], ["nut", 0], ["nut", 1]]
    gathering.save_table(table, "metrics.csv")
    gathering.finish()
    assert len(gathering.gather("metrics.csv")) == 4, "its own table is none of a detector's"
    runs[0].save_table(table, "metrics.csv")
    assert len(gathering.gather("metrics.csv")) == 3, "written, and not finished"
    assert "left out, their notebook did not get to its end: results/mine/parts/nut/seed0" in capsys.readouterr().out
    refused("holds no finished claims.csv", gathering.gather, "claims.csv")
    scored(open_run(seed=2, reading={"t": 300}))
    refused("different readings auto 300 make all by one", gathering.gather, "metrics.csv")


def test_provenance_vouches_for_every_file(open_run, refused):
    run = open_run(own={"alpha": 0.1})
    refused("metrics.csv is missing: run the notebook", run.read_table, "metrics.csv")
    scored(run)
    made = json.loads((run.folder / "provenance" / "05_score_and_detect.json").read_text())
    assert set(made["files"]) == {"detector.safetensors", "metrics.csv"}
    assert all(file_sha256(run.folder / name) == digest for name, digest in made["files"].items())
    assert made["parameters"]["alpha"] == 0.1 and made["parameters"]["category"] == "bolt"
    assert made["settings"]["steps"] == 12 and made["reading"]["t"] == "auto" and made["commit"] == "unknown"
    assert set(made["data_sha256"]) == {"bolt"} and made["wall_s"] > 0
    assert provenance.vouched(run.folder / "metrics.csv") == made and len(run.read_table("metrics.csv")) == 1
    (run.folder / "metrics.csv").write_text("edited")
    refused("is not what its notebook finished", run.read_table, "metrics.csv")


def test_files(open_run):
    run, figure = open_run(), Figure(figsize=(1, 1))
    run.save_figure(figure, "a")
    run.save_table(pd.DataFrame({"category": ["01"]}), "d.csv")
    run.finish()
    assert run.read_table("d.csv").category[0] == "01", "BTAD's categories are names"
    assert (run.folder / "figures" / "a.png").is_file()
    before = (run.folder / "figures" / "a.pdf").read_bytes()
    run.save_figure(figure, "a")
    assert (run.folder / "figures" / "a.pdf").read_bytes() == before
