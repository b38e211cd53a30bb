"""The benchmark measures what it says: turns, ratios and yardsticks; no test here asserts a time."""

import numpy as np
import pandas as pd
import pytest
import torch

from irf_lib import benchmark, metrics
from irf_lib.detector import DetectorSettings

CPU = torch.device("cpu")


def test_cases_take_turns():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = benchmark.interleaved(cases, batch=4, repeats=3, device=CPU, warmup=1)
    assert calls == ["c", "a", "b", "a", "b", "c", "b", "c", "a", "c", "a", "b"], "the order turns by one each round"
    assert len(rounds) == 9 and rounds.groupby("name").size().eq(3).all() and (rounds.ms >= 0).all()


def table(**columns):
    rows = [
        {"name": name, "batch": 1, "round": i, "ms": float(ms)}
        for name, values in columns.items()
        for i, ms in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_a_ratio_is_taken_inside_a_round():
    # The machine gets ten times slower on the way: medians of each name would still give 2, but with no interval.
    speed = np.linspace(1, 10, 25)
    rounds = table(floor=speed, score=2 * speed)
    assert benchmark.ratio(rounds, "score", "floor", 1) == (2.0, 2.0, 2.0)
    noisy = table(floor=speed, score=speed * np.random.default_rng(0).normal(2, 0.2, 25))
    value, low, high = benchmark.ratio(noisy, "score", "floor", 1)
    assert 1.7 < low < value < high < 2.3
    with pytest.raises(ValueError, match="same round at batch 8"):
        benchmark.ratio(rounds, "score", "floor", 8)


def test_summary_of_rounds():
    summary = benchmark.summarise_rounds(table(floor=[1, 2, 3], score=[2, 4, 9])).set_index("name")
    assert summary.ms_median.to_dict() == {"floor": 2, "score": 4} and summary.n.eq(3).all()
    assert summary.ratio_to_floor.to_dict() == {"floor": 1, "score": 2}
    assert summary.ms_p10["score"] == pytest.approx(2.4) and summary.ms_p90["score"] == pytest.approx(8)
    assert benchmark.summarise_rounds(table(score=[1.0])).ratio_to_floor.isna().all(), "no floor, no ratio"


def test_peak_memory_sees_what_was_held():
    held = benchmark.peak_mib(lambda: np.ones(2**23).sum(), CPU)  # 64 MiB
    assert np.isnan(held) or 60 < held < 200


@pytest.fixture(scope="module")
def detector():
    settings = DetectorSettings(backbone="rgb", image_size=32, feature_size=8, width=64, depth=1)
    return benchmark.benchmark_detector(settings, "cpu", 12)


def test_every_case_runs_and_asks_the_network_as_often_as_it_says(detector, monkeypatch):
    images = np.random.default_rng(1).random((3, 3, 32, 32), dtype=np.float32)
    cases, halves = benchmark.scoring_cases(detector, images, steps=(10,))
    assert {"floor", "score", "backbone", "denoiser", "density", "upsample", "inversion3", "reconstruct10"} <= set(
        cases
    )
    assert set(halves) <= set(cases)
    asked = []
    forward = torch.nn.functional.scaled_dot_product_attention  # once a block, and these networks have one block

    def counted(*args, **kwargs):
        asked.append(len(args[0]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    expected = {"floor": 1, "score": 1, "score_bf16": 1, "denoiser": 1, "inversion3": 3, "inversion3_denoiser": 3}
    expected |= {"reconstruct10": 10, "reconstruct10_denoiser": 10}
    for name, case in cases.items():
        asked.clear()
        case()
        assert sum(asked) == 3 * expected.get(name, 0), name


def test_training_cases_train(detector):
    cases, precision = benchmark.training_cases(detector, n=8, steps=5)
    assert precision in ("fp32", "bf16")
    assert [cases["train_step"]().step for _ in range(3)] == [1, 2, 3]
    cases["train_bare"]()


def test_yardsticks_agree_with_the_exact_metrics():
    scores, maps, masks = benchmark.synthetic_maps(6, 64)
    exact = metrics.pixel_metrics(maps, masks)
    for name, value in benchmark.sklearn_pixel_metrics(maps, masks).items():
        assert exact[name] == pytest.approx(value, abs=1e-9)
    assert benchmark.literal_aupro(maps, masks, 400) == pytest.approx(exact["AUPRO"], abs=5e-3)
    assert masks[::2].any(axis=(1, 2)).all() and not masks[1::2].any() and len(scores) == 6
    for case in benchmark.metric_cases(4, 2).values():
        case()


def test_sizes_and_streams(detector):
    cases = benchmark.image_size_cases(detector.settings, (32, 64), 2, "cpu")
    assert [cases[f"score_{size}px"]()[1].shape for size in (32, 64)] == [(2, 32, 32), (2, 64, 64)]
    benchmark.score_many(detector, 70)()
