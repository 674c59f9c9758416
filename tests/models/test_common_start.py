"""Averages over neighbours that a factor analysis of many cells begins with."""

import numpy as np
import torch

from consilience.models.common_start import Look


def look(shape, functions=1, rows=6):
    rng = np.random.default_rng(0)
    size = (rows, *shape, functions)
    value, known = rng.normal(size=size), rng.uniform(0, 2, size=size)
    seen = rng.random(size) < 0.7
    return [torch.tensor(a).flatten(1) for a in (np.where(seen, value, 0.0), known, seen)], (value, known, seen)


def test_means_over_neighbours_against_a_loop():
    shape, functions, size = (2, 5, 7), 2, 3
    tensors, (value, known, seen) = look(shape, functions)
    # 140 functions in windows of nine
    found = Look(*tensors).coarse(shape, functions, 16)
    wide = found.value.reshape(6, 2, functions, 2, 3), found.known.reshape(6, 2, functions, 2, 3)
    for row, channel, function, i, j in np.ndindex(6, 2, functions, 2, 3):
        at = (row, channel, slice(size * i, size * i + size), slice(size * j, size * j + size), function)
        weight = np.where(seen[at], 1 / (1 + known[at]), 0)
        if weight.any():
            mean = (weight * value[at]).sum() / weight.sum()
            np.testing.assert_allclose(wide[0][row, channel, function, i, j], mean)
            variance = (weight**2 * known[at]).sum() / weight.sum() ** 2
            np.testing.assert_allclose(wide[1][row, channel, function, i, j], variance)
    assert found.value.isfinite().all() and found.known.isfinite().all()


def test_few_cells_stay_as_they_are():
    one = Look(*look((2, 5, 7))[0])
    assert one.coarse((2, 5, 7), 1, 70) is one
    assert one.coarse((70,), 1, 70) is one
    assert Look(*look((70,))[0]).coarse((70,), 1, 20).value.shape == (6, 18)
