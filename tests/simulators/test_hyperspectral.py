"""Simulated scenes: what is written in the docstring is what comes out."""

import numpy as np
import pytest

from consilience.errors import RequestError
from consilience.simulators.hyperspectral import hyperspectral

NOISE = 0.02


@pytest.fixture(scope="module")
def table():
    return hyperspectral(700, seed=0, bands=60, endmembers=4, size=4, noise=NOISE)


def pixels(table, name):
    """One row per pixel."""
    value = table.parts[name].value
    return np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])


def test_abundances_are_shares(table):
    share = pixels(table, "abundances")
    assert share.min() >= 0 and np.allclose(share.sum(1), 1)
    assert (share.max(1) > 0.9).mean() > 0.3  # regions of one material
    assert share.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.15)


def test_cubes_are_linear_mixtures_with_the_noise_stated(table):
    share, brightness = pixels(table, "abundances"), pixels(table, "cube")
    spectra = np.linalg.lstsq(share, brightness, rcond=None)[0]
    assert spectra.min() > 0 and spectra.max() < 1
    rest = brightness - share @ spectra
    assert rest.std() == pytest.approx(NOISE, rel=0.01)
    assert abs((rest[:, 1:] * rest[:, :-1]).mean()) < 0.01 * NOISE**2  # white from band to band
    assert np.abs(np.diff(spectra, axis=1)).max() < 0.2 * np.ptp(spectra)  # smooth


def test_colour_image_and_spectrum_are_means_of_the_cube(table):
    cube, wave = table.parts["cube"].value, table.schema["spectrum"].grid.centres()
    np.testing.assert_allclose(table.parts["spectrum"].value, cube.mean((2, 3)))
    for channel, (low, high) in enumerate(((600, 700), (500, 600), (400, 500))):
        inside = (wave >= low) & (wave <= high)
        np.testing.assert_allclose(table.parts["rgb"].value[:, channel], cube[:, inside].mean(1))


def test_maps_are_smooth_and_blocks_can_be_held_out(table):
    share = table.parts["abundances"].value
    beside = np.corrcoef(share[..., :-1].ravel(), share[..., 1:].ravel())[0, 1]
    assert 0.9 < beside < 1
    assert len(table) == 700 and len(set(table.group)) == 25
    train, test = table.split(0.8, seed=0, by="group")
    assert not set(train.group) & set(test.group)


def test_the_same_seed_gives_the_same_table_and_another_does_not():
    first, again, other = (hyperspectral(5, seed=seed, bands=12, size=2) for seed in (1, 1, 2))
    for name, part in first.parts.items():
        assert np.array_equal(part.value, again.parts[name].value)
        assert not np.array_equal(part.value, other.parts[name].value)


def test_without_noise_a_pixel_is_its_mixture():
    table = hyperspectral(60, seed=3, bands=20, noise=0.0)
    share, brightness = pixels(table, "abundances"), pixels(table, "cube")
    assert np.allclose(share @ np.linalg.lstsq(share, brightness, rcond=None)[0], brightness)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"endmembers": 0}, {"size": 0}, {"bands": 9}, {"noise": -1.0}])
def test_bad_sizes_are_named(wrong):
    with pytest.raises(RequestError, match="bands >= 10 and noise >= 0; got"):
        hyperspectral(**{"n": 3, "seed": 0, **wrong})
