"""What any model must beat: the mean, ridge regression on principal components, gradient-boosted trees.

Each predicts every cell of a target from the cells of other modalities, and carries a density from cross-validated
residuals whose family (Gaussian, Student-t, kernel) is chosen by cross-validated likelihood.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from threadpoolctl import threadpool_limits

from consilience.analysis.base import truth_of
from consilience.analysis.residuals import ResidualDensity, fit_residuals
from consilience.data.observations import Observations
from consilience.errors import DataError, RequestError
from consilience.typing import FloatArray, IntArray

__all__ = ["BASELINES", "AbstractBaseline", "BoostedTrees", "MeanBaseline", "Prediction", "RidgePCA", "design"]

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictive densities of N rows and L cells: ``point`` (N, L) plus the error's density per cell (L).

    A cell without any training truth has no density: all of its numbers are NaN.
    """

    point: FloatArray
    densities: tuple[ResidualDensity | None, ...]

    @property
    def mean(self) -> FloatArray:
        """Predictive mean, shape (N, L)."""
        return self.point + np.array([np.nan if d is None else d.mean for d in self.densities])

    @property
    def std(self) -> FloatArray:
        """Predictive standard deviation, shape (N, L)."""
        return np.broadcast_to([np.nan if d is None else d.std for d in self.densities], self.point.shape)

    def quantile(self, q: float) -> FloatArray:
        """Predictive quantile, shape (N, L)."""
        return self.point + np.array([np.nan if d is None else d.quantile(q) for d in self.densities])

    def interval(self, level: float) -> tuple[FloatArray, FloatArray]:
        """Central interval of a level, two arrays (N, L)."""
        return self.quantile(0.5 - level / 2), self.quantile(0.5 + level / 2)

    def log_density(self, truth: FloatArray) -> FloatArray:
        """Log density of each true cell per physical unit, shape (N, L), NaN where the truth is NaN."""
        return self._of("log_density", truth)

    def pit(self, truth: FloatArray) -> FloatArray:
        """Predictive probability below each true cell, shape (N, L)."""
        return self._of("cdf", truth)

    def _of(self, method: str, truth: FloatArray) -> FloatArray:
        found = np.full(truth.shape, np.nan)
        for cell, density in enumerate(self.densities):
            there = np.isfinite(truth[:, cell])
            if density is not None and there.any():
                r = (truth - self.point)[there, cell]
                found[there, cell] = density.log_density(r) if method == "log_density" else density.cdf(r)
        return found


@dataclass
class AbstractBaseline(ABC):
    """A regression per target cell, on the rows where that cell was measured; ``fit``, then ``predict``."""

    name: ClassVar[str]
    seed: int = 0
    inputs: tuple[str, ...] = field(default=(), init=False)
    densities: tuple[ResidualDensity | None, ...] = field(default=(), init=False)

    def fit(self, train: Observations, inputs: Sequence[str], target: str = "labels") -> Self:
        """Fit on a training table.

        Raises:
            RequestError: no input, or the target among the inputs.
            DataError: no cell of the target with at least ten measured rows.
        """
        if not inputs or target in inputs:
            raise RequestError(f"Expected inputs without the target '{target}'; got {list(inputs)}.")
        self.inputs = tuple(inputs)
        # Threads that wait for each other on a shared machine cost more than they give at these sizes.
        with threadpool_limits(1):
            return self._fit(train, target)

    def _fit(self, train: Observations, target: str) -> Self:
        truth = truth_of(train, target)
        x = self._prepare(design(train, self.inputs))
        densities: list[ResidualDensity | None] = []
        for cell in range(truth.shape[1]):
            rows = np.flatnonzero(np.isfinite(truth[:, cell]))
            if len(rows) < 2 * FOLDS:
                densities.append(None)
                self._fit_cell(cell, x, None)
                continue
            fold = np.random.default_rng(self.seed).permutation(len(rows)) % FOLDS
            residual = self._fit_cell(cell, x[rows], truth[rows, cell], fold)
            densities.append(fit_residuals(residual, seed=self.seed))
        if all(density is None for density in densities):
            raise DataError(f"Expected a cell of '{target}' measured in at least {2 * FOLDS} training rows; got none.")
        self.densities = tuple(densities)
        return self

    def predict(self, obs: Observations) -> Prediction:
        """Predictive densities of the target cells of each row."""
        with threadpool_limits(1):
            x = self._project(design(obs, self.inputs))
            point = np.stack([self._predict_cell(cell, x) for cell in range(len(self.densities))], axis=1)
        return Prediction(point, self.densities)

    @abstractmethod
    def _prepare(self, x: FloatArray) -> FloatArray:
        """Learn the inputs' preprocessing from training inputs (N, D), NaN where unseen; return features (N, K)."""

    @abstractmethod
    def _project(self, x: FloatArray) -> FloatArray:
        """Features of new inputs."""

    @abstractmethod
    def _fit_cell(self, cell: int, x: FloatArray, y: FloatArray | None, fold: IntArray | None = None) -> FloatArray:
        """Fit one cell and return its out-of-fold residuals (n,); without ``y`` there is nothing to learn."""

    @abstractmethod
    def _predict_cell(self, cell: int, x: FloatArray) -> FloatArray:
        """Point prediction of one cell, shape (N,); NaN when it could not be fitted."""


