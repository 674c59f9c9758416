"""Reverberation masses of 31 real quasars from incomplete HST spectra, leaving one out at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.analysis.bands import coverage_band
from consilience.analysis.scores import central, pit
from consilience.data.observations import Observations
from consilience.data.schema import Cell, Frozen, Grid, ModalitySpec, Schema, validated
from consilience.studies.regressions import luminosity_line, ridge
from consilience.studies.runner import Results, StudyConfig, read_arrays
from consilience.train.progress import ProgressBar
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "observations", "run"]

MASS, LUMINOSITY = 0, 6  # columns of the labels
LEVELS = (0.68, 0.95)
CONTEXTS = {"with_luminosity": (True, False), "spectrum_only": (True, True)}  # name -> hidden of (mass, luminosity)


class Settings(Frozen):
    """Sizes of the experiment."""

    rebin: int = Field(ge=1)  # pixels averaged into one, inverse-variance weighted
    draws: int = Field(default=1000, ge=20)  # per object
    folds: int | None = Field(default=None, ge=2)  # objects left out in turn; all when absent


@dataclass(frozen=True, slots=True)
class _Predicted:
    """Predictions of N left-out masses: mean, sd, PIT and log density, each (N,)."""

    mean: FloatArray
    sd: FloatArray
    pit: FloatArray
    log_density: FloatArray


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Leave one quasar out, fit on the other 30, predict its mass; scaler and model never see it.

    Arguments:
        config: Model, training and :class:`Settings`, fixed before any object is left out.
        data: Folder with ``qso_hst_rm31.npz``.
        seed: Of the training.
        quick: Tiny sizes; already in ``config``.
        out: Not used: 31 models are not kept.

    Raises:
        RequestError: no data folder.
        DataError: no such file.
    """
    size = validated(Settings, config.study, where="[study]")
    obs = observations(read_arrays(data, "qso_hst_rm31"), size.rebin)
    left = np.arange(len(obs))[: size.folds]
    truth = obs.parts["labels"].value[left, 0]
    ours = _leave_one_out(config, obs, left, size.draws, seed)
    peers = {
        "luminosity_line": luminosity_line(obs, left),
        "ridge_with_luminosity": ridge(obs, left, luminosity=True),
        "ridge_spectrum_only": ridge(obs, left, luminosity=False),
    }
    band = coverage_band(len(left), LEVELS, 0.99, cells=len(CONTEXTS))
    numbers: dict[str, float | int | bool | None] = {
        "objects": len(left),
        "pixels": obs.schema["spectrum"].size,
        "missing_fraction": float(1 - obs.parts["spectrum"].seen.mean()),
        **{f"band{100 * level:.0f}_low": low for level, low in zip(LEVELS, band[0], strict=True)},
        **{f"band{100 * level:.0f}_high": high for level, high in zip(LEVELS, band[1], strict=True)},
    }
    rows: list[list[Any]] = []
    for name, found in ours.items():
        error = found.mean - truth
        numbers |= _errors(error, f"log_mbh_{name}")
        numbers[f"nlpd_log_mbh_{name}"] = float(-found.log_density.mean())
        inside = central(found.pit, np.array(LEVELS)).mean(axis=1)
        for k, level in enumerate(LEVELS):
            numbers[f"coverage{100 * level:.0f}_log_mbh_{name}"] = float(inside[k])
        held = all(low - 1e-12 <= c <= high + 1e-12 for low, c, high in zip(band[0], inside, band[1], strict=True))
        numbers[f"inside_band_{name}"] = held
        rows.append([f"SharedGPLVM, {name.replace('_', ' ')}", *_row(numbers, name), *inside.tolist()])
    for key in ("coverage68_log_mbh", "coverage95_log_mbh"):
        numbers[key] = numbers[f"{key}_with_luminosity"]
    differences: list[list[Any]] = []
    for name, peer in peers.items():
        numbers |= _errors(peer.mean - truth, f"log_mbh_{name}")
        numbers[f"nlpd_log_mbh_{name}"] = float(-peer.log_density(truth).mean())
        inside = central(peer.cdf(truth), np.array(LEVELS)).mean(axis=1)
        rows.append([name.replace("_", " "), *_row(numbers, name), *inside.tolist()])
        for context, found in ours.items():
            mean, low, high = _bootstrap(peer.log_density(truth) - found.log_density)
            key = f"nlpd_difference_{context}_minus_{name}"
            numbers |= {key: mean, f"{key}_low95": low, f"{key}_high95": high}
            differences.append([context.replace("_", " "), name.replace("_", " "), mean, low, high])
    heads = ["method", "rmse [dex]", "standard error", "nlpd [nats]", "coverage68", "coverage95"]
    return Results(
        numbers,
        {
            f"log M_BH of {len(left)} quasars, each left out in turn": Table(rows=rows, names=heads),
            "Paired NLPD difference, model minus baseline, 95 % bootstrap interval (negative: model better)": Table(
                rows=differences, names=["model sees", "baseline", "difference", "low", "high"]
            ),
        },
        {"predicted": _figure(truth, ours)},
        (
            f"Expected coverage at 68 % within {100 * band[0][0]:.0f} to {100 * band[1][0]:.0f} %, "
            f"at 95 % within {100 * band[0][1]:.0f} to {100 * band[1][1]:.0f} % (simultaneous 99 % band).",
        ),
    )


