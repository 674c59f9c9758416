r"""Sparse variational Gaussian processes: D functions that share a kernel and M inducing inputs.

With whitened inducing values :math:`v_d = L^{-1} u_d`, :math:`q(v_d) = N(m_d, S_d)`,
:math:`LL^\top = K_{uu}` and :math:`A_n = L^{-1} k_u(z_n)`,

.. math::
    \mathrm{mean}_{nd} = c_d + A_n^\top m_d, \qquad
    \mathrm{var}_{nd} = k(z_n, z_n) - |A_n|^2 + A_n^\top S_d A_n.

:math:`q(v_d)` is held in natural parameters :math:`\Lambda_d = S_d^{-1}`, :math:`\theta_d = \Lambda_d m_d` and moved by
natural-gradient steps towards :math:`\Lambda_d^* = I + s\sum_n w_{nd} A_n A_n^\top`,
:math:`\theta_d^* = s\sum_n A_n (g_{nd} + w_{nd} A_n^\top m_d)` with :math:`g = \partial E/\partial\mathrm{mean}` and
:math:`w = -2\,\partial E/\partial\mathrm{var}` of the expected log-likelihood E; for a Gaussian likelihood
a full batch with rate 1 is the collapsed optimum of Titsias (2009).

References:
    | Gaussian processes for big data (Hensman et al., 2013) | https://arxiv.org/abs/1309.6835
    | Natural gradients in practice (Salimbeni et al., 2018) | https://arxiv.org/abs/1803.09151
    | Conjugate-computation variational inference (Khan & Lin, 2017) | https://arxiv.org/abs/1703.04265
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consilience.blocks.kernels import AbstractKernel
from consilience.blocks.products import fill_up, product

__all__ = ["Features", "SparseGP", "inverse"]

JITTER = 1e-6
CHUNK = 64  # outputs inverted together: a few megabytes, so that they stay in cache
FEW = 16  # outputs below which packing the features costs more than it saves
LEAF = 30  # below this a Cholesky factorisation is faster than another halving


@dataclass(frozen=True, slots=True)
class Features:
    """What all D outputs share at latent positions z: whitened features and the variance they leave unexplained.

    Arguments:
        a: A_n, shape (B, M).
        rest: k(z, z) - |A|², shape (B,).
    """

    a: Tensor
    rest: Tensor


class SparseGP(nn.Module):
    """D independent sparse GPs with one kernel and shared inducing inputs.

    Arguments:
        kernel: Covariance over R^Q.
        inducing: Inducing inputs, shape (M, Q).
        outputs: D.
    """

    # Λ_d in blocks, of the first H = M // 2 inducing inputs, of the others with them, and of the others: what an
    # inverse by Schur complements reads, and three quarters of the whole
    first: Tensor  # (D, H, H)
    across: Tensor  # (D, M - H, H)
    second: Tensor  # (D, M - H, M - H)
    natural_mean: Tensor  # θ_d, shape (D, M)
    mean: Tensor  # m_d, shape (D, M)
    covariance: Tensor  # S_d packed: triangle of the first, across, triangle of the second, off-diagonal doubled
    log_determinant: Tensor  # log |Λ_d|, shape (D,)
    trace: Tensor  # tr S_d, shape (D,)
    rows: Tensor  # of each packed cell, shape (≥ M (M + 1) / 2,)
    columns: Tensor

    def __init__(self, kernel: AbstractKernel, inducing: Tensor, outputs: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.inducing = nn.Parameter(inducing.clone())
        self.constant = nn.Parameter(torch.zeros(outputs))
        size, half = len(inducing), len(inducing) // 2
        first, second = torch.tril_indices(half, half), torch.tril_indices(size - half, size - half) + half
        across = torch.cartesian_prod(torch.arange(half, size), torch.arange(half)).mT
        rows, columns = torch.cat([first, across, second], 1)
        self.split, self.cells = half, len(rows)
        # filled up with cells that stay zero, see products.py
        self.register_buffer("rows", fill_up(rows), persistent=False)
        self.register_buffer("columns", fill_up(columns), persistent=False)
        self.register_buffer("first", torch.eye(half).repeat(outputs, 1, 1))
        self.register_buffer("across", torch.zeros(outputs, size - half, half))
        self.register_buffer("second", torch.eye(size - half).repeat(outputs, 1, 1))
        self.register_buffer("natural_mean", torch.zeros(outputs, size))
        for name, shape in (("mean", (outputs, size)), ("covariance", (outputs, len(self.rows)))):
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        for name in ("log_determinant", "trace"):
            self.register_buffer(name, torch.zeros(outputs), persistent=False)
        self.refresh()

    def features(self, z: Tensor) -> Features:
        """Shared features of z (B, Q); the Cholesky factor of K_uu is taken in float64."""
        a = self.whiten(self.kernel(self.inducing, z)).mT
        return Features(a, (self.kernel.diagonal(z) - a.square().sum(-1)).clamp_min(0))

    def jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives along z of the features, (B, Q, M), and of k(z, z), (B, Q)."""
        slope = self.kernel.slope(self.inducing, z)  # (Q, M, B)
        whitened = self.whiten(slope.transpose(0, 1).flatten(1)).unflatten(1, (z.shape[1], len(z)))
        return whitened.permute(2, 1, 0), self.kernel.diagonal_slope(z).mT

    def whiten(self, k: Tensor) -> Tensor:
        """L⁻¹ k for k of shape (M, B)."""
        inducing = self.inducing.double()  # a rank-deficient gram (linear kernel, M > Q) drowns in float32 rounding
        gram = self.kernel(inducing, inducing)
        level = JITTER * gram.diagonal().mean().detach()
        factor = torch.linalg.cholesky(gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        return torch.linalg.solve_triangular(factor, k.double(), upper=False).to(k.dtype)

    def moments(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and variance of f at the features, each (B, D)."""
        mean = self.mean_at(features)
        if len(self.mean) <= FEW:
            quadratic = (product(features.a, self._unpacked()) * features.a).sum(-1).mT
        else:  # A'SA as one GEMM over packed triangles, half the work of the full (B, M²) × (M², D)
            quadratic = product(self.packed(features.a), self.covariance)
        return mean, (features.rest[:, None] + quadratic).clamp_min(1e-10)

    def mean_at(self, features: Features) -> Tensor:
        """Mean of f at the features, (B, D), alone: without the variance, most of the cost of :meth:`moments`."""
        return self.constant + product(features.a, self.mean)

    def _unpacked(self) -> Tensor:
        """S_d, shape (D, M, M)."""
        outputs, size = self.mean.shape
        full = torch.zeros(outputs, size, size, dtype=self.mean.dtype, device=self.mean.device)
        rows, columns = self.rows[: self.cells], self.columns[: self.cells]
        half = 0.5 * self.covariance[:, : self.cells]
        full[:, rows, columns] = half
        full[:, columns, rows] += half
        return full

    def packed(self, a: Tensor) -> Tensor:
        """Lower triangle of A_n A_nᵀ, filled up, shape (B, ≥ M (M + 1) / 2)."""
        return a.index_select(1, self.rows) * a.index_select(1, self.columns)

    def divergence(self) -> Tensor:
        """KL(q(v_d) ‖ N(0, I)) of each output, shape (D,); constant in the parameters that Adam moves."""
        size = self.mean.shape[1]
        return 0.5 * (self.trace + self.mean.square().sum(-1) - size + self.log_determinant)

    @torch.no_grad()
    def natural_step(self, a: Tensor, gradient: Tensor, precision: Tensor, *, scale: float, rate: float) -> None:
        """Move q(v) by one natural-gradient step of the given rate.

        Arguments:
            a: Features A_n, shape (B, M).
            gradient: g, shape (B, D), zero where unseen.
            precision: w >= 0, shape (B, D), zero where unseen.
            scale: Rows that each row of the batch stands for, over the weight of the KL.
            rate: In (0, 1].
        """
        head, tail = a[:, : self.split], a[:, self.split :]
        for block, left, right in ((self.first, head, head), (self.across, tail, head), (self.second, tail, tail)):
            # Λ ← (1 - ρ) Λ + ρ (I + s Σ_n w A Aᵀ) as GEMMs into the buffers
            square = (left[:, :, None] * right[:, None, :]).flatten(1)
            block.flatten(1).addmm_(precision.mT, square, beta=1 - rate, alpha=rate * scale)
        for block in (self.first, self.second):
            block.diagonal(dim1=-2, dim2=-1).add_(rate)
        site = gradient + precision * (a @ self.mean.mT)
        self.natural_mean.lerp_(scale * site.mT @ a, rate)
        self.refresh()

    @property
    def natural_precision(self) -> Tensor:
        """Λ_d, shape (D, M, M)."""
        upper = torch.cat([self.first, self.across.mT], -1)
        return torch.cat([upper, torch.cat([self.across, self.second], -1)], -2)

    @torch.no_grad()
    def set_natural(self, precision: Tensor, mean: Tensor) -> None:
        """Make q(v) that of Λ (D, M, M) and θ (D, M)."""
        half = self.split
        self.first.copy_(precision[:, :half, :half])
        self.across.copy_(precision[:, half:, :half])
        self.second.copy_(precision[:, half:, half:])
        self.natural_mean.copy_(mean)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute m, S, log|Λ| and tr S from the natural parameters (after a step or a load)."""
        half = self.split
        ends = self._triangle(half), self._triangle(len(self.inducing) - half)
        edges = len(ends[0][0]), len(ends[0][0]) + self.across[0].numel()
        for start in range(0, len(self.mean), CHUNK):
            some = slice(start, start + CHUNK)
            first, across, second, log_determinant = _blocks(self.first[some], self.across[some], self.second[some])
            self.log_determinant[some], packed = log_determinant, self.covariance[some]
            head, tail = self.natural_mean[some, :half, None], self.natural_mean[some, half:, None]
            self.mean[some, :half] = (first @ head + across.mT @ tail)[..., 0]
            self.mean[some, half:] = (across @ head + second @ tail)[..., 0]
            for block, (cells, times), part in (
                (first, ends[0], slice(0, edges[0])),
                (second, ends[1], slice(edges[1], self.cells)),
            ):
                torch.mul(block.flatten(1).index_select(1, cells), times, out=packed[:, part])
            torch.mul(across.flatten(1), 2.0, out=packed[:, edges[0] : edges[1]])
            self.trace[some] = first.diagonal(dim1=-2, dim2=-1).sum(-1) + second.diagonal(dim1=-2, dim2=-1).sum(-1)

    def _triangle(self, size: int) -> tuple[Tensor, Tensor]:
        """Flat places of a lower triangle, and how often each counts."""
        rows, columns = torch.tril_indices(size, size, device=self.mean.device)
        return rows * size + columns, torch.where(rows == columns, 1.0, 2.0).to(self.mean)


def _blocks(first: Tensor, across: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks of the inverse, and the log-determinant; in float64 where float32 lost definiteness."""
    found = invert_blocks(first, across, second)
    if bool(torch.isfinite(found[-1]).all()):
        return found
    wide = invert_blocks(first.double(), across.double(), second.double())
    return tuple(part.to(first.dtype) for part in wide)  # type: ignore[return-value]


def invert_blocks(first: Tensor, across: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Blocks of the inverse of :math:`P = \begin{pmatrix} A & B^\top \\ B & C \end{pmatrix}`, and log|P|.

    With :math:`T = B A^{-1}` and :math:`\Sigma = C - T B^\top`,

    .. math:: P^{-1} = \begin{pmatrix} A^{-1} + T^\top \Sigma^{-1} T & -T^\top \Sigma^{-1} \\
              -\Sigma^{-1} T & \Sigma^{-1} \end{pmatrix}, \qquad \log|P| = \log|A| + \log|\Sigma|.

    Arguments:
        first: A, shape (C, H, H).
        across: B, shape (C, K, H).
        second: C, shape (C, K, K).
    """
    inner, log_first = inverse(first)
    t = across @ inner
    schur, log_second = inverse(torch.baddbmm(second, t, across.mT, alpha=-1))
    corner = torch.bmm(schur, t).neg_()
    return torch.baddbmm(inner, t.mT, corner, alpha=-1), corner, schur, log_first + log_second


def inverse(precision: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse and log-determinant of symmetric positive definite matrices (C, M, M), by Schur complements.

    Nearly all the work is batched matrix products, about twice as fast here as a batched Cholesky inverse. A matrix
    that is not positive definite gives NaN.

    Example:
        >>> inverse(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]))[0][0].diagonal().round(decimals=3).tolist()
        [0.5, 0.25]
    """
    size = precision.shape[-1]
    if size <= LEAF:
        factor, failed = torch.linalg.cholesky_ex(precision)
        log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if bool(failed.any()):  # cholesky_inverse refuses a zero pivot
            factor[failed > 0] = torch.nan
        return torch.cholesky_inverse(factor), log_determinant.masked_fill(failed > 0, torch.nan)
    half = size // 2
    found = torch.empty_like(precision)
    first, corner, second, log_determinant = invert_blocks(
        precision[:, :half, :half], precision[:, half:, :half], precision[:, half:, half:]
    )
    found[:, :half, :half], found[:, half:, half:] = first, second
    found[:, half:, :half], found[:, :half, half:] = corner, corner.mT
    return found, log_determinant
