"""Training history, scores along a grid, and methods side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from consilience.errors import DataError
from consilience.plots.style import BLUE, COLOURS, INK, MUTED, Labels, style, with_unit
from consilience.typing import FloatArray

__all__ = ["Profile", "Trend", "curve_families", "history", "methods", "profiles", "trends"]


def history(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Objective of training and validation against the step, and the terms it is made of.

    Stages follow each other, each with a dotted line where it begins.

    Arguments:
        rows: Each with "step" (of its stage), and any of "stage", "train/total", "validation/total", "train/<term>".

    Raises:
        DataError: no rows, or rows without a step.

    Example:
        >>> len(history([{"step": 0, "train/total": 2.0}, {"step": 1, "train/total": 1.0}]).axes)
        1
    """
    if not rows or "step" not in rows[0]:
        raise DataError(f"Expected a training history whose rows have a 'step'; got {len(rows)} rows.")
    rows, begins = _one_axis(rows)
    keys = sorted({key for row in rows for key in row})
    totals = [key for key in ("train/total", "validation/total") if key in keys]
    terms = [key for key in keys if key.startswith("train/") and key != "train/total"]
    with style():
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        panels = figure.subplots(1, 2 if terms else 1, squeeze=False)[0]
        for number, key in enumerate(totals):
            _curve(panels[0], rows, key, COLOURS[number], key.removesuffix("/total"))
        panels[0].set(title="objective", xlabel="step", ylabel="nats per object")
        if terms:
            for number, key in enumerate(terms):
                _curve(panels[1], rows, key, COLOURS[number % len(COLOURS)], key.removeprefix("train/"))
            # Terms differ by orders of magnitude and may be negative.
            panels[1].set_yscale("symlog", linthresh=1.0)
            panels[1].set(title="terms (training)", xlabel="step", ylabel="nats per object")
        for axes in panels:
            axes.margins(x=0.01)
            if axes.get_lines():
                axes.legend(loc="best")
            for step in begins:
                axes.axvline(step, color=MUTED, lw=0.8, ls=":")
    return figure


def _one_axis(rows: Sequence[Mapping[str, float]]) -> tuple[list[dict[str, float]], list[float]]:
    """The rows with steps counted over all stages, and the step at which each stage but the first begins."""
    found: list[dict[str, float]] = []
    begins: list[float] = []
    for row in rows:
        if found and row.get("stage", 0.0) != found[-1].get("stage", 0.0):
            begins.append(found[-1]["step"])
        found.append({**row, "step": row["step"] + (begins[-1] if begins else 0.0)})
    return found, begins


@dataclass(frozen=True, slots=True)
class Profile:
    """One score per cell of a modality: on a grid ``x`` (D,), or under the names of its cells."""

    value: FloatArray
    x: FloatArray | None = None
    names: tuple[str, ...] = ()
    labels: Labels = Labels()


def profiles(parts: Sequence[Profile], target: float | None = None) -> Figure:
    """A score per cell, one panel per modality; ``target`` is the value that a right model has.

    Example:
        >>> len(profiles([Profile(np.ones(3), names=("a", "b", "c"))], target=1.0).axes)
        1
    """
    with style():
        figure = Figure(figsize=(7.6, 2.2 * len(parts) + 0.2), layout="constrained")
        panels = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
        for axes, part in zip(panels, parts, strict=True):
            if target is not None:
                axes.axhline(target, color=MUTED, lw=1, ls="--")
            if part.x is not None:
                axes.plot(part.x, part.value, color=BLUE, lw=1)
                axes.margins(x=0.01)
            else:
                position = np.arange(len(part.value))
                axes.plot(position, part.value, "o", color=BLUE)
                names = part.names if len(part.names) == len(part.value) <= 24 else ()
                if names:
                    axes.set_xticks(position, [name.replace("$", r"\$") for name in names])
                    axes.set_xlim(-0.6, len(part.value) - 0.4)
            top = max([v for v in (*part.value, target) if v is not None and np.isfinite(v)], default=1.0)
            axes.set_ylim(0, 1.12 * top or 1.0)
            axes.set(
                title=part.labels.title.replace("$", r"\$"),
                xlabel=with_unit(part.labels.x, part.labels.x_unit),
                ylabel=with_unit(part.labels.y, part.labels.y_unit),
            )
    return figure


@dataclass(frozen=True, slots=True)
class Trend:
    """Quantities along ``x`` (L,): ``truth[name]`` and ``found[name]``, each (L,) under the same names."""

    x: FloatArray
    truth: Mapping[str, FloatArray]
    found: Mapping[str, FloatArray]
    labels: Labels = Labels()
    log: bool = False  # whether the quantities are shown on a logarithmic axis


