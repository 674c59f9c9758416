"""What the race of SED fitting rests on: its prior, its noise, its scores."""

import atexit
import json
import warnings

import numpy as np
import pytest

from benchmarks import _sed_bagpipes as sed
from benchmarks import sed_fitting
from benchmarks._harness import resumed
from consilience.analysis.two_samples import c2st

# bagpipes keeps its tables open until the interpreter ends
atexit.register(warnings.simplefilter, "ignore", ResourceWarning)


def test_the_prior_is_told_to_bagpipes_as_galaxies_are_drawn():
    told = sed._instructions()
    assert told["redshift"] == (0.02, 0.3)
    assert told["redshift_prior"] == "uniform"
    assert told["delayed"]["tau"] == (0.3, 10.0)
    assert told["delayed"]["tau_prior"] == "log_10"
    assert told["dust"] == {"type": "Calzetti", "eta": 2.0, "Av": (0.0, 2.0), "Av_prior": "uniform"}
    share = np.linspace(0.01, 0.99, 99)
    for parameter in sed.PARAMETERS:
        values = sed._value(parameter, share)
        if parameter.log:
            values = np.log10(values)
        assert np.diff(values) == pytest.approx(values[1] - values[0])  # uniform, of the logarithm where log_10
        assert sed._share(parameter, sed._value(parameter, share)) == pytest.approx(share)


def test_labels_are_normal_a_priori_and_no_draw_leaves_the_prior():
    normal = np.random.default_rng(0).standard_normal((50, 4, 6))
    parameters = sed.from_normal(normal)
    assert sed.to_normal(parameters) == pytest.approx(normal)
    for column, parameter in enumerate(sed.PARAMETERS):
        extreme = sed.from_normal(np.full(6, 40.0))[column], sed.from_normal(np.full(6, -40.0))[column]
        assert extreme == pytest.approx((parameter.high, parameter.low))


def test_fluxes_have_the_density_that_the_likelihood_states():
    rng = np.random.default_rng(0)
    flux, depth = np.full(5, 100.0), np.array([1e-3, 1.0, 10.0, 100.0, 1e4])
    x = np.array([sed.measured(flux, depth, rng) for _ in range(4000)])
    t = (x - flux) / np.hypot(depth, sed.FLOOR * x)
    # of the density φ(t) / (1 - floor t) where the floor prevails, and normal where it does not
    assert t[:, 0].mean() == pytest.approx(sed.FLOOR, abs=0.04)
    assert t[:, -1].mean() == pytest.approx(0, abs=0.06)
    assert t.std(axis=0) == pytest.approx(np.ones(5), abs=0.05)


def test_a_classifier_tells_draws_apart_only_if_they_are():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((150, 2))
    assert c2st(first, rng.standard_normal((150, 2))) == pytest.approx(0.5, abs=0.1)
    assert c2st(first, 3 + rng.standard_normal((150, 2))) > 0.9
    assert c2st(first, np.repeat(rng.standard_normal((15, 2)), 10, axis=0)) < 0.75  # what repeats stays in one fold


def test_right_posteriors_are_unbiased_and_cover():
    rng = np.random.default_rng(0)
    middle, truth = rng.standard_normal((2, 400, 3))
    found = sed_fitting.compared((middle[:, None] + rng.standard_normal((400, 300, 3))), middle + truth)
    assert np.abs(found["bias"] / found["bias_error"]).max() < 4
    assert found["coverage68"] == pytest.approx(np.full(3, 0.68), abs=0.08)
    assert found["coverage95"] == pytest.approx(np.full(3, 0.95), abs=0.04)
    assert found["spread"] == pytest.approx(np.ones((400, 3)), rel=0.25)


def test_magnitudes_are_those_of_bright_galaxies_and_finite_of_all():
    galaxies = sed.Galaxies(
        sed.from_normal(np.zeros((2, 6))), np.array([[1e4] * 5, [-3.0] * 5]), np.array([[500.0] * 5, [5.0] * 5])
    )
    table = sed_fitting.table(galaxies)
    part = table.parts["magnitudes"]
    assert part.value[0] == pytest.approx(np.full(5, 12.5), abs=1e-3)
    assert part.sigma[0] == pytest.approx(np.full(5, 0.05 * 2.5 / np.log(10)), rel=1e-3)
    assert np.isfinite(part.value).all()
    assert np.abs(table.parts["colours"].value[0]).max() < 1e-3
    assert table.parts["labels"].value == pytest.approx(np.zeros((2, 6)))


def test_the_race_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    sizes = sed_fitting.Sizes(
        80, 2, 10, 40, sed_fitting.VAEFlow(hidden=8, layers=2), sed_fitting.TrainConfig(max_steps=5, evaluate_every=5)
    )
    monkeypatch.setattr(sed_fitting, "QUICK", sizes)
    asked = []

    def fitted(galaxies, row, live):
        asked.append(row)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        normal = np.random.default_rng(row).standard_normal((100, len(sed.PARAMETERS)))
        return {"draws": sed.from_normal(normal), "seconds": 200.0, "busy": 100.0, "density": -5.0}

    monkeypatch.setattr(sed_fitting, "fitted", fitted)
    command = ["--quick", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        resumed("sed_fitting", sed_fitting.measure, command)
    found = resumed("sed_fitting", sed_fitting.measure, command).numbers
    assert asked == [0, 1, 1]
    again = json.loads((tmp_path / "results.json").read_text())
    assert found["speedup"] == pytest.approx(again["seconds_bagpipes"] / again["seconds_vaeflow"])
    assert again["seconds_bagpipes"] == 100
    assert again["break_even_galaxies"] < 1
    assert 0.3 < again["c2st_mean"] < 1
    assert abs(again["nats_behind"]) < 50
    assert {f"coverage{level}_{side}" for level in (68, 95) for side in ("bagpipes", "vaeflow")} < set(again)
    assert (tmp_path / "posteriors.png").is_file() and (tmp_path / "coverage.png").is_file()
