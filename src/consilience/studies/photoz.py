r"""Photometric redshifts of real galaxies in the Hubble Deep Field North, by a flow that has seen simulations alone.

The flow learns p(ln(1 + z) | fluxes) from :func:`~consilience.simulators.deep_galaxies`. Beside it stand templates,
which are the same simulated galaxies without noise. For galaxy f with errors σ, template m of redshift z has

.. math:: χ^2 = \min_a \sum_b (f_b - a\,m_b)^2 / σ_b^2, \qquad w \propto e^{-χ^2 / 2}

over all templates; or over those with \|2.5 log a\| < ``near``, which are about as bright as the galaxy, so that they
have its prior. Draws of either posterior are redshifts of templates drawn by w.

Errors of the catalogue are widened by the simulator's floor, for flow and templates alike.
"""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.analysis.bands import coverage_band
from consilience.analysis.scores import central, crps, pit
from consilience.data.observations import Observations
from consilience.data.schema import Cell, Frozen, ModalitySpec, Schema, validated
from consilience.errors import DataError, RequestError, SchemaError
from consilience.io import read
from consilience.models.vae_flow import VAEFlow
from consilience.simulators.deep import SCHEMA, deep_galaxies, widened
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, StudyConfig
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "field", "run", "templates"]

LEVELS = (0.68, 0.95)
SIMULATED = 2000  # galaxies that are scored
OUTLIER = 0.15  # of |Δz| / (1 + z)
COLUMNS = ("f300w", "f450w", "f606w", "f814w", "irimj", "irimh", "irimk")  # of the catalogue, in the simulator's order
FLOW = "flow"


