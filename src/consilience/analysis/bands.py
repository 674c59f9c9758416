r"""Sampling error of a calibration check: simultaneous bands and exact p-values.

If posteriors are right, PIT values are uniform and the numbers of truths inside nested central intervals form a Markov
chain from the widest level down: :math:`K_J \sim B(n, \ell_J)`,
:math:`K_j | K_{j+1} \sim B(K_{j+1}, \ell_j/\ell_{j+1})`. The joint probability of all levels is
therefore summed exactly, not simulated. Cells of one object depend on each other in unknown ways, so cells are combined
by Bonferroni, which holds under any dependence.
"""

from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import gammaln

from consilience.errors import RequestError
from consilience.typing import FloatArray

__all__ = ["coverage_band", "coverage_pvalue", "histogram_band", "uniform_pvalue"]


TINY = 1e-10  # p-values below are given as their Bonferroni bound


@lru_cache(maxsize=256)
def coverage_band(
    rows: int, levels: tuple[float, ...], confidence: float = 0.99, cells: int = 1
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    r"""Simultaneous binomial band: the lowest and highest coverage at each level that right posteriors show.

    With ``rows`` scored rows in each of ``cells`` quantities, all coverages of all quantities at all levels lie inside
    with probability at least ``confidence`` (exact over levels, Bonferroni over cells).

    Arguments:
        rows: Number of scored rows n; with 0 the band is [0, 1].
        levels: Nominal levels in (0, 1), strictly increasing, K of them.
        confidence: Joint confidence.
        cells: Number of quantities looked at.

    Returns:
        Lowest and highest fractions, K each.

    Raises:
        RequestError: levels or confidence outside (0, 1), levels that do not increase, or no cells.

    Example:
        >>> low, high = coverage_band(500, (0.5, 0.68, 0.9, 0.95), 0.99, cells=4)
        >>> low[1] < 0.68 < high[1], round(high[1] - low[1], 2)
        (True, 0.14)
    """
    if not levels or not all(0 < a < b <= 1 for a, b in zip((0.0, *levels)[1:], (*levels[1:], 1.0), strict=True)):
        raise RequestError(f"Expected strictly increasing levels in (0, 1); got {levels}. Sort them.")
    if not 0 < confidence < 1 or cells < 1:
        raise RequestError(f"Expected a confidence in (0, 1) and cells >= 1; got {confidence} and {cells}.")
    if rows == 0:
        return (0.0,) * len(levels), (1.0,) * len(levels)
    allowed = (1 - confidence) / cells
    # All K levels at tail allowed/K are jointly safe (Bonferroni); one level alone at tail allowed.
    safe, bold = np.log(allowed / len(levels)), np.log(allowed)
    for _ in range(12):
        middle = 0.5 * (safe + bold)
        if 1 - _joint(rows, levels, float(np.exp(middle))) <= allowed:
            safe = middle
        else:
            bold = middle
    window = _windows(rows, levels, float(np.exp(safe)))
    return tuple(low / rows for low, _ in window), tuple(high / rows for _, high in window)


def coverage_pvalue(counts: tuple[int, ...], rows: int, levels: tuple[float, ...]) -> float:
    r"""Probability that right posteriors miss by as much at their worst level: exact over the nested levels.

    The statistic is the smallest two-sided binomial tail over the levels; where that is below 1e-10 the p-value is
    given as its upper bound, K times as much.

    Example:
        >>> coverage_pvalue((50, 68), 100, (0.5, 0.68)) > 0.9, coverage_pvalue((30, 40), 100, (0.5, 0.68)) < 1e-3
        (True, True)
    """
    if rows == 0:
        return 1.0
    tails = [
        2 * min(stats.binom.cdf(k, rows, level), stats.binom.sf(k - 1, rows, level))
        for k, level in zip(counts, levels, strict=True)
    ]
    worst = float(min(tails))
    if worst >= 1:
        return 1.0
    if worst < TINY:  # windows would be as wide as the table, and 1 - p is 1 in floating point
        return len(levels) * worst
    return float(np.clip(1 - _joint(rows, levels, worst * (1 + 1e-9)), worst, 1.0))


def histogram_band(rows: int, bins: int, confidence: float = 0.99, cells: int = 1) -> tuple[float, float]:
    """Lowest and highest density of any of the ``bins`` of ``cells`` PIT histograms (Bonferroni).

    Example:
        >>> low, high = histogram_band(1000, 20)
        >>> low < 1 < high
        True
    """
    if rows == 0:
        return 0.0, float(bins)
    tail = (1 - confidence) / (2 * bins * cells)
    low, high = stats.binom.ppf(tail, rows, 1 / bins), stats.binom.isf(tail, rows, 1 / bins)
    return float(low * bins / rows), float(high * bins / rows)


def uniform_pvalue(u: FloatArray) -> float:
    """Smallest Kolmogorov-Smirnov p-value of the columns of PIT values (N, C), NaN left out, against uniformity.

    Example:
        >>> u = np.stack([np.linspace(0.01, 0.99, 99), np.full(99, 0.5)], axis=1)
        >>> uniform_pvalue(u[:, :1]) > 0.9, uniform_pvalue(u) < 1e-6
        (True, True)
    """
    ordered = np.sort(u, axis=0)  # NaN last
    known = np.isfinite(ordered)
    rows = known.sum(axis=0)
    rank = np.arange(len(u))[:, None]
    above = np.where(known, (rank + 1) / np.maximum(rows, 1) - ordered, 0.0)
    below = np.where(known, ordered - rank / np.maximum(rows, 1), 0.0)
    distance = np.maximum(above, below).max(axis=0, initial=0.0)
    # of columns with as many values the one that is farthest away has the smallest p-value
    return min((float(stats.kstwo.sf(distance[rows == n].max(), n)) for n in np.unique(rows[rows > 0])), default=1.0)


def _windows(rows: int, levels: tuple[float, ...], tail: float) -> list[tuple[int, int]]:
    # Counts whose two-sided tail exceeds ``tail``; a tail that underflows to zero has the quantile -1.
    return [
        (max(int(stats.binom.ppf(tail / 2, rows, level)), 0), min(int(stats.binom.isf(tail / 2, rows, level)), rows))
        for level in levels
    ]


def _joint(rows: int, levels: tuple[float, ...], tail: float) -> float:
    window = _windows(rows, levels, tail)
    log_factorial = gammaln(np.arange(rows + 1) + 1.0)
    counts = np.arange(window[-1][0], window[-1][1] + 1)
    mass = stats.binom.pmf(counts, rows, levels[-1])
    for j in range(len(levels) - 2, -1, -1):
        ratio = levels[j] / levels[j + 1]
        inner = np.arange(window[j][0], window[j][1] + 1)
        k, m = inner[:, None], counts[None, :]
        rest = m - k
        log_p = log_factorial[m] - log_factorial[k] - log_factorial[np.maximum(rest, 0)]
        log_p = log_p + k * np.log(ratio) + rest * np.log1p(-ratio)
        mass = np.where(rest >= 0, np.exp(np.minimum(log_p, 0.0)), 0.0) @ mass
        counts = inner
    return float(mass.sum())
