"""What a mass estimate must beat: a line in luminosity, and ridge regression on mean-imputed pixels."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from consilience.data.observations import Observations
from consilience.typing import FloatArray, IntArray

__all__ = ["StudentDensity", "luminosity_line", "ridge"]

PENALTIES = tuple(10.0**power for power in np.arange(-1, 5.5, 0.5))


@dataclass(frozen=True, slots=True)
class StudentDensity:
    """Student-t predictive densities of N left-out objects: ``mean``, ``scale`` and ``degrees``, each (N,).

    Example:
        >>> d = StudentDensity(np.zeros(1), np.ones(1), np.full(1, 30.0))
        >>> float(d.cdf(np.zeros(1))[0])
        0.5
    """

    mean: FloatArray
    scale: FloatArray
    degrees: FloatArray

    def log_density(self, truth: FloatArray) -> FloatArray:
        """Log density at the truth, shape (N,)."""
        return stats.t.logpdf((truth - self.mean) / self.scale, self.degrees) - np.log(self.scale)

    def cdf(self, truth: FloatArray) -> FloatArray:
        """Probability below the truth, shape (N,)."""
        return stats.t.cdf((truth - self.mean) / self.scale, self.degrees)


def luminosity_line(obs: Observations, left: IntArray) -> StudentDensity:
    r"""Least squares of log M on log L without each object in turn, with its exact predictive density.

    :math:`t_{n-2}` about the line with scale :math:`s\sqrt{1 + 1/n + (x-\bar x)^2/S_{xx}}`. Measurement errors are
    part of the residual variance s², as they are part of what is predicted.
    """
    x, y = obs.parts["labels"].value[:, 1], obs.parts["labels"].value[:, 0]
    found = []
    for row in left:
        kept = np.arange(len(x)) != row
        centred, n = x[kept] - x[kept].mean(), int(kept.sum())
        slope = (centred @ y[kept]) / (centred @ centred)
        residual = y[kept] - y[kept].mean() - slope * centred
        away = x[row] - x[kept].mean()
        spread = np.sqrt(residual @ residual / (n - 2) * (1 + 1 / n + away**2 / (centred @ centred)))
        found.append((y[kept].mean() + slope * away, spread, n - 2.0))
    return StudentDensity(*np.array(found).T)


def ridge(obs: Observations, left: IntArray, *, luminosity: bool) -> StudentDensity:
    """Ridge regression on standardised pixels, gaps filled with the mean, without each object in turn.

    Penalty and residual scale come from leave-one-out errors within the other objects, so that nothing of the
    left-out object enters; the density is Student-t with n - 1 degrees of freedom.

    Arguments:
        obs: The table.
        left: Rows to leave out in turn.
        luminosity: Whether log L is one more input, standardised and weighted like all pixels together, since it
            would otherwise be one among hundreds.
    """
    y = obs.parts["labels"].value[:, 0]
    found = []
    for row in left:
        kept = np.arange(len(y)) != row
        x = _inputs(obs, kept, luminosity=luminosity)
        centre = y[kept].mean()
        errors = {penalty: _leave_one_out_errors(x[kept], y[kept] - centre, penalty) for penalty in PENALTIES}
        best = min(PENALTIES, key=lambda penalty: float(errors[penalty] @ errors[penalty]))
        gram = x[kept] @ x[kept].T + best * np.eye(int(kept.sum()))
        mean = centre + x[row] @ x[kept].T @ np.linalg.solve(gram, y[kept] - centre)
        found.append((mean, float(np.sqrt(np.mean(errors[best] ** 2))), kept.sum() - 1.0))
    return StudentDensity(*np.array(found).T)


def _inputs(obs: Observations, kept: np.ndarray, *, luminosity: bool) -> FloatArray:
    pixels = _standardised(obs.parts["spectrum"].value, kept)
    if not luminosity:
        return pixels
    weight = np.sqrt(np.square(pixels[kept]).sum() / kept.sum())
    return np.concatenate([pixels, weight * _standardised(obs.parts["labels"].value[:, 1:], kept)], axis=1)


def _standardised(value: FloatArray, kept: np.ndarray) -> FloatArray:
    there = np.isfinite(value)
    count = np.maximum((there & kept[:, None]).sum(axis=0), 1)
    mean = np.where(there & kept[:, None], value, 0.0).sum(axis=0) / count
    away = np.where(there, value - mean, 0.0)
    spread = np.sqrt((away[kept] ** 2).sum(axis=0) / count)
    return np.where(there, away / np.where(spread > 0, spread, 1.0), 0.0)


def _leave_one_out_errors(x: FloatArray, y: FloatArray, penalty: float) -> FloatArray:
    # Residuals over one minus leverage, with the constant among what is fitted.
    hat = x @ x.T @ np.linalg.inv(x @ x.T + penalty * np.eye(len(y))) + 1 / len(y)
    return (y - hat @ y) / (1 - np.minimum(hat.diagonal(), 0.999))
