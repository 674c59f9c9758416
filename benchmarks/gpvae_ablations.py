"""A GP-VAE of turning digits, and what it loses without pruning, Fourier coordinates, dynamics or a joint posterior.

Images of one digit whose angle is a Gaussian process (``simulators.neural`` without zoom), one latent, one modality.
Encoders read two length scales at once, which tells a turn of 190 degrees from one of -170. All contenders have the
same networks, start, steps and batches, and differ by one option of ``GPVAE``. The score is the squared error in deg²
of the angle that a spline, fitted on training trials, reads from the latent of test trials.

Run with ``python -m benchmarks.gpvae_ablations [--quick] [--seed N] --out DIR``; seeds N, N + 1, … are run.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import main, say
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.models.gp_vae import GPVAE
from consilience.simulators import neural
from consilience.simulators.neural import SIDE, digit_images
from consilience.studies.read_outs import ReadOut, explained
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.workflow.fit import fit

__all__ = ["CONTENDERS", "Sizes", "measure"]

CONTENDERS: dict[str, dict[str, Any]] = {
    "pruned Fourier": {},
    "unpruned Fourier": {"prune": 0.0},
    "time": {"coordinates": "time"},
    "no dynamics": {"kernel": "white"},
    "diagonal posterior": {"posterior": "diagonal"},
}


@dataclass(frozen=True)
class Sizes:
    """Trials in all, those that are trained on; bins; steps; width of the networks and window of encoders; seeds."""

    trials: int = 300
    train: int = 240
    bins: int = 60
    steps: int = 1000
    batch: int = 20
    hidden: int = 128
    window: int = 21
    seeds: int = 3


def measure(seed: int, quick: bool) -> Results:
    """Every contender on several seeds; the numbers of ours are the worst of them."""
    torch.set_num_threads(2)
    sizes = Sizes(12, 8, 20, 6, 4, 8, 5, 1) if quick else Sizes()
    errors: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    shares: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(seed, seed + sizes.seeds):
        obs, angle = _digits(sizes, number)
        for name, options in CONTENDERS.items():
            common = {"length": sizes.bins / 6, "hidden": sizes.hidden, "window": sizes.window}
            family = GPVAE(shared=1, decoders={"images": "deep"}, **common, **options)
            config = TrainConfig(max_steps=sizes.steps, batch_size=sizes.batch, validation=0.0, seed=number)
            begun = time.perf_counter()
            fitted = fit(family, obs[: sizes.train].renumbered(), config)
            seconds[name].append((time.perf_counter() - begun) * sizes.train / (sizes.steps * sizes.batch))
            latent = fitted.latent(obs).mean["shared"]
            read_out = ReadOut.fit(latent[: sizes.train], angle[: sizes.train])
            truth, guess = angle[sizes.train :], read_out(latent[sizes.train :])
            errors[name].append(float(np.mean((truth - guess) ** 2)))
            shares[name].append(explained(truth, guess))
            say(f"seed {number}, {name}: {errors[name][-1]:.0f} deg², {seconds[name][-1]:.2f} s per epoch")
    rows = [
        [name, np.mean(errors[name]), np.max(errors[name]), np.min(shares[name]), np.mean(seconds[name])]
        for name in CONTENDERS
    ]
    names = ["variant", "mean error [deg²]", "worst error [deg²]", "worst R²", "seconds per epoch"]
    ours = next(iter(CONTENDERS))
    numbers = {
        "angle_error_deg2": max(errors[ours]),
        "r2_angle": min(shares[ours]),
        "seconds_per_epoch": float(np.mean(seconds[ours])),
        "seeds": sizes.seeds,
    }
    title = f"{sizes.train} trials of {sizes.bins} bins, {sizes.steps} steps of {sizes.batch}, {sizes.seeds} seeds"
    return Results(numbers, {title: Table(rows=rows, names=names)})


def _digits(sizes: Sizes, seed: int) -> tuple[Observations, np.ndarray]:
    """Images of trials, and their angles in degrees (N, T)."""
    angle = neural(sizes.trials, seed=seed, bins=sizes.bins, neurons=1).parts["true_angle"].value
    images = digit_images(np.deg2rad(angle), np.ones_like(angle))
    schema = Schema(modalities=(ModalitySpec(name="images", shape=(sizes.bins, SIDE, SIDE)),))
    return Observations.from_arrays(schema, {"images": images}), angle


if __name__ == "__main__":
    main("gpvae_ablations", measure)
