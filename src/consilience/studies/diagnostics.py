"""Which diagnostic catches which error, and how often does it cry wolf? On posteriors known to be right and wrong.

Also: Shapley values against their closed form, estimates of information against that of Gaussians, and a model that is
too sure by construction before and after its recalibration, on rows that it has never seen;
and quasars with something wrong in their spectra.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field
from scipy import stats

from consilience import plots
from consilience.analysis.attribution import attribution
from consilience.analysis.calibration import Bands, calibration
from consilience.analysis.conditional import conditional_calibration
from consilience.analysis.contributions import shapley
from consilience.analysis.estimators import club, contrastive, gaussian_information, ksg
from consilience.analysis.highest_density import highest_density
from consilience.analysis.joint import joint_calibration
from consilience.analysis.pattern_calibration import pattern_calibration
from consilience.analysis.recalibration import recalibration
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, validated
from consilience.models.shared_gplvm import SharedGPLVM
from consilience.predict.fitted import Fitted
from consilience.simulators.quasars import quasars
from consilience.studies.anomalies import detections
from consilience.studies.kept import Kept
from consilience.studies.planted import ERRORS, Error, planted, survey, world
from consilience.studies.runner import Results, StudyConfig
from consilience.train.config import TrainConfig
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["DIAGNOSTICS", "Settings", "run"]

DIAGNOSTICS = ("coverage", "pit", "tarp", "highest_density", "conditional")
BATCH = 256  # rows among which a critic finds a partner
LEVELS = (0.5, 0.68, 0.9, 0.95)


class Settings(Frozen):
    """Rows, repetitions and draws."""

    rows: int = Field(ge=100)
    repetitions: int = Field(ge=1)
    draws: int = Field(ge=10)
    densities: int = Field(ge=2)
    alarm: float = Field(gt=0, lt=0.5)
    shapley_rows: int = Field(ge=50)
    correlations: tuple[float, ...]
    columns: tuple[int, ...]
    pairings: int = Field(ge=2)  # tables of correlated vectors, over which estimates are averaged
    pairs: int = Field(ge=60)
    overfitted: int = Field(ge=20)
    held: int = Field(ge=200)
    few: int = Field(ge=200)
    fresh: int = Field(ge=200)
    quasars: tuple[int, int, int]  # with spectra: to train on, ordinary ones, and those to find anomalies among
    quasar_steps: int = Field(ge=1)


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Measure the diagnostics.

    Arguments:
        config: The model that is recalibrated, its training and :class:`Settings`.
        data: Not used.
        seed: Of all surveys and of the training.
        quick: Tiny sizes; already in ``config``.
        out: Where repetitions are kept, so that a study which was stopped goes on.
    """
    size = validated(Settings, config.study, where="[study]")
    kept = Kept(out, size)
    power, caught = _power(size, kept, seed)
    shares, worth = _shapley(size, seed)
    told, information = _information(size, kept, seed)
    sure = fit(config.config.family, survey(size.overfitted, seed=seed + 1), config.config.train)
    fresh = survey(size.fresh, seed=seed + 4)
    maps, before_after = _recalibrated(sure, size.held, fresh, size, seed)
    few, of_few = _recalibrated(sure, size.few, fresh, size, seed)
    maps["recalibrated_coverage_error_max_few"] = few["recalibrated_coverage_error_max"]
    odd, flagged = _anomalies(size, kept, seed)
    title = f"Share of {size.repetitions} surveys of {size.rows} objects in which p < {size.alarm:g}"
    tables = {
        title: caught,
        "Shapley values in bits and their closed form": worth,
        "Information of correlated Gaussians, nats": information,
        f"Coverage of a model that is too sure, on fresh rows; maps of {size.held} others": before_after,
        f"The same with maps of {size.few} others": of_few,
        "Share of anomalous quasars that are flagged where 1 % of ordinary ones are": flagged,
    }
    value = np.array([[row[name] for name in caught.colnames[1:]] for row in caught])
    posteriors = [str(row["posterior"]) for row in caught]
    figure = plots.heat_map(value, posteriors, caught.colnames[1:], "share caught", title)
    return Results({**power, **shares, **told, **maps, **odd}, tables, {"power": figure})


