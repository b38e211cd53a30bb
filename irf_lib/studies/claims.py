"""Verdicts on the paper's claims: rules, fixed beforehand, on the tables that the notebooks leave.

A claim holds if the interval of its worst case keeps the limit, and does not hold if some interval lies wholly beyond.
If it holds for a part that can be named (some timesteps, a density, some categories) it holds under a stated condition,
and the evidence names the part. An interval that contains the limit decides nothing: "not tested", with "undecided" in
the evidence. A table that is not there gives no rows; each data set, and each kind of model (unified or not), gets rows
of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from .. import diffusion, irf
from ..metrics import METRICS
from . import invariance, normality, speed
from .resampling import auroc_difference_interval, auroc_interval

VERDICTS = ("holds", "holds under a stated condition", "does not hold", "not tested")
CLAIM_COLUMNS = ("claim", "statement", "evidence", "verdict", "interval", "n", "dataset", "unified", "notebook")
COSINE, RANKING, AUROC_MARGIN, SEPARATION = 0.95, 0.9, 0.02, 0.9  # the limits, fixed before the reference run
MARGINALS = {name: normality.LIMITS[name] for name in ("mean", "sd", "skew", "excess_kurtosis", "w2")}
ENDS = ["value", "lo", "hi"]

Row = dict[str, Any]


def judge_claims(tables: Mapping[str, pd.DataFrame], t: int) -> pd.DataFrame:
    """The rows of claims.csv, with CLAIM_COLUMNS. ``tables``: file name without its suffix -> gathered table; ``t`` is
    the timestep of the default reading."""
    found: list[Row] = []

    def judged(judge, notebook: str, *names: str, by: tuple[str, ...] = ("dataset", "unified"), **more) -> None:
        if not all(name in tables and len(tables[name]) for name in names):
            return
        for key, _ in tables[names[0]].groupby(list(by)) if by else [((), None)]:
            key = dict(zip(by, key, strict=True))
            parts = [tables[name][(tables[name][list(by)] == pd.Series(key)).all(axis=1)] for name in names]
            head = {"dataset": "-", "unified": False, "notebook": notebook} | key
            found.extend(row | head for row in judge(*parts, **more) if all(len(part) for part in parts))

    judged(toy_claims, "02_toy_ddpm", "toy", by=())
    judged(field_claims, "06_timestep_invariance", "timestep_invariance")
    judged(score_claims, "06_timestep_invariance", "timestep_scores", "timestep_invariance", "timestep_choice", t=t)
    judged(gaussian_claims, "07_normality", "normality", t=t)
    judged(relevance_claims, "07_normality", "normality", "timestep_invariance")
    judged(rival_claims, "09_rivals", "summary", by=("dataset",))
    judged(published_claims, "05_score_and_detect", "summary", by=("dataset",), published=tables.get("published"))
    judged(speed_claims, "12_speed", "benchmark_rounds", "benchmark", by=())
    return pd.DataFrame(found, columns=list(CLAIM_COLUMNS))


def _claim(letter, statement, evidence, interval, holds, fails, partly=False, n="", form=".3g") -> Row:
    """One row; ``interval`` is (value, low, high) or None."""
    verdict = "holds" if holds else VERDICTS[1] if partly else "does not hold" if fails else "not tested"
    shown = "{0:{3}} [{1:{3}}, {2:{3}}]".format(*interval, form) if interval is not None else "-"
    evidence = ("undecided: " if verdict == "not tested" and interval is not None else "") + evidence
    return dict(zip(CLAIM_COLUMNS, (letter, statement, evidence, verdict, shown, n), strict=False))


def _detectors(table: pd.DataFrame) -> str:
    return f"{len(table.groupby(['category', 'seed']))} detectors"


def _lowest(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[rows.lo.idxmin()]


def toy_claims(toy: pd.DataFrame) -> Iterator[Row]:
    """Claim a, from toy.csv: at every timestep the optimum lies inside the interval of the trained network's loss."""
    above, worst = toy[toy.lo > toy.optimum], toy.loc[(toy.lo / toy.optimum).idxmax()]
    evidence = f"on a Gaussian toy its loss reaches the optimum at {len(toy) - len(above)} of {len(toy)} timesteps"
    evidence += f", not at t = {', '.join(f'{t:.0f}' for t in above.t)}" if len(above) else ""
    yield _claim("a", "a DDPM trained on normal data, unconditioned, learns the noise",
                 f"{evidence}; interval: largest loss / optimum", worst[["learned", "lo", "hi"]] / worst.optimum,
                 above.empty, len(above) == len(toy), len(above) < len(toy), f"{worst.n:.0f} maps")  # fmt: skip


