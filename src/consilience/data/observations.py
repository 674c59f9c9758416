"""What was seen: values, error bars and the state of every cell, by modality."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, RequestError
from consilience.typing import BoolArray, FloatArray, IntArray, StringArray

if TYPE_CHECKING:
    import torch

__all__ = ["Modality", "Observations", "State", "canonical_ids", "modality", "split_rows"]


class State(enum.IntEnum):
    """State of a cell. A limit's ``value`` is the bound: BELOW means the truth lies below it."""

    ABSENT = 0  # outside the object's extent
    UNSEEN = 1
    MEASURED = 2
    BELOW = 3
    ABOVE = 4


@dataclass(frozen=True, slots=True)
class Modality:
    """Cells of one modality: numpy arrays in a table, torch tensors in a batch.

    Arguments:
        value: What was measured, or the bound of a limit, shape (N, *event); NaN in a table where unseen.
        state: :class:`State` of each cell, shape (N, *event), int8.
        sigma: Standard error, same shape and unit, or None; NaN in a seen cell means that none was stated.
        coord: Coordinate of each cell, same shape, or None.
        exposure: Exposure of each cell (bin width for counts), same shape, or None.
        extent: True length along the first event axis, shape (N,), or None.
    """

    value: Any
    state: Any
    sigma: Any = None
    coord: Any = None
    exposure: Any = None
    extent: Any = None

    @property
    def seen(self) -> Any:  # noqa: ANN401 - numpy or torch
        """True where something is known of the cell, a value or a limit, shape (N, *event)."""
        return self.state >= State.MEASURED

    @property
    def measured(self) -> Any:  # noqa: ANN401 - numpy or torch
        """True where the cell holds a value rather than a limit."""
        return self.state == State.MEASURED

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: Any) -> "Modality":  # noqa: ANN401 - any index of the first axis
        return self.map(lambda array: array[rows])

    def map(self, function: Any) -> "Modality":  # noqa: ANN401 - array -> array
        """Apply one function to every array that is there."""
        fields = (self.value, self.state, self.sigma, self.coord, self.exposure, self.extent)
        value, state, *others = (None if array is None else function(array) for array in fields)
        return Modality(value, state, *others)

    def hidden(self, hide: BoolArray) -> "Modality":
        """The same cells with those in ``hide`` (N, *event) unseen, without a trace of what was there."""
        hide = hide & (self.state != State.ABSENT)

        def blank(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else np.where(hide, np.nan, array)

        state = np.where(hide, np.int8(State.UNSEEN), self.state)
        return Modality(
            blank(self.value), state, blank(self.sigma), blank(self.coord), blank(self.exposure), self.extent
        )


class _Fields(TypedDict, total=False):
    """Arrays beside the values, by modality."""

    sigma: Mapping[str, FloatArray] | None
    state: Mapping[str, IntArray] | None
    exposure: Mapping[str, FloatArray] | None
    extent: Mapping[str, IntArray] | None


def modality(
    spec: ModalitySpec,
    value: FloatArray,
    *,
    sigma: FloatArray | None = None,
    state: IntArray | None = None,
    coord: FloatArray | None = None,
    exposure: FloatArray | None = None,
    extent: IntArray | None = None,
    ids: Sequence[str] | StringArray | None = None,
) -> Modality:
    """Check and canonicalise user arrays into a :class:`Modality`.

    A cell is unseen where its value is not finite, where its sigma is infinite (zero inverse variance), or where
    ``state`` says so. A NaN sigma in a seen cell means that no error bar was stated. Beyond ``extent`` it is absent.

    Raises:
        DataError: a wrong shape, a negative sigma, a negative count, a category out of range; names row and cell.

    Example:
        >>> import numpy as np
        >>> modality(ModalitySpec(name="x", shape=(2,)), np.array([[1.0, np.nan]])).seen.tolist()
        [[True, False]]
    """
    value = np.array(value, dtype=np.float64)
    if value.ndim != 1 + len(spec.shape) or value.shape[1:] != spec.shape:
        raise DataError(
            f"Expected modality '{spec.name}' with event shape {spec.shape}; got {value.shape[1:]}. "
            "Re-read with the schema's grid, or change the schema."
        )
    arrays = {"sigma": sigma, "state": state, "coord": coord, "exposure": exposure}
    for field, array in arrays.items():
        if array is not None and np.shape(array) != value.shape:
            raise DataError(
                f"Expected {field} of '{spec.name}' with shape {value.shape}; got {np.shape(array)}. "
                f"Give one {field} per cell."
            )
    given = np.full(value.shape, State.MEASURED, np.int8) if state is None else np.array(state, dtype=np.int8)
    if given.size and (given.min() < State.ABSENT or given.max() > State.ABOVE):
        raise DataError(f"Expected states 0 to 4 in '{spec.name}'; got {given.min()} to {given.max()}.")
    unseen = ~np.isfinite(value)
    if sigma is not None:
        sigma = np.array(sigma, dtype=np.float64)
        _refuse(sigma < 0, spec, ids, "a sigma that is not negative", sigma)
        unseen |= np.isposinf(sigma)
    given[unseen & (given >= State.MEASURED)] = State.UNSEEN
    if extent is not None:
        extent = np.asarray(extent, dtype=np.int64)
        if extent.shape != value.shape[:1] or not spec.shape:
            raise DataError(f"Expected one extent per row of '{spec.name}' (an array); got shape {extent.shape}.")
        inside = np.arange(spec.shape[0]) < extent[:, None]
        given[~inside] = State.ABSENT
    seen = given >= State.MEASURED
    if spec.kind in ("count", "category", "binary"):
        top = {"binary": 1.0, "category": spec.classes - 1.0, "count": np.inf}[spec.kind]
        with np.errstate(invalid="ignore"):
            wrong = seen & ((value < 0) | (value > top) | (value != np.round(value)))
        _refuse(wrong, spec, ids, f"whole numbers from 0 to {top:g} ({spec.kind})", value)
    if spec.kind == "positive":
        with np.errstate(invalid="ignore"):
            _refuse((given == State.MEASURED) & (value <= 0), spec, ids, "positive values", value)

    def blank(array: FloatArray | None) -> FloatArray | None:
        return None if array is None else np.where(seen, np.asarray(array, dtype=np.float64), np.nan)

    return Modality(blank(value), given, blank(sigma), blank(coord), blank(exposure), extent)


@dataclass(frozen=True, slots=True)
class Observations:
    """A table of objects seen through several modalities, every cell with a state and an error bar.

    Make one with :meth:`from_arrays` or ``cs.read``; all checks happen there.

    Arguments:
        schema: Names, shapes and units.
        parts: One :class:`Modality` per name of the schema.
        ids: Canonical identifiers, shape (N,), unique.
        index: Row of the training table, shape (N,); -1 for rows that are not in it.
        total: Number of rows of the training table.
        group: Group label of each row, shape (N,), or None.
        domain: 0 simulated, 1 real, shape (N,), or None.
        pair: Number of the pair a row belongs to, -1 for none, shape (N,), or None.
    """

    schema: Schema
    parts: Mapping[str, Modality]
    ids: StringArray
    index: Any
    total: int
    group: StringArray | None = None
    domain: IntArray | None = None
    pair: IntArray | None = None

    @classmethod
    def from_arrays(
        cls,
        schema: Schema,
        values: Mapping[str, FloatArray],
        *,
        ids: Iterable[object] | None = None,
        group: Iterable[object] | None = None,
        **fields: Unpack[_Fields],
    ) -> "Observations":
        """Build a checked table from plain arrays, NaN where a value was not seen.

        ``sigma``, ``state``, ``exposure``, ``extent`` are arrays by modality, as in :func:`modality`.

        Raises:
            DataError: no rows, ragged lengths, duplicated or missing ids, or what :func:`modality` refuses.
            RequestError: a name that the schema does not have.

        Example:
            >>> import numpy as np
            >>> schema = Schema(modalities=(ModalitySpec(name="x", shape=(2,)),))
            >>> obs = Observations.from_arrays(schema, {"x": np.array([[1.0, np.nan], [2.0, 3.0]])})
            >>> len(obs), obs.parts["x"].seen.sum()
            (2, np.int64(3))
        """
        given: dict[str, Mapping[str, Any]] = {field: by_name or {} for field, by_name in fields.items()}  # type: ignore[assignment]
        for name in (*values, *(name for by_name in given.values() for name in by_name)):
            schema[name]
        missing = [name for name in schema.names if name not in values]
        if missing:
            raise DataError(f"Expected values for every modality of the schema; got none for {missing}.")
        lengths = {name: len(values[name]) for name in schema.names}
        size = next(iter(lengths.values()))
        if len(set(lengths.values())) != 1:
            raise DataError(f"Expected the same number of rows in every modality; got {lengths}.")
        if size == 0:
            raise DataError("Expected at least one row; got an empty table. Check the file or the selection.")
        names = canonical_ids(range(size) if ids is None else ids)
        if len(names) != size:
            raise DataError(f"Expected one id per row ({size}); got {len(names)}.")
        parts = {
            name: modality(
                schema[name],
                np.asarray(values[name]),
                **{field: by_name.get(name) for field, by_name in given.items()},
                ids=names,
            )
            for name in schema.names
        }
        groups = None if group is None else canonical_ids(group, unique=False)
        return cls(schema, parts, names, np.arange(size), size, groups)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> "Observations":  # noqa: ANN401 - slice, mask, indices or an id
        if isinstance(rows, str):
            found = np.flatnonzero(self.ids == rows)
            if not len(found):
                raise RequestError(f"Expected the id of a row; got {rows!r}. See obs.ids.")
            rows = found
        elif isinstance(rows, int | np.integer):
            rows = [int(rows)]
        return Observations(
            self.schema,
            {name: part[rows] for name, part in self.parts.items()},
            self.ids[rows],
            self.index[rows],
            self.total,
            None if self.group is None else self.group[rows],
            None if self.domain is None else self.domain[rows],
            None if self.pair is None else self.pair[rows],
        )

    def select(self, *names: str) -> "Observations":
        """The same rows with these modalities only."""
        return replace(self, schema=self.schema.select(names), parts={name: self.parts[name] for name in names})

    def hide(self, *names: str) -> "Observations":
        """The same rows with these modalities unseen."""
        for name in names:
            self.schema[name]
        return self.hide_cells({name: np.ones(self.parts[name].value.shape, bool) for name in names})

    def hide_cells(self, hide: Mapping[str, BoolArray]) -> "Observations":
        """The same rows with single cells unseen: ``hide[name]`` is True there, shape (N, *event).

        Raises:
            DataError: a mask of the wrong shape.
        """
        parts = dict(self.parts)
        for name, mask in hide.items():
            expected = parts[self.schema[name].name].value.shape
            if np.shape(mask) != expected:
                raise DataError(f"Expected a mask of shape {expected} for '{name}'; got {np.shape(mask)}.")
            parts[name] = parts[name].hidden(np.asarray(mask, bool))
        return replace(self, parts=parts)

    def join(self, other: "Observations") -> "Observations":
        """Outer join on the ids: the modalities of both; an object one side lacks is unseen there.

        Raises:
            RequestError: a modality that both sides have.
        """
        both = [name for name in other.schema.names if name in self.schema]
        if both:
            raise RequestError(f"Expected distinct modalities on the two sides; got {both} on both. Select first.")
        extra = other.ids[~np.isin(other.ids, self.ids)]
        ids = np.concatenate([self.ids, extra])
        parts: dict[str, Modality] = {}
        for side in (self, other):
            row = {key: position for position, key in enumerate(side.ids)}
            rows = np.array([row.get(key, -1) for key in ids])
            for name, part in side.parts.items():
                there = (rows >= 0).reshape(-1, *([1] * (part.value.ndim - 1)))
                taken = part[rows]
                parts[name] = taken.hidden(np.broadcast_to(~there, taken.value.shape))
        schema = self.schema.model_copy(update={"modalities": self.schema.modalities + other.schema.modalities})
        return Observations(schema, parts, ids, np.arange(len(ids)), len(ids))

    def split(self, fraction: float, *, seed: int, by: str | None = None) -> tuple["Observations", "Observations"]:
        """Two disjoint tables, the first with about ``fraction`` of the rows; ``by="group"`` keeps groups whole.

        Each part becomes a training table of its own (``index`` and ``total`` start anew).

        Raises:
            RequestError: a fraction outside (0, 1), an unknown ``by``, or an empty side.
        """
        first = split_rows(self.ids, self.group, fraction, seed=seed, by=by)
        return self[first].renumbered(), self[~first].renumbered()

    def renumbered(self) -> "Observations":
        """The same rows as a training table of their own: ``index`` 0 … N-1 and ``total`` N."""
        return replace(self, index=np.arange(len(self)), total=len(self))

    def detached(self) -> "Observations":
        """The same rows as rows of no training table: ``index`` -1."""
        return replace(self, index=np.full(len(self), -1))

    def to(self, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "Observations":
        """The same table as torch tensors on a device; floating arrays take ``dtype`` (float32 by default)."""
        import torch

        def tensor(array: Any) -> "torch.Tensor":  # noqa: ANN401 - numpy or torch
            found = torch.as_tensor(array)
            target = (dtype or torch.float32) if found.is_floating_point() else found.dtype
            return found.to(device=device, dtype=target)

        parts = {name: part.map(tensor) for name, part in self.parts.items()}
        return replace(self, parts=parts, index=tensor(self.index))


def split_rows(
    ids: StringArray, group: StringArray | None, fraction: float, *, seed: int, by: str | None = None
) -> BoolArray:
    """Which rows are on the first side of :meth:`Observations.split`, shape (N,)."""
    if not 0 < fraction < 1:
        raise RequestError(f"Expected a fraction between 0 and 1; got {fraction}.")
    if by not in (None, "group"):
        raise RequestError(f"Expected by=None or by='group'; got {by!r}.")
    if by == "group" and group is None:
        raise RequestError("Expected a group column in the schema for by='group'; got none. Set schema.group.")
    keys = group if by == "group" and group is not None else ids
    units = np.unique(keys)
    order = np.random.default_rng(seed).permutation(len(units))
    first = np.isin(keys, units[order[: round(fraction * len(units))]])
    if first.all() or not first.any():
        raise RequestError(f"Expected rows on both sides of the split; got {first.sum()} of {len(ids)} first.")
    return first


def canonical_ids(ids: Iterable[object], *, unique: bool = True) -> StringArray:
    """One spelling per identifier: ``7``, ``b"7"``, ``7.0`` and ``"7 "`` are ``"7"``.

    Raises:
        DataError: an id that is missing (None, NaN, empty) or duplicated; names the row.

    Example:
        >>> canonical_ids([7, b"8", "9 "]).tolist()
        ['7', '8', '9']
    """
    names: list[str] = []
    for row, key in enumerate(ids):
        text = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        if isinstance(text, float | np.floating) and float(text).is_integer():
            text = int(text)
        name = "" if text is None else str(text).strip()
        if name in ("", "nan", "None", "<NA>", "--"):
            raise DataError(f"Expected an id in every row; got {key!r} in row {row}. Fill or drop that row.")
        names.append(name)
    if unique and len(set(names)) != len(names):
        first: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in first:
                raise DataError(
                    f"Expected unique ids; got {name!r} in rows {first[name]} and {row}. Drop or rename one."
                )
            first[name] = row
    return np.array(names, dtype=np.str_)


def _refuse(
    wrong: BoolArray, spec: ModalitySpec, ids: Sequence[str] | StringArray | None, expected: str, array: FloatArray
) -> None:
    if not wrong.any():
        return
    at = np.argwhere(wrong)[0]
    cell = spec.cell_names()[int(np.ravel_multi_index(tuple(at[1:]), spec.shape))] if spec.shape else spec.name
    name = "" if ids is None else f" (id {ids[at[0]]!r})"
    raise DataError(
        f"Expected {expected} in '{spec.name}'; got {array[tuple(at)]:g} in row {at[0]}{name}, cell {cell!r}, "
        f"and {int(wrong.sum()) - 1} more. Mend the table or mark the cell unseen."
    )
