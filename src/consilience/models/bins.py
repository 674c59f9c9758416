"""Cells of a modality by time bin, how they read latent trajectories, and what they say of them: sites."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.networks import SiteEncoder, WaveDecoder
from consilience.blocks.noise import Noise
from consilience.blocks.products import product
from consilience.blocks.trajectories import AbstractTrajectories, Sites
from consilience.data.observations import Modality

__all__ = ["SCORED", "AbstractBins", "DeepBins", "LinearBins", "trajectory_sites"]

SCORED = 128  # latent draws behind an estimated density


@dataclass(frozen=True, slots=True)
class AbstractBins(ABC):
    """The cells of one modality by bin, (B T, D), and how they read the latents."""

    likelihood: AbstractLikelihood
    part: Modality
    rows: int  # B

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether the sites do not depend on q."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the sites are the likelihood itself, up to a constant."""

    @abstractmethod
    def first_sites(self) -> Sites:
        """Sites before q is known; the only ones of settled cells."""

    @abstractmethod
    def functions(self, z: Tensor) -> Tensor:
        """f at latents z (S, B, T, L), shape (S, B, T, D)."""

    @abstractmethod
    def expected(self, q: AbstractTrajectories) -> Tensor:
        """E_q log p(x | z) of each object's seen cells, shape (B,)."""

    @abstractmethod
    def marginals(self, q: AbstractTrajectories, noise: Noise) -> Tensor:
        """Log predictive density of each cell, (B T, D)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x | z) of each object's seen cells at latents (B, T, L), shape (B,)."""
        return self.at(self.functions(z[None])[0].flatten(0, 1)).view(self.rows, -1).sum(-1)

    def at(self, f: Tensor) -> Tensor:
        """log p(x | f) of each cell, (B T, D)."""
        return self.likelihood.expected(self.part, f, torch.zeros_like(f))


@dataclass(frozen=True, slots=True)
class LinearBins(AbstractBins):
    """Cells whose functions are linear in the latents, f = C z + d."""

    weight: Tensor  # C with zero columns for latents of other modalities, (D, L)
    offset: Tensor  # d, (D,)

    @property
    def settled(self) -> bool:
        return self.likelihood.conjugate(self.part)

    @property
    def exact(self) -> bool:
        return self.settled

    def functions(self, z: Tensor) -> Tensor:
        return product(z, self.weight) + self.offset

    def expected(self, q: AbstractTrajectories) -> Tensor:
        return self.likelihood.expected(self.part, *self.moments(q)).view(self.rows, -1).sum(-1)

    def marginals(self, q: AbstractTrajectories, noise: Noise) -> Tensor:
        return self.likelihood.log_predictive(self.part, *self.moments(q))

    def moments(self, q: AbstractTrajectories) -> tuple[Tensor, Tensor]:
        """Mean and variance of f, each (B T, D)."""
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).flatten(1)
        mean = product(q.mean.flatten(0, 1), self.weight) + self.offset
        return mean, product(q.covariance.flatten(0, 1).flatten(1), outer).clamp_min(1e-10)

    def improved(self, q: AbstractTrajectories) -> tuple[Tensor, Sites]:
        """E_q log p(x | z), (B,), and the sites to which a natural-gradient step of rate 1 leads from q."""
        mean, variance = self.moments(q)
        expected = self.likelihood.expected(self.part, mean, variance).view(self.rows, -1).sum(-1)
        return expected, self._sites(mean, variance)

    @torch.no_grad()
    def first_sites(self) -> Sites:
        """Those of Gaussian look-alikes of the cells; the exact ones of conjugate cells."""
        if self.settled:
            at = self.offset.expand(self.part.value.shape)
            return self._sites(at, torch.zeros_like(at))
        value, known = self.likelihood.pseudo(self.part)
        if isinstance(self.likelihood, Gaussian):  # some cells are limits
            known = known + self.likelihood.learned()
        w = torch.where(self.part.seen, 1 / known, 0.0)
        return self._on_latents(w * (value - self.offset), w)

    def _sites(self, mean: Tensor, variance: Tensor) -> Sites:
        _, g, h = self.likelihood.slopes(self.part, mean, variance)
        w = self.likelihood.precision(self.part, mean, h)
        return self._on_latents(w * (mean - self.offset) + g, w)

    def _on_latents(self, shift: Tensor, precision: Tensor) -> Sites:
        """Sites of z from sites of f - d, both (B T, D)."""
        latents = self.weight.shape[1]
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).flatten(1)
        along, across = product(shift, self.weight.mT), product(precision, outer.mT)
        return Sites(along.view(self.rows, -1, latents), across.view(self.rows, -1, latents, latents))


