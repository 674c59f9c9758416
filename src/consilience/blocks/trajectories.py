r"""Gaussian posteriors of latent trajectories from sites: what the observations of each bin say of its latents.

A site is an unnormalised Gaussian factor :math:`\exp(h_t^\top z_t - \tfrac12 z_t^\top P_t z_t)` of the L latents of one
bin, zero where nothing was seen. Sites of several modalities add: their product of experts. With z = Φ v and v
standard normal, the posterior of v is Gaussian with precision :math:`I + \Phi^\top P \Phi`; for linear-Gaussian
observations, whose sites are exact, it is that of Gaussian-process factor analysis.

References:
    Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population activity (Yu et
    al., 2009); Conjugate-computation variational inference (Khan & Lin, 2017).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.posteriors import GaussianLatent

__all__ = ["Sites", "Trajectories", "infer_trajectories"]


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


@dataclass(frozen=True, slots=True)
class Trajectories:
    """q(z) of every trial through q(v): latents (B, T, L) are linear in the coordinates v (B, L F).

    Arguments:
        root: Φ, shape (L, T, F).
        coordinates: q(v), its dimensions ordered by latent, then by frequency.
    """

    root: Tensor
    coordinates: GaussianLatent

    @property
    def mean(self) -> Tensor:
        """Posterior means, shape (B, T, L)."""
        return self._latents(self.coordinates.mean)

    @property
    def covariance(self) -> Tensor:
        """Posterior covariances of the latents of each bin, shape (B, T, L, L)."""
        factor = self.coordinates.factor
        assert factor is not None, "trajectories have a spread"
        latents, _, kept = self.root.shape
        # rows of Φ times the factor, (B, L, T, L F): the factor's rows of one latent are read by that latent alone
        half = self.root @ factor.view(len(factor), latents, kept, latents * kept)
        return torch.einsum("bltk,bmtk->btlm", half, half)

    def draw(self, normal: Tensor) -> Tensor:
        """z = Φ v for v drawn with ε of shape (S, B, L F); shape (S, B, T, L)."""
        return self._latents(self.coordinates.draw(normal))

    def divergence(self) -> Tensor:
        """KL(q ‖ prior) by latent, each given those before it, shape (B, L)."""
        by_coordinate = self.coordinates.divergence()
        return by_coordinate.view(len(by_coordinate), len(self.root), -1).sum(-1)

    def _latents(self, v: Tensor) -> Tensor:
        latents, _, kept = self.root.shape
        return torch.einsum("ltf,...lf->...tl", self.root, v.view(*v.shape[:-1], latents, kept))


def infer_trajectories(root: Tensor, sites: Sites, *, diagonal: bool = False) -> Trajectories:
    """The posterior of every trial, or the best one that is independent between coordinates.

    Arguments:
        root: Φ, shape (L, T, F).
        sites: What was seen.
        diagonal: Instead of the posterior, the diagonal Gaussian with the least divergence to it: the same mean, and
            variances that ignore how sites couple the coordinates, too narrow wherever bins are missing.
    """
    latents, _, kept = root.shape
    rows, size = len(sites.shift), latents * kept
    blocks = [
        # Φ_lᵀ P_lm Φ_m of all trials, (B, F, L, F)
        torch.einsum("tf,btm,mtg->bfmg", root[number], sites.precision[:, :, number], root)
        for number in range(latents)
    ]
    coupling = torch.stack(blocks, 1).reshape(rows, size, size)
    precision = coupling + torch.eye(size, dtype=root.dtype, device=root.device)
    shift = torch.einsum("ltf,btl->blf", root, sites.shift).reshape(rows, size)
    # precision = U Uᵀ with U upper, so that the factor U⁻ᵀ of the covariance is lower
    upper = torch.linalg.cholesky(precision.flip(-1, -2)).flip(-1, -2)
    identity = torch.eye(size, dtype=root.dtype, device=root.device).expand_as(upper)
    factor = torch.linalg.solve_triangular(upper.mT, identity, upper=False)
    mean = (factor @ (factor.mT @ shift[..., None]))[..., 0]
    if diagonal:
        factor = torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1).rsqrt())
    return Trajectories(root, GaussianLatent(mean, factor))
