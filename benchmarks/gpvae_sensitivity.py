"""What GPVAE's answers owe to its settings: each varied alone, on the simulated neurons and images.

Test trials' R² of the quantity of each block from that block (splines fitted on training trials), and the largest R² of
another block's. Further rows: images with a linear decoder, and shared latents that are chaotic or jump.

Run with ``python -m benchmarks.gpvae_sensitivity [--quick] [--seed N] --out DIR``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import Lines, lines, main, say
from consilience.models.gp_vae import GPVAE
from consilience.plots import Labels
from consilience.simulators import neural
from consilience.studies.neural_sim import BLOCKS, QUANTITIES, block_scores
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.workflow.fit import fit

__all__ = ["SETTINGS", "measure"]

LEARNING_RATE = 1e-2
# the value in the middle of each is the default of all others
SETTINGS: dict[str, list[float]] = {
    "learning rate": [3e-3, LEARNING_RATE, 3e-2],
    "initial length scale": [5.0, 10.0, 20.0],
    "initial variance": [0.25, 1.0, 4.0],
    "prune": [1e-8, 1e-6, 1e-3],
}
OPTIONS = {"initial length scale": "length", "initial variance": "variance", "prune": "prune"}
ALLOCATIONS = {"2 shared": (2, 1, 1), "2 of spikes": (1, 2, 1), "2 of images": (1, 1, 2)}
DYNAMICS = ("lorenz", "switch")


@dataclass(frozen=True)
class Sizes:
    """Trials, bins and neurons; share that is trained on; steps, batch and width of the networks."""

    trials: int = 160
    bins: int = 60
    neurons: int = 100
    train: float = 0.75
    steps: int = 400
    batch: int = 20
    hidden: int = 128


def measure(seed: int, quick: bool) -> Results:
    """One fit for every value of every setting; the default is fitted once."""
    torch.set_num_threads(1)
    sizes = Sizes(8, 12, 6, 0.5, 4, 4, 8) if quick else Sizes()
    found = {"default": _scores(sizes, seed, {})}
    for setting, values in SETTINGS.items():
        for value in values[:1] + values[2:]:
            rate = value if setting == "learning rate" else LEARNING_RATE
            options = {OPTIONS[setting]: value} if setting in OPTIONS else {}
            found[f"{setting} {value:g}"] = _scores(sizes, seed, options, rate=rate)
    for name, (shared, spikes, images) in ALLOCATIONS.items():
        found[name] = _scores(sizes, seed, {"shared": shared, "private": {"spikes": spikes, "images": images}})
    found["linear decoder of images"] = _scores(sizes, seed, {"decoders": {}})
    for dynamics in DYNAMICS:
        found[f"{dynamics} dynamics"] = _scores(sizes, seed, {}, dynamics=dynamics)
    names = ["setting", *(f"R² of {q} from {b}" for b, q in zip(BLOCKS, QUANTITIES, strict=True)), "largest leak"]
    title = f"{sizes.trials} trials of {sizes.bins} bins, {sizes.steps} steps of {sizes.batch}, seed {seed}"
    table = Table(rows=[[name, *scores] for name, scores in found.items()], names=names)
    varied = [scores for name, scores in found.items() if any(name.startswith(setting) for setting in SETTINGS)]
    numbers = {
        "r2_own_min_default": float(found["default"][:3].min()),
        "r2_own_min_varied": float(min(scores[:3].min() for scores in varied)),
        "r2_leak_max_varied": float(max(scores[3] for scores in varied)),
        "r2_own_min_allocation": float(min(found[name][:3].min() for name in ALLOCATIONS)),
        "r2_zoom_linear_decoder": float(found["linear decoder of images"][2]),
        **{f"r2_shared_{dynamics}": float(found[f"{dynamics} dynamics"][0]) for dynamics in DYNAMICS},
    }
    return Results(numbers, {title: table}, {"sensitivity": _figure(found)})


def _scores(
    sizes: Sizes, seed: int, options: Mapping[str, Any], *, rate: float = LEARNING_RATE, dynamics: str = "smooth"
) -> np.ndarray:
    """R² of each block's own quantity, and the largest of another's, (4,)."""
    table = neural(sizes.trials, seed=seed, bins=sizes.bins, neurons=sizes.neurons, dynamics=dynamics)  # type: ignore[arg-type]
    train, test = table.split(sizes.train, seed=seed)
    length = sizes.bins / 6
    family = GPVAE(
        **{
            "shared": 1,
            "private": {"spikes": 1, "images": 1},
            "decoders": {"images": "deep"},
            "length": length,
            "shortest": 0.25 * length,
            "longest": 3 * length,
            "hidden": sizes.hidden,
        }
        | ({key: value * length / 10 if key == "length" else value for key, value in options.items()})
    )
    config = TrainConfig(max_steps=sizes.steps, batch_size=sizes.batch, learning_rate=rate, validation=0.0, seed=seed)
    fitted = fit(family, train.select("spikes", "images").renumbered(), config)
    r2 = block_scores(fitted, train, test, linear=False)
    scores = np.array([*np.diag(r2), r2[~np.eye(len(BLOCKS), dtype=bool)].max()])
    say(f"{dict(options)} rate {rate:g} {dynamics}: {scores.round(3)}")
    return scores


def _figure(found: Mapping[str, np.ndarray]):  # noqa: ANN202 - a figure
    panels = []
    for setting, values in SETTINGS.items():
        scores = np.stack([found.get(f"{setting} {value:g}", found["default"]) for value in values])
        unit = "bins" if "length" in setting else ""
        panels.append(_panel([f"{value:g}" for value in values], scores, setting, unit))
    names = ["default", *ALLOCATIONS]
    words = [name.replace(" of ", " of\n") for name in names]
    panels.append(_panel(words, np.stack([found[name] for name in names]), "allocation", ""))
    return lines(panels)


def _panel(x: list[str], scores: np.ndarray, setting: str, unit: str) -> Lines:
    points = {name: (np.array(x), scores[:, k]) for k, name in enumerate([*QUANTITIES, "largest leak"])}
    return Lines(points, Labels(setting, "R² on test trials", "", unit, ""), ("linear", "linear"))


if __name__ == "__main__":
    main("gpvae_sensitivity", measure)
