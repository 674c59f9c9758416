r"""Gaussian posteriors of latent trajectories from sites: what the observations of each bin say of its latents.

A site is an unnormalised Gaussian factor :math:`\exp(h_t^\top z_t - \tfrac12 z_t^\top P_t z_t)` of the L latents of one
bin, zero where nothing was seen. Sites of several modalities add: their product of experts. With z = Φ v and v
standard normal, the posterior of v is Gaussian with precision :math:`I + \Phi^\top P \Phi`; for linear-Gaussian
observations, whose sites are exact, it is that of Gaussian-process factor analysis.

References:
    Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population activity (Yu et
    al., 2009); Conjugate-computation variational inference (Khan & Lin, 2017).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from consilience.blocks.posteriors import GaussianLatent
from consilience.blocks.products import product

__all__ = [
    "AbstractTrajectories",
    "Coordinates",
    "Sites",
    "Trajectories",
    "Updated",
    "infer_trajectories",
    "update_trajectories",
]


@dataclass(frozen=True, slots=True)
class Sites:
    """Gaussian factors of the latents of every bin.

    Arguments:
        shift: h, shape (B, T, L).
        precision: P, positive semi-definite, shape (B, T, L, L).
    """

    shift: Tensor
    precision: Tensor

    def __add__(self, other: "Sites") -> "Sites":
        return Sites(self.shift + other.shift, self.precision + other.precision)

    def __sub__(self, other: "Sites") -> "Sites":
        return Sites(self.shift - other.shift, self.precision - other.precision)

    def expected(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Mean of the factors' logarithm over Gaussians (B, T, L) and (B, T, L, L), shape (B,)."""
        square = covariance + mean[..., :, None] * mean[..., None, :]
        return (self.shift * mean).flatten(1).sum(-1) - 0.5 * (self.precision * square).flatten(1).sum(-1)

    def towards(self, other: "Sites", rate: Tensor) -> "Sites":
        """A part ``rate`` (B,) of the way to others."""
        rate = rate[:, None, None]
        return Sites(self.shift.lerp(other.shift, rate), self.precision.lerp(other.precision, rate[..., None]))

    def where(self, keep: Tensor, other: "Sites") -> "Sites":
        """These in the rows of ``keep`` (B,), the others elsewhere."""
        keep = keep[:, None, None]
        return Sites(
            torch.where(keep, self.shift, other.shift),
            torch.where(keep[..., None], self.precision, other.precision),
        )


class Coordinates(Protocol):
    """A Gaussian of the coordinates of trajectories."""

    @property
    def mean(self) -> Tensor:
        """Shape (B, K)."""
        ...

    def draw(self, normal: Tensor) -> Tensor:
        """Draws from standard normals, both (S, B, K)."""
        ...


class AbstractTrajectories(ABC):
    """A Gaussian q(z) of every trial, linear in Gaussian coordinates."""

    coordinates: Coordinates

    @abstractmethod
    def latents(self, v: Tensor) -> Tensor:
        """z of coordinates (S, B, K), shape (S, B, T, L)."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Means, shape (B, T, L)."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariances of the latents of each bin, shape (B, T, L, L)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Their diagonals, shape (B, T, L)."""

    @abstractmethod
    def half(self) -> Tensor:
        """A of shape (B, T, L, K): the covariance of latents l at t and l' at t' is the product of their rows."""

    @abstractmethod
    def divergence(self) -> Tensor:
        """KL to the Gaussian before the sites by parts that sum to it, shape (B, any)."""


class _Dense(AbstractTrajectories):
    """Through coordinates whose covariance is one matrix."""

    coordinates: GaussianLatent

    @property
    def mean(self) -> Tensor:
        return self.latents(self.coordinates.mean[None])[0]

    @property
    def covariance(self) -> Tensor:
        half = self.half()
        return product(half, half)

    @property
    def variance(self) -> Tensor:
        return self.half().square().sum(-1)

    @property
    def factor(self) -> Tensor:
        """Lower Cholesky factor of the covariance of the coordinates, shape (B, K, K)."""
        assert self.coordinates.factor is not None, "trajectories have a spread"
        return self.coordinates.factor