def observations(arrays: dict[str, Any], rebin: int) -> Observations:
    r"""The table: ``spectrum`` (rebinned, in units of the continuum at 2500 Å), ``labels`` (log M_BH and log L_bol).

    Neighbouring pixels are averaged with inverse-variance weights,
    :math:`f = \sum w_i f_i / \sum w_i`, :math:`s^{-2} = \sum w_i`; pixels left over at the red end are dropped.
    """
    count = len(arrays["wavelength"]) // rebin
    keep = slice(0, count * rebin)
    weight = np.where(np.isfinite(arrays["flux"]) & (arrays["ivar"] > 0), arrays["ivar"], 0.0)[:, keep]
    flux = np.nan_to_num(arrays["flux"])[:, keep]
    total = weight.reshape(-1, count, rebin).sum(-1)
    some = np.where(total > 0, total, 1.0)
    value = np.where(total > 0, (weight * flux).reshape(-1, count, rebin).sum(-1) / some, np.nan)
    sigma = np.where(total > 0, some**-0.5, np.nan)
    centres = arrays["wavelength"][keep].reshape(count, rebin).mean(-1)
    grid = Grid(start=float(centres[0]), stop=float(centres[-1]), size=count, unit="Angstrom")
    labels = (
        Cell(name="log_mbh", unit="dex(Msun)", ucd="phys.mass"),
        Cell(name="log_lbol", unit="dex(erg/s)", ucd="phys.luminosity"),
    )
    spectrum = ModalitySpec(name="spectrum", grid=grid, ucd="phot.flux.density;em.wl")
    schema = Schema(modalities=(spectrum, ModalitySpec(name="labels", cells=labels, axis="label")))
    columns = [MASS, LUMINOSITY]
    return Observations.from_arrays(
        schema,
        {"spectrum": value, "labels": arrays["labels"][:, columns]},
        sigma={"spectrum": sigma, "labels": arrays["label_ivar"][:, columns] ** -0.5},
        ids=arrays["object_names"],
    )


def _leave_one_out(
    config: StudyConfig, obs: Observations, left: np.ndarray, draws: int, seed: int
) -> dict[str, _Predicted]:
    train = config.config.train.model_copy(update={"seed": seed})
    found = {name: np.full((4, len(left)), np.nan) for name in CONTEXTS}
    with ProgressBar("leaving one out", len(left)) as bar:
        for position, row in enumerate(left):
            kept = np.delete(np.arange(len(obs)), row)
            fitted = fit(config.config.family, obs[kept].renumbered(), train)
            one = obs[int(row)]
            for name, hidden in CONTEXTS.items():
                given = one.hide_cells({"labels": np.array([hidden])})
                samples = fitted.sample(given, ["labels"], n=draws, seed=seed, observed=True, at=one)
                values = samples.values["labels"][:, :, 0]
                density = fitted.cell_log_prob(one, ["labels"], given=given)["labels"][0, 0]
                u = pit(values, one.parts["labels"].value[:, 0], np.random.default_rng([seed, position]))
                found[name][:, position] = values.mean(), values.std(ddof=1), u.item(), density
            bar.advance(position + 1)
    return {name: _Predicted(*numbers) for name, numbers in found.items()}


def _errors(error: FloatArray, name: str) -> dict[str, float]:
    rmse = float(np.sqrt(np.mean(error**2)))
    # The delta method: the variance of a mean of squares, through the root.
    standard = float(np.std(error**2, ddof=1) / (2 * rmse * np.sqrt(len(error))))
    return {f"rmse_{name}": rmse, f"rmse_se_{name}": standard}


def _row(numbers: dict[str, Any], name: str) -> list[float]:
    return [numbers[f"{key}_log_mbh_{name}"] for key in ("rmse", "rmse_se", "nlpd")]


def _bootstrap(difference: FloatArray) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    means = difference[rng.integers(0, len(difference), (10_000, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def _figure(truth: FloatArray, ours: dict[str, _Predicted]) -> plots.Figure:
    named = {name.replace("_", " "): found for name, found in ours.items()}
    return plots.predicted_vs_true(
        dict.fromkeys(named, truth),
        {name: found.mean for name, found in named.items()},
        {name: found.sd for name, found in named.items()},
        ["dex(Msun)"] * len(named),
    )