@dataclass
class MeanBaseline(AbstractBaseline):
    """The training mean for everyone: the population's density, the prior that every model must beat."""

    name: ClassVar[str] = "mean"
    means: dict[int, float] = field(default_factory=dict, init=False)

    def _prepare(self, x: FloatArray) -> FloatArray:
        return x

    def _project(self, x: FloatArray) -> FloatArray:
        return x

    def _fit_cell(self, cell: int, x: FloatArray, y: FloatArray | None, fold: IntArray | None = None) -> FloatArray:
        if y is None or fold is None:
            return np.empty(0)
        self.means[cell] = float(y.mean())
        outside = np.array([y[fold != k].mean() for k in range(FOLDS)])
        return y - outside[fold]

    def _predict_cell(self, cell: int, x: FloatArray) -> FloatArray:
        return np.full(len(x), self.means.get(cell, np.nan))


@dataclass
class RidgePCA(AbstractBaseline):
    r"""Ridge regression on principal-component scores; components and penalty chosen per cell by cross-validation.

    Inputs are scaled by their seen mean and sd. Components come from the mean-imputed table and are refined by filling
    gaps with their own reconstruction; scores of a row with gaps are the posterior mean of probabilistic PCA,
    :math:`z = (V_s^\top V_s + \sigma^2\Lambda^{-1})^{-1}V_s^\top x_s` on its seen cells. Scores and
    squares of the first five are the features.
    """

    name: ClassVar[str] = "ridge on PCA"
    components: tuple[int, ...] = (4, 8, 15, 25, 40)
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    rounds: int = 6
    _location: FloatArray = field(default_factory=lambda: np.empty(0), init=False)
    _scale: FloatArray = field(default_factory=lambda: np.empty(0), init=False)
    _vectors: FloatArray = field(default_factory=lambda: np.empty((0, 0)), init=False)
    _penalty: FloatArray = field(default_factory=lambda: np.empty(0), init=False)
    _spread: FloatArray = field(default_factory=lambda: np.empty(0), init=False)
    _weights: dict[int, tuple[int, FloatArray]] = field(default_factory=dict, init=False)

    def _prepare(self, x: FloatArray) -> FloatArray:
        there = np.isfinite(x)
        count = np.maximum(there.sum(axis=0), 1)
        self._location = np.where(there, x, 0.0).sum(axis=0) / count
        spread = np.sqrt((np.where(there, x - self._location, 0.0) ** 2).sum(axis=0) / count)
        self._scale = np.where(spread > 0, spread, 1.0)
        scaled = np.where(there, (x - self._location) / self._scale, 0.0)
        most = max(1, min(max(self.components), x.shape[0] - 1, x.shape[1]))
        filled = scaled
        for _ in range(self.rounds):
            variance, vectors = np.linalg.eigh(filled.T @ filled / len(x))
            self._vectors = vectors[:, ::-1][:, :most]
            rest = max(float(variance[: x.shape[1] - most].sum()) / x.shape[1], 1e-6)
            self._penalty = rest / np.maximum(variance[::-1][:most], 1e-3 * rest)
            filled = np.where(there, scaled, self._scores(x) @ self._vectors.T)
        scores = self._scores(x)
        self._spread = np.where(scores.std(axis=0) > 0, scores.std(axis=0), 1.0)
        return scores / self._spread

    def _project(self, x: FloatArray) -> FloatArray:
        return self._scores(x) / self._spread

    def _scores(self, x: FloatArray) -> FloatArray:
        there = np.isfinite(x)
        scaled = np.where(there, (x - self._location) / self._scale, 0.0)
        v = self._vectors
        outer = (v[:, :, None] * v[:, None, :]).reshape(len(v), -1)
        gram = (there.astype(float) @ outer).reshape(len(x), v.shape[1], v.shape[1])
        return np.linalg.solve(gram + np.diag(self._penalty), (scaled @ v)[:, :, None])[:, :, 0]

    def _fit_cell(self, cell: int, x: FloatArray, y: FloatArray | None, fold: IntArray | None = None) -> FloatArray:
        if y is None or fold is None:
            return np.empty(0)
        best, residual = np.inf, np.empty(0)
        for count in sorted({min(k, x.shape[1]) for k in self.components}):
            features = _features(x, count)
            for penalty in self.penalties:
                error = np.empty(len(y))
                for k in range(FOLDS):
                    train, test = fold != k, fold == k
                    error[test] = y[test] - features[test] @ _ridge(features[train], y[train], penalty)
                if (error**2).mean() < best:
                    best, residual = float((error**2).mean()), error
                    self._weights[cell] = count, _ridge(features, y, penalty)
        return residual

    def _predict_cell(self, cell: int, x: FloatArray) -> FloatArray:
        if cell not in self._weights:
            return np.full(len(x), np.nan)
        count, weight = self._weights[cell]
        return _features(x, count) @ weight


