"""How parameters are moved before training begins and after it ends: Adam with a rate that falls to zero."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["descend"]

LONGEST = 100.0  # norm of a slope


def descend(parameters: Sequence[Tensor], loss: Callable[[], Tensor], *, steps: int, rate: float) -> None:
    """Lower a loss, drawn anew at every step, with slopes of bounded norm."""
    optimiser = torch.optim.Adam(parameters, lr=rate)
    for step in range(steps):
        value = loss()
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, LONGEST)
        optimiser.step()
