"""Verdicts on the paper's claims. The rules, with their limits, are cells of notebook 15; here a rule becomes a row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

VERDICTS = ("holds", "holds under a stated condition", "does not hold", "undecided", "not tested")
CLAIM_COLUMNS = ("claim", "statement", "evidence", "verdict", "interval", "n", "dataset", "unified", "notebook")
WRITTEN_BY = {"toy": "02_toy_ddpm", "normality": "07_normality", "summary": "09_rivals", "benchmark_rounds": "12_speed",
              "timestep_invariance": "06_timestep_invariance", "timestep_scores": "06_timestep_invariance",
              "timestep_choice": "06_timestep_invariance", "steps": "09_rivals"}  # fmt: skip


class Claims:
    """The rows of claims.csv: a call judges one claim and adds its row, in the order of the calls."""

    def __init__(self) -> None:
        self._rows: dict[tuple, dict[str, Any]] = {}

    def __call__(self, claim: str, statement: str, evidence: str, interval: Sequence[float] | None, holds: bool,
                 fails: bool, partly: bool = False, *, form: str = ".3g", dataset: str, unified: bool, notebook: str,
                 n: str, beside: str = "") -> None:  # fmt: skip
        """``holds``: the interval of the worst case keeps the limit; ``partly``: a part that can be named keeps it;
        ``fails``: some interval lies wholly beyond. Otherwise the interval contains the limit and decides nothing.
        Without an ``interval`` (value, low, high) nothing was measured. The last five come from per_model. What
        was read ``beside`` the default adds no row: the evidence of the default's row tells a verdict that differs."""
        verdict, shown = "not tested", "-"
        if interval is not None:
            verdict = "holds" if holds else VERDICTS[1] if partly else "does not hold" if fails else "undecided"
            shown = "{0:{3}} [{1:{3}}, {2:{3}}]".format(*interval, form)
        key = claim, dataset, unified
        if not beside:
            row = (claim, statement, evidence, verdict, shown, n, dataset, unified, notebook)
            self._rows[key] = dict(zip(CLAIM_COLUMNS, row, strict=True))
        elif key in self._rows and verdict != self._rows[key]["verdict"]:
            self._rows[key]["evidence"] += f"; {beside} input: {verdict}, {shown}"

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows.values(), columns=list(CLAIM_COLUMNS))

    def show(self, claim: str) -> pd.DataFrame:
        """What was found on one claim, a row for each data set and kind of model."""
        rows = self.table().set_index("claim")[["verdict", "interval", "n", "evidence", "dataset", "unified"]]
        return rows[rows.index == claim]


def counted(**numbers: int) -> str:
    """The n of a claim: counted(categories=3, seeds=1) is "3 categories, 1 seed"."""
    one = {"categories": "category", "seeds": "seed", "detectors": "detector"}
    return ", ".join(f"{n} {one[name] if n == 1 else name}" for name, n in numbers.items())


def per_model(
    tables: Mapping[str, pd.DataFrame], *names: str, by: Sequence[str] = ("dataset", "unified")
) -> Iterator[tuple[dict[str, Any], *tuple[pd.DataFrame, ...]]]:
    """For each data set and kind of model (unified or not): where its row of claims.csv belongs, with the number of
    detectors as ``n``, and its rows of each named table. Nothing where a table is missing or has no rows of it. Tables
    with a column ``default_input`` come twice: read from that input, and then, ``beside`` it, from the clean one."""
    if not all(name in tables for name in names):
        return
    for key, first in tables[names[0]].groupby(list(by)) if by else [((), tables[names[0]])]:
        key = dict(zip(by, key, strict=True))
        inputs = dict.fromkeys([first.default_input.iloc[0], "clean"]) if "default_input" in first else [""]
        for i, how in enumerate(inputs):
            wanted = pd.Series(key | ({"input": how} if how else {}), dtype=object)
            parts = [tables[name][(tables[name][wanted.index] == wanted).all(axis=1)] for name in names]
            detectors = parts[0].groupby(["category", "seed"]).ngroups if {"category", "seed"} <= {*parts[0]} else 0
            if all(len(part) for part in parts):
                n, beside = counted(detectors=detectors) if detectors else "", how if i else ""
                where = {"dataset": "-", "unified": False, "notebook": WRITTEN_BY[names[0]], "n": n, "beside": beside}
                yield where | key, *parts
