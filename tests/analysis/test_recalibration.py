"""Maps make error bars hold on rows that nobody has seen, keep what was right, and stay with the model."""

import json
from dataclasses import replace

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.calibration import Bands, calibration
from consilience.analysis.recalibration import _drawn_together, recalibration
from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, DataError, ModelFileError, RequestError
from consilience.predict.recalibration import Recalibration
from consilience.report.card import record_rows
from consilience.studies.planted import survey

QUICK = Bands(levels=(0.5, 0.68, 0.95))


@pytest.fixture(scope="module")
def sure():
    """A regression on few rows, trained for too long."""
    config = cs.TrainConfig(max_steps=700, validation=0, batch_size=64, learning_rate=3e-3)
    return cs.fit(cs.Regression(target="labels", hidden=32), survey(300, seed=5), config)


@pytest.fixture(scope="module")
def better(sure):
    return recalibration(sure, survey(2000, seed=6), bands=QUICK, n=100)


def test_intervals_hold_on_fresh_rows_of_every_pattern(sure, better):
    fresh = survey(2500, seed=7)
    lacks = patterns(fresh.hide("labels"), ["spectrum", "bands"]) == "without bands"
    for rows in (fresh[np.flatnonzero(lacks)], fresh[np.flatnonzero(~lacks)]):
        old, new = (calibration(fit, rows, bands=QUICK, n=100) for fit in (sure, better.fitted))
        assert (old.coverage[:, 1] < 0.6).all()
        assert np.abs(new.coverage - QUICK.levels).max() < (0.08 if len(rows) < 1000 else 0.045)
        assert (new.scores["crps"] < old.scores["crps"] * 1.05).all()
    assert better.fitted.recalibration.patterns == ("all", "without bands")


def test_what_is_reported_is_of_other_rows(better):
    assert better.patterns == ("all", "without bands")
    assert all((one.coverage[:, 1] < 0.6).all() for one in better.before)
    assert all(np.abs(one.coverage[:, 1] - 0.68).max() < 0.1 for one in better.after)
    assert "density" in better.before[0].scores or np.isnan(better.after[0].scores["nlpd"]).all()


def test_the_record_of_the_model_is_of_its_mapped_draws(sure, better):
    assert sure.calibration is None  # nothing was held out of its training
    record = better.fitted.calibration["given_the_rest"]["labels"]
    assert record["levels"] == list(Bands().levels) and record["cells"] == 4000 and record["nlpd"] is None
    np.testing.assert_allclose(record["coverage"], Bands().levels, atol=0.04)
    header, rows = record_rows(better.fitted.calibration)
    assert len(rows) == 1 and len(rows[0]) == len(header)


def test_maps_change_widths_and_keep_order(sure, better):
    rows = survey(50, seed=8).hide("labels")
    old, new = (fit.sample(rows, ["labels"], n=30, seed=3).values["labels"] for fit in (sure, better.fitted))
    np.testing.assert_array_equal(np.argsort(old, axis=0), np.argsort(new, axis=0))
    assert np.median(new.std(axis=0) / old.std(axis=0)) > 1.3
    other = better.fitted.sample(rows.select("spectrum", "bands", "noise"), ["labels"], n=3).values["labels"]
    np.testing.assert_array_equal(other, better.fitted.sample(rows, ["labels"], n=3).values["labels"])


def test_a_draw_depends_on_its_row_alone_and_survives_a_file(better, tmp_path):
    rows = survey(70, seed=9).hide("labels")
    whole = better.fitted.sample(rows, ["labels"], n=9, seed=1).values["labels"]
    np.testing.assert_array_equal(
        better.fitted.sample(rows[64:65], ["labels"], n=9, seed=1).values["labels"], whole[:, 64:65]
    )
    better.save(tmp_path)
    again = cs.load(tmp_path / "model")
    np.testing.assert_array_equal(again.sample(rows, ["labels"], n=9, seed=1).values["labels"], whole)
    record = json.loads((tmp_path / "recalibration.json").read_text())
    assert record["analysis"] == "recalibration" and set(record["before"]) == {"all", "without bands"}
    means = better.fitted.summarise(rows, ["labels"], statistics=("mean",), n=9, seed=1).statistics["labels"]["mean"]
    np.testing.assert_allclose(means, whole.mean(axis=0))


