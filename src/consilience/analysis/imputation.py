"""What can be filled in from what? Each modality hidden in turn, wholly or in part, given every source."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, Quantity, quantities, tiles, truth_of
from consilience.analysis.scores import central, mean_absolute_error, pit, r_squared, root_mean_square
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, RequestError
from consilience.predict.tiles import seen
from consilience.typing import BoolArray, FloatArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Imputation", "imputation"]


@dataclass(frozen=True)
class Imputation(AbstractResult):
    """One entry per hidden quantity and source: error, coverage, and how much of the variance was recovered.

    ``source`` is "all others", one modality, or the share of its own cells that was hidden. Cells of one object are
    not independent, so coverages of a whole modality carry no binomial band; see ``calibration`` for those that do.
    """

    name: ClassVar[str] = "imputation"

    quantity: tuple[str, ...]
    unit: tuple[str, ...]
    source: tuple[str, ...]
    cells: tuple[int, ...]
    rmse: FloatArray
    mae: FloatArray
    r2: FloatArray
    coverage68: FloatArray
    coverage95: FloatArray
    skipped: tuple[str, ...]

    def table(self) -> "Table":
        """One row per hidden quantity and source."""
        from astropy.table import Table

        columns = {"hidden": self.quantity, "unit": self.unit, "given": self.source, "cells": self.cells}
        scores = ("rmse", "mae", "r2", "coverage68", "coverage95")
        return Table({**{k: list(v) for k, v in columns.items()}, **{key: getattr(self, key) for key in scores}})

    def figure(self) -> "Figure":
        """R² of each hidden quantity, a dot per source."""
        from consilience import plots

        columns = list(dict.fromkeys(self.quantity))
        by_source = {source: np.full(len(columns), np.nan) for source in dict.fromkeys(self.source)}
        for quantity, source, value in zip(self.quantity, self.source, self.r2, strict=True):
            by_source[source][columns.index(quantity)] = value
        return plots.methods({"R²": by_source}, columns, "all others", "higher is better")


def imputation(
    fitted: "Fitted", obs: Observations, *, fraction: float = 0.2, n: int = 100, seed: int = 0
) -> Imputation:
    """Hide each modality in turn, and a random fraction of its cells, and compare draws with what was measured.

    Every modality is drawn from all others, from each single other one, and (where it has more than one cell) from all
    others with the rest of its own cells. Questions the model does not answer are named in ``skipped``.

    Arguments:
        fitted: Any fitted model.
        obs: Rows with measured cells.
        fraction: Share of a modality's seen cells that the last question hides, in (0, 1).
        n: Draws per object.
        seed: Of the draws and the hidden cells.

    Raises:
        RequestError: a fraction outside (0, 1).
        CapabilityError: the model answers none of these questions.
    """
    if not 0 < fraction < 1:
        raise RequestError(f"Expected a fraction of cells between 0 and 1; got {fraction}.")
    rng = np.random.default_rng(seed)
    there = sorted(seen(obs), key=obs.schema.names.index)
    entries: list[tuple[Quantity, str, FloatArray]] = []
    skipped: list[str] = []
    for name in there:
        if obs.schema[name].kind == "category":
            skipped.append(f"{name} (a category)")
            continue
        for source, context, only in _questions(obs, name, there, fraction, rng):
            if not fitted.answers(seen(context), frozenset([name])):
                skipped.append(f"{name} from {source}")
                continue
            truth = truth_of(obs, name, only)
            u, mean = _drawn(fitted, context, obs, name, truth=truth, n=n, seed=seed)
            for quantity in quantities(obs.schema[name]):
                entries.append((quantity, source, _scores(*(a[:, quantity.cells] for a in (truth, mean, u)))))
    if not entries:
        raise CapabilityError(f"Expected a modality that this model imputes among {there}; it answers none of them.")
    count, rmse, mae, r2, c68, c95 = np.array([scores for _, _, scores in entries]).T
    return Imputation(
        tuple(q.name for q, _, _ in entries), tuple(q.unit for q, _, _ in entries), tuple(s for _, s, _ in entries),
        tuple(int(c) for c in count), rmse, mae, r2, c68, c95, tuple(skipped),
    )  # fmt: skip


def _questions(
    obs: Observations, name: str, there: list[str], fraction: float, rng: np.random.Generator
) -> list[tuple[str, Observations, BoolArray | None]]:
    others = [other for other in there if other != name]
    found: list[tuple[str, Observations, BoolArray | None]] = []
    if others:
        found.append(("all others", obs.hide(name), None))
    if len(others) > 1:
        found += [(other, obs.hide(*(m for m in there if m != other)), None) for other in others]
    if obs.schema[name].size > 1:
        hide = obs.parts[name].seen & (rng.uniform(size=obs.parts[name].value.shape) < fraction)
        found.append((f"all but {100 * fraction:g} % of its cells", obs.hide_cells({name: hide}), hide))
    return found


def _drawn(
    fitted: "Fitted",
    context: Observations,
    obs: Observations,
    name: str,
    *,
    truth: FloatArray,
    n: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    u, mean = np.full(truth.shape, np.nan), np.full(truth.shape, np.nan)
    for rows in tiles(len(obs), 3 * n * truth.shape[1], fitted):
        samples = fitted.sample(context[rows], [name], n=n, seed=seed, observed=True, at=obs[rows])
        draws = samples.values[name].reshape(n, *truth[rows].shape)
        u[rows], mean[rows] = pit(draws, truth[rows], rng), draws.mean(axis=0)
    return u, mean


def _scores(truth: FloatArray, mean: FloatArray, u: FloatArray) -> FloatArray:
    error = mean - truth
    count = np.isfinite(u).sum()
    share = central(u, np.array([0.68, 0.95])).sum(axis=(1, 2)) / count if count else np.full(2, np.nan)
    # Cells differ in their means; the variance to recover is that about each cell's own.
    centre = np.array([t[np.isfinite(t)].mean() if np.isfinite(t).any() else 0.0 for t in truth.T])
    r2 = r_squared((truth - centre).reshape(-1), (mean - centre).reshape(-1))
    whole = error.reshape(-1)
    return np.array([count, root_mean_square(whole), mean_absolute_error(whole), r2, *share], dtype=float)
