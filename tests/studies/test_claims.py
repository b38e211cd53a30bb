"""Each rule on made-up tables whose verdict is known beforehand: what holds, what does not, what is left open."""

import numpy as np
import pandas as pd
import pytest

from irf_lib.studies import claims

PLACE = {"dataset": "d", "category": "bottle", "seed": 0, "unified": False}


def judged(t: int = 200, **tables) -> pd.DataFrame:
    return claims.judge_claims(tables, t).set_index("claim")


def invariance(near=(0.97, 0.99), far=(0.97, 0.99), full=(0.95, 0.99), gain=(-0.01, 0.01)) -> pd.DataFrame:
    """timestep_invariance.csv with these intervals: neighbours, distant pairs, rankings, further steps."""

    def row(study, quantity, ends, kind="good", **more):
        value = {"value": np.mean(ends), "lo": ends[0], "hi": ends[1], "t": 200, "t2": 500}
        return {**PLACE, "study": study, "quantity": quantity, "kind": kind, "input": "clean", **value, **more}

    rows = [row("neighbour", "cosine", near, t2=250), row("agreement", "cosine", far),
            row("steps", "I-AUROC minus one step", gain, k=3)]  # fmt: skip
    for density, ends in (("full", full), ("standard", (0.2, 0.3))):
        rows += [row("agreement", "image ranking", ends, "all", density=density)]
        rows += [row("agreement", "pixel ranking", ends, density=density)]
        rows += [row("detection", "I-AUROC", (a - 0.01, a + 0.01), "all", density=density, t=t)
                 for t, a in ((200, 0.9), (300, 0.8), (500, 0.7))]  # fmt: skip
    unused = row("agreement", "cosine", (0.0, 0.1)) | {"input": "noised"}
    return pd.DataFrame([*rows, unused])


def scores(at_200: float, at_500: float) -> pd.DataFrame:
    """timestep_scores.csv of 200 images: anomalous ones are so many standard deviations away."""
    rng, bad = np.random.default_rng(0), np.arange(200) >= 100
    noise = rng.normal(size=200)
    columns = {"anomalous": bad, "t200": noise + at_200 * bad, "t500": noise + at_500 * bad}
    return pd.DataFrame({**PLACE, "image": np.arange(200), **columns})


def choice(lo: float, hi: float) -> pd.DataFrame:
    found = {"rule": "gain", "t": 200, "cost": 0.0, "over default": (lo + hi) / 2, "lo": lo, "hi": hi}
    return pd.DataFrame([PLACE | found])


def normality(**ends) -> pd.DataFrame:
    """normality.csv: every effect inside its limits, but for these; at three timesteps of growing effects."""
    rows = []
    for t, grows in ((200, 0.0), (300, 0.01), (500, 0.02)):
        for coordinates in ("standard", "fitted"):
            for effect, (neutral, _) in claims.normality.LIMITS.items():
                lo, hi = ends.get(effect, (neutral - 0.01, neutral + 0.01))
                value = {"value": (lo + hi) / 2 + grows, "lo": lo, "hi": hi}
                rows.append({**PLACE, "t": t, "coordinates": coordinates, "group": "all", "effect": effect, **value})
    return pd.DataFrame(rows)


def summary(**ends) -> pd.DataFrame:
    head = {"dataset": "d", "metric": "I-AUROC", "mean": 0.9, "n_seeds": 3}
    rows = [head | {"category": category, "method": "irf"} for category in ("bottle", "mean")]
    for method, (lo, hi) in ends.items():
        rows += [head | {"category": "bottle", "method": method, "diff": (lo + hi) / 2, "lo": lo, "hi": hi}]
    return pd.DataFrame(rows)


def rounds(ratio: float) -> dict[str, pd.DataFrame]:
    one = [{"name": name, "batch": 8, "round": i, "ms": ms} for i in range(5) for name, ms in
           (("score", 10.0), ("inversion3", 10 * ratio))]  # fmt: skip
    split = [{"name": name, "batch": 8, "ms_median": ms, "device": "cpu"} for name, ms in
             (("score", 10.0), ("denoiser", 6.0))]  # fmt: skip
    return {"benchmark_rounds": pd.DataFrame(one), "benchmark": pd.DataFrame(split)}


def toy(*lows: float) -> dict[str, pd.DataFrame]:
    return {"toy": pd.DataFrame({"t": range(len(lows)), "n": 9, "learned": 1.0, "lo": lows, "hi": 2.0, "optimum": 1.0})}


def of_06(table: pd.DataFrame, apart: pd.DataFrame = None, ends: tuple = (-0.01, 0.01)) -> dict[str, pd.DataFrame]:
    apart = scores(4, 4) if apart is None else apart
    return {"timestep_invariance": table, "timestep_scores": apart, "timestep_choice": choice(*ends)}


