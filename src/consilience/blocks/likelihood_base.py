r"""Likelihoods :math:`p(x \mid f)` of one modality's cells, given Gaussian functions :math:`f \sim N(\mu, v)`.

Each gives the expected log-likelihood :math:`E = E_{N(\mu, v)} \log p(x \mid f)`, its slopes
:math:`g = \partial E/\partial\mu` and :math:`h = \partial E/\partial v`, the log predictive density
:math:`\log \int p(x \mid f) N(f; \mu, v)\,\mathrm df` and draws. The measured error bar s adds to the learned variance.
Unseen cells give exactly zero.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from consilience.blocks.noise import Noise
from consilience.data.observations import Modality, State
from consilience.errors import DataError, RequestError

__all__ = ["FLOOR", "AbstractLikelihood", "inside", "known_variance"]

FLOOR = 1e-6  # smallest learned variance, in squared model units


class AbstractLikelihood(nn.Module, ABC):
    """p(x | f) over the D cells of a modality; ``functions`` latent functions per cell."""

    functions: int = 1
    takes_limits: bool = False

    @abstractmethod
    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        """E log p(x | f) of each cell, (B, D), or (…, B, D) of moments (…, B, D · functions); zero where unseen."""

    @abstractmethod
    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        """Log of ∫ p(x | f) N(f) df of each cell, shape (B, D); zero where unseen."""

    @abstractmethod
    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        """Draws of x without measurement error, shape (S, B, D), from moments of shape (S, B, D · functions)."""

    @abstractmethod
    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        """A Gaussian look-alike of the data on the scale of f: value and known variance, each (B, D · functions)."""

    def expectation(self, f: Tensor) -> Tensor:
        """E[x | f] of each cell, per unit of exposure, shape (S, B, D)."""
        raise RequestError(f"Expected a likelihood whose mean is a number; got {type(self).__name__}. Use draws.")

    def conjugate(self, part: Modality) -> bool:
        """Whether the slopes do not depend on the variance of f, so that one natural step of rate 1 is the optimum."""
        return False

    def precision(self, part: Modality, mean: Tensor, h: Tensor) -> Tensor:
        """w >= 0 of a natural-gradient or Gauss-Newton step, from the slope h; shape (B, D · functions)."""
        return (-2 * h).clamp_min(0)

    def start(self, offset: Tensor, noise: Tensor) -> Tensor:
        """Take the noise of a linear fit to :meth:`pseudo`; the constants at which the functions begin.

        Arguments:
            offset: Constants of that fit, shape (D · functions,).
            noise: Its residual variances, shape (D · functions,).
        """
        return offset

    def learn(self, part: Modality, mean: Tensor, variance: Tensor, rate: float) -> None:  # noqa: B027
        """Move what has a closed-form optimum given the moments of f, at this rate; nothing by default."""

    def refuse_limits(self, name: str, part: Modality) -> None:
        """Nothing where it can score every cell of the modality.

        Raises:
            DataError: the modality has limits and the likelihood takes none.
        """
        if not self.takes_limits and bool((part.state > State.MEASURED).any()):
            raise DataError(
                f"Expected no limits in '{name}' under the {type(self).__name__} likelihood; got some. Use gaussian."
            )

    def slopes(self, part: Modality, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (B, D) and its slopes g = ∂E/∂μ and h = ∂E/∂v, each (B, D · functions)."""
        with torch.enable_grad():
            mean, variance = mean.detach().requires_grad_(), variance.detach().requires_grad_()
            expected = self.expected(part, mean, variance)
            g, h = torch.autograd.grad(expected.sum(), (mean, variance))
        return expected.detach(), g, h


def known_variance(part: Modality) -> Tensor:
    """s² of each cell, zero without error bars, shape (B, D)."""
    return torch.zeros_like(part.value) if part.sigma is None else part.sigma.square()


def inside(u: Tensor) -> Tensor:
    """Uniforms off the two ends, where quantile functions are infinite."""
    return u.clamp(1e-12, 1 - 1e-12) if u.dtype == torch.float64 else u.clamp(1e-7, 1 - 1e-7)
