r"""Conditional coupling flows of cells any of which may be missing.

A flow turns y into standard normal u, given a context c, by layers that each keep some cells A and move the others by
monotone functions whose parameters a network takes from what is kept:

.. math::
    f_\ell(y)_d = \tau(y_d;\, \theta_{\ell d}(y_A, m_A, c)), \quad d \notin A, \qquad
    \log p(y_m \mid c) = \sum_{d : m_d} \log N(u_d) + \sum_\ell \sum_{d : m_d} \log \tau'

m says which cells are there. A missing cell is not shown to the networks and is left where it is, so that this is a
normalised density of the cells that are there: one flow learns from rows with any labels, and nothing stands in for
those that are missing.

τ is affine (RealNVP) or a rational-quadratic spline of bins within ±5, the identity beyond.

References:
    | Density estimation using Real NVP (Dinh et al., 2017)
    | Neural spline flows (Durkan et al., 2019)
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from consilience.blocks.networks import SharedPerceptron

__all__ = ["Contexts", "CouplingFlow", "Marginals", "Univariate", "normal_log_prob"]

Univariate = Literal["affine", "spline"]
Contexts = tuple[Tensor, Tensor]  # shared by many rows, and of each
SPLINE = (8, 8, 7)  # widths and heights of its bins, slopes between them
LEAST = 0.1  # factor of an affine layer, and one over the largest: the inverse of many stays in bounds
FIRST = 0.1  # of their usual size are the last weights of a network at first: a flow begins near the identity


class CouplingFlow(nn.Module):
    """A normalised density of D cells given C numbers.

    Arguments:
        cells: D, at least two: of one cell :class:`Marginals` is the flow.
        context: C, of a context which many rows may share.
        own: K, of a further one of each row.
        layers: Number of coupling layers. Every two of them keep complementary halves, drawn at random.
        hidden: Width of the networks, which have two hidden layers; the first sees the shared context alone.
        univariate: τ, "affine" or "spline".

    Example:
        >>> flow = CouplingFlow(3, 2, 0, layers=4, hidden=8, univariate="affine")
        >>> y, c, there = torch.randn(5, 3), (torch.randn(5, 2), torch.empty(5, 0)), torch.ones(5, 3, dtype=torch.bool)
        >>> u, slope = flow(y, c, there)
        >>> torch.allclose(flow.inverse(u, c, there), y, atol=1e-5), slope.shape
        (True, torch.Size([5]))
    """

    kept: Tensor  # cells of A in each layer, (layers, D), bool

    def __init__(
        self, cells: int, context: int, own: int, *, layers: int, hidden: int, univariate: Univariate
    ) -> None:
        super().__init__()
        self.univariate: Univariate = univariate
        self.each = 2 if univariate == "affine" else sum(SPLINE)
        halves = [torch.randperm(cells) < cells // 2 for _ in range((layers + 1) // 2)]
        kept = torch.stack([side for half in halves for side in (half, ~half)])[:layers]
        self.register_buffer("kept", kept)
        self.networks = nn.ModuleList(
            _quiet(SharedPerceptron(context, 2 * count + own, hidden, (cells - count) * self.each))
            for count in kept.sum(1).tolist()
        )

    def forward(self, y: Tensor, context: Contexts, seen: Tensor) -> tuple[Tensor, Tensor]:
        """u (…, D) and the sum of log τ' over the cells that are seen (…).

        Arguments:
            y: Cells, finite, shape (…, D).
            context: Shapes (…, C), which may lack leading axes, and (…, K).
            seen: Which cells count, shape (…, D).
        """
        slope = y.new_zeros(y.shape[:-1])
        for number, kept in enumerate(self.kept):
            moves, there = ~kept, seen[..., ~kept]
            moved, slopes = self._layer(number, y, context, seen).call_and_ladj(y[..., moves])  # type: ignore[union-attr]
            slope = slope + torch.where(there, slopes, 0.0).sum(-1)
            y = y.index_copy(-1, moves.nonzero()[:, 0], torch.where(there, moved, y[..., moves]))
        return y, slope

    def log_prob(self, y: Tensor, context: Contexts, seen: Tensor) -> Tensor:
        """Log density of the cells that are seen, (…)."""
        u, slope = self(y, context, seen)
        return torch.where(seen, normal_log_prob(u), 0.0).sum(-1) + slope

    def inverse(self, u: Tensor, context: Contexts, seen: Tensor) -> Tensor:
        """y (…, D) of u where they are seen; the other cells stay."""
        for number in reversed(range(len(self.kept))):
            moves = ~self.kept[number]
            moved = self._layer(number, u, context, seen).inv(u[..., moves])  # type: ignore[misc]
            some = torch.where(seen[..., moves], moved, u[..., moves])  # type: ignore[arg-type]
            u = u.index_copy(-1, moves.nonzero()[:, 0], some)
        return u

    def _layer(
        self, number: int, y: Tensor, context: Contexts, seen: Tensor
    ) -> MonotonicAffineTransform | MonotonicRQSTransform:
        kept, (shared, own) = self.kept[number], context
        there = seen[..., kept]
        shown = torch.cat([torch.where(there, y[..., kept], 0.0), there.to(y), own], -1)
        found = self.networks[number](shared, shown).unflatten(-1, (-1, self.each))
        if self.univariate == "affine":
            return MonotonicAffineTransform(found[..., 0], found[..., 1], slope=LEAST)
        return MonotonicRQSTransform(*found.split(SPLINE, -1))


class Marginals(nn.Module):
    r"""Densities of each of D cells alone given C numbers: u = spline(a y + b), with all of it a network's.

    .. math:: \log p(y_d \mid c) = \log N(u_d) + \log \tau'(y_d;\, \theta_d(c))

    Arguments:
        cells: D.
        context: C, of a context which many rows may share.
        own: K, of a further one of each row.
        hidden: Width of the network, which has two hidden layers; the first sees the shared context alone.

    Example:
        >>> alone = Marginals(3, 2, 0, hidden=8)
        >>> y, c = torch.randn(5, 3), (torch.randn(5, 2), torch.empty(5, 0))
        >>> u, slope = alone(y, c)
        >>> torch.allclose(alone.inverse(u, c, torch.ones_like(y) > 0), y, atol=1e-5), slope.shape
        (True, torch.Size([5, 3]))
    """

    def __init__(self, cells: int, context: int, own: int, *, hidden: int) -> None:
        super().__init__()
        self.network = _quiet(SharedPerceptron(context, own, hidden, cells * (2 + sum(SPLINE))))

    def forward(self, y: Tensor, context: Contexts) -> tuple[Tensor, Tensor]:
        """u and log τ' of each cell, both (…, D), of finite y (…, D) and contexts (…, C) and (…, K)."""
        line, spline = self._transforms(context)
        inner, slope = line.call_and_ladj(y)  # type: ignore[misc]
        u, further = spline.call_and_ladj(inner)  # type: ignore[misc]
        return u, slope + further

    def log_prob(self, y: Tensor, context: Contexts, seen: Tensor) -> Tensor:
        """Sum of the log densities of the cells that are seen, (…)."""
        u, slope = self(y, context)
        return torch.where(seen, normal_log_prob(u) + slope, 0.0).sum(-1)

    def inverse(self, u: Tensor, context: Contexts, seen: Tensor) -> Tensor:
        """y (…, D) of u where they are seen; the other cells stay."""
        line, spline = self._transforms(context)
        return torch.where(seen, line.inv(spline.inv(u)), u)  # type: ignore[misc, arg-type]

    def _transforms(self, context: Contexts) -> tuple[MonotonicAffineTransform, MonotonicRQSTransform]:
        found = self.network(*context)
        found = found.unflatten(-1, (-1, 2 + sum(SPLINE)))
        return MonotonicAffineTransform(found[..., 0], found[..., 1]), MonotonicRQSTransform(
            *found[..., 2:].split(SPLINE, -1)
        )


def normal_log_prob(u: Tensor) -> Tensor:
    """log N(u; 0, 1)."""
    return -0.5 * u.square() - 0.5 * math.log(2 * math.pi)


def _quiet(network: SharedPerceptron) -> SharedPerceptron:
    """The network with a small last layer, by which a flow begins near the identity."""
    with torch.no_grad():
        network.last.weight.mul_(FIRST)
        network.last.bias.zero_()
    return network
