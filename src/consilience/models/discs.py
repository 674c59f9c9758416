"""What a model with physics decoders does outside its bounds: how discs begin, how well they fit, and the best ones."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from consilience.blocks.descent import descend
from consilience.blocks.disc_fit import DiscFit
from consilience.blocks.fusion import AbstractExperts
from consilience.blocks.physics import Disc
from consilience.blocks.posteriors import DiagonalLatent
from consilience.data.observations import Observations
from consilience.models.base import slot
from consilience.models.latent import Blocks, flat
from consilience.models.layout import Layout

__all__ = ["disc_start", "refined_discs", "settle_discs"]

STEPS, BATCH = 300, 64
RATE = 3e-3  # of learning
SOME = 128  # rows from which it is learned how well discs fit


class _WithDiscs(Protocol):
    layout: Layout
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict
    discs: nn.ModuleDict
    fits: nn.ModuleDict

    def discs_of(self) -> Mapping[str, Disc]: ...
    def kept(self, rows: Observations) -> Tensor: ...
    def experts(self, context: Observations) -> tuple[AbstractExperts, Tensor]: ...
    def heeded(self, experts: AbstractExperts, seen: Tensor) -> AbstractExperts: ...
    def posterior(self, experts: AbstractExperts, seen: Tensor) -> Blocks: ...


def disc_start(model: _WithDiscs, target: Observations) -> None:
    """Fit the typical disc, then train on discs alone for some hundred steps.

    A decoder whose network learns first explains galaxies without a disc, and the disc stays what it was.
    """
    parameters: list[nn.Parameter] = []
    for name, disc in model.discs_of().items():
        part, key = flat(target.parts[name]), slot(name)
        disc.begin(part.value, part.measured)
        parameters += [*model.encoders[key].parameters(), *disc.parameters(), *model.discs[key].parameters()]

    def loss() -> Tensor:
        return model.kept(target[torch.randperm(len(target))[:BATCH].numpy()])

    if parameters:
        with torch.enable_grad():
            descend(parameters, loss, steps=STEPS, rate=RATE)


def settle_discs(model: _WithDiscs, rows: Observations) -> None:
    """Learn how well discs fit from the first rows."""
    some = rows[:SOME]
    experts, seen = model.experts(some)
    experts = model.heeded(experts, seen)
    q = model.posterior(experts, seen)
    for number, (name, part) in enumerate(some.parts.items()):
        if name in model.discs_of():
            fit, disc, _, begin, prior = _known(model, name, number, q, experts, seen)
            fit.learn(disc, flat(part), begin, prior)


def refined_discs(
    model: _WithDiscs, q: Blocks, experts: AbstractExperts, seen: Tensor, context: Observations
) -> DiagonalLatent:
    """The posterior of all latents with that of discs from their images in linear flux."""
    assert isinstance(q, DiagonalLatent), "a product of diagonal experts, or discs are refused"
    mean, std = q.mean.clone(), q.std.clone()
    for number, (name, part) in enumerate(context.parts.items()):
        if name in model.discs_of():
            fit, disc, columns, begin, prior = _known(model, name, number, q, experts, seen)
            found = fit.refined(disc, flat(part), begin, prior)
            mean[:, columns], std[:, columns] = found.mean, found.std
    return DiagonalLatent(mean, std)


def _known(
    model: _WithDiscs, name: str, number: int, q: Blocks, experts: AbstractExperts, seen: Tensor
) -> tuple[DiscFit, Disc, Tensor, DiagonalLatent, DiagonalLatent]:
    """A disc, its latents, what all modalities say of them, and what all but its own say."""
    columns, others = model.layout.some(f"physics_{name}").to(seen.device), seen.clone()
    others[number] = False
    begin, prior = q.block(columns), experts.product(others).block(columns)
    assert isinstance(begin, DiagonalLatent), "or physics is refused"
    assert isinstance(prior, DiagonalLatent), "or physics is refused"
    return model.fits[slot(name)], model.discs_of()[name], columns, begin, prior  # type: ignore[return-value]
