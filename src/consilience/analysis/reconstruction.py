"""Does the model explain the cells? Errors and χ² per degree of freedom, of seen cells or of cells kept from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, answered, quantities, tiles, truth_of
from consilience.analysis.likeness import RADIUS, ssim
from consilience.analysis.scores import mean_absolute_error, root_mean_square
from consilience.analysis.two_samples import frechet
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import CapabilityError, DataError
from consilience.predict.tiles import seen
from consilience.typing import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Features", "Reconstruction", "reconstruction", "residuals"]

Features = Callable[[FloatArray], FloatArray]
LEAST = 10  # rows of which a distance is told


@dataclass(frozen=True)
class Reconstruction(AbstractResult):
    r"""Errors in physical units and :math:`\chi^2/\nu`, mean of :math:`(x-\bar f)^2/(s_f^2+\sigma^2)`.

    :math:`\bar f, s_f` are mean and standard deviation of the model's draws (intrinsic scatter included), σ the stated
    error. ``chi2`` is near 1 for cells kept from a right model, and somewhat below 1 for cells that it was shown.
    Arrays have one number per quantity; ``chi2_cell`` one per cell of each modality. Of images, ``similarity`` is the
    mean structural similarity (:func:`~consilience.analysis.likeness.ssim`) of those measured in full and the posterior
    mean, and ``frechet`` the distance of their features from those of draws; NaN of what has none.
    """

    name: ClassVar[str] = "reconstruction"

    schema: Schema
    quantities: tuple[str, ...]
    units: tuple[str, ...]
    cells: IntArray
    mse: FloatArray
    rmse: FloatArray
    mae: FloatArray
    chi2: FloatArray
    similarity: FloatArray
    frechet: FloatArray
    chi2_cell: dict[str, FloatArray]
    hidden: bool
    skipped: tuple[str, ...]

    def table(self) -> "Table":
        """One row per named cell or modality; mse has the square of the unit."""
        from astropy.table import Table

        columns = {"quantity": list(self.quantities), "unit": list(self.units), "cells": self.cells}
        table = Table({**columns, "rmse": self.rmse, "mse": self.mse, "mae": self.mae, "chi2_per_dof": self.chi2})
        for name, value in {"ssim": self.similarity, "frechet": self.frechet}.items():
            if np.isfinite(value).any():
                table[name] = value
        return table

    def figure(self) -> "Figure":
        """χ² per degree of freedom of every cell, one panel per modality; 1 is right."""
        from consilience import plots

        parts = []
        for name, value in self.chi2_cell.items():
            spec = self.schema[name]
            grid = spec.grid if len(spec.shape) == 1 else None
            labels = plots.Labels(
                grid.name if grid else "",
                "χ² / dof",
                name + (", kept from the model" if self.hidden else ""),
                grid.unit if grid else "",
            )
            parts.append(plots.Profile(value, grid.centres() if grid else None, tuple(spec.cell_names()), labels))
        return plots.profiles(parts, target=1.0)


def reconstruction(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    hidden: Mapping[str, BoolArray] | None = None,
    features: Mapping[str, Features] | None = None,
    n: int = 100,
    seed: int = 0,
) -> Reconstruction:
    """Errors and χ² of the measured cells, or with ``hidden`` of those cells only, given the rest of the row.

    Images wider than ten pixels are compared by structural similarity as well.

    Arguments:
        fitted: Any fitted model.
        obs: Rows to explain.
        targets: Modalities to score; by default all that hold scored cells and that the model answers, categories
            apart (their differences mean nothing).
        hidden: Cells to keep from the model and to score, (N, *event) per modality; None scores what it was shown.
        features: Of a modality, what a network of yours sees in values (S, *event), as (S, K): rows measured in full
            and as many draws of the model, noise included, are then compared by their Fréchet distance.
        n: Draws per object.
        seed: Of the draws.

    Raises:
        CapabilityError: the model answers none of the targets, or not one that was asked for by name.
        DataError: no measured cell to score, or features for which fewer than ten rows are measured in full.
    """
    context = obs if hidden is None else obs.hide_cells(hidden)
    ordered = [spec.name for spec in obs.schema.modalities if spec.kind != "category"]
    names = tuple(targets or (hidden or ordered))
    readable = seen(context)
    wanted = [name for name in names if np.isfinite(truth_of(obs, name, _only(hidden, name))).any()]
    if not wanted:
        raise DataError(f"Expected measured cells of {list(names)} to score; got none. Choose other rows or cells.")
    ask = [name for name in wanted if fitted.answers(readable, frozenset([name]))]
    if targets:
        answered(fitted, readable, wanted)
    if not ask:
        raise CapabilityError(f"Expected a modality that this model reconstructs; got {wanted}. It answers none.")
    schema, found = fitted.schema, {}
    for name in ask:
        truth = truth_of(obs, name, _only(hidden, name))
        found[name] = residuals(fitted, context, obs, name, n=n, seed=seed, truth=truth)
    each = [q for name in ask for q in quantities(schema[name])]
    alike = {name: _similarity(obs, name, found[name][0]) for name in ask}
    apart = {
        name: _apart(fitted, context, obs, name, see, seed) for name, see in (features or {}).items() if name in ask
    }
    error = [found[q.modality][0][:, q.cells].reshape(-1) for q in each]
    chi2 = [found[q.modality][1][:, q.cells].reshape(-1) for q in each]
    rmse = np.array([float(root_mean_square(e)) for e in error])
    return Reconstruction(
        schema,
        tuple(q.name for q in each),
        tuple(q.unit for q in each),
        np.array([np.isfinite(e).sum() for e in error]),
        rmse**2,
        rmse,
        np.array([float(mean_absolute_error(e)) for e in error]),
        np.array([float(root_mean_square(np.sqrt(c))) ** 2 for c in chi2]),
        np.array([alike[q.modality] for q in each]),
        np.array([apart.get(q.modality, np.nan) for q in each]),
        {name: root_mean_square(np.sqrt(chi)) ** 2 for name, (_, chi) in found.items()},
        hidden is not None,
        tuple(name for name in wanted if name not in ask),
    )


def residuals(
    fitted: "Fitted",
    context: Observations,
    obs: Observations,
    name: str,
    *,
    n: int,
    seed: int,
    truth: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    r"""Error :math:`\bar f - x` and :math:`(x-\bar f)^2/(s_f^2+\sigma^2)` of every cell, (N, D) each."""
    error, chi2 = np.full(truth.shape, np.nan), np.full(truth.shape, np.nan)
    sigma = obs.parts[name].sigma
    known = np.zeros(truth.shape) if sigma is None else np.nan_to_num(sigma.reshape(truth.shape))
    for rows in tiles(len(obs), 4 * truth.shape[1], fitted):
        found = fitted.summarise(context[rows], [name], statistics=("mean", "std"), n=n, seed=seed).statistics[name]
        mean, sd = (found[key].reshape(truth[rows].shape) for key in ("mean", "std"))
        variance = sd**2 + known[rows] ** 2
        error[rows] = mean - truth[rows]
        chi2[rows] = error[rows] ** 2 / np.where(variance > 0, variance, np.nan)
    return error, chi2


def _similarity(obs: Observations, name: str, error: FloatArray) -> float:
    """Of the images measured in full; NaN of what is no image."""
    part, shape = obs.parts[name], obs.schema[name].shape
    if len(shape) not in (2, 3) or min(shape[-2:]) <= 2 * RADIUS:
        return np.nan
    whole = part.measured.all(axis=tuple(range(1, part.value.ndim)))
    value = part.value[whole]
    found = ssim(value, value + error[whole].reshape(value.shape))
    return float(np.nanmean(found)) if np.isfinite(found).any() else np.nan


def _apart(
    fitted: "Fitted", context: Observations, obs: Observations, name: str, features: Features, seed: int
) -> float:
    """Fréchet distance of what is seen in rows and in one draw of each."""
    part = obs.parts[name]
    rows = np.flatnonzero(part.measured.all(axis=tuple(range(1, part.value.ndim))))
    if len(rows) < LEAST:
        raise DataError(
            f"Expected {LEAST} rows with all of '{name}' at least, to compare what is seen in them; got {len(rows)}. "
            "Give more rows, or no features of it."
        )
    drawn = fitted.sample(context[rows], [name], n=1, seed=seed, observed=True, at=obs[rows])
    return frechet(*(np.asarray(features(one), dtype=float) for one in (part.value[rows], drawn.values[name][0])))


def _only(hidden: Mapping[str, BoolArray] | None, name: str) -> BoolArray | None:
    if hidden is None:
        return None
    return np.asarray(hidden[name], bool) if name in hidden else np.zeros((), bool)
