"""The layout of the Multimodal Universe: spectra and images nested in the rows of Parquet, or flat in HDF5.

In Parquet a row holds ``spectrum`` {flux, ivar, lsf_sigma, lambda, mask} and ``image`` {band, flux, ivar, mask,
psf_fwhm, scale}, structs of lists or lists of structs; in HDF5 these are arrays ``spectrum_flux``, ``image_array``.
Either way the columns are called ``spectrum.flux``, ``image.flux`` and so on, and one schema reads both::

    id = "object_id"
    [modalities.spectrum]
    column = "spectrum.flux"
    ivar = "spectrum.ivar"
    mask = "spectrum.mask"
    coord = "spectrum.lambda"
    unit = "1e-17 erg / (s cm2 Angstrom)"
    grid = { start = 3800, stop = 8400, size = 4000, spacing = "log", unit = "Angstrom" }
    [modalities.image]
    shape = [3, 64, 64]
    column = "image.flux[G, R, Z]"
    ivar = "image.ivar[G, R, Z]"
    mask = "not image.mask[G, R, Z]"

:func:`consilience.io.frames.framed` explains brackets and ``not``, which the image masks of HSC and the Legacy Surveys
need: they are true where a pixel is clean, those of spectra where it is bad. No file states a unit: the schema does.

References:
    The Multimodal Universe Collaboration 2024, arXiv:2412.02527; github.com/MultimodalUniverse.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from consilience.errors import DataError
from consilience.io import tables
from consilience.io.raw import RawColumn, RawTable, from_rows, guarded
from consilience.typing import IntArray, PathOrStr

__all__ = ["read_hdf5", "read_parquet"]

DAMAGED_PARQUET = (pa.ArrowException, OSError, UnicodeDecodeError)
DAMAGED_HDF5 = (OSError, ValueError, KeyError, TypeError, RuntimeError)
PREFIX = re.compile(r"^(spectrum|image)[._]")
SAYS = {  # field -> what its numbers say: padding has no wavelength, an inverse variance below zero is none
    "lambda": lambda values: np.where(values > 0, values, np.nan),
    "ivar": lambda values: np.maximum(values, 0),
}


def read_parquet(path: PathOrStr) -> RawTable:
    """The columns of a Parquet file, the fields of nested ones as ``spectrum.flux``.

    Lists of lists become arrays (N, …), NaN where one is missing; they are decoded when asked for.

    Raises:
        DataError: the file is not Parquet, or is damaged; later, lists of lists that differ in size.
    """
    with guarded(path, "Parquet", DAMAGED_PARQUET):
        if not any(_is_struct(field.type) for field in pq.read_schema(path)):
            return tables.read_parquet(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
    pairs = zip(table.schema, table.columns, strict=True)
    rows = np.arange(table.num_rows)
    leaves = {field.name: (field, column) for pair in pairs for field, column in _leaves(*pair)}

    def decoded(name: str) -> RawColumn:
        field, column = leaves[name]
        deep = _is_deep(column)
        only = pa.Table.from_arrays([column.slice(0, 0) if deep else column], schema=pa.schema([field]))
        with guarded(path, "Parquet", DAMAGED_PARQUET):
            found = tables.raw_arrow(only, str(path)).columns[name]
            return replace(found, values=_dense(column, rows, f"{name!r} of {path}")) if deep else found

    return RawTable(_Columns(leaves, decoded), table.num_rows, str(path))


def read_hdf5(path: PathOrStr) -> RawTable:
    """The arrays of an HDF5 file as columns, ``spectrum_flux`` as ``spectrum.flux``; read when asked for.

    Arrays of other names keep theirs, so a stack of images from anywhere is ``column = "images"``. Groups, single
    numbers and records are left out.

    Raises:
        DataError: the file is not HDF5, is damaged or holds no arrays, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("Expected h5py to read HDF5; it is not installed: pip install h5py.") from error

    def decoded(name: str) -> RawColumn:
        with guarded(f"{path}, {name}", "HDF5", DAMAGED_HDF5), h5py.File(path, "r") as file:
            item: Any = file[name]
            if h5py.check_string_dtype(item.dtype):
                words = item.asstr(errors="replace")[...]
                return RawColumn(words if words.ndim == 1 else words.astype(np.str_))
            return RawColumn(from_rows(item[...]) if item.dtype == object else item[...])

    with guarded(path, "HDF5", DAMAGED_HDF5), h5py.File(path, "r") as file:
        arrays: dict[str, Any] = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        lengths = {name: len(item) for name, item in arrays.items() if item.ndim and item.dtype.kind in "biufSO"}
        if not lengths:
            raise ValueError("no arrays in it")
    return RawTable(_Columns(lengths, decoded), Counter(lengths.values()).most_common(1)[0][0], str(path))


