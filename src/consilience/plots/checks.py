"""Pictures of whether error bars can be believed: coverage, PIT, predicted against true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consilience.plots.style import BLUE, INK, MUTED, RED, style, with_unit
from consilience.typing import FloatArray

__all__ = ["CoverageBand", "calibration", "joint_coverage", "predicted_vs_true"]

BARS = 500  # objects of a panel that show an error bar, about


@dataclass(frozen=True, slots=True)
class CoverageBand:
    """Where the coverage of one quantity would lie if its posteriors were right.

    ``levels``, ``low`` and ``high`` have shape (K,); ``pit_low`` and ``pit_high`` bound the height of each of ``bins``.
    """

    levels: FloatArray
    low: FloatArray
    high: FloatArray
    pit_low: float
    pit_high: float
    bins: int


def calibration(pit: Mapping[str, FloatArray], bands: Mapping[str, CoverageBand], confidence: float) -> Figure:
    """Coverage minus nominal level (above) and PIT histogram (below), one column per quantity, with their bands.

    Arguments:
        pit: PIT values of each quantity, shape (N,), NaN where not scored.
        bands: Simultaneous bands of each quantity.
        confidence: Confidence of the bands, for the legend.

    Example:
        >>> band = CoverageBand(np.array([0.5, 0.9]), np.array([0.4, 0.8]), np.array([0.6, 1.0]), 0.5, 1.5, 10)
        >>> len(calibration({"x": np.linspace(0, 1, 50)}, {"x": band}, 0.99).axes)
        2
    """
    names = list(pit)
    with style():
        figure = Figure(figsize=(max(2.35 * len(names), 3.6) + 0.4, 4.4), layout="constrained")
        panels = figure.subplots(2, len(names), squeeze=False, sharey="row")
        for column, name in enumerate(names):
            u, band = pit[name][np.isfinite(pit[name])], bands[name]
            _coverage(panels[0, column], u, band)
            _histogram(panels[1, column], u, band)
            panels[0, column].set_title(f"{name.replace('$', chr(92) + '$')}  (n = {len(u)})")
            panels[0, column].set_xlabel("nominal level")
            panels[1, column].set_xlabel("PIT")
        panels[0, 0].set_ylabel("coverage − nominal [points]")
        panels[1, 0].set_ylabel("PIT density")
        handles, texts = panels[0, 0].get_legend_handles_labels()
        texts = [text.format(100 * confidence) for text in texts]
        figure.legend(handles, texts, loc="outside lower center", ncols=3 if len(names) > 1 else 1)
    return figure


def joint_coverage(u: FloatArray, band: CoverageBand, confidence: float, what: str) -> Figure:
    """Coverage minus nominal level of joint posteriors, and the histogram of u (N,), each with its band.

    Arguments:
        u: Uniform if posteriors are right; a region of content l holds the truth where u is at most l.
        band: Simultaneous bands.
        confidence: Their confidence, for the legend.
        what: u in words.

    Example:
        >>> band = CoverageBand(np.array([0.5, 0.9]), np.array([0.4, 0.8]), np.array([0.6, 1.0]), 0.5, 1.5, 10)
        >>> len(joint_coverage(np.linspace(0, 1, 50), band, 0.99, "share of draws nearer").axes)
        2
    """
    with style():
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _coverage(left, 0.5 + 0.5 * u, band)  # regions grow from the reference, not from the middle
        _histogram(right, u, band)
        left.set(xlabel="nominal level", ylabel="coverage − nominal [points]")
        right.set(xlabel=what, ylabel="density")
        handles, texts = left.get_legend_handles_labels()
        figure.legend(handles, [text.format(100 * confidence) for text in texts], loc="outside lower center", ncols=3)
        figure.suptitle(f"joint posteriors (n = {len(u)})")
    return figure


def predicted_vs_true(
    truth: Mapping[str, FloatArray], mean: Mapping[str, FloatArray], sd: Mapping[str, FloatArray], units: Sequence[str]
) -> Figure:
    """Posterior mean ± one standard deviation against the measured value, one panel per quantity.

    All arrays have shape (N,); NaN rows are left out. Of more than ``BARS`` objects, about so many, spread over the
    table, have bars.

    Example:
        >>> x = {"mass": np.arange(3.0)}
        >>> len(predicted_vs_true(x, x, {"mass": np.ones(3)}, ["kg"]).axes)
        1
    """
    names = list(truth)
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    with style():
        figure = Figure(figsize=(max(2.5 * columns, 3.4), 2.6 * rows + 0.2), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name, unit in zip(panels, names, units, strict=False):
            use = np.isfinite(truth[name]) & np.isfinite(mean[name])
            x, y, error = truth[name][use], mean[name][use], sd[name][use]
            alpha = float(np.clip(12 / np.sqrt(max(len(x), 1)), 0.25, 0.8))
            bars = slice(None, None, -(-len(x) // BARS) or 1)
            axes.plot(x, y, ".", ms=3, mew=0, color=BLUE, alpha=alpha, rasterized=True)
            axes.errorbar(
                x[bars],
                y[bars],
                yerr=error[bars],
                fmt=".",
                ms=3,
                mew=0,
                color=BLUE,
                elinewidth=0.6,
                alpha=alpha,
                label="mean ± sd",
                rasterized=True,
            )
            if len(x):
                ends = np.quantile(np.concatenate([x, y]), [0.0, 1.0])
                axes.plot(ends, ends, color=RED, lw=1, label="equal", zorder=3)
            axes.set(xlabel=with_unit(f"measured {name}", unit), ylabel=with_unit("predicted", unit))
            axes.locator_params(nbins=5)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        panels[0].legend(loc="upper left")
    return figure


def _coverage(axes: Axes, u: FloatArray, band: CoverageBand) -> None:
    fine = np.linspace(0.02, 0.98, 49)
    distance = np.sort(2 * np.abs(u - 0.5))
    rows = max(len(u), 1)

    def covered(level: FloatArray) -> FloatArray:
        return np.searchsorted(distance, level, side="right") / rows

    at = covered(band.levels)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.vlines(
        band.levels,
        100 * (band.low - band.levels),
        100 * (band.high - band.levels),
        color=BLUE,
        alpha=0.22,
        lw=7,
        label="simultaneous {:g} % band",
    )
    axes.plot(fine, 100 * (covered(fine) - fine), color=INK, lw=1, label="observed")
    outside = (at < band.low) | (at > band.high)
    offset = 100 * (at - band.levels)
    axes.plot(band.levels[~outside], offset[~outside], "o", ms=4, color=INK, label="scored level")
    if outside.any():
        axes.plot(band.levels[outside], offset[outside], "D", ms=5, color=RED, label="outside the band")
    axes.set_xlim(0, 1)


def _histogram(axes: Axes, u: FloatArray, band: CoverageBand) -> None:
    axes.axhspan(band.pit_low, band.pit_high, color=BLUE, alpha=0.16, lw=0)
    axes.axhline(1, color=MUTED, lw=0.8)
    axes.hist(u, bins=band.bins, range=(0, 1), density=True, histtype="step", color=INK, lw=1.1)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
