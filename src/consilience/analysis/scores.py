"""Proper scores of draws and densities, as pure functions of arrays.

Axis order is draws, objects, event: ``draws`` (S, N, *event), ``truth`` (N, *event), NaN where there is no truth.
"""

import numpy as np

from consilience.errors import DataError
from consilience.typing import BoolArray, FloatArray

__all__ = [
    "central",
    "crps",
    "energy",
    "mean_absolute_error",
    "pit",
    "r_squared",
    "root_mean_square",
    "tarp",
]


def pit(draws: FloatArray, truth: FloatArray, rng: np.random.Generator) -> FloatArray:
    r"""Randomised probability integral transform :math:`u = (r + v(t + 1))/(S + 1)`, :math:`v \sim U(0, 1)`.

    :math:`r` counts the draws below the truth and :math:`t` those equal to it. If truth and draws are exchangeable then
    :math:`u` is *exactly* uniform for every S, ties included, so coverage from it has no finite-draw bias.

    Returns:
        Shape (N, *event); NaN where the truth is NaN or a draw is not finite.

    Example:
        >>> u = pit(np.array([[0.0], [1.0], [2.0]]), np.array([1.5]), np.random.default_rng(0))
        >>> bool(0.5 <= u[0] <= 0.75)
        True

    References:
        Czado, Gneiting & Held 2009, Biometrics 65, 1254; Saeaelynoja et al. 2022, Stat. Comput. 32, 32.
    """
    _check(draws, truth)
    below = (draws < truth).sum(axis=0)
    ties = (draws == truth).sum(axis=0)
    u = (below + rng.uniform(size=truth.shape) * (ties + 1)) / (len(draws) + 1)
    return np.where(np.isfinite(truth) & np.isfinite(draws).all(axis=0), u, np.nan)


def central(u: FloatArray, levels: FloatArray) -> BoolArray:
    r"""Whether the truth lies in the central interval of each level: :math:`2|u - 1/2| \le \ell`, shape (K, N, *event).

    Example:
        >>> central(np.array([0.5, 0.01]), np.array([0.68])).tolist()
        [[True, False]]
    """
    levels = np.asarray(levels, float).reshape(-1, *([1] * u.ndim))
    return 2 * np.abs(u - 0.5) <= levels  # False where u is NaN


def crps(draws: FloatArray, truth: FloatArray) -> FloatArray:
    r"""Continuous ranked probability score, fair estimator from S draws, shape (N, *event), in the truth's unit.

    .. math:: \frac1S\sum_i |x_i - y| - \frac{1}{2S(S-1)}\sum_{ij}|x_i - x_j|

    Unbiased for the score of the distribution that the draws come from, whatever S >= 2.

    Example:
        >>> crps(np.array([[0.0], [2.0]]), np.array([1.0])).tolist()
        [0.0]

    References:
        Gneiting & Raftery 2007, JASA 102, 359; Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917.
    """
    _check(draws, truth)
    count = len(draws)
    if count < 2:
        raise DataError(f"Expected at least 2 draws for the CRPS; got {count}. Raise n.")
    weight = (2 * np.arange(count) - count + 1).reshape(-1, *([1] * truth.ndim))
    spread = (weight * np.sort(draws, axis=0)).sum(axis=0) / (count * (count - 1))
    return np.abs(draws - truth).mean(axis=0) - spread


def energy(draws: FloatArray, truth: FloatArray) -> FloatArray:
    r"""Energy score of vectors, fair estimator from S draws (S, N, D), shape (N,): the CRPS if D is 1.

    .. math:: \frac1S\sum_i |x_i - y| - \frac{1}{2S(S-1)}\sum_{ij}|x_i - x_j|

    The second sum is over pairs of draws next to each other, which has the same expectation at a fraction of the cost.

    Example:
        >>> energy(np.array([[[0.0]], [[2.0]]]), np.array([[1.0]])).tolist()
        [0.0]

    References:
        Gneiting & Raftery 2007, JASA 102, 359.
    """
    _check(draws, truth)
    if len(draws) < 2:
        raise DataError(f"Expected at least 2 draws for the energy score; got {len(draws)}. Raise n.")
    error = np.linalg.norm(draws - truth, axis=-1).mean(axis=0)
    return error - 0.5 * np.linalg.norm(np.diff(draws, axis=0), axis=-1).mean(axis=0)


def tarp(draws: FloatArray, truth: FloatArray, reference: FloatArray, rng: np.random.Generator) -> FloatArray:
    r"""Randomised share of draws (S, N, D) nearer to a reference point (N, D) than the truth (N, D) is, shape (N,).

    Uniform on (0, 1) where the posterior is right and the reference does not depend on the truth given what was seen.

    Example:
        >>> draws, truth = np.zeros((3, 1, 2)), np.ones((1, 2))
        >>> bool(0.75 <= tarp(draws, truth, np.zeros((1, 2)), np.random.default_rng(0))[0] <= 1)
        True

    References:
        Lemos et al. 2023, ICML (arXiv 2302.03026).
    """
    _check(draws, truth)
    return pit(np.linalg.norm(draws - reference, axis=-1), np.linalg.norm(truth - reference, axis=-1), rng)


def mean_absolute_error(error: FloatArray) -> FloatArray:
    """Mean of the absolute errors over objects, NaN left out, shape (*event,)."""
    return _mean(np.abs(error))


def root_mean_square(error: FloatArray) -> FloatArray:
    """Root of the mean squared error over objects, NaN left out, shape (*event,)."""
    return np.sqrt(_mean(error**2))


def r_squared(truth: FloatArray, prediction: FloatArray) -> FloatArray:
    r"""Coefficient of determination :math:`1 - \sum(y-\hat y)^2/\sum(y-\bar y)^2` over objects, shape (*event,).

    NaN where fewer than two objects have a truth, or all truths are equal.

    Example:
        >>> float(r_squared(np.array([0.0, 1.0]), np.array([0.0, 1.0])))
        1.0
    """
    there = np.isfinite(truth)
    residual = _mean((truth - prediction) ** 2)
    total = _mean((truth - _mean(truth)) ** 2)
    usable = (there.sum(axis=0) > 1) & (total > 0)
    return np.where(usable, 1 - residual / np.where(usable, total, 1.0), np.nan)


def _mean(array: FloatArray) -> FloatArray:
    there = np.isfinite(array)
    count = there.sum(axis=0)
    total = np.where(there, array, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _check(draws: FloatArray, truth: FloatArray) -> None:
    if draws.shape[1:] != truth.shape or len(draws) < 1:
        raise DataError(f"Expected draws (S, *{truth.shape}); got {draws.shape}. Draws come first, then objects.")
