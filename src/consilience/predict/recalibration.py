r"""Draws whose intervals hold what they claim: monotone maps, learned on rows with known truth, kept with the model.

Let m and s be mean and standard deviation of a target cell's posterior (of fixed reference draws), σ the error of a
measurement where one is drawn and :math:`t^2 = s^2 + \sigma^2`. A draw x of a row with the pattern p of seen cells is

.. math:: x \mapsto m + t\,T_p\bigl((x - m)/t\bigr),

where the monotone T turns quantiles of standardised draws into those of standardised truths. Order, and so the
dependence between cells, is that of the draws.
"""

from collections.abc import Mapping

import numpy as np
from pydantic import model_validator

from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.data.schema import Frozen
from consilience.typing import FloatArray

__all__ = ["REFERENCE", "SEED", "Recalibration"]

REFERENCE, SEED = 200, 2_718_281  # draws that give m and s, and their seed

Row = tuple[float, ...]


class Recalibration(Frozen):
    """Maps of the C cells of each of some targets.

    Arguments:
        targets: Modalities whose draws are mapped.
        given: Modalities whose gaps make the patterns.
        patterns: P patterns with maps of their own.
        knots: Standardised draws of each target, increasing, (C, K), K >= 3 of a cell's own.
        values: T there, increasing, (P + 1, C, K); the last is for any other pattern.
    """

    targets: tuple[str, ...]
    given: tuple[str, ...]
    patterns: tuple[str, ...]
    knots: Mapping[str, tuple[Row, ...]]
    values: Mapping[str, tuple[tuple[Row, ...], ...]]

    @model_validator(mode="after")
    def _fits(self) -> "Recalibration":
        for name in self.targets:
            knots, values = self.knots.get(name, ()), self.values.get(name, ())
            sizes = [len(row) for row in knots]
            if not sizes or min(sizes) < 3 or len(values) != len(self.patterns) + 1:
                raise ValueError(
                    f"Expected knots of '{name}', three at least, and values for every pattern; got others."
                )
            if any([len(row) for row in rows] != sizes for rows in values):
                raise ValueError(f"Expected a value of '{name}' at every knot; got others.")
            if any((np.diff(row) <= 0).any() for rows in (knots, *values) for row in rows):
                raise ValueError(f"Expected increasing maps of '{name}'; got others.")
        return self

    def which(self, rows: Observations) -> np.ndarray:
        """Number of the pattern of each row, (N,); P for one that has no map of its own."""
        known = {pattern: number for number, pattern in enumerate(self.patterns)}
        return np.array([known.get(str(one), len(known)) for one in patterns(rows, self.given)], dtype=np.int64)

    def applied(
        self, name: str, draws: FloatArray, reference: FloatArray, sigma: FloatArray | None, rows: Observations
    ) -> FloatArray:
        """Mapped draws of a target.

        Arguments:
            name: The target.
            draws: Shape (S, N, *event), with error where ``sigma`` is given.
            reference: Draws without error, whose moments m and s are, (R, N, *event).
            sigma: Error of each cell, (N, *event); NaN counts as none.
            rows: What the rows show.
        """
        centre, spread = standard(reference, sigma)
        z = ((draws - centre) / spread).reshape(len(draws), len(rows), -1)
        which, mapped = self.which(rows), np.empty_like(z)
        for pattern in np.unique(which):
            mine = which == pattern
            for cell, (knots, values) in enumerate(zip(self.knots[name], self.values[name][pattern], strict=True)):
                mapped[:, mine, cell] = _extended(z[:, mine, cell], np.array(knots), np.array(values))
        return centre + spread * mapped.reshape(draws.shape)


def standard(reference: FloatArray, sigma: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """m and t of each cell, (N, *event), of reference draws (R, N, *event)."""
    variance = reference.var(axis=0, ddof=1)
    if sigma is not None:
        variance = variance + np.square(np.nan_to_num(sigma, nan=0.0))
    return reference.mean(axis=0), np.sqrt(np.maximum(variance, 1e-300))


def _extended(z: FloatArray, knots: FloatArray, values: FloatArray) -> FloatArray:
    """Piecewise linear from knots to values; beyond, along the line from the middle knot to the last."""
    middle = len(knots) // 2
    found = np.interp(z, knots, values)
    for end, beyond in ((0, z < knots[0]), (-1, z > knots[-1])):
        slope = (values[end] - values[middle]) / (knots[end] - knots[middle])
        found = np.where(beyond, values[end] + slope * (z - knots[end]), found)
    return found
