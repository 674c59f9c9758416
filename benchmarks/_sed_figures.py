"""Figures of ``sed_fitting``: one galaxy's two posteriors, and how often the truth was inside of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import gaussian_filter

from consilience.plots import with_unit
from consilience.plots.corner import mass_levels
from consilience.plots.style import BLUE, INK, MUTED, RED, style
from consilience.typing import FloatArray

__all__ = ["corners", "coverages"]

COLOURS = {"bagpipes": RED, "vaeflow": BLUE}
NAMES = {"bagpipes": "bagpipes", "vaeflow": "VAEFlow"}
BINS = 30
SMOOTH = 1.5  # bins


def corners(draws: Mapping[str, FloatArray], truth: FloatArray, names: Sequence[str], units: Sequence[str]) -> Figure:
    """Marginals and pairs of one galaxy's posteriors.

    Arguments:
        draws: (S, P) of each side.
        truth: Shape (P,).
        names: P names.
        units: P units, "" for none.
    """
    size = len(names)
    every = np.concatenate([*draws.values(), truth[None]])
    ranges = np.stack([every.min(axis=0), every.max(axis=0)], axis=1)
    with style():
        figure = Figure(figsize=(1.5 * size, 1.5 * size), layout="constrained")
        panels = figure.subplots(size, size, squeeze=False)
        for row in range(size):
            for column in range(size):
                axes = panels[row, column]
                if column > row:
                    axes.remove()
                    continue
                for side, some in draws.items():
                    _panel(axes, some[:, [column, row]], ranges[[column, row]], COLOURS[side])
                axes.axvline(truth[column], color=INK, lw=0.8)
                if column < row:
                    axes.axhline(truth[row], color=INK, lw=0.8)
                axes.locator_params(nbins=3)
                axes.tick_params(labelbottom=row == size - 1, labelleft=column == 0 and row > 0)
                if row == size - 1:
                    axes.set_xlabel(with_unit(names[column], units[column]))
                if column == 0 and row > 0:
                    axes.set_ylabel(with_unit(names[row], units[row]))
        handles = [Line2D([], [], color=COLOURS[side], label=f"{NAMES[side]}, 68 % and 95 %") for side in draws]
        handles.append(Line2D([], [], color=INK, lw=0.8, label="truth"))
        figure.legend(handles=handles, loc="upper right")
        figure.align_labels()
    return figure


def coverages(
    found: Mapping[str, Mapping[float, FloatArray]], bands: Mapping[float, tuple[float, float]], names: Sequence[str]
) -> Figure:
    """Share of truths inside central intervals, one panel per level.

    Arguments:
        found: Of each side, by level, (P,).
        bands: Lowest and highest share that right posteriors show, by level.
        names: P names.
    """
    place = np.arange(len(names))
    with style():
        figure = Figure(figsize=(3.6 * len(bands) + 0.6, 3.4), layout="constrained")
        panels = figure.subplots(1, len(bands), squeeze=False)[0]
        for axes, (level, (low, high)) in zip(panels, bands.items(), strict=True):
            axes.axvspan(low, high, color=MUTED, alpha=0.25, lw=0, label="right posteriors, 99 %")
            axes.axvline(level, color=MUTED, lw=1, ls="--")
            for number, (side, shares) in enumerate(found.items()):
                axes.plot(shares[level], place + 0.2 * number - 0.1, "o", color=COLOURS[side], label=NAMES[side])
            axes.set_yticks(place, names)
            axes.invert_yaxis()
            axes.set(title=f"{100 * level:.0f} % intervals", xlabel="share of galaxies", xlim=(min(low, 0.4), 1.02))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _panel(axes: Axes, draws: FloatArray, ranges: FloatArray, colour: str) -> None:
    """A marginal where both columns are the same, outlines of a pair elsewhere."""
    (low, high), (bottom, top) = ranges
    axes.set_xlim(low, high)
    if (draws[:, 0] == draws[:, 1]).all():
        axes.hist(draws[:, 0], bins=20, range=(low, high), density=True, histtype="step", color=colour)
        axes.set_yticks([])
        return
    density, x, y = np.histogram2d(draws[:, 0], draws[:, 1], bins=BINS, range=ranges.tolist())
    density = gaussian_filter(density, SMOOTH, mode="nearest")
    middle = [0.5 * (edges[1:] + edges[:-1]) for edges in (x, y)]
    axes.contour(*middle, density.T, levels=mass_levels(density, (0.95, 0.68)), colors=colour, linewidths=1.0)
    axes.set_ylim(bottom, top)
