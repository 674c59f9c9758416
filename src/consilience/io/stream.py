"""Parquet files larger than memory: row groups are read when their rows are asked for, and kept while there is room."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.data.streaming import FIELDS, Streamed, stacked
from consilience.errors import DataError, RequestError, SchemaError
from consilience.io.meaning import observations_of
from consilience.io.raw import guarded
from consilience.io.tables import raw_arrow
from consilience.typing import IntArray, PathOrStr, StringArray

__all__ = ["ParquetRows", "stream"]

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def stream(path: PathOrStr, schema: Schema | PathOrStr | None = None, *, memory: float = 1.0) -> Streamed:
    """A Parquet file as a training table that stays on disk; :func:`consilience.fit` takes it like observations.

    Every row group is read and checked once, here. Batches then come from windows of row groups that are drawn at
    random and shuffled together, as many as ``memory`` holds: write rows in random order, or many small row groups
    (:func:`write` makes them of 4096 rows).

    Arguments:
        path: A Parquet file.
        schema: What the columns mean, or a file that says so; a file that :func:`write` made carries its own.
        memory: GiB of decoded rows that may be held at once, 1 by default.

    Raises:
        DataError: the file is missing, damaged, empty, contradicts the schema, or has a row group beyond ``memory``.
        SchemaError: no schema, or a broken one.

    Example:
        >>> import tempfile
        >>> import consilience as cs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cs.write(cs.simulators.gaussian(50, seed=0), f"{folder}/a.parquet")
        ...     len(stream(f"{folder}/a.parquet"))
        50
    """
    meaning = schema if schema is None or isinstance(schema, Schema) else Schema.read(schema)
    source = ParquetRows(path, meaning, memory)
    return Streamed(source, source.schema, np.arange(len(source.ids)))


class ParquetRows:
    """The rows of one Parquet file, see :class:`consilience.data.streaming.RowSource`.

    Arguments:
        path: A Parquet file.
        schema: What its columns mean, or None where it says so itself.
        memory: GiB of decoded rows that may be held at once.
    """

    schema: Schema
    ids: StringArray
    group: StringArray | None

    def __init__(self, path: PathOrStr, schema: Schema | None, memory: float) -> None:
        if memory <= 0:
            raise RequestError(f"Expected memory > 0 GiB; got {memory}.")
        self.path, self.limit = Path(path), memory * 2**30
        if not self.path.is_file():
            raise DataError(f"Expected a file at {path}; got none. Check the path.")
        self._held: OrderedDict[int, Observations] = OrderedDict()
        with guarded(path, "Parquet", DAMAGED):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        sizes = [self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)]
        if sum(sizes) == 0:
            raise DataError(f"Expected at least one row in {path}; got an empty table. Check the file.")
        self._asked = schema
        ids, groups = [], []
        self.bytes_per_row = 0.0
        for number in range(len(sizes)):
            found = self._decode(number)
            self.schema = found.schema
            ids.append(found.ids)
            groups.append(found.group)
            self.bytes_per_row = max(self.bytes_per_row, _bytes(found) / len(found))
        self.ids = np.concatenate(ids)
        unique, first, counts = np.unique(self.ids, return_index=True, return_counts=True)
        if (counts > 1).any():
            raise DataError(
                f"Expected unique ids in {path}; got {str(unique[counts > 1][0])!r} again after row "
                f"{first[counts > 1][0]}. Give every object a row and an id of its own."
            )
        self.group = None if groups[0] is None else np.concatenate([g for g in groups if g is not None])
        self.blocks: IntArray = np.repeat(np.arange(len(sizes)), sizes)
        self._first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self.window = int(self.limit / self.bytes_per_row)
        if max(sizes) > self.window:
            raise DataError(
                f"Expected row groups of at most {self.window} rows in {path}, which {memory:g} GiB hold; got "
                f"{max(sizes)}. Write it again with smaller row groups, or allow more memory."
            )

    def read(self, rows: IntArray) -> Observations:
        """These rows, in this order."""
        rows = np.asarray(rows)
        blocks = self.blocks[rows]
        pieces, places = [], []
        for number in np.unique(blocks):
            there = np.flatnonzero(blocks == number)
            pieces.append(self._block(int(number))[rows[there] - self._first[number]])
            places.append(there)
        order = np.empty(len(rows), dtype=np.int64)
        order[np.concatenate(places)] = np.arange(len(rows))
        return stacked(pieces)[order]

    def fingerprint(self) -> str:
        """A hash of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while piece := file.read(2**24):
                digest.update(piece)
        return digest.hexdigest()

    def _block(self, number: int) -> Observations:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        found = self._decode(number)
        held = sum(_bytes(obs) for obs in self._held.values()) + _bytes(found)
        while self._held and held > self.limit:
            held -= _bytes(self._held.popitem(last=False)[1])
        self._held[number] = found
        return found

    def _decode(self, number: int) -> Observations:
        name = f"{self.path} (row group {number})"
        with guarded(self.path, "Parquet", DAMAGED):
            table = self._file.read_row_group(number)
            table.validate(full=True)
            raw = raw_arrow(table, name)
        meaning = self._asked or raw.schema
        if meaning is None:
            raise SchemaError(f"Expected a schema for {self.path}, which carries none. Give `schema`.")
        return observations_of(raw, meaning, self.path.parent)


def _bytes(obs: Observations) -> int:
    arrays = (getattr(part, field) for part in obs.parts.values() for field in FIELDS)
    return sum(array.nbytes for array in arrays if array is not None)
