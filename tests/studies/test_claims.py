"""The rules of notebook 15 on the committed tables, as they are and spoiled, and the verdict on made-up intervals."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from irf_lib.studies import claims, normality

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference"
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "15_results.ipynb", as_version=4)
HOLDS, PARTLY, FAILS, OPEN, UNTESTED = claims.VERDICTS
ENDS = ["value", "lo", "hi"]
INVARIANCE, SCORES, CHOICE = "timestep_invariance", "timestep_scores", "timestep_choice"


def run_cells(tag: str, **known) -> dict:
    """What the cells of notebook 15 that have this tag leave, after its imports, where ``known`` is there already."""
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    imports = [node for node in ast.parse(code[1].source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "imports", "exec"), known)
    for source in [cell.source for cell in code if tag in cell.metadata.get("tags", [])]:
        exec(compile(source, "a cell of notebook 15", "exec"), known)
    return known


def judged(tables: dict[str, pd.DataFrame], whose: str = "claim") -> pd.DataFrame:
    """claims.csv as notebook 15 writes it from these tables, or own_questions.csv (``whose`` "question")."""
    given = {"known": tables, "published": pd.read_csv(ROOT / "data" / "published.csv")}
    return run_cells("claims", **given)[whose].table()


def committed() -> dict[str, pd.DataFrame]:
    """The tables that notebook 15 judges, as it left them."""
    paths = {path.name.split(".")[0]: path for path in REFERENCE.glob("*.csv*")}  # a long table is packed
    names = paths.keys() & {*claims.WRITTEN_BY, "benchmark"}
    found = {name: pd.read_csv(paths[name], dtype={"category": str}) for name in names}
    found["steps"] = pd.read_csv(REFERENCE / "one_step.csv")
    for name in ("summary", "steps"):
        found[name] = found[name][~found[name].category.str.startswith("mean")]
    return found


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    """Those of the development categories, as if every default were t = 200 and no rival were better."""
    found = committed()
    for name, table in found.items():
        own = table.get("category", pd.Series("pill", table.index)).isin(["bottle", "pill", "screw"])
        found[name] = table[own & ~table.get("unified", pd.Series(False, table.index))].copy()
    found[SCORES]["default_t"] = 200
    found["steps"] = found["steps"].assign(diff=0.0, lo=-0.01, hi=0.01)
    found["summary"].loc[found["summary"].lo.notna(), ["diff", "lo", "hi"]] = 0.1, 0.05, 0.2
    return found


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"[-+\d.e]+", text) if one != "-"]


def test_the_cells_give_the_committed_verdicts():
    key = ["claim", "dataset", "role", "unified"]
    expected = pd.read_csv(REFERENCE / "claims.csv").set_index(key)
    found = judged(committed()).set_index(key)
    assert list(found.index) == list(expected.index)
    for claim, row in expected.iterrows():
        now = found.loc[claim]
        assert (now.verdict, now.evidence, now.n) == (row.verdict, row.evidence, row.n), claim
        # The tables are rounded, and what is left of the algebra is rounding.
        assert numbers(now.interval) == pytest.approx(numbers(row.interval), rel=0.02, abs=1e-9), claim


# rows of a table, the interval that they are given -> the verdicts that follow
SPOILED = [
    ("toy", "t > 0", (1.0, 0.0, 2.0), {"a": HOLDS}),
    ("toy", "t > 0", (9.0, 8.0, 10.0), {"a": FAILS}),
    (INVARIANCE, "quantity == 'cosine'", (0.97, 0.96, 0.98), {"e2": HOLDS, "e3": HOLDS}),
    (INVARIANCE, "quantity == 'cosine'", (0.95, 0.9, 0.98), {"e2": OPEN, "e3": OPEN}),
    (INVARIANCE, "quantity == 'cosine'", (0.8, 0.7, 0.9), {"e2": FAILS}),
    (INVARIANCE, "quantity == 'cosine' and study == 'neighbour'", (0.97, 0.96, 0.98), {"e2": PARTLY}),
    (INVARIANCE, "density == 'full'", (0.95, 0.92, 0.98), {"e4": PARTLY, "e5": PARTLY}),
    (INVARIANCE, "density == density", (0.95, 0.92, 0.98), {"e4": HOLDS, "e5": HOLDS}),
    (INVARIANCE, "density == density", (0.9, 0.8, 0.98), {"e4": OPEN, "e5": OPEN}),
    (INVARIANCE, "quantity == 'I-AUROC minus one step'", (0.04, 0.03, 0.05), {"e7": FAILS}),
    (INVARIANCE, "quantity == 'I-AUROC minus one step'", (0.03, 0.01, 0.05), {"e7": OPEN}),
    ("normality", "effect == 'norm_dispersion'", (1.0, 0.9, 1.1), {"c2": FAILS}),
    ("normality", "effect != 'w2'", (1.0, 0.9, 1.1), {"c3": FAILS}),
    ("summary", "metric == 'I-AUROC'", (0.1, 0.05, 0.2), {"d2": HOLDS}),
    ("steps", "metric == 'I-AUROC'", (0.0, -0.01, 0.01), {"f3a": HOLDS}),
    ("steps", "rival == 'dte'", (-0.03, -0.05, 0.01), {"f3a": OPEN}),
    ("steps", "rival == 'dte' and category == 'pill'", (-0.1, -0.2, -0.05), {"f3a": FAILS}),
    ("steps", "rival == 'dte' and network == 'default network'", (-0.1, -0.2, -0.05), {"f3a": PARTLY}),
    ("summary", "method == 'knn'", (0.0, -0.05, 0.2), {"d2": PARTLY}),
    ("summary", "method in ['knn', 'gaussian']", (0.0, -0.05, 0.2), {"d2": OPEN}),
    ("summary", "method == 'knn' and category == 'pill'", (-0.1, -0.2, -0.05), {"d2": FAILS}),
]


@pytest.mark.parametrize(("name", "rows", "interval", "verdicts"), SPOILED)
def test_a_rule_follows_the_interval(tables, name, rows, interval, verdicts):
    value = {"summary": "diff", "steps": "diff", "toy": "learned"}.get(name, "value")
    tables[name].loc[tables[name].eval(rows), [value, "lo", "hi"]] = interval
    found = judged({name: tables[name]}).set_index("claim").verdict
    assert {claim: found[claim] for claim in verdicts} == verdicts


def test_e6_e8_and_d_follow_the_scores(tables):
    table, choice = tables[SCORES], tables[CHOICE].assign(t=1)
    good, bad = (table.anomalous == wanted for wanted in (False, True))
    for name in (name for name in table if name[1:].isdigit()):
        table[name] = table.t200 + 1e6 * bad
    assert list(judged({SCORES: table, CHOICE: choice}).verdict) == [HOLDS] * 3
    assert list(judged({SCORES: table, CHOICE: choice.assign(rule="gain")}).claim) == ["e6", "d"], "t was set by hand"
    for name, expected in (("t1", [PARTLY, FAILS, HOLDS]), ("t200", [FAILS] * 3)):  # the chosen t, then the default
        table.loc[bad, name] = table.loc[good, name].sample(bad.sum(), replace=True, random_state=0).to_numpy()
        found = judged({SCORES: table, CHOICE: choice})
        assert list(found.verdict) == expected and "best fixed t in hindsight 20:" in found.evidence[1]


def test_a_field_with_all_effects_at_their_neutral_values_is_gaussian(tables):
    table = tables["normality"]
    for effect, (neutral, reach) in normality.LIMITS.items():
        table.loc[table.effect == effect, ENDS] = neutral, neutral - reach / 2, neutral + reach / 2
    found = judged({"normality": table})
    assert list(found.verdict) == [HOLDS] * 3 and "9 of 9 detectors" in found.evidence[0]


def test_our_own_questions_have_a_table_of_their_own(tables):
    table, summary = tables[INVARIANCE], tables["summary"]
    table.loc[table.study == "detection", "value"] = 1 - table.t / 1000
    tables["normality"]["value"] = tables["normality"].t / 1000
    summary.loc[summary.method == "irf:untrained", ["diff", "lo", "hi"]] = 0.1, 0.05, 0.2
    rows = judged({name: tables[name] for name in ("normality", INVARIANCE, "summary")}, "question").set_index("claim")
    assert list(rows.index) == ["o1", "o2", "o3"] and rows.verdict["o3"] == HOLDS
    assert tuple(rows.loc["o1", ["verdict", "interval", "n"]]) == (HOLDS, "-1.00 [-1.00, -1.00]", "3 categories")


def test_what_would_falsify():
    scores = [0.0, 1, 2, 3, 4, 2.5, 5, 6, 7, 8]  # one of five defects scores among the good ones
    one = pd.DataFrame({"score": scores, "p_value": [0.5] * 6 + [0.05, 0.05, 0.01, 0.01]})
    one = one.assign(dataset="d", category="c", unified=False, anomalous=one.index >= 5)
    run, both = SimpleNamespace(save_table=lambda *_: None), pd.concat([one.assign(seed=0), one.assign(seed=1)])
    found = run_cells("falsifiers", decisions=both, run=run, ENDS=ENDS)["falsifiers"].set_index(["quantity", "alpha"])
    assert found.value["defects found"].to_dict() == {0.05: 0.8, 0.01: 0.4} and found.value["false alarms"].max() == 0
    assert found.lo["defects found"][0.05] == pytest.approx(0.3755, abs=1e-3), "Wilson's, for 5 images and not for 10"
    overlap = found.loc["overlap of the score densities"].iloc[0]
    assert overlap.value == pytest.approx(0.2) and overlap.lo < 0.1 < 0.5 < overlap.hi < 1 and overlap.n == 10


@pytest.mark.parametrize(("factor", "least", "expected"), [(2.0, 1, HOLDS), (1.5, 32, PARTLY), (1.5, 1, FAILS)])
def test_f2_follows_the_times(tables, factor, least, expected):
    score = tables["benchmark_rounds"].set_index(["name", "batch", "round"]).ms.loc["score"]
    three = score * [factor if batch >= least else 2.0 for batch, _ in score.index]
    rounds = pd.concat({"score": score, "inversion3": three}, names=["name"]).reset_index()
    row = judged({"benchmark_rounds": rounds, "benchmark": tables["benchmark"]}).iloc[0]
    assert (row.claim, row.verdict, row.dataset, row.notebook) == ("f2", expected, "-", "12_speed")


def test_every_data_set_and_kind_of_model_has_one_row_about_the_default_input(tables):
    clean = tables[INVARIANCE].query("input == 'clean'").assign(default_input="scaled")
    scaled = clean.assign(input="scaled", lo=0.99, hi=1.0)
    both = pd.concat([clean, scaled, scaled.assign(dataset="other"), clean.assign(input="scaled", unified=True)])
    rows = judged({INVARIANCE: both}).set_index("claim").loc["e3"]
    wanted = [("development", False, HOLDS), ("-", False, HOLDS), ("development", True, FAILS)]
    assert list(zip(rows.role, rows.unified, rows.verdict, strict=True)) == wanted
    assert ["; clean input: does not hold, 0.0804 [" in text for text in rows.evidence] == [True, False, False]


def test_a_missing_table_gives_no_row(tables):
    assert list(judged({one: tables[one] for one in ("summary", "steps")}).claim) == ["d2", "f3a", "f3b", "f3c", "f1"]
    assert list(judged({}).columns) == list(claims.CLAIM_COLUMNS) and judged({}).empty
