r"""How many neighbouring cells a decoder's misfit is shared by.

What a decoder cannot explain of a spectrum varies smoothly, while the measured noise does not. With residuals
:math:`r_{nd} = \delta_{nd} + e_{nd}`, independent errors e of variance s² and a misfit δ of variance σ_d² whose
autocorrelation at lag k is :math:`\rho_k`, a smooth function of the cells is worse determined than independent cells
say, as if :math:`\sigma_d^2` were larger by

.. math:: c = 1 + 2 \sum_{k \ge 1} \rho_k, \qquad
    \hat\rho_k = \frac{\sum_{nd} \omega\, r_{nd}\, r_{n,d+k}}{\sum_{nd} \omega\, \sigma_d \sigma_{d+k}}, \qquad
    \omega = \frac{1}{\tau_{nd}\, \tau_{n,d+k}}, \quad \tau = \sigma_d^2 + s_{nd}^2 .

A few strange objects would dominate such sums, so the rows of largest χ² per cell, one in ten, are left out.

Products at a lag contain no error variance, so the measured error bars are left as they are.

References:
    | Practical Markov chain Monte Carlo (Geyer, 1992), for the initial positive sequence that ends the sum
    | Constructing a flexible likelihood function for spectroscopic inference (Czekala et al., 2015)
"""

import torch
from torch import Tensor

__all__ = ["correlated_cells"]

USUAL = 0.9  # share of the rows that count


def correlated_cells(residual: Tensor, seen: Tensor, learned: Tensor, known: Tensor) -> float:
    """c >= 1, the number of cells that share a misfit, summing lags until the first that is not positive.

    Arguments:
        residual: r, shape (N, D), in the order of the axis.
        seen: Cells that count, shape (N, D).
        learned: σ_d², shape (D,).
        known: s², shape (N, D).

    Example:
        >>> white = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
        >>> ones = torch.ones_like(white)
        >>> correlated_cells(white, ones > 0, ones[0], 0 * ones) < 1.1
        True
    """
    weight = torch.where(seen, 1 / (learned + known), 0.0).double()
    count = seen.sum(-1)
    strangeness = (weight * residual.double().square()).sum(-1) / count.clamp_min(1)
    usual = strangeness <= torch.quantile(strangeness, USUAL)
    weight = weight * usual[:, None]
    scaled, scale = weight * residual.double(), weight * learned.sqrt().double()
    total = 1.0
    for lag in range(1, residual.shape[1] // 2):
        product = (scaled[:, lag:] * scaled[:, :-lag]).sum()
        rho = float(product / (scale[:, lag:] * scale[:, :-lag]).sum().clamp_min(1e-30))
        if rho <= 0:
            break
        total += 2 * min(rho, 1.0)
    return total
