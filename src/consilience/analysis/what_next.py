r"""What to observe next? What each modality that a row lacks is expected to tell of the targets, row by row.

With x what the row shows and m a modality that it does not, the expected information gain about target cell y is the
mutual information of both given x, averaged over what m may turn out to be:

.. math::
    \text{gain}_m = E_{p(y, m \mid x)} \log_2 \frac{p(y \mid x, m)}{p(y \mid x)}
    \approx \frac1S \sum_s \log_2 \frac{p(y_s \mid x, m_s)}{p(y_s \mid x)}, \qquad (y_s, m_s) \sim p(y, m \mid x).

Draws of m have the error bars that such a measurement would have; y is the quantity itself, without error. The gain of
a model that is wrong is what it expects, not what it gets: :func:`~consilience.analysis.attribution.attribution`
measures that where the truth is known.

References:
    On a measure of the information provided by an experiment (Lindley, 1956)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult, tiles
from consilience.analysis.question import Question, ask
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec
from consilience.errors import CapabilityError, DataError, RequestError
from consilience.typing import FloatArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["WhatNext", "what_next"]


@dataclass(frozen=True)
class WhatNext(AbstractResult):
    """Expected gains of M modalities about K cells in N rows.

    Arguments:
        modalities: M names.
        cells: K names.
        given: Modalities that are seen in some row.
        ids: N rows.
        bits: Expected information gain, (N, M, K); NaN where the row shows the modality already.
        error: Its standard error from finitely many draws, (N, M, K).
    """

    name: ClassVar[str] = "what-next"

    modalities: tuple[str, ...]
    cells: tuple[str, ...]
    given: tuple[str, ...]
    ids: StringArray
    bits: FloatArray
    error: FloatArray

    def best(self, cell: str) -> StringArray:
        """Name of the modality that is expected to tell most of this cell, for each row; empty where it has all.

        Raises:
            RequestError: no such cell.
        """
        if cell not in self.cells:
            raise RequestError(f"Expected a cell among {list(self.cells)}; got {cell!r}.")
        gain = self.bits[:, :, self.cells.index(cell)]
        gain = np.where(np.isfinite(gain), gain, -np.inf)
        names = np.array([*self.modalities, ""])
        return names[np.where(np.isinf(gain).all(axis=1), len(self.modalities), gain.argmax(axis=1))]

    def table(self) -> "Table":
        """Mean over rows that lack the modality, one row per modality and cell, with how often it would be best."""
        from astropy.table import Table

        lacks = np.isfinite(self.bits)
        count = lacks.sum(axis=0)
        some = np.where(count > 0, count, np.nan)
        mean = np.where(lacks, self.bits, 0.0).sum(axis=0) / some
        error = np.sqrt(np.where(lacks, self.error**2, 0.0).sum(axis=0)) / some
        best = np.array([[np.mean(self.best(cell) == name) for cell in self.cells] for name in self.modalities])
        return Table(
            {
                "modality": [name for name in self.modalities for _ in self.cells],
                "cell": list(self.cells) * len(self.modalities),
                "rows": count.ravel(),
                "bits": mean.ravel(),
                "error": error.ravel(),
                "share_best": best.ravel(),
            }
        )

    def catalogue(self) -> "Table":
        """One row per object: its id, and for each cell ``next_CELL`` and ``bits_MODALITY_CELL``."""
        from astropy.table import Table

        found = Table({"id": self.ids})
        for k, cell in enumerate(self.cells):
            found[f"next_{cell}"] = self.best(cell)
            for m, name in enumerate(self.modalities):
                found[f"bits_{name}_{cell}"] = self.bits[:, m, k]
        return found

    def figure(self) -> "Figure":
        """Mean gain of each modality about each cell, over rows that lack it."""
        from consilience import plots

        mean = np.array(self.table()["bits"]).reshape(len(self.modalities), len(self.cells))
        title = f"{len(self.ids)} rows, given {', '.join(self.given) or 'nothing'}"
        return plots.heat_map(mean, self.modalities, self.cells, "expected gain [bits]", title)


def what_next(
    fitted: "Fitted",
    obs: Observations,
    targets: Sequence[str] | None = None,
    *,
    like: Observations | None = None,
    n: int = 100,
    seed: int = 0,
) -> WhatNext:
    """Expected information gain of each modality that rows lack, about each cell of the targets.

    Arguments:
        fitted: A model with densities that draws targets and modalities together.
        obs: Rows; what they show is known, targets are hidden.
        targets: Modalities of real or positive numbers; by default those with named cells.
        like: Rows whose error bars a new measurement would have, cell by cell their median; by default ``obs``. A
            modality without error bars there is taken to be measured without error.
        n: Draws per object; the error of a gain falls with their root.
        seed: Of the draws.

    Raises:
        CapabilityError: a model without densities, or one that does not draw any such modality with the targets.
        DataError: no row lacks any.
        RequestError: fewer than two draws, or targets that are not numbers.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(60, seed=0)
        >>> fit = cs.fit(cs.SharedGPLVM(latent_dim=2, inducing=8), table, cs.TrainConfig(max_steps=5))
        >>> found = what_next(fit, table[:4].hide("x"), ["y"], like=table, n=8)
        >>> found.modalities, found.bits.shape
        (('x',), (4, 1, 3))
    """
    question = ask(fitted, obs.hide(*(targets or ())), targets, None)
    _check(question, n)
    lacking = {
        name: ~obs.parts[name].seen.reshape(len(obs), -1).any(axis=1)
        for name in fitted.schema.names
        if name not in question.targets and name in obs.parts
    }
    lacking = {name: rows for name, rows in lacking.items() if rows.any()}
    if not lacking:
        raise DataError("Expected rows that lack a modality; got rows that show all of them. Hide what to ask about.")
    readable = frozenset(question.readable)
    names = tuple(m for m in lacking if fitted.answers(readable, frozenset({*question.targets, m})))
    if not names:
        raise CapabilityError(
            f"Expected a model that draws {sorted(lacking)} together with {list(question.targets)}; got none of them. "
            "Fit a family of all modalities, such as SharedGPLVM or DisentangledVAE."
        )
    bits, error = (np.full((len(obs), len(names), len(question.cells())), np.nan) for _ in range(2))
    for m, name in enumerate(names):
        rows = np.flatnonzero(lacking[name])
        errors = _errors(fitted.schema[name], (like or obs).parts.get(name))
        for part in tiles(len(rows), 3 * n * fitted.schema[name].size, fitted):
            gain = _gains(question[rows[part]], name, errors, n, seed)
            bits[rows[part], m], error[rows[part], m] = gain.mean(axis=0), gain.std(axis=0, ddof=1) / np.sqrt(n)
    return WhatNext(names, tuple(q.name for q in question.cells()), question.readable, obs.ids, bits, error)


def _gains(question: Question, name: str, errors: FloatArray, n: int, seed: int) -> FloatArray:
    """log2 p(y_s | x, m_s) - log2 p(y_s | x) of every draw, (S, N, K)."""
    fitted, given, targets = question.fitted, question.given, list(question.targets)
    drawn = fitted.sample(given, [*targets, name], n=n, seed=seed).values
    value = _measured(fitted.schema[name], drawn[name], errors, np.random.default_rng(seed))
    given = given[np.tile(np.arange(len(given)), n)]  # a row for each draw: models answer many rows at once
    known = {t: _known(given.parts[t], drawn[t].reshape(given.parts[t].value.shape)) for t in targets}
    truth = replace(given, parts={**given.parts, **known})
    seen = _known(given.parts[name], value.reshape(given.parts[name].value.shape), errors)
    told = replace(given, parts={**given.parts, name: seen})
    after, before = (_densities(fitted, truth, targets, context) for context in (told, given))
    return (after - before).reshape(n, -1, after.shape[1]) / np.log(2)


def _densities(fitted: "Fitted", truth: Observations, targets: list[str], given: Observations) -> FloatArray:
    value = fitted.cell_log_prob(truth, targets, given=given)
    return np.concatenate([value[t].reshape(len(truth), -1) for t in targets], axis=1)


def _known(part: Modality, value: FloatArray, errors: FloatArray | None = None) -> Modality:
    """The cells with these values, as a measurement with these error bars would show them."""
    there = part.state != State.ABSENT
    state = np.where(there, np.int8(State.MEASURED), part.state)
    sigma = np.full(value.shape, np.nan) if errors is None else np.broadcast_to(errors, value.shape)
    return replace(part, value=np.where(there, value, np.nan), state=state, sigma=np.where(there, sigma, np.nan))


def _errors(spec: ModalitySpec, part: Modality | None) -> FloatArray:
    """Median error bar of each cell, NaN where none is stated; of a cell that nobody saw that of the others."""
    if part is None or part.sigma is None:
        return np.full(spec.shape, np.nan)
    stated = np.where(part.seen, part.sigma, np.nan)
    whole = float(np.median(stated[np.isfinite(stated)])) if np.isfinite(stated).any() else np.nan
    columns = stated.reshape(len(stated), -1).T
    each = [float(np.median(c[np.isfinite(c)])) if np.isfinite(c).any() else whole for c in columns]
    return np.array(each).reshape(spec.shape)


def _measured(spec: ModalitySpec, value: FloatArray, errors: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draws with their errors; relative ones where the model works with logarithms, and none beyond bounds."""
    noise = np.nan_to_num(errors) * rng.standard_normal(value.shape)
    return value * np.exp(noise / value) if spec.scaling == "log" else np.clip(value + noise, *spec.between())


def _check(question: Question, n: int) -> None:
    if "density" not in question.fitted.capabilities:
        raise CapabilityError("Expected a model with densities; got one without. Fit a family that has them.")
    if n < 2:
        raise RequestError(f"Expected n >= 2 draws; got {n}.")
    kinds: Mapping[str, str] = {name: question.fitted.schema[name].kind for name in question.targets}
    if wrong := sorted(name for name, kind in kinds.items() if kind not in ("real", "positive")):
        raise RequestError(f"Expected targets of real or positive numbers; got {wrong[0]!r}, {kinds[wrong[0]]}.")
