"""Sites of shared latents that an encoder reads from cells, and how other modalities teach it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from consilience.blocks.trajectories import AbstractTrajectories, Sites

__all__ = ["LOOKS", "TAIL", "Heard", "Infer", "TaughtSites", "heard", "on_latents"]

Infer = Callable[[Sites], AbstractTrajectories]  # q of sites

LOOKS = 3  # times that the modes of a bin are weighed by what is known of it
TAIL = 4.0  # degrees of freedom of the density that scores a taught site, and of the factor that it is
CENTRAL = 1.3033  # squared half-width of the central 68.27 % of Student's t with them
APART = 0.5  # standard deviations of the prior: modes may differ where what is taught of like cells differs by more
LEAST_GAIN = 1e-3  # of the prior's precision, by which other modalities must raise it to be heard
LOG_NORMALISER = math.lgamma(TAIL / 2) - math.lgamma((TAIL + 1) / 2) + 0.5 * math.log(TAIL * math.pi / CENTRAL)


@dataclass(frozen=True)
class Heard:
    """The factor by which other modalities change the prior of the taught latents of each bin, in units of the prior.

    Two latents of which one modality sees a sum are known along one axis and not along the other, though neither is
    known by itself.

    Arguments:
        scale: Standard deviations of the prior, (T, Q).
        axes: In columns, (B, T, Q, Q).
        gain: Precisions of the factor along them, (B, T, Q).
        said: Its means along them, (B, T, Q).
        mean: Means of the others' posterior along them, (B, T, Q).
    """

    scale: Tensor
    axes: Tensor
    gain: Tensor
    said: Tensor
    mean: Tensor

    @property
    def share(self) -> Tensor:
        """Share of the prior variance that the others explain along each axis."""
        return self.gain / (1 + self.gain)

    def along(self, z: Tensor) -> Tensor:
        """Components of latents (B, T, Q)."""
        return _turned(self.axes, z / self.scale)


@torch.no_grad()
def heard(others: AbstractTrajectories, prior: Tensor, columns: Tensor) -> Heard:
    """What others, given all they saw, say of some latents.

    Arguments:
        others: Posterior given all other modalities.
        prior: Variance of every latent before anything is seen, (T, L).
        columns: Which latents, (Q,).
    """
    scale = prior[:, columns].double().sqrt()
    inverse = torch.linalg.inv(others.covariance[..., columns[:, None], columns].double())
    inverse = scale[..., None] * inverse * scale[..., None, :]
    gain, axes = torch.linalg.eigh(inverse - torch.eye(len(columns)).to(inverse))
    gain = gain.clamp_min(LEAST_GAIN)
    mean = others.mean[..., columns].double() / scale
    said = _turned(axes, (inverse @ mean[..., None])[..., 0]) / gain
    found = (scale, axes, gain, said, _turned(axes, mean))
    return Heard(*(one.to(prior) for one in found))


@dataclass(frozen=True)
class TaughtSites:
    r"""Sites of some latents of every bin that may have more than one mode.

    A picture of a digit may be one turned by 190 degrees or by -170. What the cells say of the latents of a bin is a
    mixture :math:`\sum_k w_k N(z; m_k, p_k^{-1})`, and the site is the Gaussian factor that changes what is otherwise
    known of the bin, its cavity, to a Gaussian of the mean and variance that the mixture changes it to (expectation
    propagation); nothing, where these are not narrower. The first cavity is the prior.

    A site is a Gaussian factor of precision p as long as :math:`E = E_q\,p\,(z - m)^2 \le 1`; beyond, it adds
    :math:`-\tfrac12 (1 + (\nu + 1) \log(1 + (E - 1) / (\nu + 1)))` to the bound instead of :math:`-\tfrac12 E`:
    where other modalities disagree it gives way.

    Arguments:
        mean: m, shape (B, T, modes, Q).
        precision: p, of the same shape; zero where nothing was seen.
        log_weight: log w, shape (B, T, modes).
        before: Variances of the latents before anything is seen, (T, Q).
        columns: The latents, (Q,).
        latents: L, of all.
        cavity: Means and variances of the latents of each bin given everything else, each (B, T, Q).

    References:
        Expectation propagation for approximate Bayesian inference (Minka, 2001).
    """

    mean: Tensor
    precision: Tensor
    log_weight: Tensor
    before: Tensor
    columns: Tensor
    latents: int
    cavity: tuple[Tensor, Tensor] | None = None

    @property
    def doubtful(self) -> bool:
        """Whether bins have more than one mode."""
        return self.mean.shape[-2] > 1

    @property
    def there(self) -> Tensor:
        """Bins in which something was seen, (B, T)."""
        return (self.precision > 0).flatten(2).any(-1)

    @property
    def variance(self) -> Tensor:
        """1 / p, and 1 where nothing was seen."""
        return 1 / torch.where(self.precision > 0, self.precision, 1.0)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means and precisions of the sites, each (B, T, Q); gradients do not flow through the modes' probabilities."""
        if not self.doubtful:
            return self.mean[..., 0, :], self.precision[..., 0, :]
        # in float64: a site is the small difference of two factors
        center, spread = (a.double()[..., None, :] for a in self.cavity or (torch.zeros_like(self.before), self.before))
        m, p = self.mean.double(), self.precision.double()
        probability = self._log_posterior(center, spread).exp().detach()[..., None]
        precision = 1 / spread + p
        each = (center / spread + p * m) / precision
        mean = (probability * each).sum(-2)
        variance = (probability * (1 / precision + (each - mean[..., None, :]).square())).sum(-2)
        center, spread = center[..., 0, :], spread[..., 0, :]
        gain = 1 / variance - 1 / spread
        says = self.there[..., None] & (gain > 1e-9 / spread)
        gain = torch.where(says, gain, 1.0)
        at = (mean / variance - center / spread) / gain
        return torch.where(says, at, 0.0).to(self.mean), torch.where(says, gain, 0.0).to(self.mean)

    def _log_posterior(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Log probabilities of the modes where all else says N(mean, variance) of the latents, (B, T, modes)."""
        return self._log_joint(mean, variance).log_softmax(-1)

    def _log_joint(self, mean: Tensor, variance: Tensor) -> Tensor:
        total = variance + self.variance.double()
        return self.log_weight.double() - 0.5 * ((self.mean - mean).square() / total + total.log()).sum(-1)

    def tempered(self, factor: Tensor | float, exponent: Tensor | float = 1.0) -> "TaughtSites":
        """With precisions multiplied by a factor and the weights of modes raised to a power."""
        log_weight = (exponent * self.log_weight).log_softmax(-1)
        return replace(self, precision=factor * self.precision, log_weight=log_weight)

    @torch.no_grad()
    def weighed(self, q: AbstractTrajectories) -> "TaughtSites":
        """The same in the cavity that q, the posterior given these sites and all others, leaves them."""
        mean, variance = (a[..., self.columns].double() for a in (q.mean, q.variance))
        center, precision = (a.double() for a in self.moments)
        left = (1 / variance - precision).clamp_min(1 / self.before.double())  # nothing makes it wider than the prior
        return replace(self, cavity=((mean / variance - precision * center) / left, 1 / left))

    def begun(self, side: Tensor) -> "TaughtSites":
        """The same in a cavity on one side of the prior and half as wide; where the side (Q,) is 0, in the prior."""
        spread = self.before.double() * torch.where(side == 0, 1.0, 0.25)
        center = side.double() * self.before.double().sqrt()
        shape = (len(self.mean), *center.shape)
        return replace(self, cavity=(center.expand(shape), spread.expand(shape)))

    def averaged(self, found: Sequence["TaughtSites"], weight: Tensor) -> "TaughtSites":
        """The same in cavities of the moments of those of several others, of weights (others, B) that add up to 1."""
        cavities = [one.cavity for one in found if one.cavity is not None]
        centers, spreads = (torch.stack(parts) for parts in zip(*cavities, strict=True))
        w = weight.double()[..., None, None]
        center = (w * centers).sum(0)
        return replace(self, cavity=(center, (w * (spreads + (centers - center).square())).sum(0)))

    def agreement(self, q: AbstractTrajectories) -> Tensor:
        """Log densities of the mixtures in the cavities that q leaves them, each bin predicted by all others, (B,)."""
        weighed = self.weighed(q)
        assert weighed.cavity is not None, "weighed by q"
        center, spread = (one[..., None, :] for one in weighed.cavity)
        value = self._log_joint(center, spread).logsumexp(-1)
        return torch.where(self.there, value, 0.0).sum(-1).to(self.mean)

    def sites(self) -> Sites:
        """The Gaussian factors."""
        return on_latents(self.columns, *self.moments, self.latents)

    def improved(self, q: AbstractTrajectories) -> tuple[Tensor, Sites]:
        """What they add to the bound (B,), and where a step of rate 1 leads them."""
        mean, precision = self.moments
        away = (q.mean[..., self.columns] - mean).square() + q.variance[..., self.columns]
        miss = precision * away
        beyond = (miss - 1).clamp_min(0) / (TAIL + 1)
        value = -0.5 * (miss.clamp_max(1) + (TAIL + 1) * torch.log1p(beyond))
        return value.flatten(1).sum(-1), on_latents(self.columns, mean, precision / (1 + beyond), self.latents)

    def lesson(self, others: Heard, infer: Infer) -> Tensor:
        r"""What the sites are to be improved in, (B,): means and weights, then precisions at these means.

        The means m regress on what the other modalities say of each bin,
        :math:`\sum_t r_t s_t^2 \tfrac{\nu + 1}{2} \log(1 + (m_t - \mu_t)^2 / \nu s_t^2)`, where :math:`r_t` is the
        share of the prior variance that these explain and the width :math:`s_t` has no gradient and does not scale the
        slopes of small errors. By likelihood alone the slope of a mean would be multiplied by its precision, and an
        encoder that knows nothing yet would learn nothing. Of several modes each regresses in proportion to
        :math:`\exp(-d^2 / 2 a^2)`, d its distance from what the others say, so that modes part where that differs by
        more than a; which shares, in turn, are to be the modes' probabilities given the prior. Weights have no part in
        them, or one mode would take all. The precisions of the nearest mode are scored by :meth:`surprise`.

        Arguments:
            others: What all other modalities say.
            infer: Gives q of sites.

        References:
            On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks (Seitzer et
            al., 2022).
        """
        axes, share = others.axes[..., None, :, :], others.share[..., None, :]
        away = self._away(others)
        own = self.variance.detach() / others.scale[:, None].square()
        width = (_turned(axes.square(), own) + 1 - share).clamp_max(1)
        far = 0.5 * (TAIL + 1) * torch.log1p(away / width / TAIL)
        probability = (-0.5 / APART**2 * (share * away).sum(-1)).softmax(-1).detach()
        regress = (probability * (share * width * far).sum(-1)).sum(-1)
        choose = -share.amax((-2, -1)) * (probability * self._expected()).sum(-1)
        value = torch.where(self.there, regress + choose, 0.0)
        return value.sum(-1) + self._nearest(others).surprise(others, infer)

    def doubt(self, others: Heard) -> float:
        """Minus the mean log probability, given the prior, of the modes that are nearest to what others say."""
        right = self._expected().gather(-1, self._which(others))[..., 0]
        known = torch.where(self.there, others.share.amax(-1), 0.0)
        return float(-(known * right).sum() / known.sum().clamp_min(1e-12))

    def _expected(self) -> Tensor:
        """Log probabilities of the modes given the prior, (B, T, modes), with gradients to their weights alone."""
        known = replace(self, mean=self.mean.detach(), precision=self.precision.detach())
        before = self.before[:, None]
        return known._log_posterior(torch.zeros_like(before), before).to(self.mean)

    def _away(self, others: Heard) -> Tensor:
        """Squared distances of the modes from what others know of each bin, by axis, (B, T, modes, Q)."""
        axes = others.axes[..., None, :, :]
        return (_turned(axes, self.mean / others.scale[:, None]) - others.mean[..., None, :]).square()

    def _nearest(self, others: Heard) -> "TaughtSites":
        """The mode of every bin that is nearest to what others say."""
        wide = self._which(others)[..., None].expand(-1, -1, -1, self.mean.shape[-1])
        mean, precision = self.mean.gather(2, wide), self.precision.gather(2, wide)
        return replace(self, mean=mean, precision=precision, log_weight=torch.zeros_like(mean[..., 0]))

    def _which(self, others: Heard) -> Tensor:
        return (others.share[..., None, :] * self._away(others)).sum(-1).argmin(-1)[..., None]

    def surprise(self, others: Heard, infer: Infer) -> Tensor:
        r"""How far others are from what these sites say, in nats, (B,): :math:`-\sum \log t_\nu(m; \mu, v + V)`.

        Mean m and variance v of a latent of a bin are those given these sites alone, of the whole trial: an encoder
        that is wrong in one bin is wrong alike in the next, so precisions that are right bin by bin would be too large
        together. μ and V are those of the factor by which all other modalities change its prior, along its axes. The
        density is Student's, of the width at which :math:`m - \mu` lies within :math:`\pm\sqrt{v + V}` in 68 % of bins
        as a Gaussian would: few bins that are very wrong do not widen all others. The sum is least where sites are as
        sure as the encoder is right. Gradients flow through precisions alone.
        """
        told = replace(self, mean=self.mean.detach())
        miss, total = self._missed(others, infer(told.sites()))
        value = 0.5 * (TAIL + 1) * torch.log1p(CENTRAL * miss / TAIL) + 0.5 * torch.log(total) + LOG_NORMALISER
        return value.flatten(1).sum(-1)

    def covered(self, others: Heard, alone: AbstractTrajectories) -> float:
        """The share of bins in which others are within a standard deviation of what these sites alone say.

        Along those axes of which others say more than the prior does.
        """
        known = others.gain > 1
        inside = self._missed(others, alone)[0] < 1
        return float(inside[known].double().mean()) if bool(known.any()) else 1.0

    def _missed(self, others: Heard, alone: AbstractTrajectories) -> tuple[Tensor, Tensor]:
        """Squared distance of others from these sites in units of its variance, and that variance, by axis."""
        spread = alone.variance[..., self.columns] / others.scale.square()
        total = _turned(others.axes.square(), spread) + 1 / others.gain
        return (others.along(alone.mean[..., self.columns]) - others.said).square() / total, total


def on_latents(columns: Tensor, mean: Tensor, precision: Tensor, latents: int) -> Sites:
    """Sites of some of L latents, independent of each other, of means and precisions (B, T, some)."""
    shape = (*mean.shape[:2], latents)
    shift = mean.new_zeros(shape).index_copy(2, columns, precision * mean)
    return Sites(shift, torch.diag_embed(mean.new_zeros(shape).index_copy(2, columns, precision)))


def _turned(axes: Tensor, x: Tensor) -> Tensor:
    """Components (…, Q) of x along axes in columns (…, Q, Q)."""
    return (axes * x[..., None]).sum(-2)