@dataclass
class BoostedTrees(AbstractBaseline):
    """Histogram gradient boosting, gaps left as gaps, on the cells themselves or on means of neighbours.

    Means in at most so many groups as ``widths`` says; which, is chosen for each target cell by cross-validation.
    """

    name: ClassVar[str] = "boosted trees"
    widths: tuple[int, ...] = (100, 1000)
    rounds: int = 120
    rate: float = 0.1
    _groups: list[list[IntArray]] = field(default_factory=list, init=False)
    _trees: dict[int, tuple[slice, object]] = field(default_factory=dict, init=False)

    def _prepare(self, x: FloatArray) -> FloatArray:
        counts = sorted({min(width, x.shape[1]) for width in self.widths})
        self._groups = [np.array_split(np.arange(x.shape[1]), count) for count in counts]
        return self._project(x)

    def _project(self, x: FloatArray) -> FloatArray:
        every = [group for groups in self._groups for group in groups]
        return np.stack([_seen_mean(x[:, group]) for group in every], axis=1)

    def _fit_cell(self, cell: int, x: FloatArray, y: FloatArray | None, fold: IntArray | None = None) -> FloatArray:
        if y is None or fold is None:
            return np.empty(0)
        best, found, start = np.inf, np.empty(0), 0
        for groups in self._groups:
            columns = slice(start, start + len(groups))
            start += len(groups)
            error = np.empty(len(y))
            for k in range(FOLDS):
                train, test = fold != k, fold == k
                model = self._model(len(y)).fit(_alive(x[train, columns]), y[train])
                error[test] = y[test] - model.predict(x[test, columns])
            if (error**2).mean() < best:
                best, found = float((error**2).mean()), error
                self._trees[cell] = columns, self._model(len(y)).fit(_alive(x[:, columns]), y)
        return found

    def _predict_cell(self, cell: int, x: FloatArray) -> FloatArray:
        if cell not in self._trees:
            return np.full(len(x), np.nan)
        columns, trees = self._trees[cell]
        return trees.predict(x[:, columns])  # type: ignore[attr-defined]

    def _model(self, rows: int):  # noqa: ANN202 - scikit-learn is imported only here
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(
            max_iter=self.rounds, learning_rate=self.rate, max_leaf_nodes=15,
            min_samples_leaf=max(2, min(15, rows // 10)), l2_regularization=1.0, max_bins=63,
            early_stopping=False, random_state=self.seed,  # type: ignore[arg-type]  # sklearn's stub says str
        )  # fmt: skip


BASELINES: tuple[type[AbstractBaseline], ...] = (MeanBaseline, RidgePCA, BoostedTrees)


def design(obs: Observations, inputs: Sequence[str]) -> FloatArray:
    """The measured cells of the inputs side by side, NaN where there is none, shape (N, D)."""
    return np.concatenate([truth_of(obs, name) for name in inputs], axis=1)


def _features(x: FloatArray, count: int) -> FloatArray:
    return np.concatenate([np.ones((len(x), 1)), x[:, :count], x[:, : min(count, 5)] ** 2], axis=1)


def _ridge(x: FloatArray, y: FloatArray, penalty: float) -> FloatArray:
    # The constant is not penalised.
    shrink = penalty * np.eye(x.shape[1])
    shrink[0, 0] = 1e-9
    return np.linalg.solve(x.T @ x + shrink, x.T @ y)


def _alive(x: FloatArray) -> FloatArray:
    # A column that nobody saw becomes constant: trees never split on it, and the binning needs a number.
    return np.where(np.isfinite(x).any(axis=0), x, 0.0)


def _seen_mean(x: FloatArray) -> FloatArray:
    there = np.isfinite(x)
    count = there.sum(axis=1)
    return np.where(count > 0, np.where(there, x, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
