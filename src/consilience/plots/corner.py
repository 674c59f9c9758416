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
        truth: Known values, NaN where unknown, shape (L,); or a sample of them that the draws should look like, shape
            (R, L); or None.
        title: Heading of the figure.

    Raises:
        DataError: names, units or truth that do not match the draws, draws or a sample of truth that are not finite.

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
    sampled = truth is not None and truth.ndim == 2
    if truth is not None and (truth.shape[-1] != size or (sampled and not np.isfinite(truth).all())):
        raise DataError(f"Expected truth ({size},), or a finite sample (R, {size}); got shape {truth.shape}.")
    with style():
        side = max(1.75 * size, 3.2)
        figure = Figure(figsize=(side, side), layout="constrained")
        grid = figure.add_gridspec(size, size)
        known = np.full((1, size), np.nan) if truth is None else np.atleast_2d(truth)
        known = np.full((1, size), np.nan) if truth is None else np.atleast_2d(truth)
        known = np.full((1, size), np.nan) if truth is None else np.atleast_2d(truth)
        limits = [_range(draws[:, i], known[:, i]) for i in range(size)]
        for row in range(size):
            for column in range(row + 1):
                axes = figure.add_subplot(grid[row, column])
                if row == column:
                    _marginal(axes, draws[:, row], limits[row], known[:, row])
                else:
                    pair = [column, row]
                    _pair(axes, draws[:, pair], (limits[column], limits[row]), known[:, pair])
                _ticks(axes, row, column, size)
                if row == size - 1:
                    axes.set_xlabel(with_unit(names[column], units[column]))
                if column == 0 and row > 0:
                    axes.set_ylabel(with_unit(names[row], units[row]))
        figure.align_labels()
        figure.suptitle(title.replace("$", r"\$"), fontsize=9.5, fontweight="bold")
        label = "68 % and 95 % of the draws" if sampled else "68 % and 95 % of the posterior"
        handles = [Line2D([], [], color=BLUE, lw=1.3, label=label)]
        if np.isfinite(known).any():
            handles.append(Line2D([], [], color=RED, lw=1.2, label="measured"))
        if size > 1:
            figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.99, 0.93))
    return figure


def _range(draws: FloatArray, known: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.002, 0.998])
    if np.isfinite(known).any():
        least, most = np.nanquantile(known, [0.002, 0.998])
        low, high = min(low, least), max(high, most)
    pad = 0.06 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _marginal(axes: Axes, draws: FloatArray, limits: tuple[float, float], known: FloatArray) -> None:
    axes.hist(draws, bins=30, range=limits, histtype="stepfilled", color=BLUE, alpha=0.25, density=True)
    for level, line in ((0.16, ":"), (0.5, "-"), (0.84, ":")):
        axes.axvline(float(np.quantile(draws, level)), color=BLUE, ls=line, lw=1)
    if len(known) > 1:
        axes.hist(known, bins=30, range=limits, histtype="step", color=RED, lw=1.2, density=True)
    elif np.isfinite(known[0]):
        axes.axvline(float(known[0]), color=RED, lw=1.2)
    axes.set_xlim(*limits)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _pair(
    axes: Axes, draws: FloatArray, limits: tuple[tuple[float, float], tuple[float, float]], known: FloatArray
) -> None:
    _outlines(axes, draws, limits, BLUE)
    if len(known) > 1:
        _outlines(axes, known, limits, RED)
    else:
        for value, line in zip(known[0], (axes.axvline, axes.axhline), strict=True):
            if np.isfinite(value):
                line(value, color=RED, lw=1.0)
    axes.set(xlim=limits[0], ylim=limits[1])


def _outlines(
    axes: Axes, draws: FloatArray, limits: tuple[tuple[float, float], tuple[float, float]], colour: str
) -> None:
    count, x, y = np.histogram2d(draws[:, 0], draws[:, 1], bins=40, range=limits)
    density = gaussian_filter(count, sigma=2.0)
    if density.max() == 0:
        return
    levels = mass_levels(density, [0.95, 0.68])
    centres = 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])
    if colour == BLUE:  # two fills would hide each other
        axes.contourf(*centres, density.T, levels=[*levels, density.max() * 1.01], colors=[BLUE, BLUE], alpha=0.22)
    axes.contour(*centres, density.T, levels=levels, colors=[colour], linewidths=[0.9, 1.3])


def _ticks(axes: Axes, row: int, column: int, size: int) -> None:
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelbottom=row == size - 1, rotation=30)
    if row != column:
        axes.locator_params(axis="y", nbins=3)
        axes.tick_params(axis="y", labelleft=column == 0)
