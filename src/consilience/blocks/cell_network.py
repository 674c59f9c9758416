"""A network that reads some cells of an object and says two things of the others: their mean, or their density."""

import copy

import torch
from torch import Tensor, nn

from consilience.blocks.attention import CellTransformer
from consilience.blocks.cell_densities import CellDensities
from consilience.blocks.linear_denoising import Linear
from consilience.blocks.transport import LOWEST

__all__ = ["CellNetwork", "averaged_copy", "told"]

WAVES = (1.0, 2.0, 4.0, 8.0)  # radians per unit of what the network is given of a cell
GUESSES, SMOOTH = 3, 3  # features of a cell: the linear guess, smooth ones; the rest are waves


class CellNetwork(nn.Module):
    """A transformer over D cells, with a number and a mixture of Gaussians for each.

    Arguments:
        cells: D.
        width: W, of a token.
        layers: Of attention.
        heads: Of each layer.
        components: Of a mixture.

    Example:
        >>> net, y = CellNetwork(2, width=8, layers=1, heads=2, components=3), torch.zeros(5, 2)
        >>> nothing = Linear(y, y + 1, y)
        >>> read = net.read(y, y + 1, y == 0, nothing)
        >>> read.shape, net.number(read).shape
        (torch.Size([5, 2, 8]), torch.Size([5, 2]))
    """

    def __init__(self, cells: int, *, width: int, layers: int, heads: int, components: int) -> None:
        super().__init__()
        waves = 2 * len(WAVES)
        self.body = CellTransformer(cells, GUESSES + SMOOTH + waves, width=width, layers=layers, heads=heads)
        self.says = nn.Parameter(1e-1 * torch.randn(cells, width))
        self.densities = CellDensities(cells, SMOOTH + waves, width=width, components=components)
        with torch.no_grad():
            # surprise and waves are learned where they help: at first all is smooth
            self.body.reads[:, GUESSES - 1] = 0
            self.body.reads[:, GUESSES + SMOOTH :] = 0
            self.densities.tells[..., SMOOTH:] = 0

    def read(self, y: Tensor, level: Tensor, shown: Tensor, linear: Linear) -> Tensor:
        """What is read for every cell of (…, B, D) at levels (B, D), of those that are shown (B, D): (…, B, D, W)."""
        spread = (linear.spread.clamp_min(LOWEST).log() / 4).expand_as(y)
        guess = torch.stack([linear.mean, spread, linear.surprise.asinh()], -1)
        features = torch.cat([guess, told(y, level)], -1)
        read = self.body(features.flatten(0, -3), shown.expand_as(y).flatten(0, -2))
        return read.view(*y.shape, -1)

    def number(self, read: Tensor) -> Tensor:
        """One number for every cell."""
        return (read * self.says).sum(-1)


def told(y: Tensor, level: Tensor) -> Tensor:
    """Features of cells (…, D) at levels that are as many or fewer: three that are smooth, and waves."""
    scaled = y / (1 + level.square()).sqrt()
    waves = [wave(turn * scaled) for turn in WAVES for wave in (torch.sin, torch.cos)]
    heights = (level.log() / 4, level.square() / (1 + level.square()))
    return torch.stack([scaled, *(one.expand_as(y) for one in heights), *waves], -1)


def averaged_copy(network: CellNetwork) -> CellNetwork:
    """The same with buffers instead of parameters, for a running mean of them."""
    twin = copy.deepcopy(network)
    for module in list(twin.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach().clone())
    return twin
