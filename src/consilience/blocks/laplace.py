r"""Gauss-Newton inference of latent positions through sparse GP decoders, object by object.

Maximises, independently for every row,

.. math:: F(z) = \sum_d E_d\bigl(\mathrm{mean}_d(z), \mathrm{var}_d(z)\bigr) - \tfrac12 (z - a)^\top P (z - a)

and approximates the posterior around the maximum by the curvature
:math:`H = P + \sum_d w_d J_d J_d^\top`, :math:`J_d = \partial\,\mathrm{mean}_d/\partial z`,
:math:`w_d = -2\,\partial E_d/\partial\mathrm{var}_d`. Exact for linear kernels with Gaussian likelihoods and known
maps.
H leaves out the curvature of the variance and of the residuals, so that full steps often overshoot; a step is
:math:`H^{-1} \nabla F / \kappa`, with κ the curvature of F found along the step before it in units of H's, from the
slopes at its two ends.
The number of steps is fixed and κ is per row, so no row can change another's answer.

References:
    Two-point step size gradient methods (Barzilai & Borwein, 1988), here in the metric H.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.gp import SparseGP
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.products import product
from consilience.data.observations import Modality

__all__ = ["View", "gauss_newton"]


@dataclass(frozen=True, slots=True)
class View:
    """One modality as seen by inference: its decoder, its likelihood, its flat cells and the latents it reads.

    Arguments:
        gp: Decoder with D · functions outputs.
        likelihood: p(x | f).
        part: Cells of shape (B, D).
        columns: Latent dimensions that the decoder reads, shape (Q_m,).
    """

    gp: SparseGP
    likelihood: AbstractLikelihood
    part: Modality
    columns: Tensor

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the functions at rows of these latents (R, Q_m), each (R, D · functions)."""
        return self.gp.moments(self.gp.features(z))


@dataclass(frozen=True, slots=True)
class _Point:
    z: Tensor
    objective: Tensor
    gradient: Tensor
    curvature: Tensor


@torch.no_grad()
def gauss_newton(
    start: Tensor, views: Sequence[View], *, steps: int, mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """Maximum (B, Q) and curvature (B, Q, Q) of F after a fixed number of Gauss-Newton steps.

    Arguments:
        start: Where to begin, shape (B, Q).
        views: The modalities.
        steps: Number of proposals per row; one that lowers F is refused and the next is shorter.
        mean: a of the prior, shape (Q,).
        precision: P of the prior, shape (Q, Q).
    """
    roots = [view.gp.root() for view in views]
    here = _evaluate(start, views, roots, mean, precision)
    # curvature along the last step in units of Gauss-Newton's, which leaves out that of the variance and of residuals
    scale = torch.ones_like(start[:, 0])
    # 1e-3 nats in float32, below which rounding, and so the batch, would decide which steps are taken
    slack = 3 * torch.finfo(start.dtype).eps ** 0.5
    for _ in range(steps):
        factor = torch.linalg.cholesky_ex(here.curvature)[0]
        full = torch.cholesky_solve(here.gradient[..., None], factor)[..., 0]
        there = _evaluate(here.z + full / scale[:, None], views, roots, mean, precision)
        gain = there.objective - here.objective
        # where F no longer tells two points apart, the better one has the smaller slope: steps that overshoot the
        # optimum would bounce about it for ever, and amplify rounding each time
        left = torch.cholesky_solve(there.gradient[..., None], factor)[..., 0]
        steepness = (here.gradient * full).sum(-1)
        nearer = (there.gradient * left).sum(-1) < steepness
        better = torch.isfinite(there.objective) & ((gain > slack) | ((gain >= -slack) & nearer))
        secant = (scale * (1 - (there.gradient * full).sum(-1) / steepness)).nan_to_num(1.0)
        scale = torch.where(better, secant.clamp(1, 10), torch.maximum(secant, 4 * scale).clamp_max(1e8))
        here = _Point(
            *(
                torch.where(better.view(-1, *([1] * (new.ndim - 1))), new, old)
                for new, old in (
                    (there.z, here.z),
                    (there.objective, here.objective),
                    (there.gradient, here.gradient),
                    (there.curvature, here.curvature),
                )
            )
        )
    return here.z, here.curvature


def _evaluate(
    z: Tensor, views: Sequence[View], roots: Sequence[Tensor], prior_mean: Tensor, precision: Tensor
) -> _Point:
    away = z - prior_mean
    gradient = -product(away, precision)
    objective = 0.5 * (away * gradient).sum(-1)
    curvature = precision.expand(len(z), -1, -1).clone()
    for view, root in zip(views, roots, strict=True):
        at = z[:, view.columns]
        features = view.gp.features(at, root)
        with torch.enable_grad():
            a, rest = features.a.detach().requires_grad_(), features.rest.detach().requires_grad_()
            mean, variance = view.gp.moments(type(features)(a, rest))
            expected, g, h = view.likelihood.slopes(view.part, mean, variance)
            along_a, along_rest = torch.autograd.grad((mean, variance), (a, rest), (g, h))
        # rest = k(z, z) - |A|²
        j, slope = view.gp.slopes(at, along_a - 2 * along_rest[:, None] * features.a, root)
        slope = slope + along_rest[:, None] * view.gp.kernel.diagonal_slope(at).mT
        weight = view.likelihood.precision(view.part, mean, h)
        objective = objective + expected.sum(-1)
        gradient[:, view.columns] += slope
        block = (j * weight[:, None]) @ j.mT
        curvature[:, view.columns[:, None], view.columns[None]] += block
    return _Point(z, objective, gradient, curvature)
