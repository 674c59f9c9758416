"""A fitted model and its verbs: sample, summarise, impute, latent, decode, log_prob, generate, save."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from consilience.blocks.noise import Noise
from consilience.data.observations import Observations
from consilience.data.samples import Latent, Predictive, Samples
from consilience.data.scaling import Scaler
from consilience.data.schema import Schema, nearest
from consilience.errors import CapabilityError, MemoryLimitError, RequestError
from consilience.models.base import AbstractFamily, AbstractModel, Conditional, HasDecoders, HasDensity, HasLatent
from consilience.predict.recalibration import REFERENCE, SEED, Recalibration
from consilience.predict.statistics import statistic
from consilience.predict.storage import read_model, write_model
from consilience.predict.tiles import Tile, conform, seen, tiles
from consilience.train.config import TrainConfig
from consilience.typing import FloatArray, PathOrStr, StringArray

__all__ = ["Density", "Fitted", "load"]

LIMIT = 4 * 2**30  # bytes that one call may return


@dataclass(frozen=True, slots=True)
class Density:
    """Log densities per physical unit: value (N,), how obtained, and the standard error where estimated (N,)."""

    value: FloatArray
    kind: str
    error: FloatArray | None


@dataclass(frozen=True, slots=True)
class Fitted:
    """One probability model over the modalities of ``schema``, an ensemble of at least one member.

    Every verb conditions on what is seen in the rows it is given, and on nothing else: hide what should be asked.

    Arguments:
        members: Trained models.
        family: Their configuration.
        scaler: Physical to model units.
        config: How they were trained.
        provenance: Versions, seeds, number of rows, time.
        calibration: Coverage measured on held-out rows, or None where none were held out.
        history: Terms of the objective while training.
        recalibration: Maps of draws, but for those of :meth:`decode` (:func:`consilience.analysis.recalibration`).
    """

    members: tuple[AbstractModel, ...]
    family: AbstractFamily
    scaler: Scaler
    config: TrainConfig
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, float]] = ()
    recalibration: Recalibration | None = None

    @property
    def schema(self) -> Schema:
        """The modalities the model knows."""
        return self.scaler.schema

    @property
    def capabilities(self) -> frozenset[str]:
        """What this family can do, among density, latent, generate and limits; recalibrated draws have no density."""
        return self.members[0].capabilities - (frozenset() if self.recalibration is None else {"density"})

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        """Whether the model can draw ``producible`` given any cells of ``readable``."""
        return self.members[0].answers(readable, producible)

    def sample(
        self,
        obs: Observations,
        targets: Sequence[str],
        *,
        n: int,
        seed: int = 0,
        method: str = "default",
        observed: bool = False,
        at: Observations | None = None,
    ) -> Samples:
        """Draws of the targets given everything seen in ``obs``, shape (n, N, *event), physical units.

        Arguments:
            obs: What is known; hide what should be predicted.
            targets: Modalities to draw.
            n: Draws per object.
            seed: Same seed, id and model: same draws.
            method: One of the family's methods.
            observed: Add measurement error to the noiseless draws, with the sigma of ``at``.
            at: Rows whose sigma is added when ``observed``; ``obs`` itself by default.

        Raises:
            MemoryLimitError: the draws would exceed 4 GiB; use :meth:`summarise`.
            RequestError: an unknown target or n < 1.
        """
        names = self._targets(obs, targets, n)
        size = 8 * n * len(obs) * sum(self.schema[name].size for name in names)
        if size > LIMIT:
            raise MemoryLimitError(
                f"Expected draws of at most {LIMIT / 2**30:.0f} GiB; got {size / 2**30:.1f} GiB "
                f"({n} draws of {len(obs)} objects). Use summarise, fewer draws, or fewer rows at a time."
            )
        values = {name: np.empty((n, len(obs), *self.schema[name].shape)) for name in names}
        for tile, draws in self._draws(obs, names, n, seed, method, (at or obs) if observed else None):
            for name in names:
                values[name][:, tile.place] = draws[name][:, : tile.rows]
        return Samples(self.schema.select(names), values, obs.ids, self._owners(n))

    def summarise(
        self,
        obs: Observations,
        targets: Sequence[str],
        *,
        statistics: Sequence[str] = ("mean", "std", "q16", "q50", "q84"),
        n: int = 200,
        seed: int = 0,
        method: str = "default",
    ) -> Predictive:
        """Statistics of draws, tile by tile, never holding all draws: "mean", "std", or a percentile such as "q2.5".

        The draws are noiseless; other arguments as :meth:`sample`.

        Raises:
            RequestError: an unknown target or statistic, or n < 1.
        """
        names = self._targets(obs, targets, n)
        functions = {key: statistic(key) for key in statistics}
        found = {name: {k: np.empty((len(obs), *self.schema[name].shape)) for k in functions} for name in names}
        for tile, draws in self._draws(obs, names, n, seed, method):
            for name in names:
                for key, function in functions.items():
                    # over whole tiles: numpy adds a single column in another order
                    found[name][key][tile.place] = function(draws[name])[: tile.rows]
        return Predictive(self.schema.select(names), found, obs.ids, n)

    def impute(self, obs: Observations, *, n: int = 100, seed: int = 0) -> Samples:
        """Draws of every cell of every modality given the seen ones, without measurement error."""
        return self.sample(obs, self.schema.names, n=n, seed=seed)

    def generate(self, n: int, *, seed: int = 0) -> Samples:
        """One draw of each of ``n`` new objects that nobody has observed."""
        self._needs("generate")
        blank = {spec.name: np.full((n, *spec.shape), np.nan) for spec in self.schema.modalities}
        return self.sample(Observations.from_arrays(self.schema, blank), self.schema.names, n=1, seed=seed)

    def latent(self, obs: Observations, *, method: str = "default") -> Latent:
        """Posterior mean and standard deviation of every latent block (of the first member), by a family's method."""
        self._needs("latent")
        mean: dict[str, list[FloatArray]] = {}
        std: dict[str, list[FloatArray]] = {}
        for tile in tiles(conform(obs.detached(), self.schema)):
            conditional = self._condition(self.members[0], tile.obs)
            assert isinstance(conditional, HasLatent)
            for block, posterior in conditional.latent(method).items():
                mean.setdefault(block, []).append(posterior.mean[: tile.rows].double().cpu().numpy())
                std.setdefault(block, []).append(posterior.std[: tile.rows].double().cpu().numpy())
        return Latent(
            {block: np.concatenate(parts) for block, parts in mean.items()},
            {block: np.concatenate(parts) for block, parts in std.items()},
            obs.ids,
        )

    def decode(
        self,
        obs: Observations,
        latents: Mapping[str, FloatArray],
        targets: Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
    ) -> Samples:
        """Draws of the targets where latent blocks are set (of the first member), (n, N, *event), physical units.

        Arguments:
            obs: N rows; blocks that are not set are at their posterior means given what these show.
            latents: Values of blocks by name, each (N, *block).
            targets: Modalities to draw.
            n: Draws per row.
            seed: Of what the latents do not fix; the same for every row, so that rows differ by their latents alone.

        Raises:
            CapabilityError: a model without latents, or one whose latents cannot be set.
            RequestError: an unknown block or target, or values of another shape.
        """
        self._needs("latent")
        model, names = self.members[0], _names(targets)
        for block, value in latents.items():
            expected = (len(obs), *model.blocks[block].shape) if block in model.blocks else None
            if np.shape(value) != expected:
                raise RequestError(
                    f"Expected latents among {list(model.blocks)}, shape {expected}; got {block!r}, {np.shape(value)}."
                )
        found = {name: np.empty((n, len(obs), *self.schema[name].shape)) for name in names}
        some = next(model.parameters())
        for tile in tiles(conform(obs.detached(), self.schema)):
            conditional = self._condition(model, tile.obs)
            if not isinstance(conditional, HasDecoders):
                raise CapabilityError("Expected a model whose latents can be set; got one whose latents are in time.")
            fixed = {  # repeated to the size of a tile
                block: torch.as_tensor(np.resize(value[tile.place], (len(tile.obs), *np.shape(value)[1:]))).to(some)
                for block, value in latents.items()
            }
            noise = self._noise(seed, np.full(len(tile.obs), "decoded"), 0)
            for name, draws in conditional.at(fixed).sample(names, noise, n).items():
                shaped = draws.double().cpu().numpy().reshape(n, len(tile.obs), *self.schema[name].shape)
                found[name][:, tile.place] = self.scaler.inverse(name, shaped)[:, : tile.rows]
        return Samples(self.schema.select(names), found, obs.ids, np.zeros(n, dtype=np.int64))

    def log_prob(
        self, obs: Observations, targets: Sequence[str], *, given: Observations | None = None, method: str = "default"
    ) -> Density:
        """Joint log density of the seen target cells of each row, nats per physical unit, shape (N,).

        Arguments:
            obs: Rows whose target cells are scored.
            targets: Modalities to score.
            given: What is known of the same rows; ``obs`` with the targets hidden by default.
            method: One of the family's methods.
        """
        names = self._targets(obs.hide(*_names(targets)) if given is None else given, targets)
        value = np.empty(len(obs))
        error = np.full(len(obs), np.nan)
        jacobian = self.scaler.log_jacobian(conform(obs, self.schema))
        kind = "exact"
        for tile, scored, context in self._scored(obs, names, given):
            values, errors = [], []
            for member, model in enumerate(self.members):
                conditional = self._condition(model, context)
                assert isinstance(conditional, HasDensity)
                noise = self._noise(0, context.ids, member)
                found = conditional.log_prob(self._tensors(model, scored), names, noise, method)
                kind = found.kind
                values.append(found.value.double().cpu().numpy())
                errors.append(np.nan * values[-1] if found.error is None else found.error.double().cpu().numpy())
            value[tile.place] = (np.logaddexp.reduce(values) - np.log(len(values)))[: tile.rows]
            error[tile.place] = np.sqrt(np.mean(np.square(errors), 0) / len(errors))[: tile.rows]
        for name in names:
            value += jacobian[name].reshape(len(obs), -1).sum(-1)
        return Density(value, kind, None if np.isnan(error).all() else error)

    def cell_log_prob(
        self, obs: Observations, targets: Sequence[str], *, given: Observations | None = None, method: str = "default"
    ) -> dict[str, FloatArray]:
        """Marginal log density of each seen target cell, nats per physical unit; NaN where nothing is scored.

        Arguments as :meth:`log_prob`; shape (N, *event) per target.
        """
        names = self._targets(obs.hide(*_names(targets)) if given is None else given, targets)
        whole = conform(obs, self.schema)
        jacobian = self.scaler.log_jacobian(whole)
        found = {name: np.empty((len(obs), *self.schema[name].shape)) for name in names}
        for tile, scored, context in self._scored(obs, names, given):
            parts: dict[str, list[FloatArray]] = {name: [] for name in names}
            for member, model in enumerate(self.members):
                conditional = self._condition(model, context)
                assert isinstance(conditional, HasDensity)
                noise = self._noise(0, context.ids, member)
                values = self._tensors(model, scored)
                for name, cells in conditional.cell_log_prob(values, names, noise, method).items():
                    parts[name].append(cells.double().cpu().numpy())
            for name, found_by in parts.items():
                mixed = np.logaddexp.reduce(found_by) - np.log(len(found_by))
                found[name][tile.place] = mixed[: tile.rows].reshape(tile.rows, *self.schema[name].shape)
        return {name: np.where(whole.parts[name].seen, found[name] + jacobian[name], np.nan) for name in names}

    def save(self, path: PathOrStr) -> None:
        """Write a model directory (safetensors and JSON), whole or not at all."""
        write_model(
            path,
            [member.state_dict() for member in self.members],
            {
                "family": self.family.model_dump(mode="json"),
                "schema": self.schema.model_dump(mode="json"),
                "config": self.config.model_dump(mode="json"),
                "totals": [int(self.provenance.get("rows", 0))] * len(self.members),
                "provenance": dict(self.provenance),
                "calibration": None if self.calibration is None else dict(self.calibration),
                "history": [dict(row) for row in self.history],
                "recalibration": None if self.recalibration is None else self.recalibration.model_dump(mode="json"),
            },
            self.scaler,
        )

    def _draws(
        self,
        obs: Observations,
        names: tuple[str, ...],
        n: int,
        seed: int,
        method: str,
        at: Observations | None = None,
    ) -> Iterator[tuple[Tile, dict[str, FloatArray]]]:
        owners = self._owners(n)
        errors = None if at is None else conform(at, self.schema)
        if errors is not None and (len(errors) != len(obs) or (errors.ids != obs.ids).any()):
            raise RequestError("Expected `at` with the ids of the rows sampled; got others. Pass the same rows.")
        for tile in tiles(conform(obs.detached(), self.schema)):
            pieces: dict[str, list[FloatArray]] = {name: [] for name in names}
            for member, model in enumerate(self.members):
                mine = int((owners == member).sum())
                if mine == 0:
                    continue
                noise = self._noise(seed, tile.obs.ids, member)
                drawn = self._condition(model, tile.obs).sample(names, noise, mine, method)
                for name in names:
                    pieces[name].append(drawn[name].double().cpu().numpy())
            found, reference = {}, self._reference(tile, names, method)
            for name in names:
                draws = np.concatenate(pieces[name]).reshape(n, len(tile.obs), *self.schema[name].shape)
                found[name] = self.scaler.inverse(name, draws)
                sigma = None if errors is None else errors.parts[name].sigma
                if sigma is not None:
                    normal = Noise(seed, obs.ids[tile.place], dtype=torch.float64).normal(
                        f"error/{name}", n, self.schema[name].shape
                    )
                    found[name][:, : tile.rows] += normal.numpy() * np.nan_to_num(sigma[tile.place], nan=0.0)
                if self.recalibration is not None and name in reference:
                    error = None if sigma is None else np.resize(sigma[tile.place], draws.shape[1:])
                    found[name] = self.recalibration.applied(name, found[name], reference[name], error, tile.obs)
                found[name][:, tile.obs.parts[name].state == 0] = np.nan
            yield tile, found

    def _reference(self, tile: Tile, names: tuple[str, ...], method: str) -> dict[str, FloatArray]:
        mapped = () if self.recalibration is None else tuple(n for n in names if n in self.recalibration.targets)
        if not mapped:
            return {}
        ((_, found),) = replace(self, recalibration=None)._draws(tile.obs, mapped, REFERENCE, SEED, method)
        return found

    def _scored(
        self, obs: Observations, names: tuple[str, ...], given: Observations | None
    ) -> Iterator[tuple[Tile, Observations, Observations]]:
        self._needs("density")
        if given is None:
            given = obs.hide(*names)
        if len(given) != len(obs) or (given.ids != obs.ids).any():
            raise RequestError("Expected `given` with the ids of the rows scored; got others. Pass the same rows.")
        whole = tiles(conform(obs.detached(), self.schema))
        for tile, context in zip(whole, tiles(conform(given.detached(), self.schema)), strict=True):
            yield tile, tile.obs, context.obs

    def _condition(self, model: AbstractModel, obs: Observations) -> Conditional:
        context = self._tensors(model, obs)
        return model.fresh(context).condition(context)

    def _tensors(self, model: AbstractModel, obs: Observations) -> Observations:
        some = next(model.parameters())
        return self.scaler.forward(obs).to(some.device, some.dtype)

    def _noise(self, seed: int, ids: StringArray, member: int) -> Noise:
        some = next(self.members[member].parameters())
        return Noise(seed, ids, member, dtype=some.dtype, device=some.device)

    def _owners(self, n: int) -> np.ndarray:
        """The member behind each draw, shape (n,): the first draws by the first member, and so on."""
        return np.arange(n) * len(self.members) // n

    def _targets(self, obs: Observations, targets: Sequence[str], n: int = 1) -> tuple[str, ...]:
        if n < 1:
            raise RequestError(f"Expected n >= 1 draws; got {n}.")
        names = _names(targets)
        for name in names:
            self.schema[name]
        readable = seen(obs) & frozenset(self.schema.names)
        if not self.answers(readable, frozenset(names)):
            raise CapabilityError(
                f"Expected a question that this model answers; got {sorted(names)} from {sorted(readable)}. "
                "Choose other targets, hide what it does not read, or fit a family that answers it."
            )
        return names

    def _needs(self, capability: str) -> None:
        if capability not in self.capabilities:
            raise CapabilityError(
                f"Expected a model with the capability {capability!r}; got {sorted(self.capabilities)}."
                f"{nearest(capability, self.capabilities)}"
            )


def load(path: PathOrStr, device: str = "cpu") -> Fitted:
    """Read a model directory; nothing in it is executed.

    Raises:
        ModelFileError: the directory is missing, damaged, foreign or too new.
    """
    saved = read_model(path, device)
    rest = (saved.record[key] for key in ("provenance", "calibration", "history"))
    return Fitted(saved.members, saved.family, saved.scaler, saved.config, *rest, recalibration=saved.recalibration)


def _names(targets: Sequence[str]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else tuple(targets)
