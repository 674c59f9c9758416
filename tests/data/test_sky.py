"""Pairs on the sky against a double loop over all of them."""

import numpy as np
import pytest

from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.data.sky import cross_match, sky_pairs
from consilience.errors import DataError, RequestError


def table(name, rows, start=0):
    schema = Schema(modalities=(ModalitySpec(name=name, shape=(2,)),))
    values = np.arange(2.0 * rows).reshape(rows, 2)
    return Observations.from_arrays(schema, {name: values}, ids=range(start, start + rows))


def separations(left, right):
    """Great circles in arcsec by the haversine formula, (N, M)."""
    (a, d), (b, e) = np.radians(left).T[:, :, None], np.radians(right).T[:, None, :]
    half = np.sin((d - e) / 2) ** 2 + np.cos(d) * np.cos(e) * np.sin((a - b) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600


def crowd(rng, rows, dec):
    """Positions a few arcsec apart across the meridian of right ascension zero."""
    offset = rng.uniform(-4, 4, size=(rows, 2)) / 3600
    return np.stack([(offset[:, 0] / np.cos(np.radians(dec))) % 360, dec + offset[:, 1]], axis=1)


@pytest.mark.parametrize("dec", [0.0, 60.0, -89.9])
def test_pairs_are_mutually_nearest_and_within_the_radius(dec):
    rng = np.random.default_rng(3)
    left, right = crowd(rng, 40, dec), crowd(rng, 30, dec)
    apart = separations(left, right)
    expected = [
        (i, j)
        for i, j in np.ndindex(apart.shape)
        if apart[i].argmin() == j and apart[:, j].argmin() == i and apart[i, j] <= 1
    ]
    pairs = sky_pairs(left, right)
    assert list(zip(pairs.left, pairs.right, strict=True)) == expected
    assert len(expected) > 5
    np.testing.assert_allclose(pairs.separation, [apart[pair] for pair in expected], rtol=1e-5)
    other = sky_pairs(right, left)
    assert sorted(zip(other.right, other.left, strict=True)) == expected
    assert len(sky_pairs(left, right, radius=0.3).left) < len(expected)


def test_the_joined_table_has_the_rows_of_the_left_and_the_values_of_both():
    left, right = table("x", 3, start=100), table("y", 4)
    sky = np.array([[10.0, 5.0], [20.0, 5.0], [30.0, 5.0]])
    other = np.array([[30.0, 5.0], [50.0, 0.0], [10.0, 5.0], [20.0, 5.1]]) + 1e-5
    joined = cross_match(left, right, sky, other)
    assert joined.ids.tolist() == ["100", "102"]
    assert joined.schema.names == ("x", "y")
    np.testing.assert_array_equal(joined.parts["x"].value, left.parts["x"].value[[0, 2]])
    np.testing.assert_array_equal(joined.parts["y"].value, right.parts["y"].value[[2, 0]])
    assert joined.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("sky", "words"),
    [
        (np.zeros((3, 2)), r"one position per row on the right \(2\); got 3"),
        (np.zeros((2, 3)), r"shape \(N, 2\) on the right; got shape \(2, 3\)"),
        (np.array([[1.0, 2.0], [1.0, np.nan]]), r"got \[1.0, nan\] in row 1"),
        (np.array([[1.0, 100.0], [1.0, 2.0]]), r"got \[1.0, 100.0\] in row 0"),
        (np.full((2, 2), 50.0), "within 1 arcsec of each other in both tables; got none"),
    ],
)
def test_positions_that_are_none_give_one_error(sky, words):
    with pytest.raises(DataError, match=words):
        cross_match(table("x", 2), table("y", 2), np.array([[0.0, 0.0], [1.0, 0.0]]), sky)


def test_a_modality_on_both_sides_is_refused():
    sky = np.array([[0.0, 0.0], [1.0, 0.0]])
    with pytest.raises(RequestError, match=r"\['x'\] on both"):
        cross_match(table("x", 2), table("x", 2), sky, sky)
