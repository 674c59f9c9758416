r"""How much do two latent blocks know of each other? Information on rows that nothing was fitted on, in three ways.

An estimate from distances of neighbours (KSG), a lower bound from a critic that tells pairs apart (InfoNCE), and what a
network reads of one block from the other (R²). None needs the model's own estimate, which it was trained to make small.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from consilience.analysis.base import AbstractResult
from consilience.analysis.estimators import contrastive, ksg
from consilience.analysis.reading import blocks_of, read, varies
from consilience.analysis.scores import r_squared
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["BlockInformation", "block_information"]

FEWEST = 50  # rows of each table


@dataclass(frozen=True)
class BlockInformation(AbstractResult):
    """Information between every two blocks, from posterior means and from draws of them; 0 where a block is silent.

    A mean may hold at a tiny scale what no draw shows; what blocks share is what their draws share.

    Arguments:
        one: First block of each row.
        other: Second block.
        of: "mean" or "draw".
        ksg: Estimate in nats.
        info_nce: Lower bound in nats on average, at most ``cap``.
        r2: The largest R² of any latent of one block, read from the other.
        cap: Logarithm of the number of rows in a batch.
    """

    name: ClassVar[str] = "block_information"

    one: tuple[str, ...]
    other: tuple[str, ...]
    of: tuple[str, ...]
    ksg: FloatArray
    info_nce: FloatArray
    r2: FloatArray
    cap: float

    def table(self) -> "Table":
        """One row per pair of blocks and kind of latents."""
        from astropy.table import Table

        columns = {"block": list(self.one), "other": list(self.other), "of": list(self.of), "KSG [nats]": self.ksg}
        cap = np.full(len(self.of), self.cap)
        return Table({**columns, "InfoNCE [nats]": self.info_nce, "InfoNCE at most": cap, "R²": self.r2})

    def figure(self) -> "Figure":
        """Information and R², a panel for means and one for draws, a dot per pair of blocks."""
        from consilience import plots

        pairs = [f"{one} – {other}" for one, other in zip(self.one, self.other, strict=True)][::2]
        scores = {"KSG [nats]": self.ksg, "InfoNCE [nats]": self.info_nce, "R²": self.r2}
        by_pair = {score: dict(zip(pairs, value.reshape(-1, 2), strict=True)) for score, value in scores.items()}
        most = pairs[int(self.ksg[1::2].argmax())]
        return plots.methods(by_pair, ["of means", "of draws"], most, "on test rows; blue: most in draws, by KSG")


def block_information(
    fitted: "Fitted", train: Observations, test: Observations, *, batch: int = 256, seed: int = 0
) -> BlockInformation:
    """Measure what every two latent blocks share, private ones too, on test rows.

    Arguments:
        fitted: Any model with latents of its own for every object, in two blocks at least.
        train: Rows on which critics and networks are fitted, with a tenth of them to stop by.
        test: Rows of neither, on which all is measured.
        batch: Rows among which a critic finds the partner of each: no InfoNCE exceeds log(batch).
        seed: Of the draws, the critics and the networks.

    Raises:
        CapabilityError: a model without latents, or with a single block.
        DataError: fewer than fifty rows in a table, or a batch of fewer than two.
    """
    if min(len(train), len(test)) < FEWEST or batch < 2:
        raise DataError(
            f"Expected {FEWEST} training and test rows and batches of 2 at least; got {len(train)}, {len(test)} and "
            f"{batch}. Give more rows."
        )
    rng = np.random.default_rng(seed)
    latent = [blocks_of(fitted, rows) for rows in (train, test)]
    if len(latent[0]) < 2:
        raise CapabilityError(f"Expected two latent blocks at least; got {list(latent[0])}. Use probes.")
    means = [{name: block.mean for name, block in table.items()} for table in latent]
    draws = [{name: block.draw(rng) for name, block in table.items()} for table in latent]
    batch = min(batch, len(test))
    keys, found = [], []
    with threadpool_limits(1):
        for one, other in combinations(latent[0], 2):
            for of, (fit, held) in (("mean", means), ("draw", draws)):
                keys.append((one, other, of))
                found.append(_shared(fit[one], fit[other], held[one], held[other], batch, seed))
    first, second, kinds = zip(*keys, strict=True)
    distances, bound, r2 = np.array(found).T
    return BlockInformation(first, second, kinds, distances, bound, r2, math.log(batch))


def _alive(x: FloatArray, other: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The columns that vary in both."""
    some = varies(x) & varies(other)
    return x[:, some], other[:, some]


def _shared(
    x: FloatArray, y: FloatArray, x_held: FloatArray, y_held: FloatArray, batch: int, seed: int
) -> tuple[float, float, float]:
    """KSG, InfoNCE and R² of one pair of blocks."""
    (x, x_held), (y, y_held) = _alive(x, x_held), _alive(y, y_held)
    if not (x.shape[1] and y.shape[1]):
        return 0.0, 0.0, 0.0
    r2 = r_squared(y_held, read(x, y, x_held, seed=seed)).max(), r_squared(x_held, read(y, x, y_held, seed=seed)).max()
    return ksg(x_held, y_held), contrastive(x, y, x_held, y_held, batch=batch, seed=seed), float(max(r2))