HOLDS, PARTLY, FAILS, OPEN = claims.VERDICTS
CASES = [
    ("a", toy(0.9, 0.9), HOLDS), ("a", toy(0.9, 1.1), PARTLY), ("a", toy(1.1, 1.1), FAILS),
    ("b", of_06(invariance()), HOLDS), ("e1", of_06(invariance()), HOLDS),
    ("e2", of_06(invariance()), HOLDS), ("e2", of_06(invariance(near=(0.8, 0.9))), FAILS),
    ("e2", of_06(invariance(near=(0.9, 0.99))), OPEN),
    ("e3", of_06(invariance()), HOLDS), ("e3", of_06(invariance(far=(0.8, 0.9))), FAILS),
    ("e3", of_06(invariance(far=(0.9, 0.99))), OPEN),
    ("e4", of_06(invariance()), PARTLY), ("e5", of_06(invariance(full=(0.1, 0.2))), FAILS),
    ("e6", of_06(invariance(), scores(4, 4)), HOLDS), ("e6", of_06(invariance(), scores(4, 0)), FAILS),
    ("e7", of_06(invariance()), HOLDS), ("e7", of_06(invariance(gain=(0.03, 0.05))), FAILS),
    ("e7", of_06(invariance(gain=(0.01, 0.05))), OPEN),
    ("e8", of_06(invariance()), HOLDS), ("e8", of_06(invariance(), ends=(-0.09, -0.03)), FAILS),
    ("e8", of_06(invariance(), ends=(-0.09, 0.01)), OPEN),
    ("d", of_06(invariance(), pd.concat([scores(4, 4), scores(0.5, 4).assign(category="screw")])), PARTLY),
    ("d", of_06(invariance(), scores(4, 4)), HOLDS), ("d", of_06(invariance(), scores(0.5, 4)), FAILS),
    ("c1", {"normality": normality()}, HOLDS), ("c1", {"normality": normality(w2=(0.5, 0.6))}, FAILS),
    ("c2", {"normality": normality(norm_dispersion=(3, 4))}, FAILS),
    ("c3", {"normality": normality(norm_dispersion=(3, 4))}, HOLDS),
    ("c3", {"normality": normality(w2=(0.1, 0.2))}, OPEN),
    ("c4", {"normality": normality(), **of_06(invariance())}, OPEN),
    ("d2", {"summary": summary(gaussian=(0.1, 0.2), knn=(0.1, 0.2))}, HOLDS),
    ("d2", {"summary": summary(gaussian=(0.1, 0.2), knn=(-0.1, 0.2))}, PARTLY),
    ("d2", {"summary": summary(gaussian=(0.1, 0.2), knn=(-0.2, -0.1))}, FAILS),
    ("d2", {"summary": summary(knn=(-0.1, 0.2))}, OPEN),
    ("f3", {"summary": summary(dte=(-0.01, 0.2))}, HOLDS), ("f3", {"summary": summary(dte=(-0.2, -0.1))}, FAILS),
    ("f2", rounds(2.4), HOLDS), ("f2", rounds(1.6), PARTLY), ("f2", rounds(1.2), FAILS),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "tables", "verdict"), CASES, ids=[f"{one[0]}: {one[2]}" for one in CASES])
def test_a_rule_gives_its_verdict(claim, tables, verdict):
    row = judged(**tables).loc[claim]
    assert row.verdict == verdict
    assert row.evidence.startswith("undecided") == (verdict == OPEN) and "[" in row.interval


def test_less_gaussian_timesteps_that_detect_worse_in_every_category_hold():
    names = ("bottle", "pill", "screw")
    effects, table = (pd.concat([one.assign(category=name) for name in names]) for one in (normality(), invariance()))
    row = judged(normality=effects, timestep_invariance=table.reset_index(drop=True)).loc["c4"]
    assert (row.verdict, row.interval, row.n) == (HOLDS, "-1.00 [-1.00, -1.00]", "3 categories")


def test_the_evidence_names_the_worst_case():
    table = pd.concat([invariance(), invariance(near=(0.8, 0.9)).assign(category="screw", seed=2)], ignore_index=True)
    row = judged(timestep_invariance=table).loc["e2"]
    assert "lowest of all: screw seed 2, good images, t = 200 and 250" in row.evidence
    assert row.interval == "0.85 [0.8, 0.9]" and row.n == "2 detectors"


def test_every_data_set_and_kind_of_model_has_rows_of_its_own():
    table = pd.concat([invariance(), invariance(far=(0, 0.1)).assign(dataset="other"),
                       invariance(far=(0.9, 0.99)).assign(unified=True)], ignore_index=True)  # fmt: skip
    rows = judged(timestep_invariance=table).loc["e3"].set_index(["dataset", "unified"])
    assert rows.verdict.to_dict() == {("d", False): HOLDS, ("d", True): OPEN, ("other", False): FAILS}


def test_what_was_not_measured_has_no_row_and_the_published_figures_are_never_tested():
    published = pd.DataFrame([{"system": "OSD-IRF", "dataset": "MVTec AD", "metric": "I-AUROC", "value": 99.0}])
    table = claims.judge_claims({"summary": summary(knn=(0.1, 0.2)), "published": published}, 200)
    assert list(table.columns) == list(claims.CLAIM_COLUMNS) and list(table.claim) == ["d2", "f1"]
    row = table.iloc[1]
    assert (row.verdict, row.interval) == (OPEN, "-") and "I-AUROC 90.0 (99.0)" in row.evidence
    assert claims.judge_claims({}, 200).empty
