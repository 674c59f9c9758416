r"""Fourier transforms of round sources of light 1, and their slopes.

- the exponential disc, :math:`T_1 = (1 + k^2 / b_1^2)^{-3/2}`, k in units of one over its half-light radius;
- Sérsic's law of any index n within ``INDICES``, from a table of ``data/sersic.py``; n is a logit's;
- a Moffat function of β = 7/2, :math:`M = e^{-x} (1 + x + x^2 / 3)`, x in units of its width.
"""

import math

import numpy as np
import torch
from torch import Tensor

from consilience.data.sersic import scale, transform

__all__ = [
    "MOFFAT_WIDTH",
    "exponential",
    "exponential_slopes",
    "moffat",
    "moffat_slope",
    "sersic",
    "sersic_index",
    "sersic_slopes",
    "sersic_table",
]

INDICES = (0.5, 6.0)
WAVES = (1e-3, 1e3)
GRID = (24, 512)  # indices and wave numbers at which log T is known, both in equal steps of their logarithm
EDGE = 1.001  # steps from the end of the table, where T is taken to stay as it is
ACROSS = (GRID[1] - 1) / math.log(WAVES[1] / WAVES[0])  # steps per logarithm of the wave number
DOWN = (GRID[0] - 1) / math.log(INDICES[1] / INDICES[0])
MOFFAT_WIDTH = 2 * math.sqrt(2 ** (1 / 3.5) - 1)  # its FWHM


def exponential(k2: Tensor) -> Tensor:
    """T_1 at squared wave numbers."""
    rise = 1 + k2 / scale(1.0) ** 2
    return 1 / (rise * rise.sqrt())


def exponential_slopes(k2: Tensor) -> tuple[Tensor, Tensor]:
    """T_1, and its slope by k²."""
    found = exponential(k2)
    return found, -1.5 * found / (scale(1.0) ** 2 + k2)


def moffat(x: Tensor) -> Tensor:
    """M."""
    return (-x).exp() * (1 + x + x.square() / 3)


def moffat_slope(x: Tensor) -> Tensor:
    """Slope of M by log x."""
    return -(-x).exp() * x.square() * (1 + x) / 3


def sersic_index(logit: Tensor) -> Tensor:
    """n."""
    low, high = (math.log(n) for n in INDICES)
    return (low + (high - low) * torch.sigmoid(logit)).exp()


def sersic_table() -> Tensor:
    """log T at the nodes of ``GRID``."""
    waves = np.log(np.geomspace(*WAVES, GRID[1]))
    logs = []
    for index in np.geomspace(*INDICES, GRID[0]):
        k, found = transform(float(index))
        logs.append(np.interp(waves, np.log(k), np.log(np.maximum(found, 1e-12))))
    return torch.tensor(np.array(logs), dtype=torch.float32)


def sersic(table: Tensor, k2: Tensor, logit: Tensor) -> Tensor:
    """T_n between the nodes, bilinear in logarithms: at squared wave numbers (R, …), logits (R, 1, 1)."""
    return _between(table, k2, logit)[0].exp()


def sersic_slopes(table: Tensor, k2: Tensor, logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and its slopes by k² and by the logit."""
    log, across, down = _between(table, k2, logit)
    found, share = log.exp(), torch.sigmoid(logit)
    return (
        found,
        found * across * ACROSS * 0.5 / (k2 + WAVES[0] ** 2),
        found * down * (GRID[0] - 1) * share * (1 - share),
    )


def _between(table: Tensor, k2: Tensor, logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log T between the nodes, and its slopes along both sides of the table, in steps."""
    across = (0.5 * (k2 + WAVES[0] ** 2).log() - math.log(WAVES[0])) * ACROSS
    down = (sersic_index(logit).log() - math.log(INDICES[0])) * DOWN
    inside = across < GRID[1] - EDGE
    across, down = across.clamp(0, GRID[1] - EDGE), down.clamp(0, GRID[0] - EDGE)
    left, top = across.floor().long(), down.floor().long()
    a, b = across - left, down - top
    flat = table.to(k2).flatten()
    at = top * GRID[1] + left
    corners = flat[at], flat[at + 1], flat[at + GRID[1]], flat[at + GRID[1] + 1]
    upper, lower = torch.lerp(corners[0], corners[1], a), torch.lerp(corners[2], corners[3], a)
    along = torch.where(inside, torch.lerp(corners[1] - corners[0], corners[3] - corners[2], b), 0.0)
    return torch.lerp(upper, lower, b), along, lower - upper
