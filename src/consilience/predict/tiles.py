"""Cut a table into tiles of a fixed number of rows, so that no answer depends on how the table was cut."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.train.progress import ProgressBar
from consilience.typing import FloatArray

__all__ = ["TILE", "Tile", "conform", "seen", "tile_rows", "tiles"]

TILE = 64  # objects in a tile; matrix products of one shape give a row the same bits wherever it stands
PATIENCE = 3.0  # seconds without a progress bar
TILE_CELLS = 2**18  # of all modalities in a tile: an object of many cells shares its tile with fewer others


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows ``start`` to ``start + rows`` of a table, padded with empty rows to the size of a tile."""

    start: int
    rows: int
    obs: Observations

    @property
    def place(self) -> slice:
        """Where these rows stand in the table."""
        return slice(self.start, self.start + self.rows)


def tile_rows(schema: Schema) -> int:
    """Rows of a tile; fewer of them cost a model as much."""
    return min(TILE, max(1, TILE_CELLS // sum(spec.size for spec in schema.modalities)))


def tiles(obs: Observations) -> Iterator[Tile]:
    """The tiles of a table, in order; their size depends on the schema alone. What takes long shows how far it is."""
    size = tile_rows(obs.schema)
    with ProgressBar("objects", len(obs), after=PATIENCE) as bar:
        for start in range(0, len(obs), size):
            rows = min(size, len(obs) - start)
            yield Tile(start, rows, _padded(obs[start : start + rows], size))
            bar.advance(start + rows)


def conform(obs: Observations, schema: Schema) -> Observations:
    """The same rows with exactly the modalities of ``schema``; one that is missing is unseen.

    Raises:
        SchemaError: a modality differs from the model's in shape, kind, unit or cells, or is unknown to it.
    """
    for spec in obs.schema.modalities:
        if spec.name not in schema:
            raise SchemaError(
                f"Expected modalities among {list(schema.names)}; got '{spec.name}'. Select the model's modalities."
            )
        _same(spec, schema[spec.name])
    parts = {spec.name: obs.parts.get(spec.name) or _empty(spec, len(obs)) for spec in schema.modalities}
    return replace(obs, schema=schema, parts=parts)


def seen(obs: Observations) -> frozenset[str]:
    """Modalities with at least one seen cell in the table."""
    return frozenset(name for name in obs.schema.names if obs.parts[name].seen.any())


def _same(got: ModalitySpec, expected: ModalitySpec) -> None:
    for field in ("shape", "kind", "grid", "classes"):
        mine, theirs = getattr(expected, field), getattr(got, field)
        if mine != theirs:
            raise SchemaError(
                f"Expected modality '{got.name}' with {field} {mine}; got {theirs}. "
                "Re-read with the model's schema, or fit a new model."
            )
    for what, mine, theirs in (
        ("cells", [c.name for c in expected.cells], [c.name for c in got.cells]),
        ("units", expected.cell_units(), got.cell_units()),
    ):
        if mine != theirs:
            wrong = next(((a, b) for a, b in zip(mine, theirs, strict=False) if a != b), (mine, theirs))
            raise SchemaError(
                f"Expected {what} of '{got.name}' like {wrong[0]!r}; got {wrong[1]!r}. "
                "Re-read with the model's schema, or fit a new model."
            )


def _empty(spec: ModalitySpec, rows: int) -> Modality:
    shape = (rows, *spec.shape)
    return Modality(np.full(shape, np.nan), np.full(shape, State.UNSEEN, np.int8))


def _padded(obs: Observations, size: int) -> Observations:
    extra = size - len(obs)
    if extra == 0:
        return obs
    parts = {}
    for name, part in obs.parts.items():
        blank = _empty(obs.schema[name], extra)

        def pad(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else np.concatenate([array, np.full((extra, *array.shape[1:]), np.nan)])

        parts[name] = Modality(
            pad(part.value),
            np.concatenate([part.state, blank.state]),
            pad(part.sigma),
            pad(part.coord),
            pad(part.exposure),
            None if part.extent is None else np.concatenate([part.extent, np.zeros(extra, part.extent.dtype)]),
        )
    ids = np.concatenate([obs.ids, np.full(extra, "")])
    return Observations(obs.schema, parts, ids, np.full(size, -1), obs.total)
