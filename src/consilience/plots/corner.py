"""Marginals and pairs of a posterior."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import gaussian_filter

from consilience.errors import DataError
from consilience.plots.style import BLUE, RED, style, with_unit
from consilience.typing import FloatArray

__all__ = ["corner", "mass_levels"]


def mass_levels(density: FloatArray, masses: Sequence[float]) -> list[float]:
    r"""Thresholds :math:`t` with :math:`\sum_{p_i \ge t} p_i = m`: the outlines of highest-density regions.

    Returned in increasing order, ready for a contour plot; equal thresholds are nudged apart.

    Example:
        >>> mass_levels(np.array([[0.5, 0.3], [0.15, 0.05]]), [0.5, 0.8])
        [0.3, 0.5]
    """
    ordered = np.sort(density.ravel())[::-1]
    total = np.cumsum(ordered) / ordered.sum()
    found = sorted(float(ordered[min(np.searchsorted(total, m - 1e-9), len(ordered) - 1)]) for m in masses)
    for position in range(1, len(found)):
        found[position] = max(found[position], np.nextafter(found[position - 1], np.inf))
    return found


def corner(
    draws: FloatArray,
    names: Sequence[str],
    units: Sequence[str],
    truth: FloatArray | None = None,
    title: str = "",
) -> Figure:
    """Marginals on the diagonal and 68 / 95 % highest-density contours of every pair below it.

    Arguments:
        draws: Posterior draws, shape (S, L).
        names: L names.
        units: L units, "" for none.
        truth: Known values, NaN where unknown, shape (L,), or None.
        title: Heading of the figure.

    Raises:
        DataError: names or units that do not match the draws, or draws that are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> len(corner(rng.normal(size=(200, 2)), ["a", "b"], ["", "kpc"]).axes)
        3
    """
    size = len(names)
    if draws.ndim != 2 or draws.shape[1] != size or len(units) != size or not np.isfinite(draws).all():
        raise DataError(
            f"Expected finite draws (S, {size}) with {size} units; got shape {draws.shape} and {len(units)} units."
        )
    with style():
        side = max(1.75 * size, 3.2)
        figure = Figure(figsize=(side, side), layout="constrained")
        grid = figure.add_gridspec(size, size)
        limits = [_range(draws[:, i], None if truth is None else truth[i]) for i in range(size)]
        for row in range(size):
            for column in range(row + 1):
                axes = figure.add_subplot(grid[row, column])
                if row == column:
                    _marginal(axes, draws[:, row], limits[row], None if truth is None else truth[row])
                else:
                    point = None if truth is None else (truth[column], truth[row])
                    _pair(axes, draws[:, [column, row]], (limits[column], limits[row]), point)
                _ticks(axes, row, column, size)
                if row == size - 1:
                    axes.set_xlabel(with_unit(names[column], units[column]))
                if column == 0 and row > 0:
                    axes.set_ylabel(with_unit(names[row], units[row]))
        figure.align_labels()
        figure.suptitle(title.replace("$", r"\$"), fontsize=9.5, fontweight="bold")
        handles = [Line2D([], [], color=BLUE, lw=1.3, label="68 % and 95 % of the posterior")]
        if truth is not None and np.isfinite(truth).any():
            handles.append(Line2D([], [], color=RED, lw=1.2, label="measured"))
        if size > 1:
            figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, 0.93))
    return figure


def _range(draws: FloatArray, truth: float | None) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.002, 0.998])
    if truth is not None and np.isfinite(truth):
        low, high = min(low, truth), max(high, truth)
    pad = 0.06 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _marginal(axes: Axes, draws: FloatArray, limits: tuple[float, float], truth: float | None) -> None:
    axes.hist(draws, bins=30, range=limits, histtype="stepfilled", color=BLUE, alpha=0.25, density=True)
    for level, line in ((0.16, ":"), (0.5, "-"), (0.84, ":")):
        axes.axvline(float(np.quantile(draws, level)), color=BLUE, ls=line, lw=1)
    if truth is not None and np.isfinite(truth):
        axes.axvline(truth, color=RED, lw=1.2)
    axes.set_xlim(*limits)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _pair(
    axes: Axes,
    draws: FloatArray,
    limits: tuple[tuple[float, float], tuple[float, float]],
    truth: tuple[float, float] | None,
) -> None:
    count, x, y = np.histogram2d(draws[:, 0], draws[:, 1], bins=40, range=limits)
    density = gaussian_filter(count, sigma=2.0)
    if density.max() > 0:
        levels = mass_levels(density, [0.95, 0.68])
        centres = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
        axes.contourf(*centres, density.T, levels=[*levels, density.max() * 1.01], colors=[BLUE, BLUE], alpha=0.22)
        axes.contour(*centres, density.T, levels=levels, colors=[BLUE], linewidths=[0.9, 1.3])
    if truth is not None:
        for value, line in ((truth[0], axes.axvline), (truth[1], axes.axhline)):
            if np.isfinite(value):
                line(value, color=RED, lw=1.0)
    axes.set(xlim=limits[0], ylim=limits[1])


def _ticks(axes: Axes, row: int, column: int, size: int) -> None:
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelbottom=row == size - 1, rotation=30)
    if row != column:
        axes.locator_params(axis="y", nbins=3)
        axes.tick_params(axis="y", labelleft=column == 0)
