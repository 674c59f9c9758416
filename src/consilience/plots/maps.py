"""Pictures of many objects at once: latent positions and outliers."""

import numpy as np
from matplotlib.figure import Figure

from consilience.errors import DataError
from consilience.plots.style import BLUE, MUTED, RED, Labels, style, with_unit
from consilience.typing import BoolArray, FloatArray

__all__ = ["latent_map", "outlier_map"]


def latent_map(position: FloatArray, colour: FloatArray, labels: Labels, colour_label: str) -> Figure:
    """Objects in a plane of the latent space, coloured by a quantity; grey where it is unknown.

    Arguments:
        position: Coordinates, shape (N, 2).
        colour: Quantity, NaN where unknown, shape (N,).
        labels: Names of the two axes and the title.
        colour_label: Name of the quantity, with unit.

    Raises:
        DataError: positions that are not (N, 2).

    Example:
        >>> len(latent_map(np.zeros((3, 2)), np.arange(3.0), Labels("z1", "z2"), "redshift").axes)
        2
    """
    if position.ndim != 2 or position.shape[1] != 2 or len(colour) != len(position):
        raise DataError(f"Expected positions (N, 2) and N colours; got {position.shape} and {np.shape(colour)}.")
    known = np.isfinite(colour)
    size = float(np.clip(1200 / np.sqrt(max(len(position), 1) * 16), 5, 30))
    with style():
        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.subplots()
        if (~known).any():
            axes.scatter(*position[~known].T, s=size, color=MUTED, alpha=0.5, lw=0, label="unknown", rasterized=True)
            axes.legend(loc="upper right")
        if known.any():
            low, high = np.quantile(colour[known], [0.01, 0.99])
            points = axes.scatter(
                *position[known].T,
                c=colour[known],
                s=size,
                lw=0,
                alpha=0.85,
                vmin=low,
                vmax=high,
                cmap="viridis",
                rasterized=True,
            )
            bar = figure.colorbar(points, ax=axes, extend="both")
            bar.set_label(colour_label.replace("$", r"\$"))
            bar.solids.set_alpha(1.0)  # type: ignore[union-attr]
        axes.set(
            title=labels.title, xlabel=with_unit(labels.x, labels.x_unit), ylabel=with_unit(labels.y, labels.y_unit)
        )
    return figure


def outlier_map(latent: FloatArray, residual: FloatArray, flagged: BoolArray, threshold: float) -> Figure:
    """Latent against residual score of each object, in standard deviations of the reference; flagged ones stand out.

    Arrays have shape (N,); a row without a score in one of them is drawn at zero there.

    Example:
        >>> len(outlier_map(np.zeros(3), np.arange(3.0), np.array([False, False, True]), 1.5).axes)
        1
    """
    x, y = np.nan_to_num(latent), np.nan_to_num(residual)
    with style():
        figure = Figure(figsize=(5.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(x[~flagged], y[~flagged], "o", ms=3, mew=0, color=BLUE, alpha=0.45, label="ordinary", rasterized=True)
        axes.plot(x[flagged], y[flagged], "D", ms=5, color=RED, label="flagged", rasterized=True)
        if np.abs(x).max(initial=0.0) > 30:
            axes.set_xscale("symlog", linthresh=10)
        if np.abs(y).max(initial=0.0) > 30:
            axes.set_yscale("symlog", linthresh=10)
        corner = [min(float(x.min(initial=0)), 0) - 1, threshold, threshold]
        axes.plot(corner, [threshold, threshold, min(float(y.min(initial=0)), 0) - 1], color=MUTED, lw=1, ls="--")
        axes.set_xlabel("latent distance [robust σ of the reference]")
        axes.set_ylabel("reconstruction χ² [robust σ of the reference]")
        axes.legend(loc="best")
    return figure
