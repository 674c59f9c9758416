"""Do the error bars hold whatever is missing? Coverage apart for rows that show the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, plain
from consilience.analysis.calibration import Bands, Calibration, judged, score_cells
from consilience.analysis.question import ask
from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.errors import DataError
from consilience.typing import BoolArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["PatternCalibration", "pattern_calibration"]

OTHERS = "others"  # rows of patterns that are too rare to be judged apart
SHOWN = 24  # patterns of the figure


@dataclass(frozen=True)
class PatternCalibration(AbstractResult):
    """The calibration of the rows of every pattern of missingness, the most frequent first.

    ``each`` holds P of them, of ``patterns``; rows of patterns rarer than the bands' ``least`` are judged together, as
    "others". Bands of all patterns hold together with the confidence asked for, and so do ``inside_band`` and
    ``pvalue``.
    """

    name: ClassVar[str] = "pattern-calibration"

    patterns: tuple[str, ...]
    each: tuple[Calibration, ...]
    inside_band: bool
    pvalue: float

    def table(self) -> "Table":
        """One row per pattern and cell: scores, then coverage with its band at each level."""
        from astropy.table import Table, vstack

        tables = []
        for pattern, one in zip(self.patterns, self.each, strict=True):
            table = one.table()
            table.add_column([pattern] * len(table), name="pattern", index=0)
            table["pvalue"] = one.pvalue
            tables.append(table)
        return Table(vstack(tables))

    def figure(self) -> "Figure":
        """Coverage minus nominal at the level next to 68 %, of each cell and pattern; the worst 24 of more."""
        from consilience import plots

        first = self.each[0]
        level = int(np.argmin(np.abs(np.array(first.bands.levels) - 0.68)))
        off = np.array([100 * (one.coverage[:, level] - one.bands.levels[level]) for one in self.each])
        order = np.argsort(-np.nanmax(np.abs(off), axis=1, initial=0.0), kind="stable")[:SHOWN]
        names = [f"{self.patterns[p]} ({self.each[p].rows.max()})" for p in np.sort(order)]
        label = f"coverage − {first.bands.levels[level]:.0%} [points]"
        return plots.heat_map(off[np.sort(order)], names, first.cells, label, "pattern (rows)")

    def record(self) -> dict[str, Any]:
        """The verdict, and the summary of each pattern; plain JSON."""
        each = {pattern: one.summary() for pattern, one in zip(self.patterns, self.each, strict=True)}
        verdict = {"inside_band": self.inside_band, "pvalue": self.pvalue, "least": self.each[0].bands.least}
        return plain({**verdict, "patterns": each})


def pattern_calibration(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bands: Bands = Bands(),
    n: int = 500,
    seed: int = 0,
) -> PatternCalibration:
    """Coverage and scores of the target cells, as :func:`calibration`, apart for every pattern of what a row shows.

    A model may be right on average, too sure where an instrument is missing and not sure enough where it is there. The
    patterns are those of :func:`consilience.data.patterns.patterns`.

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on, targets measured.
        targets: Modalities to score; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bands: Levels, bins, the rows of a pattern that is judged by itself, and the confidence of all patterns, cells
            and levels together.
        n: Draws per object.
        seed: Of the draws and of the randomised PIT.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: no measured target cell, or ``given`` of other rows.
        RequestError: a category as target (its order means nothing).

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(300, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:100], cs.TrainConfig(max_steps=5))
        >>> pattern_calibration(fit, table[100:], ["y"], n=40).patterns
        ('all',)
    """
    question = ask(fitted, obs, targets, given)
    truth = question.truth()
    if not np.isfinite(truth).any():
        raise DataError(f"Expected measured cells of {list(question.targets)}; got none. Pass rows with known truth.")
    kept = [name for name in fitted.schema.names if name not in question.targets or name in question.readable]
    scorable = np.asarray(np.isfinite(truth).any(axis=1))
    groups = grouped(patterns(question.given, kept), scorable, bands.least)
    shared = replace(bands, confidence=1 - (1 - bands.confidence) / len(groups))
    names, units = zip(*((q.name, q.unit) for q in question.cells()), strict=True)
    scored = score_cells(question, truth, n, seed)
    each = tuple(
        judged(names, units, question.readable, shared, truth[rows], {key: one[rows] for key, one in scored.items()})
        for rows in groups.values()
    )
    inside = all(one.inside_band for one in each)
    return PatternCalibration(tuple(groups), each, inside, min(1.0, len(each) * min(one.pvalue for one in each)))


def grouped(pattern: StringArray, use: BoolArray, least: int) -> dict[str, BoolArray]:
    """Which of the rows in use, (N,), are in each pattern; of those with fewer than ``least``, together."""
    found, counts = np.unique(pattern[use], return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][: int((counts >= least).sum())]
    groups = {str(one): use & (pattern == one) for one in frequent}
    rest = use & ~np.isin(pattern, frequent)
    return groups | ({OTHERS: rest} if rest.any() else {})
