"""This library's own layout of columns: what an Observations is in a file, and back, exactly."""

from collections.abc import Iterator

import numpy as np

from consilience.data.observations import Modality, Observations, State, canonical_ids, modality
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import DataError
from consilience.io.raw import PLACEHOLDER, RawColumn, RawTable
from consilience.typing import FloatArray, IntArray

__all__ = ["declared_columns", "from_columns", "is_native", "to_columns"]

CELL_FIELDS = ("value", "sigma", "state", "coord", "exposure")
ROW_FIELDS = ("group", "domain", "pair")


def to_columns(obs: Observations, source: str) -> RawTable:
    """Every array of the observations as named columns with units and UCDs, and the schema.

    A modality with cells takes one set of scalar columns per cell, another one set of array columns: NAME, then
    NAME_sigma, NAME_state, NAME_coord, NAME_exposure and NAME_extent where there is something to say. NAME_state
    (0 absent, 1 unseen, 2 measured, 3 below, 4 above) is left out where NaN alone tells it.

    Example:
        >>> schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,), unit="Jy"),))
        >>> obs = Observations.from_arrays(schema, {"x": np.ones((2, 1))})
        >>> sorted(to_columns(obs, "a.fits").columns)
        ['id', 'x']
    """
    names = _names(obs.schema)
    columns = {names["", "id"]: RawColumn(obs.ids)}
    for field, array in zip(ROW_FIELDS, (obs.group, obs.domain, obs.pair), strict=True):
        if array is not None:
            columns[names["", field]] = RawColumn(np.asarray(array))
    for spec in obs.schema.modalities:
        part = obs.parts[spec.name]
        for field in CELL_FIELDS:
            array = _stated(part, field)
            if array is None:
                continue
            for at, (base, unit, ucd) in enumerate(_bases(spec)):
                values = array[:, at] if spec.cells else array
                if field not in ("value", "sigma"):
                    unit, ucd = None, ""
                columns[names[base, field]] = RawColumn(values, unit or None, ucd if field == "value" else "")
        if part.extent is not None:
            columns[names[spec.name, "extent"]] = RawColumn(np.asarray(part.extent))
    return RawTable(columns, len(obs), source, obs.schema)


def from_columns(table: RawTable, schema: Schema) -> Observations:
    """The observations that :func:`to_columns` wrote, restricted to the modalities of ``schema``.

    Raises:
        DataError: a column is gone or has another shape, or an id is missing or duplicated.
    """
    names = _names(table.schema or schema)
    if table.rows == 0:
        raise DataError(f"Expected at least one row in {table.source}; got an empty table. Check the file.")
    ids = canonical_ids(table.column(names["", "id"]).values)
    parts = {spec.name: _part(table, spec, names, len(ids)) for spec in schema.modalities}
    group, domain, pair = (table.columns.get(names["", field]) for field in ROW_FIELDS)
    return Observations(
        schema,
        parts,
        ids,
        np.arange(len(ids)),
        len(ids),
        None if group is None else canonical_ids(group.values, unique=False),
        *(None if column is None else column.values.astype(np.int64) for column in (domain, pair)),
    )


def is_native(table: RawTable, schema: Schema) -> bool:
    """True where the file was written with these modalities, so that its own layout may be read."""
    own = table.schema
    return (
        own is not None
        and (schema.id, schema.group) == (own.id, own.group)
        and all(spec in own.modalities for spec in schema.modalities)
    )


def declared_columns(obs: Observations, source: str) -> RawTable:
    """Scalar columns only, under the names that the schema declares, for a format without arrays, units or a schema.

    An array modality is spread over NAME_0 … NAME_{D-1}. Unseen and absent cells are NaN. Error bars go to the
    declared ``sigma`` or ``ivar`` column (else NAME_sigma) and limits to the declared ``limit`` column (else
    NAME_limit); a schema that is to read them back must declare these columns.

    Raises:
        DataError: a limit in an array modality, for which a schema has no column.
    """
    columns = {obs.schema.id: RawColumn(obs.ids)}
    if obs.group is not None:
        columns[obs.schema.group or "group"] = RawColumn(obs.group)
    for spec in obs.schema.modalities:
        part = obs.parts[spec.name]
        for name, array in _declared(spec, part):
            flat = np.asarray(array, dtype=np.float64).reshape(len(obs), -1)
            wide = {name: flat[:, 0]} if flat.shape[1] == 1 else {f"{name}_{i}": flat[:, i] for i in range(spec.size)}
            twice = [one for one in wide if one in columns]
            if twice:
                raise DataError(
                    f"Expected distinct column names in {source}; got {twice[0]!r} twice. Rename it in the schema."
                )
            columns.update({one: RawColumn(values) for one, values in wide.items()})
    return RawTable(columns, len(obs), source)


def _declared(spec: ModalitySpec, part: Modality) -> Iterator[tuple[str, FloatArray]]:
    spec = _inside(spec)
    limited = np.asarray(part.state) > State.MEASURED
    if not spec.cells or spec.column is not None:
        if limited.any():
            raise DataError(
                f"Expected no limits in array modality '{spec.name}'; got {int(limited.sum())}, and CSV has no place "
                "for them. Write Parquet, FITS, ECSV or NPZ."
            )
        own = Cell(name=spec.name, column=spec.column, sigma=spec.sigma, ivar=spec.ivar)
        yield from _declared_cell(own, part)
        if spec.mask is not None:
            yield spec.mask, ~np.asarray(part.seen)
        if spec.coord is not None:
            grid = np.full(spec.shape, np.nan) if spec.grid is None else spec.grid.centres()
            yield spec.coord, np.broadcast_to(grid, part.value.shape) if part.coord is None else part.coord
        return
    for at, cell in enumerate(spec.cells):
        yield from _declared_cell(cell, part.map(lambda array, at=at: array[:, at] if array.ndim == 2 else array))
        if cell.limit is not None or limited[:, at].any():
            state = np.asarray(part.state)[:, at]
            yield (
                cell.limit or f"{cell.column or cell.name}_limit",
                (state == State.ABOVE).astype(int) - (state == State.BELOW),
            )


