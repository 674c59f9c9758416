r"""Do the error bars hold together? Coverage of joint posteriors by random points (TARP), with proper scores.

Of each row the share u of draws that lie nearer to a reference point than the truth does is uniform if the posterior is
right, whatever the reference, as long as it does not depend on the truth itself. For references that do not depend on
what is seen, a posterior equal to the prior passes too; so the reference of a row is the truth of a row that looks like
it, from another part of the table. Posteriors that are too narrow, too wide, or have lost a correlation show here; one
that is only shifted lies about as far from the references as the right one, and shows in the ranks of single cells
(:mod:`~consilience.analysis.calibration`) and in the energy score.

References:
    Sampling-based accuracy testing of posterior estimators for general inference (Lemos et al., 2023)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.calibration import Bands
from consilience.analysis.question import Question, ask
from consilience.analysis.regions import AbstractRegions, region_verdict
from consilience.analysis.scores import energy, tarp
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.errors import DataError
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.predict.fitted import Fitted

__all__ = ["JointCalibration", "joint_calibration"]

LEAST = 20  # rows with all targets
COMPONENTS = 10  # of what is seen, in which rows look alike


@dataclass(frozen=True)
class JointCalibration(AbstractRegions):
    """TARP coverage and scores of the joint posterior; u is the share of draws nearer to a reference than the truth.

    ``nlpd`` is the mean joint density's in nats, NaN for a model without; ``energy`` the energy score in units of each
    cell's scatter, ``energy_prior`` that of draws from other rows: what was not learned shows there.
    """

    name: ClassVar[str] = "joint-calibration"
    what: ClassVar[str] = "share of draws nearer to the reference"

    nlpd: float
    energy: float
    energy_prior: float

    def table(self) -> "Table":
        """One row: scores, then coverage with its band at each level."""
        from astropy.table import Table

        found = {"cells": ", ".join(self.cells), "rows": len(self.u), "nlpd": self.nlpd, "energy": self.energy}
        found |= {"energy_prior": self.energy_prior, "uniform_pvalue": self.uniform_pvalue}
        return Table([found | self.columns()])


def joint_calibration(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bands: Bands = Bands(),
    n: int = 500,
    seed: int = 0,
) -> JointCalibration:
    """Whether joint posteriors of the targets hold what they claim, correlations included.

    Half of the rows in which all target cells are measured are scored; the truths of the others are references, each
    of the row that looks most alike in what is shown (in principal components of the scaled cells). Draws include each
    row's stated error, as in :func:`calibration`.

    Arguments:
        fitted: Any fitted model.
        obs: Rows that the model was not trained on.
        targets: Modalities of ordered numbers to score together; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bands: Levels, confidence and bins.
        n: Draws per object.
        seed: Of the draws, of the halves and of ties.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: too few rows with all targets measured, nothing seen in them, or ``given`` of other rows.
        RequestError: a category as target.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(90, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:50], cs.TrainConfig(max_steps=5))
        >>> joint_calibration(fit, table[50:], ["y"], n=20).given
        ('x',)
    """
    question = ask(fitted, obs, targets, given)
    truth = question.truth()
    whole = np.flatnonzero(np.isfinite(truth).all(axis=1))
    if len(whole) < LEAST or not question.readable:
        raise DataError(
            f"Expected at least {LEAST} rows with all cells of {list(question.targets)} measured and something else "
            f"seen; got {len(whole)} rows, seen {list(question.readable)}. Pass more rows, or score fewer targets."
        )
    order = np.random.default_rng(seed).permutation(whole)
    scored, library = np.sort(order[len(order) // 2 :]), np.sort(order[: len(order) // 2])
    unit = np.maximum(truth[library].std(axis=0), 1e-300)
    asked = question[scored]
    reference = truth[library][_alike(asked.given, question.given[library], question.readable, seed)]
    u, score, prior = _scores(asked, reference / unit, unit, n, seed)
    nlpd = np.nan
    if "density" in fitted.capabilities:
        nlpd = -float(np.mean(fitted.log_prob(asked.obs, list(asked.targets), given=asked.given).value))
    cells = tuple(q.name for q in question.cells())
    verdict, ids = region_verdict(u, bands), asked.obs.ids
    return JointCalibration(
        cells, question.readable, bands, ids, **verdict, nlpd=nlpd, energy=score, energy_prior=prior
    )


def _alike(rows: Observations, library: Observations, names: Sequence[str], seed: int) -> np.ndarray:
    """Number of the row of the library that looks most like each row."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    scaler = Scaler.fit(library.select(*(n for n in names if library.parts[n].measured.any())))
    both = []
    for table in (library, rows):
        parts = scaler.forward(table.select(*scaler.schema.names)).parts.values()
        both.append(np.concatenate([part.value.reshape(len(table), -1) for part in parts], axis=1))
    pca = PCA(min(COMPONENTS, *both[0].shape), random_state=seed).fit(both[0])
    near = NearestNeighbors(n_neighbors=1).fit(pca.transform(both[0]))
    return near.kneighbors(pca.transform(both[1]), return_distance=False)[:, 0]


def _scores(
    question: Question, reference: FloatArray, unit: FloatArray, n: int, seed: int
) -> tuple[FloatArray, float, float]:
    """u of each row, the mean energy score, and that of the truths of other rows as draws; all in these units."""
    truth = question.truth() / unit
    rng = np.random.default_rng(seed)
    u, score = np.empty(len(truth)), np.empty(len(truth))
    for rows, draws, _ in question.draws(n, seed, observed=True):
        u[rows] = tarp(draws / unit, truth[rows], reference[rows], rng)
        score[rows] = energy(draws / unit, truth[rows])
    others = np.stack([np.roll(truth, shift, axis=0) for shift in range(1, min(len(truth), n))])
    return u, float(score.mean()), float(energy(others, truth).mean())
