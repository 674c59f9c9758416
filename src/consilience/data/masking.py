"""Ways to hide cells in training: what a model sees (context) of what is known (target)."""

from abc import abstractmethod
from dataclasses import replace
from typing import Literal

import torch

from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import Frozen

__all__ = ["AbstractPolicy", "HideCells", "HideGaps", "HideModalities", "HidePatterns", "Policy", "conceal"]


def conceal(part: Modality, hide: torch.Tensor) -> Modality:
    """Scaled cells with those in ``hide`` (B, *event) unseen and filled neutrally, without a trace."""
    hide = hide & (part.state != State.ABSENT)

    def fill(array: torch.Tensor | None, value: float) -> torch.Tensor | None:
        return None if array is None else array.masked_fill(hide, value)

    return Modality(
        fill(part.value, 0.0),
        part.state.masked_fill(hide, State.UNSEEN),
        fill(part.sigma, 1.0),
        fill(part.coord, 0.0),
        fill(part.exposure, 1.0),
        part.extent,
    )


class AbstractPolicy(Frozen):
    """A random choice of cells to hide: target (scaled tensors) -> context."""

    @abstractmethod
    def hide(self, target: Observations, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """True where a cell is hidden, shape (B, *event) per modality; absent names are left alone."""

    def __call__(self, target: Observations, generator: torch.Generator) -> Observations:
        """The context: the target with the chosen cells concealed."""
        hidden = self.hide(target, generator)
        parts = {name: conceal(part, hidden[name]) if name in hidden else part for name, part in target.parts.items()}
        return replace(target, parts=parts)


class HideModalities(AbstractPolicy):
    """Hide each modality of a row with some probability, never all of them at once.

    With ``names`` only these are ever hidden.
    """

    kind: Literal["modalities"] = "modalities"
    probability: float = 0.3
    names: tuple[str, ...] = ()

    def hide(self, target: Observations, generator: torch.Generator) -> dict[str, torch.Tensor]:
        names = self.names or target.schema.names
        rows = len(target)
        drawn = torch.rand(rows, len(names), generator=generator) < self.probability
        if set(names) == set(target.schema.names):
            keep = torch.randint(len(names), (rows,), generator=generator)
            drawn[torch.arange(rows), keep] = False
        return {name: _rows(drawn[:, i], target.parts[name]) for i, name in enumerate(names)}


class HideCells(AbstractPolicy):
    """Hide each cell independently with some probability."""

    kind: Literal["cells"] = "cells"
    fraction: float = 0.2
    names: tuple[str, ...] = ()

    def hide(self, target: Observations, generator: torch.Generator) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.names or target.schema.names:
            state = target.parts[name].state
            found[name] = (torch.rand(state.shape, generator=generator) < self.fraction).to(state.device)
        return found


class HideGaps(AbstractPolicy):
    """Hide one contiguous run per row along the last event axis, of at most ``fraction`` of its length."""

    kind: Literal["gaps"] = "gaps"
    fraction: float = 0.3
    names: tuple[str, ...] = ()

    def hide(self, target: Observations, generator: torch.Generator) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.names or target.schema.names:
            state = target.parts[name].state
            size, lead = state.shape[-1], (len(state), *([1] * (state.ndim - 1)))
            length = torch.rand(lead, generator=generator) * self.fraction * size
            start = torch.rand(lead, generator=generator) * size - 0.5 * length
            cells = torch.arange(size)
            found[name] = ((cells >= start) & (cells < start + length)).expand(state.shape).to(state.device)
        return found


class HidePatterns(AbstractPolicy):
    """Give a row, with some probability, the pattern of gaps of another row of the batch: the survey's own."""

    kind: Literal["patterns"] = "patterns"
    probability: float = 0.5

    def hide(self, target: Observations, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if all(bool(part.seen.all()) for part in target.parts.values()):
            return {}
        rows = len(target)
        other = torch.randperm(rows, generator=generator)
        chosen = torch.rand(rows, generator=generator) < self.probability
        return {name: _rows(chosen, part) & ~part.seen[other] for name, part in target.parts.items()}


Policy = HideModalities | HideCells | HideGaps | HidePatterns


def _rows(chosen: torch.Tensor, part: Modality) -> torch.Tensor:
    return chosen.view(-1, *([1] * (part.state.ndim - 1))).expand(part.state.shape).to(part.state.device)
