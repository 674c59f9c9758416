r"""Densities of cells one after the other: a mixture of Gaussians for each, given some cells and those before it.

.. math::
    p(x_a \mid \text{given}, x_{<a}) = \sum_k w_k\, N\bigl(\mu_a + \sigma_a m_k,\ \sigma_a^2 e^{2 c_k}\bigr),

where :math:`\mu_a` and :math:`\sigma_a` are those of the best linear guess
(:class:`~consilience.blocks.linear_denoising.Chain`), and w, m and c come from a network of what was read of the given
cells, h_a, and of the sum of what each cell before it says, :math:`r_a = \sum_{b < a} E_b \phi(x_b)`. What is read is
read once for all draws; a draw costs a small network for each cell.

A measurement of the cell with error s has the same mixture with variances that are larger by :math:`s^2`, which
is how errors are taken out in training; and the truth given its measurement is a mixture, too.

References:
    | Mixture density networks (Bishop, 1994)
    | MADE: masked autoencoder for distribution estimation (Germain et al., 2015)
    | Amortized probabilistic conditioning (Chang et al., 2025): the same question by transformers
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from consilience.blocks.networks import affine
from consilience.blocks.products import product

__all__ = ["CellDensities", "Mixture"]

NARROW, WIDE = -7.0, 3.0  # logs of the spread of a component, in the linear guess's


class Mixture(NamedTuple):
    """K Gaussians of a number: logs of their weights, means and spreads, (…, K).

    Example:
        >>> two = Mixture(torch.tensor([0.5, 0.5]).log(), torch.tensor([-1.0, 1.0]), torch.tensor([0.1, 0.1]))
        >>> round(float(two.log_prob(torch.tensor(1.0), torch.tensor(0.0)).exp()), 3)
        1.995
        >>> two.given(torch.tensor(1.0), torch.tensor(0.1)).log_weight.exp().round(decimals=3).tolist()
        [0.0, 1.0]
    """

    log_weight: Tensor
    mean: Tensor
    spread: Tensor

    def log_prob(self, value: Tensor, error: Tensor) -> Tensor:
        """Log density of measurements (…) with errors (…)."""
        spread = (self.spread.square() + error[..., None].square()).sqrt()
        score = (value[..., None] - self.mean) / spread
        return torch.logsumexp(self.log_weight - spread.log() - 0.5 * (score.square() + math.log(2 * math.pi)), -1)

    def given(self, value: Tensor, error: Tensor) -> "Mixture":
        """Of the truth, given its measurements (…) with errors (…) > 0."""
        noise, own = error[..., None].square(), self.spread.square()
        total = own + noise
        told = self.log_weight - 0.5 * ((value[..., None] - self.mean).square() / total + total.log())
        mean = (noise * self.mean + own * value[..., None]) / total
        return Mixture(told.log_softmax(-1), mean, (own * noise / total).sqrt())

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Draws (…), each by a uniform that chooses a component and a standard normal."""
        share = self.log_weight.exp().cumsum(-1)
        chosen = (uniform[..., None] * share[..., -1:] >= share).sum(-1, keepdim=True).clamp_max(share.shape[-1] - 1)
        return self.mean.gather(-1, chosen)[..., 0] + self.spread.gather(-1, chosen)[..., 0] * normal


class CellDensities(nn.Module):
    """Mixtures of D cells.

    Arguments:
        cells: D.
        features: F of what is told of a cell.
        width: W, of what was read for each cell.
        components: K.

    Example:
        >>> head = CellDensities(3, 2, width=8, components=4)
        >>> asked = torch.tensor([[True, False, True]])
        >>> found = head(torch.zeros(1, 3, 8), torch.ones(1, 3, 2), asked, torch.zeros(1, 3), torch.ones(1, 3))
        >>> found.mean.shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, cells: int, features: int, *, width: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.tells = nn.Parameter(torch.randn(cells, width, features) / math.sqrt(features))  # E
        self.reads, self.gates = nn.Linear(width, width), nn.Linear(width, width)
        self.guesses = nn.Linear(2, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.says = nn.Parameter(1e-2 * torch.randn(cells, 3 * components, width))
        begun = torch.zeros(cells, 3, components)
        begun[:, 1] = torch.linspace(-0.5, 0.5, components)  # components differ from the start
        self.begun = nn.Parameter(begun.flatten(1))

    def forward(self, read: Tensor, told: Tensor, asked: Tensor, mean: Tensor, spread: Tensor) -> Mixture:
        """Mixtures of all cells, (B, D, K); of those that are not asked for they mean nothing.

        Arguments:
            read: What was read of the given cells, (B, D, W).
            told: Features of the cells, of which each is told to those after it, (B, D, F).
            asked: Which cells are asked for, (B, D).
            mean: Of the linear guess, given the cells before each, (B, D).
            spread: Its spread, (B, D).
        """
        said = torch.where(asked[..., None], _by_cell(told, self.tells), 0.0)
        found = self._found(read, said.cumsum(1) - said, mean, spread)
        return self._mixture(_by_cell(found, self.says) + self.begun, mean, spread)

    def tell(self, cell: int, told: Tensor) -> Tensor:
        """What a cell says to those after it, (…, W), of its features (…, F)."""
        return product(told, self.tells[cell])

    def one(self, cell: int, read: Tensor, before: Tensor, mean: Tensor, spread: Tensor) -> Mixture:
        """The mixture of one cell, of what was read for it (…, W) and the sum of what others say (…, W)."""
        found = self._found(read, before, mean, spread)
        return self._mixture(product(found, self.says[cell]) + self.begun[cell], mean, spread)

    def _found(self, read: Tensor, before: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        guess = affine(self.guesses, torch.stack([mean.asinh(), spread.log().expand_as(mean)], -1))
        x = nn.functional.silu(affine(self.reads, read) + before + guess) * (1 + affine(self.gates, read))
        x = x + nn.functional.silu(affine(self.first, x))
        return nn.functional.silu(affine(self.second, x))

    def _mixture(self, said: Tensor, mean: Tensor, spread: Tensor) -> Mixture:
        weight, middle, scale = said.unflatten(-1, (3, self.components)).unbind(-2)
        mean, spread = mean[..., None], spread[..., None]
        return Mixture(weight.log_softmax(-1), mean + spread * middle, spread * scale.clamp(NARROW, WIDE).exp())


def _by_cell(x: Tensor, weight: Tensor) -> Tensor:
    """Of each cell its own product, (B, D, I) and (D, O, I) to (B, D, O)."""
    return (x.transpose(0, 1) @ weight.mT).transpose(0, 1)
