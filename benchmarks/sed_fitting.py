"""Fits of galaxies' photometry: bagpipes, a sampler run for each galaxy, beside VAEFlow, trained once for all.

Both know the same: u, g, r, i, z fluxes with their error bars, bagpipes' own forward model, and one prior of six
parameters from which the galaxies are drawn (``_sed_bagpipes``). So both approximate the same posterior, and no galaxy
is chosen by what was measured of it. bagpipes samples with nautilus, at the defaults of its ``fit`` (400 live points,
500 draws); it takes no seed. VAEFlow learns from simulated galaxies, and its settings were chosen by its own loss on
others of these. It reads asinh magnitudes with their errors, as SDSS's catalogue states them, and what follows from
them, the logarithms of the errors and colours. Its labels are Φ⁻¹ of the prior's distribution functions, mapped back
when they are drawn, so that no draw is outside the prior.

Seconds are those that the process was busy, on one thread: on a machine that has nothing else to do they are those of
the clock, which are in the table as well. A fit of bagpipes is timed with the start of its model; VAEFlow draws as many
draws of each of a batch of galaxies, and the batch of one is timed too. ``break_even_galaxies`` counts what simulations
and training cost.

Bias is (posterior mean - truth) / posterior spread; coverage is that of central intervals; ``c2st`` is the share of
draws that a classifier tells apart, and its null compares two halves of bagpipes' draws. ``nats_behind`` is the mean
log density of the truth by bagpipes' evidence less that by VAEFlow: where the former is right, the latter's divergence
from the posterior. Stellar mass and star formation are computed by bagpipes from the draws of both.

Run with ``python -m benchmarks.sed_fitting [--quick] [--seed N] --out DIR``; a run that was stopped goes on.
"""

import importlib.metadata
import os

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from threadpoolctl import threadpool_limits

from benchmarks._harness import resumed, say
from benchmarks._sed_bagpipes import (
    FLOOR,
    PARAMETERS,
    SCATTER,
    Galaxies,
    Parameter,
    derived,
    fitted,
    from_normal,
    simulated,
    to_normal,
)
from benchmarks._sed_figures import corners, coverages
from consilience.analysis.bands import coverage_band
from consilience.analysis.two_samples import c2st
from consilience.data.observations import Observations
from consilience.data.schema import Cell, Frozen, ModalitySpec, Schema
from consilience.io.atomic import atomic_path
from consilience.models.vae_flow import VAEFlow
from consilience.predict.fitted import Fitted
from consilience.simulators.sdss import CAMERA, DEPTHS
from consilience.studies.kept import Kept
from consilience.studies.runner import Results
from consilience.train.config import TrainConfig
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["LEVELS", "QUANTITIES", "Sizes", "compared", "drawn", "measure", "table"]

PART = 5000  # galaxies that are simulated before they are written down
TEST = 1_000_000  # of the seed of those that are fitted, which no part has
LEVELS = (0.68, 0.95)
QUANTITIES = (*(one.name for one in PARAMETERS), "log_mass", "log_sfr")
UNITS = (*(one.unit for one in PARAMETERS), "dex(Msun)", "dex(Msun / yr)")
SIDES = ("bagpipes", "vaeflow")


class Survey(Frozen):
    """What the simulated galaxies depend on."""

    seed: int
    prior: tuple[Parameter, ...] = PARAMETERS
    errors: tuple[float, float] = (FLOOR, SCATTER)
    bagpipes: str


class Sampler(Frozen):
    """What the fits of bagpipes depend on beside; live points None are bagpipes' own number."""

    live: int | None
    nautilus: str


class Learner(Frozen):
    """What VAEFlow depends on beside."""

    rows: int
    family: VAEFlow
    train: TrainConfig


@dataclass(frozen=True)
class Sizes:
    """Simulated and fitted galaxies, those in a batch that is timed, live points, the model and its training."""

    rows: int = 60_000
    galaxies: int = 50
    batch: int = 1000
    live: int | None = None
    family: VAEFlow = VAEFlow(hidden=128, layers=4, univariate="spline")
    train: TrainConfig = TrainConfig(
        max_steps=12_000, batch_size=256, learning_rate=1e-3, validation=0.05, evaluate_every=500
    )


QUICK = Sizes(400, 2, 20, 40, VAEFlow(hidden=16, layers=2), TrainConfig(max_steps=100, evaluate_every=50))