class Settings(Frozen):
    """Sizes of the simulation and of what is measured."""

    galaxies: int = Field(ge=40)
    exposures: int = Field(ge=1)  # of each, that the flow sees
    draws: int = Field(ge=20)
    near: float = Field(gt=0)
    resampled: int = Field(ge=20)  # bootstraps of the galaxies


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Simulate, fit, and predict the redshifts that spectra have told.

    Arguments:
        config: A VAEFlow, training and :class:`Settings`.
        data: Folder with ``hdfn.parquet``.
        seed: Of simulation, training and draws.
        quick: Tiny sizes; already in ``config``.
        out: Where the model is kept, so that a study which was stopped goes on.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
        SchemaError: another model.
    """
    size, family = validated(Settings, config.study, where="[study]"), config.config.family
    if not isinstance(family, VAEFlow) or family.images:
        raise SchemaError(f"Expected a VAEFlow without images for photoz; got {family!r}.")
    kept, real = Kept(out, family, config.config.train, size), field(data)
    simulated = deep_galaxies(size.galaxies, seed=seed, exposures=size.exposures)
    train, test = simulated.split(0.9, seed=seed, by="group")
    once, test = _once(train), _once(test)
    options = config.config.train.model_copy(update={"seed": seed})
    shown = ("photometry", "labels")
    fitted = kept.model(f"seed {seed}", lambda: fit(family, train.select(*shown).renumbered(), options))
    library = once.parts["true_photometry"].value, once.parts["labels"].value[:, 0]
    rows, heads = list[list[Any]](), list[str]()
    numbers: dict[str, float | int | bool | None] = {"galaxies": len(real)}
    for name, table in {"simulated": test.select(*shown)[:SIMULATED], "": real}.items():
        truth = table.parts["labels"].value[:, 0]
        found = {
            FLOW: fitted.sample(table.hide("labels"), ["labels"], n=size.draws, seed=seed).values["labels"][..., 0],
            "templates": templates(table, library, None, size.draws, seed),
            "templates_near": templates(table, library, size.near, size.draws, seed),
        }
        scored = {method: _scores(draws, truth) for method, draws in found.items()}
        for method, scores in scored.items():
            tail = "".join(f"_{word}" for word in (method if method != FLOW else "", name) if word)
            numbers |= {f"{key}{tail}": value for key, value in scores.items()}
            rows.append([name or "real", method.replace("_", " "), *scores.values()])
            heads = list(scores)
        if not name:
            numbers |= _compared(found, truth, size.resampled, seed)
            figure = _figure(found, truth)
    low, high = coverage_band(len(real), LEVELS, 0.99)
    return Results(
        numbers,
        {"Photometric redshifts": Table(rows=rows, names=["galaxies", "method", *heads])},
        {"redshifts": figure},
        (
            f"Expected coverage of {len(real)} galaxies at 68 % within {low[0]:.0%} to {high[0]:.0%}, at 95 % "
            f"within {low[1]:.0%} to {high[1]:.0%} (simultaneous 99 % band).",
        ),
    )


def field(data: Path | None) -> Observations:
    """The galaxies of the catalogue with spectroscopic redshifts, as the simulator would have made them.

    Arguments:
        data: Folder with ``hdfn.parquet``.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
    """
    if data is None:
        raise RequestError("Expected a folder that holds hdfn.parquet; got none. Give --data DIR.")
    named = zip(SCHEMA["photometry"].cells, COLUMNS, strict=True)
    cells = tuple(cell.model_copy(update={"column": f"f_{name}", "sigma": f"e_{name}"}) for cell, name in named)
    photometry = SCHEMA["photometry"].model_copy(update={"cells": cells})
    redshift = ModalitySpec(name="redshift", cells=(Cell(name="z_spec"),))
    table = read(data / "hdfn.parquet", Schema(id="id", modalities=(photometry, redshift)))
    table = table[np.flatnonzero(table.parts["redshift"].measured[:, 0])]
    if not len(table):
        raise DataError(f"Expected redshifts in {data / 'hdfn.parquet'}; got none. Fetch it anew.")
    values = {
        "photometry": np.where(table.parts["photometry"].measured, table.parts["photometry"].value, np.nan),
        "labels": np.log1p(table.parts["redshift"].value),
    }
    errors = {"photometry": table.parts["photometry"].sigma}
    return widened(Observations.from_arrays(SCHEMA.select(list(values)), values, sigma=errors, ids=table.ids))


def templates(
    table: Observations, library: tuple[FloatArray, FloatArray], near: float | None, draws: int, seed: int
) -> FloatArray:
    """Draws of ln(1 + z) from templates, (S, N).

    Arguments:
        table: N galaxies.
        library: Fluxes (K, B) without noise and ln(1 + z) (K,) of templates.
        near: Magnitudes by which a template may differ from the galaxy; None for any.
        draws: S.
        seed: Of the draws.
    """
    part, rng = table.parts["photometry"], np.random.default_rng(seed)
    assert part.sigma is not None
    found = np.empty((draws, len(table)))
    for row in range(len(table)):
        there = part.measured[row]
        flux, sigma = part.value[row, there], part.sigma[row, there]
        model = library[0][:, there] / sigma
        factor = np.maximum(model @ (flux / sigma) / (model**2).sum(axis=1), 1e-12)
        chi2 = ((flux / sigma - factor[:, None] * model) ** 2).sum(axis=1)
        if near is not None:
            chi2 = np.where(np.abs(2.5 * np.log10(factor)) < near, chi2, np.inf)
        weight = np.exp(-0.5 * (chi2 - chi2.min()))
        found[:, row] = rng.choice(library[1], draws, p=weight / weight.sum())
    return found


def _once(rows: Observations) -> Observations:
    """One row of each galaxy."""
    assert rows.group is not None, "the simulator's"
    return rows[np.unique(rows.group, return_index=True)[1]]


def _scores(draws: FloatArray, truth: FloatArray) -> dict[str, float]:
    """Of draws (S, N) and truths (N,) of ln(1 + z): medians by the terms of the field, coverage and CRPS."""
    inside = central(pit(draws, truth, np.random.default_rng(0)), np.array(LEVELS)).mean(axis=1)
    error = _relative(draws, truth)
    return {
        "nmad": _nmad(error),
        "outlier_fraction": float(np.mean(np.abs(error) > OUTLIER)),
        "bias": float(np.median(error)),
        **{f"coverage{100 * level:.0f}": float(one) for level, one in zip(LEVELS, inside, strict=True)},
        "crps": float(crps(draws, truth).mean()),
    }


def _relative(draws: FloatArray, truth: FloatArray) -> FloatArray:
    """Δz / (1 + z) of posterior medians, (N,)."""
    return np.expm1(np.median(draws, axis=0) - truth)


def _nmad(error: FloatArray) -> float:
    return float(1.4826 * np.median(np.abs(error - np.median(error))))


def _compared(found: dict[str, FloatArray], truth: FloatArray, resampled: int, seed: int) -> dict[str, float]:
    """Flow minus templates on the same bootstraps of galaxies: mean and 95 % interval, negative is better."""
    rng, numbers = np.random.default_rng(seed), dict[str, float]()
    picks = rng.integers(0, len(truth), (resampled, len(truth)))
    each = {name: (_relative(draws, truth), crps(draws, truth)) for name, draws in found.items()}
    for peer in (name for name in found if name != FLOW):
        kinds = {
            "nmad": lambda name, rows: _nmad(each[name][0][rows]),
            "outlier_fraction": lambda name, rows: np.mean(np.abs(each[name][0][rows]) > OUTLIER),
            "crps": lambda name, rows: each[name][1][rows].mean(),
        }
        for kind, score in kinds.items():
            difference = [score(FLOW, rows) - score(peer, rows) for rows in picks]
            low, high = np.quantile(difference, [0.025, 0.975])
            key = f"{kind}_minus_{peer}"
            numbers |= {key: float(np.mean(difference)), f"{key}_low95": float(low), f"{key}_high95": float(high)}
    return numbers


def _figure(found: dict[str, FloatArray], truth: FloatArray) -> plots.Figure:
    named = {f"ln(1 + z), {name.replace('_', ' ')}": draws for name, draws in found.items()}
    return plots.predicted_vs_true(
        dict.fromkeys(named, truth),
        {name: draws.mean(axis=0) for name, draws in named.items()},
        {name: draws.std(axis=0) for name, draws in named.items()},
        [""] * len(named),
    )
