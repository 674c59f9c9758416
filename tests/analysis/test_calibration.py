"""The verdict must pass the exact posterior and fail three wrong ones."""

import json

import numpy as np
import pytest

from consilience.analysis.calibration import Bands, calibration
from consilience.data.observations import Observations, State
from consilience.errors import CapabilityError, DataError, RequestError


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(1500, seed=1)


def test_exact_posterior_passes(fakes, obs):
    found = calibration(fakes.Fake(), obs, n=200)
    assert found.inside_band and found.pvalue > 0.01 and found.pit_pvalue > 0.01
    assert found.cells == ("mass", "redshift") and found.units == ("solMass", "")
    assert found.given == ("colour", "spectrum")
    assert (found.scores["contraction"] < 0.8).all()
    np.testing.assert_allclose(found.coverage, np.tile(found.bands.levels, (2, 1)), atol=0.05)


@pytest.mark.parametrize("wrong", [{"width": 0.7}, {"width": 1.4}, {"shift": 0.4}])
def test_wrong_posteriors_fail(fakes, obs, wrong):
    right = calibration(fakes.Fake(), obs, n=200)
    found = calibration(fakes.Fake(**wrong), obs, n=200)
    assert not found.inside_band or found.pit_pvalue < 1e-6
    assert min(found.pvalue, found.pit_pvalue) < 1e-6
    assert (found.scores["nlpd"] > right.scores["nlpd"]).all()
    assert (found.scores["crps"] > right.scores["crps"]).all()


def test_prior_passes_ranks_but_shows_in_nlpd_and_contraction(fakes, obs):
    right, prior = calibration(fakes.Fake(), obs, n=200), calibration(fakes.Fake(prior=True), obs, n=200)
    assert prior.inside_band
    np.testing.assert_allclose(prior.scores["contraction"], 1.0, atol=0.06)
    assert (prior.scores["nlpd"] > right.scores["nlpd"] + 0.3).all()
    assert (prior.scores["r2"] < 0.05).all() and (right.scores["r2"] > 0.5).all()


def test_false_alarm_rate_of_the_verdict(fakes, world):
    verdicts = [
        calibration(fakes.Fake(), world.draw(80, seed=100 + k), bands=Bands(confidence=0.9), n=99).inside_band
        for k in range(60)
    ]
    assert np.mean(verdicts) >= 0.8


def test_limits_and_unseen_cells_are_not_scored(fakes, obs):
    part = obs.parts["labels"]
    state, value = np.array(part.state), np.array(part.value)
    state[:100, 0] = State.ABOVE
    value[100:150, 0] = np.nan
    changed = Observations.from_arrays(
        obs.schema,
        {m: value if m == "labels" else p.value for m, p in obs.parts.items()},
        sigma={m: p.sigma for m, p in obs.parts.items()},
        state={"labels": state},
    )
    assert calibration(fakes.Fake(), changed, n=50).rows.tolist() == [1350, 1500]


def test_questions_that_are_refused(fakes, obs):
    with pytest.raises(CapabilityError, match="labels"):
        calibration(fakes.Fake(refuse=frozenset({"labels"})), obs)
    with pytest.raises(DataError, match="measured"):
        calibration(fakes.Fake(), obs.hide("labels"))
    with pytest.raises(RequestError, match="lables"):
        calibration(fakes.Fake(), obs, ["lables"])
    with pytest.raises(DataError, match="same rows"):
        calibration(fakes.Fake(), obs, given=obs[:3].hide("labels"))


def test_without_density_nlpd_is_nan_and_the_rest_stands(fakes, obs):
    found = calibration(fakes.Fake(capabilities=frozenset()), obs[:200], n=50)
    assert np.isnan(found.scores["nlpd"]).all() and np.isfinite(found.scores["crps"]).all()


def test_tiles_do_not_change_the_answer(fakes, obs, monkeypatch):
    whole = calibration(fakes.Fake(), obs[:60], n=40)
    monkeypatch.setattr("consilience.analysis.base.TILE_VALUES", 3 * 40 * 2 * 7)
    np.testing.assert_array_equal(whole.pit, calibration(fakes.Fake(), obs[:60], n=40).pit)


def test_saved_files_and_figures(fakes, obs, tmp_path):
    found = calibration(fakes.Fake(), obs[:100], ["labels", "spectrum"], n=60)
    assert len(found.cells) == 26
    found.save(tmp_path / "new")
    record = json.loads((tmp_path / "new" / "calibration.json").read_text())
    assert record["analysis"] == "calibration" and record["cells"][0] == "mass"
    assert (tmp_path / "new" / "calibration.csv").read_text().startswith("cell,unit,rows,mae")
    assert (tmp_path / "new" / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.suffix for p in (tmp_path / "new").iterdir()) == [".csv", ".json", ".png"]
    assert len(found.figure().axes) == 12 and len(found.scatter().axes) == 8
    assert json.dumps(found.summary(), allow_nan=False)
