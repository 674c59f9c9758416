"""What the columns mean: names, event shapes, kinds, units, UCDs, grids and sentinels."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from consilience.errors import RequestError, SchemaError
from consilience.typing import FloatArray, PathOrStr

__all__ = ["Cell", "Frozen", "Grid", "ModalitySpec", "Schema", "TimeBins", "nearest", "validated"]

Kind = Literal["real", "positive", "count", "binary", "category"]
Scale = Literal["standard", "robust", "asinh", "log", "bounded", "none"]


class Frozen(BaseModel):
    """A frozen record read from TOML or JSON; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=Frozen)


class Cell(Frozen):
    """One named cell of a modality, usually one column of the table.

    Fields that are None are inherited from the modality or do not exist in the file.
    """

    name: str
    unit: str | None = None
    ucd: str | None = None
    column: str | None = None  # the file's column; the cell's name by default
    sigma: str | None = None  # column of the standard error, same unit
    ivar: str | None = None  # column of the inverse variance, instead of sigma
    limit: str | None = None  # column with -1 (value is an upper bound: below), 0, +1 (above)
    sentinels: tuple[float, ...] = ()  # values that mean "not seen", such as -99
    bounds: tuple[float, float] | None = None  # between which the truth lies


class Grid(Frozen):
    r"""Bin centres :math:`\lambda_1 < … < \lambda_D` of an event axis, linear or logarithmic.

    Example:
        >>> Grid(start=1000.0, stop=2000.0, size=3, unit="Angstrom").centres().tolist()
        [1000.0, 1500.0, 2000.0]
    """

    start: float
    stop: float
    size: int = Field(ge=2)
    spacing: Literal["linear", "log"] = "linear"
    unit: str = ""
    name: str = "wavelength"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.stop > self.start:
            raise ValueError(f"Expected grid start < stop; got start={self.start}, stop={self.stop}. Swap them.")
        if self.spacing == "log" and self.start <= 0:
            raise ValueError(f"Expected a positive start for a log grid; got {self.start}. Use spacing='linear'.")
        return self

    def centres(self) -> FloatArray:
        """Bin centres, shape (D,), in ``unit``."""
        if self.spacing == "log":
            return np.geomspace(self.start, self.stop, self.size)
        return np.linspace(self.start, self.stop, self.size)

    def edges(self) -> FloatArray:
        """Bin edges, shape (D + 1,): half-way between centres (geometrically on a log grid)."""
        c = np.log(self.centres()) if self.spacing == "log" else self.centres()
        middle = 0.5 * (c[1:] + c[:-1])
        edges = np.concatenate([[2 * c[0] - middle[0]], middle, [2 * c[-1] - middle[-1]]])
        return np.exp(edges) if self.spacing == "log" else edges


class TimeBins(Frozen):
    """Equal bins of time along the first event axis. Trials are rows of the table, so the trial's id is the row's.

    Example:
        >>> TimeBins(width=0.02, unit="s").centres(3).tolist()
        [0.01, 0.03, 0.05]
    """

    width: float = Field(gt=0)
    unit: str = "s"
    start: float = 0.0  # where the first bin begins

    def centres(self, bins: int) -> FloatArray:
        """Middles of this many bins, in ``unit``, to twelve digits."""
        return np.round(self.start + self.width * (np.arange(bins) + 0.5), 12)


