"""The benchmarks of the shared GPLVM race the same model, and record what they promise."""

import json

import numpy as np
import pytest

from benchmarks import gplvm_cost, gplvm_encoder, gplvm_posteriors, gplvm_quality
from benchmarks._harness import main
from benchmarks.gplvm_step import Sizes, bound_relative_error, measure


def ran(tmp_path, name, module):
    main(name, module.measure, ["--quick", "--out", str(tmp_path)])
    return json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_is_gpytorchs(seed):
    assert bound_relative_error(Sizes(12, 9, 2, 20, 40), seed) < 1e-4


def test_quick_run_records_its_keys(tmp_path):
    main("gplvm_step", measure, ["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["speedup_per_step"] == found["seconds_per_step_gpytorch"] / found["seconds_per_step"]
    assert found["bound_relative_error"] < 1e-4


def test_both_sides_of_the_race_start_alike():
    found = gplvm_quality.race(gplvm_quality.Sizes(60, 60, 8, 2, 32, 3, 2, 3, 1), 0)
    assert set(found) == {"ours", "gpytorch 0.001", "gpytorch 0.003", "gpytorch 0.01"}
    start = [curve.nlpd[0] for curve in found.values()]
    assert start == pytest.approx([start[1]] * 4, abs=0.05)  # a refined, full posterior against a diagonal one
    assert start[1:] == pytest.approx([start[1]] * 3, abs=1e-6)
    for curve in found.values():
        assert len(curve.seconds) == len(curve.nlpd)
        assert (curve.seconds[1:] > 0).all()  # an evaluation's inference is in each, so that they may fall


def test_the_time_to_a_level():
    curve = gplvm_quality.Curve(np.array([0.0, 1.0, 2.0, 3.0]), np.array([5.0, 3.0, 4.0, 2.0]))
    assert [curve.first(level) for level in (5.0, 3.5, 2.0, 1.0)] == [0.0, 1.0, 3.0, np.inf]


def test_quality_records_its_keys(tmp_path):
    found = ran(tmp_path, "gplvm_quality", gplvm_quality)
    assert {"speedup_to_equal_nlpd", "nlpd_difference"} <= set(found)
    assert (tmp_path / "race.png").is_file()


def test_encoder_records_its_keys(tmp_path):
    found = ran(tmp_path, "gplvm_encoder", gplvm_encoder)
    assert min(found["posteriors_per_second"], found["posteriors_per_second_one_pass"]) > 0
    assert np.isfinite([found["nlpd_minus_long_max"], found["nlpd_one_pass_minus_long_max"]]).all()


def test_cost_is_fitted_to_what_was_measured(tmp_path):
    found = ran(tmp_path, "gplvm_cost", gplvm_cost)
    assert found["points"] == 8
    assert min(found[key] for key in ("a_seconds", "b_seconds_per_bdm2", "c_seconds_per_dm3")) >= 0
    assert (tmp_path / "cost.png").is_file()


def test_every_posterior_is_scored(tmp_path):
    found = ran(tmp_path, "gplvm_posteriors", gplvm_posteriors)
    for name in gplvm_posteriors.POSTERIORS:
        assert found[f"rmse_train_{name}"] > 0
        assert np.isfinite(found[f"nlpd_labels_{name}"])
