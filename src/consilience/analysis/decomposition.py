r"""Do two instruments say the same, or different things, or something only together? Partial information decomposition.

What two sources tell of a target is split into what either tells (redundancy R), what only one tells (U₁, U₂) and what
shows only in both together (synergy S):

.. math:: I(T; S_1, S_2) = R + U_1 + U_2 + S, \qquad I(T; S_i) = R + U_i.

Three equations leave one number to be *defined*, and definitions differ. Two are given:

- **I_min** (Williams & Beer, 2010): :math:`R = \sum_t p(t) \min_i I(T{=}t; S_i)`, the smaller amount that either
  tells of each outcome. It counts as redundant that both tell as much, be it of different things: of two independent
  bits that are copied, R is 1 bit.
- **BROJA** (Bertschinger et al., 2014): :math:`S = I(T; S_1, S_2) - \min_q I_q(T; S_1, S_2)` over all q with the same
  p(t, s₁) and p(t, s₂): only what no such q could do without is synergy. Of the two bits R is 0.

Their sums are the same; read R and S of both as a range, never one alone as the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from consilience.analysis.base import AbstractResult
from consilience.analysis.question import ask
from consilience.data.observations import Observations
from consilience.errors import DataError, RequestError
from consilience.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Decomposition", "PartialInformation", "decomposition", "partial_information"]

PARTS = ("redundancy", "unique_one", "unique_other", "synergy")
DEFINITIONS = ("I_min", "BROJA")
EXPONENT, STEPS = 9, 40  # smallest barrier, as a power of ten; most Newton steps at each
SHUFFLES = 8  # of the target, which show what chance alone gives
PER_CELL = 5  # rows for every combination of bins


class PartialInformation(NamedTuple):
    """Bits that two sources tell of a target."""

    redundancy: float
    unique_one: float
    unique_other: float
    synergy: float


@dataclass(frozen=True)
class Decomposition(AbstractResult):
    """Parts of what pairs of modalities tell of K cells, in bits, by two definitions.

    Arguments:
        one: First modality of each of P pairs.
        other: Second modality.
        cells: K names.
        rows: Rows that have the cell and both modalities, (P, K).
        bits: Redundancy, what only the one and only the other tells, and synergy, by definition, (2, P, K, 4).
        chance: The same where the target is shuffled, the mean of eight times: what few rows and many bins alone give.
    """

    name: ClassVar[str] = "decomposition"

    one: tuple[str, ...]
    other: tuple[str, ...]
    cells: tuple[str, ...]
    rows: IntArray
    bits: FloatArray
    chance: FloatArray

    def table(self) -> "Table":
        """One row per pair, cell and definition."""
        from astropy.table import Table

        found = []
        for d, definition in enumerate(DEFINITIONS):
            for p, pair in enumerate(zip(self.one, self.other, strict=True)):
                for k, cell in enumerate(self.cells):
                    row = {"one": pair[0], "other": pair[1], "cell": cell, "rows": int(self.rows[p, k])}
                    row |= {"definition": definition}
                    row |= dict(zip(PARTS, self.bits[d, p, k], strict=True))
                    found.append(row | {"chance": float(self.chance[d, p, k].sum())})
        return Table(found)

    def figure(self) -> "Figure":
        """Bits of each part by pair and cell, by BROJA."""
        from consilience import plots

        rows = [
            f"{one} + {other}: {cell}" for one, other in zip(self.one, self.other, strict=True) for cell in self.cells
        ]
        value = np.maximum(self.bits[DEFINITIONS.index("BROJA")].reshape(-1, len(PARTS)), 0.0)  # but for rounding
        columns = ["either", "only first", "only second", "only together"]
        return plots.heat_map(value, rows, columns, "bits", "BROJA")


def partial_information(joint: FloatArray, definition: str = "BROJA") -> PartialInformation:
    """The parts of what two sources tell of a target.

    Arguments:
        joint: Probabilities p(s₁, s₂, t), shape (A, B, T); counts do too.
        definition: "I_min" or "BROJA" (see the module).

    Raises:
        DataError: another shape, or values that are no probabilities.
        RequestError: another definition.

    Example:
        >>> xor = np.zeros((2, 2, 2))
        >>> xor[0, 0, 0] = xor[0, 1, 1] = xor[1, 0, 1] = xor[1, 1, 0] = 0.25
        >>> [abs(round(bits, 6)) for bits in partial_information(xor)]
        [0.0, 0.0, 0.0, 1.0]

    References:
        | Nonnegative decomposition of multivariate information (Williams & Beer, 2010)
        | Quantifying unique information (Bertschinger, Rauh, Olbrich, Jost & Ay, 2014)
    """
    p = np.asarray(joint, dtype=float)
    if p.ndim != 3 or not np.isfinite(p).all() or (p < 0).any() or p.sum() <= 0:
        raise DataError(f"Expected probabilities (A, B, T), none negative; got shape {p.shape}. Count combinations.")
    if definition not in DEFINITIONS:
        raise RequestError(f"Expected a definition among {list(DEFINITIONS)}; got {definition!r}.")
    p = p / p.sum()
    told = [_information(p.sum(axis=1 - source)) for source in (0, 1)]
    both = _information(p.reshape(-1, p.shape[2]))
    if definition == "I_min":
        shared = float(np.minimum(*(_specific(p.sum(axis=1 - source)) for source in (0, 1))).sum())
    else:
        shared = told[0] + told[1] - _least(p)
    return PartialInformation(shared, told[0] - shared, told[1] - shared, both - told[0] - told[1] + shared)


def _information(p: FloatArray) -> float:
    """I(S; T) of p(s, t), bits."""
    return float(_specific(p).sum())


def _specific(p: FloatArray) -> FloatArray:
    """p(t) I(T=t; S) of p(s, t), bits, (T,)."""
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    return (p * np.log2(np.where(p > 0, p, 1.0) / np.where(p > 0, independent, 1.0))).sum(axis=0)


def _least(p: FloatArray) -> float:
    r"""The least I_q(T; S₁, S₂) with the p(s₁, t) and p(s₂, t) of p, bits.

    :math:`\sum q \log(q / r)` with r(s₁, s₂) the sum over t, which differs from it by a constant, is convex in q:
    Newton steps along what leaves both margins as they are, inside a logarithmic barrier that shrinks tenfold.
    """
    p = p[:, :, p.sum(axis=(0, 1)) > 0]
    one, other = p.sum(axis=1), p.sum(axis=0)  # (A, T), (B, T)
    inside = (one[:, None] > 0) & (other > 0)
    q = (one[:, None] * other / p.sum(axis=(0, 1)))[inside]
    place = np.nonzero(inside)[0] * p.shape[1] + np.nonzero(inside)[1]  # number of (s1, s2) of each value
    moves = _moves(one > 0, other > 0, inside)
    same = place[:, None] == place
    for barrier in (10.0 ** -np.arange(1, EXPONENT + 1)) if len(moves) else ():
        for _ in range(STEPS):
            r = np.bincount(place, q)[place]
            slope = moves @ (np.log(q / r) - barrier / q)
            curvature = np.diag(1 / q + barrier / np.square(q)) - same / r
            step = -np.linalg.lstsq(moves @ curvature @ moves.T, slope, rcond=None)[0]
            gain, along = -slope @ step, step @ moves
            if gain < 1e-3 * barrier:
                break
            length = min(1.0, 0.9 / max(float((-along / q).max()), 1e-300))
            while _height(q + length * along, place, barrier) > _height(q, place, barrier) - 0.1 * length * gain:
                length /= 2
                if length < 1e-12:
                    break
            q = q + length * along
    found = np.zeros(p.shape)
    found[inside] = q
    return _information(found.reshape(-1, p.shape[2]))


def _moves(one: BoolArray, other: BoolArray, inside: BoolArray) -> FloatArray:
    """A basis of what changes q and leaves both margins as they are, (moves, values inside)."""
    found = []
    for t in range(one.shape[1]):
        (a, *rows), (b, *columns) = np.flatnonzero(one[:, t]), np.flatnonzero(other[:, t])
        for row in rows:
            for column in columns:
                move = np.zeros(inside.shape)
                move[row, column, t] = move[a, b, t] = 1.0
                move[row, b, t] = move[a, column, t] = -1.0
                found.append(move[inside])
    return np.array(found)


def _height(q: FloatArray, place: IntArray, barrier: float) -> float:
    if (q <= 0).any():
        return np.inf
    return float((q * np.log(q / np.bincount(place, q)[place])).sum() - barrier * np.log(q).sum())


def decomposition(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bins: int = 4,
    n: int = 200,
    seed: int = 0,
) -> Decomposition:
    """What every two modalities tell of each target cell: either of them, one alone, or only both together.

    A modality's word is the posterior mean of the cell given it alone; each source and the target are cut at their
    quantiles, and both together tell what the pair of these words tells, not what the model says given both. What a
    mean does not say (widths, second modes) and what is lost within bins is not counted; a model that does not use a
    modality makes it tell nothing.

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on, targets measured.
        targets: Modalities of ordered numbers; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bins: Of each source and of the target.
        n: Draws per object.
        seed: Of the draws and the shuffles.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: fewer than two modalities seen, or too few rows that have both for so many bins.
        RequestError: fewer than two bins, or a category as target.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(500, seed=0, sizes={"x": 4, "w": 4, "y": 1}, missing=0.0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:100], cs.TrainConfig(max_steps=5))
        >>> found = decomposition(fit, table[100:], ["y"], n=20)
        >>> found.one, found.other, found.bits.shape
        (('w',), ('x',), (2, 1, 1, 4))
    """
    question = ask(fitted, obs, targets, given)
    if bins < 2:
        raise RequestError(f"Expected two bins at least; got {bins}.")
    if len(question.readable) < 2:
        raise DataError(f"Expected two modalities at least to be seen; got {list(question.readable)}. Show more.")
    truth, names = question.truth(), list(question.targets)
    cells = tuple(q.name for q in question.cells())
    words, there = {}, {}
    for name in question.readable:
        alone = question.given.hide(*(other for other in question.readable if other != name))
        ask(fitted, obs, names, alone)  # refuses what the model does not answer
        answer = fitted.summarise(alone, names, statistics=("mean",), n=n, seed=seed)
        words[name] = np.concatenate([answer.statistics[t]["mean"].reshape(len(obs), -1) for t in names], axis=1)
        there[name] = alone.parts[name].seen.reshape(len(obs), -1).any(axis=1)
    pairs = list(combinations(question.readable, 2))
    shape = (len(pairs), len(cells))
    rows, found = np.zeros(shape, dtype=np.int64), np.empty((2, 2, *shape, len(PARTS)))
    rng = np.random.default_rng(seed)
    for p, (one, other) in enumerate(pairs):
        for k, cell in enumerate(cells):
            use = there[one] & there[other] & np.isfinite(truth[:, k])
            rows[p, k] = use.sum()
            if use.sum() < PER_CELL * bins**3:
                raise DataError(
                    f"Expected at least {PER_CELL * bins**3} rows with '{cell}', '{one}' and '{other}' for {bins} "
                    f"bins; got {use.sum()}. Use fewer bins, or pass more rows."
                )
            sources = [_cut(column, bins) for column in (words[one][use, k], words[other][use, k])]
            target = _cut(truth[use, k], bins)
            for d, definition in enumerate(DEFINITIONS):
                found[0, d, p, k] = partial_information(_counts(sources, target, bins), definition)
                shuffled = [
                    partial_information(_counts(sources, rng.permutation(target), bins), definition)
                    for _ in range(SHUFFLES)
                ]
                found[1, d, p, k] = np.mean(shuffled, axis=0)
    one, other = zip(*pairs, strict=True)
    return Decomposition(one, other, cells, rows, found[0], found[1])


def _cut(values: FloatArray, bins: int) -> IntArray:
    """Number of the quantile bin of each value."""
    return np.searchsorted(np.quantile(values, np.arange(1, bins) / bins), values, side="right")


def _counts(sources: Sequence[IntArray], target: IntArray, bins: int) -> FloatArray:
    one, other = sources
    return np.bincount((one * bins + other) * bins + target, minlength=bins**3).reshape(bins, bins, bins).astype(float)