class ModalitySpec(Frozen):
    """One named kind of observation: event shape, kind of number, unit, UCD and where a file keeps it.

    ``shape`` follows from ``grid`` or ``cells`` when it is not given. A modality comes from one array-valued column
    (``column``, ``sigma`` or ``ivar``, ``mask``, ``coord``) or, with ``cells``, from one scalar column per cell.

    Raises:
        SchemaError: when the shape contradicts the grid or the cells, or a unit is unknown (through ``Schema``).

    Example:
        >>> ModalitySpec(name="labels", cells=({"name": "log_mbh"}, {"name": "redshift"})).shape
        (2,)
    """

    name: str
    shape: tuple[int, ...] = ()
    kind: Kind = "real"
    cells: tuple[Cell, ...] = ()
    unit: str = ""
    ucd: str = ""
    grid: Grid | None = None
    time: TimeBins | None = None  # of the first event axis
    axis: str = ""  # name of the event axis; the grid's name by default
    classes: int = 0  # number of categories, for kind="category"
    bounds: tuple[float, float] | None = None  # between which the truth of every cell lies
    scale: Scale | None = None  # None: "standard" for real, "bounded" with bounds, "log" for positive, else "none"
    column: str | None = None  # array-valued column of the file; the modality's name by default
    sigma: str | None = None
    ivar: str | None = None
    mask: str | None = None  # array-valued column, non-zero where the cell must not be used
    coord: str | None = None  # array-valued column with the file's own grid (resampled to ``grid``)
    sentinels: tuple[float, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_shape(cls, data: Any) -> Any:  # noqa: ANN401 - pydantic's own signature
        if isinstance(data, Mapping) and not data.get("shape"):
            data = dict(data)
            if data.get("cells"):
                data["shape"] = (len(data["cells"]),)
            elif data.get("grid"):
                grid = data["grid"]
                data["shape"] = (grid.size if isinstance(grid, Grid) else grid["size"],)
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(size < 1 for size in self.shape):
            raise ValueError(f"Expected positive sizes in the shape of '{self.name}'; got {self.shape}.")
        if self.cells and self.shape != (len(self.cells),):
            raise ValueError(f"Expected shape ({len(self.cells)},) for the cells of '{self.name}'; got {self.shape}.")
        if self.grid and self.shape[-1:] != (self.grid.size,):
            raise ValueError(f"Expected last axis {self.grid.size} (grid) for '{self.name}'; got {self.shape}.")
        if self.time and not self.shape:
            raise ValueError(f"Expected an event axis for the time bins of '{self.name}'; got a single number.")
        if self.time and self.grid and len(self.shape) == 1:
            raise ValueError(f"Expected time or a grid along the one axis of '{self.name}'; got both. Keep one.")
        if self.kind == "category" and self.classes < 2:
            raise ValueError(f"Expected classes >= 2 for the category '{self.name}'; got {self.classes}.")
        pairs = [pair for pair in (self.bounds, *(cell.bounds for cell in self.cells)) if pair]
        for low, high in pairs:
            if not -math.inf < low < high < math.inf or self.scaling != "bounded" or self.kind != "real":
                raise ValueError(
                    f"Expected finite bounds low < high, kind 'real' and scale 'bounded' for '{self.name}'; got "
                    f"({low:g}, {high:g}), kind {self.kind!r} and scale {self.scaling!r}."
                )
        if self.scaling == "bounded" and not pairs:
            raise ValueError(f"Expected bounds of '{self.name}', whose scale is 'bounded'; got none. State them.")
        if self.sigma and self.ivar:
            raise ValueError(f"Expected sigma or ivar for '{self.name}'; got both. Keep one.")
        names = [cell.name for cell in self.cells]
        if len(set(names)) != len(names):
            raise ValueError(f"Expected distinct cell names in '{self.name}'; got {names}.")
        return self

    @property
    def scaling(self) -> Scale:
        """The transformation that the Scaler applies."""
        if self.scale is not None:
            return self.scale
        if self.kind == "real" and (self.bounds or any(cell.bounds for cell in self.cells)):
            return "bounded"
        return {"real": "standard", "positive": "log"}.get(self.kind, "none")  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Number of cells D, the product of the event shape."""
        return math.prod(self.shape)

    def cell_names(self) -> list[str]:
        """A name for each of the D cells: its own, its grid value, or its index."""
        if self.cells:
            return [cell.name for cell in self.cells]
        if self.grid and len(self.shape) == 1:
            return [f"{self.name}[{value:g}]" for value in self.grid.centres()]
        if self.time and len(self.shape) == 1:
            return [f"{self.name}[{value:g}]" for value in self.time.centres(self.size)]
        if self.size == 1:
            return [self.name]
        return [f"{self.name}[{','.join(map(str, index))}]" for index in np.ndindex(*self.shape)]

    def between(self) -> tuple[FloatArray, FloatArray]:
        """Bounds of every cell, shape (*event); infinite where it has none."""
        own = [cell.bounds for cell in self.cells] or [None] * self.size
        pairs = [one or self.bounds or (-math.inf, math.inf) for one in own]
        low, high = np.array(pairs).T.reshape(2, *self.shape)
        return low, high

    def cell_units(self) -> list[str]:
        """The unit of each of the D cells."""
        if self.cells:
            return [self.unit if cell.unit is None else cell.unit for cell in self.cells]
        return [self.unit] * self.size


class Schema(Frozen):
    """The named modalities of a table, in order, and the columns that identify its rows.

    Raises:
        SchemaError: for a duplicated name, an unknown unit, or an unknown key (the nearest known one is named).

    Example:
        >>> schema = Schema(modalities=(ModalitySpec(name="x", shape=(3,)), ModalitySpec(name="y", shape=(1,))))
        >>> schema.names
        ('x', 'y')
        >>> Schema.model_validate_json(schema.model_dump_json()) == schema
        True
    """

    modalities: tuple[ModalitySpec, ...] = Field(min_length=1)
    id: str = "id"  # column of the object's identifier; row numbers are used when the file has none
    group: str | None = None  # column that groups rows (a star observed twice), for ``split(by=...)``

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [spec.name for spec in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"Expected distinct modality names; got {names}.")
        for spec in self.modalities:
            axes = {axis.unit for axis in (spec.grid, spec.time) if axis}
            for unit in {*spec.cell_units(), *axes}:
                _check_unit(unit, spec.name)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Modality names in order."""
        return tuple(spec.name for spec in self.modalities)

    def __getitem__(self, name: str) -> ModalitySpec:
        for spec in self.modalities:
            if spec.name == name:
                return spec
        raise RequestError(
            f"Expected a modality among {list(self.names)}; got {name!r}.{nearest(name, self.names)}"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def select(self, names: Iterable[str]) -> "Schema":
        """The schema of these modalities only, in the order asked."""
        return self.model_copy(update={"modalities": tuple(self[name] for name in names)})

    @classmethod
    def read(cls, path: PathOrStr) -> "Schema":
        """Read a schema from ``.toml`` or ``.json``.

        In TOML each modality is a table ``[modalities.NAME]``.

        Raises:
            SchemaError: the file is missing or malformed, or a key is unknown.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as error:
            raise SchemaError(f"Expected a schema in TOML or JSON; got {path}: {error}. Check the file.") from error
        modalities = data.get("modalities") if isinstance(data, dict) else None
        if isinstance(modalities, dict):
            data = {**data, "modalities": [{"name": name, **spec} for name, spec in modalities.items()]}
        return validated(cls, data, where=str(path))


def validated(cls: type[Record], data: object, where: str) -> Record:
    """Build a frozen record from plain data; on failure raise one clear SchemaError that names the nearest key."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise SchemaError(f"{where}: {_explain(cls, error)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return f"Expected a known key; got {place!r}.{nearest(key, _keys(cls))}"
    message = first["msg"].removeprefix("Value error, ")
    return message if message.startswith("Expected") else f"{message} (at {place or cls.__name__})."


def _keys(cls: type[BaseModel]) -> set[str]:
    keys = set(cls.model_fields)
    for other in (Cell, Grid, TimeBins, ModalitySpec) if cls is Schema else ():
        keys |= set(other.model_fields)
    return keys


def _check_unit(unit: str, where: str) -> None:
    from astropy import units

    try:
        units.Unit(unit)
    except ValueError as error:
        raise ValueError(f"Expected a unit that astropy knows for '{where}'; got {unit!r}. ({error})") from error
