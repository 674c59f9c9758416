"""Slow coordinates: of a Gaussian process seen through a curve, the process; of two, both and not a harmonic."""

import math

import pytest
import torch

from consilience.blocks.embedding import slow_coordinates

ROWS, BINS = 60, 50


def process(length, seed):
    lag = (torch.arange(BINS)[:, None] - torch.arange(BINS)).double() / length
    factor = torch.linalg.cholesky(torch.exp(-0.5 * lag.square()) + 1e-8 * torch.eye(BINS))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, BINS, generator=generator, dtype=torch.float64) @ factor.mT


def rank(x):
    return x.argsort().argsort().double()


def monotone(a, b):
    """Spearman's correlation, of either sign."""
    return abs(float(torch.corrcoef(torch.stack([rank(a.flatten()), rank(b.flatten())]))[0, 1]))


def curve(z, turn=5.5):
    """An arc that closes where points are few, with waves on it."""
    angle = 2 * math.pi * z / turn
    waves = [(k * angle).sin() / k for k in (1, 2, 3)] + [(k * angle).cos() / k for k in (1, 2, 3)]
    return torch.stack([*waves, 1e-3 * torch.ones_like(z)], -1)


@pytest.mark.parametrize("lag", [2, 5, 10])
def test_the_first_is_the_process_behind_a_curve(lag):
    z = process(10.0, 0)
    known = torch.ones(ROWS, BINS, dtype=torch.bool)
    found = slow_coordinates(curve(z), known, 1, lag=lag)[..., 0]
    assert monotone(found, z) > 0.93
    assert found.mean().abs() < 1e-6
    assert found.std() == pytest.approx(1.0, abs=1e-3)
    # what varies most is not it
    views = curve(z).flatten(0, 1)
    first = torch.svd_lowrank(views - views.mean(0), q=1)[0][:, 0]
    assert monotone(first, z) < monotone(found, z)


def test_a_harmonic_of_the_first_is_not_the_second():
    slow, fast = process(12.0, 1), process(6.0, 2)
    x = torch.cat([curve(slow), curve(fast)], -1)
    known = torch.ones(ROWS, BINS, dtype=torch.bool)
    found = slow_coordinates(x, known, 2, lag=4)
    assert monotone(found[..., 0], slow) > 0.8
    assert monotone(found[..., 1], fast) > 0.8


def test_unknown_points_do_not_count_and_sign_and_order_are_fixed():
    z = process(10.0, 3)
    x = curve(z)
    known = torch.ones(ROWS, BINS, dtype=torch.bool)
    known[:, 10:14] = False
    first = slow_coordinates(x, known, 1, lag=5)
    wrong = torch.where(known[..., None], x, 1e3)
    torch.testing.assert_close(slow_coordinates(wrong, known, 1, lag=5), first)
    assert not first[~known].any()
    assert monotone(first[known], z[known]) > 0.9


def test_points_that_do_not_move_have_coordinates_of_zero():
    known = torch.ones(4, 30, dtype=torch.bool)
    assert not slow_coordinates(torch.ones(4, 30, 3), known, 2, lag=2).any()
