"""Which rows are unlike the reference? A score per row and a p-value that holds its false-positive rate."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import stats

from consilience.analysis.base import AbstractResult, truth_of
from consilience.analysis.reconstruction import residuals
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, RequestError
from consilience.predict.tiles import seen
from consilience.typing import BoolArray, FloatArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Outliers", "outliers"]


@dataclass(frozen=True)
class Outliers(AbstractResult):
    """Per row: three normal scores among the reference, their maximum, its p-value, and the flag.

    ``latent`` is of the Mahalanobis distance of the latent mean, ``residual`` of the χ² of the seen cells, ``peak`` of
    the largest of them; NaN where a row has none. ``threshold`` is the score above which a row is flagged.
    """

    name: ClassVar[str] = "outliers"

    ids: StringArray
    latent: FloatArray
    residual: FloatArray
    peak: FloatArray
    score: FloatArray
    pvalue: FloatArray
    flagged: BoolArray
    threshold: float
    rate: float

    def table(self) -> "Table":
        """One row per object, the most unusual first."""
        from astropy.table import Table

        columns = ("latent", "residual", "peak", "score", "pvalue", "flagged")
        order = np.argsort(-np.nan_to_num(self.score, nan=-np.inf), kind="stable")
        return Table({"id": self.ids[order], **{key: getattr(self, key)[order] for key in columns}})

    def figure(self) -> "Figure":
        """Latent score against that of the residuals (the larger of the two), with the threshold."""
        from consilience import plots

        return plots.outlier_map(self.latent, np.fmax(self.residual, self.peak), self.flagged, self.threshold)


def outliers(
    fitted: "Fitted", obs: Observations, reference: Observations, *, rate: float = 0.01, n: int = 100, seed: int = 0
) -> Outliers:
    r"""Flag rows unlike the reference at a stated false-positive rate.

    Each row gets :math:`d^2 = (\mu-m)^\top C^{-1}(\mu-m)` of its latent mean, :math:`\chi^2` of its seen cells under
    the predictive variance, and the largest of these cells, which a cosmic ray of two pixels shows where their sum does
    not. They are made comparable between rows with few and many cells (Wilson-Hilferty; of the largest of n Gaussian
    cells) and turned into normal scores, so that none with a long tail rules the others; the score is the largest one.
    One half of the reference fixes m, C and the ranks; the other half gives
    :math:`p = (1 + \#\{s_{ref} \ge s\})/(1 + n_{ref})`, valid in finite samples for rows exchangeable with it
    (conformal p-value).

    Arguments:
        fitted: Any model with a latent, or one that reconstructs what it is shown.
        obs: Rows to judge.
        reference: Ordinary rows. Rows the model was *not* trained on keep the false-positive rate exactly; training
            rows are explained too well, so fresh ordinary rows are then flagged somewhat more often.
        rate: False-positive rate in (0, 1).
        n: Draws per object for the predictive variance.
        seed: Of the draws and of the halves.

    Raises:
        RequestError: a rate outside (0, 1), or too few reference rows to resolve it.
        CapabilityError: the model has no latent and reconstructs nothing.

    References:
        Bates et al. 2023, Ann. Stat. 51, 149 (conformal outlier p-values); Wilson & Hilferty 1931, PNAS 17, 684.
    """
    if not 0 < rate < 1:
        raise RequestError(f"Expected a false-positive rate in (0, 1); got {rate}.")
    kept = len(reference) - len(reference) // 2
    if rate * (kept + 1) < 1 or len(reference) < 4:
        raise RequestError(
            f"Expected at least {max(4, 2 * int(np.ceil(1 / rate)))} reference rows for a rate of {rate:g}; "
            f"got {len(reference)}. Add rows or raise the rate."
        )
    order = np.random.default_rng(seed).permutation(len(reference))
    first, second = order[kept:], order[:kept]
    names = [m for m in reference.schema.names if fitted.answers(seen(reference), frozenset([m]))]
    names = [m for m in names if fitted.schema[m].kind != "category" and m in seen(reference)]
    if not names and "latent" not in fitted.capabilities:
        raise CapabilityError(
            "Expected a model with a latent or one that reconstructs; got neither. Use another family."
        )
    of_reference = _components(fitted, reference, reference, first, names, n, seed)
    of_rows = _components(fitted, obs, reference, first, names, n, seed)
    standard_reference, standard = [], []
    for r, o in zip(of_reference, of_rows, strict=True):
        standard_reference.append(_ranked(r[first], r))
        standard.append(_ranked(r[first], o))
    calibrators = np.sort(_largest(standard_reference)[second])
    score = _largest(standard)
    above = len(calibrators) - np.searchsorted(calibrators, score, side="left")
    pvalue = (1 + above) / (1 + len(calibrators))
    allowed = int(np.floor(rate * (1 + len(calibrators)))) - 1
    threshold = calibrators[len(calibrators) - 1 - allowed]
    latent, residual, peak = standard
    return Outliers(obs.ids, latent, residual, peak, score, pvalue, pvalue <= rate, float(threshold), rate)


def _components(
    fitted: "Fitted",
    obs: Observations,
    reference: Observations,
    first: np.ndarray,
    names: list[str],
    n: int,
    seed: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    latent = np.full(len(obs), np.nan)
    if "latent" in fitted.capabilities:
        base = _position(fitted, reference[first])
        centre = base.mean(axis=0)
        # A ridge keeps unused latent dimensions from dividing by nothing.
        cov = np.atleast_2d(np.cov(base.T)) + 1e-3 * np.eye(base.shape[1])
        away = _position(fitted, obs) - centre
        squared = np.einsum("nq,qr,nr->n", away, np.linalg.inv(cov), away)
        latent = _normal(squared, np.full(len(obs), base.shape[1]))
    total, count, most = np.zeros((3, len(obs)))
    for name in names:
        if not obs.parts[name].seen.any():
            continue
        _, chi2 = residuals(fitted, obs, obs, name, n=n, seed=seed, truth=truth_of(obs, name))
        total += np.nansum(chi2, axis=1)
        count += np.isfinite(chi2).sum(axis=1)
        most = np.maximum(most, np.nan_to_num(chi2).max(axis=1))
    return latent, _normal(total, count), _highest(most, count)


def _position(fitted: "Fitted", obs: Observations) -> FloatArray:
    latent = fitted.latent(obs)
    return np.concatenate([latent.mean[block].reshape(len(obs), -1) for block in sorted(latent.mean)], axis=1)


def _normal(chi2: FloatArray, dof: FloatArray) -> FloatArray:
    # Wilson-Hilferty: the cube root of chi2/dof is nearly normal.
    dof = np.where(dof > 0, dof, np.nan)
    return (np.cbrt(chi2 / dof) - (1 - 2 / (9 * dof))) / np.sqrt(2 / (9 * dof))


def _highest(chi2: FloatArray, count: FloatArray) -> FloatArray:
    """Normal score of the largest of so many squares of standard normals; NaN of none."""
    tail = 2 * stats.norm.sf(np.sqrt(chi2))
    chance = -np.expm1(count * np.log1p(-np.minimum(tail, 1 - 1e-12)))
    return np.where(count > 0, stats.norm.isf(np.clip(chance, 1e-300, 1 - 1e-12)), np.nan)


def _ranked(ordinary: FloatArray, values: FloatArray) -> FloatArray:
    """Normal scores of values among ordinary ones; beyond these on a line of the slope of the middle 68 %."""
    known = np.sort(ordinary[np.isfinite(ordinary)])
    if len(known) < 2 or known[0] == known[-1]:
        return np.where(np.isfinite(values), 0.0, np.nan)
    at = stats.norm.ppf((np.arange(len(known)) + 0.5) / len(known))
    low, high = np.quantile(known, stats.norm.cdf([-1.0, 1.0]))
    slope = 2 / (high - low) if high > low else 1.0
    found = np.interp(values, known, at) + slope * (
        np.maximum(values - known[-1], 0) - np.maximum(known[0] - values, 0)
    )
    return np.where(np.isfinite(values), found, np.nan)


def _largest(parts: list[FloatArray]) -> FloatArray:
    return np.max(np.stack([np.nan_to_num(part, nan=-np.inf) for part in parts]), axis=0)
