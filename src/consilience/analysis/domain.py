"""Do two tables look alike to the model? In its latents, and in what it reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import stats

from consilience.analysis.base import AbstractResult
from consilience.analysis.reading import varies
from consilience.analysis.two_samples import c2st, mmd, sinkhorn
from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.predict.tiles import conform
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Domain", "domain"]

COMPONENTS = 10  # principal components of a modality or a block
LEAST = 20  # rows of each table


@dataclass(frozen=True)
class Domain(AbstractResult):
    """How far two tables are apart in each of some spaces: latent blocks, and what modalities show.

    ``accuracy`` is that of a classifier (.5 where they are alike) with a p-value that takes its rows as independent;
    ``discrepancy`` the squared MMD with its p-value by permutation; ``transport`` the Sinkhorn divergence, in squared
    standard deviations of the reference. All have shape (S,); ``rows`` (S, 2) of each table that were compared.
    """

    name: ClassVar[str] = "domain"

    spaces: tuple[str, ...]
    rows: FloatArray
    accuracy: FloatArray
    accuracy_pvalue: FloatArray
    discrepancy: FloatArray
    discrepancy_pvalue: FloatArray
    transport: FloatArray

    def table(self) -> "Table":
        """One row per space."""
        from astropy.table import Table

        columns = ("accuracy", "accuracy_pvalue", "discrepancy", "discrepancy_pvalue", "transport")
        return Table({"space": list(self.spaces), "rows": self.rows[:, 0], "reference": self.rows[:, 1]} | {
            key: getattr(self, key) for key in columns
        })  # fmt: skip

    def figure(self) -> "Figure":
        """The three distances in every space."""
        from consilience import plots

        kinds = {
            "accuracy": "classifier's accuracy",
            "discrepancy": "MMD²",
            "transport": "Sinkhorn divergence",
        }
        each = {words: dict(zip(self.spaces, getattr(self, key)[:, None], strict=True)) for key, words in kinds.items()}
        farthest = self.spaces[int(np.nanargmax(self.accuracy))]
        return plots.methods(each, ["two tables"], farthest, "blue: farthest apart, by the classifier")


def domain(fitted: "Fitted", obs: Observations, reference: Observations, *, rows: int = 1000, seed: int = 0) -> Domain:
    """How far two tables are apart: simulated and real objects, two surveys, before or after an alignment.

    In the means of every latent block of a model that has them, and in the scaled cells of every modality of ordered
    numbers, each in up
    to ten principal components of the reference with its standard deviations. Cells that are not seen stand at the
    mean, so tables with other gaps are apart, too.

    Arguments:
        fitted: Any fitted model.
        obs: Rows, twenty at least.
        reference: Other rows.
        rows: Most rows of each table that are compared.
        seed: Of the choice of rows, the classifier and the permutations.

    Raises:
        DataError: too few rows in a table.
        SchemaError: modalities that the model does not know.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(90, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:30], cs.TrainConfig(max_steps=5, validation=0))
        >>> domain(fit, table[30:60], table[60:]).spaces
        ('x', 'y')
    """
    if min(len(obs), len(reference)) < LEAST:
        raise DataError(f"Expected {LEAST} rows of each table at least; got {len(obs)} and {len(reference)}.")
    rng = np.random.default_rng(seed)
    both = [conform(_some(table, rows, rng), fitted.schema) for table in (obs, reference)]
    spaces, found, counts = [], [], []
    for name, (one, other) in _spaces(fitted, both).items():
        x, y = _reduced(one, other, seed)
        if x.shape[1] == 0:
            continue
        accuracy = c2st(y, x, seed=seed)
        total = len(x) + len(y)
        pvalue = stats.binom.sf(round(accuracy * total) - 1, total, max(len(x), len(y)) / total)
        spaces.append(name)
        counts.append((len(x), len(y)))
        found.append((accuracy, float(pvalue), *mmd(x, y, seed=seed), sinkhorn(x, y)))
    if not spaces:
        raise DataError("Expected a modality that varies in the reference; got none. Give other rows.")
    return Domain(tuple(spaces), np.array(counts), *np.array(found).T)


def _some(table: Observations, most: int, rng: np.random.Generator) -> Observations:
    return table if len(table) <= most else table[np.sort(rng.permutation(len(table))[:most])]


def _spaces(fitted: "Fitted", both: list[Observations]) -> dict[str, tuple[FloatArray, FloatArray]]:
    found: dict[str, tuple[FloatArray, FloatArray]] = {}
    if "latent" in fitted.capabilities:
        one, other = (fitted.latent(rows).mean for rows in both)
        for block, mean in one.items():
            found[f"latent {block}"] = mean.reshape(len(mean), -1), other[block].reshape(len(other[block]), -1)
    first, second = (fitted.scaler.forward(rows.detached()) for rows in both)
    for name in (spec.name for spec in fitted.schema.modalities if spec.kind not in ("binary", "category")):
        if first.parts[name].measured.any() and second.parts[name].measured.any():
            found[name] = _cells(first, name), _cells(second, name)
    return found


def _cells(rows: Observations, name: str) -> FloatArray:
    part = rows.parts[name]
    return np.where(part.measured, np.nan_to_num(part.value), 0.0).reshape(len(rows), -1)


def _reduced(one: FloatArray, other: FloatArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """Both in standardised principal components of the second."""
    from sklearn.decomposition import PCA

    told = varies(other)
    if not told.any():
        return one[:, told], other[:, told]
    one, other = one[:, told], other[:, told]
    pca = PCA(min(COMPONENTS, *other.shape), random_state=seed).fit(other)
    x, y = pca.transform(one), pca.transform(other)
    alive = varies(y)
    unit = y[:, alive].std(axis=0)
    return x[:, alive] / unit, y[:, alive] / unit
