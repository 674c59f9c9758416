"""Simulated neurons and images: are the shared and the private dynamics found, and told apart?"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, validated
from consilience.models.gp_vae import GPVAE
from consilience.predict.fitted import Fitted
from consilience.simulators.neural import LENGTH, neural
from consilience.studies.read_outs import ReadOut, explained
from consilience.studies.runner import Results, StudyConfig
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["BLOCKS", "QUANTITIES", "Settings", "block_scores", "run"]

BLOCKS = ("shared", "private_spikes", "private_images")
QUANTITIES = ("angle", "private", "zoom")  # what each block should know
UNITS = {"angle": "deg", "private": "", "zoom": ""}


class Settings(Frozen):
    """Sizes of simulation, split and scores."""

    trials: int = Field(ge=4)
    bins: int = Field(ge=4)
    neurons: int = Field(ge=1)
    train: float = Field(gt=0, lt=1)  # share of the trials
    seeds: int = Field(ge=1)
    early: int = Field(ge=1)  # steps of a further, short training, for the linear numbers
    draws: int = Field(default=200, ge=20)


@dataclass(frozen=True, slots=True)
class _Run:
    """One seed: its tables, its model, and its numbers."""

    train: Observations
    test: Observations
    fitted: Fitted
    numbers: Mapping[str, float]
    r2: FloatArray  # of the nonlinear read-outs, (blocks, quantities)


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Simulate, split, train and score for every seed; what is reported is the worst of them.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Not used.
        seed: The first seed.
        quick: Tiny sizes; already in ``config``.
        out: Folder for the model of the first seed.
    """
    size = validated(Settings, config.study, where="[study]")
    runs = [_one(config, size, seed + k) for k in range(size.seeds)]
    runs[0].fitted.save(out / "model")
    numbers = {name: _worst(name, [one.numbers[name] for one in runs]) for name in runs[0].numbers}
    rows = [[name, *(one.numbers[name] for one in runs)] for name in numbers]
    seeds = [f"seed {seed + k}" for k in range(size.seeds)]
    matrix = np.mean([one.r2 for one in runs], axis=0)
    tables = {
        f"{size.trials} trials of {size.bins} bins, {size.neurons} neurons": Table(rows=rows, names=["number", *seeds]),
        "R² of nonlinear read-outs, mean over seeds": Table(
            rows=[[block, *row] for block, row in zip(BLOCKS, matrix, strict=True)], names=["block", *QUANTITIES]
        ),
    }
    figures = {
        "trajectories": _trajectories(runs[0], size, seed),
        "rates": _rates(runs[0], size, seed),
        "images": _images(runs[0], size, seed),
    }
    return Results({"seeds": size.seeds, **numbers}, tables, figures)


def _worst(name: str, values: list[float]) -> float:
    lower = ("error", "leak", "seconds", "fraction", "drop")
    return max(values) if any(word in name for word in lower) else min(values)


def _one(config: StudyConfig, size: Settings, seed: int) -> _Run:
    table = neural(size.trials, seed=seed, bins=size.bins, neurons=size.neurons)
    train, test = table.split(size.train, seed=seed)
    seen = train.select("spikes", "images").renumbered()
    options = config.config.train.model_copy(update={"seed": seed})
    short = options.model_copy(update={"max_steps": min(size.early, options.max_steps)})
    begun = time.perf_counter()
    early = fit(config.config.family, seen, short)
    early_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    fitted = fit(config.config.family, seen, options)
    seconds = time.perf_counter() - begun
    other_unit = fit(config.config.family, _bytes(seen), short)
    r2, linear = (block_scores(fitted, train, test, linear=flag) for flag in (False, True))
    first = block_scores(early, train, test, linear=True)
    in_bytes = block_scores(other_unit, *(_bytes(rows) for rows in (train, test)), linear=True)
    family = config.config.family
    assert isinstance(family, GPVAE)
    learned = fitted.members[0].prior.length.detach().numpy()  # type: ignore[union-attr]
    off = ~np.eye(len(BLOCKS), dtype=bool)
    numbers = {
        "r2_own_shared": r2[0, 0],
        "r2_own_private_spikes": r2[1, 1],
        "r2_own_private_images": r2[2, 2],
        "r2_leak_max": r2[off].max(),
        "r2_linear_shared": linear[0, 0],
        "r2_linear_private_spikes": linear[1, 1],
        "r2_linear_private_images": linear[2, 2],
        "r2_early_linear_shared": first[0, 0],
        "r2_early_linear_private_spikes": first[1, 1],
        "r2_early_linear_private_images": first[2, 2],
        "early_seconds": early_seconds,
        "r2_error_of_pixels_to_255": np.abs(in_bytes - first).max(),
        "length_scale_error_max": float(np.abs(learned / LENGTH - 1).max()),
        "r2_rates": _rate_score(fitted, test, size, seed),
        "image_mse_fraction": _image_score(fitted, train, test, size, seed),
        "seconds": seconds,
        **_incomplete(fitted, train, test, seed),
    }
    return _Run(train, test, fitted, {name: float(value) for name, value in numbers.items()}, r2)


