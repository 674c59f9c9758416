r"""Posteriors of latent positions: Gaussians of full, diagonal or no covariance, mixtures; per object or amortised."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from consilience.blocks.factors import FactorPosterior
from consilience.blocks.products import product

__all__ = [
    "AmortisedPosterior",
    "DiagonalLatent",
    "GaussianLatent",
    "LocalPosterior",
    "MixtureLatent",
    "PopulationPrior",
    "from_precision",
]


HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class GaussianLatent:
    r"""q(z) = N(μ, L Lᵀ) of each object; a point has no factor.

    Arguments:
        mean: μ, shape (B, Q).
        factor: Lower Cholesky factor L, shape (B, Q, Q), or None for a point.
    """

    mean: Tensor
    factor: Tensor | None

    def draw(self, normal: Tensor) -> Tensor:
        """z = μ + L ε for ε of shape (S, B, Q)."""
        if self.factor is None:
            return self.mean.expand(normal.shape)
        return self.mean + (self.factor @ normal[..., None])[..., 0]

    @property
    def std(self) -> Tensor:
        """Marginal standard deviations, shape (B, Q)."""
        return torch.zeros_like(self.mean) if self.factor is None else self.factor.square().sum(-1).sqrt()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at one z (B, Q) of each object, (B,)."""
        assert self.factor is not None, "a point has no density"
        away = torch.linalg.solve_triangular(self.factor, (z - self.mean)[..., None], upper=False)[..., 0]
        log_diagonal = self.factor.diagonal(dim1=-2, dim2=-1).log()
        return -(0.5 * away.square() + log_diagonal + HALF_LOG_2PI).sum(-1)

    def block(self, columns: Tensor) -> "GaussianLatent":
        """The marginal of some latents."""
        if self.factor is None:
            return GaussianLatent(self.mean[:, columns], None)
        rows = self.factor[:, columns]
        return GaussianLatent(self.mean[:, columns], torch.linalg.cholesky_ex(rows @ rows.mT)[0])

    def __getitem__(self, number: int) -> "GaussianLatent":
        """Of several, (K, B, Q), one."""
        return GaussianLatent(self.mean[number], None if self.factor is None else self.factor[number])

    def divergence(self) -> Tensor:
        r"""KL(q ‖ N(0, I)) by latent dimension, shape (B, Q).

        Row q is the divergence of z_q given z_1 … z_{q-1}, so sums over leading blocks are those blocks' own KL.
        A point gives ½ μ², the negative log prior up to a constant.
        """
        square = self.mean.square()
        if self.factor is None:
            return 0.5 * square
        log_diagonal = self.factor.diagonal(dim1=-2, dim2=-1).log()
        return 0.5 * (self.factor.square().sum(-1) + square - 1) - log_diagonal


