"""Heading of walking flies from two populations of neurons of the ellipsoid body, on flies never trained on.

The phase of the bump of activity follows the fly's heading up to an offset that differs between trials, and drifts in
the dark. Every decoder is therefore aligned on the first fifth of a test trial and scored on the rest.

Data: Turner-Evans et al. (2017), eLife 6:e23496, calcium imaging at about 11.4 Hz.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, ModalitySpec, Schema, TimeBins, validated
from consilience.errors import SchemaError
from consilience.models.gp_vae import GPVAE
from consilience.predict.fitted import Fitted
from consilience.studies.runner import Results, StudyConfig, read_arrays
from consilience.train.config import TrainConfig
from consilience.typing import BoolArray, FloatArray, IntArray, StringArray
from consilience.workflow.fit import fit

__all__ = ["Recordings", "Settings", "heading_error", "run"]

NEURAL = ("pen1", "epg")
WILD = 8.0  # standard deviations of a trial's fluorescence beyond which a cell is an artefact of motion
BAND = 0.68


class Settings(Frozen):
    """Rows, split and decoders."""

    stretches: int = Field(ge=5, multiple_of=5)  # equal parts of a trial, each a row; a fifth of them align the heading
    folds: int = Field(ge=2)  # of whole flies
    lags: int = Field(ge=0)  # bins before and after that the ridge decoder reads
    draws: int = Field(default=200, ge=20)


@dataclass(frozen=True, slots=True)
class Recordings:
    """Trials cut into stretches.

    Arguments:
        neural: Standardised fluorescence of each population, (trials, stretches, T, 16).
        heading: Radians, (trials, stretches, T).
        phase: That of the bump of the E-PG neurons, radians, same shape.
        dark: Trials without a visible landmark, (trials,).
        fly: Name of the fly, (trials,).
        width: Bin width in seconds.
    """

    neural: Mapping[str, FloatArray]
    heading: FloatArray
    phase: FloatArray
    dark: BoolArray
    fly: StringArray
    width: float

    @classmethod
    def of(cls, arrays: Mapping[str, Any], stretches: int) -> "Recordings":
        """Cut the file's trials; what is left at their end is not used."""
        trials = np.unique(arrays["trial"])
        rows = [np.flatnonzero(arrays["trial"] == trial) for trial in trials]
        bins = min(map(len, rows)) // stretches
        whole = np.stack([row[: bins * stretches] for row in rows])
        shape = (len(trials), stretches, bins)
        neural = {}
        for name in NEURAL:
            value = arrays[name][whole].astype(float)
            middle = np.median(value, axis=(1, 2), keepdims=True)
            spread = 1.4826 * np.median(np.abs(value - middle), axis=(1, 2), keepdims=True)
            standard = (value - middle) / spread
            neural[name] = np.where(np.abs(standard) < WILD, standard, np.nan).reshape(*shape, -1)
        around = np.exp(2j * np.pi * np.arange(neural["epg"].shape[-1]) / neural["epg"].shape[-1])
        phase = np.angle(np.nansum(neural["epg"] * around, axis=-1))
        width = float(np.median([np.median(np.diff(arrays["time"][row])) for row in rows]))
        heading = arrays["heading_rad"][whole].astype(float).reshape(shape)
        return cls(neural, heading, phase, arrays["trial_condition"] == "Dark", arrays["trial_fly"], width)

    def __getitem__(self, trials: IntArray) -> "Recordings":
        neural = {name: value[trials] for name, value in self.neural.items()}
        dark, fly = self.dark[trials], self.fly[trials]
        return Recordings(neural, self.heading[trials], self.phase[trials], dark, fly, self.width)

    def sense(self) -> float:
        """1 or -1: whether the bump turns with the heading or against it, the more concentrated of the two."""
        lengths = [np.abs(np.exp(1j * (self.heading - s * self.phase)).mean(axis=(1, 2))).mean() for s in (1, -1)]
        return 1.0 if lengths[0] >= lengths[1] else -1.0

    def observations(self, offset: FloatArray, *names: str) -> Observations:
        """Stretches as rows; the heading less an offset per trial (trials,) as cosine and sine."""
        aligned = self.heading - offset[:, None, None]
        values = {**self.neural, "heading": np.stack([np.cos(aligned), np.sin(aligned)], -1)}
        time = TimeBins(width=round(self.width, 6), unit="s")
        specs = tuple(ModalitySpec(name=n, shape=values[n].shape[2:], time=time) for n in names)
        trials, stretches = self.heading.shape[:2]
        ids = [f"{trial}/{stretch}" for trial in range(trials) for stretch in range(stretches)]
        flat = {name: values[name].reshape(-1, *values[name].shape[2:]) for name in names}
        return Observations.from_arrays(Schema(modalities=specs), flat, ids=ids)


