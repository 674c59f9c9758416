r"""Latent trajectories of long trials in local coordinates: posteriors whose cost is linear in the number of bins.

The Fourier coordinates of a smooth latent, turned to the points of their own grid, are bumps of equal shape:

.. math::
    z_t = \sum_k r(t - s_k)\, v_k, \qquad v \sim N(0, I), \qquad
    r(d) = \frac{1}{\sqrt{N C}} \sum_{|j| \le J} \sqrt{\rho\, S(\omega_j)} \cos \omega_j d

with N > 2J points on a circle of C bins; the sum over all of them is the band-limited process exactly. Bumps vanish
after a few length scales. Cut into blocks of points as long as two reaches of the bump, the bins between the centres of
two blocks see these two blocks alone, and the posterior precision of v is block-tridiagonal. Its Cholesky factor and
the blocks of its inverse that marginals need take two sweeps over the blocks.

References:
    | Space and space-time modeling using process convolutions (Higdon, 2002)
    | Formation of a sparse bus impedance matrix (Takahashi et al., 1973), the blocks of the inverse
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from consilience.blocks.products import product
from consilience.blocks.trajectories import AbstractTrajectories, Sites

__all__ = ["LocalGaussian", "LocalRoot", "LocalTrajectories", "infer_local"]


@dataclass(frozen=True)
class LocalRoot:
    """Φ of a long trial by windows of bins.

    Arguments:
        table: r from the bins of a window to the points of its two blocks, (L, bins of a window, 2 points of a block),
            float64; the same for all windows.
        bins: T.
    """

    table: Tensor
    bins: int

    @property
    def windows(self) -> int:
        return math.ceil(self.bins / self.table.shape[1])

    @property
    def block(self) -> int:
        """Coordinates of a block: by latent, then by point."""
        return len(self.table) * self.table.shape[2] // 2

    def by_window(self, a: Tensor) -> Tensor:
        """(B, T, …) as (B, windows, bins of a window, …), with zeros after the last bin."""
        width = self.table.shape[1]
        filled = torch.cat([a, a.new_zeros(len(a), self.windows * width - self.bins, *a.shape[2:])], dim=1)
        return filled.view(len(a), self.windows, width, *a.shape[2:])

    def variance(self) -> Tensor:
        """Prior variances of the latents, (T, L)."""
        one = self.table.square().sum(-1).mT
        return one.repeat(self.windows, 1)[: self.bins]

    def latents(self, v: Tensor) -> Tensor:
        """z of coordinates (…, blocks, block), shape (…, T, L)."""
        latents, _, double = self.table.shape
        points = v.unflatten(-1, (latents, double // 2))
        pairs = torch.cat([points[..., :-1, :, :], points[..., 1:, :, :]], dim=-1)  # (…, windows, L, 2 points)
        table = self.table.to(v.dtype).expand(*pairs.shape[:-3], -1, -1, -1)
        z = torch.stack([product(pairs[..., k, :], table[..., k, :, :]) for k in range(latents)], -1)
        return z.flatten(-3, -2)[..., : self.bins, :]


@dataclass(frozen=True)
class LocalGaussian:
    """A Gaussian of coordinates in blocks, by the Cholesky factor of its block-tridiagonal precision.

    Arguments:
        center: μ, shape (B, blocks, b).
        inverse: Inverses of the factor's blocks on the diagonal, lower triangular, (B, blocks, b, b).
        below: Its blocks below them, (B, blocks - 1, b, b).
    """

    center: Tensor
    inverse: Tensor
    below: Tensor

    @property
    def mean(self) -> Tensor:
        """μ, shape (B, K)."""
        return self.center.flatten(1)

    def draw(self, normal: Tensor) -> Tensor:
        """v of standard normals, both (S, B, K)."""
        left = normal.to(self.center).view(*normal.shape[:2], *self.center.shape[1:]).permute(2, 1, 3, 0)
        white = _backwards(self.inverse, self.below, left).permute(3, 1, 0, 2).flatten(2)
        return (self.mean + white).to(normal.dtype)

    @cached_property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Blocks of the covariance on the diagonal (B, blocks, b, b) and below it (B, blocks - 1, b, b)."""
        on: list[Tensor] = []
        under: list[Tensor] = []
        for k in reversed(range(self.inverse.shape[1])):
            turned = self.inverse[:, k].mT
            one = product(turned, turned)
            if on:
                along = product(turned, self.below[:, k])
                beside = product(on[-1], along)
                under.append(-beside)
                one = one + product(along, beside.mT)
            on.append(one)
        return torch.stack(on[::-1], 1), torch.stack(under[::-1], 1)

    def divergence(self) -> Tensor:
        """KL to a standard normal by coordinate, each given those after it, (B, blocks, b)."""
        spread = self.covariances[0].diagonal(dim1=-2, dim2=-1)
        return 0.5 * (spread + self.center.square() - 1) - self.inverse.diagonal(dim1=-2, dim2=-1).log()


