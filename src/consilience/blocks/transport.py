r"""Paths from data to noise, cell by cell, and the equations that lead back.

A cell at level s is :math:`y = x + s\,\epsilon`: at 0 it is known, at the largest level nothing is known of it. A
measurement with error bar s is a cell at that level; a cell that was not measured is at the largest. A network F gives
the mean of the truth of every cell given all cells at their levels,

.. math:: D(y, s) = a + b\,F(y, s),

and with it :math:`\nabla_y \log p = (D - y) / s^2`. Two choices of a and b:

- "denoising": mean and spread of the best linear denoiser (:mod:`consilience.blocks.linear_denoising`), with log s
  normal in training. F has unit variance at every level, and is zero where all is Gaussian.
- "flow": the straight path :math:`x_t = t\,x_1 + (1 - t)\,x_0` in other coordinates, :math:`s = (1 - t)/t`,
  :math:`a = t y`, :math:`b = 1 - t`, t uniform: F is the velocity x₁ - x₀.

**Targets with error bars.** Where the truth x is not known, but a measurement :math:`z = x + v\,\epsilon`, noise is
added up to a level s > v, and the mean of z given y is :math:`(1 - r) D + r y` with :math:`r = v^2/s^2`. The network
that predicts z so learns D, the mean of the truth: what is drawn has no measurement error.

References:
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    | Flow matching for generative modeling (Lipman et al., 2023)
    | Consistent diffusion meets Tweedie (Daras, Dimakis & Daskalakis, 2024): data that are noisy themselves
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from consilience.blocks.linear_denoising import Linear

__all__ = ["HIGHEST", "LOWEST", "AbstractPath", "Denoising", "Straight", "drawn", "levels", "path_of", "raised"]

LOWEST, HIGHEST = 0.002, 40.0  # levels, in standard deviations of the cell
BEND = 7.0  # of the levels between them: more of them are low

Denoiser = Callable[[Tensor, Tensor], Tensor]  # cells (…, B, D) and levels (B, D) to the mean of the truth


class AbstractPath(ABC):
    """What a network says of a cell, by level."""

    @abstractmethod
    def parts(self, y: Tensor, level: Tensor, linear: Linear) -> tuple[Tensor, Tensor]:
        """a and b of D = a + b F."""

    @abstractmethod
    def draw(self, rows: int, like: Tensor) -> Tensor:
        """Levels of training, (rows, 1), from torch's generator."""


class Denoising(AbstractPath):
    """What the best linear denoiser leaves, in its own standard deviations; log s ~ N(-1.2, 1.2²)."""

    def parts(self, y: Tensor, level: Tensor, linear: Linear) -> tuple[Tensor, Tensor]:
        return linear.mean, linear.spread

    def draw(self, rows: int, like: Tensor) -> Tensor:
        drawn = torch.randn(rows, 1, dtype=like.dtype, device=like.device)
        return (1.2 * drawn - 1.2).exp().clamp(LOWEST, HIGHEST)


class Straight(AbstractPath):
    """Flow matching on straight paths, t uniform."""

    def parts(self, y: Tensor, level: Tensor, linear: Linear) -> tuple[Tensor, Tensor]:
        t = 1 / (1 + level)
        return t * y, 1 - t

    def draw(self, rows: int, like: Tensor) -> Tensor:
        low, high = 1 / (1 + HIGHEST), 1 / (1 + LOWEST)
        t = low + (high - low) * torch.rand(rows, 1, dtype=like.dtype, device=like.device)
        return 1 / t - 1


def path_of(name: Literal["denoising", "flow"]) -> AbstractPath:
    """The path of that name."""
    return Denoising() if name == "denoising" else Straight()


def levels(steps: int, *, like: Tensor) -> Tensor:
    """steps + 1 levels from the highest to the lowest, each a little lower than the last.

    Example:
        >>> levels(2, like=torch.zeros(1)).round(decimals=3).tolist()
        [40.0, 1.432, 0.002]
    """
    part = torch.linspace(0, 1, steps + 1, dtype=like.dtype, device=like.device)
    top, bottom = HIGHEST ** (1 / BEND), LOWEST ** (1 / BEND)
    return (top + part * (bottom - top)) ** BEND


