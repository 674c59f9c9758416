r"""Who told you? What each modality adds to what a model knows of a quantity, shared out over all their orders.

A coalition S of modalities is worth what the model says of the target when these are all that it sees. Of cell y, on
the N rows that have it, there are two worths:

.. math::
    v_{R^2}(S) = 1 - \frac{\sum_n (y_n - E[y \mid x_{n,S}])^2}{\sum_n (y_n - \bar y)^2}, \qquad
    v_\text{bits}(S) = \frac1N \sum_n \log_2 p(y_n \mid x_{n,S}).

Modality m has the Shapley value :math:`\phi_m`, its average gain over all orders; :math:`\sum_m \phi_m = v(\text{all})
- v(\varnothing)`, where v(∅) is what the model says of an object that nobody has seen. Of a model that is right, the
mean of :math:`v_\text{bits}(S) - v_\text{bits}(\varnothing)` is the mutual information of y and the modalities of S.
Modalities that tell the same share what they tell, one that is not there in a row adds nothing to it, and one that
misleads has a negative value.

No regressor is fitted and nothing stands in for what is hidden: every coalition is a question that the model answers.
Latent blocks are shared out by :func:`~consilience.analysis.contributions.contributions`.

References:
    | A value for n-person games (Shapley, 1953)
    | The Bayesian bootstrap (Rubin, 1981)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult
from consilience.analysis.contributions import shapley
from consilience.analysis.question import Question, ask
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError, RequestError
from consilience.typing import FloatArray, IntArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Attribution", "attribution"]

MOST = 8  # modalities, all of whose coalitions are asked
FEWEST = 10  # rows of a cell
RESAMPLED = 400  # bootstrap weights of the rows


@dataclass(frozen=True)
class Attribution(AbstractResult):
    r"""Worth of every coalition of M modalities for K cells, and what each modality adds.

    Coalition number S holds modality m where its bit m is set. Intervals hold 68 % of Bayesian bootstraps of the rows.

    Arguments:
        modalities: M names.
        cells: K names, with ``units``.
        rows: Rows that have the cell, (K,).
        r2: Shape (2^M, K).
        bits: Mean log2 density per physical unit, (2^M, K); NaN for a model without densities.
        r2_value: Shapley values of the modalities in R², (M, K), with ``r2_interval`` (2, M, K).
        bits_value: In bits, (M, K), with ``bits_interval`` (2, M, K).
        ids: N rows.
        start: Posterior means of a row of which nothing is seen, (N, K).
        moved: Shapley values of the posterior mean of each row, in the unit of the cell, (M, N, K): with ``start`` they
            add up to what is said given all.
        truth: Measured values, (N, K).
    """

    name: ClassVar[str] = "attribution"

    modalities: tuple[str, ...]
    cells: tuple[str, ...]
    units: tuple[str, ...]
    rows: IntArray
    r2: FloatArray
    bits: FloatArray
    r2_value: FloatArray
    r2_interval: FloatArray
    bits_value: FloatArray
    bits_interval: FloatArray
    ids: StringArray
    start: FloatArray
    moved: FloatArray
    truth: FloatArray

    def table(self) -> "Table":
        """Shapley values with their intervals, one row per modality and cell."""
        from astropy.table import Table

        found = {
            "modality": [name for name in self.modalities for _ in self.cells],
            "cell": list(self.cells) * len(self.modalities),
        }
        for kind in ("r2", "bits"):
            low, high = getattr(self, f"{kind}_interval")
            found |= {kind: getattr(self, f"{kind}_value").ravel(), f"{kind}_low": low.ravel()}
            found |= {f"{kind}_high": high.ravel()}
        return Table(found)

    def coalitions(self) -> "Table":
        """What every coalition is worth, one row per coalition and cell, small ones first; nlpd in nats."""
        from astropy.table import Table

        order = sorted(range(len(self.r2)), key=lambda coalition: (coalition.bit_count(), coalition))
        names = [" + ".join(m for b, m in enumerate(self.modalities) if s >> b & 1) or "nothing" for s in order]
        return Table(
            {
                "seen": [name for name in names for _ in self.cells],
                "cell": list(self.cells) * len(order),
                "r2": self.r2[order].ravel(),
                "nlpd": -np.log(2) * self.bits[order].ravel(),
                "bits_gained": (self.bits[order] - self.bits[0]).ravel(),
            }
        )

    def figure(self) -> "Figure":
        """What each modality adds to each cell: bits, or R² of a model without densities."""
        from consilience import plots

        said = np.isfinite(self.bits_value).any()
        value, label = (self.bits_value, "Shapley value [bits]") if said else (self.r2_value, "Shapley value of R²")
        return plots.heat_map(value, self.modalities, self.cells, label, f"{len(self.ids)} rows")

    def waterfall(self, row: str, cell: str) -> "Figure":
        """How the modalities move the posterior mean of one cell in one row, from what is said of any object.

        Arguments:
            row: Its id.
            cell: Name of the cell.

        Raises:
            RequestError: no such row or cell.
        """
        from consilience import plots

        if row not in self.ids or cell not in self.cells:
            raise RequestError(
                f"Expected a row such as {str(self.ids[0])!r} and a cell among {list(self.cells)}; got {row!r} and "
                f"{cell!r}."
            )
        n, k = int(np.flatnonzero(self.ids == row)[0]), self.cells.index(cell)
        steps = dict(zip(self.modalities, map(float, self.moved[:, n, k]), strict=True))
        label = plots.with_unit(cell, self.units[k])
        return plots.waterfall(float(self.start[n, k]), steps, label, float(self.truth[n, k]), f"row {row}")


def attribution(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    n: int = 200,
    seed: int = 0,
) -> Attribution:
    """Ask the model for the targets given every coalition of the modalities that are seen, and share out what it gains.

    Arguments:
        fitted: Any model that answers for the targets from any of its modalities.
        obs: Rows that the model was not trained on, targets measured.
        targets: Modalities of ordered numbers; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden. At most eight modalities
            may be seen in it: of M there are 2^M coalitions.
        n: Draws behind each posterior mean.
        seed: Of draws and bootstrap.

    Raises:
        CapabilityError: the model does not answer one of these questions, or more than eight modalities are seen.
        DataError: nothing is seen, fewer than ten rows have a cell or it does not vary in them, or ``given`` of other
            rows.
        RequestError: a category as target.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(80, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:50], cs.TrainConfig(max_steps=5))
        >>> found = attribution(fit, table[50:], ["y"], n=20)
        >>> found.modalities, found.r2.shape
        (('x',), (2, 3))
    """
    question = ask(fitted, obs, targets, given)
    players, truth = question.readable, question.truth()
    _check(question, truth)
    rows = np.isfinite(truth)
    mean = np.empty((1 << len(players), *truth.shape))
    bits = np.full(mean.shape, np.nan)
    for coalition, asked in enumerate(_coalitions(question)):
        answer = fitted.summarise(asked.given, list(asked.targets), statistics=("mean",), n=n, seed=seed)
        mean[coalition] = _flat([answer.statistics[t]["mean"] for t in asked.targets])
        if "density" in fitted.capabilities:
            value = fitted.cell_log_prob(obs, list(asked.targets), given=asked.given)
            bits[coalition] = np.where(rows, _flat([value[t] for t in asked.targets]), np.nan) / np.log(2)
    rng = np.random.default_rng(seed)
    found = []
    for k, there in enumerate(rows.T):
        weight = rng.dirichlet(np.ones(there.sum()), RESAMPLED).T
        weight = np.column_stack([np.full(len(weight), 1 / len(weight)), weight])  # the first is the sample itself
        y, said = truth[there, k], mean[:, there, k]
        about = y - y.mean()
        variance = about**2 @ weight - (about @ weight) ** 2
        found.append((1 - (y - said) ** 2 @ weight / variance, bits[:, there, k] @ weight))
    r2, told = (np.stack(each, axis=1) for each in zip(*found, strict=True))  # (2^M, K, 1 + RESAMPLED)
    values = [shapley(worth) for worth in (r2, told)]
    intervals = [np.quantile(value[..., 1:], [0.16, 0.84], axis=-1) for value in values]
    cells = question.cells()
    return Attribution(
        players, tuple(q.name for q in cells), tuple(q.unit for q in cells), rows.sum(axis=0), r2[..., 0], told[..., 0],
        values[0][..., 0], intervals[0], values[1][..., 0], intervals[1], obs.ids, mean[0], shapley(mean), truth,
    )  # fmt: skip


def _coalitions(question: Question) -> Iterator[Question]:
    """The same question from every coalition of the modalities that are seen, the empty one first.

    Raises:
        CapabilityError: the model does not answer from one of them.
    """
    for coalition in range(1 << len(question.readable)):
        hidden = [name for m, name in enumerate(question.readable) if not coalition >> m & 1]
        yield ask(question.fitted, question.obs, question.targets, question.given.hide(*hidden))


def _flat(values: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate([value.reshape(len(value), -1) for value in values], axis=1)


def _check(question: Question, truth: FloatArray) -> None:
    if not 1 <= len(question.readable) <= MOST:
        error = CapabilityError if question.readable else DataError
        raise error(
            f"Expected between 1 and {MOST} modalities to be seen beside {list(question.targets)}, all of whose "
            f"coalitions are asked; got {list(question.readable)}. Hide some in given."
        )
    for cell, y in zip(question.cells(), truth.T, strict=True):
        seen = y[np.isfinite(y)]
        if len(seen) < FEWEST or np.ptp(seen) == 0:
            raise DataError(
                f"Expected values of '{cell.name}' that vary, in {FEWEST} rows or more; got {len(seen)} rows"
                f"{' of one value' if len(seen) >= FEWEST else ''}. Leave its modality out, or give more rows."
            )
