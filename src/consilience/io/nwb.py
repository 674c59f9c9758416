"""Neurodata Without Borders: spike times, time series and trials, binned as a schema says.

A trial is a row. A modality with time bins whose column is ``units`` counts the spikes of every unit in every bin; any
other column names a time series of the file, averaged over its samples in each bin. Trials shorter than the schema's
bins have an extent; bins without a sample are unseen.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema, TimeBins, nearest
from consilience.errors import DataError, SchemaError
from consilience.io.conversion import linear_map
from consilience.io.raw import guarded
from consilience.typing import FloatArray, IntArray, PathOrStr

__all__ = ["UNITS", "read_nwb"]

_File = Any  # pynwb's file, whose fields its own annotations do not describe
UNITS = "units"  # the column that stands for the spikes of all units
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
UNSTATED = ("", "unknown", "n/a", "n.a.", "a.u.", "au", "none", "unitless", "dimensionless")


def read_nwb(path: PathOrStr, schema: Schema) -> Observations:
    """The trials of an NWB file as rows.

    Arguments:
        path: An HDF5 file of NWB 2. Extensions that it carries are not loaded.
        schema: Modalities with ``time`` bins; ``column`` is ``"units"`` or the name of a time series.

    Raises:
        DataError: not an NWB file, no trials, no such series, another number of units or columns, a trial longer than
            the schema's bins, or trials without an end.
        SchemaError: a modality without time bins, or a unit that does not convert.
    """
    try:
        from pynwb import NWBHDF5IO
    except ImportError as error:
        raise DataError("Expected pynwb to read NWB; it is not installed: pip install consilience[neuro].") from error
    path = Path(path)
    if not path.is_file():
        raise DataError(f"Expected a file at {path}; got none. Check the path.")
    widths = {spec.name: _time(spec) for spec in schema.modalities}
    with guarded(path, "NWB", DAMAGE):
        handle: Any = NWBHDF5IO(path=str(path), mode="r", load_namespaces=False)
    with handle:
        with guarded(path, "NWB", DAMAGE):
            content = handle.read()
            ids, starts, stops = _trials(content, path)
        values, extents = {}, {}
        for spec in schema.modalities:
            time = widths[spec.name]
            extents[spec.name] = _extents(spec, time, ids, stops - starts, path)
            with guarded(path, "NWB", DAMAGE):
                values[spec.name] = _binned(content, spec, time, starts, path)
    return Observations.from_arrays(schema, values, ids=ids, extent=extents)


def _time(spec: ModalitySpec) -> TimeBins:
    if spec.time is None:
        raise SchemaError(f"Expected time bins for '{spec.name}', as NWB holds events in time; got none. Set `time`.")
    return spec.time


def _trials(content: _File, path: Path) -> tuple[list[str], FloatArray, FloatArray]:
    """Ids, starts and stops in seconds."""
    table = content.trials
    if table is None or len(table) == 0:
        raise DataError(f"Expected trials in {path}; got none. Add them to the file with NWBFile.add_trial.")
    starts, stops = (np.asarray(table[name][:], dtype=float) for name in ("start_time", "stop_time"))
    ids = [str(one) for one in table.id[:]]
    wrong = ~(stops > starts)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"Expected every trial of {path} to stop after it starts; got {starts[row]:g} to {stops[row]:g} s in trial "
            f"{ids[row]}."
        )
    return ids, starts, stops


def _extents(spec: ModalitySpec, time: TimeBins, ids: list[str], lasting: FloatArray, path: Path) -> IntArray:
    """Whole bins of every trial."""
    scale = linear_map(time.unit, "s", f"the bin width of '{spec.name}'")[0]
    bins = np.floor((lasting - scale * time.start) / (scale * time.width) + 1e-6).astype(int)
    if bins.max() > spec.shape[0]:
        row = int(np.argmax(bins))
        raise DataError(
            f"Expected trials of at most {spec.shape[0]} bins of {time.width:g} {time.unit} in '{spec.name}'; got "
            f"{bins[row]} in trial {ids[row]} of {path}. Enlarge the shape or the bins."
        )
    return bins.clip(0)


def _binned(content: _File, spec: ModalitySpec, time: TimeBins, starts: FloatArray, path: Path) -> FloatArray:
    """Values (N, *event) of one modality."""
    scale = linear_map(time.unit, "s", f"the bin width of '{spec.name}'")[0]
    edges = scale * (time.start + time.width * np.arange(spec.shape[0] + 1))
    if (spec.column or spec.name) == UNITS:
        found = _counts(content, starts[:, None] + edges, path)
    else:
        moments, samples = _series(content, spec, path)
        found = np.stack([_means(moments, samples, start + edges) for start in starts])
    if found.shape[1:] != spec.shape:
        raise DataError(f"Expected event shape {spec.shape} for '{spec.name}'; got {found.shape[1:]} in {path}.")
    return found


def _counts(content: _File, edges: FloatArray, path: Path) -> FloatArray:
    """Spikes of every unit in every bin, (N, T, units)."""
    if content.units is None or len(content.units) == 0:
        raise DataError(f"Expected units with spike times in {path}; got none.")
    columns = []
    for unit in range(len(content.units)):
        before = np.searchsorted(np.sort(np.asarray(content.units.get_unit_spike_times(index=unit))), edges)
        columns.append(np.diff(before, axis=1))
    return np.stack(columns, -1).astype(float)


def _series(content: _File, spec: ModalitySpec, path: Path) -> tuple[FloatArray, FloatArray]:
    """Times in seconds (S,) and samples (S, …) of a time series, in the schema's unit."""
    known = dict(_all_series(content))
    name = spec.column or spec.name
    if name not in known:
        raise DataError(
            f"Expected 'units' or a time series among {sorted(known)} in {path}; got {name!r}.{nearest(name, known)}"
        )
    series = known[name]
    samples = np.asarray(series.data[:], dtype=float) * (series.conversion or 1.0) + (getattr(series, "offset", 0) or 0)
    stated = str(series.unit or "").strip()
    if stated.lower() in UNSTATED:
        stated = ""
    a, b = linear_map(_singular(stated), spec.unit, f"the series {name!r} of {path}")
    if series.timestamps is not None:
        moments = np.asarray(series.timestamps[:], dtype=float)
    else:
        moments = float(series.starting_time) + np.arange(len(samples)) / float(series.rate)
    if len(moments) != len(samples) or (np.diff(moments) < 0).any():
        raise DataError(f"Expected one increasing time per sample of {name!r} in {path}; got {len(moments)} times.")
    return moments, a * samples + b


def _all_series(content: _File) -> Iterator[tuple[str, Any]]:
    """Every time series of the file by its own name."""
    from pynwb import TimeSeries

    found: Mapping[str, Any] = content.objects
    for one in found.values():
        if isinstance(one, TimeSeries):
            yield str(one.name), one


def _means(moments: FloatArray, samples: FloatArray, edges: FloatArray) -> FloatArray:
    """Mean of the finite samples in each bin, (T, …); NaN where there is none."""
    place = np.searchsorted(edges, moments, side="right") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    place, samples = place[inside], samples[inside]
    finite = np.isfinite(samples)
    total, count = (np.zeros((len(edges) - 1, *samples.shape[1:])) for _ in range(2))
    np.add.at(total, place, np.where(finite, samples, 0.0))
    np.add.at(count, place, finite)
    with np.errstate(invalid="ignore"):
        return total / count


def _singular(unit: str) -> str:
    """A unit as astropy spells it: NWB recommends plurals such as "meters"."""
    from astropy import units

    try:
        units.Unit(unit)
    except ValueError:
        return unit.removesuffix("s")
    return unit
