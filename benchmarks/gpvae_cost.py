"""What the posterior of a trial costs against its number of bins T, in three coordinates.

Three latents of length scale 10 bins, sites in every bin as those of counts are; one call infers q and its means,
marginal covariances and divergence, and one more adds the slopes of all of them: a training step needs both. Local
coordinates (``blocks/local.py``), which GPVAE takes for long trials, beside dense algebra in Fourier coordinates and in
time, float64, one thread, the least of several calls. An exponent is the slope of log seconds on log T over the three
longest trials.

Run with ``python -m benchmarks.gpvae_cost [--quick] [--seed N] --out DIR``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import Table

from benchmarks._harness import Lines, lines, main, say, turns
from consilience.blocks.fourier import FourierPrior, TimePrior
from consilience.blocks.local import infer_local
from consilience.blocks.trajectories import AbstractTrajectories, Sites, infer_trajectories
from consilience.plots import Labels
from consilience.studies.runner import Results

__all__ = ["measure"]

LATENTS, LENGTH = 3, 10.0
Infer = Callable[[Sites], AbstractTrajectories]


@dataclass(frozen=True)
class Sizes:
    """Bins of the trials; the most of them in Fourier coordinates and in time; trials; calls."""

    bins: tuple[int, ...] = (60, 125, 250, 500, 1000, 2000, 4000)
    fourier: int = 4000
    time: int = 1000
    trials: int = 2
    repeats: int = 3


def measure(seed: int, quick: bool) -> Results:
    """Seconds per trial by coordinates and T."""
    torch.set_num_threads(1)
    sizes = Sizes((60, 80, 100, 120), 120, 100, 1, 1) if quick else Sizes()
    most = {"local": sizes.bins[-1], "Fourier": sizes.fourier, "time": sizes.time}
    found: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in most}
    for bins in sizes.bins:
        contenders = {name: infer for name, infer in _contenders(bins).items() if bins <= most[name]}
        sites = _sites(bins, sizes.trials, seed)
        calls = {}
        for name, infer in contenders.items():
            calls[f"{name} posterior"] = _call(infer, sites, slopes=False)
            calls[f"{name} slopes"] = _call(infer, sites, slopes=True)
        seconds = turns(calls, repeats=sizes.repeats, warm=1)
        for name in contenders:
            one, both = (float(seconds[f"{name} {what}"].min()) / sizes.trials for what in ("posterior", "slopes"))
            found[name][bins] = (one, both)
            say(f"T = {bins}, {name}: {1e3 * one:.1f} ms, with slopes {1e3 * both:.1f} ms")
    rows = []
    for bins in sizes.bins:
        pairs = [found[name].get(bins, (np.nan, np.nan)) for name in most]
        rows.append([bins, *(1e3 * value for pair in pairs for value in pair)])
    names = ["T", *(f"{name}{what} [ms]" for name in most for what in ("", " and slopes"))]
    numbers: dict[str, float | int] = {"trials": sizes.trials}
    for name in most:
        bins = np.array(list(found[name]))[-3:]
        for column, what in enumerate(("posterior", "slopes")):
            seconds_at = [found[name][int(one)][column] for one in bins]
            numbers[f"exponent_{name.lower()}_{what}"] = float(np.polyfit(np.log(bins), np.log(seconds_at), 1)[0])
            numbers[f"seconds_{name.lower()}_{what}_longest"] = seconds_at[-1]
    figure = lines([_panel(found, column, title) for column, title in enumerate(("posterior", "posterior and slopes"))])
    return Results(numbers, {"Per trial": Table(rows=rows, names=names)}, {"cost": figure})


def _contenders(bins: int) -> dict[str, Infer]:
    scales = {
        "length": torch.full((LATENTS,), LENGTH),
        "shortest": LENGTH / 3,
        "longest": 2 * LENGTH,
        "variance": torch.ones(LATENTS),
    }
    kernels = ["rbf"] * LATENTS
    fourier, time = FourierPrior(kernels, bins, **scales), TimePrior(kernels, bins, **scales)
    return {
        "local": lambda sites: infer_local(fourier.local_root(), sites),
        "Fourier": lambda sites: infer_trajectories(fourier.root(), sites),
        "time": lambda sites: infer_trajectories(time.root(), sites),
    }


def _sites(bins: int, trials: int, seed: int) -> Sites:
    """As of ten neurons with random loadings and a spike per bin."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(10, LATENTS))
    precision = np.broadcast_to(loadings.T @ loadings, (trials, bins, LATENTS, LATENTS)).copy()
    return Sites(
        torch.as_tensor(rng.normal(size=(trials, bins, 10)) @ loadings).float(), torch.as_tensor(precision).float()
    )


def _call(infer: Infer, sites: Sites, *, slopes: bool) -> Callable[[], object]:
    def call() -> object:
        with torch.set_grad_enabled(slopes):
            q = infer(sites)
            total = q.mean.sum() + q.covariance.sum() + q.divergence().sum()
            if slopes:
                total.backward()
        return total

    return call


def _panel(found: dict[str, dict[int, tuple[float, float]]], column: int, title: str) -> Lines:
    points = {
        name: (np.array(list(at)), np.array([1e3 * pair[column] for pair in at.values()])) for name, at in found.items()
    }
    return Lines(points, Labels("T", "time per trial", title, "bins", "ms"))


if __name__ == "__main__":
    main("gpvae_cost", measure)
