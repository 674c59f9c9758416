"""Do the error bars hold? Coverage with its sampling error, PIT, and proper scores of each target cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.analysis.bands import coverage_band, coverage_pvalue, histogram_band, uniform_pvalue
from consilience.analysis.base import AbstractResult, plain
from consilience.analysis.question import Question, ask
from consilience.analysis.scores import central, crps, mean_absolute_error, pit, r_squared, root_mean_square
from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Bands", "Calibration", "calibration"]

SHOWN = 6  # columns of the figure


@dataclass(frozen=True, slots=True)
class Bands:
    """Which coverages are scored, how sure the band is, and what is judged apart."""

    levels: tuple[float, ...] = (0.5, 0.68, 0.9, 0.95)  # of central intervals, increasing
    confidence: float = 0.99  # of all cells and levels together
    bins: int = 20  # of the PIT histogram
    least: int = 200  # rows of a pattern of missing cells that is judged by itself


@dataclass(frozen=True)
class Calibration(AbstractResult):
    """Coverage, PIT and scores of C cells on N rows.

    ``rows`` (C,) counts scored rows. ``coverage``, ``low`` and ``high`` have shape (C, K). ``scores`` holds mae, rmse,
    r2, nlpd [nats], crps, sharpness (mean posterior sd) and contraction (sharpness over the population's sd: 1 when
    nothing was learned), each (C,). ``pit``, ``truth``, ``mean`` and ``sd`` have shape (N, C). ``inside_band`` says
    whether every coverage lies in the simultaneous band; ``pvalue`` is that of the same test over all cells;
    ``pit_pvalue`` that of PIT uniformity (Kolmogorov-Smirnov, Bonferroni).

    Rank checks alone pass a posterior equal to the prior: read nlpd and contraction beside them.
    """

    name: ClassVar[str] = "calibration"

    cells: tuple[str, ...]
    units: tuple[str, ...]
    given: tuple[str, ...]
    bands: Bands
    rows: IntArray
    coverage: FloatArray
    low: FloatArray
    high: FloatArray
    scores: dict[str, FloatArray]
    inside_band: bool
    pvalue: float
    pit_pvalue: float
    pit: FloatArray
    truth: FloatArray
    mean: FloatArray
    sd: FloatArray

    def table(self) -> "Table":
        """One row per cell: scores, then coverage with its band at each level."""
        from astropy.table import Table

        table = Table({"cell": list(self.cells), "unit": list(self.units), "rows": self.rows, **self.scores})
        for k, level in enumerate(self.bands.levels):
            table[f"coverage{100 * level:g}"] = self.coverage[:, k]
            table[f"low{100 * level:g}"] = self.low[:, k]
            table[f"high{100 * level:g}"] = self.high[:, k]
        return table

    def figure(self) -> "Figure":
        """Coverage minus nominal and PIT histogram of the cells, each with its band; the worst six of more."""
        from consilience import plots

        scored = [c for c in range(len(self.cells)) if self.rows[c]]
        if len(scored) > SHOWN:
            miss = np.abs(self.coverage - np.array(self.bands.levels)).max(axis=1)
            scored = sorted(sorted(scored, key=lambda c: -miss[c])[:SHOWN])
        levels = np.array(self.bands.levels)
        shown = {}
        for c in scored:
            band = histogram_band(int(self.rows[c]), self.bands.bins, self.bands.confidence, len(self.cells))
            shown[self.cells[c]] = plots.CoverageBand(levels, self.low[c], self.high[c], *band, self.bands.bins)
        return plots.calibration({self.cells[c]: self.pit[:, c] for c in scored}, shown, self.bands.confidence)

    def scatter(self) -> "Figure":
        """Posterior mean and sd against the measured value, one panel per cell; the first eight of more."""
        from consilience import plots

        keep = [c for c in range(len(self.cells)) if self.rows[c]][:8]
        truth, mean, sd = ({self.cells[c]: array[:, c] for c in keep} for array in (self.truth, self.mean, self.sd))
        return plots.predicted_vs_true(truth, mean, sd, [self.units[c] for c in keep])

    def summary(self) -> dict[str, Any]:
        """What a model's record keeps: the verdict and the numbers per cell, without the rows; plain JSON."""
        cells = {}
        for c, name in enumerate(self.cells):
            covered = {f"{100 * level:g}": self.coverage[c, k] for k, level in enumerate(self.bands.levels)}
            score = {key: value[c] for key, value in self.scores.items()}
            cells[name] = {"unit": self.units[c], "rows": self.rows[c], "coverage": covered, **score}
        verdict = {"inside_band": self.inside_band, "pvalue": self.pvalue, "pit_pvalue": self.pit_pvalue}
        return plain({"given": self.given, "confidence": self.bands.confidence, **verdict, "cells": cells})


