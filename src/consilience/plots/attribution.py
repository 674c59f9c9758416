"""Who told what: shares of several sources in several quantities, and the steps of one prediction."""

from collections.abc import Mapping, Sequence

import numpy as np

from consilience.plots.style import BLUE, INK, MUTED, RED, Figure, style
from consilience.typing import FloatArray

__all__ = ["heat_map", "waterfall"]


def heat_map(value: FloatArray, rows: Sequence[str], columns: Sequence[str], label: str, title: str = "") -> Figure:
    """A table of numbers in colour, each written in its cell; NaN is blank.

    Arguments:
        value: Shape (R, C).
        rows: R names.
        columns: C names.
        label: What the numbers are, with their unit.
        title: Above the table.

    Example:
        >>> len(heat_map(np.array([[0.1, 0.9]]), ["image"], ["mass", "age"], "bits").axes)
        2
    """
    with style():
        figure = Figure(figsize=(2.2 + 0.75 * len(columns), 1.3 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        most = max(float(np.nanmax(np.abs(value))) if np.isfinite(value).any() else 0.0, 1e-12)
        signed = bool((value < 0).any())
        colours = {"cmap": "RdBu", "vmin": -most} if signed else {"cmap": "Blues", "vmin": 0.0}
        shown = axes.imshow(value, vmax=most, aspect="auto", **colours)
        for r, line in enumerate(value):
            for c, number in enumerate(line):
                if np.isfinite(number):
                    dark = abs(number) > 0.6 * most
                    axes.text(c, r, f"{number:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else INK)
        names = [name.replace("$", r"\$") for name in columns]
        axes.set_xticks(np.arange(len(columns)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(np.arange(len(rows)), [name.replace("$", r"\$") for name in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        figure.colorbar(shown, ax=axes, label=label)
    return figure


def waterfall(
    start: float, steps: Mapping[str, float], label: str, truth: float | None = None, title: str = ""
) -> Figure:
    """How sources move a prediction one after the other, the strongest first, from what was said without them.

    Arguments:
        start: What is said without any.
        steps: Move by each source, in the unit of ``label``.
        label: Of the axis.
        truth: A measured value, drawn beside.
        title: Above the figure.

    Example:
        >>> figure = waterfall(10.0, {"image": 0.4, "spectrum": -0.1}, "log M [solMass]", truth=10.25)
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['spectrum', 'image']
    """
    with style():
        figure = Figure(figsize=(4.4, 1.2 + 0.3 * len(steps)), layout="constrained")
        axes = figure.subplots()
        order = sorted(steps, key=lambda name: -abs(steps[name]))
        at = start
        for number, name in enumerate(order):
            place, step = len(order) - 1 - number, steps[name]
            axes.barh(place, step, left=at, color=BLUE if step >= 0 else RED, height=0.6)
            axes.vlines(at + step, place - 1 if number + 1 < len(order) else place - 0.45, place + 0.3, MUTED, lw=0.8)
            axes.annotate(
                f"{step:+.3g}", (max(at, at + step), place), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
            at += step
        axes.axvline(start, color=MUTED, ls=":", label=f"without any: {start:.4g}")
        axes.axvline(at, color=INK, label=f"with all: {at:.4g}")
        if truth is not None and np.isfinite(truth):
            axes.axvline(truth, color=RED, ls="--", label=f"measured: {truth:.4g}")
        axes.set_yticks(np.arange(len(order)), [name.replace("$", r"\$") for name in order[::-1]])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.use_sticky_edges = False
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return figure