def heading_error(heading: FloatArray, decoded: FloatArray) -> FloatArray:
    """Mean absolute error in degrees of every trial after its first fifth, on which the offset is fitted.

    Arguments:
        heading: Radians, (trials, stretches, T).
        decoded: Radians up to an offset per trial, same shape.

    Example:
        >>> turn = np.linspace(0, 6, 20).reshape(1, 5, 4)
        >>> heading_error(turn, turn + 2.0).round(6).tolist()
        [0.0]
    """
    miss = np.angle(np.exp(1j * (heading - decoded - _offset(heading, decoded)[:, None, None])))
    return np.rad2deg(np.abs(miss[:, _first(miss) :]).mean(axis=(1, 2)))


def _first(trials: FloatArray) -> int:
    """Number of stretches, the first ones of each trial, that align the heading."""
    return trials.shape[1] // 5


def _offset(heading: FloatArray, decoded: FloatArray) -> FloatArray:
    """What is to be added to the decoded headings of each trial, radians, (trials,)."""
    turn = np.exp(1j * (heading - decoded))[:, : _first(heading)]
    return np.angle(turn.mean(axis=(1, 2)))


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Fit on the flies of all folds but one, decode the heading of the others, and so on for each fold.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Folder with ``fly_eb.npz``.
        seed: Of the folds and the training.
        quick: Tiny sizes; already in ``config``.
        out: Folder for the model of the last fold.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
        SchemaError: another family than GPVAE.
    """
    size = validated(Settings, config.study, where="[study]")
    if not isinstance(config.config.family, GPVAE):
        raise SchemaError(f"Expected the family GPVAE in [model]; got {type(config.config.family).__name__}.")
    whole = Recordings.of(read_arrays(data, "fly_eb"), size.stretches)
    flies = np.random.default_rng(seed).permutation(np.unique(whole.fly))
    folds = [np.isin(whole.fly, flies[k :: size.folds]) for k in range(size.folds)]
    errors = {name: np.full(len(whole.fly), np.nan) for name in ("model", "gpfa_linear", "ridge", "bump")}
    covered, reverse, separated = [], [], []
    for test in folds:
        first, second = whole[np.flatnonzero(~test)], whole[np.flatnonzero(test)]
        found = _fold(config, size, first, second, seed)
        for name, decoded in found.decoded.items():
            errors[name][test] = heading_error(second.heading, decoded)
        covered.append(found.covered)
        reverse.append(found.reverse)
        separated.append(found.separated)
    found.fitted.save(out / "model")
    conditions = {"light": ~whole.dark, "dark": whole.dark, "all": np.ones_like(whole.dark)}
    rows = [[name, *(float(error[some].mean()) for some in conditions.values())] for name, error in errors.items()]
    coverage = {key: float(np.mean([one[key] for one in covered])) for key in covered[0]}
    numbers = {
        "heading_error_deg": float(errors["model"].mean()),
        "heading_error_deg_ridge": float(errors["ridge"].mean()),
        "heading_error_deg_gpfa_linear": float(errors["gpfa_linear"].mean()),
        "heading_error_deg_bump": float(errors["bump"].mean()),
        **{f"heading_error_deg_{name}": float(errors["model"][some].mean()) for name, some in conditions.items()},
        **coverage,
        **{key: float(np.mean([one[key] for one in reverse])) for key in reverse[0]},
        "condition_balanced_accuracy": float(np.mean(separated)),
        "trials": len(whole.fly),
        "flies": len(flies),
    }
    title = f"Error of the heading in degrees, {len(whole.fly)} trials of {len(flies)} flies held out in turn"
    table = Table(rows=rows, names=["decoder", *conditions])
    return Results(numbers, {title: table}, {"heading": _figure(second, found.draws)})


@dataclass(frozen=True, slots=True)
class _Fold:
    fitted: Fitted
    decoded: Mapping[str, FloatArray]  # radians up to an offset, (trials, stretches, T), by decoder
    draws: FloatArray  # of the model's heading, (S, trials, stretches, T)
    covered: Mapping[str, float]
    reverse: Mapping[str, float]
    separated: float


def _fold(config: StudyConfig, size: Settings, first: Recordings, second: Recordings, seed: int) -> _Fold:
    options = config.config.train.model_copy(update={"seed": seed})
    sense = first.sense()
    offset = np.angle(np.exp(1j * (first.heading - sense * first.phase)).mean(axis=(1, 2)))
    train = first.observations(offset, *NEURAL, "heading")
    fitted = fit(config.config.family, train, options)
    shape = second.heading.shape
    blind = second.observations(np.zeros(shape[0]), *NEURAL, "heading").hide("heading")
    drawn = fitted.sample(blind, ["heading"], n=size.draws, seed=seed).values["heading"]
    angles = np.arctan2(drawn[..., 1], drawn[..., 0]).reshape(-1, *shape)
    decoded = np.angle(np.exp(1j * angles).mean(0))
    gpfa = _gpfa_linear(config, train.select(*NEURAL), blind.select(*NEURAL), train, options)
    ridge = _ridge(_lagged(first, size.lags), train.parts["heading"].value, _lagged(second, size.lags))
    found = {
        "model": decoded,
        "gpfa_linear": gpfa.reshape(shape),
        "ridge": ridge.reshape(shape),
        "bump": sense * second.phase,
    }
    own = _offset(second.heading, decoded)
    return _Fold(
        fitted,
        found,
        angles,
        _coverage(second, decoded, angles, own),
        _reverse(fitted, second, own, size, seed),
        _separation(fitted, train, first, blind, second),
    )


def _coverage(second: Recordings, decoded: FloatArray, angles: FloatArray, offset: FloatArray) -> dict[str, float]:
    """Share of headings within the model's own 68 and 95 % arcs, after the first fifth."""
    miss = np.abs(np.angle(np.exp(1j * (second.heading - decoded - offset[:, None, None]))))
    spread = np.abs(np.angle(np.exp(1j * (angles - decoded))))
    first = _first(miss)
    return {
        f"coverage{round(100 * level)}_heading": float((miss < np.quantile(spread, level, axis=0))[:, first:].mean())
        for level in (BAND, 0.95)
    }


