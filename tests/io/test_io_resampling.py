"""Flux-conserving resampling: what goes in comes out, and so does its noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.schema import Grid
from consilience.errors import DataError
from consilience.io.resampling import overlap, pixel_bounds, resample


def test_overlap_equals_a_double_loop():
    rng = np.random.default_rng(0)
    low, high = pixel_bounds(np.cumsum(rng.uniform(0.5, 1.5, 40)))
    edges = np.sort(rng.uniform(-2, 45, 14))
    expected = [
        [max(0, min(high[i], edges[j + 1]) - max(low[i], edges[j])) for i in range(len(low))]
        for j in range(len(edges) - 1)
    ]
    np.testing.assert_allclose(overlap(low, high, edges).toarray(), expected, atol=1e-12)


@given(seed=st.integers(0, 2**31), size=st.integers(2, 60), bins=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_flux_is_conserved_on_any_bins_that_cover_the_pixels(seed, size, bins):
    rng = np.random.default_rng(seed)
    coord = np.cumsum(rng.uniform(0.8, 1.2, size))
    low, high = pixel_bounds(coord)
    flux = rng.normal(size=size)
    inner = np.sort(rng.uniform(low[0], high[-1], bins - 1))
    edges = np.concatenate([[low[0]], inner, [high[-1]]])
    f, _ = resample(flux, coord, edges)
    width = np.diff(edges)
    kept = width > 1e-9
    assert np.isfinite(f[kept]).all()
    np.testing.assert_allclose((f * width)[kept].sum(), (flux * (high - low)).sum(), atol=1e-6)


def test_a_constant_stays_constant_also_beside_masked_pixels():
    grid = Grid(start=1000, stop=2000, size=37, spacing="log")
    coord = np.linspace(950, 2100, 313)
    seen = np.random.default_rng(0).uniform(size=313) > 0.2
    f, _ = resample(np.full(313, 2.5), coord, grid.edges(), seen=seen)
    np.testing.assert_allclose(f, 2.5, rtol=1e-12)


def test_the_noise_is_that_of_a_simulation():
    rng = np.random.default_rng(1)
    coord = np.geomspace(3600, 3800, 120)
    grid = Grid(start=3620, stop=3780, size=33)
    sigma = rng.uniform(0.5, 2, 120)
    seen = rng.uniform(size=120) > 0.15
    draws = 1.5 + sigma * rng.normal(size=(20_000, 120))
    f, s = resample(draws, coord, grid.edges(), sigma=np.broadcast_to(sigma, draws.shape), seen=seen)
    ok = np.isfinite(f[0])
    assert ok.sum() > 25
    np.testing.assert_allclose(f[:, ok].std(axis=0), s[0, ok], rtol=0.025)  # 5 SD of a spread from 20 000 draws
    np.testing.assert_allclose(f[:, ok].mean(axis=0), 1.5, atol=0.03)


def test_rows_of_a_batch_equal_single_spectra():
    rng = np.random.default_rng(2)
    coord, edges = np.cumsum(rng.uniform(0.5, 1.5, 30)), np.linspace(2, 28, 9)
    value, sigma = rng.normal(size=(5, 30)), rng.uniform(size=(5, 30))
    sigma[1, 4], value[2, 7] = np.inf, np.nan
    f, s = resample(value, coord, edges, sigma=sigma)
    for row in range(5):
        one, error = resample(value[row], coord, edges, sigma=sigma[row])
        np.testing.assert_array_equal(f[row], one)
        np.testing.assert_array_equal(s[row], error)


@pytest.mark.parametrize(("stop", "seen"), [(4.999, False), (5.0, True), (5.2, True)])
def test_a_bin_is_seen_from_half_of_its_width_on(stop, seen):
    coord = np.linspace(0, stop, 1001)
    width = coord[1] - coord[0]
    coord = np.linspace(width / 2, stop - width / 2, 1000)
    f, _ = resample(np.ones(1000), coord, np.array([0.0, 10.0]))
    assert np.isfinite(f[0]) == seen


def test_a_pixel_does_not_reach_into_a_gap():
    coord = np.concatenate([np.arange(0, 10.0), np.arange(100, 110.0)])
    f, _ = resample(np.ones(20), coord, np.array([0.0, 5.0, 50.0, 99.0, 108.0]))
    assert np.isfinite(f).tolist() == [True, False, False, True]


def test_masked_pixels_leave_no_trace():
    coord, edges = np.arange(20.0), np.linspace(0, 19, 6)
    seen = np.ones(20, bool)
    seen[[3, 9, 10]] = False
    rng = np.random.default_rng(0)
    value, sigma = rng.normal(size=20), rng.uniform(size=20)
    other, error = value.copy(), sigma.copy()
    other[~seen], error[~seen] = [np.nan, np.inf, 1e300], [np.nan, np.inf, 1e300]
    for ours, theirs in zip(
        resample(value, coord, edges, sigma=sigma, seen=seen),
        resample(other, coord, edges, sigma=error, seen=seen),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_the_rest_frame_keeps_the_integral():
    coord = np.linspace(4000, 5000, 500)
    low, high = pixel_bounds(coord)
    flux = np.random.default_rng(0).normal(size=500)
    edges = np.linspace(low[0], high[-1], 41) / 3
    f, s = resample(flux, coord, edges, sigma=np.ones(500), redshift=2.0)
    np.testing.assert_allclose((f * np.diff(edges)).sum(), (flux * (high - low)).sum(), rtol=1e-10)
    rest, error = resample(3 * flux, coord / 3, edges, sigma=np.full(500, 3.0))
    np.testing.assert_allclose(f, rest)
    np.testing.assert_allclose(s, error)


def test_an_error_that_is_not_stated_stays_so():
    sigma = np.array([1.0, np.nan, 1.0, 1.0])
    f, s = resample(np.ones(4), np.arange(4.0), np.array([-0.5, 1.5, 3.5]), sigma=sigma)
    assert f.tolist() == [1, 1]
    assert np.isnan(s).tolist() == [True, False]


def test_one_pixel_has_no_width():
    f, s = resample(np.ones(1), np.ones(1), np.array([0.0, 2.0]), sigma=np.ones(1))
    assert np.isnan(f).all()
    assert np.isnan(s).all()


def test_bad_coordinates_and_redshifts():
    with pytest.raises(DataError, match="strictly ascending coordinates; got 2 followed by 1 at position 1"):
        resample(np.ones(3), np.array([1.0, 2.0, 1.0]), np.array([0.0, 2.0]))
    with pytest.raises(DataError, match="redshift above -1; got nan"):
        resample(np.ones(2), np.arange(2.0), np.array([0.0, 2.0]), redshift=np.nan)
