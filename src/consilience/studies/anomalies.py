"""Quasars with something wrong in their spectra, and how many of them are flagged at a false-positive rate of 1 %."""

from dataclasses import replace

import numpy as np
from astropy.table import Table
from sklearn.ensemble import IsolationForest

from consilience.analysis.outliers import outliers
from consilience.data.observations import Observations
from consilience.predict.fitted import Fitted
from consilience.studies.linear import principal_components
from consilience.typing import FloatArray, IntArray

__all__ = ["KINDS", "detections", "spoiled"]

KINDS = ("wrong template", "cosmic ray", "swapped units")
RATE = 0.01
KELVIN, SECOND = 6000.0, 1.4388e8  # of a star; second radiation constant in Å K
HIT, WIDE = 6.0, 2  # error bars that a cosmic ray leaves behind, and pixels
TREES = 300


def spoiled(table: Observations, share: float, *, seed: int) -> tuple[Observations, IntArray]:
    """The table with anomalies in a share of its spectra, as many of each kind, and the kind of each row (-1: none).

    A star's continuum of 6 000 K with the median flux and the errors of the row; a cosmic ray of 6 error bars in each
    of two neighbouring pixels; flux per frequency where flux per wavelength is said.
    """
    part, rng = table.parts["spectrum"], np.random.default_rng(seed)
    grid = table.schema["spectrum"].grid
    assert grid is not None
    assert part.sigma is not None
    wave, value, kind = grid.centres(), part.value.copy(), np.full(len(table), -1)
    chosen = rng.permutation(np.flatnonzero(part.seen.sum(axis=1) > WIDE))[: round(share * len(table))]
    kind[chosen] = np.arange(len(chosen)) % len(KINDS)
    star = wave**-5 / np.expm1(SECOND / (wave * KELVIN))
    for row in chosen:
        seen, flux, sigma = part.seen[row], part.value[row], part.sigma[row]
        if kind[row] == 0:
            level = np.median(flux[seen]) / np.median(star[seen])
            value[row, seen] = level * star[seen] + sigma[seen] * rng.standard_normal(seen.sum())
        elif kind[row] == 1:
            hit = rng.choice(np.flatnonzero(seen)[:-WIDE]) + np.arange(WIDE)
            value[row, hit] = np.where(seen[hit], flux[hit] + HIT * sigma[hit], flux[hit])
        else:
            value[row, seen] = flux[seen] * (wave[seen] / np.median(wave[seen])) ** 2
    return replace(table, parts={**table.parts, "spectrum": replace(part, value=value)}), kind


def detections(
    fitted: Fitted, train: Observations, reference: Observations, test: Observations, *, seed: int
) -> tuple[dict[str, float | int | bool | None], Table]:
    """Share of each kind that is flagged, by the model and by two baselines with the same reference rows.

    Arguments:
        fitted: A model of the training rows.
        train: What it was fitted to.
        reference: Ordinary rows that set the threshold.
        test: Further ordinary rows, of which a twentieth is spoiled.
        seed: Of the anomalies.
    """
    rows, kind = spoiled(test, 0.05, seed=seed)
    found = {"model": outliers(fitted, rows, reference, rate=RATE, n=50, seed=seed).flagged}
    scores = {"principal components": _unexplained, "isolation forest": _isolated}
    for name, score in scores.items():
        ordinary, asked = (score(train, some) for some in (reference, rows))
        found[name] = asked > np.quantile(ordinary, 1 - RATE)
    lines = []
    for name, flagged in found.items():
        of_kinds = [float(flagged[kind == number].mean()) for number in range(len(KINDS))]
        lines.append([name, *of_kinds, float(flagged[kind >= 0].mean()), float(flagged[kind < 0].mean())])
    numbers: dict[str, float | int | bool | None] = {}
    for name, line in zip(("", "_pca", "_forest"), lines, strict=True):
        numbers |= {f"outlier_detection_at_1pct{name}": line[-2], f"outlier_false_positives{name}": line[-1]}
    return numbers, Table(rows=lines, names=["flagged by", *KINDS, "all", "ordinary rows"])


def _unexplained(train: Observations, rows: Observations) -> FloatArray:
    """χ² per pixel beside probabilistic principal components with the same error bars."""
    found = principal_components(train.select("spectrum"), rows.select("spectrum"))
    part = rows.parts["spectrum"]
    sigma = np.zeros(part.value.shape) if part.sigma is None else np.nan_to_num(part.sigma)
    chi2 = np.where(part.seen, np.square(np.nan_to_num(part.value) - found.mean) / (found.variance + sigma**2), 0.0)
    return chi2.sum(axis=1) / np.maximum(part.seen.sum(axis=1), 1)


def _isolated(train: Observations, rows: Observations) -> FloatArray:
    """How few cuts an isolation forest needs to set a spectrum apart, gaps filled with the mean."""
    both = [np.where(one.parts["spectrum"].seen, one.parts["spectrum"].value, np.nan) for one in (train, rows)]
    mean = np.nan_to_num(np.nanmean(both[0], axis=0))
    x, y = (np.where(np.isfinite(one), one, mean) for one in both)
    return -IsolationForest(n_estimators=TREES, random_state=0).fit(x).score_samples(y)
