"""The rules of notebook 15 on the committed tables, as they are and spoiled, and the verdict on made-up intervals."""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from irf_lib.studies import claims, normality

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "15_results.ipynb", as_version=4)
HOLDS, PARTLY, FAILS, OPEN, UNTESTED = claims.VERDICTS
ENDS = ["value", "lo", "hi"]
INVARIANCE, SCORES, CHOICE = "timestep_invariance", "timestep_scores", "timestep_choice"


def judged(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """claims.csv as notebook 15 writes it: its imports, and then its cells tagged ``claims``, run on these tables."""
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    imports = [node for node in ast.parse(code[1].source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    rules = [cell.source for cell in code if "claims" in cell.metadata.get("tags", [])]
    known = {"known": tables, "published": pd.read_csv(ROOT / "data" / "published.csv")}
    exec(compile(ast.Module(imports, []), "imports", "exec"), known)
    for source in rules:
        exec(compile(source, "a cell of notebook 15", "exec"), known)
    return known["claim"].table()


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    """The committed tables; they are older than the columns that say whose row it is, and what its default t was."""
    names = {path.stem for path in REFERENCE.glob("*.csv")} & set(claims.WRITTEN_BY) | {"benchmark"}
    found = {name: pd.read_csv(REFERENCE / f"{name}.csv", dtype={"category": str}) for name in names}
    for name in (SCORES, "normality"):
        found[name] = found[name].assign(default_t=200)
    found[CHOICE] = found[CHOICE].assign(dataset="mvtec_ad", unified=False)
    return found


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"[-+\d.e]+", text) if one != "-"]


def test_the_cells_give_the_committed_verdicts(tables):
    expected = pd.read_csv(REFERENCE / "claims.csv").set_index("claim")
    found = judged(tables).set_index("claim")
    assert list(found.index) == ["a", *expected.index], "the run is older than the rule for a"
    for claim, row in expected.iterrows():
        now, undecided = found.loc[claim], row.evidence.startswith("undecided: ")
        assert now.verdict == (OPEN if undecided else row.verdict), claim
        assert (now.evidence, now.n) == (row.evidence.removeprefix("undecided: "), row.n), claim
        # The tables are rounded, and what is left of the algebra is rounding.
        assert numbers(now.interval) == pytest.approx(numbers(row.interval), rel=0.02, abs=1e-9), claim


# rows of a table, the interval that they are given -> the verdicts that follow
SPOILED = [
    ("toy", "t > 0", (1.0, 0.0, 2.0), {"a": HOLDS}),
    ("toy", "t > 0", (9.0, 8.0, 10.0), {"a": FAILS}),
    (INVARIANCE, "quantity == 'cosine'", (0.97, 0.96, 0.98), {"e2": HOLDS, "e3": HOLDS}),
    (INVARIANCE, "quantity == 'cosine'", (0.95, 0.9, 0.98), {"e2": OPEN, "e3": OPEN}),
    (INVARIANCE, "quantity == 'cosine'", (0.8, 0.7, 0.9), {"e2": FAILS}),
    (INVARIANCE, "quantity == 'cosine' and input == 'scaled'", (0.8, 0.7, 0.9), {"e2": PARTLY}),
    (INVARIANCE, "density == 'full'", (0.95, 0.92, 0.98), {"e4": PARTLY, "e5": PARTLY}),
    (INVARIANCE, "density == density", (0.95, 0.92, 0.98), {"e4": HOLDS, "e5": HOLDS}),
    (INVARIANCE, "density == density", (0.9, 0.8, 0.98), {"e4": OPEN, "e5": OPEN}),
    (INVARIANCE, "quantity == 'I-AUROC minus one step'", (0.04, 0.03, 0.05), {"e7": FAILS}),
    (INVARIANCE, "quantity == 'I-AUROC minus one step'", (0.03, 0.01, 0.05), {"e7": OPEN}),
    (CHOICE, "rule == 'gain'", (-0.05, -0.09, -0.03), {"e8": FAILS}),
    (CHOICE, "rule == 'gain'", (-0.05, -0.09, 0.01), {"e8": OPEN}),
    ("normality", "effect == 'norm_dispersion'", (1.0, 0.9, 1.1), {"c2": FAILS}),
    ("normality", "effect != 'w2'", (1.0, 0.9, 1.1), {"c3": FAILS}),
    ("summary", "metric == 'I-AUROC'", (0.1, 0.05, 0.2), {"d2": HOLDS, "f3": HOLDS}),
    ("summary", "method == 'knn'", (0.0, -0.05, 0.2), {"d2": PARTLY}),
    ("summary", "method in ['knn', 'gaussian']", (0.0, -0.05, 0.2), {"d2": OPEN}),
    ("summary", "method in ['knn', 'dte'] and category == 'pill'", (-0.1, -0.2, -0.05), {"d2": FAILS, "f3": FAILS}),
]


@pytest.mark.parametrize(("name", "rows", "interval", "verdicts"), SPOILED)
def test_a_rule_follows_the_interval(tables, name, rows, interval, verdicts):
    value = {CHOICE: "over default", "summary": "diff", "toy": "learned"}.get(name, "value")
    tables[name].loc[tables[name].eval(rows), [value, "lo", "hi"]] = interval
    found = judged({name: tables[name]}).set_index("claim").verdict
    assert {claim: found[claim] for claim in verdicts} == verdicts


def test_e6_and_d_follow_the_scores(tables):
    table = tables[SCORES]
    steps = [name for name in table if name[1:].isdigit()]
    good, bad = (table.anomalous == wanted for wanted in (False, True))
    for name in steps:
        table[name] = table.t200 + 1e6 * bad
    assert list(judged({SCORES: table}).verdict) == [HOLDS, HOLDS]
    table.loc[bad, "t200"] = table.loc[good, "t200"].sample(bad.sum(), replace=True, random_state=0).to_numpy()
    assert list(judged({SCORES: table}).verdict) == [FAILS, FAILS]


def test_a_field_with_all_effects_at_their_neutral_values_is_gaussian(tables):
    table = tables["normality"]
    for effect, (neutral, reach) in normality.LIMITS.items():
        table.loc[table.effect == effect, ENDS] = neutral, neutral - reach / 2, neutral + reach / 2
    found = judged({"normality": table})
    assert list(found.verdict) == [HOLDS] * 3 and "3 of 3 detectors" in found.evidence[0]


def test_less_gaussian_timesteps_that_detect_worse_in_every_category_hold(tables):
    table = tables[INVARIANCE]
    table.loc[table.study == "detection", "value"] = 1 - table.t / 1000
    tables["normality"]["value"] = tables["normality"].t / 1000
    row = judged({name: tables[name] for name in ("normality", INVARIANCE)}).set_index("claim").loc["c4"]
    assert (row.verdict, row.interval, row.n) == (HOLDS, "-1.00 [-1.00, -1.00]", "3 categories")


@pytest.mark.parametrize(("factor", "expected"), [(1.0, HOLDS), (0.7, PARTLY), (0.4, FAILS)])
def test_f2_follows_the_times(tables, factor, expected):
    rounds = tables["benchmark_rounds"]
    rounds.loc[rounds.name == "inversion3", "ms"] *= factor
    row = judged({"benchmark_rounds": rounds, "benchmark": tables["benchmark"]}).iloc[0]
    assert (row.claim, row.verdict, row.dataset, row.notebook) == ("f2", expected, "-", "12_speed")


def test_every_data_set_and_kind_of_model_has_rows_of_its_own(tables):
    table = tables[INVARIANCE]
    other, unified = table.assign(dataset="other", lo=0.99, hi=1.0), table.assign(unified=True)
    rows = judged({INVARIANCE: pd.concat([table, other, unified], ignore_index=True)}).set_index("claim").loc["e3"]
    assert list(zip(rows.dataset, rows.unified, rows.verdict, strict=True)) == [
        ("mvtec_ad", False, FAILS), ("mvtec_ad", True, FAILS), ("other", False, HOLDS)]  # fmt: skip


def test_a_missing_table_gives_no_row(tables):
    assert list(judged({"summary": tables["summary"]}).claim) == ["d2", "f3", "f1"]
    assert list(judged({}).columns) == list(claims.CLAIM_COLUMNS) and judged({}).empty


# interval, (holds, fails, partly) -> verdict
@pytest.mark.parametrize(("interval", "rule", "expected"), [
    ((0.97, 0.96, 0.98), (True, False, False), HOLDS),
    ((0.97, 0.96, 0.98), (True, False, True), HOLDS),
    ((0.8, 0.7, 0.9), (False, True, False), FAILS),
    ((0.8, 0.7, 0.9), (False, True, True), PARTLY),
    ((0.95, 0.9, 0.98), (False, False, False), OPEN),
    ((np.nan, np.nan, np.nan), (False, False, False), OPEN),
    (None, (False, False, False), UNTESTED),
])  # fmt: skip
def test_a_verdict(interval, rule, expected):
    assert claims.verdict(interval, *rule) == expected


def test_a_row_shows_its_interval():
    claim = claims.Claims()
    where = {"dataset": "d", "unified": False, "notebook": "12_speed", "n": "3 rounds"}
    claim("f2", "faster", "timed", (2.0, 1.5, 2.5), False, False, form="+.2f", **where)
    claim("f1", "published", "other data", None, False, False, **where)
    assert list(claim.table().interval) == ["+2.00 [+1.50, +2.50]", "-"]
    assert list(claim.show("f2").verdict) == [OPEN]
