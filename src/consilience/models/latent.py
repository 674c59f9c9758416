"""The conditional of every family with one latent vector per object: draw z, decode, score."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.noise import Noise
from consilience.blocks.posteriors import DiagonalLatent
from consilience.data.observations import Modality, Observations
from consilience.models.base import Density, LatentPosterior, known_method

__all__ = ["Blocks", "Decodes", "LatentConditional", "flat"]

ROWS = 2048  # flattened (draw, object) rows decoded at once: bounds the memory of the packed features
SCORED = 128  # latent draws behind a density


def flat(part: Modality) -> Modality:
    """The same cells with the event axes flattened to one: (B, D)."""
    shape = part.value.shape
    return part if part.value.ndim == 2 else part.map(lambda a: a.reshape(len(a), -1) if a.shape == shape else a)


class Decodes(Protocol):
    """What one modality makes of the latents: p(x | f) and the moments of f."""

    @property
    def columns(self) -> Tensor:
        """Latents that it reads, (Q_m,)."""
        ...

    @property
    def likelihood(self) -> AbstractLikelihood: ...

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f at rows of its latents (R, Q_m), each (R, D · functions)."""
        ...


class Blocks(LatentPosterior, Protocol):
    """A posterior of all blocks side by side, (B, Q)."""

    def block(self, columns: Tensor) -> LatentPosterior:
        """The marginal of some latents."""
        ...


@dataclass(frozen=True)
class LatentConditional:
    r""":math:`p(x_\mathrm{target} \mid x_\mathrm{seen}) = \int p(x_\mathrm{target} \mid z)\, q(z)\, \mathrm dz`.

    Arguments:
        views: Decoder of every modality.
        encoded: q(z) of each object as an encoder gives it, all blocks side by side; None without an encoder.
        infer: Gives the refined q(z); asked at most once.
        columns: Latent columns of each block.
    """

    views: Mapping[str, Decodes]
    encoded: Blocks | None
    infer: Callable[[], Blocks]
    columns: Mapping[str, Tensor]

    @cached_property
    def posterior(self) -> Blocks:
        """Refined q(z) of each object, all blocks side by side."""
        return self.infer()

    def by(self, method: str) -> Blocks:
        """q(z) by "default", the refined one, or "encoder", that of one pass."""
        known_method(method, *([] if self.encoded is None else ["encoder"]))
        return self.encoded if method == "encoder" and self.encoded is not None else self.posterior

    def latent(self, method: str = "default") -> dict[str, LatentPosterior]:
        """Marginal posterior of each block."""
        posterior = self.by(method)
        return {block: posterior.block(columns) for block, columns in self.columns.items()}

    def at(self, latents: Mapping[str, Tensor]) -> "LatentConditional":
        """p(x | z), with these blocks (B, Q_b) instead of their posteriors, and the others at their means."""
        z = self.posterior.mean.clone()
        for block, value in latents.items():
            z[:, self.columns[block]] = value
        point = DiagonalLatent(z, torch.zeros_like(z))
        return replace(self, encoded=None, infer=lambda: point)

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws without measurement error, (n, B, D) per target."""
        posterior = self.by(method)
        z = posterior.draw(noise.normal("latent", n, posterior.mean.shape[1:]))
        found = {}
        for name in targets:
            mean, variance = self._moments(name, z)
            found[name] = self.views[name].likelihood.draw(mean, variance, noise, name)
        return found

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the seen target cells by averaging over latent draws, with its standard error."""
        posterior = self.by(method)
        z = posterior.draw(noise.normal("density", SCORED, posterior.mean.shape[1:]))
        total = torch.zeros(z.shape[:2], dtype=z.dtype, device=z.device)
        for name in targets:
            total += self._score(name, flat(values.parts[name]), z).sum(-1)
        value = torch.logsumexp(total, 0) - math.log(SCORED)
        relative = torch.exp(total - value)
        error = relative.std(0) / math.sqrt(SCORED)
        return Density(value, "estimate", error)

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Marginal log density of each seen target cell, (B, D)."""
        posterior = self.by(method)
        z = posterior.draw(noise.normal("density", SCORED, posterior.mean.shape[1:]))
        return {
            name: torch.logsumexp(self._score(name, flat(values.parts[name]), z), 0) - math.log(SCORED)
            for name in targets
        }

    def _moments(self, name: str, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f at draws z (S, B, Q), each (S, B, D · functions)."""
        view = self.views[name]
        rows = z[..., view.columns].flatten(0, 1)
        pieces = [view.moments(some) for some in rows.split(ROWS)]
        mean, variance = (torch.cat(part).unflatten(0, z.shape[:2]) for part in zip(*pieces, strict=True))
        return mean, variance

    def _score(self, name: str, part: Modality, z: Tensor) -> Tensor:
        """log p(x_d | z) of each cell at each draw, (S, B, D)."""
        mean, variance = self._moments(name, z)
        likelihood = self.views[name].likelihood
        return torch.stack([likelihood.log_predictive(part, m, v) for m, v in zip(mean, variance, strict=True)])
