"""Cells of a modality by time bin, how they read latent trajectories, and what they say of them: sites."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.networks import SiteEncoder, WaveDecoder
from consilience.blocks.noise import Noise
from consilience.blocks.products import product
from consilience.blocks.trajectories import AbstractTrajectories, Sites
from consilience.data.observations import Modality
from consilience.models.taught import LOOKS, Infer, TaughtSites, on_latents

__all__ = ["SCORED", "AbstractBins", "DeepBins", "LinearBins", "by_trial", "multiplied", "trajectory_sites"]

ENOUGH = 1e-2  # nats of a trial that are worth another step
SIDE = 1.5  # standard deviations of the prior from which the weighing of modes begins once more
SCORED = 128  # latent draws behind an estimated density


@dataclass(frozen=True, slots=True)
class AbstractBins(ABC):
    """The cells of one modality by bin, (B T, D), and how they read the latents."""

    likelihood: AbstractLikelihood
    part: Modality
    rows: int  # B

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether the sites are the likelihood itself, up to a constant."""

    @property
    @abstractmethod
    def optimal(self) -> bool:
        """Whether the sites are at the optimum of the bound."""

    @abstractmethod
    def given(self) -> Sites | None:
        """Sites that do not depend on q, if there are such."""

    @property
    @abstractmethod
    def moves(self) -> bool:
        """Whether there are sites that depend on q."""

    @abstractmethod
    def first(self) -> Sites:
        """Those, before q is known."""

    @abstractmethod
    def improved(self, q: AbstractTrajectories) -> tuple[Tensor, Sites]:
        """What the cells with sites that depend on q add to the bound (B,), and where a step of rate 1 leads them."""

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
    def exact(self) -> bool:
        return self.likelihood.conjugate(self.part)

    @property
    def optimal(self) -> bool:
        return True

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
        expected, sites = self._sites(*self.moments(q))
        return expected.view(self.rows, -1).sum(-1), sites

    @torch.no_grad()
    def given(self) -> Sites | None:
        if not self.exact:
            return None
        at = self.offset.expand(self.part.value.shape)
        return self._sites(at, torch.zeros_like(at))[1]

    @property
    def moves(self) -> bool:
        return not self.exact

    @torch.no_grad()
    def first(self) -> Sites:
        """Those of Gaussian look-alikes of the cells."""
        value, known = self.likelihood.pseudo(self.part)
        if isinstance(self.likelihood, Gaussian):  # some cells are limits
            known = known + self.likelihood.learned()
        w = torch.where(self.part.seen, 1 / known, 0.0)
        return self._on_latents(w * (value - self.offset), w)

    def _sites(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Sites]:
        """E log p(x | f) of each cell, and sites at these moments of f, each (B T, D)."""
        expected, g, h = self.likelihood.slopes(self.part, mean, variance)
        w = self.likelihood.precision(self.part, mean, h)
        return expected, self._on_latents(w * (mean - self.offset) + g, w)

    def _on_latents(self, shift: Tensor, precision: Tensor) -> Sites:
        """Sites of z from sites of f - d, both (B T, D)."""
        latents = self.weight.shape[1]
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).flatten(1)
        along, across = product(shift, self.weight.mT), product(precision, outer.mT)
        return Sites(along.view(self.rows, -1, latents), across.view(self.rows, -1, latents, latents))


@dataclass(frozen=True)
class DeepBins(AbstractBins):
    """Cells whose functions are a network of the latents, and whose sites other networks read from them."""

    decoder: WaveDecoder
    encoder: SiteEncoder | None  # of the latents that are not taught, if there are any, or if none is
    taught: TaughtSites | None  # of the first ones, which other modalities teach and the bound does not
    columns: Tensor  # latents that the modality reads
    latents: int  # L

    @property
    def exact(self) -> bool:
        return False

    @property
    def optimal(self) -> bool:
        return False

    def functions(self, z: Tensor) -> Tensor:
        return self.decoder(z[..., self.columns])

    def given(self) -> Sites | None:
        if self.encoder is None:
            return None
        known = 0 if self.taught is None else len(self.taught.columns)
        mean, precision = self.encoder(*by_trial(self.part, self.rows))
        return on_latents(self.columns[known:], mean, precision, self.latents)

    @property
    def moves(self) -> bool:
        return self.taught is not None

    @property
    def moving(self) -> TaughtSites:
        """The sites that depend on q."""
        assert self.taught is not None, "no site depends on q"
        return self.taught

    @torch.no_grad()
    def first(self) -> Sites:
        return self.moving.sites()

    @torch.no_grad()
    def improved(self, q: AbstractTrajectories) -> tuple[Tensor, Sites]:
        return self.moving.improved(q)

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


def by_trial(part: Modality, rows: int) -> tuple[Tensor, Tensor]:
    """Values of the cells (B T, D) and which were seen, each (B, T, D)."""
    shape = (rows, -1, part.value.shape[-1])
    return part.value.view(shape), part.seen.view(shape)


