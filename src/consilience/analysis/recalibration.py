"""Make the error bars hold: maps of the draws, learned on rows with known truth, and what they change on other rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import stats

from consilience.analysis.base import AbstractResult, plain
from consilience.analysis.calibration import Bands, Calibration, judged, score_cells
from consilience.analysis.pattern_calibration import OTHERS, grouped
from consilience.analysis.question import Question, ask
from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.errors import DataError, RequestError
from consilience.predict.recalibration import REFERENCE, SEED, Recalibration, standard
from consilience.typing import BoolArray, FloatArray, PathOrStr, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Recalibrated", "recalibration"]

FEWEST = 50  # rows with a measured value of each cell
KEPT = 2_000_000  # standardised draws from which quantiles are read
PER_KNOT, KNOTS, BEYOND = 25, 33, 5  # rows per knot, most knots, rows beyond the last one


@dataclass(frozen=True)
class Recalibrated(AbstractResult):
    """A model with maps of its draws, and the calibration of rows that its maps were not learned on.

    ``fitted`` maps every draw of the targets and is saved with its maps. ``before`` and ``after`` hold a calibration of
    each pattern: ``after`` is that of maps learned on the other half of the rows (two-fold cross-fitting), those of
    ``fitted`` are learned on all of them. Its record of coverage holds what ``after`` says of the targets.
    """

    name: ClassVar[str] = "recalibration"

    patterns: tuple[str, ...]
    before: tuple[Calibration, ...]
    after: tuple[Calibration, ...]
    fitted: "Fitted" = field(repr=False)

    def table(self) -> "Table":
        """One row per pattern and cell: rows, CRPS and coverage at each level, before and after."""
        from astropy.table import Table

        found = []
        for pattern, old, new in zip(self.patterns, self.before, self.after, strict=True):
            for c, cell in enumerate(old.cells):
                row: dict[str, Any] = {"pattern": pattern, "cell": cell, "rows": int(old.rows[c])}
                for when, one in (("before", old), ("after", new)):
                    row[f"crps_{when}"] = one.scores["crps"][c]
                    for k, level in enumerate(one.bands.levels):
                        row[f"coverage{100 * level:g}_{when}"] = one.coverage[c, k]
                found.append(row)
        return Table(found)

    def figure(self) -> "Figure":
        """Coverage minus nominal of every pattern and cell, before and after, at the level next to 68 %."""
        from consilience import plots

        levels = np.array(self.before[0].bands.levels)
        level = int(np.argmin(np.abs(levels - 0.68)))
        rows, off = [], []
        for pattern, old, new in zip(self.patterns, self.before, self.after, strict=True):
            for when, one in (("before", old), ("after", new)):
                rows.append(f"{pattern} ({one.rows.max()}), {when}")
                off.append(100 * (one.coverage[:, level] - levels[level]))
        return plots.heat_map(np.array(off), rows, self.before[0].cells, f"coverage − {levels[level]:.0%} [points]")

    def save(self, directory: PathOrStr) -> Path:
        """Besides the table, record and figure, the model with its maps, in ``directory/model``."""
        folder = super().save(directory)
        self.fitted.save(folder / "model")
        return folder

    def record(self) -> dict[str, Any]:
        """Summaries of each pattern, and the maps; plain JSON."""
        both = {"before": self.before, "after": self.after}
        maps = self.fitted.recalibration
        return plain(
            {
                when: {pattern: one.summary() for pattern, one in zip(self.patterns, several, strict=True)}
                for when, several in both.items()
            }
            | {"maps": None if maps is None else maps.model_dump(mode="json")}
        )


def recalibration(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bands: Bands = Bands(),
    n: int = 400,
    seed: int = 0,
) -> Recalibrated:
    r"""Learn maps that make the posteriors of the targets hold what they claim, for every pattern of what is missing.

    The quantiles of the truths, in standard deviations of their posteriors, are those at :math:`i/(N+1)`, as in
    split-conformal prediction, of each pattern of ``bands.least`` rows and more, drawn towards those of all patterns as
    far as chance alone makes patterns differ (DerSimonian & Laird). What they make of a draw is said in
    :mod:`consilience.predict.recalibration`. Nothing is learned of dependence between cells, and of rows unlike these;
    of 200 rows alone, what holds 68 % of them holds 68 ± 3 % of others.

    The maps are learned on measured values, errors included, and act on draws without errors alike.

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on, targets measured; one row per object.
        targets: Modalities of kind "real"; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bands: Levels, bins, confidence, and the rows of a pattern with a map of its own.
        n: Draws per object.
        seed: Of the draws and the halves.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: fewer than fifty rows with a measured value of some cell, or ``given`` of other rows.
        RequestError: a target of another kind, or a model that has maps already.

    References:
        | Accurate uncertainties for deep learning using calibrated regression (Kuleshov, Fenner & Ermon, 2018)
        | Nonparametric predictive distributions based on conformal prediction (Vovk et al., 2019)
        | Meta-analysis in clinical trials (DerSimonian & Laird, 1986)

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(400, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:100], cs.TrainConfig(max_steps=5))
        >>> better = recalibration(fit, table[100:], ["y"], n=40).fitted
        >>> better.sample(table[100:].hide("y"), ["y"], n=2).values["y"].shape
        (2, 300, 3)
    """
    question = ask(fitted, obs, targets, given)
    _refuse(fitted, question)
    truth = question.truth()
    fewest = int(np.isfinite(truth).sum(axis=0).min())
    if fewest < FEWEST:
        raise DataError(
            f"Expected at least {FEWEST} rows with a measured value of every cell of {list(question.targets)}; got "
            f"{fewest} of one. Pass more rows, or fewer targets."
        )
    kept = tuple(name for name in fitted.schema.names if name not in question.targets)
    pattern = patterns(question.given, kept)
    z, drawn = _standardised(question, truth, n, seed)
    every = np.ones(len(obs), dtype=bool)
    maps = _maps(question, kept, pattern, (z, drawn), every, bands.least)
    half = np.random.default_rng(seed).permutation(len(obs)) < len(obs) // 2
    before, after = score_cells(question, truth, n, seed), {}
    for own in (half, ~half):
        better = replace(fitted, recalibration=_maps(question, kept, pattern, (z, drawn), ~own, bands.least // 2))
        rows = np.flatnonzero(own)
        part = replace(question, fitted=better)[rows]
        for key, one in score_cells(part, truth[rows], n, seed).items():
            after.setdefault(key, np.full(truth.shape, np.nan))[rows] = one
    groups = grouped(pattern, np.asarray(np.isfinite(truth).any(axis=1)), bands.least)
    names, units = zip(*((q.name, q.unit) for q in question.cells()), strict=True)

    def judge(scores: Mapping[str, FloatArray]) -> tuple[Calibration, ...]:
        return tuple(
            judged(names, units, question.readable, bands, truth[rows], {key: one[rows] for key, one in scores.items()})
            for rows in groups.values()
        )

    whole = judged(names, units, question.readable, Bands(), truth, after)  # the levels of every record
    better = replace(fitted, recalibration=maps, calibration=_record(fitted, question, whole))
    return Recalibrated(tuple(groups), judge(before), judge(after), better)


def _record(fitted: "Fitted", question: Question, found: Calibration) -> dict[str, Any]:
    """The model's record of coverage with that of the targets on rows their maps were not learned on."""
    record = plain(dict(fitted.calibration or {"rows": len(question.obs), "given_the_rest": {}}))
    owner = np.repeat(question.targets, [fitted.schema[name].size for name in question.targets])
    for name in question.targets:
        mine = owner == name
        weight = found.rows[mine] / max(found.rows[mine].sum(), 1)
        low, high, coverage = found.low[mine], found.high[mine], found.coverage[mine]
        record["given_the_rest"][name] = {
            "levels": list(found.bands.levels),
            "coverage": [float(c) for c in np.nansum(coverage * weight[:, None], axis=0)],
            "nlpd": None,
            "cells": int(found.rows[mine].sum()),
            "inside_band": bool(((coverage >= low - 1e-12) & (coverage <= high + 1e-12)).all()),
        }
    return record