def _bytes(rows: Observations) -> Observations:
    """The same trials with pixels from 0 to 255."""
    values = {name: part.value for name, part in rows.parts.items()}
    return Observations.from_arrays(rows.schema, {**values, "images": 255 * values["images"]}, ids=rows.ids)


def block_scores(fitted: Fitted, train: Observations, test: Observations, *, linear: bool) -> FloatArray:
    """R² on test trials of read-outs fitted on training trials, (blocks, quantities)."""
    latents = [fitted.latent(rows.select("spikes", "images")).mean for rows in (train, test)]
    truths = [_truth(rows) for rows in (train, test)]
    found = np.empty((len(BLOCKS), len(QUANTITIES)))
    for row, block in enumerate(BLOCKS):
        for column, quantity in enumerate(QUANTITIES):
            read_out = ReadOut.fit(latents[0][block], truths[0][quantity], linear=linear)
            found[row, column] = explained(truths[1][quantity], read_out(latents[1][block]))
    return found


def _truth(rows: Observations) -> dict[str, FloatArray]:
    parts = rows.parts
    return {
        "angle": parts["true_angle"].value,
        "private": parts["true_private"].value,
        "zoom": np.abs(parts["true_zoom"].value),  # of which an image shows no sign
    }


def _rate_score(fitted: Fitted, test: Observations, size: Settings, seed: int) -> float:
    """R² of posterior mean rates of all neurons, each about its own mean."""
    seen = test.select("spikes", "images")
    found = fitted.summarise(seen, ["spikes"], statistics=["mean"], n=size.draws, seed=seed, method="expected")
    truth = test.parts["true_rates"].value
    centred = truth - truth.mean(axis=(0, 1))
    return float(1 - np.sum((truth - found.statistics["spikes"]["mean"]) ** 2) / np.sum(centred**2))


