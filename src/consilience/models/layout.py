"""Which latent stands where: blocks side by side, those that every encoder reads first."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.physics import Profile
from consilience.data.schema import Cell, ModalitySpec, Schema

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Blocks of latents in their order: ``shared``, ``physics_m`` of discs, ``private_m``.

    Arguments:
        blocks: What each block is.
    """

    blocks: Mapping[str, ModalitySpec]

    @classmethod
    def of(cls, schema: Schema, *, shared: int, private: Mapping[str, int], physics: Mapping[str, Profile]) -> "Layout":
        """From the sizes of blocks; those of size zero are none."""
        found = {"shared": ModalitySpec(name="shared", shape=(shared,))} if shared else {}
        for name in physics:
            cells = tuple(Cell(name=cell) for cell in physics[name].parameters(schema[name].shape))
            found[f"physics_{name}"] = ModalitySpec(name=f"physics_{name}", cells=cells)
        for name in schema.names:
            if own := private.get(name, 0):
                found[f"private_{name}"] = ModalitySpec(name=f"private_{name}", shape=(own,))
        return cls(found)

    @property
    def size(self) -> int:
        """Number of latents."""
        return sum(spec.size for spec in self.blocks.values())

    @property
    def common(self) -> int:
        """Number of those that every encoder reads."""
        return sum(spec.size for name, spec in self.blocks.items() if not name.startswith("private_"))

    def places(self) -> dict[str, slice]:
        """Where each block stands."""
        found, begin = {}, 0
        for block, spec in self.blocks.items():
            found[block] = slice(begin, begin + spec.size)
            begin += spec.size
        return found

    def columns(self) -> dict[str, Tensor]:
        """Latents of each block."""
        return {block: torch.arange(place.start, place.stop) for block, place in self.places().items()}

    def some(self, *blocks: str) -> Tensor:
        """Latents of these blocks in this order; none of blocks that are not there."""
        every = self.columns()
        return torch.cat([torch.arange(0), *(every[block] for block in blocks if block in every)])

    def factors(self, name: str) -> Tensor:
        """Latents of which a modality may be a linear function."""
        return self.some("shared", f"private_{name}")

    def used(self, name: str) -> Tensor:
        """Latents that a modality's decoder uses."""
        return self.some("shared", f"private_{name}", f"physics_{name}")

    def read(self, name: str) -> Tensor:
        """Latents that a modality's encoder reads."""
        return torch.cat([torch.arange(self.common), self.some(f"private_{name}")])