@dataclass(frozen=True)
class LocalTrajectories(AbstractTrajectories):
    """q(z) of every trial through local coordinates.

    Arguments:
        root: Φ.
        coordinates: q(v).
        dtype: Of what is answered; the coordinates are in float64.
    """

    root: LocalRoot
    coordinates: LocalGaussian
    dtype: torch.dtype

    def latents(self, v: Tensor) -> Tensor:
        return self.root.latents(v.view(*v.shape[:2], *self.coordinates.center.shape[1:]))

    @property
    def mean(self) -> Tensor:
        return self.root.latents(self.coordinates.center).to(self.dtype)

    @cached_property
    def covariance(self) -> Tensor:
        latents, _, double = self.root.table.shape
        by_latent = (latents, double // 2)
        on, under = (a.unflatten(-1, by_latent).unflatten(2, by_latent) for a in self.coordinates.covariances)
        upper = torch.cat([on[:, :-1], under.permute(0, 1, 4, 5, 2, 3)], dim=-1)
        joint = torch.cat([upper, torch.cat([under, on[:, 1:]], dim=-1)], dim=3)  # (B, windows, L, 2m, L, 2m)
        rows = []
        for k in range(latents):
            seen = product(self.root.table[k], joint[:, :, k].flatten(-2).mT)  # (B, windows, bins, L 2m)
            rows.append((seen.unflatten(-1, (latents, double)) * self.root.table.transpose(0, 1)).sum(-1))
        return torch.stack(rows, -2).flatten(1, 2)[:, : self.root.bins].to(self.dtype)

    @property
    def variance(self) -> Tensor:
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    def half(self) -> Tensor:
        """Dense, and of all coordinates: for draws of a block and for densities."""
        size = self.coordinates.mean.shape[1]
        each = torch.eye(size).to(self.coordinates.center)[:, None].expand(-1, len(self.coordinates.center), -1)
        white = self.coordinates.draw(each) - self.coordinates.mean
        return self.latents(white).permute(1, 2, 3, 0).to(self.dtype)

    def excess(self) -> tuple[Tensor, Tensor]:
        r"""How far the points' mean power exceeds that of white noise, and at which frequencies in radians per bin.

        :math:`\sum_{ij} (E v_i v_j - \delta_{ij}) \cos \omega (i - j)`, shapes (B, L, F) and (F,), from none to half a
        wave per point; points of blocks that do not touch have no covariance.
        """
        latents, width, double = self.root.table.shape
        half, by_latent = double // 2, (latents, double // 2)
        center = self.coordinates.center.unflatten(-1, by_latent).transpose(1, 2).flatten(2)  # (B, L, points)
        on, under = (
            a.sum(1).unflatten(-1, by_latent).unflatten(1, by_latent).diagonal(dim1=1, dim2=3).movedim(-1, 1)
            for a in self.coordinates.covariances
        )  # (B, L, m, m)
        place = torch.arange(half, device=on.device)
        lag = (place[:, None] - place).flatten()
        of_lag = torch.zeros(*on.shape[:2], double).to(on)
        of_lag.index_add_(-1, lag.abs(), on.flatten(-2))
        of_lag.index_add_(-1, half + lag, 2 * under.flatten(-2))
        of_lag[..., 0] -= center.shape[-1]
        size = 2 ** math.ceil(math.log2(2 * center.shape[-1]))  # no point meets itself around the circle
        power = torch.fft.rfft(center, n=size).abs().square() + torch.fft.rfft(of_lag, n=size).real
        return power, torch.linspace(0, math.pi * half / width, size // 2 + 1).to(power)

    def divergence(self) -> Tensor:
        """KL(q ‖ prior) by latent, each coordinate given those after it, shape (B, L)."""
        by_latent = self.coordinates.divergence().unflatten(-1, (len(self.root.table), -1))
        return by_latent.sum((1, 3)).to(self.dtype)


def infer_local(root: LocalRoot, sites: Sites) -> LocalTrajectories:
    """The posterior of every trial, in time and memory linear in its bins.

    Arguments:
        root: Φ.
        sites: What was seen.
    """
    latents, _, double = root.table.shape
    half = double // 2
    shift, precise = root.by_window(sites.shift.double()), root.by_window(sites.precision.double())
    rows = []
    for k in range(latents):  # of the information of a window about its 2 m points of this latent and of all others
        weighted = precise[:, :, :, k, :, None] * root.table.transpose(0, 1)
        rows.append(product(root.table[k].mT, weighted.flatten(-2).mT).unflatten(-1, (latents, double)))
    whole = torch.stack(rows, 2).unflatten(3, (2, half)).unflatten(-1, (2, half))  # (B, windows, L, 2, m, L, 2, m)
    parts = whole.permute(0, 1, 3, 6, 2, 4, 5, 7).flatten(-2).flatten(-3, -2)  # (B, windows, 2, 2, b, b)
    table = root.table.expand(len(shift), -1, -1, -1)
    along = torch.stack([product(shift[..., k], table[:, k].mT) for k in range(latents)], 2)
    sides = along.unflatten(-1, (2, half)).transpose(2, 3).flatten(-2)  # (B, windows, 2, b)
    on = _added(parts[:, :, 0, 0], parts[:, :, 1, 1])
    on = on + torch.eye(root.block).to(on)
    q = _solved(on, parts[:, :, 1, 0], _added(sides[:, :, 0], sides[:, :, 1]))
    return LocalTrajectories(root, q, sites.shift.dtype)


def _added(first: Tensor, second: Tensor) -> Tensor:
    """What the windows say of the blocks: first (B, windows, …) of the block before, second of the one after."""
    nothing = first.new_zeros(len(first), 1, *first.shape[2:])
    return torch.cat([first, nothing], 1) + torch.cat([nothing, second], 1)


def _solved(on: Tensor, below: Tensor, shift: Tensor) -> LocalGaussian:
    """N(P⁻¹ shift, P⁻¹) of the block-tridiagonal P."""
    eye = torch.eye(on.shape[-1]).to(on).expand(len(on), -1, -1)
    inverses: list[Tensor] = []
    unders: list[Tensor] = []
    white: list[Tensor] = []
    for k in range(on.shape[1]):
        block, aim = on[:, k], shift[:, k, :, None]
        if inverses:
            under = product(below[:, k - 1], inverses[-1])
            unders.append(under)
            block, aim = block - product(under, under), aim - product(under, white[-1].mT)
        inverses.append(torch.linalg.solve_triangular(torch.linalg.cholesky(block), eye, upper=False))
        white.append(product(inverses[-1], aim.mT))
    inverse, beneath = torch.stack(inverses, 1), torch.stack(unders, 1)
    return LocalGaussian(_backwards(inverse, beneath, torch.stack(white)).movedim(0, 1)[..., 0], inverse, beneath)


def _backwards(inverse: Tensor, below: Tensor, white: Tensor) -> Tensor:
    """L⁻ᵀ w by blocks from the last to the first, w and it of shape (blocks, B, b, S)."""
    found: list[Tensor] = []
    for k in reversed(range(len(white))):
        aim = white[k] - product(below[:, k].mT, found[-1].mT) if found else white[k]
        found.append(product(inverse[:, k].mT, aim.mT))
    return torch.stack(found[::-1])