def measure(seed: int, quick: bool, out: Path) -> Results:
    """Simulate, train, fit and compare; what is done is kept in the folder."""
    torch.set_num_threads(1)
    sizes = QUICK if quick else Sizes()
    survey = Survey(seed=seed, bagpipes=importlib.metadata.version("bagpipes"))
    sampler = Sampler(live=sizes.live, nautilus=importlib.metadata.version("nautilus-sampler"))
    learner = Learner(rows=sizes.rows, family=sizes.family, train=sizes.train.model_copy(update={"seed": seed}))
    with threadpool_limits(1):
        rows, simulating = _simulations(out / "galaxies", survey, sizes.rows)
        flow, training = _trained(Kept(_folder(out / "vaeflow"), survey, learner), learner, table(rows))
        test = simulated(sizes.galaxies, np.random.default_rng([seed, TEST]))
        kept = Kept(_folder(out / "bagpipes"), survey, sampler)
        fits = [kept.part(f"galaxy {row}", partial(fitted, test, row, sizes.live)) for row in range(sizes.galaxies)]
        ours = drawn(flow, table(test), len(fits[0]["draws"]), seed)
        both = {"bagpipes": np.stack([one["draws"] for one in fits]), "vaeflow": ours}
        kept = Kept(_folder(out / "c2st"), survey, sampler, learner)
        told = [kept.part(f"galaxy {row}", partial(_told, both, row)) for row in range(sizes.galaxies)]
        apart = {name: np.array([one[name] for one in told]) for name in ("c2st", "null")}
        spent = {
            "bagpipes": float(np.mean([one["busy"] for one in fits])),
            "bagpipes_clock": float(np.mean([one["seconds"] for one in fits])),
            **_spent(flow, table(rows)[: sizes.batch], ours.shape[1]),
            "simulation": simulating,
            "training": training,
        }
        behind = np.array([one["density"] for one in fits]) - flow.log_prob(table(test), ["labels"]).value
    return _results(both, test, apart | {"nats_behind": behind}, spent)


def table(galaxies: Galaxies) -> Observations:
    """What VAEFlow reads, and its labels.

    Magnitudes are 22.5 - 2.5 log10 of nanomaggies where these are many, and linear below the usual depth.
    """
    soft, per = 2 * np.array(DEPTHS), 2.5 / np.log(10)
    magnitude = 22.5 - per * (np.arcsinh(galaxies.flux / soft) + np.log(soft / 2))
    error = per * galaxies.error / np.hypot(galaxies.flux, soft)
    bands = list(CAMERA.bands)
    cells = {
        "magnitudes": [Cell(name=band, unit="mag") for band in bands],
        "errors": [Cell(name=f"log_error_{band}") for band in bands],
        "colours": [Cell(name=f"{one}-{other}", unit="mag") for one, other in pairwise(bands)],
        "labels": [Cell(name=f"normal_{one.name}") for one in PARAMETERS],
    }
    schema = Schema(modalities=tuple(ModalitySpec(name=name, cells=tuple(some)) for name, some in cells.items()))
    values = {
        "magnitudes": magnitude,
        "errors": np.log10(error),
        "colours": -np.diff(magnitude, axis=1),
        "labels": to_normal(galaxies.parameters),
    }
    return Observations.from_arrays(schema, values, sigma={"magnitudes": error})


def drawn(flow: Fitted, rows: Observations, draws: int, seed: int = 0) -> FloatArray:
    """Parameters (N, draws, 6) of the posteriors of N galaxies."""
    samples = flow.sample(rows.hide("labels"), ["labels"], n=draws, seed=seed)
    return from_normal(samples.values["labels"]).swapaxes(0, 1)


def compared(draws: FloatArray, truth: FloatArray) -> dict[str, FloatArray]:
    """Of N posteriors, each (P,): bias, its standard error, and coverages at 68 and 95 %; and the spreads (N, P).

    Arguments:
        draws: Shape (N, S, P).
        truth: Shape (N, P).
    """
    spread = draws.std(axis=1)
    pull = (draws.mean(axis=1) - truth) / spread
    found = {"bias": pull.mean(axis=0), "bias_error": pull.std(axis=0, ddof=1) / len(pull) ** 0.5, "spread": spread}
    for level in LEVELS:
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=1)
        found[f"coverage{100 * level:.0f}"] = ((low <= truth) & (truth <= high)).mean(axis=0)
    return found


