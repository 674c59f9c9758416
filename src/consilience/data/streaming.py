"""A table that stays on disk: rows are read when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from consilience.data.observations import Modality, Observations, split_rows
from consilience.data.schema import Schema
from consilience.typing import IntArray, StringArray

__all__ = ["FIELDS", "RowSource", "Streamed", "stacked"]

FIELDS = ("value", "state", "sigma", "coord", "exposure", "extent")  # of a modality


class RowSource(Protocol):
    """Where rows come from.

    Arguments:
        schema: What the columns mean.
        ids: Canonical identifiers, shape (N,), unique.
        group: Group of each row, shape (N,), or None.
        blocks: Number of the block of the file that holds each row, shape (N,).
        window: Rows that may be held in memory together.
    """

    schema: Schema
    ids: StringArray
    group: StringArray | None
    blocks: IntArray
    window: int

    def read(self, rows: IntArray) -> Observations:
        """These rows, in this order."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content."""
        ...


@dataclass(frozen=True)
class Streamed:
    """Rows of a source as a training table; what is asked for is read, mapped and returned as Observations.

    Arguments:
        source: Where the rows are.
        schema: Of the rows after mapping.
        rows: Rows of the source that belong to this table, shape (N,).
        maps: Applied in turn to whatever is read.
    """

    source: RowSource
    schema: Schema
    rows: IntArray
    maps: tuple[Callable[[Observations], Observations], ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: IntArray) -> Observations:
        found = self.source.read(self.rows[rows])
        found = replace(found, index=np.asarray(rows), total=len(self))
        for step in self.maps:
            found = step(found)
        return found

    @property
    def ids(self) -> StringArray:
        """Identifiers of the rows, shape (N,)."""
        return self.source.ids[self.rows]

    @property
    def group(self) -> StringArray | None:
        """Groups of the rows, shape (N,), or None."""
        return None if self.source.group is None else self.source.group[self.rows]

    @property
    def blocks(self) -> IntArray:
        """Block of the file of each row, shape (N,)."""
        return self.source.blocks[self.rows]

    def mapped(self, step: Callable[[Observations], Observations]) -> "Streamed":
        """The same rows with one more map behind the others."""
        return replace(self, maps=(*self.maps, step))

    def select(self, *names: str) -> "Streamed":
        """The same rows with these modalities only."""
        return replace(self.mapped(lambda obs: obs.select(*names)), schema=self.schema.select(names))

    def split(self, fraction: float, *, seed: int, by: str | None = None) -> tuple["Streamed", "Streamed"]:
        """Two disjoint tables, as :meth:`Observations.split`."""
        first = split_rows(self.ids, self.group, fraction, seed=seed, by=by)
        return replace(self, rows=self.rows[first]), replace(self, rows=self.rows[~first])

    def some(self, count: int, *, seed: int) -> Observations:
        """At most ``count`` rows in memory, drawn at random, in the order of the table."""
        if count >= len(self):
            return self[np.arange(len(self))]
        return self[np.sort(np.random.default_rng(seed).permutation(len(self))[:count])]


def stacked(pieces: Sequence[Observations]) -> Observations:
    """Tables of one schema one below the other."""
    first = pieces[0]
    if len(pieces) == 1:
        return first

    def together(arrays: Sequence[Any]) -> Any:  # noqa: ANN401 - arrays of any kind, or None
        there = [array for array in arrays if array is not None]
        assert len(there) in (0, len(arrays)), "tables of one file have the same arrays"
        return np.concatenate(there) if there else None

    parts = {
        name: Modality(*(together([getattr(piece.parts[name], field) for piece in pieces]) for field in FIELDS))
        for name in first.schema.names
    }
    size = sum(map(len, pieces))
    ids = np.concatenate([piece.ids for piece in pieces])
    rows = (together([getattr(piece, field) for piece in pieces]) for field in ("group", "domain", "pair"))
    return Observations(first.schema, parts, ids, np.arange(size), size, *rows)
