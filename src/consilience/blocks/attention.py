r"""A transformer over the cells of an object, any of which may be absent.

Every cell is a token with weights of its own for what it shows. Absent cells are removed from attention, so nothing of
them reaches another; their own tokens, which show nothing, read what the others say. A further token that is always
there sums up.

References:
    | Attention is all you need (Vaswani et al., 2017)
    | All-in-one simulation-based inference (Gloeckler et al., 2024)
"""

import math

import torch
from torch import Tensor, nn

from consilience.blocks.networks import affine

__all__ = ["CellTransformer"]

WIDER = 2  # of the hidden layer of each token's network


class CellTransformer(nn.Module):
    """From F features of each of D cells to what is read for each, (B, D, F) to (B, D, W).

    Arguments:
        cells: D.
        features: F.
        width: W, of a token, a multiple of the heads.
        layers: Of attention.
        heads: Of each layer.

    Example:
        >>> net, shown = CellTransformer(4, 3, width=8, layers=2, heads=2), torch.tensor([[True, True, False, True]])
        >>> x = torch.randn(1, 4, 3)
        >>> other = x.clone()
        >>> other[:, 2] = 7.0
        >>> net(x, shown).shape, torch.equal(net(x, shown), net(other, shown))
        (torch.Size([1, 4, 8]), True)
    """

    def __init__(self, cells: int, features: int, *, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.reads = nn.Parameter(torch.randn(cells, features, width) / math.sqrt(features))
        self.names = nn.Parameter(0.5 * torch.randn(cells + 1, width))  # and of the one that sums up
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, shown: Tensor) -> Tensor:
        """What is read for each cell, which does not depend on what those that are not shown would be.

        Arguments:
            features: Shape (B, D, F), finite.
            shown: Which cells are there, (B, D).
        """
        features = torch.where(shown[..., None], features, 0.0)
        tokens = (features.transpose(0, 1) @ self.reads).transpose(0, 1) + self.names[1:]
        x = torch.cat([self.names[:1].expand(len(tokens), 1, -1), tokens], 1)
        there = torch.cat([shown.new_ones(len(shown), 1), shown], 1)
        for layer in self.layers:
            x = layer(x, there)
        return self.norm(x[:, 1:])


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixes, self.joins = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.grows, self.shrinks = nn.Linear(width, WIDER * width), nn.Linear(WIDER * width, width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        rows, count, width = x.shape
        mixed = affine(self.mixes, self.first(x)).view(rows, count, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None])
        x = x + affine(self.joins, found.transpose(1, 2).reshape(rows, count, width))
        return x + affine(self.shrinks, nn.functional.gelu(affine(self.grows, self.second(x))))
