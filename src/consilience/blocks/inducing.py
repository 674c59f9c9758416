r"""Gaussian posteriors q(v_c) = N(m_c, S_c) over M whitened inducing values of C functions, in natural parameters.

With :math:`\Lambda_c = S_c^{-1}` and :math:`\theta_c = \Lambda_c m_c`, a step of rate ρ goes towards
:math:`\Lambda_c^* = I + s\sum_n w_{nc} A_n A_n^\top` and :math:`\theta_c^* = s\sum_n A_n y_{nc}`,
:math:`y_{nc} = g_{nc} + w_{nc} A_n^\top m_c`, with the slopes :math:`g = \partial E/\partial\mathrm{mean}` and
:math:`w = -2\,\partial E/\partial\mathrm{var}` of the expected log-likelihood E: a natural-gradient step, and for a
Gaussian likelihood, a full batch and rate 1 the collapsed optimum of Titsias (2009).

References:
    | Gaussian processes for big data (Hensman et al., 2013) | https://arxiv.org/abs/1309.6835
    | Natural gradients in practice (Salimbeni et al., 2018) | https://arxiv.org/abs/1803.09151
    | Conjugate-computation variational inference (Khan & Lin, 2017) | https://arxiv.org/abs/1703.04265
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from consilience.blocks.products import fill_up, product
from consilience.errors import DataError

__all__ = ["AbstractInducing", "CommonInducing", "Features", "SeparateInducing", "inverse", "invert_blocks"]

CHUNK = 64  # functions inverted together: a few megabytes, so that they stay in cache
FEW = 64  # functions up to which packing the features costs more than it saves
LEAF = 30  # below this a Cholesky factorisation is faster than another halving
ALIKE = 1e-4  # relative difference of weights that rounding explains


@dataclass(frozen=True, slots=True)
class Features:
    """What all functions share at latent positions z: whitened features and the variance they leave unexplained.

    Arguments:
        a: A_n, or its mean over a distribution of z, shape (B, M).
        rest: k(z, z) - |A|² or its mean, shape (B,).
        second: The mean of A_n A_nᵀ over a distribution of z, shape (B, M, M); None at a point.
    """

    a: Tensor
    rest: Tensor
    second: Tensor | None = None

    def outer(self, rows: slice, columns: slice) -> Tensor:
        """A block of (the mean of) A_n A_nᵀ, flattened, (B, rows · columns)."""
        if self.second is not None:
            return self.second[:, rows, columns].flatten(1)
        return (self.a[:, rows, None] * self.a[:, None, columns]).flatten(1)


class AbstractInducing(nn.Module, ABC):
    """q(v_c) of C functions; ``mean`` holds m_c, shape (C, M)."""

    mean: Tensor

    @abstractmethod
    def quadratic(self, features: Features) -> Tensor:
        """A_nᵀ S_c A_n or its mean, shape (B, C)."""

    @abstractmethod
    def divergence(self) -> Tensor:
        """KL(q(v_c) ‖ N(0, I)) of each function, shape (C,)."""

    @abstractmethod
    def step(self, features: Features, gradient: Tensor, precision: Tensor, *, scale: float, rate: float) -> None:
        """One natural-gradient step.

        Arguments:
            features: A_n of B rows.
            gradient: g, shape (B, C), zero where unseen.
            precision: w >= 0, shape (B, C), zero where unseen.
            scale: s, rows that each row of the batch stands for, over the weight of the KL.
            rate: ρ in (0, 1].
        """

    @abstractmethod
    def refresh(self) -> None:
        """Recompute what is derived from the natural parameters (after a step or a load)."""


class SeparateInducing(AbstractInducing):
    """A precision Λ_c for each function, whatever its cells' masks and error bars.

    Arguments:
        functions: C.
        size: M.
    """

    # Λ_c in blocks, of the first H = M // 2 inducing inputs, of the others with them, and of the others: what an
    # inverse by Schur complements reads, and three quarters of the whole
    first: Tensor  # (C, H, H)
    across: Tensor  # (C, M - H, H)
    second: Tensor  # (C, M - H, M - H)
    natural_mean: Tensor  # θ_c, shape (C, M)
    covariance: Tensor  # S_c packed: triangle of the first, across, triangle of the second, off-diagonal doubled
    log_determinant: Tensor  # log |Λ_c|, shape (C,)
    trace: Tensor  # tr S_c, shape (C,)
    dense: Tensor  # S_c, shape (C, M, M), where there are FEW functions, else empty
    rows: Tensor  # of each packed cell, shape (≥ M (M + 1) / 2,)
    columns: Tensor

    def __init__(self, functions: int, size: int) -> None:
        super().__init__()
        half = size // 2
        first, second = torch.tril_indices(half, half), torch.tril_indices(size - half, size - half) + half
        across = torch.cartesian_prod(torch.arange(half, size), torch.arange(half)).mT
        rows, columns = torch.cat([first, across, second], 1)
        self.split, self.cells = half, len(rows)
        # filled up with cells that stay zero, see products.py
        self.register_buffer("rows", fill_up(rows), persistent=False)
        self.register_buffer("columns", fill_up(columns), persistent=False)
        self.register_buffer("first", torch.eye(half).repeat(functions, 1, 1))
        self.register_buffer("across", torch.zeros(functions, size - half, half))
        self.register_buffer("second", torch.eye(size - half).repeat(functions, 1, 1))
        self.register_buffer("natural_mean", torch.zeros(functions, size))
        for name, shape in (("mean", (functions, size)), ("covariance", (functions, len(self.rows)))):
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        for name in ("log_determinant", "trace"):
            self.register_buffer(name, torch.zeros(functions), persistent=False)
        self.register_buffer("dense", torch.zeros(functions * (functions <= FEW), size, size), persistent=False)
        self.refresh()

    def quadratic(self, features: Features) -> Tensor:
        if features.second is None and len(self.dense):
            return _Quadratic.apply(features.a, self.dense)
        # A'SA as one GEMM over packed triangles, half the work of the full (B, M²) × (M², C)
        return product(self.packed(features), self.covariance)

    def _unpacked(self) -> Tensor:
        """S_c, shape (C, M, M)."""
        functions, size = self.mean.shape
        full = torch.zeros(functions, size, size, dtype=self.mean.dtype, device=self.mean.device)
        rows, columns = self.rows[: self.cells], self.columns[: self.cells]
        half = 0.5 * self.covariance[:, : self.cells]
        full[:, rows, columns] = half
        full[:, columns, rows] += half
        return full

    def packed(self, features: Features) -> Tensor:
        """Lower triangle of A_n A_nᵀ or its mean, filled up, shape (B, ≥ M (M + 1) / 2)."""
        if features.second is not None:
            return features.second.flatten(1).index_select(1, self.rows * self.mean.shape[1] + self.columns)
        return features.a.index_select(1, self.rows) * features.a.index_select(1, self.columns)

    def divergence(self) -> Tensor:
        size = self.mean.shape[1]
        return 0.5 * (self.trace + self.mean.square().sum(-1) - size + self.log_determinant)

    @torch.no_grad()
    def step(self, features: Features, gradient: Tensor, precision: Tensor, *, scale: float, rate: float) -> None:
        site = gradient + precision * (features.a @ self.mean.mT)
        self._step_precision(features, precision, scale * rate, rate)
        self.natural_mean.lerp_(scale * site.mT @ features.a, rate)
        self.refresh()

    @torch.no_grad()
    def step_coupled(
        self, features: Features, gradient: Tensor, coupling: Tensor, *, scale: float, rate: float
    ) -> None:
        """A step of functions that explain the same cells, one function after the other.

        All at once they would explain the same residual each, and overshoot; in turns no step of rate <= 1 can.

        Arguments:
            features: A_n of B rows, at points.
            gradient: g, shape (B, C).
            coupling: Second derivatives of -E along the functions' means, shape (B, C, C).
            scale: As in :meth:`step`.
            rate: As in :meth:`step`.
        """
        assert features.second is None, "means over z couple functions beyond their means"
        precision, a = coupling.diagonal(dim1=-2, dim2=-1), features.a
        site = gradient + precision * (a @ self.mean.mT)
        old = self.mean.clone()
        self._step_precision(features, precision, scale * rate, rate)
        self.refresh()
        covariance = self.dense if len(self.dense) else self._unpacked()
        for c in range(len(old)):
            self.natural_mean[c].lerp_(scale * site[:, c] @ a, rate)
            self.mean[c] = covariance[c] @ self.natural_mean[c]
            moved = a @ (self.mean[c] - old[c])
            site[:, c + 1 :] -= coupling[:, c, c + 1 :] * moved[:, None]
        self.refresh()  # a loaded model's means have the same bits

    def _step_precision(self, features: Features, precision: Tensor, gain: float, rate: float) -> None:
        """Λ ← (1 - ρ) Λ + ρ (I + s Σ_n w A Aᵀ) as GEMMs into the buffers."""
        head, tail = slice(None, self.split), slice(self.split, None)
        for block, rows, columns in ((self.first, head, head), (self.across, tail, head), (self.second, tail, tail)):
            square = features.outer(rows, columns)
            block.flatten(1).addmm_(precision.mT, square, beta=1 - rate, alpha=gain)
        for block in (self.first, self.second):
            block.diagonal(dim1=-2, dim2=-1).add_(rate)

    @property
    def natural_precision(self) -> Tensor:
        """Λ_c, shape (C, M, M)."""
        upper = torch.cat([self.first, self.across.mT], -1)
        return torch.cat([upper, torch.cat([self.across, self.second], -1)], -2)

    @torch.no_grad()
    def set_natural(self, precision: Tensor, mean: Tensor) -> None:
        """Make q(v) that of Λ (C, M, M) and θ (C, M)."""
        half = self.split
        self.first.copy_(precision[:, :half, :half])
        self.across.copy_(precision[:, half:, :half])
        self.second.copy_(precision[:, half:, half:])
        self.natural_mean.copy_(mean)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        half = self.split
        ends = self._triangle(half), self._triangle(self.mean.shape[1] - half)
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
        if len(self.dense):
            self.dense.copy_(self._unpacked())

    def _triangle(self, size: int) -> tuple[Tensor, Tensor]:
        """Flat places of a lower triangle, and how often each counts."""
        rows, columns = torch.tril_indices(size, size, device=self.mean.device)
        return rows * size + columns, torch.where(rows == columns, 1.0, 2.0).to(self.mean)


class CommonInducing(AbstractInducing):
    r"""Precisions that differ in one factor alone: :math:`\Lambda_c = I + w_c G`, with one eigendecomposition of G.

    So it is where all functions have their cells seen in the same rows and no error bars, :math:`w_{nc} = w_c` where
    row n is seen. :math:`G \leftarrow (1 - \rho) G + \rho s \sum_{n\,\mathrm{seen}} A_n A_n^\top` and
    :math:`t_c \leftarrow (1 - \rho) t_c + \rho s \sum_n A_n y_{nc} / w_c`; with :math:`G = V \mathrm{diag}(e) V^\top`,

    .. math:: S_c = V\,\mathrm{diag}\bigl(1/(1 + w_c e)\bigr) V^\top, \qquad m_c = w_c S_c t_c.

    Memory M² + C M instead of C M², one factorisation instead of C.

    Arguments:
        functions: C.
        size: M.
    """

    gram: Tensor  # G, shape (M, M)
    response: Tensor  # t_c, shape (C, M)
    weight: Tensor  # w_c, shape (C,)
    vectors: Tensor  # V, shape (M, M)
    shrinkage: Tensor  # 1 / (1 + w_c e), shape (C, M)

    def __init__(self, functions: int, size: int) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(size, size))
        self.register_buffer("response", torch.zeros(functions, size))
        self.register_buffer("weight", torch.ones(functions))
        self.register_buffer("vectors", torch.eye(size), persistent=False)
        self.register_buffer("shrinkage", torch.ones(functions, size), persistent=False)
        self.register_buffer("mean", torch.zeros(functions, size), persistent=False)

    def quadratic(self, features: Features) -> Tensor:
        if features.second is None:
            return product(product(features.a, self.vectors.mT).square(), self.shrinkage)
        rotated = ((features.second @ self.vectors) * self.vectors).sum(1)  # diagonal of Vᵀ E[A Aᵀ] V
        return product(rotated, self.shrinkage)

    def divergence(self) -> Tensor:
        trace, log_determinant = self.shrinkage.sum(-1), -self.shrinkage.log().sum(-1)
        return 0.5 * (trace + self.mean.square().sum(-1) - self.mean.shape[1] + log_determinant)

    @torch.no_grad()
    def step(self, features: Features, gradient: Tensor, precision: Tensor, *, scale: float, rate: float) -> None:
        seen = precision.amax(1) > 0
        if bool(seen.any()):
            weight = precision[seen].mean(0)
            away = (precision[seen] / weight - 1).abs()
            if not bool((away < ALIKE).all()):
                raise DataError(
                    "Expected cells that are seen all together and weigh the same in every row; got rows that differ. "
                    "Leave this modality out of `one_mask`."
                )
            self.weight.copy_(weight)
        some = features.a[seen]
        target = gradient[seen] / self.weight + some @ self.mean.mT
        gram = some.mT @ some if features.second is None else features.second[seen].sum(0)
        self.gram.lerp_(scale * gram, rate)
        self.response.lerp_(scale * target.mT @ some, rate)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        values, vectors = torch.linalg.eigh(self.gram.double())
        shrinkage = 1 / (1 + self.weight.double()[:, None] * values.clamp_min(0))
        mean = (self.weight[:, None] * (self.response.double() @ vectors) * shrinkage) @ vectors.mT
        for buffer, new in ((self.vectors, vectors), (self.shrinkage, shrinkage), (self.mean, mean)):
            buffer.copy_(new)


class _Quadratic(torch.autograd.Function):
    """aᵀ S_c a of rows a (B, M) and symmetric constants S (C, M, M), shape (B, C); its slope 2 Σ_c g_c S_c a."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        mapped = product(a, s)  # (C, B, M)
        ctx.save_for_backward(mapped)
        return (mapped * a).sum(-1).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (mapped,) = ctx.saved_tensors
        return 2 * (gradient.mT[..., None] * mapped).sum(0), None


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
