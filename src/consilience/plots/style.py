"""The one place where figures get their look: sizes, colours, fonts, and how they become bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "PAD", "Figure", "Labels", "png", "style", "svg", "with_unit"]

INK = "#1f2937"  # text, data
MUTED = "#9ca3af"
BLUE = "#1d4ed8"  # what the model says
RED = "#c2410c"  # the truth, and alarms
GAP = "#eef0f3"
PAD = 0.06  # inches around a saved figure
COLOURS = (BLUE, RED, "#047857", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f")  # each >= 4.5:1 on white

_RC: dict[Any, object] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "consilience",  # same figure, same bytes
    "svg.fonttype": "path",
}


@dataclass(frozen=True, slots=True)
class Labels:
    """What to write beside the axes of one figure."""

    x: str = ""
    y: str = ""
    title: str = ""
    x_unit: str = ""
    y_unit: str = ""


@contextmanager
def style() -> Iterator[None]:
    """The house style inside a ``with`` block; the caller's settings return afterwards."""
    with mpl.rc_context(_RC):
        yield


def with_unit(name: str, unit: str) -> str:
    """An axis label: the name with its unit in brackets, dollar signs kept literal.

    Example:
        >>> with_unit("wavelength", "Angstrom"), with_unit("redshift", "")
        ('wavelength [Angstrom]', 'redshift')
    """
    text = f"{name} [{unit}]" if unit else name
    return text.replace("$", r"\$")


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG bytes."""
    return _render(figure, "png", dpi)


def svg(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as SVG bytes without date or source; ``dpi`` is that of rasterised layers."""
    return _render(figure, "svg", dpi)


def _render(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    metadata: dict[str, str | None] = {"Date": None} if kind == "svg" else {"Software": None}
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=PAD, metadata=metadata)
    return buffer.getvalue()
