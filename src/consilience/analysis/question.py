"""Ordered targets, asked of a fitted model from what each row shows: checked once, drawn tile by tile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from consilience.analysis.base import Quantity, answered, default_targets, quantities, tiles, truth_of
from consilience.data.observations import Observations
from consilience.errors import DataError, RequestError
from consilience.predict.tiles import seen
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["Question", "ask"]


@dataclass(frozen=True, slots=True)
class Question:
    """Targets with C cells in all, N rows, and the modalities that these show."""

    fitted: "Fitted"
    obs: Observations
    given: Observations
    targets: tuple[str, ...]
    readable: tuple[str, ...]

    def __getitem__(self, rows: slice | IntArray) -> "Question":
        return replace(self, obs=self.obs[rows], given=self.given[rows])

    def cells(self) -> list[Quantity]:
        """Every cell of the targets, (C,)."""
        return [q for name in self.targets for q in quantities(self.fitted.schema[name], each=True)]

    def truth(self) -> FloatArray:
        """Measured values, NaN elsewhere, (N, C)."""
        return np.concatenate([truth_of(self.obs, name) for name in self.targets], axis=1)

    def draws(self, n: int, seed: int, *, observed: bool) -> Iterator[tuple[slice, FloatArray, IntArray]]:
        """Of each tile of rows: which, its draws (n, rows, C), and the member that made each draw (n,).

        ``observed`` draws include each row's stated error.
        """
        for rows in tiles(len(self.obs), 3 * n * len(self.cells()), self.fitted):
            at = self.obs[rows] if observed else None
            found = self.fitted.sample(self.given[rows], list(self.targets), n=n, seed=seed, observed=observed, at=at)
            flat = [found.values[name].reshape(n, len(found.ids), -1) for name in self.targets]
            yield rows, np.concatenate(flat, axis=2), found.member


def ask(fitted: "Fitted", obs: Observations, targets: Sequence[str] | None, given: Observations | None) -> Question:
    """The question with its defaults: targets with named cells, given the rows with the targets hidden.

    Raises:
        CapabilityError: the model does not answer this question.
        DataError: ``given`` of other rows.
        RequestError: a category as target (its order means nothing).
    """
    names = tuple(targets or default_targets(fitted.schema))
    given = obs.hide(*names) if given is None else given
    readable = seen(given)
    answered(fitted, readable, names)
    if not np.array_equal(given.ids, obs.ids):
        raise DataError("Expected the same rows in obs and given; got different ids. Derive given from obs.")
    for name in names:
        if fitted.schema[name].kind == "category":
            raise RequestError(f"Expected ordered targets; got the category '{name}'. Leave it out of the targets.")
    return Question(fitted, obs, given, names, tuple(sorted(readable)))
