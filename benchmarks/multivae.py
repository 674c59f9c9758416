"""Seconds and memory per training step of DisentangledVAE beside MultiVae's DMVAE with the same networks.

Two modalities, dense networks of two hidden layers, the same sizes of blocks and batches, single precision, Adam. The
objective is the same: every modality is reconstructed from the joint, its own and the other's shared latents, and the
divergences of the blocks are those of three posteriors each (ours counts KL(q(s | x_m) || p(s)) in two bounds where the
peer's counts it in one). The peer decodes every row in all three of them. Ours decodes it in one that is drawn by lot
and counts three times: an estimate of the same gradient with more noise, whose price ``factors`` and ``study galaxies``
tell. A third contender, "all bounds", is ours with as many decodings as the peer: the same work. Ours also learns a
noise variance per cell and reads which cells were seen. A step is all that a loop does from the rows' numbers to Adam's
step; the peer is spared its loader, which fetches rows one by one.

Each contender has a process of its own, in its environment, and waits while another steps. ``speedup_step`` is the
least over sizes and threads of the peer's median seconds over ours, ``speedup_same_work`` that over those of "all
bounds". Memory is what a process has resident at most, less what it had when its imports were done.

Run with ``python -m benchmarks.multivae [--quick] [--seed N] --out DIR``.
"""

import os

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")  # of both

import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from astropy.table import Table

from benchmarks._harness import main, peer_python, say, turns
from benchmarks._race import Racer
from benchmarks.factors import PEER
from consilience.studies.runner import Results

__all__ = ["CASES", "Case", "measure", "tables"]

ROWS = 2048  # from which batches are drawn


@dataclass(frozen=True)
class Case:
    """Cells of the two modalities, units of the hidden layers, latents of each block, rows of a batch."""

    cells: tuple[int, int]
    hidden: int
    latents: int
    batch: int


CASES = {
    "tables": Case((50, 50), 128, 2, 256),  # of study factors
    "digits": Case((28 * 28, 3 * 32 * 32), 512, 20, 128),  # MNIST beside SVHN, layers as wide as the peer's own
    "images": Case((3 * 32 * 32, 3 * 32 * 32), 512, 20, 128),
}
CONTENDERS = {"ours": "", "all bounds": "_all_bounds", "multivae": "_peer"}  # and what ends the names of their numbers
TINY = {"tables": Case((6, 6), 8, 2, 16)}


def measure(seed: int, quick: bool) -> Results:
    """All contenders at every size, with one thread and with two."""
    python, timed = peer_python("multivae", *PEER), (2, 2) if quick else (6, 10)
    rows, numbers = [], {}
    faster: dict[str, list[float]] = {"step": [], "same_work": []}
    for threads, (name, case) in product((1, 2), (TINY if quick else CASES).items()):
        seconds, memory = race(case, python, threads, timed, seed)
        for who, suffix in CONTENDERS.items():
            median = float(np.median(seconds[who]))
            numbers[f"images_per_second_{name}_{threads}{suffix}"] = 2 * case.batch / median
            numbers[f"memory_mib_{name}_{threads}{suffix}"] = memory[who]
            fastest = float(seconds[who].min())
            rows.append([name, threads, who, 1e3 * median, 1e3 * fastest, 2 * case.batch / median, memory[who]])
        for kind, who in (("step", "ours"), ("same_work", "all bounds")):
            ratio = float(np.median(seconds["multivae"]) / np.median(seconds[who]))
            numbers[f"speedup_{kind}_{name}_{threads}"] = ratio
            faster[kind].append(ratio)
            say(f"{name}, {threads} threads, {who}: {ratio:.2f} times as fast")
    numbers |= {f"speedup_{kind}": min(ratios) for kind, ratios in faster.items()}
    names = ["size", "threads", "method", "median [ms]", "fastest [ms]", "images per second", "memory [MiB]"]
    return Results(numbers, {"Training steps": Table(rows=rows, names=names)})


def race(
    case: Case, python: Path, threads: int, timed: tuple[int, int], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Seconds of every timed step of each contender, and the MiB that it has taken.

    Arguments:
        case: Sizes.
        python: The peer's interpreter.
        threads: That each may use.
        timed: Turns, and steps in each.
        seed: Of the tables and the networks.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "in.npz"
        np.savez(given, **tables(case, seed))  # type: ignore[arg-type]
        module = "benchmarks._multivae_ours"
        with (
            Racer([sys.executable, "-m", module, given], threads) as ours,
            Racer([sys.executable, "-m", module, given, "all"], threads) as every,
            Racer([python, "-m", "benchmarks._multivae_peer", given], threads) as peer,
        ):
            racers = dict(zip(CONTENDERS, (ours, every, peer), strict=True))
            seconds = turns(racers, repeats=timed[0], streak=timed[1], warm=5)
            return seconds, {name: racer.memory for name, racer in racers.items()}


def tables(case: Case, seed: int) -> dict[str, np.ndarray | float | int]:
    """What both contenders are given: smooth functions of common and own latents with noise, standardised."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((ROWS, case.latents))
    values = {}
    for number, cells in enumerate(case.cells):
        z = np.hstack([shared, rng.standard_normal((ROWS, case.latents))])
        x = np.tanh(z @ rng.standard_normal((z.shape[1], cells)) / z.shape[1] ** 0.5)
        x += 0.1 * rng.standard_normal(x.shape)
        values[f"train_x{number + 1}"] = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    sizes = {"shared": case.latents, "private": case.latents, "hidden": case.hidden, "batch": case.batch}
    return {**values, **sizes, "seed": seed, "rates": np.array([1e-3]), "scales": np.array([1.0])}


if __name__ == "__main__":
    main("multivae", measure)
