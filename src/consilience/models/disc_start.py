"""Where a physics decoder begins: the typical disc, and an encoder that tells discs apart."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from consilience.blocks.physics import PhysicsDecoder
from consilience.data.observations import Observations
from consilience.models.base import Term, slot
from consilience.models.descent import descend
from consilience.models.latent import flat

__all__ = ["disc_start"]

STEPS, BATCH = 300, 64
RATE = 3e-3  # of learning


class _WithDiscs(Protocol):
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict
    discs: nn.ModuleDict

    def disc_terms(self, name: str, alone: Observations) -> Mapping[str, Term]: ...


def disc_start(model: _WithDiscs, name: str, target: Observations) -> None:
    """Fit the typical disc, then train on discs alone for some hundred steps.

    A decoder whose network learns first explains galaxies without a disc, and the disc stays what it was.
    """
    key = slot(name)
    decoder: PhysicsDecoder = model.decoders[key]  # type: ignore[assignment]
    alone = target.select(name)
    part = flat(alone.parts[name])
    decoder.disc.begin(part.value, part.measured)
    parameters = [*model.encoders[key].parameters(), *decoder.disc.parameters(), *model.discs[key].parameters()]

    def loss() -> Tensor:
        some = alone[torch.randperm(len(target))[:BATCH].numpy()]
        return torch.stack([term.value.mean() for term in model.disc_terms(name, some).values()]).sum()

    with torch.enable_grad():
        descend(parameters, loss, steps=STEPS, rate=RATE)