def closed_form_deviation() -> float:
    """The largest deviation of the residual towards six targets t' from the noise estimate, over 4,000 vectors of a
    known Gaussian and their optimal field, as in notebook 06."""
    generator, exact = torch.Generator().manual_seed(0), {"dtype": torch.float64}
    abar, d = diffusion.alpha_bars(**exact), 8
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, **exact))[0]
    S = basis @ torch.diag(torch.logspace(0.3, -1.7, d, **exact)) @ basis.T
    mu, noise = torch.linspace(-0.5, 0.5, d, **exact), torch.randn(2, 4000, d, generator=generator, **exact)[0]
    x0, worst = mu + noise @ torch.linalg.cholesky(S).T, []
    for t in (1, 10, 50, 200, 500, 900):
        field = irf.gaussian_optimal_eps(x0, t, mu, S, abar)
        steps = {s: irf.inversion_step(x0, field, t, s, abar) for s in (0, 5, 100, 300, 700, 999)}
        worst += [(irf.residual_c(x_s, x0, t, s, abar) - field).abs().max() for s, x_s in steps.items()]
    return float(max(worst))


def field_claims(table: pd.DataFrame) -> Iterator[Row]:
    """Claims b and e1 to e5, from timestep_invariance.csv, clean input: is it the same field, the same ranking?"""
    table = table[table.input == "clean"]
    n, exact = _detectors(table), closed_form_deviation()
    oracle = {"interval": (exact, 0, exact), "holds": exact < 1e-6, "fails": exact >= 1e-6, "n": "4000 vectors"}
    largest = "definition C equals it; largest deviation on the oracle", "algebra; largest deviation over six targets"
    yield _claim("b", "the IRF follows from the noise estimate", largest[0], **oracle)
    yield _claim("e1", "the residual is the same towards any target t'", largest[1], **oracle)

    def where(row: pd.Series) -> str:
        return f"{row.category} seed {row.seed}, {row.kind} images, t = {row.t:.0f} and {row.t2:.0f}"

    cosine, agreement = table[table.quantity == "cosine"], table[table.study == "agreement"]
    near, far = _lowest(cosine[cosine.study == "neighbour"]), _lowest(cosine[cosine.study == "agreement"])
    lowest = _lowest(cosine[(cosine.study == "neighbour") | ((cosine.t2 - cosine.t).abs() <= 50)])
    evidence = f"from t = {near.t:.0f} on the lowest mean cosine is {near.value:.3f}; lowest of all: {where(lowest)}"
    yield _claim("e2", "the field points the same way at neighbouring timesteps (up to 50 apart)", evidence,
                 lowest[ENDS], lowest.lo >= COSINE, lowest.hi < COSINE, near.lo >= COSINE, n)  # fmt: skip
    yield _claim("e3", "the field points the same way at any timestep", f"lowest mean cosine: {where(far)}",
                 far[ENDS], far.lo >= COSINE, far.hi < COSINE, n=n)  # fmt: skip

    images = agreement[(agreement.quantity == "image ranking") & (agreement.kind == "all")]
    pixels = agreement[agreement.quantity == "pixel ranking"]
    densities = {"full covariance": "full", "N(0, I)": "standard"}
    for letter, what, part in (("e4", "image ranking", images), ("e5", "ranking of locations in an image", pixels)):
        ends = {name: _lowest(part[part.density == density]) for name, density in densities.items()}
        lower, kept = min(ends.values(), key=lambda row: row.lo), [row.lo >= RANKING for row in ends.values()]
        shown = [f"{name}: lowest {row.value:.2f} [{row.lo:.2f}, {row.hi:.2f}]" for name, row in ends.items()]
        yield _claim(letter, f"the {what} is the same at any timestep", "; ".join(shown), lower[ENDS], all(kept),
                     lower.hi < RANKING, any(kept), n)  # fmt: skip


