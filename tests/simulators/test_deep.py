"""The deep field: fluxes as stated errors allow, types and redshifts of the stated prior, light that redshifts."""

from dataclasses import replace

import numpy as np
import pytest

from consilience.errors import RequestError
from consilience.simulators.deep import BANDS, FLOOR, _kinds, _redshifts, deep_galaxies, widened


@pytest.fixture(scope="module")
def table():
    return deep_galaxies(400, seed=1)


def redshift(table):
    return np.expm1(table.parts["labels"].value[:, 0])


def magnitudes(table):
    return 23.9 - 2.5 * np.log10(np.maximum(table.parts["true_photometry"].value, 1e-9))


def test_the_same_seed_is_the_same_table_whatever_the_workers():
    one, two = (deep_galaxies(20, seed=3, workers=workers) for workers in (1, 2))
    for name, part in one.parts.items():
        np.testing.assert_array_equal(part.value, two.parts[name].value)
    with pytest.raises(RequestError, match="workers"):
        deep_galaxies(3, seed=0, workers=0)


def test_fluxes_scatter_by_their_error_bars(table):
    part, true = table.parts["photometry"], table.parts["true_photometry"].value
    pull = (part.value - true) / part.sigma
    assert np.abs(pull.mean(axis=0)).max() < 0.2
    np.testing.assert_allclose(pull.std(axis=0), 1, atol=0.15)
    assert (part.value < 0).any()
    assert (part.sigma > FLOOR * np.abs(part.value)).all()


def test_exposures_of_a_galaxy_share_its_light_alone():
    table, once = deep_galaxies(30, seed=2, exposures=3), deep_galaxies(30, seed=2)
    np.testing.assert_array_equal(table.group[::3], once.ids)
    assert len(set(table.ids)) == 90
    for name in ("labels", "true_photometry", "true_kind"):
        for k in range(3):
            np.testing.assert_array_equal(table.parts[name].value[k::3], once.parts[name].value)
    part = table.parts["photometry"]
    pull = (part.value - table.parts["true_photometry"].value) / part.sigma
    assert abs(np.corrcoef(pull[::3].ravel(), pull[1::3].ravel())[0, 1]) < 0.3  # 210 pairs
    first, second = table.split(0.5, seed=0, by="group")
    assert not set(first.group) & set(second.group)


def test_error_bars_are_widened_by_the_floor(table):
    part = table.parts["photometry"]
    np.testing.assert_allclose(
        widened(table).parts["photometry"].sigma, np.hypot(part.sigma, FLOOR * part.value), rtol=1e-12
    )
    with pytest.raises(RequestError, match="error bars"):
        widened(replace(table, parts={**table.parts, "photometry": replace(part, sigma=None)}))


def test_types_and_redshifts_are_those_of_the_prior():
    rng = np.random.default_rng(0)
    magnitude = np.full(40_000, 24.0)
    kind = _kinds(magnitude, rng)
    early, spiral = 0.35 * np.exp(-0.147 * 4), 0.5 * np.exp(-0.45 * 4)
    np.testing.assert_allclose(np.bincount(kind) / len(kind), [early, spiral, 1 - early - spiral], atol=0.01)
    z = _redshifts(kind, magnitude, rng)
    grid = np.linspace(0.02, 7, 20_000)
    for number, (alpha, start, rise) in enumerate([(2.46, 0.431, 0.091), (1.81, 0.390, 0.0636), (0.91, 0.063, 0.123)]):
        density = grid**alpha * np.exp(-((grid / (start + 4 * rise)) ** alpha))
        expected = np.interp([0.1, 0.5, 0.9], np.cumsum(density) / density.sum(), grid)
        np.testing.assert_allclose(np.quantile(z[kind == number], [0.1, 0.5, 0.9]), expected, rtol=0.04)


def test_magnitudes_are_uniform_and_colours_follow_types_and_distance(table):
    z, m, kind = redshift(table), magnitudes(table), table.parts["true_kind"].value
    at = list(BANDS).index("f814w")
    assert 17 < m[:, at].min() < 17.5 and 28 < m[:, at].max() < 28.5
    colour = m[:, at - 2] - m[:, at]  # F450W - F814W
    near = z < 0.5
    assert np.median(colour[near & (kind == 0)]) > 1 + np.median(colour[near & (kind == 2)])
    # hydrogen between the galaxy and us takes F300W at z > 2.9, and nearly all of F450W beyond 4.8
    assert (m[:, 0] - m[:, 1])[(z > 3.2) & (z < 4)].min() > 2
    assert colour[z > 5].min() > 3
