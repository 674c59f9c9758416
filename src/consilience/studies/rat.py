"""Position of a running rat from hippocampal spikes and the reverse, on contiguous runs never trained on.

Place cells fire at one place and in one direction of running, so their decoder is deep. Data: nelpy's example of a rat
on a linear track.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field
from scipy.ndimage import gaussian_filter1d
from scipy.special import gammaln

from consilience import plots
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, ModalitySpec, Schema, TimeBins, validated
from consilience.predict.fitted import Fitted
from consilience.studies.runner import Results, StudyConfig, read_arrays
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "run", "runs"]

SMOOTH = 0.25  # s, of the position before its speed is taken
RESTING = 500.0  # pixels: beyond the track's end is the resting pot
JOINED = 0.5  # s, shortest pause that parts two runs


class Settings(Frozen):
    """Rows, split and decoders."""

    width: float = Field(gt=0)  # s, bins
    bins: int = Field(ge=4)  # of the longest run; longer ones are cut
    speed: float = Field(gt=0)  # pixels per second above which the rat runs
    least: float = Field(gt=0)  # s, shortest run that is used
    folds: int = Field(ge=2)  # of contiguous runs
    lags: int = Field(ge=0)  # bins before and after that the ridge decoder reads
    draws: int = Field(default=200, ge=20)


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Fit on all folds of runs but one, decode position from spikes there and the reverse; so for each fold.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Folder with ``linear_track.npz``.
        seed: Of the training.
        quick: Tiny sizes; already in ``config``.
        out: Folder for the model of the last fold.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
    """
    size = validated(Settings, config.study, where="[study]")
    table = runs(read_arrays(data, "linear_track"), size)
    folds = np.array_split(np.arange(len(table)), size.folds)
    found = []
    for test in folds:
        train = np.setdiff1d(np.arange(len(table)), test)
        found.append(_fold(config, size, table[train].renumbered(), table[test].renumbered(), seed))
    found[-1].fitted.save(out / "model")
    weights = np.array([one.bins for one in found], dtype=float)
    names = found[0].numbers
    mean = {name: float(np.average([one.numbers[name] for one in found], weights=weights)) for name in names}
    rows = [[name, mean[name], *(one.numbers[name] for one in found)] for name in names]
    title = f"{len(table)} runs in {size.folds} contiguous folds"
    columns = ["number", "mean", *(f"fold {k}" for k in range(size.folds))]
    numbers = {**mean, "runs": len(table), "units": table.schema["spikes"].shape[1]}
    return Results(numbers, {title: Table(rows=rows, names=columns)}, {"position": _figure(found[-1], size)})


def runs(arrays: Mapping[str, Any], size: Settings) -> Observations:
    """Runs as rows: spike counts (bins, units) and the position along the track (bins,) in pixels."""
    edges = np.arange(arrays["pos_time_s"][0], arrays["pos_time_s"][-1], size.width)
    place = np.searchsorted(edges, arrays["pos_time_s"], side="right") - 1
    good = arrays["pos_x_px"] > 0
    count = np.bincount(place[good], minlength=len(edges))
    total = np.bincount(place[good], arrays["pos_x_px"][good].astype(float), minlength=len(edges))
    seen = count > 0
    position = np.interp(np.arange(len(edges)), np.flatnonzero(seen), total[seen] / count[seen])
    speed = np.abs(np.gradient(gaussian_filter1d(position, SMOOTH / size.width), size.width))
    units = int(arrays["spike_unit"].max()) + 1
    spikes = np.zeros((len(edges), units))
    bin_of = np.searchsorted(edges, arrays["spike_time"], side="right") - 1
    inside = (bin_of >= 0) & (bin_of < len(edges))
    np.add.at(spikes, (bin_of[inside], arrays["spike_unit"][inside]), 1)
    moving = (speed > size.speed) & (position < RESTING)
    rows = []
    for first, last in _stretches(moving, round(JOINED / size.width)):
        rows += [(k, min(k + size.bins, last)) for k in range(first, last, size.bins)]
    rows = [(a, b) for a, b in rows if b - a >= size.least / size.width]
    values = {
        "spikes": np.full((len(rows), size.bins, units), np.nan),
        "position": np.full((len(rows), size.bins), np.nan),
    }
    for row, (a, b) in enumerate(rows):
        values["spikes"][row, : b - a], values["position"][row, : b - a] = spikes[a:b], position[a:b]
    time = TimeBins(width=size.width, unit="s")
    specs = (
        ModalitySpec(name="spikes", shape=(size.bins, units), kind="count", time=time),
        ModalitySpec(name="position", shape=(size.bins,), unit="pix", time=time),
    )
    extent = np.array([b - a for a, b in rows])
    ids = [f"{edges[a]:.1f} s" for a, _ in rows]
    return Observations.from_arrays(
        Schema(id="run", modalities=specs), values, ids=ids, extent={"spikes": extent, "position": extent}
    )


