r"""Factor analysis of incomplete data with known error bars: the linear start of every latent model.

.. math:: y_{nd} = b_d + w_d^\top z_n + \epsilon_{nd}, \qquad \epsilon_{nd} \sim N(0, \psi_d + s_{nd}^2), \qquad
          z_n \sim N(0, I_Q).

Given any subset of seen cells the posterior of z is Gaussian with precision
:math:`I + \sum_{d\ \mathrm{seen}} w_d w_d^\top / (\psi_d + s_{nd}^2)`: a product of one expert per cell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consilience.blocks.products import product

__all__ = ["FactorPosterior", "canonical_scores", "fit_factors", "fit_loadings"]

FLOOR = 1e-4  # smallest noise variance in model units


class FactorPosterior(nn.Module):
    """The posterior of z given any subset of D cells, with learnable loadings, offsets and noise.

    Arguments:
        loadings: w_d, shape (D, Q).
        offset: b_d, shape (D,).
        noise: ψ_d > 0, shape (D,).
        trainable: Whether the three are parameters, or buffers that only start an optimisation.
    """

    loadings: Tensor
    offset: Tensor
    log_noise: Tensor

    def __init__(self, loadings: Tensor, offset: Tensor, noise: Tensor, *, trainable: bool = True) -> None:
        super().__init__()
        for name, array in (("loadings", loadings), ("offset", offset), ("log_noise", noise.log())):
            if trainable:
                self.register_parameter(name, nn.Parameter(array.clone()))
            else:
                self.register_buffer(name, array.clone())

    def forward(self, value: Tensor, known: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, Q) and precision (B, Q, Q) of z.

        Arguments:
            value: y, shape (B, D), finite everywhere.
            known: s², shape (B, D).
            seen: True where a cell counts, shape (B, D).
        """
        weight = torch.where(seen, 1 / (self.log_noise.exp() + FLOOR + known), 0.0)
        return _posterior(self.loadings, weight, value - self.offset)


def fit_factors(value: Tensor, known: Tensor, seen: Tensor, *, factors: int, iterations: int = 40) -> FactorPosterior:
    """Maximum-likelihood factor analysis by expectation-maximisation, in float64.

    The loadings have a standard normal prior, so a cell that nobody saw gets none. The step for ψ is Fisher scoring of
    the additive variance.

    References:
        Parameter expansion to accelerate EM: the PX-EM algorithm (Liu, Rubin & Wu, 1998).

    Example:
        >>> y = torch.randn(50, 1) @ torch.ones(1, 3)
        >>> start = fit_factors(y, torch.zeros_like(y), torch.ones_like(y, dtype=torch.bool), factors=1)
        >>> start.loadings.shape
        torch.Size([3, 1])
    """
    y, s, mask = value.double(), known.double(), seen.double()
    count = mask.sum(0).clamp_min(1)
    offset = (mask * y).sum(0) / count
    centred = mask * (y - offset)
    noise = (centred.square().sum(0) / count).clamp_min(FLOOR)
    loadings = _principal(centred, factors)
    identity = torch.eye(factors, dtype=y.dtype, device=y.device)
    for _ in range(iterations):
        weight = mask / (noise + s)
        mean, precision = _posterior(loadings, weight, y - offset)
        second = torch.linalg.inv(precision) + mean[:, :, None] * mean[:, None, :]  # E z zᵀ, (N, Q, Q)
        gram = (weight.mT @ second.flatten(1)).unflatten(1, (factors, factors))
        loadings = torch.linalg.solve(gram + identity, ((weight * (y - offset)).mT @ mean)[..., None])[..., 0]
        fitted = mean @ loadings.mT
        offset = (weight * (y - fitted)).sum(0) / weight.sum(0).clamp_min(1e-12)
        spread = second.flatten(1) @ (loadings[:, :, None] * loadings[:, None, :]).flatten(1).mT
        residual = (y - offset).square() - 2 * (y - offset) * fitted + spread  # E (y - b - w·z)²
        strength = weight.square()
        noise = ((strength * (residual - s)).sum(0) / strength.sum(0).clamp_min(1e-12)).clamp_min(FLOOR)
        noise = torch.where(mask.sum(0) > 0, noise, 1.0)
        # z is N(0, I) again: without this expanded parameter EM rescales the latents ever so slowly
        loadings = loadings @ torch.linalg.cholesky(second.mean(0))
    like = value.dtype
    return FactorPosterior(loadings.to(like), offset.to(like), noise.to(like))


def canonical_scores(scores: Sequence[Tensor], size: int) -> Tensor:
    r"""What several views have most in common: scores (N, size) of unit mean square.

    The leading left singular vectors of the orthonormal bases of all views side by side, that is, those s that maximise
    the sum over views of the share of s that the view explains.

    Arguments:
        scores: One (N, K_m) per view.
        size: At most the sum of the K_m.

    References:
        Canonical analysis of several sets of variables (Kettenring, 1971), its MAXVAR form.

    Example:
        >>> common = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]])
        >>> other = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        >>> found = canonical_scores([torch.cat([common, other], 1), common], 1)
        >>> torch.allclose(found.abs() / found.abs().max(), common.abs())
        True
    """
    bases = []
    for one in scores:
        left, singular, _ = torch.linalg.svd(one - one.mean(0), full_matrices=False)
        bases.append(left[:, singular > 1e-6 * singular[:1].clamp_min(1e-12)])
    left = torch.linalg.svd(torch.cat(bases, 1), full_matrices=False)[0]
    found = left.new_zeros(len(left), size)
    found[:, : left.shape[1]] = left[:, :size]
    return found * len(left) ** 0.5


def fit_loadings(scores: Tensor, centred: Tensor, weight: Tensor) -> Tensor:
    """Loadings (D, Q) of known scores (N, Q) with a standard normal prior, from values and precisions (N, D)."""
    second = (scores[:, :, None] * scores[:, None, :]).flatten(1)
    gram = (weight.mT @ second).unflatten(1, (scores.shape[1], scores.shape[1]))
    identity = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
    return torch.linalg.solve(gram + identity, ((weight * centred).mT @ scores)[..., None])[..., 0]


def _posterior(loadings: Tensor, weight: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
    factors = loadings.shape[1]
    outer = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)
    identity = torch.eye(factors, dtype=loadings.dtype, device=loadings.device)
    precision = identity + product(weight, outer.mT).unflatten(1, (factors, factors))
    right = product(weight * centred, loadings.mT)
    mean = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(precision))[..., 0]
    return mean, precision


def _principal(centred: Tensor, factors: int) -> Tensor:
    """Leading principal directions with their standard deviations; zero columns where there are fewer."""
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    rank = min(factors, len(singular))
    loadings = torch.zeros(centred.shape[1], factors, dtype=centred.dtype, device=centred.device)
    loadings[:, :rank] = (right[:rank] * singular[:rank, None]).mT / len(centred) ** 0.5
    # a direction without data would stay at zero for ever
    return loadings + 1e-3 * torch.cos(torch.arange(loadings.numel(), dtype=loadings.dtype).view_as(loadings))
