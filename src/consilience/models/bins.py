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

__all__ = ["SCORED", "AbstractBins", "DeepBins", "LinearBins", "multiplied", "trajectory_sites"]

Infer = Callable[[Sites], AbstractTrajectories]  # q of sites

ENOUGH = 1e-2  # nats of a trial that are worth another step
SCORED = 128  # latent draws behind an estimated density
TAIL = 4.0  # degrees of freedom of the density that scores a taught site, and of the factor that it is
CENTRAL = 1.3033  # squared half-width of the central 68.27 % of Student's t with them
LEAST_GAIN = 1e-3  # of the prior's precision, by which other modalities must raise it to be heard
LOG_NORMALISER = math.lgamma(TAIL / 2) - math.lgamma((TAIL + 1) / 2) + 0.5 * math.log(TAIL * math.pi / CENTRAL)


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

    @abstractmethod
    def first(self) -> Sites | None:
        """Sites that depend on q, before it is known, if there are such."""

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
        mean, variance = self.moments(q)
        expected = self.likelihood.expected(self.part, mean, variance).view(self.rows, -1).sum(-1)
        return expected, self._sites(mean, variance)

    @torch.no_grad()
    def given(self) -> Sites | None:
        if not self.exact:
            return None
        at = self.offset.expand(self.part.value.shape)
        return self._sites(at, torch.zeros_like(at))

    @torch.no_grad()
    def first(self) -> Sites | None:
        """Those of Gaussian look-alikes of the cells."""
        if self.exact:
            return None
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
    r"""Cells whose functions are a network of the latents, and whose sites another network reads from them.

    Taught sites are Gaussian factors of precision p as long as :math:`E = E_q\,p\,(z - m)^2 \le 1`; beyond, they add
    :math:`-\tfrac12 (1 + (\nu + 1) \log(1 + (E - 1) / (\nu + 1)))` to the bound instead of :math:`-\tfrac12 E`.
    A picture may fit two latents and the encoder knows but one: where other modalities disagree its sites give way.
    """

    decoder: WaveDecoder
    encoder: SiteEncoder | None  # of the latents that are not taught, if there are any, or if none is
    pupil: SiteEncoder | None  # of those that are
    columns: Tensor  # latents that the modality reads
    latents: int  # L
    taught: int = 0  # how many of them, the first ones, have sites that :meth:`lesson` trains and the bound does not
    temper: Tensor | float = 1.0  # what their precisions are multiplied by

    @property
    def exact(self) -> bool:
        return False

    @property
    def optimal(self) -> bool:
        return False

    def functions(self, z: Tensor) -> Tensor:
        return self.decoder(z[..., self.columns])

    @cached_property
    def learned(self) -> tuple[Tensor, Tensor]:
        """Mean and precision of the site of every taught latent, each (B, T, taught)."""
        assert self.pupil is not None, "no latent is taught"
        mean, precision = self._read(self.pupil)
        return mean, self.temper * precision

    def given(self) -> Sites | None:
        return None if self.encoder is None else self._sites(self.columns[self.taught :], *self._read(self.encoder))

    def first(self) -> Sites | None:
        if self.pupil is None:
            return None
        mean, precision = self.learned  # with its gradient, for the lesson
        return self._sites(self.columns[: self.taught], mean.detach(), precision.detach())

    @torch.no_grad()
    def improved(self, q: AbstractTrajectories) -> tuple[Tensor, Sites]:
        some, (mean, precision) = self.columns[: self.taught], self.learned
        miss = precision * ((q.mean[..., some] - mean).square() + q.variance[..., some])
        beyond = (miss - 1).clamp_min(0) / (TAIL + 1)
        value = -0.5 * (miss.clamp_max(1) + (TAIL + 1) * torch.log1p(beyond))
        return value.flatten(1).sum(-1), self._sites(some, mean, precision / (1 + beyond))

    def lesson(self, others: AbstractTrajectories, prior: Tensor, infer: Infer) -> Tensor:
        r"""What the taught sites are to be improved in, (B,): their means, then their precisions at these means.

        The means m regress on what the other modalities say of each bin,
        :math:`\sum_t r_t s_t^2 \tfrac{\nu + 1}{2} \log(1 + (m_t - \mu_t)^2 / \nu s_t^2)`, where :math:`r_t` is the
        share of the prior variance that these explain and the width :math:`s_t` has no gradient and does not scale the
        slopes of small errors. By likelihood alone the slope of a mean would be multiplied by its precision, and an
        encoder that knows nothing yet would learn nothing. The precisions are then scored by :meth:`surprise`.

        Arguments:
            others: Posterior given all other modalities.
            prior: Variance of every latent before anything is seen, (T, L).
            infer: Gives q of sites.

        References:
            On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks (Seitzer et
            al., 2022).
        """
        some, (mean, precision) = self.columns[: self.taught], self.learned
        axes, gain, _ = self._heard(others, prior)
        there, scale = precision > 0, prior[:, some].sqrt()
        own = 1 / (torch.where(there, precision.detach(), 1.0) * scale.square())
        width = (_along(axes.square(), own) + 1 / (1 + gain)).clamp_max(1)
        miss = _along(axes, (mean - others.mean[..., some]) / scale).square() / width
        value = 0.5 * (TAIL + 1) * gain / (1 + gain) * width * torch.log1p(miss / TAIL)
        return torch.where(there, value, 0.0).flatten(1).sum(-1) + self.surprise(others, prior, infer)

    def surprise(self, others: AbstractTrajectories, prior: Tensor, infer: Infer) -> Tensor:
        r"""How far others are from what the taught sites say, in nats, (B,): :math:`-\sum \log t_\nu(m; \mu, v + V)`.

        Mean m and variance v of a latent of a bin are those given these sites alone, of the whole trial: an encoder
        that is wrong in one bin is wrong alike in the next, so precisions that are right bin by bin would be too large
        together. μ and V are those of the factor by which all other modalities change its prior, along its axes. The
        density is Student's, of the width at which :math:`m - \mu` lies within :math:`\pm\sqrt{v + V}` in 68 % of bins
        as a Gaussian would: few bins that are very wrong do not widen all others. The sum is least where sites are as
        sure as the encoder is right. Gradients flow through precisions alone.
        """
        miss, total = self._missed(others, prior, infer)
        value = 0.5 * (TAIL + 1) * torch.log1p(CENTRAL * miss / TAIL) + 0.5 * torch.log(total) + LOG_NORMALISER
        return value.flatten(1).sum(-1)

    def covered(self, others: AbstractTrajectories, prior: Tensor, infer: Infer) -> float:
        """The share of bins in which others are within a standard deviation of what the taught sites say.

        Along those axes of which others say more than the prior does.
        """
        heard = self._heard(others, prior)[1] > 1
        inside = self._missed(others, prior, infer)[0] < 1
        return float(inside[heard].double().mean()) if bool(heard.any()) else 1.0

    def _missed(self, others: AbstractTrajectories, prior: Tensor, infer: Infer) -> tuple[Tensor, Tensor]:
        """Squared distance of others from these sites in units of its variance, and that variance, by axis."""
        some, (mean, precision) = self.columns[: self.taught], self.learned
        axes, gain, said = self._heard(others, prior)
        alone, scale = infer(self._sites(some, mean.detach(), precision)), prior[:, some].sqrt()
        total = _along(axes.square(), alone.variance[..., some] / scale.square()) + 1 / gain
        return (_along(axes, alone.mean[..., some] / scale) - said).square() / total, total

    @torch.no_grad()
    def _heard(self, others: AbstractTrajectories, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The factor by which others change the prior of the taught latents of each bin, in units of the prior.

        Its axes in columns (B, T, taught, taught), its precisions along them and its means. Two latents of which one
        modality sees a sum are known along one axis and not along the other, though neither is known by itself.
        """
        some = self.columns[: self.taught]
        scale = prior[:, some].double().sqrt()
        inverse = torch.linalg.inv(others.covariance[..., some[:, None], some].double())
        inverse = scale[..., None] * inverse * scale[..., None, :]
        gain, axes = torch.linalg.eigh(inverse - torch.eye(self.taught).to(inverse))
        gain = gain.clamp_min(LEAST_GAIN)
        said = _along(axes, (inverse @ (others.mean[..., some].double() / scale)[..., None])[..., 0]) / gain
        return axes.to(prior), gain.to(prior), said.to(prior)

    def _read(self, encoder: SiteEncoder) -> tuple[Tensor, Tensor]:
        bins = (self.rows, -1, self.part.value.shape[-1])
        return encoder(self.part.value.view(bins), self.part.seen.view(bins))

    def _sites(self, columns: Tensor, mean: Tensor, precision: Tensor) -> Sites:
        """Sites of some latents, independent of each other, each (B, T, some)."""
        shape = (*mean.shape[:2], self.latents)
        shift = mean.new_zeros(shape).index_copy(2, columns, precision * mean)
        return Sites(shift, torch.diag_embed(mean.new_zeros(shape).index_copy(2, columns, precision)))

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


def _along(axes: Tensor, x: Tensor) -> Tensor:
    """Components (…, taught) of x along axes in columns (…, taught, taught)."""
    return (axes * x[..., None]).sum(-2)


def trajectory_sites(cells: Sequence[AbstractBins], infer: Infer, *, steps: int, hasty: bool = False) -> list[Sites]:
    """Sites of every trial, by modality: given ones, and of the others those at the optimum of the bound.

    The bound takes given sites for their likelihood, which those of Gaussian cells are.
    Natural-gradient steps: their number is fixed, rate and acceptance are per trial, none changes another's answer.
    Gradients flow through given sites alone.

    Arguments:
        cells: The modalities.
        infer: Gives q of sites.
        steps: Number of proposals per trial; one that lowers the bound is refused and the next is shorter.
        hasty: Stop when no trial gains any more, so that how far one goes depends on those beside it.
    """
    parts: list[list[Sites]] = [[] if (given := one.given()) is None else [given] for one in cells]
    begun = [one.first() for one in cells]
    moving = [k for k, first in enumerate(begun) if first is not None]
    if moving:
        given = [Sites(one.shift.detach(), one.precision.detach()) for part in parts for one in part]
        first = [one for one in begun if one is not None]
        found = _optimal([cells[k] for k in moving], first, given, infer, steps=steps, hasty=hasty)
        for k, sites in zip(moving, found, strict=True):
            parts[k].append(sites)
    return [multiplied(part) for part in parts]


@torch.no_grad()
def _optimal(
    moving: Sequence[AbstractBins],
    here: list[Sites],
    given: Sequence[Sites],
    infer: Infer,
    *,
    steps: int,
    hasty: bool,
) -> list[Sites]:
    def bound(sites: Sequence[Sites]) -> tuple[Tensor, list[Sites]]:
        """The bound (B,), and the sites to which a step of rate 1 leads."""
        q = infer(multiplied([*given, *sites]))
        value = -q.divergence().sum(-1)
        for one in given:
            value = value + one.expected(q.mean, q.covariance)
        pairs = [one.improved(q) for one in moving]
        return value + torch.stack([added for added, _ in pairs]).sum(0), [aim for _, aim in pairs]

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
