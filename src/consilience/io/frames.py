"""Images in the bands, the order and the size that a schema asks for."""

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.data.images import central
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.io.raw import RawColumn, RawTable, from_rows

__all__ = ["framed", "pictures"]

SELECTOR = re.compile(r"(not )?([^\[\]]+)(?:\[([^\[\]]*)\])?")


def framed(table: RawTable, schema: Schema) -> RawTable:
    """The table, with what the schema calls ``NAME.FIELD[G, R, Z]`` or ``not NAME.FIELD`` as columns of their own.

    A column NAME.FIELD with bands (a text column NAME.band beside it, shape (N, B)) gives the bands in brackets, in
    their order, whatever the file's; without brackets, all of them if every row has the same. ``not`` is for masks
    that are true where a cell may be used. A row without bands is unseen. Images of a modality with three axes are cut
    to the middle of the schema's size, with or without bands of that kind (:func:`pictures`).

    Raises:
        DataError: a row without such a band, other bands than in the first row, or smaller images; names the row.
        SchemaError: brackets after a column without bands, or one column in two sizes.

    Example:
        >>> bands, flux = np.array([["g", "r"], ["r", "g"]]), np.array([[1.0, 2.0], [2.0, 1.0]])
        >>> table = RawTable({"image.band": RawColumn(bands), "image.flux": RawColumn(flux)}, 2, "a.parquet")
        >>> schema = Schema(modalities=(ModalitySpec(name="m", shape=(1,), column="image.flux[r]"),))
        >>> framed(table, schema).numbers("image.flux[r]").tolist()
        [[2.0], [2.0]]
    """
    found: dict[str, RawColumn] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in schema.modalities if table.rows else ():
        value = spec.column or spec.name
        for name in filter(None, (value, spec.sigma, spec.ivar, spec.mask)):
            if shapes.setdefault(name, spec.shape) != spec.shape and name in found:
                raise SchemaError(
                    f"Expected column {name!r} in one size; got {shapes[name]} and {spec.shape}. "
                    "Read the file once for each size and join."
                )
            column = _selected(table, name, spec, every=name != value)
            if column is not None:
                found[name] = column
    columns: Mapping[str, RawColumn] = ChainMap(found, table.columns)  # type: ignore[arg-type] - it is only read
    return replace(table, columns=columns) if found else table


def pictures(images: NDArray[Any], shape: Sequence[int], where: str, *, every: bool) -> NDArray[Any]:
    """The middle of images in a schema's layout, a view: shape (N, bands, height, width) for ``shape`` without N.

    Arguments:
        images: Shape (N, bands, H, W); (N, H, W, bands) where only the last axis has as many; or (N, H, W).
        shape: Bands, height and width that a schema asks for.
        where: The column and its file, for the message.
        every: (N, H, W) serves all bands, as masks and error bars may; else it is one band.

    Raises:
        DataError: images that are smaller.

    Example:
        >>> pictures(np.zeros((2, 69, 69, 3), np.uint8), (3, 64, 64), "images", every=False).shape
        (2, 3, 64, 64)
    """
    bands, height, width = shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] != bands and images.shape[3] == bands:
        images = np.moveaxis(images, 3, 1)
    try:
        found = central(images, height, width)
    except DataError as error:
        raise DataError(f"{where}: {error} Declare a smaller shape.") from error
    return np.broadcast_to(found, (len(found), bands, height, width)) if every and found.shape[1] == 1 else found


def _selected(table: RawTable, name: str, spec: ModalitySpec, *, every: bool) -> RawColumn | None:
    """The column that a selector means; None where it is none, or where the column is not there."""
    match = SELECTOR.fullmatch(name)
    if match is None:
        return None
    negated, base, listed = match.groups()
    beside = f"{base.rpartition('.')[0]}.band"
    banded = beside in table.columns and beside != base
    imaged = len(spec.shape) == 3
    if base not in table.columns or (name == base and not banded and not imaged):
        return None
    if listed is not None and not banded:
        raise SchemaError(
            f"Expected a column {beside!r} for {name!r}; got none in {table.source}. Leave out the brackets."
        )
    column = table.columns[base]
    values, where = column.values, f"column {base!r} of {table.source}"
    if banded:
        wanted = None if listed is None else [band.strip() for band in listed.split(",")]
        values = _in_bands(values, table.columns[beside].values, wanted, spec, where)
    elif imaged and values.ndim in (3, 4):
        values = pictures(values, spec.shape, where, every=every)
        if name == base and values.shape == column.values.shape:
            return None
    if negated:  # NaN: nobody says that the cell may be used
        values = from_rows(~(row > 0) for row in values) if column.ragged else ~(values > 0)
    return replace(column, values=values)


def _in_bands(
    values: NDArray[Any], bands: NDArray[Any], wanted: Sequence[str] | None, spec: ModalitySpec, where: str
) -> NDArray[Any]:
    """Values (N, W, …) in the wanted bands, of values (N, B, …) in the bands (N, B)."""
    if values.ndim == 3 and len(spec.shape) == 3:
        values = np.broadcast_to(values[:, None], (len(values), bands.shape[-1], *values.shape[1:]))
    if bands.ndim != 2 or values.shape[:2] != bands.shape:
        raise DataError(f"Expected bands of shape {values.shape[:2]} for {where}; got {bands.shape}. Mend the file.")
    if values.ndim == 4 and len(spec.shape) == 3:
        values = pictures(values, (values.shape[1], *spec.shape[1:]), where, every=False)
    there = (bands != "").any(axis=1)
    if not there.any():
        raise DataError(f"Expected bands for {where}; got none in any row. Mend the file.")
    order = list(bands[there][0]) if wanted is None else list(wanted)
    place = bands[:, :, None] == np.array(order)
    wrong = (place.sum(axis=1) != 1).any(axis=1) if wanted is not None else (bands != np.array(order)).any(axis=1)
    rows = np.flatnonzero(wrong & there)
    if len(rows):
        row = rows[0]
        raise DataError(
            f"Expected the bands {', '.join(order)} in {where}; got {', '.join(bands[row])} in row {row}. "
            "Name bands and order in brackets after the column, as the file spells them."
        )
    chosen = place.argmax(axis=1)
    return np.take_along_axis(values, chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)), axis=1)
