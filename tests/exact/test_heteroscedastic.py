"""Scatter as a function: the heteroscedastic likelihood against two-dimensional quadrature, sampling and its limits."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from consilience.blocks.likelihoods import Gaussian, build_likelihood
from consilience.blocks.noise import Noise
from consilience.blocks.scatter import Heteroscedastic
from consilience.data.observations import Modality
from consilience.data.schema import ModalitySpec

X = np.array([-0.7, 0.4, 1.9])
SIGMA = np.array([0.3, 0.0, 0.5])
MEANS = np.array([[-0.5, -1.0], [0.1, 0.3], [1.0, -2.0]])  # of f and of g
VARIANCES = np.array([[0.1, 0.2], [0.3, 0.05], [0.05, 0.3]])


def tensor(array):
    return torch.as_tensor(np.asarray(array, float))[None]


def part_of(x=X, sigma=SIGMA):
    return Modality(tensor(x), torch.full((1, len(x)), 2, dtype=torch.int8), tensor(sigma))


@pytest.fixture
def skewed():
    made = Heteroscedastic(3).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def log_density(likelihood, cell, x, f, g):
    weight, shift, width = (a.detach().numpy()[cell] for a in likelihood.shape())
    f, g = f[..., None], g[..., None]
    sd = np.sqrt(np.exp(g) * width + SIGMA[cell] ** 2 + 1e-6)
    return np.log(scipy.stats.norm.pdf(x, f + np.exp(g / 2) * shift, sd) @ weight)


def nodes(mean, variance):
    """Equal steps and normal weights: the trapezoidal rule, whose error for a smooth integrand falls exponentially."""
    at = mean + math.sqrt(variance) * np.linspace(-9, 9, 1001)
    weight = scipy.stats.norm(mean, math.sqrt(variance)).pdf(at)
    return at, weight / weight.sum()


def test_the_shape_has_mean_zero_and_variance_one(skewed):
    weight, shift, width = skewed.shape()
    assert torch.allclose(weight.sum(-1), torch.ones(3).double())
    assert torch.allclose((weight * shift).sum(-1), torch.zeros(3).double())
    assert torch.allclose((weight * (width + shift.square())).sum(-1), torch.ones(3).double())
    assert ((weight * shift**3).sum(-1).abs() > 0.01).any()


def test_expectation_and_predictive_density_equal_quadrature(skewed):
    expected = skewed.expected(part_of(), tensor(MEANS.ravel()), tensor(VARIANCES.ravel()))[0]
    predictive = skewed.log_predictive(part_of(), tensor(MEANS.ravel()), tensor(VARIANCES.ravel()))[0]
    for c in range(3):
        (mf, mg), (vf, vg) = MEANS[c], VARIANCES[c]
        (f, by_f), (g, by_g) = nodes(mf, vf), nodes(mg, vg)
        log = log_density(skewed, c, X[c], f[:, None], g[None])
        assert float(expected[c].detach()) == pytest.approx(by_f @ log @ by_g, abs=2e-3)
        assert float(predictive[c].detach()) == pytest.approx(math.log(by_f @ np.exp(log) @ by_g), abs=1e-4)


def test_draws_with_their_error_bars_have_the_predictive_distribution(skewed):
    n, noise = 8000, Noise(0, np.array(["a"]), dtype=torch.float64)
    mean, variance = tensor(MEANS.ravel()).expand(n, 1, 6), tensor(VARIANCES.ravel()).expand(n, 1, 6)
    with torch.no_grad():
        x = skewed.draw(mean, variance, noise, "x")[:, 0].numpy()
        x = x + SIGMA * np.random.default_rng(1).normal(size=x.shape)
        for c in range(3):
            grid = np.linspace(x[:, c].min() - 3, x[:, c].max() + 3, 2000)
            many = Modality(
                torch.as_tensor(np.tile(X, (2000, 1))),
                torch.full((2000, 3), 2, dtype=torch.int8),
                torch.as_tensor(np.tile(SIGMA, (2000, 1))),
            )
            many.value[:, c] = torch.as_tensor(grid)
            rows = tensor(MEANS.ravel()).expand(2000, 6), tensor(VARIANCES.ravel()).expand(2000, 6)
            density = skewed.log_predictive(many, *rows)[:, c].exp().numpy()
            cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
            assert cumulative[-1] == pytest.approx(1, abs=2e-3)
            u = np.interp(x[:, c], grid, cumulative)
            assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


def test_one_known_gaussian_scatter_is_the_gaussian_likelihood():
    found, gaussian = Heteroscedastic(3).double(), Gaussian(3).double()
    with torch.no_grad():
        found.shift.zero_()
        gaussian.log_noise.fill_(-1.2)
    f, v = tensor(MEANS[:, 0]), tensor(VARIANCES[:, 0])
    both = torch.stack([f, torch.full_like(f, -1.2)], -1).flatten(-2)
    spread = torch.stack([v, torch.full_like(v, 1e-12)], -1).flatten(-2)
    for method in ("expected", "log_predictive"):
        mine, reference = getattr(found, method)(part_of(), both, spread), getattr(gaussian, method)(part_of(), f, v)
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_steps_of_the_scatter_stay_of_order_one_far_from_the_data(skewed):
    for g in (-9.0, -3.0, 4.0, 12.0):
        mean = tensor(np.stack([MEANS[:, 0], np.full(3, g)], -1).ravel())
        _, slope, h = skewed.slopes(part_of(), mean, tensor(VARIANCES.ravel()))
        w = skewed.precision(part_of(), mean, h)
        assert (w >= 0).all()
        step = (slope / w.clamp_min(1e-30))[0, 1::2]
        assert ((step.abs() < 4) | (slope[0, 1::2].abs() < 1e-3)).all()


def test_unseen_cells_give_exactly_zero(skewed):
    part = Modality(tensor(X), torch.zeros(1, 3, dtype=torch.int8), tensor(SIGMA))
    moments = tensor(MEANS.ravel()), tensor(VARIANCES.ravel())
    assert skewed.expected(part, *moments).abs().sum() == 0
    assert skewed.log_predictive(part, *moments).abs().sum() == 0


def test_it_is_named_and_starts_at_the_noise_of_the_linear_fit():
    made = build_likelihood("heteroscedastic", ModalitySpec(name="x", shape=(2,)))
    assert isinstance(made, Heteroscedastic)
    constant = made.start(torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([0.5, 1e6, 1e-9, 1e6]))
    assert torch.allclose(constant, torch.tensor([1.0, math.log(0.5), 2.0, math.log(0.05)]))
