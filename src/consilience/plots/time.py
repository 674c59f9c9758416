"""Quantities over time: bands about what is inferred, and strips of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from consilience.plots.style import BLUE, RED, Labels, style, with_unit
from consilience.typing import FloatArray

__all__ = ["Track", "strips", "tracks"]


@dataclass(frozen=True, slots=True)
class Track:
    """A quantity over time: draws (S, T), and the truth (T,) if it is known.

    Arguments:
        time: Middles of the bins, shape (T,).
        draws: Shape (S, T).
        truth: Shape (T,), or None.
        counts: What was counted, shown as dots, shape (T,), or None.
        labels: Of this panel.
    """

    time: FloatArray
    draws: FloatArray
    truth: FloatArray | None = None
    counts: FloatArray | None = None
    labels: Labels = Labels()


def tracks(panels: Sequence[Sequence[Track]]) -> Figure:
    """Medians with bands of 68 and 95 % over time, beside the truth; ``panels[row][column]``.

    Example:
        >>> time = np.arange(5.0)
        >>> len(tracks([[Track(time, np.zeros((10, 5)), truth=time)]]).axes)
        1
    """
    with style():
        rows, columns = len(panels), max(map(len, panels))
        figure = Figure(figsize=(2.9 * columns + 0.6, 1.6 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")
        for axes, track in ((grid[r, c], track) for r, row in enumerate(panels) for c, track in enumerate(row)):
            low95, low68, middle, high68, high95 = np.percentile(track.draws, [2.5, 16, 50, 84, 97.5], axis=0)
            axes.fill_between(track.time, low95, high95, color=BLUE, alpha=0.16, lw=0, label="95 % band")
            axes.fill_between(track.time, low68, high68, color=BLUE, alpha=0.34, lw=0, label="68 % band")
            axes.plot(track.time, middle, color=BLUE, lw=1.1, label="median")
            if track.truth is not None:
                axes.plot(track.time, track.truth, color=RED, lw=1.1, ls="--", label="truth")
            if track.counts is not None:
                axes.plot(track.time, track.counts, ".", color=RED, ms=3, alpha=0.5, label="counted")
            axes.set(title=track.labels.title.replace("$", r"\$"))
            axes.margins(x=0.01)
        for row, axes in zip(panels, grid[:, 0], strict=True):
            axes.set_ylabel(with_unit(row[0].labels.y, row[0].labels.y_unit))
        for axes in grid[-1]:
            axes.set_xlabel(with_unit(panels[-1][0].labels.x, panels[-1][0].labels.x_unit))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=5)
    return figure


def strips(rows: Mapping[str, FloatArray], columns: Sequence[str], title: str = "") -> Figure:
    """Images (K, height, width) side by side, one row per name, all on one scale of grey.

    Example:
        >>> len(strips({"true": np.zeros((3, 4, 4))}, ["0 s", "1 s", "2 s"]).axes)
        3
    """
    with style():
        figure = Figure(figsize=(0.95 * len(columns) + 1.2, 1.02 * len(rows) + 0.4), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        low, high = (f([f(images) for images in rows.values()]) for f in (np.min, np.max))
        for row, (name, images) in enumerate(rows.items()):
            for column, image in enumerate(images):
                axes = grid[row, column]
                axes.imshow(image, cmap="gray", vmin=low, vmax=high)
                axes.set(xticks=[], yticks=[])
                axes.set_title(columns[column] if row == 0 else "", loc="center", fontweight="normal")
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.suptitle(title)
    return figure
