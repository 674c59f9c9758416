"""Networks that read the cells of one modality of an object into factors of its latents."""

from typing import Literal

import torch
from torch import Tensor, nn

from consilience.blocks.networks import Perceptron, affine

__all__ = ["Form", "FactorEncoder", "network"]

Form = Literal["likelihood", "posterior", "plain"]
QUIET = -5.0  # log precision of a factor that says next to nothing
SHARPEST = 14.0  # largest log precision of a factor


def network(kind: Literal["dense", "linear"], inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Two hidden layers, or none."""
    return Perceptron(inputs, hidden, hidden, outputs) if kind == "dense" else Perceptron(inputs, outputs)


class FactorEncoder(nn.Module):
    r"""A Gaussian factor :math:`\exp(\eta^\top z - \tfrac12 z^\top \Lambda z)` of Q latents from D cells.

    A cell counts as :math:`w = \mathrm{seen} / (1 + s^2)`, s its error bar: networks read w x and 1 − w. The factor is
    1 for an object of which nothing was seen. The network gives a mean m and the precisions of all cells, of which a,
    those of the cells at hand, are the share mean(w); of these

    - "likelihood" makes :math:`\eta = a m, \Lambda = a`: what the cells alone say;
    - "posterior" :math:`\eta = (1 + a) m, \Lambda = a`: m is the mean of the product with the prior N(0, I);
    - "plain" the same as "likelihood", to be multiplied without the prior.

    Full factors are :math:`\Lambda = L L^\top`, and the network gives η and L.

    Arguments:
        cells: D.
        latents: Q.
        hidden: Width of the layers.
        kind: "dense" or "linear".
        form: What the experts are.
        full: Whether Λ has off-diagonal elements.
        quiet: Latents, the last ones, of which it says next to nothing before it is trained.
    """

    def __init__(
        self,
        cells: int,
        latents: int,
        hidden: int,
        *,
        kind: Literal["dense", "linear"],
        form: Form,
        full: bool,
        quiet: int = 0,
    ) -> None:
        super().__init__()
        self.form, self.full, self.latents = form, full, latents
        outputs = latents + (latents * (latents + 1) // 2 if full else latents)
        first = hidden if kind == "dense" else outputs
        self.seen = nn.Linear(cells, first)
        self.missing = nn.Linear(cells, first, bias=False)
        nn.init.zeros_(self.missing.weight)
        self.rest = Perceptron(hidden, hidden, outputs) if kind == "dense" else None
        if quiet:
            with torch.no_grad():
                last = self.seen if self.rest is None else self.rest.layers[-1]
                last.bias[-quiet:] = QUIET  # type: ignore[index, operator]

    def forward(self, value: Tensor, known: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """η (B, Q), and Λ of shape (B, Q) or (B, Q, Q).

        Arguments:
            value: Cells, finite, shape (B, D).
            known: s², shape (B, D).
            seen: Which of them count, shape (B, D).
        """
        weight = torch.where(seen, 1 / (1 + known), 0.0)
        found = affine(self.seen, weight * value) + affine(self.missing, 1 - weight)
        if self.rest is not None:
            found = self.rest(nn.functional.silu(found))
        there = seen.any(-1, keepdim=True)
        first, second = found[:, : self.latents], found[:, self.latents :]
        if self.full:
            rows, columns = torch.tril_indices(self.latents, self.latents, device=value.device)
            factor = found.new_zeros(len(found), self.latents, self.latents)
            factor[:, rows, columns] = second
            matrix = factor @ factor.mT
            return torch.where(there, first, 0.0), torch.where(there[..., None], matrix, 0.0)
        # of half of the cells half of what they know
        precision = torch.where(there, weight.mean(-1, keepdim=True) * second.clamp_max(SHARPEST).exp(), 0.0)
        scale = 1 + precision if self.form == "posterior" else precision
        return torch.where(there, scale * first, 0.0), precision
