"""The closed form of the linear-Gaussian model against dense conditioning and against counting."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from consilience.data.observations import Observations, State
from consilience.errors import RequestError
from consilience.simulators import LinearGaussian, factors, gaussian, linear_gaussian

SIZES = {"x": 4, "y": 3, "w": 1}


def dense(model: LinearGaussian, obs: Observations, row: int, targets: list[str]):
    """Brute force: the joint covariance of (measured cells, target cells), conditioned by one solve."""
    names = list(model.loadings)
    w = np.concatenate([model.loadings[m] for m in names])
    b = np.concatenate([model.offset[m] for m in names])
    psi2 = np.concatenate([model.noise[m] for m in names]) ** 2
    x = np.concatenate([obs.parts[m].value[row] for m in names])
    s = [np.zeros(len(model.loadings[m])) if obs.parts[m].sigma is None else obs.parts[m].sigma[row] for m in names]
    s = np.nan_to_num(np.concatenate(s))
    label = np.concatenate([[m] * len(model.loadings[m]) for m in names])
    t = np.concatenate([np.flatnonzero(label == m) for m in targets])
    c = np.flatnonzero(np.isfinite(x))
    prior = w @ w.T + np.diag(psi2)
    noisy = prior[np.ix_(c, c)] + np.diag(s[c] ** 2)
    gain = np.linalg.solve(noisy, prior[np.ix_(c, t)]).T
    mean = b[t] + gain @ (x[c] - b[c])
    covariance = prior[np.ix_(t, t)] - gain @ prior[np.ix_(c, t)]
    log_prob = multivariate_normal(b[c], noisy).logpdf(x[c]) if len(c) else 0.0
    return mean, covariance, log_prob


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("targets", [["y"], ["w", "x"], ["x", "y", "w"]])
@pytest.mark.parametrize("hide", [(), ("y",), ("x", "y", "w")])
def test_posterior_equals_dense_conditioning(sigma, targets, hide):
    model = linear_gaussian(seed=3, latent_dim=2, sizes=SIZES)
    obs = model.simulate(12, seed=4, missing=0.3, sigma=sigma).hide(*hide)
    mean, covariance = model.posterior(obs, targets)
    log_prob = model.log_prob(obs)
    for row in range(len(obs)):
        expected = dense(model, obs, row, targets)
        assert_allclose(mean[row], expected[0], atol=1e-10)
        assert_allclose(covariance[row], expected[1], atol=1e-10)
        assert_allclose(log_prob[row], expected[2], atol=1e-9)


def test_nothing_seen_gives_the_prior():
    model = linear_gaussian(seed=0)
    obs = model.simulate(3, seed=1).hide("x", "y")
    mean, covariance = model.latent(obs)
    assert_allclose(mean, 0.0)
    assert_allclose(covariance, np.broadcast_to(np.eye(2), (3, 2, 2)))
    assert_allclose(model.log_prob(obs), 0.0, atol=1e-12)
    assert_allclose(model.posterior(obs, ["y"])[0], np.broadcast_to(model.offset["y"], (3, 3)))


def test_posterior_and_latent_against_monte_carlo():
    model = linear_gaussian(seed=5, latent_dim=2, sizes=SIZES)
    obs = model.simulate(40_000, seed=6, missing=0.3, sigma=0.6, truth=True)
    context = obs.hide("y")
    mean, covariance = model.posterior(context, ["y", "x"])
    truth = np.hstack([obs.parts["true_y"].value, obs.parts["true_x"].value])
    white = np.linalg.solve(np.linalg.cholesky(covariance), (truth - mean)[:, :, None])[:, :, 0]
    z, spread = model.latent(context)
    white_z = np.linalg.solve(np.linalg.cholesky(spread), (obs.parts["true_latent"].value - z)[:, :, None])[:, :, 0]
    for sample in (white, white_z):
        # 5 standard errors of a mean and of a covariance of unit normals
        assert_allclose(sample.mean(axis=0), 0.0, atol=5 / np.sqrt(len(obs)))
        assert_allclose(np.cov(sample.T), np.eye(sample.shape[1]), atol=5 * np.sqrt(2 / len(obs)))


def test_observed_adds_the_error_bars_of_the_measurement():
    model = linear_gaussian(seed=7)
    obs = model.simulate(20_000, seed=8, sigma=0.8)
    context = obs.hide("y")
    mean, covariance = model.posterior(context, ["y"])
    same, wider = model.posterior(context, ["y"], observed=obs)
    assert_allclose(mean, same)
    added = np.diagonal(wider - covariance, axis1=1, axis2=2)
    assert_allclose(added, obs.parts["y"].sigma ** 2)
    pull = (obs.parts["y"].value - mean) / np.sqrt(np.diagonal(wider, axis1=1, axis2=2))
    assert_allclose(pull.var(axis=0), 1.0, atol=0.05)


def test_larger_error_bars_never_narrow_the_posterior():
    model = linear_gaussian(seed=9)
    narrow = model.simulate(50, seed=10, sigma=0.2)
    values = {name: part.value for name, part in narrow.parts.items()}
    wide = {name: 2 * part.sigma for name, part in narrow.parts.items()}
    obs = Observations.from_arrays(narrow.schema, values, sigma=wide)
    difference = model.posterior(obs, ["x"])[1] - model.posterior(narrow, ["x"])[1]
    assert np.linalg.eigvalsh(difference).min() > 0


def test_a_missing_modality_is_an_unseen_one():
    model = linear_gaussian(seed=11)
    obs = model.simulate(5, seed=12)
    assert_allclose(model.latent(obs.select("x"))[0], model.latent(obs.hide("y"))[0])
    assert_allclose(model.log_prob(obs.select("x")), model.log_prob(obs.hide("y")))


def test_log_prob_integrates_to_one():
    model = linear_gaussian(seed=13, latent_dim=1, sizes={"x": 1, "y": 1})
    axis = np.linspace(-12, 12, 241)
    x, y = (grid.reshape(-1, 1) for grid in np.meshgrid(axis, axis))
    obs = Observations.from_arrays(model.schema, {"x": x, "y": y})
    assert np.exp(model.log_prob(obs)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-6)


def test_tables_are_deterministic_and_as_asked():
    one, two = gaussian(2000, seed=3, missing=0.25, sigma=0.3), gaussian(2000, seed=3, missing=0.25, sigma=0.3)
    other = gaussian(2000, seed=4, missing=0.25)
    for name in ("x", "y"):
        np.testing.assert_array_equal(one.parts[name].value, two.parts[name].value)
        np.testing.assert_array_equal(one.parts[name].sigma, two.parts[name].sigma)
        assert 1 - one.parts[name].seen.mean() == pytest.approx(0.25, abs=0.03)
        assert np.nanmedian(one.parts[name].sigma) == pytest.approx(0.3, rel=0.03)
        assert other.parts[name].sigma is None
    assert not np.allclose(np.nanmean(one.parts["x"].value, axis=0), np.nanmean(other.parts["x"].value, axis=0))


def test_the_model_behind_a_table_is_linear_gaussian_of_its_seed():
    obs = gaussian(20_000, seed=21, missing=0.0)
    model = linear_gaussian(seed=21)
    w = model.loadings["x"]
    assert_allclose(obs.parts["x"].value.mean(axis=0), model.offset["x"], atol=0.06)
    assert_allclose(np.cov(obs.parts["x"].value.T), w @ w.T + np.diag(model.noise["x"] ** 2), atol=0.15)


def test_wrong_requests_are_refused():
    model = linear_gaussian(seed=0)
    obs = model.simulate(3, seed=1)
    with pytest.raises(RequestError, match="Expected a target among"):
        model.posterior(obs, ["z"])
    with pytest.raises(RequestError, match="missing"):
        model.simulate(3, seed=1, missing=1.0)
    with pytest.raises(RequestError, match="at least 1"):
        linear_gaussian(seed=0, latent_dim=0)
    with pytest.raises(RequestError, match="positive noise"):
        LinearGaussian({"x": np.ones((2, 1))}, {"x": np.ones(2)}, {"x": np.zeros(2)})
    with pytest.raises(RequestError, match="offset with shapes"):
        LinearGaussian({"x": np.ones((2, 1))}, {"x": np.ones(3)}, {"x": np.ones(2)})
    with pytest.raises(RequestError, match="one Q"):
        LinearGaussian({"x": np.ones((2, 1)), "y": np.ones((2, 2))}, {}, {})
    values = {name: part.value for name, part in obs.parts.items()}
    state = {"x": np.full((3, 6), State.BELOW)}
    with pytest.raises(RequestError, match="limit in row 0"):
        model.latent(Observations.from_arrays(obs.schema, values, state=state))


def test_factors_are_those_that_made_the_cells():
    """The same maps of the truth give the cells: what is left is noise."""
    table = factors(3000, seed=1, modalities=3, sizes=(2, 1, 12), noise=0.1, missing=0.2, sigma=0.05)
    assert table.schema.names == (
        "x1", "x2", "x3", "true_shared", "true_private_x1", "true_private_x2", "true_private_x3",
    )  # fmt: skip
    assert abs((~table.parts["x1"].seen).mean() - 0.2) < 0.02
    assert abs(np.nanmean(np.log(table.parts["x2"].sigma)) - np.log(0.05)) < 0.02
    s = table.parts["true_shared"].value
    for name in ("x1", "x2"):
        known = np.hstack([s, table.parts[f"true_private_{name}"].value])
        x = np.where(table.parts[name].seen, table.parts[name].value, 0)
        # a linear fit to all factors of a modality explains most, one without its own clearly less
        both, shared = (
            1 - np.linalg.lstsq(np.c_[f, np.ones(len(f))], x, rcond=None)[1].sum() / ((x - x.mean(0)) ** 2).sum()
            for f in (known, s)
        )
        assert both > shared + 0.05
    other = np.corrcoef(table.parts["true_private_x1"].value[:, 0], table.parts["true_private_x2"].value[:, 0])
    assert abs(other[0, 1]) < 0.08


@pytest.mark.parametrize("wrong", [{"modalities": 0}, {"sizes": (0, 0, 3)}, {"missing": 1.0}, {"sigma": -1.0}])
def test_factors_that_cannot_be_are_named(wrong):
    with pytest.raises(RequestError, match="Expected"):
        factors(5, seed=0, **wrong)