@dataclass(frozen=True, slots=True)
class DiagonalLatent:
    """q(z) = N(μ, diag σ²) of each object.

    Arguments:
        mean: μ, shape (B, Q).
        std: σ, shape (B, Q).
    """

    mean: Tensor
    std: Tensor

    def draw(self, normal: Tensor) -> Tensor:
        """z = μ + σ ε for ε of shape (S, B, Q)."""
        return self.mean + self.std * normal

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at one z (B, Q) of each object, (B,)."""
        return -(0.5 * ((z - self.mean) / self.std).square() + self.std.log() + HALF_LOG_2PI).sum(-1)

    def block(self, columns: Tensor) -> "DiagonalLatent":
        """The marginal of some latents."""
        return DiagonalLatent(self.mean[:, columns], self.std[:, columns])

    def __getitem__(self, number: int) -> "DiagonalLatent":
        """Of several, (K, B, Q), one."""
        return DiagonalLatent(self.mean[number], self.std[number])

    def divergence(self) -> Tensor:
        """KL(q ‖ N(0, I)) by latent dimension, shape (B, Q)."""
        return 0.5 * (self.std.square() + self.mean.square() - 1) - self.std.log()


@dataclass(frozen=True, slots=True)
class MixtureLatent:
    r""":math:`q(z) = \sum_k w_k N(\mu_k, \mathrm{diag}\,\sigma_k^2)` of each object.

    Arguments:
        weight: w, shape (K, B), adding up to 1.
        means: μ, shape (K, B, Q).
        stds: σ, shape (K, B, Q).
    """

    weight: Tensor
    means: Tensor
    stds: Tensor

    @property
    def mean(self) -> Tensor:
        """(B, Q)."""
        return (self.weight[..., None] * self.means).sum(0)

    @property
    def std(self) -> Tensor:
        """(B, Q)."""
        square = (self.weight[..., None] * (self.stds.square() + (self.means - self.mean).square())).sum(0)
        return square.sqrt()

    def draw(self, normal: Tensor) -> Tensor:
        """Draws from ε of shape (S, B, Q): the first tells the component, what is left of it is a normal again."""
        edges = torch.nn.functional.pad(self.weight.cumsum(0), (0, 0, 1, 0)).double()  # (K + 1, B)
        u = torch.special.ndtr(normal[..., 0].double())
        which = (u[None] >= edges[1:-1, None]).sum(0)  # (S, B)
        low, high = (edges[k].gather(0, which) for k in (slice(0, -1), slice(1, None)))
        left = torch.special.ndtri(((u - low) / (high - low)).clamp(1e-12, 1 - 1e-12)).to(normal)
        own = torch.cat([left[..., None], normal[..., 1:]], -1)
        rows = torch.arange(normal.shape[1], device=normal.device).expand_as(which)
        return self.means[which, rows] + self.stds[which, rows] * own

    def block(self, columns: Tensor) -> "MixtureLatent":
        """The marginal of some latents."""
        return MixtureLatent(self.weight, self.means[..., columns], self.stds[..., columns])


class PopulationPrior(nn.Module):
    r"""The prior N(a, C Cᵀ) of a latent position, C lower triangular; N(0, I) at first, learned from the population.

    An expectation-maximisation step moves :math:`a` towards the average of the posterior means and :math:`CC^\top`
    towards :math:`\frac1N \sum_n [\Sigma_n + (\mu_n - a)(\mu_n - a)^\top]`.

    Arguments:
        size: Q.
    """

    mean: Tensor  # a, shape (Q,)
    factor: Tensor  # C, shape (Q, Q)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))

    def precision(self) -> Tensor:
        """(C Cᵀ)⁻¹, shape (Q, Q)."""
        return torch.cholesky_inverse(self.factor.double()).to(self.factor.dtype)

    def divergence(self, q: GaussianLatent) -> Tensor:
        """KL(q ‖ prior) by latent dimension, as :meth:`GaussianLatent.divergence`, shape (B, Q)."""
        mean = torch.linalg.solve_triangular(self.factor, (q.mean - self.mean)[..., None], upper=False)[..., 0]
        factor = None if q.factor is None else torch.linalg.solve_triangular(self.factor, q.factor, upper=False)
        return GaussianLatent(mean, factor).divergence()

    @torch.no_grad()
    def learn(self, q: GaussianLatent, blocks: Iterable[Tensor], rate: float) -> None:
        """One expectation-maximisation step of this rate; latents of different blocks stay independent."""
        self.mean.lerp_(q.mean.mean(0), rate)
        centred = q.mean - self.mean
        second = centred.mT @ centred / len(centred)
        if q.factor is not None:
            second = second + (q.factor @ q.factor.mT).mean(0)
        covariance = torch.zeros_like(second)
        for columns in blocks:
            inside = columns[:, None], columns[None]
            covariance[inside] = torch.lerp((self.factor @ self.factor.mT)[inside], second[inside], rate)
        self.factor.copy_(torch.linalg.cholesky(covariance.double()))


def from_precision(mean: Tensor, precision: Tensor) -> GaussianLatent:
    """The Gaussian of a mean (B, Q) and a precision matrix (B, Q, Q)."""
    covariance = torch.linalg.inv(precision.double())
    covariance = 0.5 * (covariance + covariance.mT)
    return GaussianLatent(mean, torch.linalg.cholesky(covariance).to(mean.dtype))


class LocalPosterior(nn.Module):
    """One free posterior per training object: a point, a full Gaussian or a diagonal one.

    Arguments:
        start: Initial posterior of the N training objects.
        form: ``"point"``, ``"full"`` or ``"diagonal"``.
    """

    def __init__(self, start: GaussianLatent, form: Literal["point", "full", "diagonal"]) -> None:
        super().__init__()
        self.form = form
        self.mean = nn.Parameter(start.mean.clone())
        if form != "point" and start.factor is not None:
            scale = start.factor.diagonal(dim1=-2, dim2=-1)
            self.log_scale = nn.Parameter(scale.log())
            if form == "full":
                # L = diag(scale) (I + strictly lower)
                self.lower = nn.Parameter(torch.tril(start.factor / scale[..., None], -1))

    def forward(self, index: Tensor) -> GaussianLatent:
        """The posteriors of these training rows."""
        mean = self.mean[index]
        if self.form == "point":
            return GaussianLatent(mean, None)
        scale = self.log_scale[index].exp()
        if self.form == "diagonal":
            return GaussianLatent(mean, torch.diag_embed(scale))
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        return GaussianLatent(mean, scale[..., None] * (identity + torch.tril(self.lower[index], -1)))


class AmortisedPosterior(nn.Module):
    r"""A posterior read from any subset of cells: the factor-analysis posterior, bent by a small network.

    :math:`\mu = \mu_0 + \delta_\theta(\mu_0, \log \mathrm{diag} L_0)` and
    :math:`L = \mathrm{diag}(e^{\gamma_\theta}) L_0`, with the network zero at the start.
    Both corrections are multiplied by the shrinkage :math:`1 - L_{0,qq}^2`, so that an object with nothing seen gives
    the prior.

    Arguments:
        factors: The linear posterior.
        hidden: Width H of the network.
    """

    def __init__(self, factors: FactorPosterior, hidden: int) -> None:
        super().__init__()
        self.factors = factors
        latent = factors.loadings.shape[1]
        self.network = nn.Sequential(
            nn.Linear(2 * latent, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * latent),
        )
        nn.init.zeros_(self.network[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.network[-1].bias)  # type: ignore[arg-type]

    def forward(self, value: Tensor, known: Tensor, seen: Tensor) -> GaussianLatent:
        """Posterior of each row; arguments as :meth:`FactorPosterior.forward`."""
        mean, precision = self.factors(value, known, seen)
        inverse_factor = torch.linalg.cholesky(precision.flip(-1, -2)).flip(-1, -2)  # upper U, P = U Uᵀ
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.solve_triangular(inverse_factor.mT, identity.expand_as(precision), upper=False)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        shrinkage = (1 - diagonal.square()).clamp_min(0)
        hidden = torch.cat([mean, diagonal.log()], -1)
        for layer in self.network:
            hidden = product(hidden, layer.weight) + layer.bias if isinstance(layer, nn.Linear) else layer(hidden)
        shift, stretch = hidden.chunk(2, -1)
        return GaussianLatent(mean + shrinkage * shift, torch.exp(shrinkage * stretch)[..., None] * factor)