def drawn(mean: Denoiser, y: Tensor, known: Tensor, *, steps: int) -> Tensor:
    r"""The truth of the cells of which nothing is known, given the others at levels of their own, which stay.

    They follow :math:`dy/ds = (y - D)/s`, by Heun's rule for :math:`y / \sqrt{1 + s^2}`, which stands still where cells
    are N(0, 1); noise so becomes draws of the model.

    Arguments:
        mean: D(y, s).
        y: Noise at the highest level, or measurements at theirs, (…, B, D).
        known: Levels of the measurements, the highest of the others, (B, D).
        steps: Number of steps.
    """
    moves = known >= HIGHEST
    y = y + torch.where(moves, mean(torch.where(moves, 0.0, y), known), 0.0)  # noise is about what is known
    grid = [*levels(steps, like=y), y.new_zeros(())]
    for high, low in zip(grid[:-1], grid[1:], strict=True):
        at, to = (torch.where(moves, level, known) for level in (high, low))
        slope = _slope(y, mean(y, at), at)
        free = _size(to) * (y / _size(at) + (to - at) * slope)
        if float(low) > 0:
            ahead = torch.where(moves, free, y)
            again = _slope(ahead, mean(ahead, to), to)
            free = _size(to) * (y / _size(at) + (to - at) * 0.5 * (slope + again))
        y = torch.where(moves, free, y)
    return y


def raised(
    mean: Denoiser, y: Tensor, known: Tensor, scored: Tensor, steps: int, probes: Tensor | None = None
) -> Tensor:
    r"""Log density of the cells in ``scored`` at their levels, given the others at theirs, (R,).

    .. math::
        \log p(y) = \log N\bigl(y_\infty; D(0, s_\infty), s_\infty^2 + 1\bigr)
        + \int \operatorname{tr} \frac{\partial}{\partial y} \frac{y - D}{s} \, ds

    along the path up to the highest level, by the rule of Runge and Kutta for :math:`y / \sqrt{1 + s^2}`; a cell joins
    when the level has reached its own. The trace is exact, one backward pass for each cell that is scored in any row,
    or Hutchinson's estimate.

    Arguments:
        mean: D(y, s), differentiable.
        y: Cells, (R, D).
        known: Their levels, (R, D).
        scored: Which cells' density is asked for, (R, D).
        steps: Number of steps.
        probes: Signs (P, R, D) of Hutchinson's estimate; None for the exact trace.
    """
    columns = scored.any(0).nonzero()[:, 0].tolist()
    grid = levels(steps, like=y).flip(0)
    fixed, begun = y, torch.where(scored, _size(known), 1.0)
    u = y / begun
    total = -begun.log().sum(-1)

    def slope(u: Tensor, at: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """du/ds, and the trace of the step's own change of volume."""
        with torch.enable_grad():
            point = u.detach().requires_grad_()
            y = torch.where(scored, point * _size(at), fixed)
            found = torch.where(step > 0, _slope(y, mean(y, at), at), 0.0)
            trace = u.new_zeros(len(u))
            for column in columns if probes is None else ():
                (gradient,) = torch.autograd.grad(found[:, column].sum(), point, retain_graph=True)
                trace = trace + step[:, column] * gradient[:, column]
            for sign in () if probes is None else probes:
                (gradient,) = torch.autograd.grad((found * step * sign).sum(), point, retain_graph=True)
                trace = trace + (gradient * sign).sum(-1) / len(probes)  # type: ignore[arg-type]
        return found.detach(), trace.detach()

    for low, high in zip(grid[:-1], grid[1:], strict=True):
        at, to = (torch.where(scored, known.maximum(level), known) for level in (low, high))
        half = 0.5 * (at + to)
        step = to - at
        if not bool(step.any()):
            continue
        first, trace = slope(u, at, step)
        second, more = slope(u + 0.5 * step * first, half, step)
        third, still = slope(u + 0.5 * step * second, half, step)
        fourth, last = slope(u + step * third, to, step)
        total = total + (trace + 2 * more + 2 * still + last) / 6
        u = u + step * (first + 2 * second + 2 * third + fourth) / 6
    with torch.no_grad():
        # noise is about what is known: D of cells at zero, which does not depend on where they are
        middle = mean(torch.where(scored, 0.0, fixed), torch.where(scored, HIGHEST, known))
    end = -0.5 * ((u - middle / (1 + HIGHEST**2) ** 0.5).square() + math.log(2 * math.pi))
    return torch.where(scored, end, 0.0).sum(-1) + total


def _size(level: Tensor) -> Tensor:
    """Spread of a cell N(0, 1) at that level."""
    return (1 + level.square()).sqrt()


def _slope(y: Tensor, mean: Tensor, level: Tensor) -> Tensor:
    r"""d/ds of :math:`y / \sqrt{1 + s^2}`."""
    return ((y - mean) / level - y * level / (1 + level.square())) / _size(level)
