"""C2ST of FlowMatching on the tasks of sbibm, beside sbi's NPE and FMPE.

For every task and budget, one table of simulations trains one network of each contender; each answers the observations
of sbibm with 10 000 draws, which a classifier tells from sbibm's reference posterior: its accuracy in five-fold
cross-validation is the C2ST, .5 where nothing tells them apart. The classifier is that of sbibm, with several seeds;
"floor" is the same of two halves of the reference. Hyper-parameters are the same for all tasks (:data:`SETTINGS`);
steps end by the validation loss on a tenth of the simulations, and the observations are met only when all is trained.

sbi's contenders have its defaults: NPE with a neural spline flow, FMPE with its perceptron. They may refuse draws
beyond a uniform prior; ours knows its bounds. Of all contenders ``train_seconds`` are of the same number of threads.

Run with ``python -m benchmarks.sbi_c2st [--tasks a,b] [--budget N] [--observations 1,2,3] [--seed N]
[--seeds N] [--classifiers N] [--peers npe,fmpe] [--threads N] [--quick] --out DIR``. What is done is kept in DIR.
"""

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table
from joblib import Parallel, delayed
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from benchmarks._harness import asked, chosen, peer_python, say
from benchmarks._sbi_tasks import TASKS, Files
from consilience import FlowMatching, Observations, TrainConfig, fit
from consilience.data.schema import ModalitySpec, Schema
from consilience.io.atomic import atomic_path
from consilience.studies.runner import Results

__all__ = ["PEER", "SETTINGS", "c2st", "measure"]

PEER = ("--constraint=constraints.txt", "sbi==0.27.0", "torch==2.13.0")
FILES = ("--no-deps", "sbibm==1.1.0")
DRAWS = 10_000


@dataclass(frozen=True)
class Settings:
    """The same for every task."""

    family: FlowMatching = FlowMatching()
    steps: int = 20_000
    batch: int = 256
    rate: float = 2e-3

    def config(self, seed: int) -> TrainConfig:
        return TrainConfig(
            max_steps=self.steps, batch_size=self.batch, learning_rate=self.rate, evaluate_every=500, seed=seed
        )


SETTINGS = Settings()
TINY = Settings(FlowMatching(width=8, layers=1, heads=1, steps=4), steps=20, batch=32)


def c2st(reference: np.ndarray, draws: np.ndarray, *, seed: int) -> float:
    """Accuracy of sbibm's classifier in cross-validation: two layers of ten units for each parameter."""
    middle, scale = reference.mean(0), reference.std(0, ddof=1)
    both = (np.concatenate([reference, draws]) - middle) / scale
    label = np.repeat([0, 1], [len(reference), len(draws)])
    units = 10 * reference.shape[1]
    network = MLPClassifier((units, units), max_iter=10_000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(network, both.astype(np.float32), label, cv=folds).mean())


def measure(options: argparse.Namespace) -> Results:
    """C2ST of every task, contender and seed of training."""
    torch.set_num_threads(options.threads)
    unknown = sorted(set(options.tasks) - set(TASKS))
    if unknown:
        raise SystemExit(f"Expected tasks among {sorted(TASKS)}; got {unknown}.")
    kept = _Kept(options)
    numbers: dict[str, float | int | bool | None] = {}
    rows = []
    for task in options.tasks:
        files = Files(task, _folder())
        for contender in ("", *(f"_{peer}" for peer in options.peers), "_floor"):
            found = [
                _scored(files, task, contender, options, seed, kept)
                for seed in range(options.seed, options.seed + (1 if contender == "_floor" else options.seeds))
            ]
            score = np.array([one["c2st"] for one in found])  # (seeds, observations, classifiers)
            key = f"{task}_{options.budget}{contender}"
            numbers[f"c2st_{key}"] = float(score.mean())
            seconds = float(np.mean([one["seconds"] for one in found]))
            if contender != "_floor":
                numbers[f"train_seconds_{key}"] = seconds
            each = score.mean((0, 2))
            spread = score.mean((1, 2)).std(ddof=1) if len(score) > 1 else np.nan
            worst = score.mean((0, 1)).max() - score.mean((0, 1)).min()
            rows.append([task, contender[1:] or "ours", score.mean(), spread, worst, each.min(), each.max(), seconds])
    columns = [
        "task",
        "contender",
        "C2ST",
        "sd of seeds",
        "range of classifiers",
        "best",
        "worst",
        "seconds of training",
    ]
    numbers["seeds"], numbers["classifiers"] = options.seeds, options.classifiers
    return Results(numbers, {f"{options.budget} simulations": Table(rows=rows, names=columns)})


