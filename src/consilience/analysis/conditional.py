r"""Is the posterior right for every kind of row? What was seen must not tell where in its posterior the truth lies.

A posterior given all that was seen makes the PIT u of each cell uniform *whatever* was seen, so

.. math:: w = \Phi^{-1}(u), \qquad v = \Phi^{-1}(|2u - 1|)

are standard normal and independent of the seen cells x: w says where the truth lies, v how far from the middle. Each
is regressed on features of x, and the F statistic of K features on N rows is exactly F(K, N - K - 1) where the
posterior is right. Posteriors that leave out what an instrument tells are calibrated on average, and so is the prior:
no histogram of ranks sees them, the position of the truth in them does.

References:
    | Diagnostics for conditional density models and Bayesian inference algorithms (Zhao et al., 2021)
    | L-C2ST: local diagnostics for posterior approximations (Linhart, Gramfort & Rodrigues, 2023)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import stats

from consilience.analysis.base import AbstractResult
from consilience.analysis.question import Question, ask
from consilience.analysis.reading import varies
from consilience.analysis.scores import pit
from consilience.data.observations import Observations
from consilience.data.patterns import seen_parts
from consilience.data.scaling import Scaler
from consilience.errors import DataError
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["ConditionalCalibration", "conditional_calibration"]

COMPONENTS = 8  # principal components of a modality; fewer where rows are few
FEWEST = 20  # rows of a cell


@dataclass(frozen=True)
class ConditionalCalibration(AbstractResult):
    """What each of M modalities, and at last all together, tell of where the truth of C cells lies in its posterior.

    ``position`` and ``width`` (M + 1, C) are the R² of w and v (see the module) less what chance gives: 0 where the
    posterior is right; a modality with a large ``position`` tells more than the model has heard. ``position_pvalue``
    and ``width_pvalue`` are those of each alone, ``pvalue`` of all cells and both tests, of all modalities together
    (Bonferroni).
    """

    name: ClassVar[str] = "conditional-calibration"

    cells: tuple[str, ...]
    sources: tuple[str, ...]
    rows: IntArray
    position: FloatArray
    width: FloatArray
    position_pvalue: FloatArray
    width_pvalue: FloatArray
    pvalue: float

    def table(self) -> "Table":
        """One row per cell and modality."""
        from astropy.table import Table

        count = len(self.sources)
        scores = ("position", "position_pvalue", "width", "width_pvalue")
        columns = {score: getattr(self, score).T.ravel() for score in scores}
        cells, rows = np.repeat(self.cells, count), np.repeat(self.rows, count)
        return Table({"cell": cells, "modality": list(self.sources) * len(self.cells), "rows": rows, **columns})

    def figure(self) -> "Figure":
        """R² of position and width, by modality and cell."""
        from consilience import plots

        names = [f"{source}: {kind}" for kind in ("position", "width") for source in self.sources]
        pvalue = f"= {self.pvalue:.2g}" if self.pvalue > 1e-12 else "< 1e-12"
        title = f"p {pvalue}, of all cells and both"
        value = np.maximum(np.concatenate([self.position, self.width]), 0.0)
        return plots.heat_map(value, names, self.cells, "R² of the truth's place in its posterior", title)


def conditional_calibration(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    n: int = 500,
    seed: int = 0,
) -> ConditionalCalibration:
    """Whether posteriors hold in every part of the data, and which modality tells more than was made of it.

    Features of a modality are the ranks (as normal scores) of up to eight principal components of its cells, their
    squares, and what of it is seen.

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on, targets measured; one row per object.
        targets: Modalities of ordered numbers; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden. It may show less than the
            rows hold: features are of what it shows.
        n: Draws per object.
        seed: Of the draws and of the randomised PIT.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: too few measured rows of every cell, nothing shown, or ``given`` of other rows.
        RequestError: a category as target.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(300, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:100], cs.TrainConfig(max_steps=5))
        >>> conditional_calibration(fit, table[100:], ["y"], n=40).sources
        ('x', 'all')
    """
    question = ask(fitted, obs, targets, given)
    truth = question.truth()
    rows = np.isfinite(truth).sum(axis=0)
    if rows.max(initial=0) < FEWEST or not question.readable:
        raise DataError(
            f"Expected at least {FEWEST} rows with a measured cell of {list(question.targets)} and something else "
            f"seen; got {rows.max(initial=0)} rows, seen {list(question.readable)}. Pass more rows."
        )
    u = np.full(truth.shape, np.nan)
    rng = np.random.default_rng(seed)
    for some, draws, _ in question.draws(n, seed, observed=True):
        u[some] = pit(draws, truth[some], rng)
    u = np.clip(u, 1e-9, 1 - 1e-9)
    scores = np.stack([stats.norm.ppf(u), stats.norm.ppf(np.clip(np.abs(2 * u - 1), 1e-9, None))])
    own = _features(question, seed)
    sources = [*own.values(), np.concatenate(list(own.values()), axis=1)]
    found = np.array([[[_told(score[:, c], x) for c in range(truth.shape[1])] for x in sources] for score in scores])
    together = found[:, -1, :, 1]
    used = max(int(np.isfinite(together).sum()), 1)
    cells = tuple(q.name for q in question.cells())
    (position, position_pvalue), (width, width_pvalue) = (np.moveaxis(one, -1, 0) for one in found)
    return ConditionalCalibration(
        cells, (*own, "all"), rows, position, width, position_pvalue, width_pvalue,
        min(1.0, used * float(np.nanmin(together, initial=1.0))),
    )  # fmt: skip


def _features(question: Question, seed: int) -> dict[str, FloatArray]:
    """Features of what each modality shows, (N, K), those that differ between rows."""
    from sklearn.decomposition import PCA

    found, size = {}, len(question.given)
    most = int(np.clip(size // (40 * len(question.readable)), 1, COMPONENTS))
    for name in question.readable:
        alone = question.given.select(name)
        flags = seen_parts(alone, name)[0].astype(float)
        there = flags.any(axis=1)
        columns = [flags[:, flags.std(axis=0) > 0]]
        if alone.parts[name].measured.any():
            value = Scaler.fit(alone).forward(alone).parts[name].value.reshape(size, -1)[there]
            value = value[:, varies(value)]
            if not value.size:
                found[name] = columns[0]
                continue
            parts = PCA(min(most, *value.shape), random_state=seed).fit_transform(value)
            ranks = stats.norm.ppf((stats.rankdata(parts, axis=0) - 0.5) / len(parts))
            both = np.zeros((size, 2 * parts.shape[1]))
            both[there] = np.concatenate([ranks, ranks**2 - 1], axis=1)
            columns.append(both)
        found[name] = np.concatenate(columns, axis=1)
    return found


def _told(score: FloatArray, features: FloatArray) -> tuple[float, float]:
    """Adjusted R² of standard normal scores (N,) from features (N, K), and the p-value of its F statistic."""
    known = np.isfinite(score)
    if known.sum() < FEWEST:
        return np.nan, np.nan
    x, y = features[known] - features[known].mean(axis=0), score[known] - score[known].mean()
    u, size, _ = np.linalg.svd(x, full_matrices=False)
    basis = u[:, size > 1e-8 * max(float(size.max(initial=0.0)), 1e-300)]
    rows, count = basis.shape
    if not count or rows <= count + 1:
        return np.nan, np.nan
    told, total = float(np.square(basis.T @ y).sum()), float(y @ y)
    left = (total - told) / (rows - count - 1)
    pvalue = stats.f.sf(told / count / left, count, rows - count - 1)
    return 1 - left * (rows - 1) / total, float(pvalue)