def _stretches(flags: np.ndarray, joined: int) -> list[tuple[int, int]]:
    """Begin and end of each run of true values; runs parted by fewer than ``joined`` bins are one."""
    step = np.diff(np.concatenate([[0], flags.astype(int), [0]]))
    found: list[tuple[int, int]] = []
    for begin, end in zip(np.flatnonzero(step == 1), np.flatnonzero(step == -1), strict=True):
        if found and begin - found[-1][1] < joined:
            found[-1] = (found[-1][0], int(end))
        else:
            found.append((int(begin), int(end)))
    return found


@dataclass(frozen=True, slots=True)
class _Fold:
    fitted: Fitted
    test: Observations
    draws: FloatArray  # of the position, (S, N, T)
    bins: int
    numbers: Mapping[str, float]


def _fold(config: StudyConfig, size: Settings, train: Observations, test: Observations, seed: int) -> _Fold:
    fitted = fit(config.config.family, train, config.config.train.model_copy(update={"seed": seed}))
    position, spikes = test.parts["position"].value, test.parts["spikes"].value
    known = np.isfinite(position)
    given = test.hide("position")
    draws = fitted.sample(given, ["position"], n=size.draws, seed=seed).values["position"]
    ridge = _ridge(train, test, size.lags)
    mean = train.parts["position"].value[train.parts["position"].seen].mean()
    numbers = {}
    for name, guess in (("model", np.median(draws, 0)), ("ridge", ridge), ("mean", np.full_like(position, mean))):
        numbers[f"position_error_px_{name}"] = float(np.abs(guess - position)[known].mean())
        numbers[f"position_median_error_px_{name}"] = float(np.median(np.abs(guess - position)[known]))
    rank = np.abs((draws < position).mean(0) - 0.5)[known]
    numbers |= {f"coverage{round(100 * level)}_position": float((rank < level / 2).mean()) for level in (0.68, 0.95)}
    rates = fitted.summarise(
        test.hide("spikes"), ["spikes"], statistics=["mean"], n=size.draws, seed=seed, method="expected"
    ).statistics["spikes"]["mean"]
    average = np.nanmean(train.parts["spikes"].value, axis=(0, 1)).clip(1e-4)
    numbers["bits_per_spike_from_position"] = _bits(spikes[known], rates[known], average)
    numbers["bits_per_spike_place_fields"] = _bits(spikes[known], _place_fields(train, position[known]), average)
    return _Fold(fitted, test, draws, int(known.sum()), numbers)


def _bits(counts: FloatArray, rates: FloatArray, mean: FloatArray) -> float:
    """Gain of log-likelihood over mean rates in bits, per spike; counts and rates (bins, units)."""

    def total(rate: FloatArray) -> float:
        return float((counts * np.log(rate) - rate - gammaln(counts + 1)).sum())

    return (total(rates.clip(1e-4)) - total(np.broadcast_to(mean, counts.shape))) / (counts.sum() * np.log(2))


def _place_fields(train: Observations, position: FloatArray) -> FloatArray:
    """Rates at these positions (bins, units) from smoothed histograms of the training runs, whatever the direction."""
    known = train.parts["position"].seen
    where, counts = train.parts["position"].value[known], train.parts["spikes"].value[known]
    edges = np.linspace(where.min(), where.max(), 41)
    place = np.clip(np.searchsorted(edges, where, side="right") - 1, 0, 39)
    spent = gaussian_filter1d(np.bincount(place, minlength=40).astype(float), 1.5)
    fired = np.stack([np.bincount(place, column, minlength=40) for column in counts.T], -1)
    fields = gaussian_filter1d(fired, 1.5, axis=0) / spent[:, None].clip(1e-6)
    return fields[np.clip(np.searchsorted(edges, position, side="right") - 1, 0, 39)]


def _ridge(train: Observations, test: Observations, lags: int) -> FloatArray:
    """Position (N, T) by ridge regression on square roots of counts and of those of neighbouring bins."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(rows: Observations) -> FloatArray:
        counts = np.sqrt(np.nan_to_num(rows.parts["spikes"].value))
        padded = np.pad(counts, ((0, 0), (lags, lags), (0, 0)))
        return np.concatenate([padded[:, k : k + counts.shape[1]] for k in range(2 * lags + 1)], -1)

    known = train.parts["position"].seen
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    model.fit(features(train)[known], train.parts["position"].value[known])
    both = features(test)
    return model.predict(both.reshape(-1, both.shape[-1])).reshape(both.shape[:2])


def _figure(one: _Fold, size: Settings) -> plots.Figure:
    """Decoded and true position in the eight longest runs of a held-out fold."""
    extent = np.asarray(one.test.parts["position"].extent)
    time = size.width * (np.arange(size.bins) + 0.5)
    chosen = np.sort(np.argsort(-extent, kind="stable")[:8])
    panels = []
    for half in np.array_split(chosen, 2):
        panels.append(
            [
                plots.Track(
                    time,
                    one.draws[:, k],
                    one.test.parts["position"].value[k],
                    None,
                    plots.Labels("time", "position", f"run at {one.test.ids[k]}", "s", "pix"),
                )
                for k in half
            ]
        )
    return plots.tracks(panels)
