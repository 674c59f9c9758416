"""What a file holds before a schema gives it meaning: named columns with units."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.data.schema import Schema, nearest, validated
from consilience.errors import DataError

__all__ = [
    "PLACEHOLDER",
    "SCHEMA_KEY",
    "ColumnSummary",
    "FileSummary",
    "RawColumn",
    "RawTable",
    "from_rows",
    "guarded",
    "parsed_schema",
    "schema_text",
    "summary",
]

SCHEMA_KEY = "consilience.schema"
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")  # a column whose text stands in the name of a file


@dataclass(frozen=True, slots=True)
class RawColumn:
    """One column: numbers of shape (N, ...) with NaN where missing, text, or rows of their own length.

    Arguments:
        values: Numbers (N, ...); text (N,) with None where missing; or an object array (N,) of float arrays.
        unit: The unit as the file spells it; None where the file states none.
        ucd: The UCD, empty where the file states none.
    """

    values: NDArray[Any]
    unit: str | None = None
    ucd: str = ""

    @property
    def ragged(self) -> bool:
        """True where each row is an array of its own length."""
        return self.values.dtype == object and len(self.values) > 0 and isinstance(self.values[0], np.ndarray)


@dataclass(frozen=True, slots=True)
class RawTable:
    """The columns of one file, its number of rows, and the schema it carries if this library wrote it."""

    columns: Mapping[str, RawColumn]
    rows: int
    source: str
    schema: Schema | None = None

    def column(self, name: str) -> RawColumn:
        """The column of this name, or a DataError that names the nearest one."""
        if name not in self.columns:
            raise DataError(
                f"Expected a column {name!r} in {self.source}; got {_listed(self.columns)}."
                f"{nearest(name, self.columns)} Mend the schema or the file."
            )
        return self.columns[name]

    def numbers(self, name: str) -> NDArray[Any]:
        """The column as float64 (N, ...), or as an object array of float64 rows of their own length."""
        column = self.column(name)
        if column.ragged:
            return column.values
        if column.values.dtype.kind not in "biuf":
            raise DataError(
                f"Expected numbers in column {name!r} of {self.source}; got {_kind(column.values)}. "
                "Choose another column or recode it."
            )
        return column.values.astype(np.float64)


@dataclass(frozen=True, slots=True)
class ColumnSummary:
    """A column in words: name, type, shape of one row (-1: its own length), unit and number of missing cells."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str
    missing: int


@dataclass(frozen=True, slots=True)
class FileSummary:
    """A file in words: number of rows, its columns, and the schema it carries, if any."""

    rows: int
    columns: tuple[ColumnSummary, ...]
    schema: Schema | None


def summary(table: RawTable) -> FileSummary:
    """Describe a table without a schema.

    Example:
        >>> table = RawTable({"x": RawColumn(np.array([1.0, np.nan]), "Jy")}, 2, "a.csv")
        >>> summary(table).columns[0]
        ColumnSummary(name='x', dtype='float64', shape=(), unit='Jy', missing=1)
    """
    found = []
    for name, column in table.columns.items():
        values = column.values
        if column.ragged:
            dtype, shape = str(values[0].dtype), (-1,)
            missing = sum(int(np.isnan(row).sum()) for row in values)
        else:
            dtype, shape = _kind(values), values.shape[1:]
            missing = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
            if dtype == "text":
                missing = sum(entry is None for entry in values)
        found.append(ColumnSummary(name, dtype, shape, column.unit or "", missing))
    return FileSummary(table.rows, tuple(found), table.schema)


def from_rows(rows: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Rows of numbers as (N, L) where all have one length (an empty row is all NaN), else as an object array.

    Example:
        >>> from_rows([np.ones(2), np.ones(0)]).tolist()
        [[1.0, 1.0], [nan, nan]]
    """
    rows = list(rows)
    shapes = {row.shape for row in rows if len(row)}
    if len(shapes) == 1:
        shape = shapes.pop()
        return np.stack([row if len(row) else np.full(shape, np.nan) for row in rows])
    if any(len(shape) > 1 for shape in shapes):
        raise DataError(f"Expected arrays of one shape in every row; got {sorted(shapes)[:3]}. Pad them first.")
    found = np.empty(len(rows), dtype=object)
    for position, row in enumerate(rows):
        found[position] = np.asarray(row, dtype=np.float64)
    return found


def schema_text(schema: Schema) -> str:
    """The schema as ASCII JSON on one line, as it travels inside a file."""
    return json.dumps(schema.model_dump(mode="json", exclude_defaults=True))


def parsed_schema(text: str, source: str) -> Schema:
    """The schema that a file carries, or one clear error."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"Expected a schema inside {source}; got broken JSON ({error}). Write it anew.") from error
    return validated(Schema, data, where=f"{source}, the schema inside")


@contextmanager
def guarded(source: object, kind: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a format's own errors into one DataError that names the file."""
    try:
        yield
    except errors as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"Expected a readable {kind} file; got {source}: {reason}. The file may be truncated or of another format."
        ) from error


def _kind(values: NDArray[Any]) -> str:
    return "text" if values.dtype.kind in "OSU" else str(values.dtype)


def _listed(names: Iterable[str], limit: int = 12) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{names[:limit]}{more}"
