"""Small networks whose rows have the same bits wherever they stand: decoders of bins, encoders of bins to sites."""

import math

import torch
from torch import Tensor, nn

from consilience.blocks.products import product

__all__ = ["ModesEncoder", "Perceptron", "SharedPerceptron", "SiteEncoder", "WaveDecoder", "affine"]

STEEPEST = 1.5  # radians per unit of a latent
QUIET = -5.0  # log precision of a site that says next to nothing
QUIETEST, SHARPEST = -20.0, 12.0  # least and largest log precision of a site


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x + b; of a layer in evaluation row by row the same bits for any order of the rows."""
    if layer.training:
        return nn.functional.linear(x, layer.weight, layer.bias)
    found = product(x, layer.weight)
    return found if layer.bias is None else found + layer.bias


class Perceptron(nn.Module):
    """Layers of SiLU units with a linear one at the end, (…, widths[0]) to (…, widths[-1]).

    Arguments:
        widths: Sizes of input, hidden layers and output.

    Example:
        >>> Perceptron(2, 8, 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = nn.functional.silu(affine(layer, x))  # type: ignore[arg-type]
        return affine(last, x)  # type: ignore[arg-type]

    @torch.no_grad()
    def begin(self, offset: Tensor) -> None:
        """Take the outputs that are given where all hidden units are zero."""
        self.layers[-1].bias.copy_(offset)  # type: ignore[union-attr, operator]


class SharedPerceptron(nn.Module):
    r"""A network of x, which many rows share, and z, which they do not: what is costly is done once for all of them.

    .. math:: W_3\, \mathrm{silu}\bigl(W_2\, \mathrm{silu}(W_1 x + b_1) + b_2 + V z\bigr) + b_3

    Arguments:
        shared: Size of x.
        own: Size of z; 0 for none.
        hidden: Width of the layers.
        outputs: Size of the output.

    Example:
        >>> SharedPerceptron(4, 2, 8, 3)(torch.zeros(5, 4), torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 3])
    """

    def __init__(self, shared: int, own: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.shared = Perceptron(shared, hidden, hidden)
        self.own = nn.Linear(own, hidden, bias=False) if own else None
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Of x (…, shared) and z (…, own), whose other axes broadcast."""
        inner = self.shared(x)
        if self.own is not None:
            inner = inner + affine(self.own, z)
        return affine(self.last, nn.functional.silu(inner))


class WaveDecoder(nn.Module):
    r"""Sines of the latents, then layers of SiLU units: from the first step steep enough for latents of unit variance.

    :math:`h = \sin(W z + b)` with W at first normal of standard deviation ``STEEPEST`` and b uniform; outputs are in
    units that :meth:`begin` gives.

    Arguments:
        widths: Sizes of input, hidden layers and output.

    References:
        Random features for large-scale kernel machines (Rahimi & Recht, 2007).
    """

    unit: Tensor  # of every output

    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        self.waves = nn.Linear(inputs, widths[0])
        nn.init.normal_(self.waves.weight, std=STEEPEST)
        nn.init.uniform_(self.waves.bias, -math.pi, math.pi)
        self.rest = Perceptron(*widths)
        self.register_buffer("unit", torch.ones(widths[-1]))

    def forward(self, z: Tensor) -> Tensor:
        """(…, inputs) to (…, widths[-1])."""
        return self.unit * self.rest(affine(self.waves, z).sin())

    @torch.no_grad()
    def begin(self, offset: Tensor, unit: Tensor) -> None:
        """Take units of the outputs and where they begin.

        Steps of training are alike in units of each output: else a pixel that is always dark, and so is known to be
        within a hair, would be missed by far, and lead all others.
        """
        self.unit.copy_(unit)
        self.rest.layers[-1].bias.copy_(offset / unit)  # type: ignore[union-attr, operator, arg-type]


class SiteEncoder(nn.Module):
    """Sites of the latents of every bin from the cells seen there, or in a window of bins about it.

    The site of a latent is independent of those of others. A bin in which nothing was seen has none.

    Arguments:
        cells: D, of one bin.
        latents: Number of latents it informs.
        hidden: Width of the layers.
        window: Number of bins read together, odd; with 1 bins are read one by one, else a temporal convolution.
    """

    def __init__(self, cells: int, latents: int, hidden: int, *, window: int = 1) -> None:
        super().__init__()
        self.reader = _BinReader(cells, hidden, 2 * latents, window)

    def forward(self, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and precision of the site of every latent, each (B, T, latents); precision zero where there is none.

        Arguments:
            value: Shape (B, T, D).
            seen: Which of them count, shape (B, T, D).
        """
        mean, log_precision = self.reader(value, seen).chunk(2, -1)
        return mean, _precision(log_precision, seen.any(-1, keepdim=True))


class ModesEncoder(nn.Module):
    """Mixtures of sites, for cells that more than one latent may explain: a picture of a digit turned by 190 or -170.

    They say next to nothing before they are trained, from means on either side of zero.

    Arguments:
        cells: D, of one bin.
        latents: Number of latents it informs.
        hidden: Width of the layers.
        modes: Number of sites that each bin has.
        window: Number of bins read together, odd.
    """

    def __init__(self, cells: int, latents: int, hidden: int, *, modes: int, window: int = 1) -> None:
        super().__init__()
        self.modes, self.latents = modes, latents
        self.reader = _BinReader(cells, hidden, modes * (2 * latents + 1), window)
        sides = torch.linspace(-1, 1, modes)[:, None].expand(-1, latents) if modes > 1 else torch.zeros(1, latents)
        quiet = torch.full((modes, latents), QUIET)
        with torch.no_grad():
            bias = torch.cat([sides, quiet, torch.zeros(modes, 1)], -1)
            self.reader.rest.layers[-1].bias.copy_(bias.flatten())  # type: ignore[union-attr, arg-type]

    def forward(self, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and precisions (B, T, modes, latents), and log probabilities of the modes (B, T, modes)."""
        found = self.reader(value, seen).unflatten(-1, (self.modes, 2 * self.latents + 1))
        mean, log_precision, logit = found.split([self.latents, self.latents, 1], -1)
        there = seen.any(-1)[..., None, None]
        return mean, _precision(log_precision, there), logit[..., 0].log_softmax(-1)


class _BinReader(nn.Module):
    """A network of the cells of each bin, (B, T, D) to (B, T, outputs)."""

    def __init__(self, cells: int, hidden: int, outputs: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.seen = nn.Linear(cells, hidden)
        self.missing = nn.Linear(cells, hidden, bias=False)
        nn.init.zeros_(self.missing.weight)
        self.rest = Perceptron(hidden * window, hidden, outputs)
        with torch.no_grad():  # a step of training moves many bins read together as far as it would one
            self.rest.layers[0].weight.mul_(window)  # type: ignore[union-attr, operator]

    def forward(self, value: Tensor, seen: Tensor) -> Tensor:
        hidden = affine(self.seen, torch.where(seen, value, 0.0))
        if not bool(seen.all()):
            hidden = hidden + affine(self.missing, (~seen).to(value.dtype))
        hidden = torch.where(seen.any(-1, keepdim=True), nn.functional.silu(hidden), 0.0)
        if self.window > 1:
            side = self.window // 2
            padded = nn.functional.pad(hidden, (0, 0, side, side))
            hidden = padded.unfold(1, self.window, 1).flatten(2) / self.window
        return self.rest(hidden)


def _precision(log_precision: Tensor, there: Tensor) -> Tensor:
    return torch.where(there, log_precision.clamp(QUIETEST, SHARPEST).exp(), 0.0)
