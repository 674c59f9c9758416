"""Where a physics decoder begins: the typical disc, and an encoder that tells discs apart."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from consilience.blocks.physics import PhysicsDecoder
from consilience.data.observations import Observations
from consilience.models.base import Term, slot
from consilience.models.latent import flat

__all__ = ["disc_start"]

STEPS, BATCH = 300, 64
RATE, LONGEST = 3e-3, 100.0  # learning rate, and the norm of a slope


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
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    with torch.enable_grad():
        for step in range(STEPS):
            some = alone[torch.randperm(len(target))[:BATCH].numpy()]
            loss = torch.stack([term.value.mean() for term in model.disc_terms(name, some).values()]).sum()
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, LONGEST)
            optimiser.step()
