"""Convolutional networks of spectra (D,) and of images (H, W) or (C, H, W): readers, and decoders that mirror them.

Every layer halves the sides of an image, or quarters a spectrum, and doubles the channels, until the shortest side is
at most four or there are four of them. None normalises: statistics of a batch would couple objects, and those of one
object lose how bright it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consilience.blocks.networks import Perceptron

__all__ = ["ConvolutionDecoder", "ConvolutionReader"]

LAYERS, SHORTEST = 4, 4
STRIDES = {1: 4, 2: 2}  # by the number of sides
CONVOLUTIONS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d)}


@dataclass(frozen=True, slots=True)
class _Plan:
    """Channels and sides before the first layer and after each."""

    channels: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[int], channels: int) -> "_Plan":
        """For one event shape, with so many channels after the first layer."""
        sides = [tuple(shape[-2:])]
        stride = STRIDES[len(sides[0])]
        while len(sides) <= LAYERS and min(sides[-1]) > SHORTEST:
            sides.append(tuple(-(-side // stride) for side in sides[-1]))
        own = shape[0] if len(shape) == 3 else 1
        return cls((own, *(channels * 2**layer for layer in range(len(sides) - 1))), tuple(sides))

    @property
    def stride(self) -> int:
        return STRIDES[len(self.sides[0])]


class ConvolutionReader(nn.Module):
    """Convolutions of the cells and of what is missing of them, then two dense layers.

    Arguments:
        shape: Event shape: (D,), (H, W) or (C, H, W).
        functions: Numbers per cell.
        channels: After the first convolution.
        hidden: Width of the dense layer.
        outputs: Number of outputs.

    Example:
        >>> reader = ConvolutionReader((3, 16, 16), 1, channels=4, hidden=8, outputs=5)
        >>> reader(torch.zeros(2, 768), torch.zeros(2, 768)).shape
        torch.Size([2, 5])
    """

    def __init__(self, shape: Sequence[int], functions: int, *, channels: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.plan, self.functions = _Plan.of(shape, channels), functions
        stride, sizes = self.plan.stride, list(self.plan.channels)
        sizes[0] *= 2 * functions
        kind = CONVOLUTIONS[len(self.plan.sides[0])][0]
        self.layers = nn.ModuleList(
            kind(a, b, 2 * stride, stride=stride) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        for layer in self.layers:
            _begin(layer, layer.in_channels * (2 * stride) ** len(self.plan.sides[0]))  # type: ignore[operator]
        self.last = Perceptron(math.prod(self.plan.sides[-1]) * sizes[-1], hidden, outputs)
        if self.layers:
            with torch.no_grad():
                self.layers[0].weight[:, sizes[0] // 2 :] = 0.0  # type: ignore[operator, index]

    def forward(self, value: Tensor, missing: Tensor) -> Tensor:
        """(B, outputs) from cells (B, D · functions) and how far each is missing, from 0 to 1."""
        both = torch.stack([value, missing], 1)
        wide = both.unflatten(-1, (self.plan.channels[0], *self.plan.sides[0], self.functions))
        x = wide.movedim(-1, 2).flatten(1, 3)
        stride = self.plan.stride
        for layer, sides, after in zip(self.layers, self.plan.sides, self.plan.sides[1:], strict=False):
            # windows are two strides long and centred on one
            ends = [(stride // 2, stride * b - a + stride // 2) for a, b in zip(sides, after, strict=True)]
            padded = nn.functional.pad(x, [n for end in reversed(ends) for n in end])
            x = nn.functional.silu(layer(_laid_out(padded)))
        return self.last(x.flatten(1))


class ConvolutionDecoder(nn.Module):
    """Two dense layers, then transposed convolutions, and an offset of every cell.

    Arguments:
        latents: Number of inputs.
        shape: Event shape: (D,), (H, W) or (C, H, W).
        functions: Outputs per cell.
        channels: Before the last convolution.
        hidden: Width of the dense layer.

    Example:
        >>> ConvolutionDecoder(2, (3, 16, 16), 1, channels=4, hidden=8)(torch.zeros(5, 2)).shape
        torch.Size([5, 768])
    """

    def __init__(self, latents: int, shape: Sequence[int], functions: int, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.plan, self.functions = _Plan.of(shape, channels), functions
        stride, sizes = self.plan.stride, list(self.plan.channels)
        sizes[0] *= functions
        kind = CONVOLUTIONS[len(self.plan.sides[0])][1]
        self.first = Perceptron(latents, hidden, math.prod(self.plan.sides[-1]) * sizes[-1])
        self.layers = nn.ModuleList(
            kind(b, a, 2 * stride, stride=stride, padding=stride // 2, bias=layer > 0)
            for layer, (a, b) in reversed(list(enumerate(zip(sizes[:-1], sizes[1:], strict=True))))
        )
        for layer in self.layers:
            _begin(layer, layer.in_channels * 2 ** len(self.plan.sides[0]))  # type: ignore[operator]
        self.offset = nn.Parameter(torch.zeros(math.prod(shape) * functions))

    def forward(self, z: Tensor) -> Tensor:
        """(R, latents) to (R, D · functions)."""
        x = self.first(z).unflatten(-1, (-1, *self.plan.sides[-1]))
        for layer, sides in zip(self.layers, reversed(self.plan.sides[:-1]), strict=True):
            x = layer(_laid_out(nn.functional.silu(x)))[(..., *(slice(side) for side in sides))]
        wide = x.unflatten(1, (self.plan.channels[0], self.functions)).movedim(2, -1)
        return wide.flatten(1) + self.offset

    @torch.no_grad()
    def begin(self, offset: Tensor) -> None:
        """Take the outputs that are given before anything is learned, about which others are small."""
        self.offset.copy_(offset)


def _laid_out(x: Tensor) -> Tensor:
    """With the channels of an image's pixel side by side, as convolutions are quickest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _begin(layer: nn.Module, inputs: int) -> None:
    """Weights for outputs as wide as the inputs."""
    nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))  # type: ignore[arg-type]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
