r"""Covariance functions :math:`k(a, b)` over latent positions, with automatic relevance determination (ARD).

Hyper-parameters are stored as logarithms, so they stay positive without a constraint.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from consilience.blocks.products import product
from consilience.errors import SchemaError

__all__ = ["RBF", "AbstractKernel", "Linear", "Matern", "Periodic", "Product", "Sum", "build_kernel"]


class AbstractKernel(nn.Module, ABC):
    """A covariance function over R^Q."""

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Gram matrix k(a, b), shape (M, B), of a (M, Q) and b (B, Q)."""

    @abstractmethod
    def diagonal(self, a: Tensor) -> Tensor:
        """k(a, a) point by point, shape (B,)."""

    @abstractmethod
    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        """∂k(a, b)/∂b, shape (Q, M, B)."""

    @abstractmethod
    def diagonal_slope(self, a: Tensor) -> Tensor:
        """∂k(a, a)/∂a, shape (Q, B)."""

    @abstractmethod
    def relevance(self) -> Tensor:
        """How fast the function varies along each latent dimension, shape (Q,)."""


class _Stationary(AbstractKernel, ABC):
    def __init__(self, dim: int, lengthscale: float = 1.0, variance: float = 1.0) -> None:
        super().__init__()
        self.log_lengthscale = nn.Parameter(torch.full((dim,), math.log(lengthscale)))
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)))

    def diagonal(self, a: Tensor) -> Tensor:
        return self.log_variance.exp().expand(len(a))

    def relevance(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance - self.log_lengthscale)

    def diagonal_slope(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a.mT)

    def _difference(self, a: Tensor, b: Tensor) -> Tensor:
        """(a - b) / ℓ², shape (Q, M, B)."""
        inverse = torch.exp(-2 * self.log_lengthscale)[:, None, None]
        return (a.mT[:, :, None] - b.mT[:, None, :]) * inverse

    def _squared_distance(self, a: Tensor, b: Tensor) -> Tensor:
        # |a|² + |b|² - 2 a·b about a common centre: one GEMM, and no cancellation from a shared offset
        inverse = torch.exp(-self.log_lengthscale)
        centre = a.mean(0)
        a, b = (a - centre) * inverse, (b - centre) * inverse
        return (a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * product(b, a).mT).clamp_min(0)