def _simulations(folder: Path, survey: Survey, rows: int) -> tuple[Galaxies, float]:
    """Training galaxies, and the seconds of this thread that they took; kept in parts."""
    folder, pieces = _folder(folder / Kept(folder, survey).key[:12]), []
    for part in range(-(-rows // PART)):
        size = min(PART, rows - part * PART)
        path = folder / f"{part}-{size}.npz"
        if not path.is_file():
            begun = time.process_time()
            found = simulated(size, np.random.default_rng([survey.seed, part]))
            with atomic_path(path) as other, other.open("wb") as file:
                np.savez(file, **asdict(found), seconds=time.process_time() - begun)
            say(f"{part * PART + size} galaxies simulated")
        with np.load(path, allow_pickle=False) as arrays:
            pieces.append(dict(arrays))
    arrays = {name: np.concatenate([np.atleast_1d(one[name]) for one in pieces]) for name in pieces[0]}
    return Galaxies(arrays["parameters"], arrays["flux"], arrays["error"]), float(arrays["seconds"].sum())


def _trained(kept: Kept, learner: Learner, rows: Observations) -> tuple[Fitted, float]:
    """VAEFlow and the seconds of this thread that its training took."""

    def fit_it() -> Fitted:
        return fit(learner.family, rows, learner.train)

    def spent() -> dict[str, float]:
        begun = time.process_time()
        kept.model("flow", fit_it)
        return {"seconds": time.process_time() - begun}

    seconds = float(kept.part("training", spent)["seconds"])
    flow = kept.model("flow", fit_it)
    say(f"trained in {seconds:.0f} s; validation loss {_loss(flow):.3f} nats")
    return flow, seconds


def _loss(flow: Fitted) -> float:
    return min(row["validation/nll/labels"] for row in flow.history if "validation/nll/labels" in row)


def _spent(flow: Fitted, rows: Observations, draws: int) -> dict[str, float]:
    """Seconds per galaxy of a batch, of this thread and of the clock, and those of a galaxy by itself."""
    drawn(flow, rows[:1], draws)
    begun, worked = time.perf_counter(), time.process_time()
    drawn(flow, rows, draws)
    clock, busy = (time.perf_counter() - begun) / len(rows), (time.process_time() - worked) / len(rows)
    worked = time.process_time()
    drawn(flow, rows[:1], draws)
    return {"vaeflow": busy, "vaeflow_clock": clock, "vaeflow_single": time.process_time() - worked}


def _told(both: Mapping[str, FloatArray], row: int) -> dict[str, float]:
    """Shares of draws that are told apart, in coordinates that are normal a priori: of both sides, and of one."""
    theirs, ours = to_normal(both["bagpipes"][row]), to_normal(both["vaeflow"][row])
    shuffled = np.random.default_rng(row).permutation(theirs)
    found = {"c2st": c2st(theirs, ours), "null": c2st(shuffled[::2], shuffled[1::2])}
    say(f"galaxy {row}: c2st {found['c2st']:.3f}, of bagpipes' halves {found['null']:.3f}")
    return found


def _results(
    both: Mapping[str, FloatArray], test: Galaxies, apart: Mapping[str, FloatArray], spent: Mapping[str, float]
) -> Results:
    truth = np.concatenate([test.parameters, derived(test.parameters)], axis=1)
    every = {side: np.concatenate([draws, derived(draws)], axis=-1) for side, draws in both.items()}
    found = {side: compared(draws, truth) for side, draws in every.items()}
    ratio = np.median(found["vaeflow"]["spread"] / found["bagpipes"]["spread"], axis=0)
    numbers: dict[str, float | int | bool | None] = {
        "galaxies": len(truth),
        "draws": both["bagpipes"].shape[1],
        "speedup": spent["bagpipes"] / spent["vaeflow"],
        "speedup_clock": spent["bagpipes_clock"] / spent["vaeflow_clock"],
        "break_even_galaxies": (spent["simulation"] + spent["training"]) / (spent["bagpipes"] - spent["vaeflow"]),
        **{f"seconds_{name}": value for name, value in spent.items()},
        "c2st_mean": float(apart["c2st"].mean()),
        "c2st_max": float(apart["c2st"].max()),
        "c2st_null_mean": float(apart["null"].mean()),
        "nats_behind": float(apart["nats_behind"].mean()),
        **{f"error_{key}": float(value.std(ddof=1) / len(value) ** 0.5) for key, value in apart.items()},
        "width_ratio_median": float(np.median(ratio)),
    }
    bands = dict(zip(LEVELS, zip(*coverage_band(len(truth), LEVELS, cells=len(QUANTITIES)), strict=True), strict=True))
    rows = []
    for column, (name, unit) in enumerate(zip(QUANTITIES, UNITS, strict=True)):
        numbers[f"width_ratio_{name}"] = float(ratio[column])
        line: list[str | float] = [name, unit, float(ratio[column])]
        for side in SIDES:
            one = {key: float(value[column]) for key, value in found[side].items() if value.ndim == 1}
            numbers |= {f"{key}_{side}_{name}": value for key, value in one.items()}
            line += [f"{one['bias']:+.2f} ± {one['bias_error']:.2f}", one["coverage68"], one["coverage95"]]
        rows.append(line)
    for side, level in product(SIDES, LEVELS):
        shares = found[side][f"coverage{100 * level:.0f}"]
        low, high = bands[level]
        numbers[f"coverage{100 * level:.0f}_{side}"] = float(shares.mean())
        numbers[f"coverage{100 * level:.0f}_inside_band_{side}"] = bool(((low <= shares) & (shares <= high)).all())
    names = [f"{what}, {side}" for side in SIDES for what in ("bias / spread", "68 %", "95 %")]
    tables = {
        "Seconds": Table(rows=[[name, value] for name, value in spent.items()], names=["of what", "seconds"]),
        "Posteriors": Table(rows=rows, names=["quantity", "unit", "spread, VAEFlow / bagpipes", *names]),
    }
    middle = int(np.argsort(apart["c2st"])[len(truth) // 2])  # as well told apart as most are
    shares = {side: {level: found[side][f"coverage{100 * level:.0f}"] for level in LEVELS} for side in SIDES}
    one = {side: draws[middle] for side, draws in both.items()}
    figures = {
        "posteriors": corners(one, test.parameters[middle], QUANTITIES[: len(PARAMETERS)], UNITS[: len(PARAMETERS)]),
        "coverage": coverages(shares, bands, QUANTITIES),
    }
    return Results(numbers, tables, figures)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    resumed("sed_fitting", measure)
