"""A timing measures what it says: turns, ratios and memory; no test here asserts a time."""

import numpy as np
import pandas as pd
import pytest
import torch

from irf_lib.studies import speed

CPU = torch.device("cpu")


def test_cases_take_turns():
    calls, cases = [], {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = speed.interleaved(cases, 4, repeats=9, device=CPU, warmup=1, in_a_row=2)
    assert (once := calls[::2]) == calls[1::2] and len(calls) == 60, "two calls in a row"
    assert len({a + b for i, (a, b) in enumerate(zip(once, once[1:], strict=False)) if i % 3 < 2}) == 6, "in any order"
    assert len(rounds) == 27 and rounds.groupby(["name", "round"]).size().eq(1).all() and (rounds.ms >= 0).all()


def table(**columns):
    rows = [(name, 1, i, float(ms)) for name, values in columns.items() for i, ms in enumerate(values)]
    return pd.DataFrame(rows, columns=["name", "batch", "round", "ms"])


def test_a_ratio_is_taken_inside_a_round(refused):
    # The machine gets ten times slower on the way: medians of each name would still give 2, but with no interval.
    slower = np.linspace(1, 10, 25)
    rounds = table(floor=slower, score=2 * slower)
    assert speed.ratio(rounds, "score", "floor", 1) == (2.0, 2.0, 2.0)
    noisy = table(floor=slower, score=slower * np.random.default_rng(0).normal(2, 0.2, 25))
    value, low, high = speed.ratio(noisy, "score", "floor", 1)
    assert 1.7 < low < value < high < 2.3
    refused("same round at batch 8", speed.ratio, rounds, "score", "floor", 8)


def test_summary_of_rounds():
    summary = speed.summarise_rounds(table(floor=[1, 2, 3], score=[2, 4, 9])).set_index("name")
    assert summary.ms_median.to_dict() == {"floor": 2, "score": 4} and summary.n.eq(3).all()
    assert summary.ratio_to_floor.to_dict() == {"floor": 1, "score": 2}
    assert summary.ms_p10["score"] == pytest.approx(2.4) and summary.ms_p90["score"] == pytest.approx(8)
    assert speed.summarise_rounds(table(score=[1.0])).ratio_to_floor.isna().all(), "no floor, no ratio"


def test_peak_memory_sees_what_was_held():
    held = speed.peak_mib(lambda: np.ones(2**23).sum(), CPU)  # 64 MiB
    assert np.isnan(held) or 60 < held < 200


def test_a_time_is_that_of_one_image():
    calls = []
    assert speed.milliseconds_per_image(calls.append, np.zeros((4, 3, 8, 8))) >= 0 and len(calls) == 3, "one warm-up"