class _Columns(Mapping[str, RawColumn]):
    """Columns under the names of the layout, each decoded when it is first asked for."""

    def __init__(self, names: Iterable[str], decoded: Callable[[str], RawColumn]) -> None:
        dotted = {PREFIX.sub(r"\1.", name): name for name in names}
        if "image.array" in dotted:  # the flux, in older files
            dotted["image.flux"] = dotted.pop("image.array")
        self._names, self._decoded, self._known = dotted, decoded, dict[str, RawColumn]()

    def __getitem__(self, name: str) -> RawColumn:
        if name not in self._known:
            column = self._decoded(self._names[name])
            says = SAYS.get(name.rpartition(".")[2]) if PREFIX.match(name) else None
            if says is not None:
                rows = column.values
                column = replace(column, values=from_rows(map(says, rows)) if column.ragged else says(rows))
            self._known[name] = column
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or (_is_list(kind) and pa.types.is_struct(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_deep(column: pa.ChunkedArray) -> bool:
    """True for lists of lists, and for lists of text of one length, such as bands."""
    kind = column.type
    if not _is_list(kind) or not _is_text(kind.value_type):
        return _is_list(kind) and _is_list(kind.value_type)
    return len(set().union(*map(_lengths, column.chunks)) - {0}) <= 1


def _leaves(field: pa.Field, column: pa.ChunkedArray) -> Iterator[tuple[pa.Field, pa.ChunkedArray]]:
    """The column, or those of its fields; a list of structs is a struct of lists."""
    if not _is_struct(field.type):
        yield field, column
        return
    inside = field.type.value_type if _is_list(field.type) else field.type
    for at, child in enumerate(inside):
        if _is_list(field.type):
            child = child.with_type(pa.large_list(child.type))
            chunks = [_relisted(chunk, chunk.flatten().flatten()[at]) for chunk in column.chunks]
        else:
            chunks = [chunk.flatten()[at] for chunk in column.chunks]
        yield from _leaves(child.with_name(f"{field.name}.{child.name}"), pa.chunked_array(chunks, child.type))


def _relisted(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Other values in lists of the same lengths."""
    ends = np.concatenate([[0], np.cumsum(_lengths(lists))])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)


def _lengths(lists: pa.Array) -> IntArray:
    return np.asarray(pc.fill_null(pc.call_function("list_value_length", [lists]), 0)).astype(np.int64)


def _dense(column: pa.ChunkedArray, rows: IntArray, what: str) -> NDArray[Any]:
    """Lists of lists of one size as an array (N, …), NaN or no text where a list is missing.

    ``rows`` are the rows of the table that the lists belong to.
    """
    if not _is_list(column.type):
        text = _is_text(column.type)
        filled = pc.fill_null(column, "") if text else column
        values = tables.raw_arrow(pa.Table.from_arrays([filled], [what]), what).columns[what].values
        return values.astype(np.str_) if text else values
    lengths = np.concatenate([np.empty(0, np.int64), *map(_lengths, column.chunks)])
    there = lengths > 0
    size = int(lengths[there][0]) if there.any() else 0
    wrong = np.flatnonzero(there & (lengths != size))
    if len(wrong):
        raise DataError(
            f"Expected lists of one size in column {what}; got {size} and {lengths[wrong[0]]} (row {rows[wrong[0]]}). "
            "Pad or cut them to one size."
        )
    inside = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    inner = _dense(inside, np.repeat(rows, lengths) if _is_list(inside.type) else rows, what)
    found = inner.reshape(int(there.sum()), size, *inner.shape[1:])
    if there.all():
        return found
    kind = found.dtype if found.dtype.kind in "fU" else np.dtype(np.float64)
    full = np.full((len(rows), *found.shape[1:]), "" if kind.kind == "U" else np.nan, kind)
    full[there] = found
    return full
