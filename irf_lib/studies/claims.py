"""Verdicts on the paper's claims. The rules, with their limits, are cells of notebook 15; here a rule becomes a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from .tables import GROUP, ROLES

VERDICTS = ("holds", "holds under a stated condition", "does not hold", "undecided", "not tested")
MODEL = ("dataset", "role", "unified")  # one row of a claim
CLAIM_COLUMNS = ("claim", "statement", "evidence", "verdict", "interval", "n", "dataset", "unified", "notebook", "role")
WRITTEN_BY = {"toy": "02_toy_ddpm", "normality": "07_normality", "summary": "09_rivals", "benchmark_rounds": "12_speed",
              "timestep_invariance": "06_timestep_invariance", "timestep_scores": "06_timestep_invariance",
              "timestep_choice": "06_timestep_invariance", "steps": "09_rivals"}  # fmt: skip


class Claims:
    """The rows of claims.csv: a call judges one claim and adds its row, in the order of the calls."""

    def __init__(self) -> None:
        self._rows: dict[tuple, dict[str, Any]] = {}

    def __call__(self, claim: str, statement: str, evidence: str, interval: Sequence[float] | None, holds: bool,
                 fails: bool, partly: bool = False, *, form: str = ".3g", dataset: str, unified: bool, notebook: str,
                 n: str, role: str = "-", beside: str = "") -> None:  # fmt: skip
        """``holds``: the interval of the worst case keeps the limit; ``partly``: a part that can be named keeps it;
        ``fails``: some interval lies wholly beyond. Otherwise the interval contains the limit and decides nothing.
        Without an ``interval`` (value, low, high) nothing was measured. The last six come from per_model. What
        was read ``beside`` the default adds no row: the evidence of the default's row tells a verdict that differs."""
        verdict, shown = "not tested", "-"
        if interval is not None:
            verdict = "holds" if holds else VERDICTS[1] if partly else "does not hold" if fails else "undecided"
            shown = "{0:{3}} [{1:{3}}, {2:{3}}]".format(*interval, form)
        key = claim, dataset, role, unified
        if not beside:
            row = (claim, statement, evidence, verdict, shown, n, dataset, unified, notebook, role)
            self._rows[key] = dict(zip(CLAIM_COLUMNS, row, strict=True))
        elif key in self._rows and verdict != self._rows[key]["verdict"]:
            self._rows[key]["evidence"] += f"; {beside} input: {verdict}, {shown}"

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows.values(), columns=list(CLAIM_COLUMNS))

    def show(self, *claims: str) -> pd.DataFrame:
        """What was found on these claims, a row for each data set, role and kind of model."""
        rows = self.table().query("claim in @claims").set_index("claim")
        return rows[["verdict", "interval", "n", "evidence", *MODEL]]


def counted(**numbers: int) -> str:
    """The n of a claim: counted(categories=3, seeds=1) is "3 categories, 1 seed"."""
    one = {"categories": "category", "seeds": "seed", "detectors": "detector"}
    return ", ".join(f"{n} {one[name] if n == 1 else name}" for name, n in numbers.items())


def per_model(tables: Mapping[str, pd.DataFrame], *names: str, by: Sequence[str] = MODEL) -> Iterator[tuple]:
    """For each data set, role of its categories (tables.ROLES) and kind of model (unified or not): where its row of
    claims.csv belongs, with the number of detectors as ``n``, and its rows of each named table; nothing if a table is
    missing. Tables with a column ``default_input`` come twice: first that input, then ``beside`` it the clean one."""
    if not all(name in tables for name in names):
        return
    found = [tables[name] for name in names]
    for i, one in enumerate(found if by else []):
        found[i] = one.assign(role=one.set_index(GROUP).index.map(lambda place: ROLES.get(place, "-")))
    for key, first in found[0].groupby(list(by), sort=False) if by else [((), found[0])]:
        key = dict(zip(by, key, strict=True))
        inputs = dict.fromkeys([first.default_input.iloc[0], "clean"]) if "default_input" in first else [""]
        for i, how in enumerate(inputs):
            wanted = pd.Series(key | ({"input": how} if how else {}), dtype=object)
            parts = [one[(one[wanted.index] == wanted).all(axis=1)] for one in found]
            detectors = parts[0].groupby(["category", "seed"]).ngroups if {"category", "seed"} <= {*parts[0]} else 0
            if all(len(part) for part in parts):
                where = {"dataset": "-", "role": "-", "unified": False, "notebook": WRITTEN_BY[names[0]]}
                where |= {"n": counted(detectors=detectors) if detectors else "", "beside": how if i else ""}
                yield where | key, *parts