def trends(parts: Sequence[Trend], names: tuple[str, str] = ("true", "model")) -> Figure:
    """What is true (lines) and what was found (points, dashes where they are many), one panel per part.

    Arguments:
        parts: One panel each.
        names: What the legend calls the two.

    Example:
        >>> x = np.arange(3.0)
        >>> len(trends([Trend(x, {"a": x}, {"a": x + 0.1})]).axes)
        1
    """
    with style():
        figure = Figure(figsize=(3.4 * len(parts), 3.0), layout="constrained")
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            look = {"ls": "--", "lw": 1.0} if len(part.x) > 24 else {"marker": "o", "ls": "", "ms": 5}
            for number, (name, truth) in enumerate(part.truth.items()):
                colour = COLOURS[number % len(COLOURS)]
                label = name.replace("$", r"\$")
                axes.plot(part.x, truth, color=colour, alpha=0.55, label=f"{label}, {names[0]}")
                axes.plot(part.x, part.found[name], color=colour, label=f"{label}, {names[1]}", **look)
            axes.set(
                title=part.labels.title.replace("$", r"\$"),
                xlabel=with_unit(part.labels.x, part.labels.x_unit),
                ylabel=with_unit(part.labels.y, part.labels.y_unit),
                yscale="log" if part.log else "linear",
            )
            if part.log:  # a decade at most: powers of ten would say too little
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
            axes.margins(x=0.03)
            axes.legend(loc="best", fontsize=7)
    return figure


def methods(
    scores: Mapping[str, Mapping[str, FloatArray]],
    columns: Sequence[str],
    highlight: str,
    best: str = "lower is better",
) -> Figure:
    """Scores of several methods: a row of panels per score, a panel per quantity, a dot per method.

    Arguments:
        scores: ``scores[score][method]`` with one number per column, shape (L,).
        columns: L names of quantities.
        highlight: The method drawn in the first colour.
        best: How to read the axis.

    Example:
        >>> scores = {"RMSE": {"model": np.array([0.1]), "mean": np.array([0.4])}}
        >>> len(methods(scores, ["mass"], "model").axes)
        1
    """
    with style():
        width = max((2.3 if len(columns) <= 4 else 1.75) * len(columns), 4.2)
        figure = Figure(
            figsize=(width, (0.9 + 0.2 * max(map(len, scores.values()))) * len(scores) + 0.3), layout="constrained"
        )
        panels = figure.subplots(len(scores), len(columns), squeeze=False, sharey=True)
        for row, (score, by_method) in enumerate(scores.items()):
            names = list(by_method)[::-1]
            for column, quantity in enumerate(columns):
                axes = panels[row, column]
                value = np.array([by_method[name][column] for name in names])
                colour = [BLUE if name == highlight else INK for name in names]
                start = np.nanmin(value) if np.isfinite(value).any() else 0.0
                axes.hlines(np.arange(len(names)), start, value, MUTED, lw=1)
                axes.scatter(value, np.arange(len(names)), c=colour, s=28, zorder=3)
                axes.set_yticks(np.arange(len(names)), names)
                axes.set_ylim(-0.6, len(names) - 0.4)
                axes.margins(x=0.15)
                axes.locator_params(axis="x", nbins=3)
                axes.set_title(quantity.replace("$", r"\$") if row == 0 else "")
                axes.set_xlabel(score)
        figure.supxlabel(best, fontsize=8, color=MUTED)
    return figure


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], key: str, colour: str, name: str) -> None:
    there = [(row["step"], row[key]) for row in rows if key in row and np.isfinite(row[key])]
    if there:
        step, value = np.array(there, dtype=float).T
        axes.plot(step, value, color=colour, label=name)
        if len(step) > 20:
            # The first steps are often orders of magnitude away; the story is in the rest.
            low, high = np.quantile(value[len(value) // 20 :], [0.0, 1.0])
            pad = 0.06 * max(high - low, 1e-12)
            bottom, top = axes.get_ylim() if axes.get_label() == "scaled" else (np.inf, -np.inf)
            axes.set_ylim(min(bottom, low - pad), max(top, high + pad))
            axes.set_label("scaled")


def curve_families(
    lines: FloatArray, x: FloatArray, panels: Sequence[str], names: Sequence[str], labels: Labels
) -> Figure:
    """Curves of ordered settings, one panel per family: from the first colour of a scale to its last.

    Arguments:
        lines: Shape (R, K, D).
        x: Shape (D,).
        panels: R titles.
        names: K names of the settings.
        labels: Of the axes and the figure.

    Example:
        >>> len(curve_families(np.zeros((2, 3, 4)), np.arange(4.0), ["a", "b"], ["-", "0", "+"], Labels("x")).axes)
        2
    """
    with style():
        figure = Figure(figsize=(7.2, 0.8 + 1.5 * len(panels)), layout="constrained")
        figure.suptitle(labels.title.replace("$", r"\$"), fontsize=10)
        colours = colormaps["coolwarm"](np.linspace(0, 1, len(names)))
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axis, family, panel in zip(axes, lines, panels, strict=True):
            for curve, colour, name in zip(family, colours, names, strict=True):
                axis.plot(x, curve, color=colour, lw=1.0, marker="o" if len(x) <= 24 else "", ms=3, label=name)
            axis.set_title(panel.replace("$", r"\$"), fontsize=9)
            axis.set_ylabel(with_unit(labels.y, labels.y_unit), fontsize=8)
            axis.margins(x=0.02)
        axes[-1].set_xlabel(with_unit(labels.x, labels.x_unit))
        axes[0].legend(loc="best", fontsize=6, ncols=2)
    return figure