def _reverse(fitted: Fitted, second: Recordings, offset: FloatArray, size: Settings, seed: int) -> dict[str, float]:
    """Neurons predicted from the heading alone: R² and coverage after the first fifth, which aligns the heading."""
    seen = second.observations(offset, *NEURAL, "heading")
    draws = fitted.sample(seen.hide(*NEURAL), list(NEURAL), n=size.draws, seed=seed).values
    late = np.arange(len(seen)) % second.heading.shape[1] >= _first(second.heading)
    found = {}
    for name in NEURAL:
        truth = seen.parts[name].value[late]
        guess, rank = draws[name][:, late].mean(0), (draws[name][:, late] < truth).mean(0)
        known = np.isfinite(truth)
        found[f"r2_{name}_from_heading"] = float(1 - np.var((truth - guess)[known]) / np.var(truth[known]))
        found[f"coverage68_{name}_from_heading"] = float((np.abs(rank - 0.5) < BAND / 2)[known].mean())
    return found


def _separation(
    fitted: Fitted, train: Observations, first: Recordings, blind: Observations, second: Recordings
) -> float:
    """Balanced accuracy of light against dark from how the shared latents move in a stretch; chance is one half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(rows: Observations) -> FloatArray:
        z = fitted.latent(rows.hide("heading")).mean["shared"]
        radius = np.linalg.norm(z, axis=-1)
        moved = np.linalg.norm(np.diff(z, axis=1), axis=-1)
        return np.concatenate([z.std(1), np.stack([radius.mean(1), radius.std(1), moved.mean(1), moved.std(1)], -1)], 1)

    stretches = first.heading.shape[1]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(features(train), np.repeat(first.dark, stretches))
    return float(balanced_accuracy_score(np.repeat(second.dark, stretches), model.predict(features(blind))))


def _gpfa_linear(
    config: StudyConfig, train: Observations, test: Observations, whole: Observations, options: TrainConfig
) -> FloatArray:
    """Trajectories of the neurons alone, then a linear map to the heading."""
    family = config.config.family
    assert isinstance(family, GPVAE)
    alone = family.model_copy(update={"private": {name: family.private.get(name, 0) for name in NEURAL}})
    fitted = fit(alone, train, options)
    latents = [fitted.latent(rows).mean["shared"] for rows in (train, test)]
    flat = [z.reshape(-1, z.shape[-1]) for z in latents]
    return _ridge(flat[0], whole.parts["heading"].value, flat[1]).reshape(latents[1].shape[:2])


def _ridge(train: FloatArray, heading: FloatArray, test: FloatArray) -> FloatArray:
    """Angles by ridge regression of cosine and sine, its penalty chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 5, 15)))
    cosine, sine = model.fit(train, heading.reshape(-1, 2)).predict(test).T
    return np.arctan2(sine, cosine)


def _lagged(rows: Recordings, lags: int) -> FloatArray:
    """Neurons of every bin and of ``lags`` bins before and after it, zero beyond the stretch, (bins, features)."""
    both = np.nan_to_num(np.concatenate([rows.neural[name] for name in NEURAL], -1))
    padded = np.pad(both, ((0, 0), (0, 0), (lags, lags), (0, 0)))
    bins = both.shape[2]
    shifted = [padded[:, :, k : k + bins] for k in range(2 * lags + 1)]
    return np.concatenate(shifted, -1).reshape(-1, both.shape[-1] * len(shifted))


def _figure(second: Recordings, draws: FloatArray) -> plots.Figure:
    """Decoded heading about the true one in two held-out trials of each condition."""
    decoded = np.angle(np.exp(1j * draws).mean(0))
    offset, shown = _offset(second.heading, decoded), second.heading.shape[1] // 2
    time = second.width * (np.arange(draws.shape[-1]) + 0.5)
    panels = []
    for dark in (False, True):
        row = []
        for trial in np.flatnonzero(second.dark == dark)[:2]:
            truth = second.heading[trial, shown]
            around = np.unwrap(truth)
            miss = np.angle(np.exp(1j * (draws[:, trial, shown] + offset[trial] - truth)))
            name = f"fly {second.fly[trial]}, {'dark' if dark else 'light'}"
            labels = plots.Labels("time", "heading", name, "s", "deg")
            row.append(plots.Track(time, np.rad2deg(around + miss), np.rad2deg(around), None, labels))
        panels.append(row)
    return plots.tracks(panels)
