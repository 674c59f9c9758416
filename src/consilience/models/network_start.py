"""Where networks of one latent vector per object begin: at the means of all cells, or near a factor analysis."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from consilience.blocks.descent import descend
from consilience.blocks.fusion import AbstractExperts, FullExperts
from consilience.blocks.posteriors import DiagonalLatent, GaussianLatent
from consilience.data.masking import conceal
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.models.base import slot
from consilience.models.common_start import Look, Start, common_start
from consilience.models.latent import Decodes, flat
from consilience.models.layout import Layout

__all__ = ["network_start", "placed"]

FEW = 2000  # rows, of fewer a factor analysis begins
CELLS = 25_000_000  # that it looks at, at most
ELEMENTS = 40_000_000  # of matrices by row that it holds
COARSE = 256  # cells of an image or a spectrum in the factor analysis, about
STEPS, BATCH = 300, 128  # of the networks
RATE = 5e-3  # their learning rate


class _Startable(Protocol):
    schema: Schema
    layout: Layout
    size: int
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict

    def experts(self, context: Observations) -> tuple[AbstractExperts, Tensor]: ...

    def views(self) -> Mapping[str, Decodes]: ...

    def completed(self, z: Tensor, q: DiagonalLatent | GaussianLatent) -> Tensor: ...

    def kept(self, rows: Observations) -> Tensor: ...


@torch.no_grad()
def network_start(model: _Startable, target: Observations, *, shared: int) -> None:
    """Decoders begin at the mean and the scatter of every cell; in small tables, networks near a factor analysis.

    Of some hundreds of rows the bound alone may leave all latents at the prior. In large tables the other start is the
    worse one: where blocks are larger than they need to be, linear factors stand for one curved latent each, and stay.
    """
    if len(target) >= FEW:
        for name, view in model.views().items():
            _begin(model, name, Look.of(view.likelihood, flat(target.parts[name])).alone(0))
    else:
        _near_factors(model, target, shared=shared)


def _begin(model: _Startable, name: str, found: Start) -> None:
    offset = model.views()[name].likelihood.start(found.offset, found.noise)
    model.decoders[slot(name)].begin(offset)  # type: ignore[operator]


def _near_factors(model: _Startable, target: Observations, *, shared: int) -> None:
    """Train encoders and decoders on draws of the latents of a factor analysis, for a few hundred steps.

    Its shared factors are what the modalities have in common, its private ones what that leaves of each. Images and
    spectra of more than ``COARSE`` cells are averaged over neighbours for the analysis.
    """
    most = min(ELEMENTS // model.size**2, max(1, CELLS // sum(spec.size for spec in model.schema.modalities)))
    some = target[slice(None, None, max(1, -(-len(target) // most)))]
    views = model.views()
    looks, coarse = {}, {}
    for name, part in some.parts.items():
        likelihood = views[name].likelihood
        looks[name] = Look.of(likelihood, flat(part))
        coarse[name] = looks[name].coarse(model.schema[name].shape, likelihood.functions, COARSE)
    sizes = {name: len(model.layout.factors(name)) for name in model.schema.names}
    shifts, precisions = [], []
    for name, found in common_start(coarse, sizes, shared, linear=set(looks)).items():
        _begin(model, name, found if coarse[name] is looks[name] else looks[name].alone(0))
        c, look, columns = found.loadings, coarse[name], model.layout.factors(name).to(found.loadings.device)
        weight = torch.where(look.seen, 1 / (found.noise + look.known), 0.0)
        outer = (c[:, :, None] * c[:, None, :]).flatten(1)
        shifts.append(placed((weight * (look.value - found.offset)) @ c, columns, model.size))
        precisions.append(placed((weight @ outer).unflatten(1, (c.shape[1], c.shape[1])), columns, model.size))
    experts = FullExperts(torch.stack(shifts), torch.stack(precisions))
    q = experts.product(torch.ones_like(experts.shift[..., 0], dtype=torch.bool))
    with torch.enable_grad():
        _towards(model, q, some)


def _towards(model: _Startable, q: GaussianLatent, target: Observations) -> None:
    """Train the networks on draws of the latents of these rows; encoders see any share of the cells."""
    assert q.factor is not None, "a Gaussian"
    mean, factor = q.mean, q.factor

    def loss() -> Tensor:
        rows = torch.randperm(len(target))[:BATCH]
        some, at = target[rows.numpy()], rows.to(mean.device)
        experts, seen = model.experts(_thinned(some))
        normal = torch.randn(1, len(at), model.size).to(mean)
        z = GaussianLatent(mean[at], factor[at]).draw(normal)[0].to(experts.shift)
        value = model.kept(some)
        for number, (name, view) in enumerate(model.views().items()):
            alone = torch.zeros_like(seen)
            alone[number] = seen[number]
            columns, single = model.layout.factors(name).to(z.device), experts.product(alone)
            own = model.completed(z, single)[:, view.columns.to(z.device)]
            drawn = view.likelihood.expected(flat(some.parts[name]), *view.moments(own)).sum(-1)
            read = single.block(columns).log_prob(z[:, columns])
            value = value - torch.where(seen[number], drawn + read, 0.0).mean()
        return value

    descend([*model.encoders.parameters(), *model.decoders.parameters()], loss, steps=STEPS, rate=RATE)


def _thinned(rows: Observations) -> Observations:
    """With a random share of the cells of each modality of every other row hidden."""
    parts = {}
    for name, part in rows.parts.items():
        share = torch.rand(len(rows), *[1] * (part.value.ndim - 1))
        share[::2] = 0.0
        parts[name] = conceal(part, (torch.rand(part.value.shape) < share).to(part.value.device))
    return replace(rows, parts=parts)


def placed(array: Tensor, columns: Tensor, size: int) -> Tensor:
    """Elements (B, Q_m) or (B, Q_m, Q_m) of some latents among all Q, zero elsewhere."""
    if array.ndim == 2:
        return array.new_zeros(len(array), size).index_copy(1, columns, array)
    wide = array.new_zeros(*array.shape[:2], size).index_copy(2, columns, array)
    return array.new_zeros(len(array), size, size).index_copy(1, columns, wide)
