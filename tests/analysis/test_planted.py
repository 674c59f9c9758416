"""Every diagnostic lets the exact posterior pass and catches the planted errors that are its own."""

import json

import numpy as np
import pytest

from consilience.analysis.calibration import Bands, calibration
from consilience.analysis.conditional import conditional_calibration
from consilience.analysis.highest_density import highest_density
from consilience.analysis.pattern_calibration import pattern_calibration
from consilience.errors import CapabilityError, DataError, RequestError
from consilience.studies.planted import ERRORS, Planted, survey


@pytest.fixture(scope="module")
def obs():
    return survey(3000, seed=2)


def test_planted_errors_are_what_they_say(obs):
    given = obs.hide("labels")
    draws = {error: Planted(error).sample(given, ["labels"], n=400).values["labels"] for error in ("none", *ERRORS)}
    right = draws["none"]
    np.testing.assert_allclose(np.std(draws["narrow"], axis=0), 0.9 * right.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.std(draws["wide"], axis=0), 1.1 * right.std(axis=0), rtol=1e-6)
    assert abs(((draws["biased"] - right).mean(0) / right.std(0)).mean() - 0.2) < 0.01
    assert np.ptp(draws["prior"].mean(0), axis=0).max() < 0.6 * np.ptp(right.mean(0), axis=0).max()

    def correlation(values):
        centred = values - values.mean(axis=0)
        return np.mean((centred[..., 0] * centred[..., 1]).mean(0) / np.prod(values.std(axis=0), axis=-1))

    assert 0.77 < correlation(right) < 0.83 and abs(correlation(draws["uncorrelated"])) < 0.02
    lacks = ~obs.parts["bands"].seen.any(axis=1)
    np.testing.assert_allclose(draws["ignored"][:, lacks], right[:, lacks])
    assert np.abs(draws["ignored"] - right)[:, ~lacks].mean() > 0.1
    for error, gain in (("none", 0.2), ("uncorrelated", 0.0)):
        together = Planted(error).log_prob(obs, ["labels"]).value
        apart = Planted(error).cell_log_prob(obs, ["labels"])["labels"].sum(axis=1)
        assert np.mean(together - apart) > gain if gain else np.allclose(together, apart)


def test_conditional_calibration_hears_what_the_model_did_not(obs):
    right, deaf, prior = (conditional_calibration(Planted(e), obs, n=150) for e in ("none", "ignored", "prior"))
    assert right.pvalue > 0.01 and deaf.pvalue < 1e-6 and prior.pvalue < 1e-6
    assert right.sources == ("bands", "noise", "spectrum", "all") and right.cells == ("mass", "age")
    assert np.abs(right.position).max() < 0.02 and np.abs(right.width).max() < 0.02
    bands, _, spectrum, both = deaf.position
    assert (bands > 0.1).all() and (np.abs(spectrum) < 0.02).all() and np.allclose(both, bands, atol=0.03)
    assert calibration(Planted("ignored"), obs, n=150).pvalue > 0.01  # which no rank alone gives away


@pytest.mark.parametrize("wrong", ["narrow", "wide", "biased"])
def test_conditional_calibration_lets_pass_what_is_wrong_alike_everywhere(obs, wrong):
    assert conditional_calibration(Planted(wrong), obs, n=150).pvalue > 0.01
    assert min(one(Planted(wrong), obs, n=150) for one in (_coverage, _uniform)) < 0.01


def _coverage(*args, **kwargs):
    return calibration(*args, **kwargs).pvalue


def _uniform(*args, **kwargs):
    return calibration(*args, **kwargs).pit_pvalue


def test_false_alarms_of_conditional_calibration_and_of_highest_density():
    tables = [survey(200, seed=300 + k) for k in range(60)]
    told = [conditional_calibration(Planted(), table, n=60).pvalue for table in tables]
    dense = [highest_density(Planted(), table, n=30).uniform_pvalue for table in tables]
    for pvalues in (told, dense):
        assert np.mean(np.array(pvalues) < 0.1) < 0.22


def test_highest_density_sees_correlations(obs):
    right, wrong = (highest_density(Planted(error), obs, n=50) for error in ("none", "uncorrelated"))
    assert right.inside_band and right.uniform_pvalue > 0.01 and right.kind == "exact"
    assert not wrong.inside_band and wrong.uniform_pvalue < 1e-6
    assert len(right.u) == len(obs) and 0 < right.u.min() and right.u.max() < 1
    with pytest.raises(CapabilityError, match="densities"):
        highest_density(Planted(capabilities=frozenset()), obs)
    with pytest.raises(DataError, match="all cells"):
        highest_density(Planted(), obs.hide("labels"))


class OfPatterns(Planted):
    """Too sure of the rows without bands, not sure enough of the others: right on average at 68 %."""

    def _posterior(self, given, at):
        mean, covariance = Planted._posterior(self, given, at)
        lacks = ~given.parts["bands"].seen.any(axis=1)
        return mean, covariance * np.where(lacks, 0.5, 1.3)[:, None, None] ** 2


def test_patterns_show_what_an_average_hides(obs):
    bands = Bands(levels=(0.68,))
    whole = calibration(OfPatterns(), obs, bands=bands, n=150)
    found = pattern_calibration(OfPatterns(), obs, bands=bands, n=150)
    assert found.patterns == ("all", "without bands") and not found.inside_band and found.pvalue < 1e-6
    assert (found.each[0].coverage > 0.75).all() and (found.each[1].coverage < 0.5).all()
    assert np.abs(whole.coverage - 0.68).max() < np.abs(found.each[1].coverage - 0.68).max() / 2
    right = pattern_calibration(Planted(), obs, n=150)
    assert right.inside_band and right.pvalue > 0.01
    assert sum(one.rows[0] for one in right.each) == len(obs)
    rare = pattern_calibration(Planted(), obs, bands=Bands(least=1000), n=50)
    assert rare.patterns == ("all", "others") and rare.each[1].rows[0] == right.each[1].rows[0]


def test_tables_figures_and_files(obs, tmp_path):
    some = obs[:300]
    for result, rows in (
        (conditional_calibration(Planted(), some, n=40), 8),
        (highest_density(Planted(), some, n=20), 1),
        (pattern_calibration(Planted(), some, bands=Bands(least=50), n=40), 4),
    ):
        result.save(tmp_path)
        assert json.loads((tmp_path / f"{result.name}.json").read_text())["analysis"] == result.name
        assert len(result.table()) == rows and (tmp_path / f"{result.name}.png").stat().st_size > 1000


def test_refusals(obs):
    with pytest.raises(DataError, match="at least 20"):
        conditional_calibration(Planted(), obs[:19])
    with pytest.raises(DataError, match="measured"):
        pattern_calibration(Planted(), obs.hide("labels"))
    with pytest.raises(CapabilityError):
        conditional_calibration(Planted(), obs, ["bands"])
    with pytest.raises(RequestError, match="lables"):
        pattern_calibration(Planted(), obs, ["lables"])