def _scored(
    files: Files, task: str, contender: str, options: argparse.Namespace, seed: int, kept: "_Kept"
) -> dict[str, Any]:
    """C2ST (observations, classifiers) and seconds of the training."""

    def compute() -> dict[str, Any]:
        reference = {number: files.reference(number)[: options.draws] for number in options.observations}
        if contender == "_floor":
            half = options.draws // 2
            pairs = [(one[:half], one[half:]) for one in reference.values()]
            seconds = 0.0
        else:
            theta, x = files.simulated(options.budget, seed)
            seen = np.stack([files.observation(number) for number in options.observations])
            answer = _ours if not contender else _theirs
            draws, seconds = answer(files, contender, (theta, x, seen), options, seed)
            pairs = list(zip(reference.values(), draws, strict=True))
            say(f"{task}{contender}, seed {seed}: trained in {seconds:.0f} s")
        jobs = [delayed(c2st)(*pair, seed=number + 1) for pair in pairs for number in range(options.classifiers)]
        found = np.reshape(Parallel(n_jobs=options.threads)(jobs), (len(pairs), options.classifiers))  # pyright: ignore
        say(f"{task}{contender or '_ours'}, seed {seed}: {found.mean(1).round(3).tolist()}, mean {found.mean():.4f}")
        return {"c2st": found.tolist(), "seconds": seconds}

    return kept.part(f"{task}{contender}/{seed}", compute)


def _ours(
    files: Files, _: str, given: tuple[np.ndarray, ...], options: argparse.Namespace, seed: int
) -> tuple[np.ndarray, float]:
    """Draws (observations, draws, P) and seconds of the training."""
    theta, x, seen = given
    task, settings = files.task, TINY if options.quick else SETTINGS
    spec: dict[str, Any] = {"bounds": task.bounds} if task.bounds else {"kind": "positive"} if task.positive else {}
    schema = Schema(
        modalities=(
            ModalitySpec(name="theta", shape=theta.shape[1:], **spec),
            ModalitySpec(name="x", shape=x.shape[1:], **task.data),
        )
    )
    begun = time.perf_counter()
    fitted = fit(settings.family, Observations.from_arrays(schema, {"theta": theta, "x": x}), settings.config(seed))
    seconds = time.perf_counter() - begun
    blind = np.full((len(seen), theta.shape[1]), np.nan)
    asked_for = Observations.from_arrays(schema, {"theta": blind, "x": seen})
    draws = fitted.sample(asked_for, ["theta"], n=options.draws, seed=seed).values["theta"]
    return draws.swapaxes(0, 1), seconds


def _theirs(
    files: Files, contender: str, given: tuple[np.ndarray, ...], options: argparse.Namespace, seed: int
) -> tuple[np.ndarray, float]:
    theta, x, seen = given
    arrays: dict[str, Any] = {"theta": theta, "x": x, "asked": seen, "draws": options.draws, "seed": seed}
    arrays |= {"method": contender[1:]} | ({"bounds": files.task.bounds} if files.task.bounds else {})
    found = asked(peer_python("sbi", *PEER), "_sbi_peer", arrays, threads=options.threads)
    return found["draws"], float(found["seconds"])


def _folder() -> Path:
    return next(peer_python("sbibm", *FILES).parents[1].glob("lib/python*/site-packages/sbibm/tasks"))


class _Kept:
    """Scores that are done, in ``DIR/kept.json``, of the same options and settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        ignored = ("out", "tasks", "peers", "seed", "seeds")
        told = {name: value for name, value in vars(options).items() if name not in ignored}
        versions = [importlib.metadata.version(name) for name in ("consilience", "torch", "scikit-learn")]
        self.key = json.dumps([told, repr(TINY if options.quick else SETTINGS), versions, PEER], default=str)
        self.path = options.out / "kept.json"
        found = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.parts: dict[str, Any] = found.get("parts", {}) if found.get("key") == self.key else {}

    def part(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part of that name, computed if it is not there."""
        if name not in self.parts:
            self.parts[name] = compute()
            with atomic_path(self.path) as path:
                path.write_text(json.dumps({"key": self.key, "parts": self.parts}), encoding="utf-8")
        return self.parts[name]


def _options(parser: argparse.ArgumentParser) -> None:
    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    known = ["gaussian_linear", "gaussian_mixture", "two_moons", "slcp"]
    parser.add_argument("--tasks", type=words, default=known, help="names of sbibm, with commas between them")
    parser.add_argument("--budget", type=int, default=10_000, help="simulations")
    numbers = list(range(1, 11))
    parser.add_argument("--observations", type=lambda text: [int(word) for word in words(text)], default=numbers)
    parser.add_argument("--seeds", type=int, default=1, help="trainings, each with simulations of its own")
    parser.add_argument("--classifiers", type=int, default=3, help="seeds of the classifier")
    parser.add_argument("--peers", type=words, default=["npe", "fmpe"], help="of sbi; empty for none")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)


if __name__ == "__main__":
    chosen("sbi_c2st", measure, _options)