def _power(size: Settings, kept: Kept, seed: int) -> tuple[dict[str, float | int | bool | None], Table]:
    """Share of repetitions in which each diagnostic raises its hand, by planted error."""
    errors: tuple[Error, ...] = ("none", *ERRORS)
    numbers: dict[str, float | int | bool | None] = {}
    rows = []
    for error in errors:
        each = []
        for number in range(size.repetitions):
            at = seed + 1000 + number

            def one(error: Error = error, at: int = at) -> Mapping[str, FloatArray]:
                return _pvalues(planted(error), survey(size.rows, seed=at), size, at)

            found = kept.part(f"{error}, {at}", one)
            each.append([float(found[name]) for name in DIAGNOSTICS])
        pvalues = np.array(each)
        hands = pvalues < size.alarm
        any_of = pvalues.min(axis=1) * len(DIAGNOSTICS) < size.alarm
        share = {**dict(zip(DIAGNOSTICS, hands.mean(axis=0), strict=True)), "any": any_of.mean()}
        for name, value in share.items():
            numbers["false_alarm_" + name if error == "none" else f"power_{name}_{error}"] = float(value)
        rows.append({"posterior": "exact" if error == "none" else error, **share})
    numbers["false_alarm_max"] = max(float(rows[0][name]) for name in (*DIAGNOSTICS, "any"))
    # what an exact test exceeds in one study of a hundred, over all of them
    allowed = stats.binom.ppf(1 - 0.01 / (len(DIAGNOSTICS) + 1), size.repetitions, size.alarm) / size.repetitions
    numbers["false_alarm_allowed"] = float(allowed)
    numbers["power_any_min"] = min(float(row["any"]) for row in rows[1:])
    return numbers, Table(rows)


def _pvalues(posterior: Fitted, rows: Observations, size: Settings, seed: int) -> dict[str, FloatArray]:
    """p-value of each diagnostic; of two tests in one, twice the smaller."""
    args = (posterior, rows)
    alone = calibration(*args, n=size.draws, seed=seed)
    joint = joint_calibration(*args, n=size.draws, seed=seed)
    dense = highest_density(*args, n=size.densities, seed=seed)
    told = conditional_calibration(*args, n=size.draws, seed=seed)
    found = {
        "coverage": alone.pvalue,
        "pit": alone.pit_pvalue,
        "tarp": min(1.0, 2 * min(joint.pvalue, joint.uniform_pvalue)),
        "highest_density": min(1.0, 2 * min(dense.pvalue, dense.uniform_pvalue)),
        "conditional": told.pvalue,
        "nlpd": alone.scores["nlpd"].mean(),
        "contraction": alone.scores["contraction"].mean(),
    }
    return {name: np.array(value) for name, value in found.items()}


def _shapley(size: Settings, seed: int) -> tuple[dict[str, float | int | bool | None], Table]:
    """Shapley values of the modalities in bits, of the exact posterior, against half logarithms of variances."""
    rows = survey(size.shapley_rows, seed=seed + 2)
    found = attribution(planted(), rows, n=2, seed=seed)
    worth = []
    for coalition in range(1 << len(found.modalities)):
        hidden = [name for m, name in enumerate(found.modalities) if not coalition >> m & 1]
        _, covariance = world().posterior(rows.hide("labels", *hidden), ["labels"], observed=rows)
        variance = np.diagonal(covariance, axis1=1, axis2=2)
        worth.append(-0.5 * np.log2(2 * math.pi * math.e * variance).mean(axis=0))
    exact = shapley(np.array(worth))
    parts = [(found.r2_value, found.r2), (found.bits_value, found.bits)]
    sums = [np.abs(value.sum(axis=0) - (all_of[-1] - all_of[0])).max() for value, all_of in parts]
    noise = found.modalities.index("noise")
    half = 0.5 * (found.bits_interval[1] - found.bits_interval[0])
    table = Table(
        rows=[
            [name, cell, found.bits_value[m, k], half[m, k], exact[m, k]]
            for m, name in enumerate(found.modalities)
            for k, cell in enumerate(found.cells)
        ],
        names=["modality", "cell", "bits", "68 % half width", "closed form"],
    )
    numbers: dict[str, float | int | bool | None] = {
        "shapley_sum_error": float(max(sums)),
        "shapley_noise_max": float(np.abs(found.bits_value[noise]).max()),
        "shapley_error_max": float(np.abs(found.bits_value - exact).max()),
        "shapley_pull_max": float(
            (np.abs(found.bits_value - exact) / np.maximum(half, 1e-12))[np.arange(len(exact)) != noise].max()
        ),
    }
    return numbers, table


@dataclass(frozen=True, slots=True)
class _Estimator:
    """An estimate, what it is of for d columns of correlation ρ, and whether it is in its valid range."""

    measure: Callable[[FloatArray, FloatArray, int], float]
    exact: Callable[[float, int], float]
    valid: Callable[[float, int], bool]


def _information_of(rho: float, columns: int) -> float:
    return -0.5 * columns * math.log1p(-(rho**2))


