"""Parquet, CSV and ECSV."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from consilience.data.observations import Observations
from consilience.data.samples import Samples
from consilience.errors import DataError
from consilience.io.atomic import atomic_path
from consilience.io.native import declared_columns, to_columns
from consilience.io.raw import SCHEMA_KEY, RawColumn, RawTable, from_rows, guarded, parsed_schema, schema_text
from consilience.typing import PathOrStr

__all__ = [
    "arrow_table",
    "raw_arrow",
    "read_csv",
    "read_ecsv",
    "read_parquet",
    "write_csv",
    "write_ecsv",
    "write_parquet",
]

ROWS_KEY = "consilience.rows"
ROW_GROUP = 4096  # rows that are read together when a file is streamed


def read_parquet(path: PathOrStr) -> RawTable:
    """The columns of a Parquet file; units and UCDs come from the fields' metadata.

    Raises:
        DataError: the file is not Parquet, or is damaged.
    """
    import pyarrow.parquet as pq

    with guarded(path, "Parquet", (pa.ArrowException, OSError, UnicodeDecodeError)):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
        return raw_arrow(table, str(path))


def write_parquet(content: Observations | Samples, path: PathOrStr) -> None:
    """Observations as columns with the schema in the metadata, or draws as list columns."""
    import pyarrow.parquet as pq

    table = content.to_arrow() if isinstance(content, Samples) else arrow_table(to_columns(content, str(path)))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True, row_group_size=ROW_GROUP)


def read_csv(path: PathOrStr, text: Sequence[str] = ()) -> RawTable:
    """The columns of a CSV file with a header line; an empty field is missing.

    CSV has no types: the columns named in ``text`` are kept as they are spelt, so that an id 007 does not become 7.

    Raises:
        DataError: lines of different lengths, no header, or text that is not UTF-8.
    """
    from pyarrow import csv

    with guarded(path, "CSV", (pa.ArrowException, OSError, UnicodeDecodeError)):
        options = csv.ConvertOptions(
            column_types={name: pa.string() for name in text},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = csv.read_csv(path, convert_options=options)
    return raw_arrow(table, str(path))


def write_csv(content: Observations | Samples, path: PathOrStr) -> None:
    """Observations as scalar columns, without units and without a schema: a schema is needed to read them back.

    Raises:
        DataError: draws, or limits of an array modality.
    """
    from pyarrow import csv

    if isinstance(content, Samples):
        raise DataError(f"Expected observations for {path}; got draws, which CSV cannot hold. Write Parquet or ECSV.")
    table = arrow_table(declared_columns(content, str(path)), nan_is_null=True)  # an empty field, not the text nan
    with atomic_path(path) as temporary:
        csv.write_csv(table, temporary)


def read_ecsv(path: PathOrStr) -> RawTable:
    """The columns of an ECSV file, with units and UCDs.

    Raises:
        DataError: the file is not ECSV, or was cut short.
    """
    import yaml
    from astropy.table import Table

    # astropy lets many of Python's own errors through when a header is damaged.
    damage = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, yaml.YAMLError)
    with guarded(path, "ECSV", damage), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a damaged header, whose columns are checked anyway
        table = Table.read(path, format="ascii.ecsv")
        text = table.meta.get(SCHEMA_KEY)
        if text is not None and (len(table) != table.meta.get(ROWS_KEY) or not _ends_with_newline(path)):
            raise ValueError(f"{table.meta.get(ROWS_KEY)} rows were written, {len(table)} are left")
    schema = None if text is None else parsed_schema(str(text), str(path))
    return RawTable({name: raw_astropy(table[name]) for name in table.colnames}, len(table), str(path), schema)


def write_ecsv(content: Observations | Samples, path: PathOrStr) -> None:
    """Observations as columns with the schema in the header, or a table of summaries of draws."""
    if isinstance(content, Samples):
        table = content.to_table()
    else:
        raw = to_columns(content, str(path))
        table = astropy_table(raw)
        if any(str(key).startswith("#") for key in table.columns[0]):  # such a line would be taken for a comment
            table = table[[*table.colnames[1:], table.colnames[0]]]
        table.meta = {SCHEMA_KEY: schema_text(content.schema), ROWS_KEY: raw.rows}
    with atomic_path(path) as temporary:
        table.write(temporary, format="ascii.ecsv", overwrite=True)


def arrow_table(table: RawTable, *, nan_is_null: bool = False) -> pa.Table:
    """The columns as an Arrow table; event shapes are flattened to lists of fixed size."""
    fields, arrays = [], []
    for name, column in table.columns.items():
        values = column.values
        if values.ndim > 1:
            flat = np.ascontiguousarray(values).reshape(len(values), -1)
            array: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        else:
            plain = values.tolist() if values.dtype.kind in "OU" else np.ascontiguousarray(values)
            array = pa.array(plain, from_pandas=nan_is_null)
        metadata = {key: text for key, text in (("unit", column.unit), ("ucd", column.ucd)) if text}
        fields.append(pa.field(name, array.type, metadata=metadata or None))
        arrays.append(array)
    carried = None if table.schema is None else {SCHEMA_KEY: schema_text(table.schema)}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=carried))


def raw_arrow(table: pa.Table, source: str) -> RawTable:
    """The columns of an Arrow table.

    Raises:
        DataError: the schema inside is broken.
    """
    columns = {}
    for at, field in enumerate(table.schema):
        stated = {key.decode(): text.decode("utf-8", "replace") for key, text in (field.metadata or {}).items()}
        unit = stated.get("unit") or stated.get("units") or None
        columns[field.name] = RawColumn(_values(table.column(at)), unit, stated.get("ucd", ""))
    text = (table.schema.metadata or {}).get(SCHEMA_KEY.encode())
    schema = None if text is None else parsed_schema(text.decode("utf-8", "replace"), source)
    return RawTable(columns, table.num_rows, source, schema)


def astropy_table(table: RawTable) -> Any:  # noqa: ANN401 - astropy.table.Table, imported late
    """The columns as an astropy table, with units and with UCDs in ``meta``."""
    from astropy.table import Column, Table

    return Table(
        [
            Column(column.values, name=name, unit=column.unit, meta={"ucd": column.ucd} if column.ucd else None)
            for name, column in table.columns.items()
        ]
    )


def raw_astropy(column: Any) -> RawColumn:  # noqa: ANN401 - any of astropy's column classes
    """One column of an astropy table: masked numbers are NaN, masked text is None."""
    unit = getattr(column, "unit", None)
    ucd = str((column.info.meta or {}).get("ucd", ""))
    if not isinstance(column, np.ndarray):  # times and coordinates: their text
        return RawColumn(np.array([str(entry) for entry in column], dtype=object), None, ucd)
    values, mask = np.asarray(np.ma.getdata(column)), np.ma.getmaskarray(column)
    if values.dtype.kind == "O" and any(isinstance(entry, np.ndarray | list) for entry in values):
        values = from_rows(
            np.empty(0) if gone else np.ma.filled(np.ma.asarray(entry, dtype=np.float64), np.nan)
            for entry, gone in zip(values, mask, strict=True)
        )
    elif values.dtype.kind in "OSU":
        values = np.array([entry.decode() if isinstance(entry, bytes) else entry for entry in values], dtype=object)
        values[mask] = None
    elif mask.any():
        values = np.where(mask, np.nan, values.astype(np.float64))
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return RawColumn(values, None if unit is None else str(unit) or None, ucd)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """An Arrow column as numbers with NaN where null, text with None, or lists (N, L) or of their own length."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind)
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(column.combine_chunks())
    if pa.types.is_decimal(kind) or pa.types.is_null(kind) or pa.types.is_float16(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if column.null_count and not pa.types.is_floating(kind):
            column = column.cast(pa.float64(), safe=False)
        return column.to_numpy()
    found = np.empty(len(column), dtype=object)
    found[:] = [entry if entry is None or isinstance(entry, bytes) else str(entry) for entry in column.to_pylist()]
    return found


def _lists(array: pa.Array) -> NDArray[Any]:
    lengths = np.asarray(pc.fill_null(pc.call_function("list_value_length", [array]), 0))
    flat = _values(pa.chunked_array([array.flatten()]))
    if not len(lengths):
        return np.empty((0, 0))
    rows = np.split(flat, np.cumsum(lengths)[:-1])
    if flat.dtype.kind in "biuf":
        return from_rows(rows)
    found = np.empty(len(rows), dtype=object)
    found[:] = [str(row.tolist()) for row in rows]  # lists of text are text
    return found


def _ends_with_newline(path: PathOrStr) -> bool:
    return Path(path).read_bytes()[-1:] == b"\n"
