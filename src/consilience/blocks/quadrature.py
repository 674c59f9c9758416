r"""Gauss-Hermite averages over a Gaussian function: :math:`E_{N(\mu, v)}\, h(f) \approx \sum_k \omega_k\, h(f_k)`.

References:
    Abramowitz & Stegun (1972), section 25.4.46.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["FEW", "MANY", "average", "log_average", "nodes"]

MANY, FEW = 20, 8  # nodes of one function, and of each of two
RULES = {count: np.polynomial.hermite_e.hermegauss(count) for count in (MANY, FEW)}


def nodes(mean: Tensor, variance: Tensor, count: int = MANY) -> Tensor:
    """Nodes f_k on a new leading axis, shape (count, *mean.shape).

    Example:
        >>> value = nodes(torch.tensor(1.0), torch.tensor(4.0)).square()
        >>> round(float(average(value)), 3)  # μ² + v
        5.0
    """
    x = torch.as_tensor(RULES[count][0]).to(mean).view(-1, *([1] * mean.ndim))
    return mean + variance.sqrt() * x


def average(values: Tensor) -> Tensor:
    """Σ_k ω_k h(f_k) over the leading axis."""
    return (_weights(values) * values).sum(0)


def log_average(values: Tensor) -> Tensor:
    """log Σ_k ω_k exp h(f_k) over the leading axis."""
    return torch.logsumexp(values + _weights(values).log(), 0)


def _weights(like: Tensor) -> Tensor:
    weights = torch.as_tensor(RULES[len(like)][1] / math.sqrt(2 * math.pi)).to(like)
    return weights.view(-1, *([1] * (like.ndim - 1)))
