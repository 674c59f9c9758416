"""What keeps blocks of latents apart: vCLUB of draws of every pair, and the conditionals that it learns from."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from consilience.blocks.information import ConditionalGaussian, vclub
from consilience.data.schema import ModalitySpec
from consilience.models.base import Batch, PerObject, Term, slot

__all__ = ["Separation"]


class Separation(nn.ModuleDict):
    """A conditional of one block given another, for every pair.

    Arguments:
        blocks: All blocks of latents.
        pairs: Names of the two blocks of each pair.
        fixed: Blocks that do not move: the other one gives way.
        hidden: Width of the conditionals.
    """

    def __init__(
        self,
        blocks: Mapping[str, ModalitySpec],
        pairs: Sequence[tuple[str, str]],
        *,
        fixed: frozenset[str],
        hidden: int,
    ) -> None:
        super().__init__()
        self.names, self.fixed = {f"{one}_{other}": (one, other) for one, other in pairs}, fixed
        for pair, (one, other) in self.names.items():
            self[slot(pair)] = ConditionalGaussian(blocks[one].size, blocks[other].size, hidden)

    def terms(self, z: Tensor, columns: Mapping[str, slice], seen: Mapping[str, Tensor]) -> dict[str, Term]:
        """``mi``, of draws z (B, Q) in the rows where both blocks tell of something, and ``fit``, what it learns by.

        Arguments:
            z: Draws of all latents.
            columns: Where each block stands among them.
            seen: Rows in which a modality's own blocks tell of something, by block (B,).
        """
        found: dict[str, Term] = {}
        for pair, (one, other) in self.names.items():
            x, y = (
                z[:, columns[block]].detach() if block in self.fixed else z[:, columns[block]]
                for block in (one, other)
            )
            both = seen[one] & seen[other]
            q: ConditionalGaussian = self[slot(pair)]  # type: ignore[assignment]
            value = vclub(q, y[both], x[both]) if bool(both.any()) else z.new_zeros(())
            found[f"mi/{pair}"] = Batch(value)
            found[f"fit/{pair}"] = PerObject(-q.log_prob(y.detach(), x.detach()), both)
        return found
