"""A fitted model with a known posterior: the linear-Gaussian model, right or wrong on purpose."""

from dataclasses import dataclass, field

import numpy as np

from consilience.data.observations import Observations
from consilience.data.samples import Latent, Predictive, Samples
from consilience.data.schema import Frozen, Grid, ModalitySpec, Schema

GRID = Grid(start=1000.0, stop=3000.0, size=24, unit="Angstrom")
SCHEMA = Schema(
    modalities=(
        ModalitySpec(name="spectrum", grid=GRID, unit="erg / (s cm2)"),
        ModalitySpec(name="colour", shape=(3,), unit="mag"),
        ModalitySpec(name="labels", cells=({"name": "mass", "unit": "solMass"}, {"name": "redshift"})),
    )
)


class LinearGaussian(Frozen):
    """A family's configuration, as a report shows it."""

    latent_dim: int = 4
    posterior: str = "exact"


@dataclass
class World:
    """x = W z + b + intrinsic scatter; observed with known sigma; all modalities in one flat vector."""

    schema: Schema = SCHEMA
    latent: int = 4
    seed: int = 3

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.sizes = [spec.size for spec in self.schema.modalities]
        total = sum(self.sizes)
        self.w = rng.normal(size=(total, self.latent)) / np.sqrt(self.latent)
        grid = np.linspace(0, 3, self.sizes[0])
        self.w[: self.sizes[0]] = np.stack([np.sin((k + 1) * grid + k) for k in range(self.latent)], 1) * 0.8
        self.b = rng.normal(size=total)
        self.scatter = np.full(total, 0.25)
        self.slices = dict(zip(self.schema.names, np.split(np.arange(total), np.cumsum(self.sizes)[:-1]), strict=True))

    def draw(self, n, seed, missing=0.3):
        rng = np.random.default_rng([seed, 7])
        z = rng.normal(size=(n, self.latent))
        x = z @ self.w.T + self.b + self.scatter * rng.normal(size=(n, len(self.b)))
        sigma = rng.uniform(0.05, 0.3, size=x.shape)
        y = x + sigma * rng.normal(size=x.shape)
        first = slice(self.sizes[0])
        y[:, first] = np.where(rng.uniform(size=(n, self.sizes[0])) < missing, np.nan, y[:, first])
        pick = {m: (slice(None), s) for m, s in self.slices.items()}
        return Observations.from_arrays(
            self.schema,
            {m: y[p] for m, p in pick.items()},
            sigma={m: sigma[p] for m, p in pick.items()},
            ids=[f"s{seed}-{i}" for i in range(n)],
        )


@dataclass
class Fake:
    """The surface of a fitted model on the closed-form posterior; ``width``, ``shift`` and ``prior`` make it wrong."""

    world: World = field(default_factory=World)
    width: float = 1.0
    shift: float = 0.0
    prior: bool = False
    capabilities: frozenset = frozenset({"density", "latent", "generate"})
    family: Frozen = field(default_factory=LinearGaussian)
    provenance: dict = field(
        default_factory=lambda: {"family": "LinearGaussian", "rows": 400, "versions": {"numpy": "2"}}
    )
    calibration: dict | None = None
    history: list = field(default_factory=list)
    refuse: frozenset = frozenset()

    @property
    def schema(self):
        return self.world.schema

    def answers(self, readable, producible):
        return not (producible & self.refuse)

    def _flat(self, obs, what):
        return np.concatenate(
            [np.asarray(getattr(obs.parts[m], what), float).reshape(len(obs), -1) for m in self.schema.names], 1
        )

    def _posterior(self, obs):
        """Mean (N, Q) and covariance (N, Q, Q) of z given the seen cells."""
        w, value = self.world.w, self._flat(obs, "value")
        there = np.isfinite(value) & (not self.prior)
        variance = self.world.scatter**2 + np.nan_to_num(self._flat(obs, "sigma")) ** 2
        weight = there / variance
        precision = np.eye(self.world.latent) + np.einsum("nd,dq,dr->nqr", weight, w, w)
        cov = np.linalg.inv(precision)
        mean = np.einsum("nqr,nd,dr->nq", cov, weight * np.nan_to_num(value - self.world.b), w)
        return mean, cov

    def _moments(self, obs):
        mean, cov = self._posterior(obs)
        w = self.world.w
        variance = np.einsum("dq,nqr,dr->nd", w, cov, w) + self.world.scatter**2
        sd = np.sqrt(variance)
        return mean @ w.T + self.world.b + self.shift * sd, self.width * sd

    def sample(self, obs, targets, *, n, seed=0, method="default", observed=False, at=None):
        at = obs if at is None else at
        mean, cov = self._posterior(obs)
        root = np.linalg.cholesky(cov)
        keys = [np.random.default_rng([seed, *map(ord, i)]) for i in obs.ids]
        z = np.stack([r.normal(size=(n, self.world.latent)) for r in keys], 1)
        e = np.stack([r.normal(size=(n, len(self.world.b))) for r in keys], 1)
        f = mean + np.einsum("nqr,snr->snq", root, z)
        centre, sd = self._moments(obs)
        x = f @ self.world.w.T + self.world.b + self.world.scatter * e
        plain = sd / self.width
        x = centre + self.width * (x - (centre - self.shift * plain))
        if observed:
            extra = np.stack(
                [np.random.default_rng([seed, 1, *map(ord, i)]).normal(size=(n, len(self.world.b))) for i in obs.ids], 1
            )
            x = x + self.width * np.nan_to_num(self._flat(at, "sigma")) * extra
        values = {t: x[:, :, self.world.slices[t]].reshape(n, len(obs), *self.schema[t].shape) for t in targets}
        return Samples(self.schema.select(targets), values, obs.ids, np.zeros(n, int))

    def summarise(self, obs, targets, *, statistics=("mean", "std"), n=100, seed=0):
        mean, sd = self._moments(obs)
        parts = {"mean": mean, "std": sd}
        found = {
            t: {s: parts[s][:, self.world.slices[t]].reshape(len(obs), *self.schema[t].shape) for s in statistics}
            for t in targets
        }
        return Predictive(self.schema.select(targets), found, obs.ids, n)

    def cell_log_prob(self, obs, targets, *, given=None):
        given = obs.hide(*targets) if given is None else given
        mean, sd = self._moments(given)
        value = self._flat(obs, "value")
        variance = sd**2 + (self.width * np.nan_to_num(self._flat(obs, "sigma"))) ** 2
        log_p = -0.5 * (np.log(2 * np.pi * variance) + (value - mean) ** 2 / variance)
        return {t: log_p[:, self.world.slices[t]].reshape(len(obs), *self.schema[t].shape) for t in targets}

    def latent(self, obs):
        mean, cov = self._posterior(obs)
        return Latent({"shared": mean}, {"shared": np.sqrt(np.einsum("nqq->nq", cov))}, obs.ids)
