"""Where a GP latent variable model begins: factor analysis, inducing inputs among the latents, one step of q(u)."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from consilience.blocks.factors import FactorPosterior, fit_factors
from consilience.blocks.gp import SparseGP
from consilience.blocks.kernels import AbstractKernel, Linear
from consilience.blocks.laplace import View
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.posteriors import AmortisedPosterior, LocalPosterior, from_precision
from consilience.data.observations import Observations
from consilience.models.base import slot

__all__ = ["fit_start", "linear_start"]

ROWS = 4000  # rows that the start looks at; more change it little


class _Startable(Protocol):
    encoder: AmortisedPosterior | None
    factors: FactorPosterior | None
    locals: LocalPosterior | None
    columns: Mapping[str, Tensor]
    total: int
    size: int
    decoders: nn.ModuleDict

    def pseudo(self, obs: Observations) -> tuple[Tensor, Tensor, Tensor]: ...

    def views(self, obs: Observations) -> dict[str, View]: ...


@torch.no_grad()
def fit_start(model: _Startable, target: Observations, *, shared: int) -> None:
    """Set encoder, latents, noise, constants, kernels, inducing inputs and q(u) from the training table."""
    stride = max(1, -(-len(target) // ROWS))
    some = target[slice(None, None, stride)]
    value, known, seen = model.pseudo(some)
    cells = _cells(model)
    loadings, offset, noise = linear_start(value, known, seen, cells, model.columns, shared=shared)
    factors = model.encoder.factors if model.encoder is not None else model.factors
    assert factors is not None
    factors.loadings.copy_(loadings)
    factors.offset.copy_(offset)
    factors.log_noise.copy_(noise.log())
    if model.locals is not None:
        _start_locals(model.locals, factors, model.pseudo(target))
    posterior = from_precision(*factors(value, known, seen))
    z = posterior.draw(torch.randn(1, *posterior.mean.shape).to(posterior.mean))[0]
    for name, view in model.views(some).items():
        c = cells[name]
        if view.gp.basis is not None:
            noise[c] = _start_basis(view.gp.basis, value[:, c], known[:, c], seen[:, c])
        _start_decoder(view, z[:, view.columns], loadings[c], offset[c], noise[c])
        # one step is the optimum of Gaussian cells, unless functions that share them move in turns
        steps = 5 if not isinstance(view.likelihood, Gaussian) else 1 if view.gp.basis is None else 3
        for _ in range(steps):
            features = view.gp.features(z[:, view.columns])
            mean, variance = view.gp.moments(features)
            _, g, h = view.likelihood.slopes(view.part, mean, variance)
            w = view.likelihood.precision(view.part, mean, h)
            view.gp.natural_step(features, g, w, scale=model.total / len(some), rate=1.0)


def linear_start(
    value: Tensor,
    known: Tensor,
    seen: Tensor,
    cells: Mapping[str, slice],
    columns: Mapping[str, Tensor],
    *,
    shared: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loadings (D, Q), offsets and noise variances (D,) of a factor analysis with shared and private factors.

    The shared factors come first; the private ones of a modality are those of what the shared ones leave of it.

    Arguments:
        value: Gaussian look-alikes of all modalities side by side, shape (N, D).
        known: Their known variances.
        seen: Where they count.
        cells: Columns of ``value`` of each modality.
        columns: Factors that each modality reads, the shared ones first.
        shared: Number of shared factors.
    """
    size = max(int(some.max()) + 1 for some in columns.values() if len(some))
    start = fit_factors(value, known, seen, factors=shared)
    loadings = torch.zeros(value.shape[1], size, dtype=value.dtype)
    loadings[:, :shared] = start.loadings
    noise = start.log_noise.exp()
    mean, _ = start(value, known, seen)
    residual = value - start.offset - mean @ start.loadings.mT
    for name, some in columns.items():
        own, c = some[shared:], cells[name]
        if len(own):
            private = fit_factors(residual[:, c], known[:, c], seen[:, c], factors=len(own))
            loadings[c, own[0] : own[-1] + 1] = private.loadings
            noise[c] = private.log_noise.exp()
    return loadings, start.offset.detach(), noise.detach()


def _start_decoder(view: View, z: Tensor, loadings: Tensor, offset: Tensor, noise: Tensor) -> None:
    gp = view.gp
    count = len(gp.inducing)
    order = torch.randperm(len(z))[:count]
    chosen = z[order]
    if len(chosen) < count:  # fewer objects than inducing inputs: fill up from the prior
        chosen = torch.cat([chosen, torch.randn(count - len(chosen), z.shape[1], dtype=z.dtype)])
    gp.inducing.copy_(chosen)
    gp.constant.copy_(view.likelihood.start(offset, noise))
    strength = loadings[:, view.columns].square().mean(0).clamp_min(1e-4)
    for kernel in _leaves(gp.kernel):
        if isinstance(kernel, Linear):
            kernel.log_variance.copy_(strength.log())


def _start_basis(basis: Tensor, value: Tensor, known: Tensor, seen: Tensor) -> Tensor:
    """Principal axes of a factor analysis with as many factors as functions; what noise it leaves, shape (D,)."""
    found = fit_factors(value, known, seen, factors=basis.shape[1])
    noise = found.log_noise.exp()
    # orthogonal in units of the noise: the functions' posteriors, taken one by one, then hardly depend on each other
    _, _, axes = torch.linalg.svd(found.loadings / noise.sqrt()[:, None], full_matrices=False)
    basis.copy_(found.loadings @ axes.mT)
    return noise


def _start_locals(locals_: LocalPosterior, factors: FactorPosterior, pseudo: tuple[Tensor, Tensor, Tensor]) -> None:
    posterior = from_precision(*factors(*pseudo))
    locals_.mean.copy_(posterior.mean)
    if locals_.form == "point" or posterior.factor is None:
        return
    if locals_.form == "diagonal":
        locals_.log_scale.copy_(posterior.std.log())
        return
    scale = posterior.factor.diagonal(dim1=-2, dim2=-1)
    locals_.log_scale.copy_(scale.log())
    locals_.lower.copy_(torch.tril(posterior.factor / scale[..., None], -1))


def _cells(model: _Startable) -> dict[str, slice]:
    found, offset = {}, 0
    for name in model.columns:
        gp = model.decoders[slot(name)]
        assert isinstance(gp, SparseGP)
        found[name] = slice(offset, offset + gp.constant.numel())
        offset += gp.constant.numel()
    return found


def _leaves(kernel: AbstractKernel) -> list[AbstractKernel]:
    return [module for module in kernel.modules() if isinstance(module, AbstractKernel)]