@dataclass(frozen=True)
class DeepBins(AbstractBins):
    """Cells whose functions are a network of the latents, and whose sites another network reads from them."""

    decoder: WaveDecoder
    encoder: SiteEncoder
    columns: Tensor  # latents that the modality reads
    latents: int  # L
    taught: int = 0  # how many of them, the first ones, have sites that :meth:`lesson` trains and the bound does not

    @property
    def settled(self) -> bool:
        return True

    @property
    def exact(self) -> bool:
        return False

    def functions(self, z: Tensor) -> Tensor:
        return self.decoder(z[..., self.columns])

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Mean and precision of the site of every latent that is read, each (B, T, own latents)."""
        bins = (self.rows, -1, self.part.value.shape[-1])
        return self.encoder(self.part.value.view(bins), self.part.seen.view(bins))

    def first_sites(self) -> Sites:
        first = torch.arange(len(self.columns), device=self.columns.device) < self.taught
        mean, precision = (torch.where(first, one.detach(), one) for one in self.own)
        shape = (*mean.shape[:2], self.latents)
        shift = mean.new_zeros(shape).index_copy(2, self.columns, precision * mean)
        return Sites(shift, torch.diag_embed(mean.new_zeros(shape).index_copy(2, self.columns, precision)))

    def lesson(self, others: AbstractTrajectories) -> Tensor:
        r"""What is wrong with the taught sites in nats, (B,): :math:`-\sum \log \int N(m; z, 1/p)\, q(z)\, \mathrm dz`.

        q is what all other modalities say. It is least where the mean m of a site is as far from theirs as its
        precision p and their spread say, so that a site is never surer than its encoder is right.
        """
        some = self.columns[: self.taught]
        mean, precision = (one[..., : self.taught] for one in self.own)
        spread = others.covariance.diagonal(dim1=-2, dim2=-1)[..., some]
        there = precision > 0
        total = spread + 1 / torch.where(there, precision, 1.0)
        miss = (mean - others.mean[..., some]).square()
        value = 0.5 * (miss / total + torch.log(2 * math.pi * total))
        return torch.where(there, value, 0.0).flatten(1).sum(-1)

    def expected(self, q: AbstractTrajectories) -> Tensor:
        """By one draw of the latents of every bin, from torch's generator."""
        normal = torch.randn(*q.mean.shape[:2], len(self.columns)).to(q.mean)
        return self.at(self._decoded(q, normal)).view(self.rows, -1).sum(-1)

    def marginals(self, q: AbstractTrajectories, noise: Noise) -> Tensor:
        """By averaging over draws of the latents of every bin."""
        normal = noise.normal("cells", SCORED, (q.mean.shape[1], len(self.columns)))
        total = torch.full_like(self.part.value, -math.inf)
        for draw in normal:
            total = torch.logaddexp(total, self.at(self._decoded(q, draw)))
        return torch.where(self.part.seen, total - math.log(SCORED), 0.0)

    def _decoded(self, q: AbstractTrajectories, normal: Tensor) -> Tensor:
        """f at one draw of the latents of every bin, (B T, D), from standard normals (B, T, own latents)."""
        own = self.columns
        covariance = q.covariance[..., own[:, None], own]
        # a variance lost to rounding is none
        jitter = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True) + 1e-12
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(jitter.expand(*jitter.shape[:2], len(own))))
        return self.decoder((q.mean[..., own] + (factor @ normal[..., None])[..., 0]).flatten(0, 1))


def trajectory_sites(
    cells: Sequence[AbstractBins], infer: Callable[[Sites], AbstractTrajectories], *, steps: int
) -> Sites:
    """Sites of every trial: given ones of settled cells, and of the others those at the optimum of the bound.

    The bound takes the sites of settled cells for their likelihood, which those of Gaussian cells are.
    Natural-gradient steps: their number is fixed, rate and acceptance are per trial, none changes another's answer.
    Gradients flow through the given sites alone.

    Arguments:
        cells: The modalities.
        infer: Gives q of sites.
        steps: Number of proposals per trial; one that lowers the bound is refused and the next is shorter.
    """
    given = [one.first_sites() for one in cells if one.settled]
    moving = [one for one in cells if isinstance(one, LinearBins) and not one.settled]
    if not moving:
        return _product(given)
    found = _optimal(moving, [Sites(one.shift.detach(), one.precision.detach()) for one in given], infer, steps)
    return _product([*given, found])


@torch.no_grad()
def _optimal(
    moving: Sequence[LinearBins], given: Sequence[Sites], infer: Callable[[Sites], AbstractTrajectories], steps: int
) -> Sites:
    here = _product([one.first_sites() for one in moving])

    def bound(sites: Sites) -> tuple[Tensor, Sites]:
        """The bound (B,), and the sites to which a step of rate 1 leads."""
        q = infer(_product([*given, sites]))
        value, aims = -q.divergence().sum(-1), []
        for one in given:
            value = value + one.expected(q.mean, q.covariance)
        for one in moving:
            expected, aim = one.improved(q)
            value = value + expected
            aims.append(aim)
        return value, _product(aims)

    value, aim = bound(here)
    rate = torch.ones_like(value)
    slack = 3 * torch.finfo(value.dtype).eps ** 0.5
    for _ in range(steps):
        there = here.towards(aim, rate)
        proposed, next_aim = bound(there)
        better = torch.isfinite(proposed) & (proposed > value - slack)
        here, aim = there.where(better, here), next_aim.where(better, aim)
        value = torch.where(better, proposed, value)
        rate = torch.where(better, (2 * rate).clamp_max(1), rate / 4)
    return here


def _product(experts: Sequence[Sites]) -> Sites:
    total = experts[0]
    for one in experts[1:]:
        total = total + one
    return total
