r"""The best linear denoiser of cells at levels of their own: what is left to a network is what is not Gaussian.

For :math:`x \sim N(m, C)` and :math:`y_d = x_d + s_d\,\epsilon_d` of the cells that are shown,

.. math::
    K = (C + S^2)^{-1}, \qquad E[x \mid y] = y - S^2 K (y - m), \qquad
    \operatorname{Var}[x_d \mid y] = s_d^2 (1 - s_d^2 K_{dd}),

with :math:`S = \operatorname{diag}(s)`. Also, :math:`[K (y - m)]_d / K_{dd}` is :math:`y_d` less what the other cells
say of it, and :math:`1 / K_{dd}` the variance of that: how surprising a cell is, in standard deviations and, where
these are small, in a tenth of the cell's own: anything else is a spike where cells are almost functions of each other.

References:
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022): the same for C = I
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Chain", "Linear", "LinearDenoiser", "fit_gaussian"]

LEAST = 1e-6  # variance added to every cell, of standardised ones
SOFT = 0.1  # least unit of surprise
ROUNDS = 50  # of expectation-maximisation at most
ENOUGH = 1e-4  # change of an element of C that ends it
WORK = 5e10  # multiplications that the rounds may take


class Linear(NamedTuple):
    """Of cells (…, B, D): mean of the truth, its standard deviation (B, D), and how surprising each is."""

    mean: Tensor
    spread: Tensor
    surprise: Tensor


class Chain(NamedTuple):
    """Cells in the order in which each is guessed from those before it.

    Arguments:
        factor: L with L Lᵀ = C + S² in that order, (B, D, D).
        order: Cell at every place, (B, D).
        place: Place of every cell, (B, D).
        spread: Of the truth of each cell given the cells before it, (B, D).
    """

    factor: Tensor
    order: Tensor
    place: Tensor
    spread: Tensor

    def steps(self, left: Tensor, given: Tensor) -> Tensor:
        """L⁻¹ of cells less their means (…, B, D), in order, of those that are given (B, D); zero of the others."""
        inverse = torch.linalg.solve_triangular(self.factor, torch.eye(left.shape[-1]).to(self.factor), upper=False)
        placed = left.double().gather(-1, self.order.expand_as(left))
        found = (inverse @ placed[..., None])[..., 0]
        return torch.where(given.gather(-1, self.order), found, 0.0)

    def means(self, left: Tensor) -> Tensor:
        """Of every cell given those before it, less its own mean, (B, D)."""
        own = self.factor.diagonal(dim1=-2, dim2=-1)
        steps = self.steps(left, torch.ones_like(left, dtype=torch.bool))
        return left - (own * steps).gather(1, self.place)

    def mean(self, cell: int, steps: Tensor) -> Tensor:
        """The same of one cell, (…, B), by the steps of those before it (…, B, D), zero from its own on."""
        row = self.factor.gather(1, self.place[:, cell, None, None].expand(-1, 1, self.factor.shape[-1]))[:, 0]
        return (row * steps).sum(-1)

    def put(self, cell: int, steps: Tensor, left: Tensor, rows: Tensor) -> None:
        """Set the step of one cell, whose value less its mean is (…, B), in some rows (B,)."""
        place = self.place[:, cell, None]
        own = self.factor.diagonal(dim1=-2, dim2=-1).gather(1, place)[:, 0]
        found = torch.where(rows, (left - self.mean(cell, steps)) / own, 0.0)
        at = place.expand(*steps.shape[:-1], 1)
        steps.scatter_(-1, at, torch.where(rows[:, None], found[..., None], steps.gather(-1, at)))


class LinearDenoiser(nn.Module):
    """Mean and spread of the truth of D cells, were they Gaussian.

    Arguments:
        cells: D.

    Example:
        >>> net = LinearDenoiser(2)
        >>> found = net(torch.tensor([[2.0, 7.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[True, False]]))
        >>> found.mean[:, 0].tolist(), found.spread[:, 0].tolist()
        ([1.0], [0.7071])
    """

    middle: Tensor  # m, (D,)
    covariance: Tensor  # C, (D, D)

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(cells))
        self.register_buffer("covariance", torch.eye(cells))

    @torch.no_grad()
    def start(self, value: Tensor, variance: Tensor, seen: Tensor) -> None:
        """Take m and C of rows (N, D) with error bars, as :func:`fit_gaussian`."""
        middle, covariance = fit_gaussian(value, variance, seen)
        self.middle.copy_(middle)
        self.covariance.copy_(covariance)

    def forward(self, y: Tensor, level: Tensor, shown: Tensor) -> Linear:
        """Of cells y (…, B, D), whose levels s > 0 and presence are (B, D); what is absent has no meaning."""
        noise, precision = self._precision(level, shown)
        centred = torch.where(shown, y - self.middle, 0.0).double()
        told = (precision @ centred[..., None])[..., 0]
        own = precision.diagonal(dim1=-2, dim2=-1)
        spread = (noise * (1 - noise * own).clamp_min(0.0)).sqrt()
        mean = y - (noise * told).to(y.dtype)
        return Linear(mean, spread.to(y.dtype), (told / (own + (SOFT * own).square()).sqrt()).to(y.dtype))

    def chain(self, level: Tensor, given: Tensor, asked: Tensor) -> Chain:
        """What cells say of those that are asked for, one after the other, in double precision.

        Arguments:
            level: Of the cells, (B, D).
            given: Which are given, (B, D).
            asked: Which are asked for, each given those and the ones asked for before it, (B, D).
        """
        there = given | asked
        count = level.shape[1]
        turn = torch.where(given, 0, torch.where(asked, 1, 2))
        order = (turn * count + torch.arange(count, device=level.device)).argsort(1)
        noise = torch.where(there, level.double().square() + LEAST, 1.0)
        both = there[..., :, None] & there[..., None, :]
        total = torch.where(both, self.covariance.double(), 0.0) + torch.diag_embed(noise)
        rows = torch.arange(len(level), device=level.device)[:, None, None]
        factor = torch.linalg.cholesky(total[rows, order[:, :, None], order[:, None, :]])
        place = order.argsort(1)
        own = factor.diagonal(dim1=-2, dim2=-1).gather(1, place)
        spread = (own.square() - level.double().square()).clamp_min(LEAST).sqrt()
        return Chain(factor, order, place, spread)

    def _precision(self, level: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """S², 1 where a cell is absent, and K, the identity there; in double precision."""
        noise = torch.where(shown, level.double().square(), 1.0)
        both = shown[..., :, None] & shown[..., None, :]
        total = torch.where(both, self.covariance.double(), 0.0) + torch.diag_embed(noise + LEAST)
        return noise, torch.cholesky_inverse(torch.linalg.cholesky(total))


@torch.no_grad()
def fit_gaussian(value: Tensor, variance: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the truth by maximum likelihood, from cells (N, D) with gaps and error bars.

    By expectation-maximisation, of as many rows as keep it short; in double precision.

    Arguments:
        value: Measurements, finite where seen.
        variance: Their squared error bars.
        seen: Which cells were measured.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
        >>> fit_gaussian(x, 0 * x, torch.ones_like(x, dtype=torch.bool))[1].round(decimals=3).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    cells = value.shape[1]
    rows = max(4 * cells, int(WORK / (ROUNDS * cells**3)))
    y, noise, seen = value[:rows].double(), variance[:rows].double(), seen[:rows]
    count = seen.sum(0).clamp_min(1)
    middle = torch.where(seen, y, 0.0).sum(0) / count
    squares = torch.where(seen, (y - middle).square() - noise, 0.0).sum(0) / count
    covariance = torch.diag(squares.clamp_min(1e-3))
    for _ in range(ROUNDS):
        before = covariance
        total = torch.zeros_like(covariance)
        mean = torch.zeros_like(middle)
        for some in torch.arange(len(y), device=y.device).split(4096):
            shown = seen[some]
            cross = torch.where(shown[:, None, :], covariance, 0.0)  # of every cell with those seen, (B, D, D)
            inner = torch.where(shown[:, :, None], cross, 0.0)
            inner = inner + torch.diag_embed(torch.where(shown, noise[some] + LEAST, 1.0))
            gain = torch.linalg.solve(inner, cross.mT).mT
            found = (gain @ torch.where(shown, y[some] - middle, 0.0)[..., None])[..., 0]
            mean += found.sum(0)
            total += found.T @ found + len(some) * covariance - torch.einsum("bde,bce->dc", gain, cross)
        shift = mean / len(y)
        middle = middle + shift
        covariance = total / len(y) - shift[:, None] * shift
        covariance = 0.5 * (covariance + covariance.T)
        if float((covariance - before).abs().max()) < ENOUGH:
            break
    return middle.to(value.dtype), covariance.to(value.dtype)
