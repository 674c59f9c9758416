r"""Which latent block knows what? Shares of every block in a prediction, from all subsets of the blocks.

Two kinds of shares. The first divides what is explained: v(S) is the R² on test rows of a regressor that reads the
blocks S alone, and block b has the Shapley value :math:`\phi_b`, its average gain over all orders of the blocks. The
second divides what one regressor of all blocks says: for each object the Shapley values of its prediction, where blocks
outside a coalition are those of other objects; their sizes are averaged over objects and normalised.

References:
    | A value for n-person games (Shapley, 1953)
    | A unified approach to interpreting model predictions (Lundberg & Lee, 2017), with blocks as players
    | The Bayesian bootstrap (Rubin, 1981)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from consilience.analysis.base import AbstractResult, quantities, tiles, truth_of
from consilience.analysis.reading import blocks_of, varies
from consilience.analysis.scores import r_squared
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table
    from sklearn.ensemble import HistGradientBoostingRegressor

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Contributions", "block_shap", "contributions", "shapley"]

MOST = 8  # blocks, of which all subsets are read
FEWEST = 50, 10  # training and test rows of a target
EXPLAINED, BACKGROUND = 500, 100  # objects whose predictions are divided, and others that stand in
RESAMPLED = 400  # bootstrap weights of the test rows


@dataclass(frozen=True)
class Contributions(AbstractResult):
    r"""R² of every subset of blocks and the shares of each block, for K quantities.

    A subset is a number whose bit b says whether it holds block b; 0 is the empty one, the mean, with R² 0. Intervals
    hold 68 % of Bayesian bootstraps of the test rows; the regressors stay as they are. Where that of all blocks reaches
    zero nothing is known, and there are no shares: they are NaN.

    Arguments:
        blocks: B names.
        quantity: K names.
        of: Whether regressors read posterior means or draws.
        r2: Shape (2^B, K), with ``r2_interval`` (2, 2^B, K).
        shapley: Shapley values, in units of R²; their sum is that of all blocks. Shape (B, K), with
            ``shapley_interval`` (2, B, K).
        shap: Shares of the mean absolute Shapley values of predictions, (B, K).
    """

    name: ClassVar[str] = "contributions"

    blocks: tuple[str, ...]
    quantity: tuple[str, ...]
    of: str
    r2: FloatArray
    r2_interval: FloatArray
    shapley: FloatArray
    shapley_interval: FloatArray
    shap: FloatArray

    @property
    def share(self) -> FloatArray:
        """Shares of R²: Shapley values over the R² of all blocks, (B, K)."""
        whole = np.where(self.r2_interval[0, -1] > 0, self.r2[-1], np.nan)
        return self.shapley / whole

    def table(self) -> "Table":
        """R² with its interval, one row per subset and quantity, small subsets first."""
        from astropy.table import Table

        order = sorted(range(1, len(self.r2)), key=lambda subset: (subset.bit_count(), subset))
        return Table(
            {
                "blocks": [self._label(subset) for subset in order for _ in self.quantity],
                "quantity": list(self.quantity) * len(order),
                "R²": self.r2[order].ravel(),
                "low": self.r2_interval[0, order].ravel(),
                "high": self.r2_interval[1, order].ravel(),
            }
        )

    def shares(self) -> "Table":
        """Both kinds of shares, one row per block and quantity."""
        from astropy.table import Table

        return Table(
            {
                "block": [block for block in self.blocks for _ in self.quantity],
                "quantity": list(self.quantity) * len(self.blocks),
                "Shapley value": self.shapley.ravel(),
                "low": self.shapley_interval[0].ravel(),
                "high": self.shapley_interval[1].ravel(),
                "Shapley share": self.share.ravel(),
                "SHAP share": self.shap.ravel(),
            }
        )

    def spearman(self) -> float:
        """Rank correlation of both kinds of shares over all blocks and quantities; NaN where one kind is constant."""
        from scipy.stats import rankdata

        both = np.stack([self.share.ravel(), self.shap.ravel()])
        both = both[:, np.isfinite(both).all(axis=0)]
        if both.shape[1] < 2 or np.ptp(both, axis=1).min() == 0:
            return math.nan
        return float(np.corrcoef(rankdata(both, axis=1))[0, 1])

    def figure(self) -> "Figure":
        """Shares of each quantity, a dot per block: of what is explained above, of what is said below."""
        from consilience import plots

        shares = {"share of R²": self.share, "share of |SHAP|": self.shap}
        by_block = {kind: dict(zip(self.blocks, share, strict=True)) for kind, share in shares.items()}
        return plots.methods(by_block, self.quantity, self.blocks[0], f"read from the {self.of}s of blocks")

    def _label(self, subset: int) -> str:
        return " + ".join(block for b, block in enumerate(self.blocks) if subset >> b & 1)


def contributions(
    fitted: "Fitted",
    train: Observations,
    test: Observations,
    targets: Sequence[str],
    *,
    of: Literal["mean", "draw"] = "mean",
    seed: int = 0,
) -> Contributions:
    """Predict the cells of some modalities from every subset of the latent blocks, and give each block its share.

    Regressors are boosted trees, one per cell and subset, fitted on training rows, with a tenth of them to stop by. A
    target that the model knows is hidden from it. A mean may hold at a tiny scale what no draw shows (see ``probes``),
    and trees read it whatever its scale.

    Arguments:
        fitted: Any model with latents of its own for every object, in at most eight blocks.
        train: Rows on which regressors are fitted, with the model's modalities and the targets.
        test: Rows of neither, on which they are scored.
        targets: Modalities whose cells are predicted, each on the rows that have it.
        of: Read posterior means, or one draw of every object.
        seed: Of draws, regressors, bootstrap, and of the objects whose predictions are divided (at most 500, against
            100 others from the training rows: shares within .02).

    Raises:
        CapabilityError: a model without latents, or with more than eight blocks.
        DataError: a target cell that fewer than fifty training rows or ten test rows have, or that does not vary there.
    """
    rng = np.random.default_rng(seed)
    names = [quantity.name for target in targets for quantity in quantities(train.schema[target], each=True)]
    truths = [np.hstack([truth_of(rows, target) for target in targets]) for rows in (train, test)]
    _enough(names, *truths)
    latent = [blocks_of(fitted, rows, hide=targets) for rows in (train, test)]
    blocks = tuple(latent[0])
    if len(blocks) > MOST:
        raise CapabilityError(
            f"Expected at most {MOST} latent blocks, all of whose subsets are read; got {len(blocks)}. Use probes."
        )
    x, other = (np.hstack([one.mean if of == "mean" else one.draw(rng) for one in table.values()]) for table in latent)
    owner = np.repeat(np.arange(len(blocks)), [one.mean.shape[1] for one in latent[0].values()])
    alive = varies(x)
    found = []
    with threadpool_limits(1):
        for y, truth in zip(truths[0].T, truths[1].T, strict=True):
            there, scored = np.isfinite(y), np.isfinite(truth)
            found.append(_divide(x[there] * alive, y[there], other[scored] * alive, truth[scored], owner, rng))
    r2, r2_interval, value, value_interval, shap = (np.stack(some, axis=-1) for some in zip(*found, strict=True))
    return Contributions(blocks, tuple(names), of, r2, r2_interval, value, value_interval, shap)


def shapley(worth: FloatArray) -> FloatArray:
    r"""Shapley values of B players from the worth (2^B, …) of every coalition, shape (B, …).

    .. math:: \phi_b = \sum_{S \not\ni b} \frac{|S|!\,(B - |S| - 1)!}{B!} [v(S \cup b) - v(S)]

    Coalition number S holds player b where its bit b is set.

    Example:
        >>> shapley(np.array([0.0, 1.0, 2.0, 4.0])).tolist()  # each alone 1 and 2, both 4
        [1.5, 2.5]
    """
    players = len(worth).bit_length() - 1
    coalition = np.arange(len(worth))
    value = []
    for b in range(players):
        without = coalition[coalition >> b & 1 == 0]
        weight = 1 / (players * np.array([math.comb(players - 1, int(s).bit_count()) for s in without]))
        value.append(np.tensordot(weight, worth[without | 1 << b] - worth[without], 1))
    return np.stack(value)


def block_shap(
    predict: Callable[[FloatArray], FloatArray], x: FloatArray, background: FloatArray, owner: IntArray
) -> FloatArray:
    r"""Shapley values of the blocks of columns in the prediction of every row, (B, N), exact for this background.

    .. math:: v_x(S) = \frac1M \sum_m f(x_S, x^{(m)}_{\bar S})

    The interventional SHAP values that KernelSHAP samples, with whole blocks for players: they do not depend on how a
    block's columns are turned, and columns that f ignores add nothing.

    Arguments:
        predict: f, rows (R, Q) to (R,).
        x: Rows to explain, (N, Q).
        background: Rows that stand in for what is outside a coalition, (M, Q).
        owner: Number of the block of each column, (Q,).

    Example:
        >>> background = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
        >>> block_shap(lambda x: x.sum(1), np.array([[1.0, 2.0, 3.0]]), background, np.array([0, 0, 1])).tolist()
        [[1.0], [2.0]]
    """
    every = 1 << int(owner.max()) + 1
    worth = np.empty((every, len(x)))
    worth[0], worth[-1] = predict(background).mean(), predict(x)
    for rows in tiles(len(x), background.size):
        for coalition in range(1, every - 1):
            mixed = np.where(coalition >> owner & 1, x[rows, None], background)
            worth[coalition, rows] = predict(mixed.reshape(-1, x.shape[1])).reshape(len(mixed), -1).mean(axis=1)
    return shapley(worth)


def _divide(
    x: FloatArray, y: FloatArray, other: FloatArray, truth: FloatArray, owner: IntArray, rng: np.random.Generator
) -> tuple[FloatArray, ...]:
    """R² of every subset of blocks and its interval, Shapley values and theirs, shares of SHAP, of one quantity."""
    every = 1 << int(owner.max()) + 1
    said = np.empty((every, len(truth)))
    said[0] = truth.mean()
    for subset in range(1, every):
        columns = np.flatnonzero(subset >> owner & 1)
        trees = _trees(len(x), int(rng.integers(2**31))).fit(x[:, columns], y)
        said[subset] = trees.predict(other[:, columns])
    r2 = r_squared(np.broadcast_to(truth, said.shape).T, said.T)
    r2[0] = 0.0
    again = _resampled(truth, said, rng)
    explained, background = (
        some[rng.choice(len(some), min(len(some), most), replace=False)]
        for some, most in ((other, EXPLAINED), (x, BACKGROUND))
    )
    # the last subset is that of all blocks
    size = np.abs(block_shap(trees.predict, explained, background, owner)).mean(axis=1)
    r2_interval, value_interval = (np.quantile(some, [0.16, 0.84], axis=-1) for some in (again, shapley(again)))
    shap = size / size.sum() if r2_interval[0, -1] > 0 else np.full(len(size), np.nan)
    return r2, r2_interval, shapley(r2), value_interval, shap


def _resampled(truth: FloatArray, said: FloatArray, rng: np.random.Generator) -> FloatArray:
    """R² (2^B, RESAMPLED) of what was said (2^B, N) under random weights of the rows; that of the mean stays 0."""
    weight = rng.dirichlet(np.ones(len(truth)), RESAMPLED).T
    about = truth - truth.mean()
    r2 = 1 - ((truth - said) ** 2 @ weight) / (about**2 @ weight - (about @ weight) ** 2)
    r2[0] = 0.0
    return r2


def _trees(rows: int, seed: int) -> "HistGradientBoostingRegressor":
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=300, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=min(20, rows // 10),
        l2_regularization=1.0, early_stopping=True, random_state=seed,  # type: ignore[arg-type]  # sklearn's stub says str
    )  # fmt: skip


def _enough(names: Sequence[str], y: FloatArray, truth: FloatArray) -> None:
    for cell, name in enumerate(names):
        found = [column[np.isfinite(column)] for column in (y[:, cell], truth[:, cell])]
        if any(len(some) < fewest for some, fewest in zip(found, FEWEST, strict=True)):
            raise DataError(
                f"Expected '{name}' in {FEWEST[0]} training and {FEWEST[1]} test rows; got {len(found[0])} and "
                f"{len(found[1])}. Leave it out, or give more rows."
            )
        if min(np.ptp(some) for some in found) == 0:
            raise DataError(f"Expected values of '{name}' that vary; got equal ones. Leave it out.")
