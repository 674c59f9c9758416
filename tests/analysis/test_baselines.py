"""Baselines are strong, honest about their errors, and compared on the same rows as the model."""

import numpy as np
import pytest
from scipy import integrate, stats

from consilience.analysis.baselines import BASELINES, BoostedTrees, MeanBaseline, RidgePCA
from consilience.analysis.comparison import compare
from consilience.analysis.residuals import fit_residuals
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError, RequestError


@pytest.fixture(scope="module")
def tables(world):
    return world.draw(600, seed=30), world.draw(300, seed=31)


def test_densities_integrate_and_follow_the_residuals():
    rng = np.random.default_rng(0)
    mixture = np.concatenate([rng.normal(-3, 0.3, 400), rng.normal(3, 0.3, 400)])
    cases = {"gaussian": rng.normal(1, 2, 3000), "student": rng.standard_t(2.5, 3000), "kernel": mixture}
    for kind, residual in cases.items():
        density = fit_residuals(residual)
        assert density.kind == kind or kind == "gaussian"
        grid = np.linspace(-200, 200, 40_001)
        assert integrate.trapezoid(np.exp(density.log_density(grid)), grid) == pytest.approx(1.0, abs=5e-3)
        for q in (0.05, 0.5, 0.9):
            assert float(density.cdf(np.array([density.quantile(q)]))[0]) == pytest.approx(q, abs=2e-3)
    assert fit_residuals(cases["gaussian"]).std == pytest.approx(2.0, rel=0.05)


def test_every_baseline_is_calibrated_and_beats_the_mean(tables):
    train, test = tables
    truth = test.parts["labels"].value
    nlpd = {}
    for kind in BASELINES:
        p = kind().fit(train, ["spectrum", "colour"]).predict(test)
        low, high = p.interval(0.68)
        np.testing.assert_allclose(((truth > low) & (truth < high)).mean(axis=0), 0.68, atol=0.09)
        assert stats.kstest(p.pit(truth)[:, 0], "uniform").pvalue > 1e-4
        np.testing.assert_allclose(p.std, np.std(truth - p.mean, axis=0) * np.ones((300, 1)), rtol=0.2)
        nlpd[kind] = -p.log_density(truth).mean(axis=0)
    assert (nlpd[RidgePCA] < nlpd[MeanBaseline] - 0.3).all() and (nlpd[BoostedTrees] < nlpd[MeanBaseline] - 0.2).all()


def test_ridge_is_close_to_the_exact_posterior_of_a_linear_world(fakes, tables):
    train, test = tables
    found = compare(fakes.Fake(), train, test, ["spectrum", "colour"], baselines=[RidgePCA()], n=100)
    gap = found.scores["nlpd"]["ridge on PCA"] - found.scores["nlpd"]["model"]
    assert (gap > 0).all() and (gap < 0.15).all()


def test_absent_labels_and_gaps(tables):
    train, test = tables
    labels = np.array(train.parts["labels"].value)
    labels[:, 1] = np.nan
    labels[::3, 0] = np.nan
    spectrum = np.array(train.parts["spectrum"].value)
    spectrum[:, 5:8] = np.nan  # nobody saw these
    values = {"labels": labels, "spectrum": spectrum, "colour": train.parts["colour"].value}
    changed = Observations.from_arrays(train.schema, values)
    empty = test[:5].hide("spectrum", "colour")
    for kind in BASELINES:
        p = kind().fit(changed, ["spectrum", "colour"]).predict(test)
        assert np.isfinite(p.mean[:, 0]).all() and np.isnan(p.mean[:, 1]).all() and np.isnan(p.std[:, 1]).all()
        assert np.isfinite(kind().fit(changed, ["spectrum"]).predict(empty).mean[:, 0]).all()


def test_comparison(fakes, tables, tmp_path):
    train, test = tables
    found = compare(fakes.Fake(), train, test, ["spectrum"], n=100)
    assert list(found.scores["nlpd"]) == ["model", "mean", "ridge on PCA", "boosted trees"]
    assert (found.advantage() < 0).all()
    assert len(found.table()) == 8 and found.log_density["mean"].shape == (300, 2)
    found.save(tmp_path)
    wrong = compare(fakes.Fake(width=0.2), train, test, ["spectrum"], baselines=[RidgePCA()], n=100)
    assert (wrong.advantage() > 0).all()


def test_refusals(fakes, tables):
    train, test = tables
    with pytest.raises(RequestError, match="without the target"):
        RidgePCA().fit(train, ["labels"])
    with pytest.raises(DataError, match="measured"):
        MeanBaseline().fit(train.hide("labels"), ["colour"])
    with pytest.raises(DataError, match="not in the training"):
        compare(fakes.Fake(), train, train, ["spectrum"])
    with pytest.raises(CapabilityError):
        compare(fakes.Fake(refuse=frozenset({"labels"})), train, test, ["spectrum"])
    with pytest.raises(DataError, match="at least 5"):
        fit_residuals(np.ones(3))
