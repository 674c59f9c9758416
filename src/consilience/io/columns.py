"""From named columns to modalities, as a schema says: the step that every reader shares."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilience.data.observations import Modality, Observations, State, canonical_ids, modality
from consilience.data.schema import Cell, Grid, ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.io.conversion import error_scale, linear_map
from consilience.io.raw import RawTable
from consilience.io.resampling import require_ascending, resample
from consilience.typing import BoolArray, FloatArray, IntArray, StringArray

__all__ = ["parts_of", "to_observations"]


def to_observations(table: RawTable, schema: Schema, *, redshift: str | None = None) -> Observations:
    r"""The table's columns as modalities, in the schema's units, with every missing cell unseen.

    Unseen is what is masked, null, NaN or a sentinel, has zero inverse variance :math:`1/\sigma^2`, or a non-zero
    mask. Where both ``coord`` and ``grid`` are given, spectra are resampled with flux conservation
    (:func:`consilience.io.resampling.resample`). Without a grid, a row shorter than the schema's length is absent
    beyond its own. A modality of length D that has no column of its own may be spread over NAME_0 … NAME_{D-1}.

    Arguments:
        table: What a reader found.
        schema: What the columns mean.
        redshift: Column with the redshift by which spectra are shifted to the rest frame, or None.

    Raises:
        DataError: a missing column, a wrong length, a bad value, an id that is missing or duplicated, coordinates
            that do not ascend, or a modality without one seen cell.
        SchemaError: a unit that does not convert.

    Example:
        >>> from consilience.io.raw import RawColumn
        >>> table = RawTable({"x": RawColumn(np.array([100.0, -99.0]), "cm")}, 2, "a.csv")
        >>> spec = ModalitySpec(name="x", shape=(1,), unit="m", sentinels=(-99.0,))
        >>> to_observations(table, Schema(modalities=(spec,))).parts["x"].value.tolist()
        [[1.0], [nan]]
    """
    reader = _Reader(table, schema, redshift)
    parts = {spec.name: reader.part(spec) for spec in schema.modalities}
    for name, part in parts.items():
        if not part.seen.any():
            raise DataError(
                f"Expected seen cells in {table.source}; got none: every cell of modality '{name}' is unseen. "
                "Drop it from the schema, or check its column, mask and sentinels."
            )
    size = reader.size
    group = None if schema.group is None else canonical_ids(table.column(schema.group).values, unique=False)
    return Observations(schema, parts, reader.ids, np.arange(size), size, group)


def parts_of(table: RawTable, schema: Schema) -> dict[str, Modality]:
    """The modalities of :func:`to_observations`, even where every cell of one is unseen.

    Raises:
        DataError: as there.
        SchemaError: a unit that does not convert.
    """
    reader = _Reader(table, schema, None)
    return {spec.name: reader.part(spec) for spec in schema.modalities}


class _Reader:
    """One reading of a table: its ids and redshifts, and the parts that a schema asks for."""

    def __init__(self, table: RawTable, schema: Schema, redshift: str | None) -> None:
        self.table = table
        if schema.id in table.columns or schema.id != "id":
            self.ids: StringArray = canonical_ids(table.column(schema.id).values)
        else:
            self.ids = canonical_ids(range(self._rows(schema)))
        self.size = len(self.ids)
        if self.size == 0:
            raise DataError(f"Expected at least one row in {table.source}; got an empty table. Check the file.")
        if redshift is not None and not any(spec.coord and spec.grid for spec in schema.modalities):
            raise SchemaError("Expected a modality with coord and grid to shift to the rest frame; got none.")
        self.redshift = None if redshift is None else self._rows_of(redshift)[0]

    def part(self, spec: ModalitySpec) -> Modality:
        """One modality, checked."""
        if not spec.cells or spec.column is not None:
            return self._array(spec)
        found = [self._cell(spec, cell) for cell in spec.cells]
        value, state = np.stack([c.value for c in found], axis=1), np.stack([c.state for c in found], axis=1)
        sigma = None
        if any(c.sigma is not None for c in found):
            blank = np.full(self.size, np.nan)
            sigma = np.stack([blank if c.sigma is None else c.sigma for c in found], axis=1)
        return modality(spec, value, sigma=sigma, state=state, ids=self.ids)

    def _cell(self, spec: ModalitySpec, cell: Cell) -> "_Values":
        name, unit = cell.column or cell.name, spec.unit if cell.unit is None else cell.unit
        found = self._values(_Names(name, cell.sigma, cell.ivar), [unit], spec.sentinels + cell.sentinels)
        if found.value.ndim != 1:
            raise DataError(
                f"Expected one number per row in column {name!r} of {self.table.source} (a cell of '{spec.name}'); "
                f"got arrays of shape {found.value.shape[1:]}. Declare it as a modality of its own."
            )
        if cell.limit is not None:
            limit = np.nan_to_num(self._rows_of(cell.limit)[0])
            wrong = np.flatnonzero(~np.isin(limit, (-1, 0, 1)))
            if len(wrong):
                raise DataError(
                    f"Expected -1, 0 or 1 in the limit column {cell.limit!r} of {self.table.source}; "
                    f"got {limit[wrong[0]]:g} in row {wrong[0]}. Recode it."
                )
            measured = found.state == State.MEASURED
            found.state[measured & (limit < 0)] = State.BELOW
            found.state[measured & (limit > 0)] = State.ABOVE
        return found

    def _array(self, spec: ModalitySpec) -> Modality:
        name, units = spec.column or spec.name, spec.cell_units() if spec.cells else [spec.unit]
        sentinels = spec.sentinels + tuple(s for cell in spec.cells for s in cell.sentinels)
        found = self._values(_Names(name, spec.sigma, spec.ivar), units, sentinels)
        if spec.mask is not None:
            mask = self._rows_of(spec.mask)[0]
            _require_shape(mask, found.value, spec.mask, self.table.source)
            found.state[mask != 0] = State.UNSEEN
        coord = None if spec.coord is None else self._coord(spec, spec.coord, found.value)
        if coord is not None and spec.grid is not None:
            return self._resampled(spec, spec.grid, found, coord)
        lengths, extent = self._rows_of(name)[1], None
        if lengths is not None:
            found, coord = self._padded(spec, found, coord)
            extent = np.where(lengths == 0, spec.shape[0], lengths)
        if found.value.shape[1:] in ((), (spec.size,)) and found.value.size == self.size * spec.size:
            shape = (self.size, *spec.shape)
            found = found.map(lambda array: array.reshape(shape))
            coord = None if coord is None else coord.reshape(shape)
        return modality(
            spec, found.value, sigma=found.sigma, state=found.state, coord=coord, extent=extent, ids=self.ids
        )

    def _padded(
        self, spec: ModalitySpec, found: "_Values", coord: FloatArray | None
    ) -> "tuple[_Values, FloatArray | None]":
        """Rows of their own length filled up to the schema's."""
        longest = found.value.shape[1]
        if len(spec.shape) != 1 or spec.grid is not None or longest > spec.shape[0]:
            raise DataError(
                f"Expected rows of shape {spec.shape} for modality '{spec.name}' in {self.table.source}; got rows of "
                f"their own length, up to {longest}. Declare `coord` and `grid` to resample, or a longer shape."
            )
        fill = ((0, 0), (0, spec.shape[0] - longest))
        coord = None if coord is None else np.pad(coord, fill, constant_values=np.nan)
        # One constant serves all: in an unseen cell neither value nor sigma is read.
        return found.map(lambda array: np.pad(array, fill, constant_values=int(State.UNSEEN))), coord

    def _coord(self, spec: ModalitySpec, name: str, value: FloatArray) -> FloatArray:
        """Coordinates of each cell, shape of ``value``, in the grid's unit, checked to ascend along each row."""
        shared = name in self.table.columns and self.table.columns[name].values.shape == value.shape[1:] != ()
        coord = self.table.numbers(name) if shared else self._rows_of(name)[0]
        unit = spec.grid.unit if spec.grid is not None else self._unit(name) or ""
        scale, offset = self._map(name, unit)
        coord = np.broadcast_to(coord * scale + offset, value.shape) if shared else coord * scale + offset
        _require_shape(coord, value, name, self.table.source)
        if coord.ndim == 2:
            for row in range(1 if shared else self.size):
                inside = coord[row][np.isfinite(coord[row])]
                require_ascending(inside, f"{name!r} in row {row} (id {str(self.ids[row])!r}) of {self.table.source}")
        return coord

    def _resampled(self, spec: ModalitySpec, grid: Grid, found: "_Values", coord: FloatArray) -> Modality:
        if spec.shape != (grid.size,) or found.value.ndim != 2:
            raise SchemaError(
                f"Expected one spectrum per row for '{spec.name}' (coord and grid); got shape {spec.shape} and rows of "
                f"shape {found.value.shape[1:]}. Drop `coord`, or give each spectrum a modality."
            )
        centres, edges = grid.centres(), grid.edges()
        near = 1e-6 * np.diff(edges).min()
        if self.redshift is None and coord.shape[1] == grid.size and np.allclose(coord, centres, rtol=0, atol=near):
            return modality(spec, found.value, sigma=found.sigma, state=found.state, ids=self.ids)
        seen, stated = found.state >= State.MEASURED, found.sigma
        if self.redshift is None and (coord == coord[:1]).all():
            value, sigma = resample(found.value, coord[0], edges, sigma=stated, seen=seen)
            return modality(spec, value, sigma=sigma, ids=self.ids)
        value = np.full((self.size, grid.size), np.nan)
        sigma = None if stated is None else value.copy()
        for row in range(self.size):
            use = np.isfinite(coord[row])
            z = 0.0 if self.redshift is None else float(self.redshift[row])
            if not z > -1:
                raise DataError(
                    f"Expected a redshift above -1 in row {row} (id {str(self.ids[row])!r}) of {self.table.source}; "
                    f"got {z}. Fill or drop that row."
                )
            value[row], error = resample(
                found.value[row, use],
                coord[row, use],
                edges,
                sigma=None if stated is None else stated[row, use],
                seen=seen[row, use],
                redshift=z,
            )
            if sigma is not None and error is not None:
                sigma[row] = error
        return modality(spec, value, sigma=sigma, ids=self.ids)

    def _values(self, names: "_Names", units: Sequence[str], sentinels: tuple[float, ...]) -> "_Values":
        """Value, sigma and state of a column in the wanted units (one for all cells, or one per cell)."""
        raw = self._rows_of(names.value)[0]
        unseen = _is_any(raw, sentinels) | ~np.isfinite(raw)
        scale, offset = self._maps(names.value, units)
        error = None
        if names.sigma is not None:
            error = self._error(names.sigma, raw, unseen, sentinels)
            error = error * self._scales(names.sigma, units, 1, scale)
        elif names.ivar is not None:
            weight = np.nan_to_num(self._error(names.ivar, raw, unseen, sentinels), posinf=np.inf)
            factor = self._scales(names.ivar, units, -2, scale**-2)
            with np.errstate(divide="ignore"):
                error = 1.0 / np.sqrt(weight * factor)
        state = np.where(unseen, State.UNSEEN, State.MEASURED).astype(np.int8)
        return _Values(np.where(unseen, np.nan, raw * scale + offset), error, state)

    def _error(self, name: str, raw: FloatArray, unseen: BoolArray, sentinels: tuple[float, ...]) -> FloatArray:
        """A column of errors or inverse variances, NaN where unseen or a sentinel, never negative."""
        error = self._rows_of(name)[0]
        _require_shape(error, raw, name, self.table.source)
        error = np.where(unseen | _is_any(error, sentinels), np.nan, error)
        wrong = np.argwhere(error < 0)
        if len(wrong):
            row = int(wrong[0][0])
            raise DataError(
                f"Expected no negative number in column {name!r} of {self.table.source}; got "
                f"{error[tuple(wrong[0])]:g} in row {row} (id {str(self.ids[row])!r}), and {len(wrong) - 1} more. "
                "Mend it, or declare a sentinel."
            )
        return error

    def _rows_of(self, name: str) -> tuple[FloatArray, IntArray | None]:
        """A column as (N, ...), rows of their own length padded with NaN; and those lengths, or None."""
        columns, lengths = self.table.columns, None
        if name not in columns and f"{name}_0" in columns:
            wide = itertools.takewhile(columns.__contains__, (f"{name}_{i}" for i in itertools.count()))
            values = np.stack([self.table.numbers(one) for one in wide], axis=1)
        else:
            values = self.table.numbers(name)
        if len(values) != self.size:
            raise DataError(
                f"Expected {self.size} rows in column {name!r} of {self.table.source}; got {len(values)}. "
                "Mend the file or choose another column."
            )
        if values.dtype == object:
            lengths = np.array([len(row) for row in values])
            filled = np.full((self.size, max(1, lengths.max())), np.nan)
            filled[np.arange(filled.shape[1]) < lengths[:, None]] = np.concatenate(list(values))
            values = filled
        return values, lengths

    def _rows(self, schema: Schema) -> int:
        if not schema.modalities:  # all of them lie in files beside the table
            return self.table.rows
        spec = schema.modalities[0]
        cell = spec.cells[0] if spec.cells and spec.column is None else None
        name = spec.column or spec.name if cell is None else cell.column or cell.name
        return len(self.table.columns[name].values) if name in self.table.columns else self.table.rows

    def _unit(self, name: str) -> str | None:
        known = self.table.columns
        return known[name].unit if name in known else known[f"{name}_0"].unit if f"{name}_0" in known else None

    def _map(self, name: str, wanted: str) -> tuple[float, float]:
        return linear_map(self._unit(name), wanted, f"column {name!r} of {self.table.source}")

    def _maps(self, name: str, wanted: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        maps = np.array([self._map(name, unit) for unit in wanted])
        return (maps[0, 0], maps[0, 1]) if len(maps) == 1 else (maps[:, 0], maps[:, 1])

    def _scales(self, name: str, wanted: Sequence[str], power: int, default: FloatArray) -> FloatArray:
        """Scales of a column of errors; one without a unit shares the value's."""
        stated = self._unit(name)
        if not stated:
            return default
        what = f"column {name!r} of {self.table.source}"
        scales = np.array([error_scale(stated, unit, what, power=power) for unit in wanted])
        return scales[0] if len(scales) == 1 else scales


@dataclass(frozen=True, slots=True)
class _Names:
    value: str
    sigma: str | None
    ivar: str | None


@dataclass(frozen=True, slots=True)
class _Values:
    value: FloatArray
    sigma: FloatArray | None
    state: IntArray

    def map(self, function: Callable[[Any], Any]) -> "_Values":
        return _Values(function(self.value), None if self.sigma is None else function(self.sigma), function(self.state))


def _is_any(array: FloatArray, sentinels: tuple[float, ...]) -> BoolArray:
    """True where a cell is a sentinel, as closely as float32 spells it."""
    found = np.zeros(array.shape, dtype=bool)
    for sentinel in sentinels:
        found |= np.isclose(array, sentinel, rtol=1e-6, atol=0)
    return found


def _require_shape(array: FloatArray, value: FloatArray, name: str, source: str) -> None:
    if array.shape != value.shape:
        raise DataError(
            f"Expected rows of shape {value.shape[1:]} in column {name!r} of {source}; got {array.shape[1:]}. "
            "Give one number per cell."
        )
