"""MultiVae's DMVAE on the tables of ``study factors``: is each factor in its own block, and in no other?

The complete tables only: the peer knows neither error bars nor missing cells (modalities may be missing). It gets cells
standardised by the training rows, our dense networks, batches, number of steps and fall of the learning rate, and its
own trainer, which keeps the best epoch. It has no learned noise: the scale of the decoders' normal distributions is
chosen among ``SCALES`` and then the learning rate among ``RATES``, both with the trainer's and the model's defaults
among them, by its own loss on a tenth of the training rows, at the first seed of each case. Weights of its divergences
stay at 1; a common β is a scale √β times as large, and no loss can choose between several. Blocks are read by the same
``analysis.probes`` as ours, from the posterior of all modalities. It runs in an environment of its own, made with pip
at first use. Two threads.

Run with ``python -m benchmarks.factors [--quick] [--seed N] --out DIR``; seeds N, N + 1, … are run, the worst counts.
A run that was stopped goes on where it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import asked, peer_python, resumed, say
from consilience.analysis.probes import probes
from consilience.data.observations import Observations
from consilience.data.samples import Latent
from consilience.data.schema import validated
from consilience.simulators.gaussian import factors
from consilience.studies.factors import Settings
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, configuration

__all__ = ["PEER", "Inferred", "measure", "scores"]

# the versions that ours have, where both need a package
PEER = ("--constraint=constraints.txt", "multivae==1.0.3", "pythae==0.1.2", "torch==2.13.0", "torchvision==0.28.0")
RATES = (3e-3, 1e-2, 1e-3, 1e-4)  # ours is first, the trainer's default last
SCALES = (1.0, 0.5, 0.25, 0.18, 0.125)  # of standardised cells; the model's default is first


@dataclass(frozen=True)
class Inferred:
    """Latents that another library inferred, to be asked as a fitted model is: for some of these rows."""

    schema: SimpleNamespace  # names of the modalities
    latents: Latent

    def latent(self, obs: Observations) -> Latent:
        """Those of the rows with these ids."""
        at = {name: row for row, name in enumerate(self.latents.ids.tolist())}
        rows = [at[name] for name in obs.ids.tolist()]
        mean, std = ({b: x[rows] for b, x in part.items()} for part in (self.latents.mean, self.latents.std))
        return Latent(mean, std, obs.ids)


def measure(seed: int, quick: bool, out: Path) -> Results:
    """Every number of modalities and size of blocks, with several seeds; what is done is kept in the folder."""
    torch.set_num_threads(2)
    config = configuration("factors", quick=quick)
    size = validated(Settings, config.study, where="[study]")
    budget = {"steps": config.config.train.max_steps, "batch": config.config.train.batch_size}
    budget |= {"hidden": config.config.family.model_dump()["hidden"]}
    rows, kept = [], Kept(out, size, config.config.train, config.config.family)
    for modalities, times in product(size.modalities, (1, size.oversized)):
        choice: dict[str, Any] = {"rates": RATES, "scales": SCALES}
        for number in range(seed, seed + size.seeds):
            given = {**budget, "shared": times * size.sizes[0], "private": times * size.sizes[1], **choice}
            name = f"{modalities} modalities, {times} x size, seed {number}"
            found = kept.part(name, partial(_trained, size, modalities, given, number))
            choice = {"rates": found["rate"][None], "scales": found["scale"][None]}
            chosen = [float(found[key]) for key in ("rate", "scale", "seconds")]
            which = "right" if times == 1 else f"{times} x"
            rows.append([modalities, which, number, *chosen, *found["scores"].tolist()])
            say(f"{rows[-1]}")
    names = ["own, draws", "other, draws", "own, means", "other, means"]
    names = ["modalities", "blocks", "seed", "learning rate", "scale", "seconds", *names]
    every = Table(rows=rows, names=names)
    numbers: dict[str, float | int] = {"seeds": size.seeds}
    for which, some in (("", every["blocks"] == "right"), ("_oversized", every["blocks"] != "right")):
        numbers[f"r2_own_min_peer{which}"] = float(every["own, draws"][some].min())
        numbers[f"r2_leak_max_peer{which}"] = float(every["other, draws"][some].max())
    return Results(numbers, {f"R² of factors read from blocks, {size.objects} objects": every})


def _trained(
    size: Settings, modalities: int, given: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray | tuple[float, ...]]:
    table = factors(size.objects, seed=seed, modalities=modalities, sizes=size.sizes, noise=size.noise)
    train, test = table.split(size.train, seed=seed)
    found = _peer(train, test, modalities, {**given, "seed": seed})
    return {key: found[key] for key in ("rate", "scale", "seconds")} | {
        "scores": scores(found, train, test, modalities, seed=seed)
    }


def scores(
    found: Mapping[str, np.ndarray], train: Observations, test: Observations, modalities: int, *, seed: int
) -> tuple[float, float, float, float]:
    """Least R² of a factor from its own block and largest from another: of draws, then of means.

    Arguments:
        found: ``ROWS_mean_BLOCK`` and ``ROWS_std_BLOCK`` (N, Q) of "train" and "test" rows.
        train: Rows on which the probes are fitted.
        test: Rows on which they are scored.
        modalities: Number of them.
        seed: Of the probes.
    """
    names = _names(modalities)
    blocks = ["shared", *(f"private_{name}" for name in names)]
    mean, std = (
        {b: np.concatenate([found[f"{rows}_{what}_{b}"] for rows in ("train", "test")]).astype(float) for b in blocks}
        for what in ("mean", "std")
    )
    latents = Latent(mean, std, np.concatenate([train.ids, test.ids]))
    model: Any = Inferred(SimpleNamespace(names=names), latents)
    answer = probes(model, train, test, [f"true_{block}" for block in blocks], seed=seed)
    pairs = zip(answer.block, answer.quantity, strict=True)
    own = np.array([quantity.startswith(f"true_{block}") for block, quantity in pairs])
    draws, means = answer.of_draw, answer.of_mean
    return float(draws[own].min()), float(draws[~own].max()), float(means[own].min()), float(means[~own].max())


def _peer(train: Observations, test: Observations, modalities: int, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in _names(modalities):
        value = train.parts[name].value
        mean, std = value.mean(0), value.std(0)
        for rows, obs in (("train", train), ("test", test)):
            arrays[f"{rows}_{name}"] = (obs.parts[name].value - mean) / std
    return asked(peer_python("multivae", *PEER), "_multivae_peer", {**given, **arrays}, threads=torch.get_num_threads())


def _names(modalities: int) -> list[str]:
    return [f"x{number + 1}" for number in range(modalities)]


if __name__ == "__main__":
    resumed("factors", measure)
