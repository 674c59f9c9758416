"""Scores and bands against closed forms and brute force."""

import numpy as np
import pytest
from scipy import stats

from consilience.analysis.bands import coverage_band, coverage_pvalue, histogram_band, uniform_pvalue
from consilience.analysis.scores import central, crps, mean_absolute_error, pit, r_squared, root_mean_square
from consilience.errors import DataError, RequestError

LEVELS = (0.5, 0.68, 0.9, 0.95)


def test_crps_is_fair_and_meets_the_gaussian_closed_form():
    rng = np.random.default_rng(0)
    truth = np.array([0.0, 0.7, -2.0])
    exact = truth * (2 * stats.norm.cdf(truth) - 1) + 2 * stats.norm.pdf(truth) - 1 / np.sqrt(np.pi)
    few = np.mean([crps(rng.normal(size=(3, 3)), truth) for _ in range(20000)], axis=0)
    np.testing.assert_allclose(few, exact, atol=0.02)
    x = rng.normal(size=(7, 2))
    slow = np.abs(x - 0.3).mean(0) - np.abs(x[:, None] - x[None]).sum((0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(crps(x, np.full(2, 0.3)), slow)
    with pytest.raises(DataError, match="2 draws"):
        crps(x[:1], np.zeros(2))


@pytest.mark.parametrize("draws", [1, 9, 200])
def test_pit_is_exactly_uniform_for_any_number_of_draws_and_with_ties(draws):
    rng = np.random.default_rng(1)
    for make in (rng.normal, lambda size: rng.poisson(1.0, size).astype(float)):
        u = pit(make(size=(draws, 20000)), make(size=20000), rng)
        assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_pit_and_scores_leave_out_what_has_no_truth():
    rng = np.random.default_rng(2)
    truth = np.array([[0.0, np.nan], [1.0, np.nan]])
    u = pit(rng.normal(size=(10, 2, 2)), truth, rng)
    assert np.isnan(u[:, 1]).all() and np.isfinite(u[:, 0]).all()
    assert not central(u, np.array([0.99]))[0, :, 1].any()
    assert np.isnan(mean_absolute_error(truth)[1]) and root_mean_square(truth)[0] == pytest.approx(np.sqrt(0.5))
    assert np.isnan(r_squared(truth, truth)[1]) and r_squared(truth, 0 * truth + 0.5)[0] == pytest.approx(0.0)


def test_coverage_band_holds_exactly_what_it_states():
    rng = np.random.default_rng(3)
    low, high = (np.array(edge) for edge in coverage_band(150, LEVELS, 0.9, 1))
    u = rng.uniform(size=(20000, 150))
    found = central(u, np.array(LEVELS)).mean(axis=2).T
    share = ((found >= low - 1e-12) & (found <= high + 1e-12)).all(axis=1).mean()
    assert 0.895 < share < 0.935  # counts are discrete, so a little above 0.9
    separate = stats.binom.interval(0.9, 150, LEVELS)
    assert (low * 150 <= separate[0]).all() and (high * 150 >= separate[1]).all()


def test_coverage_pvalue_is_valid():
    rng = np.random.default_rng(4)
    counts = central(rng.uniform(size=(2000, 80)), np.array(LEVELS)).sum(axis=2).T
    p = np.array([coverage_pvalue(tuple(map(int, c)), 80, LEVELS) for c in counts])
    for size in (0.02, 0.1, 0.5):
        assert (p <= size).mean() <= size + 3 * np.sqrt(size / 2000)
    assert (p <= 0.5).mean() > 0.4
    assert coverage_pvalue((), 0, ()) == 1.0
    # misses whose tail probability underflows
    assert coverage_pvalue((5000, 5000), 5000, (0.1, 0.68)) == pytest.approx(0, abs=1e-12)
    assert coverage_pvalue((0, 0), 5000, (0.68, 0.95)) == pytest.approx(0, abs=1e-12)


def test_more_cells_widen_the_band():
    one, many = coverage_band(400, LEVELS, 0.99, 1), coverage_band(400, LEVELS, 0.99, 600)
    assert all(a > b for a, b in zip(one[0], many[0], strict=True))
    assert coverage_band(0, LEVELS) == ((0.0,) * 4, (1.0,) * 4)
    assert histogram_band(0, 10) == (0.0, 10.0)


def test_the_least_uniform_column_is_found_whatever_is_missing():
    rng = np.random.default_rng(5)
    u = rng.uniform(size=(60, 40))
    u[:, 7] **= 1.5
    u[rng.random(u.shape) < 0.3] = np.nan
    each = [stats.kstest(column[np.isfinite(column)], "uniform").pvalue for column in u.T]
    assert uniform_pvalue(u) == pytest.approx(min(each), rel=1e-6)
    assert uniform_pvalue(np.full((3, 1), np.nan)) == 1.0


@pytest.mark.parametrize("levels", [(), (0.9, 0.5), (0.5, 1.0), (0.0, 0.5), (0.5, 0.5)])
def test_bad_levels_are_refused(levels):
    with pytest.raises(RequestError, match="levels"):
        coverage_band(10, levels)
