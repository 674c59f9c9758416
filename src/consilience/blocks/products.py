"""Matrix products whose rows have the same bits wherever they stand."""

import torch
from torch import Tensor

__all__ = ["WIDTH", "fill_up", "product"]

WIDTH = 8  # inner sizes are filled up to a multiple of this


def fill_up(a: Tensor) -> Tensor:
    """The same rows with zeros up to a multiple of WIDTH columns."""
    extra = -a.shape[-1] % WIDTH
    return torch.nn.functional.pad(a, (0, extra)) if extra else a


def product(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`a b^\top` of a (…, B, K) and b (…, N, K), row by row the same bits for any order of the rows of a.

    BLAS handles the rest of an inner size that its vectors do not divide, and narrow results, differently in
    different rows; zeros up to a multiple of the vectors' width, along rows that are contiguous, leave no rest.

    Example:
        >>> product(torch.ones(2, 3), torch.ones(4, 3)).tolist()[0]
        [3.0, 3.0, 3.0, 3.0]
    """
    return fill_up(a).contiguous() @ fill_up(b).contiguous().mT
