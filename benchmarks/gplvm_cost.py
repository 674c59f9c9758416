r"""How the cost of a training step grows: a + b B D M² + c D M³ fitted to measured steps.

B rows a step, D outputs, M inducing inputs, each over a factor of eight; the step is that of ``gplvm_step``, with a
precision of its own for every output, float32, two threads, the least of three rounds over all sizes. The three
coefficients are not negative and minimise the sum of squared relative errors.

Run with ``python -m benchmarks.gplvm_cost [--quick] [--seed N] --out DIR``.
"""

import itertools
import os
from dataclasses import replace

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import numpy as np
import torch
from astropy.table import Table
from scipy.optimize import nnls

from benchmarks._harness import main, turns
from benchmarks.gplvm_step import Sizes, make_table, our_step
from consilience.plots import Labels, Trend, trends
from consilience.studies.runner import Results

__all__ = ["fit_cost", "measure"]

ROWS, OUTPUTS, INDUCING = (64, 128, 256, 512), (74, 148, 296, 592), (20, 40, 80, 160)
REPEATS, ROUNDS = 5, 3


def measure(seed: int, quick: bool) -> Results:
    """Time the steps of a grid of sizes and fit their cost."""
    torch.set_num_threads(2)
    grid = ((8, 16), (6, 12), (4, 8)) if quick else (ROWS, OUTPUTS, INDUCING)
    points = np.array(list(itertools.product(*grid)))
    # rounds over the whole grid: a busy moment of the machine spoils one round of a point, not the point
    rounds = [[_seconds(*map(int, point), seed) for point in points] for _ in range(1 if quick else ROUNDS)]
    seconds = np.min(rounds, axis=0)
    coefficients, fitted = fit_cost(points, seconds)
    residual = fitted / seconds - 1
    rows = [
        [*point, 1e3 * s, 1e3 * f, 100 * r] for point, s, f, r in zip(points, seconds, fitted, residual, strict=True)
    ]
    names = ["B", "D", "M", "measured [ms]", "fitted [ms]", "residual [%]"]
    numbers = {
        "a_seconds": float(coefficients[0]),
        "b_seconds_per_bdm2": float(coefficients[1]),
        "c_seconds_per_dm3": float(coefficients[2]),
        "residual_median": float(np.median(np.abs(residual))),
        "residual_max": float(np.abs(residual).max()),
        "points": len(points),
    }
    terms = Table(
        rows=[
            ["a", coefficients[0], "s"],
            ["b", 1e12 * coefficients[1], "s / 10¹² B D M²"],
            ["c", 1e12 * coefficients[2], "s / 10¹² D M³"],
        ],
        names=["term", "value", "unit"],
    )
    tables = {"Coefficients": terms, "Measured and fitted steps": Table(rows=rows, names=names)}
    return Results(numbers, tables, {"cost": _figure(points, seconds, fitted)})


def fit_cost(points: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b, c), and the fitted seconds of every point (K, 3) of B, D, M.

    Example:
        >>> points = np.array([[1, 1, 1], [2, 1, 1], [1, 2, 3], [4, 2, 2]])
        >>> b, d, m = points.T
        >>> fit_cost(points, 1 + 2 * b * d * m**2 + 3 * d * m**3)[0].round(6).tolist()
        [1.0, 2.0, 3.0]
    """
    rows, outputs, inducing = points.astype(float).T
    design = np.stack([np.ones(len(points)), rows * outputs * inducing**2, outputs * inducing**3], axis=1)
    scale = design.max(axis=0)
    found, _ = nnls(design / scale / seconds[:, None], np.ones(len(points)))
    return found / scale, design @ (found / scale)


def _seconds(batch: int, outputs: int, inducing: int, seed: int) -> float:
    sizes = replace(Sizes(), outputs=outputs, inducing=inducing, batch=batch, rows=2 * batch)
    step = our_step(make_table(sizes, seed), sizes, seed)
    order = torch.arange(batch)
    return float(np.median(turns({"step": lambda: step(order)}, repeats=1, streak=REPEATS)["step"]))


def _figure(points: np.ndarray, seconds: np.ndarray, fitted: np.ndarray):  # noqa: ANN202 - a figure
    middle = [int(np.unique(points[:, k])[len(np.unique(points[:, k])) // 2]) for k in range(3)]
    parts = []
    for k, name in enumerate("BDM"):
        others = [j for j in range(3) if j != k]
        line = np.flatnonzero(np.all([points[:, j] == middle[j] for j in others], axis=0))
        title = ", ".join(f"{'BDM'[j]} = {middle[j]}" for j in others)
        labels = Labels(name, "time of a step", title, "", "ms")
        x = points[line, k].astype(float)
        parts.append(Trend(x, {"step": 1e3 * fitted[line]}, {"step": 1e3 * seconds[line]}, labels, log=True))
    return trends(parts, names=("fitted", "measured"))


if __name__ == "__main__":
    main("gplvm_cost", measure)
