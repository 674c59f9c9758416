"""A gridded observation with its predictive bands, its gaps and its residuals."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.errors import DataError
from consilience.plots.style import BLUE, GAP, INK, RED, Labels, style, with_unit
from consilience.typing import BoolArray, FloatArray

__all__ = ["spectrum"]

UNNAMED = Labels()


def spectrum(
    grid: FloatArray,
    draws: FloatArray,
    value: FloatArray,
    sigma: FloatArray | None = None,
    hidden: BoolArray | None = None,
    labels: Labels = UNNAMED,
) -> Figure:
    r"""Predictive bands :math:`q_{2.5} … q_{97.5}` of one object over its data, and normalised residuals below.

    The residual of a seen cell is :math:`(x - \bar f)/\sqrt{s_f^2 + \sigma^2}` with the mean and standard deviation of
    the draws. Cells without data are shaded; those in ``hidden`` were kept from the model and have their own colour.

    Arguments:
        grid: Bin centres, increasing, shape (D,).
        draws: Draws of the noiseless quantity, shape (S, D).
        value: Data, NaN where not seen, shape (D,).
        sigma: Standard errors of the data, shape (D,), or None.
        hidden: True where a seen cell was not shown to the model, shape (D,), or None.
        labels: Names and units of the axes.

    Raises:
        DataError: arrays of different lengths.

    Example:
        >>> import numpy as np
        >>> figure = spectrum(np.arange(4.0), np.zeros((9, 4)), np.array([0.1, np.nan, 0.2, 0.0]))
        >>> len(figure.axes)
        2
    """
    if draws.ndim != 2 or draws.shape[1] != len(grid) or value.shape != grid.shape:
        raise DataError(
            f"Expected draws (S, {len(grid)}) and data ({len(grid)},) on the grid; got {draws.shape} and "
            f"{value.shape}. Pass one object at a time."
        )
    with style():
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        low95, low68, middle, high68, high95 = np.quantile(draws, [0.025, 0.16, 0.5, 0.84, 0.975], axis=0)
        _shade_gaps((top, bottom), grid, ~np.isfinite(value))
        top.fill_between(grid, low95, high95, color=BLUE, alpha=0.16, lw=0, label="95 % band")
        top.fill_between(grid, low68, high68, color=BLUE, alpha=0.34, lw=0, label="68 % band")
        top.plot(grid, middle, color=BLUE, lw=1.1, label="median")
        scale = np.sqrt(draws.var(axis=0) + (0.0 if sigma is None else np.nan_to_num(sigma) ** 2))
        residual = (value - draws.mean(axis=0)) / np.where(scale > 0, scale, np.nan)
        kept_out = np.zeros(len(grid), bool) if hidden is None else hidden & np.isfinite(value)
        for mask, colour, name in ((~kept_out, INK, "data"), (kept_out, RED, "data kept from the model")):
            if np.isfinite(value[mask]).any():
                _points(top, grid, np.where(mask, value, np.nan), sigma, colour, name)
                bottom.plot(grid, np.where(mask, residual, np.nan), ".", ms=2.4, color=colour)
        bottom.axhspan(-2, 2, color=BLUE, alpha=0.10, lw=0)
        bottom.axhspan(-1, 1, color=BLUE, alpha=0.16, lw=0)
        largest = np.nanmax(np.abs(residual)) if np.isfinite(residual).any() else 0.0
        bottom.set_ylim(*(np.array([-1, 1]) * max(3.2, 1.1 * largest)))
        bottom.set_ylabel("residual / σ")
        bottom.set_xlabel(with_unit(labels.x, labels.x_unit))
        top.set(title=labels.title.replace("$", r"\$"), ylabel=with_unit(labels.y, labels.y_unit))
        top.set_ylim(*_limits(value, sigma, low95, high95))
        top.set_xlim(grid[0], grid[-1])
        figure.align_ylabels()
        figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=6, markerscale=2)
    return figure


def _points(axes: Axes, grid: FloatArray, value: FloatArray, sigma: FloatArray | None, colour: str, name: str) -> None:
    error = None if sigma is None else np.where(np.isfinite(sigma), sigma, 0.0)
    axes.errorbar(
        grid, value, yerr=error, fmt=".", ms=2.2, color=colour, elinewidth=0.5, ecolor=colour, alpha=0.65, label=name
    )


def _shade_gaps(panels: tuple[Axes, ...], grid: FloatArray, gap: BoolArray) -> None:
    middle = 0.5 * (grid[1:] + grid[:-1])
    edges = np.concatenate([grid[:1], middle, grid[-1:]])
    change = np.flatnonzero(np.diff(np.concatenate([[0], gap.astype(int), [0]])))
    for number, (start, stop) in enumerate(zip(change[::2], change[1::2], strict=True)):
        for position, axes in enumerate(panels):
            label = "not seen" if number == 0 and position == 0 else None
            axes.axvspan(float(edges[start]), float(edges[stop]), color=GAP, lw=0, zorder=0, label=label)


def _limits(value: FloatArray, sigma: FloatArray | None, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    # One wild pixel must not flatten the rest of the spectrum.
    data = value[np.isfinite(value)]
    bounds = [float(low.min()), float(high.max())]
    if len(data):
        error = 0.0 if sigma is None else float(np.nanmedian(sigma[np.isfinite(value)]))
        bounds = [
            min(bounds[0], float(np.quantile(data, 0.005)) - 2 * np.nan_to_num(error)),
            max(bounds[1], float(np.quantile(data, 0.995)) + 2 * np.nan_to_num(error)),
        ]
    pad = 0.04 * max(bounds[1] - bounds[0], 1e-12)
    return bounds[0] - pad, bounds[1] + pad
