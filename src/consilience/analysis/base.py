"""What every analysis returns, and what all of them share: quantities, tiles of rows, questions a model answers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, RequestError
from consilience.io.atomic import atomic_path
from consilience.predict.tiles import tile_rows
from consilience.typing import BoolArray, FloatArray, PathOrStr

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = [
    "AbstractResult",
    "Quantity",
    "answered",
    "default_targets",
    "numbers",
    "plain",
    "quantities",
    "tiles",
    "truth_of",
]

TILE_VALUES = 20_000_000  # draws x rows x cells held at once, 160 MB


@dataclass(frozen=True)
class AbstractResult(ABC):
    """The frozen answer to one question: a table, a figure, and files of both."""

    name: ClassVar[str]  # file name and heading

    @abstractmethod
    def table(self) -> "Table":
        """The numbers, one row per quantity."""

    @abstractmethod
    def figure(self) -> "Figure":
        """The picture."""

    def record(self) -> dict[str, Any]:
        """Every field as plain JSON: arrays become lists, NaN becomes null."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    def save(self, directory: PathOrStr) -> Path:
        """Write ``<name>.json``, ``<name>.csv`` and ``<name>.png`` into a directory, each atomically."""
        from consilience.plots.style import png

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / f"{self.name}.json") as path:
            path.write_text(json.dumps({"analysis": self.name, **self.record()}, allow_nan=False), encoding="utf-8")
        with atomic_path(folder / f"{self.name}.csv") as path:
            self.table().write(path, format="ascii.csv")
        with atomic_path(folder / f"{self.name}.png") as path:
            path.write_bytes(png(self.figure()))
        return folder


@dataclass(frozen=True, slots=True)
class Quantity:
    """What gets one row in a table: a named cell, or a whole modality of like cells."""

    modality: str
    name: str
    unit: str
    cells: Any  # index of the flattened event axis

    def of(self, array: FloatArray) -> FloatArray:
        """Its cells of an array (N, *event): shape (N, cells)."""
        return array.reshape(len(array), -1)[:, self.cells]


def quantities(spec: ModalitySpec, *, each: bool = False) -> list[Quantity]:
    """The quantities of a modality: its named cells, or itself when its cells are alike (``each``: every cell).

    Example:
        >>> [q.name for q in quantities(ModalitySpec(name="y", cells=({"name": "mass"}, {"name": "age"})))]
        ['mass', 'age']
        >>> [q.name for q in quantities(ModalitySpec(name="flux", shape=(9,)))]
        ['flux']
    """
    if spec.cells or each:
        pairs = zip(spec.cell_names(), spec.cell_units(), strict=True)
        return [Quantity(spec.name, name, unit, [i]) for i, (name, unit) in enumerate(pairs)]
    return [Quantity(spec.name, spec.name, spec.unit, slice(None))]


def default_targets(schema: Schema) -> tuple[str, ...]:
    """What is asked for when nothing is said: the modalities with named cells, else the last modality.

    Example:
        >>> default_targets(Schema(modalities=(ModalitySpec(name="x", shape=(3,)), ModalitySpec(name="y"))))
        ('y',)
    """
    named = tuple(spec.name for spec in schema.modalities if spec.cells and spec.kind != "category")
    return named or schema.names[-1:]


def answered(fitted: "Fitted", readable: frozenset[str], targets: Sequence[str]) -> None:
    """Refuse a question that the model does not answer.

    Raises:
        RequestError: no targets, or a name the schema lacks.
        CapabilityError: the model cannot give these targets from these modalities.
    """
    if not targets:
        raise RequestError("Expected at least one target; got none. Name a modality of the schema.")
    for name in targets:
        fitted.schema[name]
    if not fitted.answers(readable, frozenset(targets)):
        raise CapabilityError(
            f"Expected a question that this model answers; got {sorted(targets)} from {sorted(readable)}. "
            "Choose other targets, or fit a family that answers it."
        )


def tiles(rows: int, values_per_row: int, model: "Fitted | None" = None) -> Iterator[slice]:
    """Slices that cover the rows so that each tile holds a bounded number of values; answers do not depend on it.

    Of a model's answers, each holds whole tiles of the model's own, which cost as much where they are half empty.
    """
    least = 1 if model is None else tile_rows(model.schema)
    size = max(1, TILE_VALUES // (max(values_per_row, 1) * least)) * least
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def truth_of(obs: Observations, name: str, only: BoolArray | None = None) -> FloatArray:
    """Measured values, NaN elsewhere and outside ``only``, shape (N, D) flattened; limits are not values."""
    part = obs.parts[name]
    use = part.measured if only is None else part.measured & only
    return np.where(use, part.value, np.nan).reshape(len(obs), -1)


def numbers(table: "Table") -> list[list[str]]:
    """The rows of a table as short text: four significant digits, an en dash for NaN."""
    return [[_text(value) for value in row] for row in table.iterrows()]


def plain(value: Any) -> Any:  # noqa: ANN401 - anything to JSON
    """JSON values of arrays, scalars, mappings and tuples; what is not finite becomes None.

    Example:
        >>> plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2), True)})
        {'a': [1.0, None], 'b': [2, True]}
    """
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | None) else str(value)


def _text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if np.isfinite(value) else "–"
    return str(value)
