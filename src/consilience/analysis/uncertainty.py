r"""What more data would not tell, and what it would: aleatoric and epistemic spread of an ensemble's predictions.

Of row n let member k have S_k draws of mean :math:`\mu_{nk}` and variance :math:`s^2_{nk}`. The law of total variance
gives for each cell

.. math::
    \text{aleatoric}_n = \frac1K \sum_k s^2_{nk}, \qquad
    \text{epistemic}_n = \frac1{K-1} \sum_k (\mu_{nk} - \bar\mu_n)^2 - \frac1K \sum_k \frac{s^2_{nk}}{S_k}.

Both are unbiased; the last term is what means of finitely many draws scatter by themselves, so the epistemic variance
of a single row may come out below zero, that of many rows hardly. It is the variance of one member about what members
agree on, whose training differed in its seed: it says nothing of what all members have wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult
from consilience.analysis.question import ask
from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.typing import FloatArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Uncertainty", "uncertainty"]


@dataclass(frozen=True)
class Uncertainty(AbstractResult):
    """Variances of C cells in N rows, each (N, C), in the squared unit of the cell."""

    name: ClassVar[str] = "uncertainty"

    cells: tuple[str, ...]
    units: tuple[str, ...]
    members: int
    ids: StringArray
    aleatoric: FloatArray
    epistemic: FloatArray

    def spread(self) -> dict[str, FloatArray]:
        """Roots of the mean variances over rows, (C,): ``aleatoric``, ``epistemic`` (not below zero) and ``total``."""
        aleatoric, epistemic = (np.nanmean(array, axis=0) for array in (self.aleatoric, self.epistemic))
        epistemic = np.maximum(epistemic, 0.0)
        found = {"aleatoric": aleatoric, "epistemic": epistemic, "total": aleatoric + epistemic}
        return {kind: np.sqrt(variance) for kind, variance in found.items()}

    def table(self) -> "Table":
        """One row per cell: standard deviations, and the epistemic share of the variance."""
        from astropy.table import Table

        found = self.spread()
        share = np.square(found["epistemic"] / np.where(found["total"] > 0, found["total"], np.nan))
        return Table({"cell": list(self.cells), "unit": list(self.units), **found, "epistemic_share": share})

    def figure(self) -> "Figure":
        """Both standard deviations of every cell, over the total one."""
        from consilience import plots

        found = self.spread()
        total = np.where(found["total"] > 0, found["total"], np.nan)
        parts = {kind: found[kind] / total for kind in ("aleatoric", "epistemic")}
        return plots.methods({"sd / total sd": parts}, self.cells, "epistemic", f"{self.members} members")


def uncertainty(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    n: int = 500,
    seed: int = 0,
) -> Uncertainty:
    """Aleatoric and epistemic variance of the target cells, given everything else that each row shows.

    Arguments:
        fitted: An ensemble, ``cs.fit(…, members=K)``.
        obs: Rows; targets need not be measured.
        targets: Modalities of ordered numbers; by default those with named cells.
        given: What the model is shown; by default ``obs`` with the targets hidden.
        n: Draws per object, of all members together.
        seed: Of the draws.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: ``given`` of other rows.
        RequestError: one member, too few draws for two of each, or a category as target.

    References:
        Lakshminarayanan et al. 2017, NeurIPS 30 (deep ensembles).

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(60, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table, cs.TrainConfig(max_steps=5), members=2)
        >>> uncertainty(fit, table, ["y"], n=40).aleatoric.shape[0]
        60
    """
    question = ask(fitted, obs, targets, given)
    members = len(fitted.members)
    if members < 2 or n < 2 * members:
        raise RequestError(
            f"Expected an ensemble and two draws of each member at least; got {members} members and n={n}. Fit with "
            "members=5, say, and raise n."
        )
    names, units = zip(*((q.name, q.unit) for q in question.cells()), strict=True)
    aleatoric, epistemic = np.empty((2, len(obs), len(names)))
    for rows, draws, made_by in question.draws(n, seed, observed=False):
        each = [draws[made_by == member] for member in range(members)]
        mean = np.stack([some.mean(axis=0) for some in each])
        variance = np.stack([some.var(axis=0, ddof=1) for some in each])
        count = np.array([len(some) for some in each])[:, None, None]
        aleatoric[rows] = variance.mean(axis=0)
        epistemic[rows] = mean.var(axis=0, ddof=1) - (variance / count).mean(axis=0)
    return Uncertainty(names, units, members, obs.ids, aleatoric, epistemic)
