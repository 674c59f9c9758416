"""Noise is a pure function of (seed, object, member, stream, draw)."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from consilience.blocks.noise import BLOCK, Noise

IDS = np.array(["a", "b", "c"])
RECORDED = [[0.3488828448221588, -0.025706600891791668], [0.949895681786784, -0.6458551923348567]]


@given(n=st.integers(1, 3 * BLOCK), first=st.integers(0, 2 * BLOCK), more=st.integers(1, BLOCK + 3))
def test_a_window_is_a_part_of_any_longer_one(n, first, more):
    window = Noise(0, IDS[:1], first=first).normal("x", n, (2,))
    whole = Noise(0, IDS[:1]).normal("x", first + n + more, (2,))
    assert torch.equal(window, whole[first : first + n])


def test_an_object_has_its_own_draws_whatever_stands_beside_it():
    together = Noise(3, IDS).normal("x", 5, (4,))
    for row, name in enumerate(IDS):
        assert torch.equal(Noise(3, np.array([name])).normal("x", 5, (4,))[:, 0], together[:, row])
    assert torch.equal(Noise(3, IDS[::-1]).normal("x", 5, (4,)), together.flip(1))


@pytest.mark.parametrize("other", [Noise(1, IDS), Noise(0, np.array(["d", "e", "f"])), Noise(0, IDS, member=1)])
def test_seed_id_and_member_each_change_every_draw(other):
    assert not (other.normal("x", 20, (3,)) == Noise(0, IDS).normal("x", 20, (3,))).any()


def test_streams_and_objects_are_independent():
    x, y = (Noise(0, IDS).normal(stream, 4000, ()).double().numpy() for stream in ("x", "y"))
    columns = np.concatenate([x, y], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.06
    lagged = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in columns.T]
    assert np.abs(lagged).max() < 0.06


def test_parts_of_a_key_do_not_run_together():
    one = Noise(1, np.array(["1x"])).normal("x", 3, ())
    two = Noise(11, np.array(["x"])).normal("x", 3, ())
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("draw", "law"), [("normal", scipy.stats.norm), ("uniform", scipy.stats.uniform)])
def test_draws_have_their_distribution(draw, law):
    found = getattr(Noise(0, IDS, dtype=torch.float64), draw)("x", 2000, (2,)).numpy().ravel()
    assert scipy.stats.kstest(found, law.cdf).pvalue > 1e-3


def test_float32_is_the_rounded_float64():
    wide = Noise(0, IDS, dtype=torch.float64).normal("x", 7, (2,))
    assert wide.dtype == torch.float64
    assert torch.equal(Noise(0, IDS).normal("x", 7, (2,)), wide.float())


def test_draws_are_recorded():
    """A change of these numbers breaks every saved answer: it needs a new format version."""
    found = Noise(7, np.array(["J0042-0107"]), member=1, dtype=torch.float64).normal("latent", 2, (2,))[:, 0]
    np.testing.assert_allclose(found.numpy(), RECORDED, rtol=0, atol=1e-15)
