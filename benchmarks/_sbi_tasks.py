"""The tasks of sbibm: priors and simulators written anew; observations and reference posteriors from its files.

Simulators take parameters (N, P) and a generator, and give data (N, X). A column of a prior that is uniform has bounds;
one that is log-normal is positive.

References:
    Benchmarking simulation-based inference (Lueckmann et al., 2021)
"""

import bz2
import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

__all__ = ["TASKS", "Files", "Task"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A prior over parameters and a simulator of data.

    Arguments:
        prior: Draws (N, P) of the prior.
        simulate: Draws (N, X) of the data given parameters (N, P).
        size: P and X.
        bounds: Of every parameter, where the prior is uniform.
        positive: Whether parameters are positive and without bound.
        folder: Of sbibm's files, where it is not the task's name.
        data: Kind and scale of the data.
        observed: Name of the file of an observation.
        arrays: What the simulator needs of the task's binary files.
    """

    prior: Callable[[int, np.random.Generator], np.ndarray]
    simulate: Callable[[np.ndarray, np.random.Generator, Arrays], np.ndarray]
    size: tuple[int, int]
    bounds: tuple[float, float] | None = None
    positive: bool = False
    folder: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    observed: str = "observation.csv"
    arrays: Callable[[Path], Arrays] | None = None


class Files:
    """Observations and reference posteriors of an installed sbibm, whose code is never run.

    Arguments:
        name: Of the task.
        tasks: Folder ``sbibm/tasks``.
    """

    def __init__(self, name: str, tasks: Path) -> None:
        self.task = TASKS[name]
        self.folder = tasks / (self.task.folder or name) / "files"
        self.arrays = {} if self.task.arrays is None else self.task.arrays(self.folder)

    def observation(self, number: int) -> np.ndarray:
        """Data of an observation, (X,)."""
        return _table(self.folder / f"num_observation_{number}" / self.task.observed)[0]

    def reference(self, number: int) -> np.ndarray:
        """10 000 draws of its posterior, (10000, P)."""
        return _table(self.folder / f"num_observation_{number}" / "reference_posterior_samples.csv.bz2")

    def simulated(self, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Parameters (N, P) from the prior, and their data (N, X)."""
        rng = np.random.default_rng(seed)
        theta = self.task.prior(rows, rng)
        return theta, self.task.simulate(theta, rng, self.arrays)


def _table(path: Path) -> np.ndarray:
    """Rows of a CSV file with a header, which may be compressed."""
    text = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
    _, *rows = csv.reader(text.decode().splitlines())
    return np.array(rows, dtype=float)


def _stimulus(folder: Path) -> Arrays:
    return {name: torch.load(folder / f"{file}.pt", weights_only=True).numpy() for name, file in _GLM_FILES.items()}


def _distraction(folder: Path) -> Arrays:
    """Numbers of a mixture that pyro pickled: of its classes only the names are known here, and nothing is run."""
    modules = {
        "pyro.distributions.torch": ("Categorical", "Chi2", "Independent", "MixtureSameFamily"),
        "pyro.distributions.multivariate_studentt": ("MultivariateStudentT",),
    }
    known = [(type(name, (), {}), f"{module}.{name}") for module, names in modules.items() for name in names]
    with torch.serialization.safe_globals(known):
        mixture = torch.load(folder / "gmm.torch", weights_only=True)
    part = mixture._component_distribution.base_dist
    found = {
        "weights": mixture._mixture_distribution.probs, "freedom": part.df, "location": part.loc,
        "triangle": part._unbroadcasted_scale_tril,
        "order": torch.load(folder / "permutation_idx.torch", weights_only=True),
    }  # fmt: skip
    return {name: tensor.numpy() for name, tensor in found.items()}


def _uniform(rows: int, rng: np.random.Generator, *, low: float, high: float, count: int) -> np.ndarray:
    return rng.uniform(low, high, (rows, count))


def _normal(rows: int, rng: np.random.Generator, *, scale: float, count: int) -> np.ndarray:
    return scale * rng.normal(size=(rows, count))


def _log_normal(rows: int, rng: np.random.Generator, *, middle: tuple[float, ...], scale: tuple[float, ...]):  # noqa: ANN202
    return np.exp(rng.normal(middle, scale, (rows, len(middle))))


def _smooth_filters(rows: int, rng: np.random.Generator) -> np.ndarray:
    """An offset, and nine weights whose second differences are small."""
    count = 9
    difference = np.eye(count) - np.eye(count, k=-1)
    matrix = difference @ difference + np.diag(np.arange(count) / count) ** 0.5
    precision = np.zeros((count + 1, count + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, matrix.T @ matrix
    return rng.normal(size=(rows, count + 1)) @ np.linalg.cholesky(np.linalg.inv(precision)).T


def _gaussian(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    return theta + math.sqrt(0.1) * rng.normal(size=theta.shape)


def _mixture(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    return theta + rng.choice([1.0, 0.1], (len(theta), 1)) * rng.normal(size=theta.shape)


def _two_moons(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, len(theta)), rng.normal(0.1, 0.01, len(theta))
    point = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)
    a, b = theta.T
    return point + np.stack([-np.abs(a + b), b - a], -1) / math.sqrt(2)


def _slcp(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    first, second, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, np.tanh(theta[:, 4])
    e = rng.normal(size=(len(theta), 4, 2))
    x = theta[:, None, 0] + first[:, None] * e[..., 0]
    y = theta[:, None, 1] + second[:, None] * (rho[:, None] * e[..., 0] + np.sqrt(1 - rho**2)[:, None] * e[..., 1])
    return np.stack([x, y], -1).reshape(len(theta), 8)


def _with_distractors(theta: np.ndarray, rng: np.random.Generator, arrays: Arrays) -> np.ndarray:
    """Columns of SLCP among 92 of a mixture of t distributions that says nothing."""
    weights, location, triangle = (arrays[name] for name in ("weights", "location", "triangle"))
    part = rng.choice(len(weights), len(theta), p=weights / weights.sum())
    normal = np.einsum("nij,nj->ni", triangle[part], rng.normal(size=(len(theta), location.shape[1])))
    freedom = arrays["freedom"][part][:, None]
    noise = location[part] + normal / np.sqrt(rng.chisquare(freedom) / freedom)
    return np.concatenate([_slcp(theta, rng, arrays), noise], 1)[:, arrays["order"]]


def _spikes(theta: np.ndarray, rng: np.random.Generator, arrays: Arrays) -> np.ndarray:
    return (rng.random((len(theta), 100)) < expit(theta @ arrays["design"].T)).astype(float)


def _spike_statistics(theta: np.ndarray, rng: np.random.Generator, arrays: Arrays) -> np.ndarray:
    """Number of spikes, and the stimulus before them on average, times that number."""
    spikes, stimulus = _spikes(theta, rng, arrays), arrays["stimulus"]
    lags = [spikes[:, lag:] @ stimulus[: len(stimulus) - lag] for lag in range(9)]
    return np.stack([spikes.sum(1), *lags], -1)


def _rk4(slope: Callable[[np.ndarray], np.ndarray], start: np.ndarray, step: float, count: int) -> np.ndarray:
    """States (count + 1, …) of an autonomous equation."""
    found = [start]
    for _ in range(count):
        y = found[-1]
        a = slope(y)
        b = slope(y + 0.5 * step * a)
        c = slope(y + 0.5 * step * b)
        found.append(y + step / 6 * (a + 2 * b + 2 * c + slope(y + step * c)))
    return np.stack(found)


def _epidemic(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    """Share of infected people on ten days, as counts of a thousand tests."""
    people, (contact, recovery) = 1e6, theta.T

    def slope(y: np.ndarray) -> np.ndarray:
        infection = contact * y[0] * y[1] / people
        return np.stack([-infection, infection - recovery * y[1]])

    start = np.stack([np.full(len(theta), people - 1), np.ones(len(theta))])
    infected = _rk4(slope, start, 0.1, 1600)[::170, 1].T
    return rng.binomial(1000, np.clip(infected / people, 0, 1)).astype(float)


def _populations(theta: np.ndarray, rng: np.random.Generator, _: Arrays) -> np.ndarray:
    """Prey and predators at ten times, with a tenth of noise."""
    alpha, beta, gamma, delta = theta.T

    def slope(y: np.ndarray) -> np.ndarray:  # of logarithms, which stay positive
        prey, predators = np.exp(y)
        return np.stack([alpha - beta * predators, -gamma + delta * prey])

    start = np.stack([np.full(len(theta), math.log(30.0)), np.zeros(len(theta))])
    states = _rk4(slope, start, 0.01, 2000)[::210]  # (10, 2, N)
    middle = np.clip(states, math.log(1e-10), math.log(10_000)).transpose(2, 1, 0).reshape(len(theta), 20)
    return np.exp(middle + 0.1 * rng.normal(size=middle.shape))


_SLCP: dict[str, Any] = {"prior": partial(_uniform, low=-3.0, high=3.0, count=5), "bounds": (-3.0, 3.0)}
_GLM: dict[str, Any] = {"prior": _smooth_filters, "folder": "bernoulli_glm", "arrays": _stimulus}
_GLM_FILES = {"design": "design_matrix", "stimulus": "stimulus_I"}
_BOX = {"prior": partial(_uniform, low=-1.0, high=1.0, count=10), "bounds": (-1.0, 1.0)}
_WIDE = {"prior": partial(_uniform, low=-10.0, high=10.0, count=2), "bounds": (-10.0, 10.0)}
_MOONS = {"prior": partial(_uniform, low=-1.0, high=1.0, count=2), "bounds": (-1.0, 1.0)}
_RATES = partial(_log_normal, middle=(math.log(0.4), math.log(0.125)), scale=(0.5, 0.2))
_PREY = partial(_log_normal, middle=(-0.125, -3.0, -0.125, -3.0), scale=(0.5, 0.5, 0.5, 0.5))

TASKS = {
    "gaussian_linear": Task(partial(_normal, scale=math.sqrt(0.1), count=10), _gaussian, size=(10, 10)),
    "gaussian_linear_uniform": Task(simulate=_gaussian, size=(10, 10), **_BOX),
    "gaussian_mixture": Task(simulate=_mixture, size=(2, 2), **_WIDE),
    "two_moons": Task(simulate=_two_moons, size=(2, 2), **_MOONS),
    "slcp": Task(simulate=_slcp, size=(5, 8), **_SLCP),
    "slcp_distractors": Task(
        simulate=_with_distractors,
        size=(5, 100),
        folder="slcp",
        observed="observation_distractors.csv",
        arrays=_distraction,
        **_SLCP,
    ),
    "bernoulli_glm": Task(simulate=_spike_statistics, size=(10, 10), **_GLM),
    "bernoulli_glm_raw": Task(simulate=_spikes, size=(10, 100), observed="observation_raw.csv", **_GLM),
    "sir": Task(_RATES, _epidemic, size=(2, 10), positive=True, data={"scale": "asinh"}),
    "lotka_volterra": Task(_PREY, _populations, size=(4, 20), positive=True, data={"kind": "positive"}),
}
