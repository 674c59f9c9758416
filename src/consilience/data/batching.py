"""Which rows make a batch: a pure function of the seed and the step, so that a resumed run needs no memory."""

from dataclasses import dataclass

import numpy as np

from consilience.typing import IntArray

__all__ = ["BatchSchedule"]


@dataclass(frozen=True, slots=True)
class BatchSchedule:
    """Shuffled epochs of ``total`` rows cut into batches of ``size``; a short rest is dropped.

    Example:
        >>> schedule = BatchSchedule(total=10, size=4, seed=0)
        >>> schedule.steps_per_epoch, sorted(set(schedule.rows(0)) & set(schedule.rows(1)))
        (2, [])
    """

    total: int
    size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch, at least one."""
        return max(1, self.total // self.batch)

    @property
    def batch(self) -> int:
        """Rows in a batch: ``size``, or all rows where there are fewer."""
        return min(self.size, self.total)

    def rows(self, step: int) -> IntArray:
        """Row numbers of the batch at ``step``, shape (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.total)
        return order[position * self.batch : (position + 1) * self.batch]
