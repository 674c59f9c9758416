r"""Do regions of highest density hold what they claim? The rank of the truth's joint density among those of draws.

.. math:: u_n = \#\{s : p(y_{ns} \mid x_n) > p(y_n \mid x_n)\} / S

is uniform where the posterior is right, ties broken at random, and the region of highest density of content l holds the
truth where :math:`u \le l`. Any function of draws and truth would do for that, so an approximate density is as good a
check; one that is right also finds correlations that are wrong (Modrák et al., 2023).

References:
    | Simulation-based calibration checking: the choice of test quantities (Modrák et al., 2023)
    | A trust crisis in simulation-based inference? (Hermans et al., 2022), expected coverage
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.calibration import Bands
from consilience.analysis.question import Question, ask
from consilience.analysis.regions import AbstractRegions, region_verdict
from consilience.analysis.scores import pit
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError
from consilience.typing import FloatArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.predict.fitted import Fitted

__all__ = ["HighestDensity", "highest_density"]


@dataclass(frozen=True)
class HighestDensity(AbstractRegions):
    """Coverage of regions of highest joint density; ``kind`` of density: "exact", a "bound" or an "estimate"."""

    name: ClassVar[str] = "highest-density"
    what: ClassVar[str] = "share of draws of higher density"

    kind: str

    def table(self) -> "Table":
        """One row: coverage with its band at each level."""
        from astropy.table import Table

        found = {"cells": ", ".join(self.cells), "rows": len(self.u), "density": self.kind}
        return Table([found | {"uniform_pvalue": self.uniform_pvalue} | self.columns()])


def highest_density(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    given: Observations | None = None,
    bands: Bands = Bands(),
    n: int = 100,
    seed: int = 0,
) -> HighestDensity:
    """Whether regions of highest joint density of the targets hold the truth as often as they claim.

    Draws include each row's stated error, as in :func:`calibration`. The density is asked for n + 1 times a row.

    Arguments:
        fitted: Any fitted model with densities.
        obs: Rows that the model was not trained on; those with all target cells measured are scored.
        targets: Modalities of ordered numbers to score together; by default those with named cells.
        given: What the model is shown, same rows; by default ``obs`` with the targets hidden.
        bands: Levels, confidence and bins.
        n: Draws per object.
        seed: Of the draws and of ties.

    Raises:
        CapabilityError: the model does not answer this question, or has no densities.
        DataError: no row with all targets measured, or ``given`` of other rows.
        RequestError: a category as target.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(90, seed=0)
        >>> fit = cs.fit(cs.Regression(target="y", hidden=8), table[:50], cs.TrainConfig(max_steps=5))
        >>> highest_density(fit, table[50:], ["y"], n=20).kind
        'exact'
    """
    if "density" not in fitted.capabilities:
        raise CapabilityError(
            f"Expected a model with densities; got one with {sorted(fitted.capabilities)}. Use joint_calibration."
        )
    question = ask(fitted, obs, targets, given)
    whole = np.flatnonzero(np.isfinite(question.truth()).all(axis=1))
    if not len(whole):
        raise DataError(
            f"Expected rows with all cells of {list(question.targets)} measured; got none. Score fewer targets."
        )
    asked = question[whole]
    u, kind = _ranks(asked, n, seed)
    cells = tuple(q.name for q in question.cells())
    return HighestDensity(cells, question.readable, bands, asked.obs.ids, **region_verdict(u, bands), kind=kind)


def _ranks(question: Question, n: int, seed: int) -> tuple[FloatArray, str]:
    """Randomised share of draws whose density is higher than the truth's, (N,), and the kind of the densities."""
    rng, names = np.random.default_rng(seed), list(question.targets)
    u, kind = np.empty(len(question.obs)), ""
    for rows, draws, _ in question.draws(n, seed, observed=True):
        part = question[rows]
        truth = part.fitted.log_prob(part.obs, names, given=part.given)
        each = [part.fitted.log_prob(_drawn(part, one), names, given=part.given).value for one in draws]
        u[rows], kind = 1 - pit(np.array(each), truth.value, rng), truth.kind
    return u, kind


def _drawn(question: Question, draw: FloatArray) -> Observations:
    """The rows with one draw (N, C) in place of their targets."""
    obs, at, parts = question.obs, 0, {}
    for name in question.targets:
        part = obs.parts[name]
        size = part.value[0].size
        parts[name] = replace(part, value=draw[:, at : at + size].reshape(part.value.shape))
        at += size
    return replace(obs, parts={**obs.parts, **parts})
