"""Two sets of points: alike, apart by a known distance, and as tables that a model reads."""

import json
import sys

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.domain import domain
from consilience.analysis.latents import latents
from consilience.analysis.two_samples import c2st, frechet, mmd, sinkhorn
from consilience.errors import CapabilityError, DataError, RequestError


def points(count, shift=0.0, seed=0, size=2):
    return shift + np.random.default_rng(seed).normal(size=(count, size))


def test_mmd_is_the_mean_over_all_pairs_and_its_pvalue_is_uniform():
    x, y = points(30), points(40, 0.5, seed=1)
    both = np.concatenate([x, y])
    square = ((both[:, None] - both) ** 2).sum(-1)
    k = np.exp(-0.5 * square / np.median(square[np.triu_indices(70, 1)]))
    own = (k[:30, :30].sum() - 30) / (30 * 29) + (k[30:, 30:].sum() - 40) / (40 * 39)
    assert mmd(x, y)[0] == pytest.approx(own - 2 * k[:30, 30:].mean(), abs=1e-12)
    alike = np.array([mmd(points(40, seed=2 * s), points(40, seed=2 * s + 1), seed=s) for s in range(80)])
    assert abs(alike[:, 0].mean()) < 0.005 and 0.02 < np.mean(alike[:, 1] < 0.1) < 0.2
    assert mmd(x, points(40, 3.0, seed=1))[1] < 0.01


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_sinkhorn_is_the_squared_distance_of_shifted_gaussians(shift):
    found = [sinkhorn(points(250, seed=2 * s), points(250, shift, seed=2 * s + 1)) for s in range(3)]
    assert np.mean(found) == pytest.approx(2 * shift**2, abs=0.15 + 0.15 * shift**2)
    assert sinkhorn(points(50), points(50)) == pytest.approx(0, abs=1e-6)


def test_points_that_cannot_be_compared():
    for bad in (points(5), points(20, size=3), points(20) * np.nan, np.ones(20)):
        for compare in (c2st, mmd, sinkhorn):
            with pytest.raises(DataError, match="Expected points"):
                compare(points(20), bad)


def test_tables_alike_and_apart(tmp_path):
    table = cs.simulators.gaussian(700, seed=0)
    fit = cs.fit(cs.VAE(latent_dim=2, hidden=8), table[:100].select("x"), cs.TrainConfig(max_steps=5, validation=0))
    alike = domain(fit, table[100:400].select("x"), table[400:].select("x"), rows=120)
    other = cs.simulators.gaussian(300, seed=5).select("x")
    apart = domain(fit, other, table[400:].select("x"), rows=120)
    assert alike.spaces[-1] == "x" and alike.rows.tolist() == [[120, 120]] * len(alike.spaces)
    assert (alike.accuracy < 0.62).all() and (alike.discrepancy_pvalue > 0.005).all()
    assert apart.accuracy[-1] > 0.7 and apart.accuracy_pvalue[-1] < 1e-6 and apart.discrepancy_pvalue[-1] < 0.01
    assert apart.transport[-1] > 2 * alike.transport[-1]
    apart.save(tmp_path)
    assert json.loads((tmp_path / "domain.json").read_text())["spaces"] == list(apart.spaces)
    assert len(domain(fit, other, table[400:].select("x"), rows=50).table()) == len(apart.spaces)
    with pytest.raises(DataError, match="20 rows"):
        domain(fit, other[:19], table)


def test_maps_keep_neighbours_together(tmp_path, monkeypatch):
    table = cs.simulators.gaussian(120, seed=0).select("x", "y")
    fit = cs.fit(cs.SharedGPLVM(latent_dim=3, inducing=8), table, cs.TrainConfig(max_steps=10))
    for method in ("pca", "tsne"):
        found = latents(fit, table, method=method)
        assert found.position.shape == (120, 2) and found.block == "shared" and np.isfinite(found.position).all()
        near = np.argsort(((found.position[:, None] - found.position) ** 2).sum(-1), axis=1)[:, 1:6]
        mean = fit.latent(table).mean["shared"]
        apart = ((mean[:, None] - mean) ** 2).sum(-1)
        close = np.take_along_axis(apart, near, axis=1).mean()
        assert close < 0.4 * apart.mean()
    found.save(tmp_path)
    assert (tmp_path / "latents.png").stat().st_size > 1000 and len(found.table()) == 120
    for wrong, message in (({"block": "z"}, "block"), ({"colour": "mass"}, "cell"), ({"method": "som"}, "method")):
        with pytest.raises(RequestError, match=message):
            latents(fit, table, **wrong)
    with pytest.raises(DataError, match="10 rows"):
        latents(fit, table[:5])
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(RequestError, match=r"consilience\[maps\]"):
        latents(fit, table, method="umap")


def test_a_map_needs_latents():
    table = cs.simulators.gaussian(40, seed=0)
    fit = cs.fit(cs.Regression(target="y", hidden=4), table, cs.TrainConfig(max_steps=2))
    with pytest.raises(CapabilityError, match="latents"):
        latents(fit, table)


def test_frechet_distance_is_that_of_matrix_square_roots():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 1
    y = rng.normal(size=(45, 4)) @ rng.normal(size=(4, 4))
    one, two = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet(x, y) == pytest.approx(frechet(y, x)) and frechet(x, x) == pytest.approx(0, abs=1e-9)
    few = rng.normal(size=(12, 40))  # singular covariances
    assert frechet(few, few) == pytest.approx(0, abs=1e-9)