def trajectory_sites(cells: Sequence[AbstractBins], infer: Infer, *, steps: int, hasty: bool = False) -> list[Sites]:
    """Sites of every trial, by modality: given ones, and of the others those at the optimum of the bound.

    The bound takes given sites for their likelihood, which those of Gaussian cells are.
    Natural-gradient steps: their number is fixed, rate and acceptance are per trial, none changes another's answer.
    Gradients flow through given sites alone.

    Arguments:
        cells: The modalities.
        infer: Gives q of sites.
        steps: Number of proposals per trial; one that lowers the bound is refused and the next is shorter.
        hasty: Weigh modes once, and stop when no trial gains any more: how far one goes depends on those beside it.
    """
    parts: list[list[Sites]] = [[] if (given := one.given()) is None else [given] for one in cells]
    begun = [k for k, one in enumerate(cells) if one.moves]
    if begun:
        given = [Sites(one.shift.detach(), one.precision.detach()) for part in parts for one in part]
        moving = _weighed([cells[k] for k in begun], given, infer, hasty=hasty)
        for k, sites in zip(begun, _optimal(moving, given, infer, steps=steps, hasty=hasty), strict=True):
            parts[k].append(sites)
    return [multiplied(part) for part in parts]


@torch.no_grad()
def _weighed(
    moving: Sequence[AbstractBins], given: Sequence[Sites], infer: Infer, *, hasty: bool
) -> Sequence[AbstractBins]:
    """The cells with modes weighed by what all of them make of each bin, from the starts that explain most."""
    deep = {k: one for k, one in enumerate(moving) if isinstance(one, DeepBins) and one.moving.doubtful}
    if not deep:
        return moving
    rest = [one for k, one in enumerate(moving) if k not in deep]
    known = [*given, *(one.first() for one in rest)]

    def looked(found: list[TaughtSites], looks: int) -> tuple[list[TaughtSites], AbstractTrajectories]:
        q = infer(multiplied([*known, *(one.sites() for one in found)]))
        for _ in range(looks):
            found = [one.weighed(q) for one in found]
            q = infer(multiplied([*known, *(one.sites() for one in found)]))
        return found, q

    def agreement(found: list[TaughtSites], q: AbstractTrajectories) -> Tensor:
        return torch.stack([*(one.agreement(q) for one in found), *(one.expected(q) for one in rest)]).sum(0)

    sites = [one.moving for one in deep.values()]
    if hasty:
        q = looked(sites, 0)[1]
        best = [one.weighed(q) for one in sites]
    else:
        # a trial may take a wrong turn where it begins, and all its bins then agree on that
        each = SIDE * torch.eye(len(sites[0].columns)).to(sites[0].mean)
        begun = [sites, *([one.begun(side) for one in sites] for side in [*each, *-each])]
        ends = [looked(found, LOOKS) for found in begun]
        weight = torch.stack([agreement(*end) for end in ends]).softmax(0)
        best = [one.averaged([found[k] for found, _ in ends], weight) for k, one in enumerate(sites)]
    new = {k: replace(one, taught=taught) for (k, one), taught in zip(deep.items(), best, strict=True)}
    return [new.get(k, one) for k, one in enumerate(moving)]


@torch.no_grad()
def _optimal(
    moving: Sequence[AbstractBins], given: Sequence[Sites], infer: Infer, *, steps: int, hasty: bool
) -> list[Sites]:
    def bound(sites: Sequence[Sites]) -> tuple[Tensor, list[Sites]]:
        """The bound (B,), and the sites to which a step of rate 1 leads."""
        q = infer(multiplied([*given, *sites]))
        value = -q.divergence().sum(-1)
        for one in given:
            value = value + one.expected(q.mean, q.covariance)
        pairs = [one.improved(q) for one in moving]
        return value + torch.stack([added for added, _ in pairs]).sum(0), [aim for _, aim in pairs]

    here = [one.first() for one in moving]
    value, aims = bound(here)
    rate = torch.ones_like(value)
    slack = 3 * torch.finfo(value.dtype).eps ** 0.5
    for _ in range(steps):
        there = [one.towards(aim, rate) for one, aim in zip(here, aims, strict=True)]
        proposed, next_aims = bound(there)
        better = torch.isfinite(proposed) & (proposed > value - slack)
        done = hasty and not bool((proposed > value + ENOUGH).any())
        here = [new.where(better, old) for new, old in zip(there, here, strict=True)]
        aims = [new.where(better, old) for new, old in zip(next_aims, aims, strict=True)]
        value = torch.where(better, proposed, value)
        rate = torch.where(better, (2 * rate).clamp_max(1), rate / 4)
        if done:
            break
    return here


def multiplied(experts: Sequence[Sites]) -> Sites:
    """The product of experts, whose sites add."""
    total = experts[0]
    for one in experts[1:]:
        total = total + one
    return total
