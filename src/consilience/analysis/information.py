r"""How much do two blocks or modalities know of each other? Information on rows of no fit, in five ways.

An estimate from distances of neighbours (KSG), a lower bound from a critic that tells pairs apart (InfoNCE), one above
where its conditional is right (vCLUB), that of Gaussians of the same covariance, and what a network reads of one block
from the other (R²). None needs the model's own estimate, which it was trained to make small. Each fails somewhere: see
:mod:`consilience.analysis.estimators`; what several find is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from consilience.analysis.base import AbstractResult
from consilience.analysis.estimators import club, contrastive, gaussian_information, ksg
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

    A mean may hold at a tiny scale what no draw shows; what blocks share is what their draws share. A modality is its
    measured values in both.

    Arguments:
        one: First block or modality of each row.
        other: Second one.
        of: "mean" or "draw".
        ksg: Estimate in nats.
        info_nce: Lower bound in nats on average, at most ``cap``.
        club: vCLUB in nats, the larger of both directions.
        gaussian: Information of Gaussians in nats, by correlations alone.
        r2: The largest R² of any latent of one block, read from the other.
        cap: Logarithm of the number of rows in a batch.
    """

    name: ClassVar[str] = "block_information"

    one: tuple[str, ...]
    other: tuple[str, ...]
    of: tuple[str, ...]
    ksg: FloatArray
    info_nce: FloatArray
    club: FloatArray
    gaussian: FloatArray
    r2: FloatArray
    cap: float

    def table(self) -> "Table":
        """One row per pair of blocks and kind of latents."""
        from astropy.table import Table

        columns = {"block": list(self.one), "other": list(self.other), "of": list(self.of), "KSG [nats]": self.ksg}
        cap = np.full(len(self.of), self.cap)
        columns |= {"InfoNCE [nats]": self.info_nce, "InfoNCE at most": cap, "vCLUB [nats]": self.club}
        return Table({**columns, "Gaussian [nats]": self.gaussian, "R²": self.r2})

    def figure(self) -> "Figure":
        """Information and R², a panel for means and one for draws, a dot per pair of blocks."""
        from consilience import plots

        pairs = [f"{one} – {other}" for one, other in zip(self.one, self.other, strict=True)][::2]
        scores = {"KSG [nats]": self.ksg, "InfoNCE [nats]": self.info_nce, "R²": self.r2}
        by_pair = {score: dict(zip(pairs, value.reshape(-1, 2), strict=True)) for score, value in scores.items()}
        most = pairs[int(self.ksg[1::2].argmax())]
        return plots.methods(by_pair, ["of means", "of draws"], most, "on test rows; blue: most in draws, by KSG")


def block_information(
    fitted: "Fitted",
    train: Observations,
    test: Observations,
    modalities: Sequence[str] = (),
    *,
    hide: Sequence[str] = (),
    batch: int = 256,
    seed: int = 0,
) -> BlockInformation:
    """Measure what every two latent blocks share, private ones too, and what they share with modalities, on test rows.

    Arguments:
        fitted: Any model with latents of its own for every object; of two modalities or more any model at all.
        train: Rows on which critics and networks are fitted, with a tenth of them to stop by.
        test: Rows of neither, on which all is measured.
        modalities: Those whose measured values stand beside the blocks, such as a target or the photometry; rows that
            lack a cell of one are left out.
        hide: Modalities that the latents are not told, such as a target that the model reads where it is known.
        batch: Rows among which a critic finds the partner of each: no InfoNCE exceeds log(batch).
        seed: Of the draws, the critics and the networks.

    Raises:
        CapabilityError: a model without latents, or a single block and no modality beside it.
        DataError: fewer than fifty rows in a table, or a batch of fewer than two.
        RequestError: a modality that the table lacks.
    """
    train, test = (_whole(rows, modalities) for rows in (train, test))
    if min(len(train), len(test)) < FEWEST or batch < 2:
        raise DataError(
            f"Expected {FEWEST} training and test rows and batches of 2 at least; got {len(train)}, {len(test)} and "
            f"{batch}. Give more rows."
        )
    rng = np.random.default_rng(seed)
    known = "latent" in fitted.capabilities or len(modalities) < 2
    latent = [blocks_of(fitted, rows, hide=hide) if known else {} for rows in (train, test)]
    names = [*latent[0], *modalities]
    if len(names) < 2:
        raise CapabilityError(f"Expected two latent blocks at least; got {names}. Use probes, or name modalities too.")
    measured = [{name: _values(rows, name) for name in modalities} for rows in (train, test)]
    means = [{name: block.mean for name, block in table.items()} for table in latent]
    draws = [{name: block.draw(rng) for name, block in table.items()} for table in latent]
    sides = {of: [own | more for own, more in zip(kind, measured, strict=True)] for of, kind in
             {"mean": means, "draw": draws}.items()}  # fmt: skip
    batch = min(batch, len(test))
    keys, found = [], []
    with threadpool_limits(1):
        for one, other in combinations(names, 2):
            for of, (fit, held) in sides.items():
                keys.append((one, other, of))
                found.append(_shared((fit[one], fit[other], held[one], held[other]), batch, seed))
    first, second, kinds = zip(*keys, strict=True)
    distances, bound, above, gaussian, r2 = np.array(found).T
    return BlockInformation(first, second, kinds, distances, bound, above, gaussian, r2, math.log(batch))


def _whole(rows: Observations, modalities: Sequence[str]) -> Observations:
    """Rows that have every cell of the modalities."""
    there = [rows.parts[rows.schema[name].name].measured.reshape(len(rows), -1).all(axis=1) for name in modalities]
    return rows[np.flatnonzero(np.all(there, axis=0))] if there else rows


def _values(rows: Observations, name: str) -> FloatArray:
    return np.asarray(rows.parts[name].value, dtype=float).reshape(len(rows), -1)


def _alive(x: FloatArray, other: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The columns that vary in both."""
    some = varies(x) & varies(other)
    return x[:, some], other[:, some]


def _shared(tables: tuple[FloatArray, ...], batch: int, seed: int) -> tuple[float, ...]:
    """KSG, InfoNCE, vCLUB, Gaussian information and R² of one pair: rows to fit on of each, and held ones."""
    x, y, x_held, y_held = tables
    (x, x_held), (y, y_held) = _alive(x, x_held), _alive(y, y_held)
    if not (x.shape[1] and y.shape[1]):
        return (0.0,) * 5
    ways = ((x, y, x_held, y_held), (y, x, y_held, x_held))
    r2 = max(float(r_squared(b_held, read(a, b, a_held, seed=seed)).max()) for a, b, a_held, b_held in ways)
    bound = contrastive(*ways[0], batch=batch, seed=seed)
    above = max(club(*way, batch=batch, seed=seed) for way in ways)
    return ksg(x_held, y_held), bound, above, gaussian_information(x_held, y_held), r2
