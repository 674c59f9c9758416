"""The schedule of batches: a pure function of seed and step that visits every row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.batching import BatchSchedule


@given(total=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 2**40))
def test_an_epoch_holds_distinct_rows_in_full_batches(total, size, seed):
    schedule = BatchSchedule(total, size, seed)
    batch = min(size, total)
    epoch = [schedule.rows(step) for step in range(schedule.steps_per_epoch)]
    assert all(len(rows) == batch for rows in epoch)
    flat = np.concatenate(epoch)
    assert len(set(flat.tolist())) == len(flat) == batch * (total // batch)
    assert set(flat.tolist()) <= set(range(total))


def test_every_row_is_visited_though_a_short_rest_is_dropped():
    schedule = BatchSchedule(total=10, size=4, seed=0)
    visits = np.zeros(10, int)
    for step in range(200):
        visits[schedule.rows(step)] += 1
    assert visits.sum() == 800
    assert visits.min() > 60


def test_a_step_is_known_without_the_steps_before_it():
    straight = [BatchSchedule(20, 6, 3).rows(step).tolist() for step in range(12)]
    assert [BatchSchedule(20, 6, 3).rows(step).tolist() for step in reversed(range(12))] == straight[::-1]


@pytest.mark.parametrize("other", [BatchSchedule(20, 20, 1), BatchSchedule(20, 20, 0)])
def test_epochs_and_seeds_are_shuffled_anew(other):
    first = BatchSchedule(20, 20, 0)
    step = 0 if other.seed else 1
    assert first.rows(0).tolist() != other.rows(step).tolist()
    assert sorted(first.rows(0)) == sorted(other.rows(step)) == list(range(20))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 5))
def test_rows_of_a_file_come_in_windows_of_blocks(sizes, size, seed):
    blocks, window = np.repeat(np.arange(len(sizes)), sizes), 12
    schedule = BatchSchedule(len(blocks), size, seed, blocks, window)
    flat = np.concatenate([schedule.rows(step) for step in range(schedule.steps_per_epoch)])
    assert len(set(flat.tolist())) == len(flat) == min(size, len(blocks)) * (len(blocks) // min(size, len(blocks)))
    # between two rows of a block lie only rows that fit a window with it
    for block in range(len(sizes)):
        places = np.flatnonzero(blocks[flat] == block)
        if len(places):
            assert places[-1] - places[0] < max(window, sizes[block])


def test_rows_of_a_window_are_shuffled_together():
    schedule = BatchSchedule(100, 100, 0, np.repeat(np.arange(10), 10), 50)
    order = schedule.rows(0)
    assert len(set((order[:20] // 10).tolist())) > 2  # a window holds five blocks
    assert sorted(order.tolist()) == list(range(100))
    assert schedule.rows(1).tolist() != order.tolist()