@dataclass(frozen=True)
class Trajectories(_Dense):
    """q(z) of every trial through q(v): latents (B, T, L) are linear in the coordinates v (B, L F).

    Arguments:
        root: Φ, shape (L, T, F).
        coordinates: q(v), its dimensions ordered by latent, then by frequency.
    """

    root: Tensor
    coordinates: GaussianLatent

    def half(self) -> Tensor:
        latents, _, kept = self.root.shape
        # the factor's rows of one latent are read by that latent alone
        rows = product(self.root, self.factor.view(-1, latents, kept, latents * kept).mT)
        return rows.transpose(1, 2)

    def latents(self, v: Tensor) -> Tensor:
        latents, _, kept = self.root.shape
        by_latent = v.view(*v.shape[:2], latents, kept).permute(1, 2, 0, 3)
        return product(by_latent, self.root.expand(v.shape[1], -1, -1, -1)).permute(2, 0, 3, 1)

    def divergence(self) -> Tensor:
        """KL(q ‖ prior) by latent, each given those before it, shape (B, L)."""
        by_coordinate = self.coordinates.divergence()
        return by_coordinate.view(len(by_coordinate), len(self.root), -1).sum(-1)


@dataclass(frozen=True)
class Updated(_Dense):
    """A Gaussian q(z) after further sites: z = μ + A w, where w was standard normal before them.

    Arguments:
        origin: μ, shape (B, T, L).
        design: A, shape (B, T, L, K).
        coordinates: q(w).
    """

    origin: Tensor
    design: Tensor
    coordinates: GaussianLatent

    def half(self) -> Tensor:
        return product(self.design, self.factor.mT[:, None])

    def latents(self, v: Tensor) -> Tensor:
        z = product(v.transpose(0, 1), self.design.flatten(1, 2)).transpose(0, 1)
        return self.origin + z.reshape(len(v), *self.origin.shape)

    def divergence(self) -> Tensor:
        return self.coordinates.divergence()

    def log_ratio(self, w: Tensor) -> Tensor:
        """Log of q(w) over the standard normal that it was, at coordinates (S, B, K), shape (S, B)."""
        centred = (w - self.coordinates.mean)[..., None]
        white = torch.linalg.solve_triangular(self.factor, centred, upper=False)[..., 0]
        scale = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return 0.5 * (w.square() - white.square()).sum(-1) - scale

    def log_normaliser(self) -> Tensor:
        """Log of the mean of the sites over the Gaussian before them, relative to their value at μ, shape (B,)."""
        white = torch.linalg.solve_triangular(self.factor, self.coordinates.mean[..., None], upper=False)[..., 0]
        return 0.5 * white.square().sum(-1) + self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def infer_trajectories(root: Tensor, sites: Sites, *, diagonal: bool = False) -> Trajectories:
    """The posterior of every trial, or the best one that is independent between coordinates.

    Arguments:
        root: Φ, shape (L, T, F).
        sites: What was seen.
        diagonal: Instead of the posterior, the diagonal Gaussian with the least divergence to it: the same mean, and
            variances that ignore how sites couple the coordinates, too narrow wherever bins are missing.
    """
    latents, bins, kept = root.shape
    rows, size = len(sites.shift), latents * kept
    # in float64: coordinates that the data know well stand beside coordinates that only the prior knows
    wide, precise = root.double().expand(rows, -1, -1, -1), sites.precision.double()
    by_bin = wide.transpose(1, 2)
    blocks = [
        product(wide[:, k].mT, (precise[:, :, k, :, None] * by_bin).reshape(rows, bins, size).mT)
        for k in range(latents)
    ]
    shift = product(sites.shift.double().mT[:, :, None], wide.mT).reshape(rows, size)
    return Trajectories(root, _posterior(torch.cat(blocks, 1), shift, root.dtype, diagonal=diagonal))


def update_trajectories(q: AbstractTrajectories, sites: Sites) -> Updated:
    """What further sites make of q(z)."""
    origin, design = q.mean, q.half()
    wide, precise = design.double(), sites.precision.double()
    shift = sites.shift.double() - product(precise, origin.double()[..., None, :])[..., 0]
    across = wide.flatten(1, 2).mT
    information = product(across, product(precise, wide.mT).flatten(1, 2).mT)
    along = product(across, shift.flatten(1)[:, None])[..., 0]
    return Updated(origin, design, _posterior(information, along, design.dtype))


def _posterior(information: Tensor, shift: Tensor, dtype: torch.dtype, *, diagonal: bool = False) -> GaussianLatent:
    """N(P⁻¹ shift, P⁻¹) of standard normal coordinates, P = I + information."""
    identity = torch.eye(shift.shape[-1], dtype=shift.dtype, device=shift.device)
    precision = information + identity
    # P = U Uᵀ with U upper, so that the factor U⁻ᵀ of the covariance is lower
    upper = torch.linalg.cholesky(precision.flip(-1, -2)).flip(-1, -2)
    factor = torch.linalg.solve_triangular(upper.mT, identity.expand_as(upper), upper=False)
    mean = product(factor, product(factor.mT, shift[..., None, :]).mT)[..., 0]
    if diagonal:
        factor = torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1).rsqrt())
    return GaussianLatent(mean.to(dtype), factor.to(dtype))
