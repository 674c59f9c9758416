"""The density of a point prediction's error, chosen by cross-validated likelihood."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["ResidualDensity", "fit_residuals"]

DEGREES = (2.5, 4.0, 7.0, 15.0)  # of freedom tried for Student's t
POINTS = 1000  # of a kernel estimate; more residuals are represented by as many quantiles


@dataclass(frozen=True, slots=True)
class ResidualDensity:
    r"""Density of :math:`r = y - \hat y`: Gaussian, Student-t, or a kernel estimate.

    ``location`` and ``scale`` for the first two with ``degrees`` of freedom (inf: Gaussian); for the kernel estimate
    ``points`` (n,) are the residuals and ``scale`` the bandwidth. Residuals are those of measured values, so a
    typical measurement error is part of the density.

    Example:
        >>> density = ResidualDensity("gaussian", 0.0, 2.0)
        >>> float(density.cdf(np.array([0.0]))[0]), round(float(density.quantile(0.84)), 1)
        (0.5, 2.0)
    """

    kind: Literal["gaussian", "student", "kernel"]
    location: float
    scale: float
    degrees: float = np.inf
    points: FloatArray | None = None

    def log_density(self, r: FloatArray) -> FloatArray:
        """Log density at r, same shape, per unit of r."""
        if self.points is None:
            return stats.t.logpdf((r - self.location) / self.scale, self.degrees) - np.log(self.scale)
        z = (r[..., None] - self.points) / self.scale
        return logsumexp(stats.norm.logpdf(z), axis=-1) - np.log(len(self.points) * self.scale)

    def cdf(self, r: FloatArray) -> FloatArray:
        """Probability of a residual below r, same shape."""
        if self.points is None:
            return stats.t.cdf((r - self.location) / self.scale, self.degrees)
        return stats.norm.cdf((r[..., None] - self.points) / self.scale).mean(axis=-1)

    def quantile(self, q: float) -> float:
        """The residual with probability q below it."""
        if self.points is None:
            return float(self.location + self.scale * stats.t.ppf(q, self.degrees))
        low, high = self.points.min() - 8 * self.scale, self.points.max() + 8 * self.scale
        grid = np.linspace(low, high, 2001)
        return float(np.interp(q, self.cdf(grid), grid))

    @property
    def std(self) -> float:
        """Standard deviation of the residual."""
        if self.points is None:
            return float(self.scale * stats.t.std(self.degrees))
        return float(np.hypot(self.points.std(), self.scale))

    @property
    def mean(self) -> float:
        """Mean of the residual: what a point prediction is off by."""
        return self.location if self.points is None else float(self.points.mean())


def fit_residuals(residual: FloatArray, *, seed: int = 0) -> ResidualDensity:
    """The family with the highest likelihood in 5-fold cross-validation, refitted to all residuals (n,).

    Raises:
        DataError: fewer than 5 finite residuals.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> fit_residuals(rng.standard_t(3, size=2000)).kind
        'student'
    """
    r = residual[np.isfinite(residual)]
    if len(r) < 5:
        raise DataError(f"Expected at least 5 rows with a truth; got {len(r)}. Use a larger training table.")
    fold = np.random.default_rng(seed).permutation(len(r)) % 5
    candidates = {("gaussian", np.inf): 0.0, ("kernel", 0.7): 0.0, ("kernel", 1.0): 0.0}
    candidates |= {("student", degrees): 0.0 for degrees in DEGREES}
    for kind, option in candidates:
        candidates[kind, option] = sum(
            float(_fit(r[fold != k], kind, option).log_density(r[fold == k]).sum()) for k in range(5)
        )
    kind, option = max(candidates, key=lambda key: candidates[key])
    return _fit(r, kind, option)


def _fit(r: FloatArray, kind: str, option: float) -> ResidualDensity:
    floor = 1e-9 * max(float(np.abs(r).max()), 1e-12)
    if kind == "kernel":
        # Silverman's rule with the smaller of sd and half-width, so that tails do not widen the core.
        low, high = np.percentile(r, [15.865, 84.135])
        width = min(float(r.std()), 0.5 * float(high - low)) or float(r.std())
        points = r if len(r) <= POINTS else np.quantile(r, (np.arange(POINTS) + 0.5) / POINTS)
        return ResidualDensity("kernel", 0.0, max(0.9 * option * width * len(r) ** -0.2, floor), np.inf, points)
    if kind == "gaussian":
        return ResidualDensity("gaussian", float(r.mean()), max(float(r.std(ddof=1)), floor))
    # EM for location and scale of Student's t at fixed degrees of freedom.
    location, square = float(np.median(r)), float(r.var())
    for _ in range(60):
        weight = (option + 1) / (option + (r - location) ** 2 / max(square, floor**2))
        location = float((weight * r).sum() / weight.sum())
        square = float((weight * (r - location) ** 2).mean())
    return ResidualDensity("student", location, max(np.sqrt(square), floor), option)