ESTIMATORS = {
    "ksg": _Estimator(lambda x, y, _: ksg(x, y), _information_of, lambda _, columns: 2 * columns <= 5),
    "gaussian": _Estimator(lambda x, y, _: gaussian_information(x, y), _information_of, lambda *_: True),
    "infonce": _Estimator(
        lambda x, y, seed: contrastive(*_halves(x, y), batch=BATCH, seed=seed),
        _information_of,
        lambda rho, columns: _information_of(rho, columns) < 0.5 * math.log(BATCH),
    ),
    "club": _Estimator(
        lambda x, y, seed: club(*_halves(x, y), seed=seed),
        lambda rho, columns: columns * rho**2 / (1 - rho**2),
        lambda rho, columns: rho < 0.9 and columns <= 5,
    ),
}


def _halves(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    half = len(x) // 2
    return x[:half], y[:half], x[half:], y[half:]


def _information(size: Settings, kept: Kept, seed: int) -> tuple[dict[str, float | int | bool | None], Table]:
    """Estimates of the information of correlated Gaussians, within and outside their valid range."""
    rows, errors = [], {name: [0.0] for name in ESTIMATORS}
    for columns in size.columns:
        for rho in size.correlations:
            row = {"columns": columns, "correlation": rho, "information": _information_of(rho, columns)}
            for name, one in ESTIMATORS.items():

                def measured(
                    one: _Estimator = one, rho: float = rho, columns: int = columns
                ) -> Mapping[str, FloatArray]:
                    return {
                        "values": np.array([one.measure(*pair, at) for at, pair in _pairs(rho, columns, size, seed)])
                    }

                values = kept.part(f"{name} of {columns} columns at {rho}", measured)["values"]
                exact, valid = one.exact(rho, columns), one.valid(rho, columns)
                if valid:
                    errors[name].append(abs(values.mean() - exact) / max(exact, 0.1))  # of .1 nat, where it is less
                row |= {name: f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" + ("" if valid else " (outside)")}
                row |= {f"{name}, its own exact value": exact} if name == "club" else {}
            rows.append(row)
    return {f"mi_relative_error_{name}": max(each) for name, each in errors.items()}, Table(rows)


def _pairs(rho: float, columns: int, size: Settings, seed: int) -> Iterator[tuple[int, tuple[FloatArray, FloatArray]]]:
    """Seeds, and vectors whose columns correlate one by one."""
    for at in range(seed, seed + size.pairings):
        x, e = np.random.default_rng(at).standard_normal((2, size.pairs, columns))
        yield at, (x, rho * x + math.sqrt(1 - rho**2) * e)


def _recalibrated(
    sure: Fitted, held: int, fresh: Observations, size: Settings, seed: int
) -> tuple[dict[str, float | int | bool | None], Table]:
    """Coverage by pattern on fresh rows before and after, of maps learned on others."""
    bands = Bands(levels=LEVELS)
    better = recalibration(sure, survey(held, seed=seed + 3), bands=bands, n=size.draws, seed=seed).fitted
    found = [pattern_calibration(one, fresh, bands=bands, n=size.draws, seed=seed) for one in (sure, better)]
    rows = []
    for pattern, *each in zip(found[0].patterns, *(one.each for one in found), strict=True):
        for c, cell in enumerate(each[0].cells):
            row: dict[str, object] = {"pattern": pattern, "cell": cell, "rows": int(each[0].rows[c])}
            for when, one in zip(("before", "after"), each, strict=True):
                row |= {f"{100 * level:g} % {when}": one.coverage[c, k] for k, level in enumerate(LEVELS)}
                row |= {f"CRPS {when}": one.scores["crps"][c]}
            rows.append(row)
    off = [max(float(np.abs(each.coverage - LEVELS).max()) for each in one.each) for one in found]
    return {"coverage_error_max_before": off[0], "recalibrated_coverage_error_max": off[1]}, Table(rows)


def _anomalies(size: Settings, kept: Kept, seed: int) -> tuple[dict[str, float | int | bool | None], Table]:
    """A model of simulated quasars, and what it finds wrong with others."""
    train, ordinary, _ = size.quasars
    table = quasars(sum(size.quasars), seed=seed + 5).select("spectrum", "labels")
    private = {"labels": 2, "spectrum": 4}
    family = SharedGPLVM(latent_dim=10, inducing=60, private=private, likelihoods={"labels": "heteroscedastic"})
    config = TrainConfig(max_steps=size.quasar_steps, seed=seed)
    fitted = kept.model(f"quasars {seed}", lambda: fit(family, table[:train].renumbered(), config))
    rest = table[train : train + ordinary], table[train + ordinary :]
    return detections(fitted, table[:train], *rest, seed=seed)
