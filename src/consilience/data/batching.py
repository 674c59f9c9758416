"""Which rows make a batch: a pure function of the seed and the step, so that a resumed run needs no memory."""

from dataclasses import dataclass, field

import numpy as np

from consilience.typing import IntArray

__all__ = ["BatchSchedule"]


@dataclass(frozen=True)
class BatchSchedule:
    """Shuffled epochs of ``total`` rows cut into batches of ``size``; a short rest is dropped.

    A table on disk is shuffled in windows: its blocks come in random order, and the rows of as many blocks as make a
    window are shuffled together.

    Arguments:
        total: N.
        size: Rows in a batch.
        seed: Of the shuffling.
        blocks: Block of each row, shape (N,); None shuffles all rows together.
        window: Rows that may be shuffled together where there are blocks.

    Example:
        >>> schedule = BatchSchedule(total=10, size=4, seed=0)
        >>> schedule.steps_per_epoch, sorted(set(schedule.rows(0)) & set(schedule.rows(1)))
        (2, [])
    """

    total: int
    size: int
    seed: int
    blocks: IntArray | None = None
    window: int = 0
    _orders: dict[int, IntArray] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(np.random.default_rng([self.seed, epoch]))
        return self._orders[epoch][position * self.batch : (position + 1) * self.batch]

    def _order(self, rng: np.random.Generator) -> IntArray:
        if self.blocks is None:
            return rng.permutation(self.total)
        places = np.argsort(self.blocks, kind="stable")
        numbers, counts = np.unique(self.blocks, return_counts=True)
        members = np.split(places, np.cumsum(counts)[:-1])
        windows: list[list[IntArray]] = []
        room = 0
        for block in rng.permutation(len(numbers)):
            if len(members[block]) > room:
                windows.append([])
                room = self.window
            windows[-1].append(members[block])
            room -= len(members[block])
        return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])
