"""What do the latent blocks know? Networks that read known quantities from each of them, on rows they did not see."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, quantities, truth_of
from consilience.analysis.reading import blocks_of, read
from consilience.analysis.scores import r_squared
from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Probes", "probes"]

FEWEST = 50  # training rows with every quantity


@dataclass(frozen=True)
class Probes(AbstractResult):
    """R² on test rows of every quantity, read from every block's posterior mean and from a draw of it.

    A mean may hold at a tiny scale what no draw shows; what a block carries is what its draws show.
    """

    name: ClassVar[str] = "probes"

    block: tuple[str, ...]
    quantity: tuple[str, ...]
    of_mean: FloatArray
    of_draw: FloatArray

    def table(self) -> "Table":
        """One row per block and quantity."""
        from astropy.table import Table

        columns = {"block": list(self.block), "quantity": list(self.quantity)}
        return Table({**columns, "R² of mean": self.of_mean, "R² of draw": self.of_draw})

    def figure(self) -> "Figure":
        """R² of each quantity, a dot per block."""
        from consilience import plots

        names = list(dict.fromkeys(self.quantity))
        by_block = {block: np.full(len(names), np.nan) for block in dict.fromkeys(self.block)}
        for block, quantity, value in zip(self.block, self.quantity, self.of_draw, strict=True):
            by_block[block][names.index(quantity)] = value
        return plots.methods({"R²": by_block}, names, next(iter(by_block)), "of draws, on test rows")


def probes(
    fitted: "Fitted", train: Observations, test: Observations, targets: "Sequence[str]", *, seed: int = 0
) -> Probes:
    """Read the cells of some modalities, which the model need not know, from each latent block.

    A network of two hidden layers per block is fitted on training rows, with a tenth of them to stop by. A target that
    the model knows is hidden from it.

    Arguments:
        fitted: Any model with latents of its own for every object.
        train: Rows on which the networks are fitted, with the model's modalities and the targets.
        test: Rows on which they are scored.
        targets: Modalities whose cells are read.
        seed: Of the draws and the networks.

    Raises:
        DataError: fewer than fifty training rows, or no test row, have every target cell.
        CapabilityError: a model without latents.
    """
    rng = np.random.default_rng(seed)
    names = [quantity.name for target in targets for quantity in quantities(train.schema[target], each=True)]
    truths = [np.hstack([truth_of(rows, target) for target in targets]) for rows in (train, test)]
    whole = [np.isfinite(truth).all(axis=1) for truth in truths]
    if whole[0].sum() < FEWEST or not whole[1].any():
        raise DataError(
            f"Expected {FEWEST} training rows and a test row with all of {list(targets)}; got {whole[0].sum()} and "
            f"{whole[1].sum()}. Read fewer targets, or give more rows."
        )
    tables = [rows[np.flatnonzero(some)] for rows, some in zip((train, test), whole, strict=True)]
    latent = [blocks_of(fitted, rows, hide=targets) for rows in tables]
    y, truth = (truth[some] for truth, some in zip(truths, whole, strict=True))
    blocks, scores = list(latent[0]), {}
    for name in blocks:
        some = [table[name] for table in latent]
        drawn = [block.draw(rng) for block in some]
        pairs = ([block.mean for block in some], drawn)
        scores[name] = [r_squared(truth, read(x, y, other, seed=seed)) for x, other in pairs]
    return Probes(
        tuple(block for block in blocks for _ in names),
        tuple(names) * len(blocks),
        np.concatenate([scores[block][0] for block in blocks]),
        np.concatenate([scores[block][1] for block in blocks]),
    )
