"""What a drawn figure says and where: so that a page can tell the values under a pointer without drawing them anew."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, ScalarFormatter

from consilience.plots.style import PAD, style
from consilience.typing import FloatArray

__all__ = ["Readings", "readings"]

MOST = 400  # points of one line, cloud or picture


@dataclass(frozen=True, slots=True)
class Readings:
    """The points of one line, cloud, picture or set of bars.

    Arguments:
        name: What they are called in the legend, or nothing.
        axes: Names of what is told of each point, (K,).
        place: Position in the saved figure, (P, 2): fractions of its width from the left and of its height from above.
        told: P tuples of K texts.
    """

    name: str
    axes: tuple[str, ...]
    place: FloatArray
    told: tuple[tuple[str, ...], ...]


def readings(figure: Figure) -> tuple[Readings, ...]:
    """What can be read off the markers, lines, bars and pictures of a figure, at most 400 points of each.

    Only what is drawn in the coordinates of its panel counts: not the lines across it.

    Example:
        >>> from consilience.plots import Labels, latent_map
        >>> found, _ = readings(latent_map(np.eye(3, 2), np.array([1.0, 2.0, np.nan]), Labels("z1", "z2"), "redshift"))
        >>> found.name, found.axes, found.told
        ('unknown', ('z1', 'z2'), (('0', '0'),))
    """
    with style():
        figure.draw_without_rendering()
        box = figure.get_tightbbox().padded(PAD)
    corner, size = np.array([box.x0, box.y1]), np.array([box.width, -box.height])
    found = []
    for axes in figure.axes:
        if not axes.get_visible() or not axes.axison:
            continue
        for name, keys, points, told in _drawn(axes):
            with np.errstate(all="ignore"):
                pixels = np.asarray(axes.transData.transform(points))
            low, high = axes.bbox.padded(1).get_points()
            keep = np.flatnonzero(((pixels >= low) & (pixels <= high)).all(axis=1))
            if len(keep):
                place = (pixels[keep] / figure.dpi - corner) / size
                found.append(Readings(name, keys, place, tuple(told[i] for i in keep)))
    return tuple(found)


Told = list[tuple[str, ...]]


def _drawn(axes: Axes) -> Iterable[tuple[str, tuple[str, ...], FloatArray, Told]]:
    """Name, what is told, positions (P, 2) in data coordinates and texts of everything that can be read."""
    keys = (axes.get_xlabel() or "x", axes.get_ylabel() or "y")
    keys = tuple(key.replace(r"\$", "$") for key in keys)
    for line in axes.lines:
        points = np.asarray(line.get_xydata(), dtype=float)
        marked = line.get_marker() not in (None, "", "None", "none", " ")
        if line.get_transform() == axes.transData and (marked or len(points) > 2):
            points = points[:: _stride(len(points))]
            yield _name(line), keys, points, _positions(axes, points)
    for cloud in (one for one in axes.collections if isinstance(one, PathCollection)):
        if cloud.get_offset_transform() == axes.transData:
            points = np.asarray(np.ma.filled(cloud.get_offsets(), np.nan), dtype=float)
            points = points[:: _stride(len(points))]
            colour, label = cloud.get_array(), _scale(cloud)
            told = _positions(axes, points)
            if label and colour is not None:
                values = np.ma.filled(colour.astype(float), np.nan)[:: _stride(len(colour))]
                told = [(*texts, _number(value)) for texts, value in zip(told, values, strict=True)]
                yield _name(cloud), (*keys, label), points, told
            else:
                yield _name(cloud), keys, points, told
    for picture in axes.images:
        yield from _cells(axes, picture, keys)
    for bars in (one for one in axes.containers if isinstance(one, BarContainer)):
        yield _name(bars), keys, *_bars(axes, bars)


def _cells(
    axes: Axes, picture: AxesImage, keys: tuple[str, ...]
) -> Iterable[tuple[str, tuple[str, ...], FloatArray, Told]]:
    """The cells of a picture of few; one of many is a photograph, not a table."""
    value = picture.get_array()
    label = _scale(picture) or "value"
    if value is None or value.ndim != 2 or value.size > MOST:
        return
    left, right, bottom, top = picture.get_extent()
    rows, columns = value.shape
    y = top + (bottom - top) * (np.arange(rows) + 0.5) / rows
    x = left + (right - left) * (np.arange(columns) + 0.5) / columns
    points = np.stack(np.broadcast_arrays(x[None], y[:, None]), axis=-1).reshape(-1, 2)
    values = np.ma.filled(value.astype(float), np.nan).ravel()
    told = [(*texts, _number(v)) for texts, v in zip(_positions(axes, points), values, strict=True)]
    yield "", (*keys, label), points, told


def _bars(axes: Axes, bars: BarContainer) -> tuple[FloatArray, Told]:
    """Middles of the bars; along them their length is told, since they may start anywhere."""
    across = bars.orientation == "horizontal"
    boxes = [patch for patch in bars if isinstance(patch, Rectangle)]
    corner = np.array([patch.get_xy() for patch in boxes], dtype=float)
    size = np.array([(patch.get_width(), patch.get_height()) for patch in boxes], dtype=float)
    points = corner + size / 2
    told = []
    for texts, (width, height) in zip(_positions(axes, points), size, strict=True):
        told.append((_number(width), texts[1]) if across else (texts[0], _number(height)))
    return points, told


def _positions(axes: Axes, points: FloatArray) -> Told:
    read = [_reader(axis) for axis in (axes.xaxis, axes.yaxis)]
    return [(read[0](x), read[1](y)) for x, y in points.tolist()]


def _reader(axis: Axis) -> Callable[[float], str]:
    """Text of a position on an axis: the name of the tick next to it where ticks have names."""
    locator, names = axis.get_major_locator(), axis.get_major_formatter()
    if not isinstance(locator, FixedLocator) or isinstance(names, ScalarFormatter):
        return _number
    places = np.asarray(axis.get_majorticklocs(), dtype=float)
    texts = names.format_ticks(places.tolist())

    def read(value: float) -> str:
        nearest = int(np.argmin(np.abs(places - value)))
        named = texts and texts[nearest] and abs(places[nearest] - value) <= 0.5
        return texts[nearest] if named else _number(value)

    return read if len(places) else _number


def _name(artist: Artist | BarContainer) -> str:
    name = str(artist.get_label() or "")
    return "" if name.startswith("_") else name.replace(r"\$", "$")


def _scale(artist: PathCollection | AxesImage) -> str:
    """Label of the colour bar."""
    bar = getattr(artist, "colorbar", None)
    return "" if bar is None else (bar.ax.get_ylabel() or bar.ax.get_xlabel()).replace(r"\$", "$")


def _stride(count: int) -> int:
    return max(1, -(-count // MOST))


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "–"