def score_claims(scores: pd.DataFrame, table: pd.DataFrame, choice: pd.DataFrame, t: int) -> Iterator[Row]:
    """Claims e6, e7, e8 and d, from timestep_scores.csv (a column a timestep), the rows "steps" of
    timestep_invariance.csv and timestep_choice.csv: is detection the same, and are anomalies distinguishable?"""
    n, ts = _detectors(scores), sorted(int(name[1:]) for name in scores if name[1:].isdigit())
    each = {key: (part, part.anomalous.to_numpy()) for key, part in scores.groupby(["category", "seed"])}
    changes = {s: [auroc_difference_interval(part[f"t{s}"], part[f"t{t}"], labels, int(seed))
                   for (_, seed), (part, labels) in each.items()] for s in ts}  # fmt: skip
    inside, every = [t], [one for found in changes.values() for one in found]
    for side in ([s for s in ts if s < t][::-1], [s for s in ts if s > t]):
        for s in side:
            if max(abs(end) for one in changes[s] for end in one[1:]) > AUROC_MARGIN:
                break
            inside.append(s)
    beyond = [one for one in every if one[1] > AUROC_MARGIN or one[2] < -AUROC_MARGIN]
    furthest = max(beyond or every, key=lambda one: (min if beyond else max)(abs(one[1]), abs(one[2])))
    yield _claim("e6", "detection is equally good at any timestep",
                 f"image AUROC of every detector within {AUROC_MARGIN} of that at t = {t} for t from {min(inside)} to "
                 f"{max(inside)}; {len(beyond)} of {len(every)} readings surely beyond", furthest,
                 len(inside) == len(ts), bool(beyond), len(inside) > 1, n)  # fmt: skip

    extra = table[(table.quantity == "I-AUROC minus one step") & (table.k > 1) & (table.input == "clean")]
    if len(extra):  # the last timestep has none after it
        most = extra.loc[extra.hi.idxmax()]
        yield _claim("e7", "one step is enough: further inversion steps do not detect better",
                     f"largest gain in image AUROC: {most.k:.0f} steps, {most.category} seed {most.seed}", most[ENDS],
                     extra.hi.max() <= AUROC_MARGIN, extra.lo.max() > AUROC_MARGIN, n=n)  # fmt: skip

    gain = choice[choice.rule == "gain"]
    evidence = (
        f"chosen t {gain.t.min()} to {gain.t.max()}; below the best t of the grid by {gain.cost.mean():.4f} on average,"
        f" {gain.cost.max():.4f} at most; interval: image AUROC minus the default's"
    )
    yield _claim("e8", "t can be chosen from good images alone (rule: gain), at no loss against the default", evidence,
                 _lowest(gain)[["over default", "lo", "hi"]], gain.lo.min() >= -AUROC_MARGIN,
                 gain.hi.min() < -AUROC_MARGIN, n=n)  # fmt: skip

    apart = {key: auroc_interval(part[f"t{t}"], labels, int(key[1])) for key, (part, labels) in each.items()}
    name, seed = weakest = min(apart, key=lambda key: apart[key][1])
    column, labels = each[weakest][0][f"t{t}"].to_numpy(), each[weakest][1]
    overlap = invariance.overlap_coefficient(column[~labels], column[labels])
    strong = sorted({one for one, _ in apart} - {key[0] for key, (_, low, _) in apart.items() if low < SEPARATION})
    yield _claim("d", "anomalies are distinguishable in IRF space",
                 f"image AUROC surely above {SEPARATION} on {', '.join(strong) or 'no category'}; weakest: {name} seed "
                 f"{seed}, overlap of the two score densities {overlap:.2f}", apart[weakest],
                 apart[weakest][1] >= SEPARATION, apart[weakest][2] < SEPARATION, bool(strong), n)  # fmt: skip


def gaussian_claims(effects: pd.DataFrame, t: int) -> Iterator[Row]:
    """Claims c1 to c3, from normality.csv: a field is Gaussian if every detector is inside all limits."""
    pooled, fitted = effects[(effects.t == t) & (effects.group == "all")], "the Gaussian fitted on the training images"
    for letter, coordinates, statement, limits, effect in (
        ("c1", "standard", "the field of good parts follows N(0, I)", normality.LIMITS, "w2"),
        ("c2", "fitted", f"the field of good parts follows {fitted}", normality.LIMITS, "norm_dispersion"),
        ("c3", "fitted", f"its pooled values alone follow {fitted}", MARGINALS, "w2"),
    ):
        part = pooled[(pooled.coordinates == coordinates) & pooled.effect.isin(limits)]
        found = [normality.judge({row.effect: (row.value, row.lo, row.hi) for row in one.itertuples()})
                 for _, one in part.groupby(["category", "seed"])]  # fmt: skip
        judged, wrong = [one.verdict for one in found], sorted({name for one in found for name in one.signatures})
        evidence = f"{judged.count('Gaussian')} of {len(found)} detectors inside the limits; outside: "
        yield _claim(letter, statement, f"{evidence}{', '.join(wrong) or 'none'}; interval: the largest {effect}",
                     part[part.effect == effect].nlargest(1, "value").iloc[0][ENDS], set(judged) == {"Gaussian"},
                     "not Gaussian" in judged, n=_detectors(part), form=".2f")  # fmt: skip


