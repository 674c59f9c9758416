"""Images beside what a model makes of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure

from consilience.plots.style import style, with_unit
from consilience.typing import FloatArray

__all__ = ["compared_images", "image_grid"]

COLUMNS = ("image", "disc", "residual")
LARGEST = 5.0  # residual in error bars at the end of its scale


def compared_images(panels: FloatArray, labels: Sequence[str], unit: str, title: str) -> Figure:
    """One row per object: its image, what is compared with it on the same scale, and the residual in error bars.

    Arguments:
        panels: Shape (N, 3, H, W); NaN is left white.
        labels: Of the rows.
        unit: Of images.
        title: Of the figure.

    Example:
        >>> compared_images(np.zeros((2, 3, 4, 4)), ["a", "b"], "nmgy", "none").axes[0].get_ylabel()
        'a'
    """
    with style():
        figure = Figure(figsize=(6.4, 0.5 + 2.0 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 3, squeeze=False)
        figure.suptitle(title, fontsize=10)
        for row, (three, label) in enumerate(zip(panels, labels, strict=True)):
            low, high = np.nanpercentile(three[:2], [1, 99.8])
            scales = [(low, high, "viridis")] * 2 + [(-LARGEST, LARGEST, "RdBu_r")]
            for column, (image, (least, most, colours)) in enumerate(zip(three, scales, strict=True)):
                axis = axes[row, column]
                drawn = axis.imshow(image, origin="lower", vmin=least, vmax=most, cmap=colours)
                axis.set_xticks([])
                axis.set_yticks([])
                if column > 0:
                    bar = figure.colorbar(drawn, ax=axis, shrink=0.85)
                    bar.set_label(with_unit("flux per pixel", unit) if column == 1 else "error bars", fontsize=7)
                if row == 0:
                    axis.set_title(COLUMNS[column], fontsize=9)
            axes[row, 0].set_ylabel(label, fontsize=8)
    return figure


def image_grid(panels: FloatArray, rows: Sequence[str], columns: Sequence[str], unit: str, title: str) -> Figure:
    """Images in rows and columns, all on one scale, linear near zero and logarithmic beyond.

    Arguments:
        panels: Shape (R, C, H, W).
        rows: R labels.
        columns: C labels.
        unit: Of the pixels.
        title: Of the figure.

    Example:
        >>> len(image_grid(np.zeros((2, 3, 4, 4)), ["a", "b"], ["-", "0", "+"], "nmgy", "none").axes)
        7
    """
    with style():
        size = (0.9 + 1.25 * len(columns), 0.7 + 1.25 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title.replace("$", r"\$"), fontsize=10)
        low, high = np.nanpercentile(panels, [0.5, 99.8])
        # a galaxy's middle is a hundred times as bright as its outskirts
        width = max(0.05 * max(abs(low), abs(high)), np.finfo(float).tiny)
        scale = AsinhNorm(width, vmin=low, vmax=high)
        drawn, axes = None, figure.subplots(len(rows), len(columns), squeeze=False)
        for row, several in enumerate(panels):
            for column, image in enumerate(several):
                axis = axes[row, column]
                drawn = axis.imshow(image, origin="lower", norm=scale, cmap="viridis")
                axis.set(xticks=[], yticks=[])
                if row == 0:
                    axis.set_title(columns[column], fontsize=8)
            axes[row, 0].set_ylabel(rows[row], fontsize=8)
        if drawn is not None:
            figure.colorbar(drawn, ax=axes, shrink=0.7).set_label(with_unit("per pixel", unit), fontsize=8)
    return figure