def _image_score(fitted: Fitted, train: Observations, test: Observations, size: Settings, seed: int) -> float:
    """Mean squared error of posterior mean images, in units of their variance about the mean image."""
    seen = test.select("spikes", "images")
    n = max(20, size.draws // 10)
    found = fitted.summarise(seen, ["images"], statistics=["mean"], n=n, seed=seed, method="expected")
    truth = test.parts["images"].value
    error = np.mean((truth - found.statistics["images"]["mean"]) ** 2)
    return float(error / np.mean((truth - train.parts["images"].value.mean(axis=(0, 1))) ** 2))


def _incomplete(fitted: Fitted, train: Observations, test: Observations, seed: int) -> dict[str, float]:
    """How the angle is read from the shared block, and covered, when a modality or half of the bins is missing."""
    seen = test.select("spikes", "images")
    half = np.random.default_rng(seed).random((len(test), seen.schema["spikes"].shape[0])) < 0.5
    hide = {
        name: np.broadcast_to(half.reshape(*half.shape, *[1] * (part.value.ndim - 2)), part.value.shape)
        for name, part in seen.parts.items()
    }
    cases = {
        "complete": seen,
        "without_images": seen.hide("images"),
        "without_spikes": seen.hide("spikes"),
        "half_the_bins": seen.hide_cells(hide),
    }
    latent = fitted.latent(train.select("spikes", "images")).mean["shared"]
    read_out = ReadOut.fit(latent, train.parts["true_angle"].value)
    truth = test.parts["true_angle"].value
    rng = np.random.default_rng(seed)
    found: dict[str, float] = {}
    for name, rows in cases.items():
        posterior = fitted.latent(rows)
        mean, std = posterior.mean["shared"], posterior.std["shared"]
        draws = read_out(mean + std * rng.standard_normal((200, *mean.shape)))
        low, high = np.percentile(draws, [16, 84], axis=0)
        found[f"r2_shared_{name}"] = explained(truth, read_out(mean))
        found[f"coverage68_angle_{name}"] = float(((truth > low) & (truth < high)).mean())
        found[f"width68_angle_{name}"] = float((high - low).mean())
    found["r2_shared_drop_max"] = found["r2_shared_complete"] - min(
        value for name, value in found.items() if name.startswith("r2_shared_")
    )
    return found


def _trajectories(one: _Run, size: Settings, seed: int) -> plots.Figure:
    """What each block says of its quantity in three test trials."""
    rng = np.random.default_rng(seed)
    some = one.test[:3]
    before = one.fitted.latent(one.train.select("spikes", "images")).mean
    posterior = one.fitted.latent(some.select("spikes", "images"))
    panels = []
    for block, quantity in zip(BLOCKS, QUANTITIES, strict=True):
        read_out = ReadOut.fit(before[block], _truth(one.train)[quantity])
        mean, std = posterior.mean[block], posterior.std[block]
        draws = read_out(mean + std * rng.standard_normal((size.draws, *mean.shape)))
        name = "|zoom|" if quantity == "zoom" else quantity
        panels.append(
            [
                plots.Track(
                    _time(some),
                    draws[:, k],
                    _truth(some)[quantity][k],
                    None,
                    plots.Labels(
                        "time", name, f"trial {some.ids[k]}" if quantity == "angle" else "", "s", UNITS[quantity]
                    ),
                )
                for k in range(len(some))
            ]
        )
    return plots.tracks(panels)


def _rates(one: _Run, size: Settings, seed: int) -> plots.Figure:
    """Rates of the three most variable neurons in three test trials, given all that was seen there."""
    some = one.test[:3]
    truth = some.parts["true_rates"].value
    draws = one.fitted.sample(some.select("spikes", "images"), ["spikes"], n=size.draws, seed=seed, method="expected")
    neurons = np.argsort(-one.train.parts["true_rates"].value.std(axis=(0, 1)))[:3]
    panels = [
        [
            plots.Track(
                _time(some),
                draws.values["spikes"][:, k, :, neuron],
                truth[k, :, neuron],
                some.parts["spikes"].value[k, :, neuron],
                plots.Labels(
                    "time", f"neuron {neuron}", f"trial {some.ids[k]}" if row == 0 else "", "s", "1 / bin"
                ),
            )
            for k in range(len(some))
        ]
        for row, neuron in enumerate(neurons)
    ]
    return plots.tracks(panels)


def _images(one: _Run, size: Settings, seed: int) -> plots.Figure:
    """Images of one test trial: true, reconstructed, and predicted from the spikes alone."""
    some = one.test[:1]
    seen = some.select("spikes", "images")
    bins = np.linspace(0, size.bins - 1, 8).astype(int)
    rows = {"true": some.parts["images"].value[0, bins]}
    for name, given in {"from both": seen, "from spikes": seen.hide("images")}.items():
        found = one.fitted.summarise(given, ["images"], statistics=["mean"], n=50, seed=seed, method="expected")
        rows[name] = found.statistics["images"]["mean"][0, bins]
    moments = _time(some)[bins]
    return plots.strips(rows, [f"{moment:g} s" for moment in moments], f"trial {some.ids[0]}")


def _time(rows: Observations) -> FloatArray:
    spec = rows.schema["spikes"]
    assert spec.time is not None
    return spec.time.centres(spec.shape[0])