class RBF(_Stationary):
    r"""Squared exponential :math:`\rho \exp(-\tfrac12 \sum_q (a_q - b_q)^2 / \ell_q^2)`.

    Example:
        >>> RBF(dim=1)(torch.zeros(1, 1), torch.zeros(1, 1)).item()
        1.0
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(self.log_variance - 0.5 * self._squared_distance(a, b))

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        return self(a, b) * self._difference(a, b)

    def expectations(self, a: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        r"""Means of k(a, z) and k(a, z) k(a', z) over :math:`z_n \sim N(\mu_n, \Sigma_n)`, (M, B) and (B, M, M).

        With :math:`\Lambda = \mathrm{diag}(\ell^2)`, :math:`\bar a = (a + a')/2`,

        .. math::
            E\,k = \rho\,|I + \Lambda^{-1}\Sigma|^{-1/2} e^{-\frac12 (\mu - a)^\top (\Lambda + \Sigma)^{-1} (\mu - a)},
            \qquad
            E\,k k' = \rho^2\,|I + 2\Lambda^{-1}\Sigma|^{-1/2} e^{-\frac14 |(a - a')/\ell|^2
            - (\mu - \bar a)^\top (\Lambda + 2\Sigma)^{-1} (\mu - \bar a)}.

        Arguments:
            a: Inputs, shape (M, Q).
            mean: μ, shape (B, Q).
            factor: L with Σ = L Lᵀ, shape (B, Q, any).

        References:
            Bayesian Gaussian process latent variable model (Titsias & Lawrence, 2010), for diagonal Σ.
        """
        scale = torch.exp(-self.log_lengthscale)
        a, mean, factor = a * scale, mean * scale, factor * scale[:, None]
        away = mean[:, None] - a  # (B, M, Q), in units of ℓ
        covariance = factor @ factor.mT
        identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        one, two = (torch.linalg.cholesky(identity + times * covariance) for times in (1, 2))
        log_one, log_two = (root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in (one, two))
        square = torch.linalg.solve_triangular(one, away.mT, upper=False).square().sum(-2)  # (B, M)
        first = torch.exp(self.log_variance - log_one[:, None] - 0.5 * square)
        # with r = (I + 2 Σ)^-1/2 (μ - a) the exponent at the middle is ¼ |r + r'|²
        r = torch.linalg.solve_triangular(two, away.mT, upper=False).mT
        length = r.square().sum(-1)
        middle = 0.25 * (length[:, :, None] + length[:, None] + 2 * r @ r.mT)
        apart = 0.25 * (a[:, None] - a).square().sum(-1)
        second = torch.exp(2 * self.log_variance - log_two[:, None, None] - middle - apart)
        return first.mT, second


class Matern(_Stationary):
    r"""Matérn covariance with smoothness ν = ½, 3/2 or 5/2.

    :math:`r = |(a-b)/\ell|`; ½: :math:`\rho e^{-r}`; 3/2: :math:`\rho(1+\sqrt3 r)e^{-\sqrt3 r}`;
    5/2: :math:`\rho(1+\sqrt5 r+\tfrac53 r^2)e^{-\sqrt5 r}`.

    References:
        Gaussian Processes for Machine Learning (Rasmussen & Williams, 2006), eq. 4.14-4.17.

    Example:
        >>> Matern(dim=1, nu=1.5)(torch.zeros(1, 1), torch.zeros(1, 1)).item()
        1.0
    """

    def __init__(
        self, dim: int, nu: float = 2.5, lengthscale: float = 1.0, variance: float = 1.0
    ) -> None:
        super().__init__(dim, lengthscale, variance)
        if nu not in (0.5, 1.5, 2.5):
            raise SchemaError(f"Expected nu among 0.5, 1.5 and 2.5; got {nu}.")
        self.nu = nu

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        square = self._squared_distance(a, b)
        r = torch.sqrt(square + 1e-20)  # the gradient of sqrt at 0 is infinite
        s = math.sqrt(2 * self.nu) * r
        factor = {0.5: torch.ones_like(s), 1.5: 1 + s, 2.5: 1 + s + s.square() / 3}[self.nu]
        # exactly ρ at r = 0, which the regularised root misses for ν = ½
        return torch.where(square > 0, self.log_variance.exp() * factor * torch.exp(-s), self.log_variance.exp())

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        s = math.sqrt(2 * self.nu) * torch.sqrt(self._squared_distance(a, b) + 1e-20)
        # -k'(s) / s, which stays finite at s = 0 for ν > ½ (for ν = ½ the cusp is given slope 0 by the difference)
        factor = {0.5: 1 / s, 1.5: torch.ones_like(s), 2.5: (1 + s) / 3}[self.nu]
        weight = self.log_variance.exp() * 2 * self.nu * factor * torch.exp(-s)
        return weight * self._difference(a, b)


class Linear(AbstractKernel):
    r"""Linear covariance :math:`\sum_q \rho_q a_q b_q`.

    Example:
        >>> Linear(dim=2)(torch.ones(1, 2), torch.ones(1, 2)).item()
        2.0
    """

    def __init__(self, dim: int, variance: float = 1.0) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.full((dim,), math.log(variance)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return product(b, a * self.log_variance.exp()).mT

    def diagonal(self, a: Tensor) -> Tensor:
        return (a.square() * self.log_variance.exp()).sum(-1)

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * self.log_variance.exp()).mT[:, :, None].expand(a.shape[1], len(a), len(b))

    def diagonal_slope(self, a: Tensor) -> Tensor:
        return 2 * (a * self.log_variance.exp()).mT

    def relevance(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance)


class Periodic(AbstractKernel):
    r"""Periodic covariance :math:`\rho \exp(-2 \sum_q \sin^2(\pi (a_q - b_q)/p_q) / \ell_q^2)`.

    References:
        MacKay, Introduction to Gaussian processes (1998).
    """

    def __init__(self, dim: int, period: float = 1.0, lengthscale: float = 1.0, variance: float = 1.0) -> None:
        super().__init__()
        self.log_period = nn.Parameter(torch.full((dim,), math.log(period)))
        self.log_lengthscale = nn.Parameter(torch.full((dim,), math.log(lengthscale)))
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference = (a[:, None] - b[None]) / self.log_period.exp()
        sine = torch.sin(math.pi * difference) / self.log_lengthscale.exp()
        return torch.exp(self.log_variance - 2 * sine.square().sum(-1))

    def diagonal(self, a: Tensor) -> Tensor:
        return self.log_variance.exp().expand(len(a))

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        period = self.log_period.exp()
        phase = (2 * math.pi * (a[:, None] - b[None]) / period).permute(2, 0, 1)
        weight = 2 * math.pi / period * torch.exp(-2 * self.log_lengthscale)
        return self(a, b) * torch.sin(phase) * weight[:, None, None]

    def diagonal_slope(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a.mT)

    def relevance(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance - self.log_lengthscale)


class Sum(AbstractKernel):
    """k(a, b) = Σ_i k_i(a, b)."""

    def __init__(self, *kernels: AbstractKernel) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([kernel(a, b) for kernel in self.kernels]).sum(0)

    def diagonal(self, a: Tensor) -> Tensor:
        return torch.stack([kernel.diagonal(a) for kernel in _kernels(self)]).sum(0)

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([kernel.slope(a, b) for kernel in _kernels(self)]).sum(0)

    def diagonal_slope(self, a: Tensor) -> Tensor:
        return torch.stack([kernel.diagonal_slope(a) for kernel in _kernels(self)]).sum(0)

    def relevance(self) -> Tensor:
        return torch.stack([kernel.relevance() ** 2 for kernel in _kernels(self)]).sum(0).sqrt()


class Product(AbstractKernel):
    """k(a, b) = Π_i k_i(a, b)."""

    def __init__(self, *kernels: AbstractKernel) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([kernel(a, b) for kernel in self.kernels]).prod(0)

    def diagonal(self, a: Tensor) -> Tensor:
        return torch.stack([kernel.diagonal(a) for kernel in _kernels(self)]).prod(0)

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        values = [kernel(a, b) for kernel in _kernels(self)]
        return _product_rule(values, [kernel.slope(a, b) for kernel in _kernels(self)])

    def diagonal_slope(self, a: Tensor) -> Tensor:
        values = [kernel.diagonal(a) for kernel in _kernels(self)]
        return _product_rule(values, [kernel.diagonal_slope(a) for kernel in _kernels(self)])

    def relevance(self) -> Tensor:
        return torch.stack([kernel.relevance() ** 2 for kernel in _kernels(self)]).sum(0).sqrt()


def build_kernel(expression: str, dim: int) -> AbstractKernel:
    """Kernel of an expression such as ``"rbf"``, ``"linear+rbf"`` or ``"rbf*periodic"`` (products bind first).

    Raises:
        SchemaError: an unknown kernel name.

    Example:
        >>> type(build_kernel("linear + matern32", dim=2)).__name__
        'Sum'
    """
    makers = {
        "rbf": lambda: RBF(dim, lengthscale=math.sqrt(dim)),
        "matern12": lambda: Matern(dim, 0.5, lengthscale=math.sqrt(dim)),
        "matern32": lambda: Matern(dim, 1.5, lengthscale=math.sqrt(dim)),
        "matern52": lambda: Matern(dim, 2.5, lengthscale=math.sqrt(dim)),
        "linear": lambda: Linear(dim),
        "periodic": lambda: Periodic(dim, period=4.0),
    }
    terms: list[AbstractKernel] = []
    for term in expression.replace(" ", "").split("+"):
        factors: list[AbstractKernel] = []
        for name in term.split("*"):
            if name not in makers:
                raise SchemaError(f"Expected kernels among {sorted(makers)}, joined by + and *; got {expression!r}.")
            factors.append(makers[name]())
        terms.append(factors[0] if len(factors) == 1 else Product(*factors))
    return terms[0] if len(terms) == 1 else Sum(*terms)


def _product_rule(values: list[Tensor], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for i, slope in enumerate(slopes):
        others = [value for j, value in enumerate(values) if j != i]
        total = total + slope * torch.stack(others).prod(0)
    return total


def _kernels(parent: Sum | Product) -> list[AbstractKernel]:
    return [kernel for kernel in parent.kernels if isinstance(kernel, AbstractKernel)]
