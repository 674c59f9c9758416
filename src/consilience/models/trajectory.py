"""The conditional of every family of latent trajectories, through q(z)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.noise import Noise
from consilience.blocks.trajectories import AbstractTrajectories, update_trajectories
from consilience.data.observations import Modality, Observations
from consilience.models.base import Density, known_method
from consilience.models.bins import SCORED, AbstractBins, multiplied, trajectory_sites

__all__ = ["BlockTrajectory", "TrajectoryConditional"]


@dataclass(frozen=True)
class TrajectoryConditional:
    """The conditional of everything given the seen cells, through q(z).

    Arguments:
        q: Posterior of the latents.
        exact: Whether it is the posterior itself.
        cells: Gives the cells of a modality by bin.
        columns: Latents of each block.
        steps: Natural-gradient steps behind a density.
    """

    q: AbstractTrajectories
    exact: bool
    cells: Callable[[str, Modality], AbstractBins]
    columns: Mapping[str, Tensor]
    steps: int
    context: Observations

    def latent(self, method: str = "default") -> dict[str, "BlockTrajectory"]:
        """Marginal posterior of each block, (B, T, L)."""
        known_method(method)
        mean, std = self.q.mean, self.q.variance.sqrt()
        return {
            block: BlockTrajectory(mean[:, :, some], std[:, :, some], self.q, some)
            for block, some in self.columns.items()
        }

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws without measurement error, (n, B, *event) per target.

        By "default" of the cells; by "expected" of their expected values given the latents, such as firing rates.
        """
        known_method(method, "expected")
        z = self.q.latents(self.q.coordinates.draw(noise.normal("latent", n, self.q.coordinates.mean.shape[1:])))
        found = {}
        for name in targets:
            part = self.context.parts[name]
            one = self.cells(name, part)
            f = one.functions(z)
            if method == "expected":
                value = one.likelihood.expectation(f)
            else:
                value = one.likelihood.draw(f, torch.zeros_like(f), noise, name)
            found[name] = value.view(n, *part.value.shape)
        return found

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        r"""Joint density of the seen target cells, :math:`\log \int p(x \mid z)\, q(z)\, \mathrm dz`.

        In closed form where all of them are conjugate, else by importance sampling from what they make of q; where an
        encoder says what that is, half of the draws are from q (the balance heuristic of Veach & Guibas, 1995).
        """
        known_method(method)
        scored = [self.cells(name, values.parts[name]) for name in targets]
        sites = trajectory_sites(scored, lambda sites: update_trajectories(self.q, sites), steps=self.steps)
        updated = update_trajectories(self.q, multiplied(sites))
        if all(one.exact for one in scored):
            value = self._at(scored, updated.origin) + updated.log_normaliser()
            return Density(value, "exact") if self.exact else Density(value, "estimate", torch.zeros_like(value))
        normal = noise.normal("density", SCORED, updated.coordinates.mean.shape[1:])
        drawn = updated.coordinates.draw(normal)
        if all(one.optimal for one in scored):
            log_weight = -updated.log_ratio(drawn)
        else:  # an encoder may be too sure of what a few cells say: half of the draws are from q as it was
            drawn = torch.cat([normal[: SCORED // 2], drawn[SCORED // 2 :]])
            ratio = updated.log_ratio(drawn)
            log_weight = math.log(2) - torch.logaddexp(torch.zeros_like(ratio), ratio)
            log_weight = log_weight - torch.logsumexp(log_weight, 0) + math.log(SCORED)  # they are at most 2
        total = log_weight + torch.stack([self._at(scored, z) for z in updated.latents(drawn)])
        value = torch.logsumexp(total, 0) - math.log(SCORED)
        return Density(value, "estimate", torch.exp(total - value).std(0) / math.sqrt(SCORED))

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Marginal log density of each seen target cell, (B, *event)."""
        known_method(method)
        found = {}
        for name in targets:
            one = self.cells(name, values.parts[name])
            found[name] = one.marginals(self.q, noise).view(values.parts[name].value.shape)
        return found

    def _at(self, scored: Sequence[AbstractBins], z: Tensor) -> Tensor:
        """log p(x | z) of every object at latents z (B, T, L), shape (B,)."""
        return torch.stack([one.log_prob(z) for one in scored]).sum(0)


@dataclass(frozen=True, slots=True)
class BlockTrajectory:
    """Posterior of one block of latents over time.

    Arguments:
        mean: Shape (B, T, L).
        std: Marginal standard deviations, (B, T, L).
        q: Posterior of all blocks.
        columns: Latents of this one.
    """

    mean: Tensor
    std: Tensor
    q: AbstractTrajectories
    columns: Tensor

    def draw(self, normal: Tensor) -> Tensor:
        """Draws (S, B, T, L) from standard normals of that shape, of which the first K are used if K is less."""
        half = self.q.half()[:, :, self.columns]  # A, (B, T, L, K): the covariance of two latents is a product of rows
        wide = half.flatten(1, 2).mT  # (B, K, T L); its R has the same product with its transpose
        r = torch.linalg.qr(wide, mode="r")[1]
        white = normal.flatten(2)[..., : r.shape[1]].permute(1, 0, 2)
        return self.mean + (white @ r).permute(1, 0, 2).reshape(normal.shape)