def test_errors_of_a_measurement_are_part_of_what_is_mapped(better):
    rows = survey(2000, seed=10)
    part = rows.parts["labels"]
    noisy = replace(
        part, value=part.value + np.random.default_rng(0).normal(size=part.value.shape), sigma=np.hypot(part.sigma, 1)
    )
    table = replace(rows, parts={**rows.parts, "labels": noisy})
    found = better.fitted.sample(rows.hide("labels"), ["labels"], n=200, observed=True, at=table).values["labels"]
    plain = better.fitted.sample(rows.hide("labels"), ["labels"], n=200).values["labels"]
    assert (found.std(axis=0) > np.hypot(plain.std(axis=0), 0.8)).mean() > 0.95


def test_a_pattern_in_which_a_cell_was_never_measured_takes_the_map_of_all(sure):
    rows = survey(600, seed=11)
    lacks = ~rows.parts["bands"].seen.any(axis=1)
    rows = rows.hide_cells({"labels": np.stack([np.zeros(600, dtype=bool), lacks], axis=1)})
    maps = recalibration(sure, rows, bands=Bands(levels=(0.68,), least=80), n=40).fitted.recalibration
    assert maps.patterns == ("all", "without bands")
    (mass, age), (alone, _), (_, any_other) = (maps.values["labels"][row] for row in (1, 0, 2))
    assert age == any_other and mass != alone


def test_a_posterior_that_is_right_stays_so():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3600, 1))
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,)), ModalitySpec(name="y", cells=({"name": "mass"},))))
    table = Observations.from_arrays(schema, {"x": x, "y": x + rng.normal(size=x.shape)})
    config = cs.TrainConfig(max_steps=600, learning_rate=3e-3)
    fit = cs.fit(cs.Regression(target="y", hidden=16), table[:1600], config)
    found = recalibration(fit, table[1600:], bands=QUICK, n=100)
    maps = found.fitted.recalibration
    knots, values = np.array(maps.knots["y"][0]), np.array(maps.values["y"][0][0])
    assert maps.patterns == ("all",) and maps.values["y"][0] == maps.values["y"][1]
    assert np.abs(knots - values)[np.abs(knots) < 1.5].max() < 0.25
    assert found.after[0].inside_band


def test_the_model_says_that_its_density_is_gone(better):
    assert "density" not in better.fitted.capabilities
    with pytest.raises(CapabilityError, match="density"):
        better.fitted.log_prob(survey(3, seed=1), ["labels"])
    with pytest.raises(RequestError, match="without maps"):
        recalibration(better.fitted, survey(300, seed=1))


def test_refusals(sure):
    with pytest.raises(DataError, match="at least 50 rows"):
        recalibration(sure, survey(40, seed=1))
    with pytest.raises(CapabilityError):
        recalibration(sure, survey(300, seed=1), ["bands"])


def test_a_tampered_map_is_refused(better, tmp_path):
    maps = better.fitted.recalibration
    good = maps.model_dump(mode="json")
    assert Recalibration.model_validate(good) == maps
    first = good["knots"]["labels"][0]
    for key, bad in (
        ("knots", {"labels": [first[::-1], first]}),
        ("knots", {"labels": [[0.0, 1.0]] * 2}),
        ("values", {"labels": good["values"]["labels"][:2]}),
        ("values", {"labels": [[first, first[::-1]]] * 3}),
        ("values", {"labels": [[first[:3], first]] * 3}),
        ("values", {}),
    ):
        with pytest.raises(ValueError, match="Expected"):
            Recalibration.model_validate(good | {key: bad})
    better.fitted.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(path.read_text().replace('"without bands"', '"without"', 1))
    with pytest.raises(ModelFileError):
        cs.load(tmp_path / "model")


def test_groups_are_drawn_together_as_far_as_chance_makes_them_differ():
    np.testing.assert_allclose(_drawn_together(np.full(3, 0.4), np.array([0.1, 0.2, 0.3])), 0.4)
    rng = np.random.default_rng(0)
    same = _drawn_together(rng.normal(0.3, 0.1, 50), np.full(50, 0.01))
    assert same.std() < 0.05 and abs(same[-1] - 0.3) < 0.05
    apart = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(_drawn_together(apart, np.full(3, 1e-4))[:3], apart, atol=1e-3)
    np.testing.assert_allclose(_drawn_together(np.array([0.7]), np.array([0.1])), 0.7)