def relevance_claims(effects: pd.DataFrame, table: pd.DataFrame) -> Iterator[Row]:
    """Claims c4 and c5: does a less Gaussian field detect worse? The rank correlation over t of effect size and image
    AUROC, within a detector; mean over a category's seeds, which share their images; t-interval over categories."""
    auroc = table[(table.study == "detection") & (table.quantity == "I-AUROC") & (table.input == "clean")]
    for letter, label, coordinates, effect, density in (
        ("c4", "W2 (standard)", "standard", "w2", "standard"),
        ("c5", "norm dispersion (fitted)", "fitted", "norm_dispersion", "full"),
    ):
        sizes = effects[(effects.group == "all") & (effects.coordinates == coordinates) & (effects.effect == effect)]
        both = sizes.merge(auroc[auroc.density == density], on=["category", "seed", "t"], suffixes=("", "_auroc"))
        ranks: dict[str, list[float]] = {}
        for (category, _), part in both.groupby(["category", "seed"]):
            if part.value_auroc.nunique() > 1:
                ranks.setdefault(category, []).append(stats.spearmanr(part.value, part.value_auroc).statistic)
        rank = np.array([np.mean(one) for one in ranks.values()] or [np.nan])
        far = stats.t.ppf(0.975, len(rank) - 1) * stats.sem(rank) if len(rank) > 1 else np.nan
        low, high = np.clip([rank.mean() - far, rank.mean() + far], -1, 1)
        yield _claim(letter, f"less Gaussian timesteps detect worse, by {label}",
                     "mean over categories of the rank correlation over t between effect size and image AUROC",
                     (rank.mean(), low, high), high < 0, low > 0, n=f"{len(ranks)} categories", form=".2f")  # fmt: skip


def rival_claims(summary: pd.DataFrame) -> Iterator[Row]:
    """Claims d2 and f3, from summary.csv: better than a rival if every category's paired interval lies above 0, no
    worse if none reaches below -0.02."""
    pairs = summary[(summary.metric == "I-AUROC") & (summary.category != "mean")]
    n, network = f"{pairs.category.nunique()} categories, {pairs.n_seeds.max()} seeds", "of the same network"
    for letter, statement, rivals, margin in (
        ("d2", "better than the raw features do", ["gaussian", "knn"], 0.0),
        ("f3", f"no worse than more evaluations {network}", ["invad3", "reconstruct5", "dte"], -AUROC_MARGIN),
    ):
        part = pairs[pairs.method.isin(rivals)].dropna(subset="lo")
        if len(part):
            least, above, below = _lowest(part), part.lo > margin, part.hi < margin
            evidence = f"{above.sum()} of {len(part)} differences in I-AUROC surely above {margin}; least: "
            yield _claim(letter, f"one evaluation detects {statement}", f"{evidence}{least.category}, {least.method}",
                         least[["diff", "lo", "hi"]], above.all(), below.any(), above.any() and not below.any(), n,
                         "+.3f")  # fmt: skip


def published_claims(summary: pd.DataFrame, published: pd.DataFrame | None) -> Iterator[Row]:
    """Claim f1, which cannot be tested here; its evidence sets the published figures beside ours, in percent."""
    mean = summary[(summary.category == "mean") & (summary.method == "irf")].set_index("metric")["mean"]
    if published is None or mean.empty:
        return
    table = published[(published.system == "OSD-IRF") & (published.dataset == "MVTec AD")].set_index("metric").value
    beside = ", ".join(f"{name} {100 * mean[name]:.1f} ({table[name]:.1f})" for name in METRICS if name in table)
    n = f"{summary.category.nunique() - 1} of 15 categories" if set(summary.dataset) == {"mvtec_ad"} else "none of them"
    yield _claim("f1", "the published metrics are reached on three benchmarks", "other categories, another backbone; "
                 f"ours (published, MVTec AD): {beside}", None, holds=False, fails=False, n=n)  # fmt: skip


def speed_claims(rounds: pd.DataFrame, benchmark: pd.DataFrame) -> Iterator[Row]:
    """Claim f2, from benchmark_rounds.csv and benchmark.csv: three inversion steps against one, end to end."""
    timed = rounds[rounds.name == "inversion3"].groupby("batch").size()
    ends = {batch: speed.ratio(rounds, "inversion3", "score", batch) for batch in timed.index}
    split = benchmark.pivot(index="batch", columns="name", values="ms_median").loc[timed.index]
    share, fails = split.denoiser / split.score, all(high < 1.5 for _, _, high in ends.values())
    shown = "; ".join(f"batch {batch}: {value:.2f}" for batch, (value, _, _) in ends.items())
    yield _claim("f2", "one step is about 2x faster than three-step inversion, end to end",
                 f"time of three steps / time of one, {shown}; the denoiser takes {share.min():.0%} to "
                 f"{share.max():.0%} of a score ({benchmark.device.iloc[0]}, fp32)",
                 min(ends.values(), key=lambda one: one[1]), all(low >= 1.8 for _, low, _ in ends.values()), fails,
                 not fails, f"{timed.max()} rounds", ".2f")  # fmt: skip