def calibration(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bands: Bands = Bands(),
    n: int = 500,
    seed: int = 0,
) -> Calibration:
    """Coverage, PIT and scores of the measured target cells, given everything else that each row shows.

    Draws include each row's stated error (``observed=True``), since they are compared with measured values. Limits are
    not values and are not scored. The band is exact over levels and Bonferroni over cells, for whatever dependence the
    cells of a row have; rows must be independent (one per object).

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on, targets measured.
        targets: Modalities to score; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bands: Levels, confidence and bins.
        n: Draws per object.
        seed: Of the draws and of the randomised PIT.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: no measured target cell, or ``given`` of other rows.
        RequestError: a category as target (its order means nothing).

    References:
        Saeaelynoja, Buerkner & Vehtari 2022, Stat. Comput. 32, 32 (simultaneous bands); Gneiting & Raftery 2007.
    """
    question = ask(fitted, obs, targets, given)
    truth = question.truth()
    if not np.isfinite(truth).any():
        raise DataError(f"Expected measured cells of {list(question.targets)}; got none. Pass rows with known truth.")
    names, units = zip(*((q.name, q.unit) for q in question.cells()), strict=True)
    return judged(names, units, question.readable, bands, truth, score_cells(question, truth, n, seed))


def score_cells(question: Question, truth: FloatArray, n: int, seed: int) -> dict[str, FloatArray]:
    """PIT, CRPS, mean, standard deviation and negative log density of every target cell of every row, each (N, C)."""
    found = {key: np.full(truth.shape, np.nan) for key in ("pit", "crps", "mean", "sd", "nlpd")}
    rng = np.random.default_rng(seed)
    density = "density" in question.fitted.capabilities
    for rows, draws, _ in question.draws(n, seed, observed=True):
        found["pit"][rows] = pit(draws, truth[rows], rng)
        found["crps"][rows] = crps(draws, truth[rows])
        found["mean"][rows], found["sd"][rows] = draws.mean(axis=0), draws.std(axis=0, ddof=1)
        if density:
            part = question[rows]
            value = part.fitted.cell_log_prob(part.obs, list(part.targets), given=part.given)
            flat = np.concatenate([value[t].reshape(len(part.obs), -1) for t in part.targets], axis=1)
            found["nlpd"][rows] = np.where(np.isfinite(truth[rows]), -flat, np.nan)
    return found


def judged(
    cells: tuple[str, ...],
    units: tuple[str, ...],
    given: tuple[str, ...],
    bands: Bands,
    truth: FloatArray,
    scored: dict[str, FloatArray],
) -> Calibration:
    """The verdict on rows whose cells were scored; arrays as :func:`score_cells` gives them."""
    u, levels = scored["pit"], np.array(bands.levels)
    rows = np.isfinite(u).sum(axis=0)
    used = max(int((rows > 0).sum()), 1)
    inside = central(u, levels).sum(axis=1).T
    coverage = np.where(rows[:, None] > 0, inside / np.maximum(rows, 1)[:, None], np.nan)
    edge = [coverage_band(int(count), bands.levels, bands.confidence, used) for count in rows]
    low, high = np.array([e[0] for e in edge]), np.array([e[1] for e in edge])
    ok = (rows[:, None] == 0) | ((coverage >= low - 1e-12) & (coverage <= high + 1e-12))
    counts = np.unique(np.column_stack([inside, rows]), axis=0)  # many cells of few rows have the same
    worst = min(coverage_pvalue(tuple(map(int, count[:-1])), int(count[-1]), bands.levels) for count in counts)
    uniform = uniform_pvalue(u)
    sd = np.where(np.isfinite(truth), scored["sd"], np.nan)
    error = scored["mean"] - truth
    spread = root_mean_square(truth - _column_mean(truth))
    sharp = _column_mean(sd)
    scores = {
        "mae": mean_absolute_error(error),
        "rmse": root_mean_square(error),
        "r2": r_squared(truth, scored["mean"]),
        "nlpd": _column_mean(scored["nlpd"]),
        "crps": _column_mean(scored["crps"]),
        "sharpness": sharp,
        "contraction": sharp / np.where(spread > 0, spread, np.nan),
    }
    return Calibration(
        cells, units, given, bands, rows, coverage, low, high, scores, bool(ok.all()), min(1.0, used * worst),
        min(1.0, used * uniform), u, truth, scored["mean"], scored["sd"],
    )  # fmt: skip


def _column_mean(array: FloatArray) -> FloatArray:
    there = np.isfinite(array)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, array, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
