"""Is the model better than the baselines? The same rows, the same inputs, the same scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, answered, tiles, truth_of
from consilience.analysis.baselines import BASELINES, AbstractBaseline
from consilience.analysis.scores import central, mean_absolute_error, pit, root_mean_square
from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Comparison", "compare"]

MODEL = "model"


@dataclass(frozen=True)
class Comparison(AbstractResult):
    """Scores of the model ("model") and of the baselines: ``scores[score][method]`` of shape (L,).

    ``mae`` is that of the predictive median, ``rmse`` that of the mean, in the cell's unit; ``nlpd`` in nats.
    ``log_density[method]`` (N, L) holds each row's log density, for paired differences.
    """

    name: ClassVar[str] = "comparison"

    cells: tuple[str, ...]
    units: tuple[str, ...]
    inputs: tuple[str, ...]
    rows: IntArray
    scores: dict[str, dict[str, FloatArray]]
    log_density: dict[str, FloatArray]

    def table(self) -> "Table":
        """One row per cell and method."""
        from astropy.table import Table

        methods = list(next(iter(self.scores.values())))
        pairs = [(c, m) for c in range(len(self.cells)) for m in methods]
        columns: dict[str, list[object]] = {
            "cell": [self.cells[c] for c, _ in pairs],
            "unit": [self.units[c] for c, _ in pairs],
            "method": [m for _, m in pairs],
            "rows": [int(self.rows[c]) for c, _ in pairs],
        }
        return Table({**columns, **{key: [by[m][c] for c, m in pairs] for key, by in self.scores.items()}})

    def figure(self) -> "Figure":
        """NLPD and RMSE, a panel per cell, a dot per method."""
        from consilience import plots

        shown = {"NLPD [nats]": self.scores["nlpd"], "RMSE": self.scores["rmse"]}
        return plots.methods(shown, self.cells, MODEL)

    def advantage(self) -> FloatArray:
        """NLPD of the model minus that of the best baseline, per cell (L,); negative where the model is better."""
        others = [value for method, value in self.scores["nlpd"].items() if method != MODEL]
        return self.scores["nlpd"][MODEL] - np.min(others, axis=0)


def compare(
    fitted: "Fitted",
    train: Observations,
    test: Observations,
    inputs: Sequence[str],
    target: str = "labels",
    *,
    baselines: Sequence[AbstractBaseline] | None = None,
    n: int = 500,
) -> Comparison:
    """The model and the baselines on the measured target cells of the test rows, from the same inputs.

    Arguments:
        fitted: A model fitted on ``train``.
        train: Rows that the baselines learn from.
        test: Rows of neither.
        inputs: Modalities that everyone sees.
        target: Modality to predict.
        baselines: Unfitted baselines; by default the mean, ridge on PCA and boosted trees.
        n: Draws per object from the model (seed 0).

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: rows shared by both tables, or no measured target cell in the test rows.
    """
    both = np.intersect1d(train.ids, test.ids)
    if len(both):
        raise DataError(f"Expected test rows that are not in the training table; got {len(both)}, e.g. {both[0]!r}.")
    spec = fitted.schema[target]
    answered(fitted, frozenset(inputs), [target])
    truth = truth_of(test, target)
    if not np.isfinite(truth).any():
        raise DataError(f"Expected measured cells of '{target}' in the test rows; got none. Pass rows with truth.")
    found = {MODEL: _of_model(fitted, test, tuple(inputs), target, truth, n)}
    for baseline in baselines if baselines is not None else [kind() for kind in BASELINES]:
        p = baseline.fit(train, inputs, target).predict(test)
        found[baseline.name] = _scores(truth, p.mean, p.quantile(0.5), p.pit(truth), p.log_density(truth))
    scores = {key: {method: value[key] for method, value in found.items()} for key in found[MODEL] if key != "log_p"}
    return Comparison(
        tuple(spec.cell_names()),
        tuple(spec.cell_units()),
        tuple(inputs),
        np.isfinite(truth).sum(axis=0),
        scores,
        {method: value["log_p"] for method, value in found.items()},
    )


def _of_model(
    fitted: "Fitted", test: Observations, inputs: tuple[str, ...], target: str, truth: FloatArray, n: int
) -> dict[str, FloatArray]:
    given = test.hide(*(name for name in test.schema.names if name not in inputs))
    mean, median, u, log_p = (np.full(truth.shape, np.nan) for _ in range(4))
    rng = np.random.default_rng(0)
    for rows in tiles(len(test), 3 * n * truth.shape[1], fitted):
        samples = fitted.sample(given[rows], [target], n=n, seed=0, observed=True, at=test[rows])
        draws = samples.values[target].reshape(n, *truth[rows].shape)
        mean[rows], median[rows] = draws.mean(axis=0), np.median(draws, axis=0)
        u[rows] = pit(draws, truth[rows], rng)
        if "density" in fitted.capabilities:
            value = fitted.cell_log_prob(test[rows], [target], given=given[rows])[target]
            log_p[rows] = value.reshape(truth[rows].shape)
    return _scores(truth, mean, median, u, log_p)


def _scores(
    truth: FloatArray, mean: FloatArray, median: FloatArray, u: FloatArray, log_p: FloatArray
) -> dict[str, FloatArray]:
    there = np.isfinite(truth)
    count = there.sum(axis=0)
    some = np.where(count > 0, count, np.nan)
    inside = central(np.where(there, u, np.nan), np.array([0.68, 0.95])).sum(axis=1) / some
    log_p = np.where(there, log_p, np.nan)
    return {
        "mae": mean_absolute_error(median - truth),
        "rmse": root_mean_square(mean - truth),
        "nlpd": -np.where(there, log_p, 0.0).sum(axis=0) / some,
        "coverage68": inside[0],
        "coverage95": inside[1],
        "log_p": log_p,
    }
