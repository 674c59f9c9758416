"""Posteriors known to be right, and the same with one thing wrong: what a diagnostic must let pass, and what catch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

import numpy as np

from consilience.blocks.noise import Noise
from consilience.data.observations import Observations
from consilience.data.samples import Predictive, Samples
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.predict.fitted import Density, Fitted
from consilience.simulators.gaussian import LinearGaussian
from consilience.typing import FloatArray

__all__ = ["ERRORS", "Error", "Planted", "planted", "survey", "world"]

Error = Literal["none", "narrow", "wide", "biased", "uncorrelated", "prior", "ignored"]
ERRORS: tuple[Error, ...] = get_args(Error)[1:]
MISSING, LACKING = 0.1, 0.2  # share of cells, and of rows without their bands


@lru_cache(maxsize=1)
def world() -> LinearGaussian:
    """A spectrum, five bands and two labels of five latents, one of which makes the labels correlate; some noise."""
    rng = np.random.default_rng(8)
    loadings = {
        name: np.zeros((size, 5)) for name, size in (("spectrum", 12), ("bands", 5), ("noise", 4), ("labels", 2))
    }
    loadings["spectrum"][:, [0, 2]] = rng.standard_normal((12, 2))
    loadings["bands"][:, [0, 1, 3]] = rng.standard_normal((5, 3)) * [0.5, 1.0, 0.5]
    loadings["labels"][:] = [[0.9, 0.4, 0.0, 0.0, 0.6], [0.4, 0.8, 0.0, 0.0, 0.6]]
    sizes = {name: len(one) for name, one in loadings.items()}
    noise = {"spectrum": 0.4, "bands": 0.3, "noise": 0.5, "labels": 0.28}
    return LinearGaussian(
        loadings,
        {name: np.zeros(size) for name, size in sizes.items()},
        {name: np.full(size, noise[name]) for name, size in sizes.items()},
    )


def survey(rows: int, *, seed: int) -> Observations:
    """A table of that world with gaps: cells of the spectrum, and the bands of a fifth of the rows."""
    rng = np.random.default_rng([seed, 1])
    table = world().simulate(rows, seed=seed, sigma=0.1)
    gaps = {"spectrum": rng.random((rows, 12)) < MISSING, "bands": np.tile(rng.random((rows, 1)) < LACKING, 5)}
    values = {name: part.value for name, part in table.parts.items()}
    sigma = {name: part.sigma for name, part in table.parts.items() if part.sigma is not None}
    ids = [f"{seed}-{row}" for row in range(rows)]
    return Observations.from_arrays(_schema(), values, sigma=sigma, ids=ids).hide_cells(gaps)


@lru_cache(maxsize=1)
def _schema() -> Schema:
    labels = ModalitySpec(name="labels", cells=(Cell(name="mass"), Cell(name="age")))
    return Schema(modalities=(*(world().schema[name] for name in ("spectrum", "bands", "noise")), labels))


@dataclass(frozen=True, slots=True)
class Planted:
    """The closed-form posterior of :func:`world` with the verbs of a fitted model, and with one error.

    Arguments:
        error: "none"; a standard deviation 10 % too "narrow" or too "wide"; means "biased" by .2 of them; labels
            "uncorrelated" that correlate by .8; the "prior" whatever was seen; or the bands "ignored".
        capabilities: As those of a fitted model.
    """

    error: Error = "none"
    capabilities: frozenset[str] = frozenset({"density"})

    @property
    def schema(self) -> Schema:
        """That of the survey."""
        return _schema()

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        """Labels, from anything else."""
        return producible == {"labels"} and "labels" not in readable

    def sample(
        self,
        obs: Observations,
        targets: Sequence[str],
        *,
        n: int,
        seed: int = 0,
        observed: bool = False,
        at: Observations | None = None,
    ) -> Samples:
        """Draws of the labels, as :meth:`consilience.predict.fitted.Fitted.sample`."""
        mean, covariance = self._posterior(obs, (at or obs) if observed else None)
        normal = Noise(seed, obs.ids).normal("labels", n, mean.shape[1:]).double().numpy()
        draws = mean + np.einsum("ndk,snk->snd", np.linalg.cholesky(covariance), normal)
        return Samples(self.schema.select(list(targets)), {"labels": draws}, obs.ids, np.zeros(n, dtype=np.int64))

    def summarise(
        self,
        obs: Observations,
        targets: Sequence[str],
        *,
        statistics: Sequence[str] = ("mean",),
        n: int = 1,
        seed: int = 0,
    ) -> Predictive:
        """Exact means of the labels; ``n`` and ``seed`` change nothing.

        Raises:
            RequestError: another statistic.
        """
        if tuple(statistics) != ("mean",):
            raise RequestError(f"Expected statistics=('mean',); got {statistics}.")
        found = {"labels": {"mean": self._posterior(obs, None)[0]}}
        return Predictive(self.schema.select(list(targets)), found, obs.ids, n)

    def log_prob(self, obs: Observations, targets: Sequence[str], *, given: Observations | None = None) -> Density:
        """Joint log density of the measured labels, (N,)."""
        mean, covariance = self._posterior(obs.hide(*targets) if given is None else given, obs)
        error = obs.parts["labels"].value - mean
        root = np.linalg.cholesky(covariance)
        scaled = np.linalg.solve(root, error[..., None])[..., 0]
        volume = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        value = -0.5 * np.square(scaled).sum(axis=1) - volume - 0.5 * error.shape[1] * np.log(2 * np.pi)
        return Density(value, "exact", None)

    def cell_log_prob(
        self, obs: Observations, targets: Sequence[str], *, given: Observations | None = None
    ) -> dict[str, FloatArray]:
        """Log density of each measured label, (N, 2)."""
        mean, covariance = self._posterior(obs.hide(*targets) if given is None else given, obs)
        variance = np.diagonal(covariance, axis1=1, axis2=2)
        error = obs.parts["labels"].value - mean
        return {"labels": -0.5 * (np.square(error) / variance + np.log(2 * np.pi * variance))}

    def _posterior(self, given: Observations, at: Observations | None) -> tuple[FloatArray, FloatArray]:
        """Mean (N, 2) and covariance (N, 2, 2) as this posterior has them, with the errors of a measurement ``at``."""
        known = {"prior": given.schema.names, "ignored": ("bands",)}.get(self.error, ())
        mean, covariance = world().posterior(given.hide("labels", *(n for n in known if n in given.schema)), ["labels"])
        mean = mean + (0.2 * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)) if self.error == "biased" else 0.0)
        factor = {"narrow": 0.9, "wide": 1.1}.get(self.error, 1.0)
        covariance = covariance * factor**2
        if self.error == "uncorrelated":
            covariance = covariance * np.eye(covariance.shape[1])
        if at is not None and (sigma := at.parts["labels"].sigma) is not None:
            covariance = covariance + np.square(np.nan_to_num(sigma))[:, :, None] * np.eye(covariance.shape[1])
        return mean, covariance


def planted(error: Error = "none") -> Fitted:
    """A :class:`Planted` posterior in the place of a fitted model, whose verbs it has."""
    return cast("Fitted", Planted(error))