def _refuse(fitted: "Fitted", question: Question) -> None:
    other = [name for name in question.targets if fitted.schema[name].kind != "real"]
    if other:
        raise RequestError(f"Expected targets of kind 'real'; got {other}. Leave them out of the targets.")
    if fitted.recalibration is not None:
        raise RequestError(
            "Expected a model without maps; got one that was recalibrated. Use dataclasses.replace(fitted, "
            "recalibration=None)."
        )


def _standardised(question: Question, truth: FloatArray, n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Truths (N, C) and some draws (S, N, C), errors included, in units of their posteriors."""
    names = list(question.targets)
    few = int(np.clip(KEPT // max(truth.size, 1), 1, n))
    z, drawn = np.full(truth.shape, np.nan), np.empty((few, *truth.shape))
    for rows, draws, _ in question.draws(few, seed, observed=True):
        part = question[rows]
        found = part.fitted.sample(part.given, names, n=REFERENCE, seed=SEED)
        reference = np.concatenate([found.values[name].reshape(REFERENCE, len(draws[0]), -1) for name in names], axis=2)
        sigma = np.concatenate([_errors(part.obs, name) for name in names], axis=1)
        centre, spread = standard(reference, sigma)
        z[rows], drawn[:, rows] = (truth[rows] - centre) / spread, (draws - centre) / spread
    return z, drawn


def _errors(obs: Observations, name: str) -> FloatArray:
    sigma = obs.parts[name].sigma
    return np.zeros((len(obs), obs.schema[name].size)) if sigma is None else sigma.reshape(len(obs), -1)


def _maps(
    question: Question,
    given: tuple[str, ...],
    pattern: StringArray,
    scores: tuple[FloatArray, FloatArray],
    use: BoolArray,
    least: int,
) -> Recalibration:
    z, drawn = scores
    groups = {key: rows for key, rows in grouped(pattern, use, least).items() if key != OTHERS}
    found = [_map(z[:, c], drawn[:, :, c], list(groups.values()), use) for c in range(z.shape[1])]
    sizes = [question.fitted.schema[name].size for name in question.targets]
    ends = np.cumsum(sizes)
    cells = {n: found[end - size : end] for n, end, size in zip(question.targets, ends, sizes, strict=True)}
    return Recalibration(
        targets=question.targets,
        given=given,
        patterns=tuple(groups),
        knots={name: tuple(tuple(knots.tolist()) for knots, _ in some) for name, some in cells.items()},
        values={
            name: tuple(tuple(tuple(values[p].tolist()) for _, values in some) for p in range(len(groups) + 1))
            for name, some in cells.items()
        },
    )


def _map(
    z: FloatArray, drawn: FloatArray, groups: Sequence[BoolArray], use: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Knots (K,) and what truths are there in each of P groups and in any other, (P + 1, K), of one cell."""
    known = use & np.isfinite(z)
    count = int(known.sum())
    end = stats.norm.ppf(1 - BEYOND / (count + 1))
    levels = stats.norm.cdf(np.linspace(-end, end, 2 * (int(np.clip(count // PER_KNOT, 3, KNOTS)) // 2) + 1))
    knots = np.quantile(drawn[:, known], levels)
    enough = [number for number, rows in enumerate(groups) if (known & rows).sum() >= FEWEST // 2]
    each, variance = [], []
    for rows in [groups[number] for number in enough] or [known]:
        mine = known & rows
        ranked, below = np.sort(z[mine]), np.sort(drawn[:, mine], axis=None)
        if min(np.ptp(ranked), np.ptp(knots)) <= 0:
            raise DataError("Expected truths and draws that scatter; got equal ones. Leave that target out.")
        reached = np.searchsorted(below, knots) / len(below)
        each.append(np.interp(reached, np.arange(1, len(ranked) + 1) / (len(ranked) + 1), ranked))
        variance.append(_quantile_variance(ranked, reached))
    pairs = zip(np.array(each).T, np.array(variance).T, strict=True)
    together = np.stack([_drawn_together(*pair) for pair in pairs], axis=1)
    values = np.repeat(together[-1:], len(groups) + 1, axis=0)
    values[enough] = together[: len(enough)]
    return _rising(knots), np.stack([_rising(row) for row in values])


def _quantile_variance(ranked: FloatArray, levels: FloatArray) -> FloatArray:
    r"""Sampling variance of quantiles of ranked values, :math:`l(1 - l)/(N f^2)`, f the density of a wide stencil."""
    count = len(ranked)
    half = np.clip(levels, 1 / count, 1 - 1 / count) * (1 - np.clip(levels, 1 / count, 1 - 1 / count))
    low, high = np.clip(levels - 0.5 * half, 0, 1), np.clip(levels + 0.5 * half, 0, 1)
    apart = np.quantile(ranked, high) - np.quantile(ranked, low)
    return np.maximum(half / count * np.square(apart / (high - low)), 1e-12)


def _drawn_together(each: FloatArray, variance: FloatArray) -> FloatArray:
    """Estimates of P groups and, at last, of a group that was not seen, (P + 1,): less apart than chance puts them."""
    weight = 1 / variance
    mean = weight @ each / weight.sum()
    excess = weight @ (each - mean) ** 2 - (len(each) - 1)
    between = max(excess / max(weight.sum() - weight @ weight / weight.sum(), 1e-300), 0.0) if len(each) > 1 else 0.0
    if between:
        mean = float(np.average(each, weights=1 / (variance + between)))
    share = between / (between + variance)
    return np.append(share * each + (1 - share) * mean, mean)


def _rising(values: FloatArray) -> FloatArray:
    """The same, strictly increasing where draws or truths are equal."""
    return np.maximum.accumulate(values) + 1e-9 * np.arange(len(values))
