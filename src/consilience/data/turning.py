"""Images turned and mirrored at random: what training may know of objects that have no preferred direction."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from consilience.data.observations import Modality, Observations
from consilience.data.schema import Schema
from consilience.errors import SchemaError

__all__ = ["refuse_turns", "turned", "turns"]


def turns(side: int) -> Tensor:
    """Where the pixels of a square image come from when it is turned by each quarter, mirrored or not, (8, side²).

    Example:
        >>> turns(2)[:2].tolist()
        [[0, 1, 2, 3], [1, 3, 0, 2]]
    """
    plain = torch.arange(side * side).view(side, side)
    quarters = [plain.rot90(number) for number in range(4)]
    return torch.stack([*quarters, *(one.flip(-1) for one in quarters)]).flatten(1)


def refuse_turns(schema: Schema, names: Sequence[str]) -> None:
    """Nothing where these are square images.

    Raises:
        RequestError: a modality that the table has not.
        SchemaError: one that is no square image.
    """
    for name in names:
        shape = schema[name].shape
        if len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            raise SchemaError(
                f"Expected square images (H, H) or (C, H, H) to augment; got '{name}' of shape {shape}. Drop it."
            )


def turned(obs: Observations, names: Sequence[str], generator: torch.Generator) -> Observations:
    """The table (tensors) with the images of every row turned by a random quarter and mirrored or not.

    All images of a row turn together, in all bands, with their error bars and gaps.
    """
    if not names:
        return obs
    which = torch.randint(8, (len(obs),), generator=generator)
    return replace(obs, parts={n: _turned(part, which) if n in names else part for n, part in obs.parts.items()})


def _turned(part: Modality, which: Tensor) -> Modality:
    index = turns(part.value.shape[-1])[which].to(part.value.device)[:, None]

    def moved(array: Tensor) -> Tensor:
        if array.ndim < 3:  # one number per row
            return array
        bands = array.reshape(len(array), -1, index.shape[-1])
        return bands.gather(-1, index.expand(bands.shape)).view(array.shape)

    return part.map(moved)
