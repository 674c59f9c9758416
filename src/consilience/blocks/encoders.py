"""Networks that read the cells of one modality of an object into factors of its latents, and those that draw them."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from consilience.blocks.convolutions import ConvolutionDecoder, ConvolutionReader
from consilience.blocks.networks import Perceptron, affine
from consilience.errors import SchemaError

__all__ = ["Architecture", "Decoder", "FactorEncoder", "Form", "Kind", "cell_weights"]

Form = Literal["likelihood", "posterior", "plain"]
Kind = Literal["dense", "linear", "conv"]
SHARPEST = 14.0  # largest log precision of a factor


class Decoder(Protocol):
    """Functions of every cell (R, D · functions) of latents (R, Q)."""

    def __call__(self, z: Tensor) -> Tensor: ...

    def begin(self, offset: Tensor) -> None:
        """Take the functions that are given before anything is learned."""
        ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """Networks of one modality.

    Arguments:
        kind: "dense", two hidden layers; "linear", none; "conv", convolutions along a spectrum or over an image.
        shape: Event shape of the modality.
        functions: Functions of every cell.
        hidden: Width of dense layers.
        channels: After the first convolution.

    Raises:
        SchemaError: convolutions of an event of no or more than three axes.
    """

    kind: Kind
    shape: tuple[int, ...]
    functions: int
    hidden: int
    channels: int

    def __post_init__(self) -> None:
        if self.kind == "conv" and not 1 <= len(self.shape) <= 3:
            raise SchemaError(
                f"Expected an event shape (D,), (H, W) or (C, H, W) for convolutions; got {self.shape}. "
                "Say networks = 'dense'."
            )

    @property
    def cells(self) -> int:
        """Functions of all cells."""
        return math.prod(self.shape) * self.functions

    def reader(self, outputs: int) -> nn.Module:
        """Of cells, and of how far each is missing."""
        if self.kind == "conv":
            sizes = {"channels": self.channels, "hidden": self.hidden}
            return ConvolutionReader(self.shape, self.functions, **sizes, outputs=outputs)
        return _DenseReader(self.cells, self.hidden if self.kind == "dense" else 0, outputs)

    def decoder(self, latents: int) -> "Decoder":
        """Of latents to functions."""
        if self.kind == "conv":
            sizes = {"channels": self.channels, "hidden": self.hidden}
            return ConvolutionDecoder(latents, self.shape, self.functions, **sizes)
        return Perceptron(latents, *[self.hidden] * (2 * (self.kind == "dense")), self.cells)


class _DenseReader(nn.Module):
    """Two hidden layers, or none."""

    def __init__(self, cells: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.seen = nn.Linear(cells, hidden or outputs)
        self.missing = nn.Linear(cells, hidden or outputs, bias=False)
        nn.init.zeros_(self.missing.weight)
        self.rest = Perceptron(hidden, hidden, outputs) if hidden else None

    def forward(self, value: Tensor, missing: Tensor) -> Tensor:
        found = affine(self.seen, value)
        if bool(missing.sum() > 0):  # else it adds zeros
            found = found + affine(self.missing, missing)
        return found if self.rest is None else self.rest(nn.functional.silu(found))


def cell_weights(seen: Tensor, known: Tensor) -> Tensor:
    """w = seen / (1 + s²) of cells of about unit variance and of known error variance s²."""
    return torch.where(seen, 1 / (1 + known), 0.0)


class FactorEncoder(nn.Module):
    r"""A Gaussian factor :math:`\exp(\eta^\top z - \tfrac12 z^\top \Lambda z)` of Q latents from D cells.

    A cell counts as :math:`w = \mathrm{seen} / (1 + s^2)`, s its error bar: networks read w x and 1 − w. The factor is
    1 for an object of which nothing was seen. The network gives a mean m and the precisions of all cells, of which a,
    those of the cells at hand, are the share mean(w); of these

    - "likelihood" makes :math:`\eta = a m, \Lambda = a`: what the cells alone say;
    - "posterior" :math:`\eta = (1 + a) m, \Lambda = a`: m is the mean of the product with the prior N(0, I);
    - "plain" the same as "likelihood", to be multiplied without the prior.

    Full factors are :math:`\Lambda = L L^\top`, and the network gives η and L.

    Arguments:
        architecture: Of the network.
        latents: Q.
        form: What the experts are.
        full: Whether Λ has off-diagonal elements.
        private: Latents, the last ones, of which it is quiet at first; none if full.
        quiet: Log precision of what it says of these before it is trained.
    """

    first: Tensor

    def __init__(
        self,
        architecture: Architecture,
        latents: int,
        *,
        form: Form,
        full: bool = False,
        private: int = 0,
        quiet: float = 0.0,
    ) -> None:
        super().__init__()
        self.form, self.full, self.latents = form, full, latents
        self.reader = architecture.reader(latents + (latents * (latents + 1) // 2 if full else latents))
        whispers = torch.arange(latents) >= latents - private
        self.register_buffer("first", torch.where(whispers, quiet, 0.0), persistent=False)

    def forward(self, value: Tensor, known: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """η (B, Q), and Λ of shape (B, Q) or (B, Q, Q).

        Arguments:
            value: Cells, finite, shape (B, D).
            known: s², shape (B, D).
            seen: Which of them count, shape (B, D).
        """
        weight = cell_weights(seen, known)
        found = self.reader(weight * value, 1 - weight)
        first, second = found[:, : self.latents], found[:, self.latents :]
        if self.full:
            there = seen.any(-1, keepdim=True)
            rows, columns = torch.tril_indices(self.latents, self.latents, device=value.device)
            factor = found.new_zeros(len(found), self.latents, self.latents)
            factor[:, rows, columns] = second
            matrix = factor @ factor.mT
            return torch.where(there, first, 0.0), torch.where(there[..., None], matrix, 0.0)
        # of half of the cells half of what they know, of none nothing
        precision = weight.mean(-1, keepdim=True) * (self.first + second).clamp_max(SHARPEST).exp()
        scale = precision + seen.any(-1, keepdim=True) if self.form == "posterior" else precision
        return scale * first, precision
