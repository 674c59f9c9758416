"""Networks that read what a row shows of several modalities into one vector: the sum of those of seen ones."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from consilience.blocks.encoders import Architecture, Kind, cell_weights
from consilience.blocks.likelihoods import build_likelihood
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec
from consilience.models.base import slot
from consilience.models.latent import flat

__all__ = ["Readers"]

DEPTH = 1e3  # error bars are told apart from this many times smaller to as many times larger than their cell's scatter


class Readers(nn.Module):
    r"""h = :math:`\sum_m \mathrm{seen}_m\, e_m(x^{(m)})` of B objects, (B, hidden).

    Networks read cells x, weighed as by an encoder of :class:`~consilience.models.DisentangledVAE`, and beside each how
    uncertain it is,

    .. math:: w x, \quad u = \min\Bigl(1, \frac{\log(1 + 10^3 s)}{\log(1 + 10^6)}\Bigr), \qquad w = 1 / (1 + s^2),

    s its error bar over the scatter of its column; an unseen cell has w = 0 and u = 1, one without an error bar u = 0.
    Logarithms, since errors far below the scatter, of which 1 - w is nothing, still tell how bright an object is and
    how deep it was observed. An object of which nothing is seen has h = 0.

    Arguments:
        specs: The modalities that are read.
        networks: Kind of the network of some of them; the others are dense.
        hidden: Width of dense layers, and size of h.
        channels: After the first convolution.
    """

    zero: Tensor

    def __init__(self, specs: Sequence[ModalitySpec], networks: Mapping[str, Kind], hidden: int, channels: int) -> None:
        super().__init__()
        self.inputs = {spec.name: build_likelihood(None, spec) for spec in specs}  # how cells look to a network
        self.nets = nn.ModuleDict()
        for spec in specs:
            functions = self.inputs[spec.name].functions
            shapes = Architecture(networks.get(spec.name, "dense"), spec.shape, functions, hidden, channels)
            self.nets[slot(spec.name)] = shapes.reader(hidden)
        self.register_buffer("zero", torch.zeros(hidden), persistent=False)

    def forward(self, context: Observations) -> Tensor:
        """The sum over the modalities that are read, in the order of the schema."""
        total = self.zero.expand(len(context), -1)
        for name, likelihood in self.inputs.items():
            cells = flat(context.parts[name])
            value, known = likelihood.pseudo(cells)
            seen = cells.seen.repeat_interleave(likelihood.functions, -1)
            unsure = torch.where(seen, (torch.log1p(DEPTH * known.sqrt()) / math.log1p(DEPTH**2)).clamp_max(1), 1.0)
            read = self.nets[slot(name)](cell_weights(seen, known) * value, unsure)
            total = total + torch.where(cells.seen.any(-1, keepdim=True), read, 0.0)
        return total
