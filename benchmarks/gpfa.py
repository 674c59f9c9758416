"""Co-smoothing of Poisson-GPFA (GPVAE with linear decoders) beside elephant's GPFA on the same counts.

Simulated counts of 100 neurons with two latents (``simulators.neural``). A quarter of the neurons of the test trials is
predicted from the others. The latent dimension of each is chosen by the same score on validation trials, and the model
is then fitted to training and validation trials. Bits per spike are those gained over each neuron's mean rate in
training. The peer predicts the square of Gaussian predictions of square-rooted counts plus their variance, floored at
1e-3. It runs in an environment of its own, made with pip at first use. Two threads each.

Run with ``python -m benchmarks.gpfa [--quick] [--seed N] --out DIR``; seeds N, N + 1, … are run.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import Table
from scipy.special import gammaln

from benchmarks._harness import asked, main, peer_python
from consilience.data.observations import Observations
from consilience.models.gp_vae import GPVAE
from consilience.simulators import neural
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.typing import BoolArray, FloatArray
from consilience.workflow.fit import fit

__all__ = ["Sizes", "bits_per_spike", "measure"]

PEER = ("elephant==1.2.1", "scikit-learn")  # which its GPFA needs and its package does not ask for
BIN_MS = 20.0


@dataclass(frozen=True)
class Sizes:
    """Trials to fit, to choose the dimension by, and to score; neurons; candidate dimensions; our steps; seeds."""

    train: int = 192
    validation: int = 48
    test: int = 60
    neurons: int = 100
    bins: int = 60
    dimensions: tuple[int, ...] = (1, 2, 3)
    steps: int = 120  # 200 with batches of 48 gain less than 1e-4 bits per spike on validation trials
    batch: int = 24
    seeds: int = 3


def bits_per_spike(counts: FloatArray, rates: FloatArray, mean: FloatArray) -> float:
    """Gain of log-likelihood over mean rates (D,) in bits, per spike; counts and rates (N, T, D).

    References:
        Neural latents benchmark '21 (Pei et al., 2021).
    """

    def total(rate: FloatArray) -> float:
        return float((counts * np.log(rate) - rate - gammaln(counts + 1)).sum())

    return (total(rates) - total(np.broadcast_to(mean, counts.shape))) / (counts.sum() * np.log(2))


def ours(
    train: Observations, test: Observations, hidden: BoolArray, size: int, *, steps: int, batch: int, seed: int
) -> tuple[FloatArray, float]:
    """Rates of the hidden neurons of test trials, and seconds of fitting."""
    config = TrainConfig(max_steps=steps, batch_size=batch, learning_rate=3e-2, validation=0.0, seed=seed)
    begun = time.perf_counter()
    fitted = fit(GPVAE(shared=size), train.renumbered(), config)
    seconds = time.perf_counter() - begun
    hide = np.broadcast_to(hidden, test.parts["spikes"].value.shape)
    found = fitted.summarise(
        test.hide_cells({"spikes": hide}), ["spikes"], statistics=["mean"], n=200, seed=seed, method="expected"
    )
    return found.statistics["spikes"]["mean"][..., hidden], seconds


def peer(train: Observations, test: Observations, hidden: BoolArray, size: int) -> tuple[FloatArray, float]:
    """The same of elephant's GPFA."""
    arrays = {"train": train.parts["spikes"].value, "test": test.parts["spikes"].value}
    arrays |= {"hidden": hidden, "size": size, "bin_ms": BIN_MS}
    found = asked(peer_python("elephant", *PEER), "_gpfa_peer", arrays, threads=torch.get_num_threads())
    return found["rates"], float(found["seconds"])


def measure(seed: int, quick: bool) -> Results:
    """Both on several seeds; the numbers are means over seeds, the speed-up the least."""
    torch.set_num_threads(2)
    sizes = Sizes(16, 4, 6, 12, 20, (1, 2), 6, 8, 1) if quick else Sizes()
    rows = []
    for number in range(seed, seed + sizes.seeds):
        table = neural(
            sizes.train + sizes.validation + sizes.test, seed=number, bins=sizes.bins, neurons=sizes.neurons
        ).select("spikes")
        ends = np.cumsum([0, sizes.train, sizes.validation, sizes.test])
        train, validation, test = (table[slice(*pair)] for pair in zip(ends[:-1], ends[1:], strict=True))
        hidden = np.arange(sizes.neurons) % 4 == 3
        for name in ("ours", "elephant"):
            rows.append([number, name, *_contend(name, (train, validation, test), hidden, sizes, number)])
    columns = ["seed", "method", "dimension", "bits per spike", "seconds of the fit", "seconds with the choice"]
    found = Table(rows=rows, names=columns)
    mine, theirs = (found[found["method"] == name] for name in ("ours", "elephant"))
    ratio = np.asarray(theirs["seconds of the fit"]) / np.asarray(mine["seconds of the fit"])
    numbers = {
        "bits_per_spike": float(np.mean(mine["bits per spike"])),
        "bits_per_spike_peer": float(np.mean(theirs["bits per spike"])),
        "bits_per_spike_difference_min": float(np.min(mine["bits per spike"] - theirs["bits per spike"])),
        "speedup": float(ratio.min()),
        "seconds": float(np.mean(mine["seconds of the fit"])),
        "seconds_peer": float(np.mean(theirs["seconds of the fit"])),
        "seeds": sizes.seeds,
    }
    return Results(numbers, {f"{sizes.train + sizes.validation} trials, {sizes.neurons} neurons": found})


def _contend(name: str, tables: tuple[Observations, ...], hidden: BoolArray, sizes: Sizes, seed: int) -> list[float]:
    train, validation, test = tables

    def run(fitted_to: Observations, scored: Observations, size: int) -> tuple[float, float]:
        mean = fitted_to.parts["spikes"].value.mean((0, 1))[hidden].clip(1e-3)
        if name == "ours":
            rates, seconds = ours(fitted_to, scored, hidden, size, steps=sizes.steps, batch=sizes.batch, seed=seed)
        else:
            rates, seconds = peer(fitted_to, scored, hidden, size)
        return bits_per_spike(scored.parts["spikes"].value[..., hidden], rates, mean), seconds

    tried = {size: run(train, validation, size) for size in sizes.dimensions}
    best = max(tried, key=lambda size: tried[size][0])
    whole = Observations.from_arrays(
        train.schema,
        {"spikes": np.concatenate([train.parts["spikes"].value, validation.parts["spikes"].value])},
        ids=[*train.ids, *validation.ids],
    )
    score, seconds = run(whole, test, best)
    return [best, score, seconds, seconds + sum(spent for _, spent in tried.values())]


if __name__ == "__main__":
    main("gpfa", measure)
