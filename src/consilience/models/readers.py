"""Networks that read what a row shows of several modalities into one vector: the sum of those of seen ones."""

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


class Readers(nn.Module):
    r"""h = :math:`\sum_m \mathrm{seen}_m\, e_m(x^{(m)})` of B objects, (B, hidden).

    Cells are weighed by their error bars, as by an encoder of :class:`~consilience.models.DisentangledVAE`; an object
    of which nothing is seen has h = 0.

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
            weight = cell_weights(cells.seen.repeat_interleave(likelihood.functions, -1), known)
            read = self.nets[slot(name)](weight * value, 1 - weight)
            total = total + torch.where(cells.seen.any(-1, keepdim=True), read, 0.0)
        return total
