r"""Sparse variational Gaussian processes: functions that share a kernel and M inducing inputs.

With whitened inducing values :math:`v_c = L^{-1} u_c`, :math:`q(v_c) = N(m_c, S_c)`,
:math:`LL^\top = K_{uu}` and :math:`A_n = L^{-1} k_u(z_n)`, a function has

.. math::
    \mathrm{mean}_{nc} = A_n^\top m_c, \qquad
    \mathrm{var}_{nc} = k(z_n, z_n) - |A_n|^2 + A_n^\top S_c A_n.

Outputs are the functions themselves plus a constant, :math:`f_d = c_d + h_d`, or, in a linear model of
coregionalisation, mixtures of K of them: :math:`f_d = c_d + \sum_k W_{dk} h_k`, whose posterior factorises over k.

References:
    | Variational learning of inducing variables in sparse Gaussian processes (Titsias, 2009)
    | Gaussian processes for big data (Hensman et al., 2013) | https://arxiv.org/abs/1309.6835
    | Kernels for vector-valued functions: a review (Álvarez et al., 2012) | https://arxiv.org/abs/1106.6251
"""

import torch
from torch import Tensor, nn

from consilience.blocks.inducing import CommonInducing, Features, SeparateInducing
from consilience.blocks.kernels import RBF, AbstractKernel
from consilience.blocks.products import product

__all__ = ["SparseGP"]

JITTER = 1e-6


class SparseGP(nn.Module):
    """D sparse GPs with one kernel and shared inducing inputs.

    Arguments:
        kernel: Covariance over R^Q.
        inducing: Inducing inputs, shape (M, Q).
        outputs: D.
        functions: K functions that the outputs mix; one for each output by default.
        common: Whether all cells are seen together and without error bars, see :class:`CommonInducing`.
    """

    basis: Tensor | None  # W, shape (D, K)

    def __init__(
        self,
        kernel: AbstractKernel,
        inducing: Tensor,
        outputs: int,
        *,
        functions: int | None = None,
        common: bool = False,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.inducing = nn.Parameter(inducing.clone())
        self.constant = nn.Parameter(torch.zeros(outputs))
        basis = None if functions is None else nn.Parameter(torch.eye(outputs, functions))
        self.register_parameter("basis", basis)
        maker = CommonInducing if common else SeparateInducing
        self.q: CommonInducing | SeparateInducing = maker(functions or outputs, len(inducing))

    def features(self, z: Tensor, root: Tensor | None = None) -> Features:
        """Shared features of z (B, Q); ``root`` saves the factorisation where it is known."""
        k = self.kernel(self.inducing, z)
        a = torch.linalg.solve_triangular(self.root() if root is None else root, k.double(), upper=False).to(k.dtype).mT
        return Features(a, (self.kernel.diagonal(z) - a.square().sum(-1)).clamp_min(0))

    def expected_features(self, mean: Tensor, factor: Tensor) -> Features:
        r"""Means of the features over :math:`z_n \sim N(\mu_n, L_n L_n^\top)`, the Ψ-statistics of an RBF kernel.

        Arguments:
            mean: μ, shape (B, Q).
            factor: L, shape (B, Q, any).
        """
        assert isinstance(self.kernel, RBF), "only the RBF kernel has these means"
        first, second = self.kernel.expectations(self.inducing, mean, factor)
        root = self.root()
        a = torch.linalg.solve_triangular(root, first.double(), upper=False).to(mean.dtype).mT
        half = torch.linalg.solve_triangular(root, second.double(), upper=False)
        both = torch.linalg.solve_triangular(root, half.mT, upper=False).to(mean.dtype)
        rest = self.kernel.diagonal(mean) - both.diagonal(dim1=-2, dim2=-1).sum(-1)
        return Features(a, rest.clamp_min(0), both)

    def root(self) -> Tensor:
        """L, shape (M, M), in float64: a rank-deficient gram (linear kernel, M > Q) drowns in float32 rounding."""
        inducing = self.inducing.double()
        gram = self.kernel(inducing, inducing)
        level = JITTER * gram.diagonal().mean().detach()
        return torch.linalg.cholesky(gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))

    def slopes(self, z: Tensor, along: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives along z of the means of f, (B, Q, D), and of A_nᵀ v_n for vectors v (B, M), (B, Q)."""
        slope = self.kernel.slope(self.inducing, z).permute(2, 1, 0).contiguous()  # ∂k_u / ∂z, (B, M, Q)
        vectors = torch.cat([self.q.mean, along]).double().mT
        # L⁻ᵀ v once for a vector instead of L⁻¹ ∂k for Q derivatives of every row
        back = torch.linalg.solve_triangular(root.mT, vectors, upper=True).to(slope.dtype).mT
        count = len(self.q.mean)
        functions = product(slope.mT, back[:count])
        means = functions if self.basis is None else product(functions, self.basis)
        return means, (slope.mT @ back[count:, :, None])[..., 0]

    def moments(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and variance of f at the features, each (B, D); over z too where the features are means over z."""
        variance = features.rest[:, None] + self.q.quadratic(features)
        if features.second is not None:
            assert self.basis is None, "means over z couple functions beyond their means"
            square = ((features.second @ self.q.mean.mT) * self.q.mean.mT).sum(1)
            variance = variance + (square - product(features.a, self.q.mean).square()).clamp_min(0)
        if self.basis is not None:
            variance = product(variance, self.basis.square())
        return self.mean_at(features), variance.clamp_min(1e-10)

    def mean_at(self, features: Features) -> Tensor:
        """Mean of f at the features, (B, D), alone: without the variance, most of the cost of :meth:`moments`."""
        functions = product(features.a, self.q.mean)
        return self.constant + (functions if self.basis is None else product(functions, self.basis))

    def divergence(self) -> Tensor:
        """KL(q(v_c) ‖ N(0, I)) of each function, shape (C,); constant in the parameters that Adam moves."""
        return self.q.divergence()

    @torch.no_grad()
    def natural_step(
        self, features: Features, gradient: Tensor, precision: Tensor, *, scale: float, rate: float
    ) -> None:
        r"""Move q(v) by one natural-gradient step of the given rate, see inducing.py.

        Mixed functions have :math:`g W` and the coupling :math:`W^\top \mathrm{diag}(w_n) W`, by the chain rule.

        Arguments:
            features: A_n of B rows.
            gradient: :math:`g = \partial E/\partial\mathrm{mean}`, shape (B, D), zero where unseen.
            precision: :math:`w = -2\,\partial E/\partial\mathrm{var} \ge 0`, shape (B, D), zero where unseen.
            scale: Rows that each row of the batch stands for, over the weight of the KL.
            rate: In (0, 1].
        """
        if self.basis is None:
            self.q.step(features, gradient, precision, scale=scale, rate=rate)
        else:
            assert isinstance(self.q, SeparateInducing), "mixed functions have precisions that differ"
            pairs = (self.basis[:, :, None] * self.basis[:, None, :]).flatten(1)
            coupling = (precision @ pairs).unflatten(1, self.basis.shape[1:] * 2)
            self.q.step_coupled(features, gradient @ self.basis, coupling, scale=scale, rate=rate)

    def refresh(self) -> None:
        """Recompute what is derived from q(v), after it was loaded."""
        self.q.refresh()
