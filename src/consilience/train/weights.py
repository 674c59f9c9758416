"""Weights of terms by name pattern and step; the only place where terms become one number."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from consilience.data.schema import Frozen
from consilience.errors import SchemaError, TrainingError
from consilience.models.base import PerObject, Term

__all__ = ["Ramp", "Weight", "objective", "weights_at"]


class Ramp(Frozen):
    """A weight that moves from one value to another between two steps, linearly or along a cosine."""

    start: float
    stop: float
    begin: int = 0
    end: int = Field(ge=1)
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, step: int) -> float:
        """The weight at a step.

        Example:
            >>> Ramp(start=0.0, stop=1.0, end=10).at(5)
            0.5
        """
        part = min(max((step - self.begin) / max(self.end - self.begin, 1), 0.0), 1.0)
        if self.shape == "cosine":
            part = 0.5 - 0.5 * math.cos(math.pi * part)
        return self.start + (self.stop - self.start) * part


Weight = float | Ramp


def weights_at(step: int, names: Iterable[str], weights: Mapping[str, Weight]) -> dict[str, float]:
    """Weight of every term at a step: 1 unless a pattern matches; the longest matching pattern wins.

    Raises:
        SchemaError: two patterns of the same length match one term.

    Example:
        >>> weights_at(0, ["nll/x", "kl/shared"], {"kl/*": 0.5})
        {'nll/x': 1.0, 'kl/shared': 0.5}
    """
    found = {}
    for name in names:
        matches = sorted((p for p in weights if fnmatch.fnmatchcase(name, p)), key=len, reverse=True)
        if len(matches) > 1 and len(matches[0]) == len(matches[1]):
            raise SchemaError(f"Expected one longest pattern for the term {name!r}; got {matches[:2]}. Drop one.")
        weight = weights[matches[0]] if matches else 1.0
        found[name] = weight.at(step) if isinstance(weight, Ramp) else float(weight)
    return found


def objective(terms: Mapping[str, Term], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of reduced terms, and each reduced term; a weight of 0 skips its term.

    Raises:
        TrainingError: a term is not finite; names it.
    """
    named = {name: term for name, term in terms.items() if weights[name] != 0}
    if not named:
        raise TrainingError("Expected at least one term with a weight; got none. Raise a weight above 0.")
    reduced = {name: term.value for name, term in named.items() if not isinstance(term, PerObject)}
    several = {name: term for name, term in named.items() if isinstance(term, PerObject)}
    if several:
        value = torch.stack([term.value for term in several.values()])
        rows = torch.stack([term.applies for term in several.values()]).to(value.dtype)
        means = (value * rows).sum(-1) / rows.sum(-1).clamp_min(1)
        reduced |= dict(zip(several, means, strict=True))
    each = torch.stack([reduced[name] for name in named])
    values = dict(zip(named, each.detach().tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            kind, _, detail = name.partition("/")
            raise TrainingError(
                f"Expected a finite term {name!r}; got {value} ({kind} of '{detail}'). "
                f"Check '{detail}' for extreme values or tiny error bars, or lower the learning rate."
            )
    total = (each * each.new_tensor([weights[name] for name in named])).sum()
    return total, values