def _declared_cell(cell: Cell, part: Modality) -> Iterator[tuple[str, FloatArray]]:
    name, seen = cell.column or cell.name, np.asarray(part.seen)
    yield name, np.where(seen, part.value, np.nan)
    sigma = None if part.sigma is None else np.where(seen, part.sigma, np.nan)
    if cell.ivar is not None:
        if sigma is None or np.isnan(sigma[seen]).any():
            raise DataError(
                f"Expected an error bar in every seen cell of {name!r}, whose schema declares the inverse variance "
                f"{cell.ivar!r}; got cells without. Declare `sigma` instead, or write Parquet, FITS, ECSV or NPZ."
            )
        with np.errstate(divide="ignore"):
            yield cell.ivar, sigma**-2.0
    elif cell.sigma is not None or (sigma is not None and np.isfinite(sigma).any()):
        yield cell.sigma or f"{name}_sigma", np.full(seen.shape, np.nan) if sigma is None else sigma


def _stated(part: Modality, field: str) -> FloatArray | IntArray | None:
    """The array of a field, or None where it says nothing that the value does not."""
    array = getattr(part, field)
    if array is None:
        return None
    if field != "state":
        return np.asarray(array, dtype=np.float64)
    state = np.asarray(array, dtype=np.uint8)
    plain = np.where(np.isfinite(np.asarray(part.value)), State.MEASURED, State.UNSEEN)
    return None if np.array_equal(state, plain) else state


def _part(table: RawTable, spec: ModalitySpec, names: dict[tuple[str, str], str], size: int) -> Modality:
    found: dict[str, FloatArray | None] = {}
    for field in CELL_FIELDS:
        own = [names[base, field] for base, _, _ in _bases(spec)]
        if field != "value" and own[0] not in table.columns:
            found[field] = None
            continue
        arrays = [table.numbers(name) for name in own]
        array = np.stack(arrays, axis=1) if spec.cells else arrays[0]
        if array.size != size * spec.size or array.dtype == object:
            raise DataError(
                f"Expected {size} rows of shape {spec.shape} in column {own[0]!r} of {table.source}; got shape "
                f"{array.shape}. The file was changed after it was written; write it anew."
            )
        found[field] = array.reshape(size, *spec.shape)
    extent = table.columns.get(names[spec.name, "extent"])
    state = found["state"]
    return modality(
        spec,
        found["value"],  # type: ignore[arg-type] - always there
        sigma=found["sigma"],
        state=None if state is None else state.astype(np.int8),
        coord=found["coord"],
        exposure=found["exposure"],
        extent=None if extent is None else extent.values.astype(np.int64),
    )


def _bases(spec: ModalitySpec) -> list[tuple[str, str, str]]:
    """(key, unit, UCD) of each set of columns: one per cell, or one for the whole modality."""
    if not spec.cells:
        return [(spec.name, spec.unit, spec.ucd)]
    units = spec.cell_units()
    return [(f"{spec.name}\n{cell.name}", units[i], cell.ucd or spec.ucd) for i, cell in enumerate(spec.cells)]


def _names(schema: Schema) -> dict[tuple[str, str], str]:
    """The column of every (key, field), distinct without regard to case, and a function of the schema alone."""
    taken: set[str] = set()
    names: dict[tuple[str, str], str] = {}

    def claim(key: tuple[str, str], *wanted: str) -> None:
        free = next(name for name in _spellings(wanted) if name.lower() not in taken)
        taken.add(free.lower())
        names[key] = free

    claim(("", "id"), schema.id)
    claim(("", "group"), schema.group or "group")
    specs = [_inside(spec) for spec in schema.modalities]
    for spec in specs:
        owners = spec.cells or (Cell(name=spec.name, column=spec.column, sigma=spec.sigma),)
        for cell, (base, _, _) in zip(owners, _bases(spec), strict=True):
            own = cell.column or cell.name
            claim((base, "value"), own, f"{spec.name}_{own}")
    for spec in specs:
        owners = spec.cells or (Cell(name=spec.name, column=spec.column, sigma=spec.sigma),)
        for cell, (base, _, _) in zip(owners, _bases(spec), strict=True):
            own = names[base, "value"]
            claim((base, "sigma"), *([cell.sigma] if cell.sigma else []), f"{own}_sigma")
            for field in ("state", "coord", "exposure"):
                claim((base, field), f"{own}_{field}")
        claim((spec.name, "extent"), f"{spec.name}_extent")
    claim(("", "domain"), "domain")
    claim(("", "pair"), "pair")
    return names


def _inside(spec: ModalitySpec) -> ModalitySpec:
    """The modality as a column of a table, without the names of files that it was read from."""
    files = {
        field: None for field in ("column", "sigma", "ivar", "mask") if PLACEHOLDER.search(getattr(spec, field) or "")
    }
    return spec.model_copy(update=files)


def _spellings(wanted: tuple[str, ...]) -> Iterator[str]:
    yield from wanted
    number = 2
    while True:
        yield f"{wanted[-1]}_{number}"
        number += 1
