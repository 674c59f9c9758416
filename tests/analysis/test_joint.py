"""The joint verdict passes the exact posterior and fails wrong ones that no single cell gives away."""

import json

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.bands import uniform_pvalue
from consilience.analysis.calibration import calibration
from consilience.analysis.joint import joint_calibration
from consilience.analysis.scores import crps, energy, pit, tarp
from consilience.errors import CapabilityError, DataError
from constructors import fitted, survey


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(1600, seed=1)


@pytest.fixture(scope="module")
def colours(obs):
    """Little is shown, so that what is not known of the labels is correlated."""
    return obs.hide("labels", "spectrum")


def test_the_exact_posterior_passes(fakes, obs, colours):
    for given in (None, colours):
        found = joint_calibration(fakes.Fake(capabilities=frozenset()), obs, given=given, n=200)
        assert found.inside_band and found.pvalue > 0.01 and found.uniform_pvalue > 0.01
        assert len(found.u) == 800 and found.cells == ("mass", "redshift") and np.isnan(found.nlpd)
        assert found.energy < found.energy_prior


@pytest.mark.parametrize("wrong", [{"width": 0.6}, {"width": 1.6}, {"prior": True}])
def test_wrong_posteriors_and_the_prior_fail(fakes, obs, wrong):
    right = joint_calibration(fakes.Fake(capabilities=frozenset()), obs, n=200)
    found = joint_calibration(fakes.Fake(capabilities=frozenset(), **wrong), obs, n=200)
    assert min(found.pvalue, found.uniform_pvalue) < 1e-3
    assert found.energy > right.energy


def test_a_shift_shows_in_the_energy_score_and_cell_by_cell(fakes, obs):
    right, wrong = (fakes.Fake(capabilities=frozenset(), shift=shift) for shift in (0.0, 0.5))
    assert joint_calibration(wrong, obs, n=200).energy > 1.05 * joint_calibration(right, obs, n=200).energy
    assert not calibration(wrong, obs, n=200).inside_band or calibration(wrong, obs, n=200).pit_pvalue < 1e-6


def test_a_lost_correlation_shows_here_and_in_no_single_cell():
    rng, root = np.random.default_rng(0), np.linalg.cholesky([[1.0, 0.9], [0.9, 1.0]])
    truth, reference = rng.normal(size=(800, 2)) @ root.T, rng.normal(size=(800, 2))
    right = rng.normal(size=(200, 800, 2)) @ root.T
    wrong = np.stack([right[..., 0], np.roll(right[..., 1], 100, axis=0)], axis=-1)
    assert uniform_pvalue(pit(wrong, truth, rng)) > 0.01
    good, bad = (uniform_pvalue(tarp(draws, truth, reference, rng)[:, None]) for draws in (right, wrong))
    assert good > 0.01 and bad < 1e-3


def test_false_alarm_rate(fakes, world):
    model = fakes.Fake(capabilities=frozenset())
    pvalues = [joint_calibration(model, world.draw(80, seed=200 + k), n=60).uniform_pvalue for k in range(40)]
    assert np.mean(np.array(pvalues) < 0.1) < 0.25


def test_energy_is_the_crps_of_one_cell_and_twice_its_expectation_of_many():
    rng = np.random.default_rng(0)
    draws, truth = rng.normal(size=(4000, 3, 1)), rng.normal(size=(3, 1))
    np.testing.assert_allclose(energy(draws, truth), crps(draws[..., 0], truth[:, 0]), atol=0.05)
    draws = rng.normal(size=(20_000, 1, 2))
    # the distance of a standard normal from the middle, less half of that of two of them
    expected = np.sqrt(np.pi / 2) * (1 - np.sqrt(0.5))
    np.testing.assert_allclose(energy(draws, np.zeros((1, 2))), expected, atol=0.02)
    with pytest.raises(DataError, match="at least 2 draws"):
        energy(draws[:1], np.zeros((1, 2)))


def test_shares_are_uniform_of_exchangeable_points():
    rng = np.random.default_rng(1)
    u = tarp(rng.normal(size=(50, 4000, 3)), rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3)), rng)
    np.testing.assert_allclose(np.quantile(u, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_a_flow_with_gaps_is_scored_by_its_joint_density(tmp_path):
    fit, rows = fitted("vaeflow"), survey(120, seed=5)
    found = joint_calibration(fit, rows, ["labels"], n=40)
    whole = rows.parts["labels"].seen.all(axis=1)
    assert np.isin(found.ids, rows.ids[whole]).all() and len(found.ids) == whole.sum() - whole.sum() // 2
    some = rows[np.isin(rows.ids, found.ids)]
    assert found.nlpd == pytest.approx(-fit.log_prob(some, ["labels"]).value.mean())
    found.save(tmp_path)
    assert json.loads((tmp_path / "joint-calibration.json").read_text())["cells"] == ["mass", "age", "oh"]
    assert (tmp_path / "joint-calibration.csv").read_text().startswith("cells,rows,nlpd,energy")
    assert len(found.figure().axes) == 2


def test_questions_that_are_refused(fakes, obs):
    with pytest.raises(CapabilityError, match="labels"):
        joint_calibration(fakes.Fake(refuse=frozenset({"labels"})), obs)
    with pytest.raises(DataError, match="at least 20 rows"):
        cs.analysis.joint_calibration(fakes.Fake(), obs[:19])
    with pytest.raises(DataError, match="something else seen"):
        joint_calibration(fakes.Fake(), obs, given=obs.hide(*obs.schema.names))
    with pytest.raises(DataError, match="same rows"):
        joint_calibration(fakes.Fake(), obs, given=obs[:3].hide("labels"))
