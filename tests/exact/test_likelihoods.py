"""Likelihoods against scipy: expectations, predictive densities, slopes and draws, on measured cells and limits."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad

from consilience.blocks.counts import NegativeBinomial, Poisson, poisson_quantile
from consilience.blocks.likelihoods import Bernoulli, Categorical, Gaussian, StudentT, build_likelihood
from consilience.blocks.noise import Noise
from consilience.data.observations import Modality, State
from consilience.data.schema import ModalitySpec
from consilience.errors import RequestError, SchemaError

MEANS = np.array([-1.3, 0.0, 0.4, 2.1])
VARIANCES = np.array([0.04, 0.3, 0.9, 0.5])
NOISE = np.array([0.05, 0.3, 0.8, 0.2])
FREEDOM = np.array([4.0, 6.0, 10.0, 30.0])
SIGMA = np.array([0.3, 0.0, 0.5, 0.2])
REAL = np.array([-0.7, 0.2, 1.9, 2.0])
DISPERSION = np.array([0.7, 2.0, 5.0, 40.0])
EXPOSURE = np.array([1.0, 0.5, 2.0, 0.2])


def tensor(array):
    return torch.as_tensor(np.asarray(array, float))[None]


def part_of(value, state=State.MEASURED, **more):
    states = torch.full((1, 4), int(state), dtype=torch.int8)
    return Modality(tensor(value), states, **{name: tensor(array) for name, array in more.items()})


def noisy(cls):
    made = cls(4).double()
    with torch.no_grad():
        made.log_noise.copy_(torch.as_tensor(NOISE - 1e-6).log())
        if cls is StudentT:
            made.log_freedom.copy_(torch.as_tensor(FREEDOM - 2).log())
    return made


def gaussian(x, f, cell):
    return scipy.stats.norm.logpdf(x, f, math.sqrt(NOISE[cell] + SIGMA[cell] ** 2))


def below(x, f, cell):
    return scipy.stats.norm.logcdf(x, f, math.sqrt(NOISE[cell] + SIGMA[cell] ** 2))


def above(x, f, cell):
    return scipy.stats.norm.logsf(x, f, math.sqrt(NOISE[cell] + SIGMA[cell] ** 2))


def student(x, f, cell):
    return scipy.stats.t.logpdf(x, FREEDOM[cell], f, math.sqrt(NOISE[cell] + SIGMA[cell] ** 2))


def poisson(x, f, cell):
    return scipy.stats.poisson.logpmf(x, EXPOSURE[cell] * math.exp(f))


def negative_binomial(x, f, cell):
    rate, r = EXPOSURE[cell] * math.exp(f), DISPERSION[cell]
    return scipy.stats.nbinom.logpmf(x, r, r / (r + rate))


def scattered():
    made = NegativeBinomial(4).double()
    with torch.no_grad():
        made.log_dispersion.copy_(torch.as_tensor(DISPERSION).log())
    return made


def bernoulli(x, f, cell):
    return scipy.stats.bernoulli.logpmf(x, scipy.special.expit(f))


# name: likelihood, cells, log density by scipy, tolerance of 20 Gauss-Hermite nodes
CASES = {
    "gaussian": (lambda: noisy(Gaussian), part_of(REAL, sigma=SIGMA), gaussian, 1e-10),
    "below": (lambda: noisy(Gaussian), part_of(REAL, State.BELOW, sigma=SIGMA), below, 1e-6),
    "above": (lambda: noisy(Gaussian), part_of(REAL, State.ABOVE, sigma=SIGMA), above, 1e-6),
    "student": (lambda: noisy(StudentT), part_of(REAL, sigma=SIGMA), student, 2e-3),
    "poisson": (lambda: Poisson(4), part_of([0.0, 3.0, 1.0, 7.0], exposure=EXPOSURE), poisson, 1e-5),
    "negative-binomial": (
        scattered,
        part_of([0.0, 3.0, 1.0, 7.0], exposure=EXPOSURE),
        negative_binomial,
        1e-4,
    ),
    "bernoulli": (lambda: Bernoulli(4), part_of([0.0, 1.0, 1.0, 0.0]), bernoulli, 1e-6),
}


@pytest.fixture(params=CASES)
def case(request):
    make, part, log_density, tolerance = CASES[request.param]
    return make(), part, log_density, tolerance


def integral(function, cell):
    deviation = math.sqrt(VARIANCES[cell])
    ends = MEANS[cell] - 12 * deviation, MEANS[cell] + 12 * deviation
    weight = scipy.stats.norm(MEANS[cell], deviation).pdf
    return quad(lambda f: weight(f) * function(f), *ends, epsabs=1e-12, limit=300)[0]


def test_expected_log_likelihood_equals_quadrature(case):
    likelihood, part, log_density, tolerance = case
    found = likelihood.expected(part, tensor(MEANS), tensor(VARIANCES))[0]
    for cell in range(4):
        x = float(part.value[0, cell])
        exact = integral(lambda f, x=x, cell=cell: log_density(x, f, cell), cell)
        assert float(found[cell].detach()) == pytest.approx(exact, abs=tolerance, rel=tolerance)


def test_log_predictive_equals_quadrature(case):
    likelihood, part, log_density, tolerance = case
    found = likelihood.log_predictive(part, tensor(MEANS), tensor(VARIANCES))[0]
    for cell in range(4):
        x = float(part.value[0, cell])
        exact = math.log(integral(lambda f, x=x, cell=cell: math.exp(log_density(x, f, cell)), cell))
        assert float(found[cell].detach()) == pytest.approx(exact, abs=10 * tolerance)


def test_slopes_equal_finite_differences(case):
    likelihood, part, _, _ = case
    mean, variance, step = tensor(MEANS), tensor(VARIANCES), 1e-5
    expected, g, h = likelihood.slopes(part, mean, variance)
    assert not any(found.requires_grad for found in (expected, g, h))
    for slope, along_mean, along_variance in ((g, step, 0.0), (h, 0.0, step)):
        ends = [likelihood.expected(part, mean + s * along_mean, variance + s * along_variance) for s in (1, -1)]
        torch.testing.assert_close(slope, ((ends[0] - ends[1]) / (2 * step)).detach(), rtol=1e-5, atol=1e-7)


def test_the_closed_form_step_of_gaussian_noise_is_maximum_likelihood():
    """Known and different error bars, a known function: the fixed point is where the likelihood's slope vanishes."""
    generator = torch.Generator().manual_seed(0)
    rows, sigma = 4000, torch.rand(4000, 4, generator=torch.Generator().manual_seed(1)).double()
    spread = (torch.as_tensor(NOISE) + sigma.square()).sqrt()
    value = spread * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    part = Modality(value, torch.full((rows, 4), 2, dtype=torch.int8), sigma)
    likelihood, zero = Gaussian(4).double(), torch.zeros(rows, 4).double()
    for _ in range(400):
        likelihood.learn(part, zero, zero, 1.0)
    slope = torch.autograd.grad(likelihood.expected(part, zero, zero).mean(0).sum(), likelihood.log_noise)[0]
    assert slope.abs().max() < 1e-8
    torch.testing.assert_close(likelihood.learned().detach(), torch.as_tensor(NOISE), rtol=0.1, atol=0)
    unseen = Modality(value, torch.zeros_like(part.state), sigma)
    before = likelihood.learned().detach()
    likelihood.learn(unseen, zero, zero, 1.0)
    torch.testing.assert_close(likelihood.learned().detach(), before)


@torch.no_grad()
def test_predictive_is_above_the_expectation(case):
    likelihood, part, _, _ = case
    moments = tensor(MEANS), tensor(VARIANCES)
    assert (likelihood.log_predictive(part, *moments) > likelihood.expected(part, *moments)).all()


@torch.no_grad()
@pytest.mark.parametrize("state", [State.UNSEEN, State.ABSENT])
def test_unseen_cells_give_exactly_zero(case, state):
    likelihood, part, _, _ = case
    hidden = Modality(part.value, torch.full_like(part.state, int(state)), part.sigma, exposure=part.exposure)
    moments = tensor(MEANS), tensor(VARIANCES)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    for found in (
        likelihood.expected(hidden, *moments),
        likelihood.log_predictive(hidden, *moments),
        *likelihood.slopes(hidden, *moments),
    ):
        torch.testing.assert_close(found, zero, rtol=0, atol=0)


def test_limits_and_measurements_share_a_table():
    likelihood = noisy(Gaussian)
    mixed = Modality(tensor(REAL), torch.tensor([[2, 3, 4, 1]], dtype=torch.int8), tensor(SIGMA))
    moments = tensor(MEANS), tensor(VARIANCES)
    for method in ("expected", "log_predictive"):
        found = getattr(likelihood, method)(mixed, *moments)[0]
        for cell, name in enumerate(("gaussian", "below", "above")):
            whole = getattr(likelihood, method)(CASES[name][1], *moments)[0]
            torch.testing.assert_close(found[cell], whole[cell])
        assert found[3] == 0


def test_a_bound_far_away_says_nothing_and_a_violated_one_stays_finite():
    likelihood = noisy(Gaussian)
    far = part_of(MEANS + 50, State.BELOW, sigma=SIGMA)
    assert float(likelihood.expected(far, tensor(MEANS), tensor(VARIANCES)).detach().abs().max()) < 1e-12
    broken = part_of(MEANS - 50, State.BELOW, sigma=SIGMA)
    _, g, h = likelihood.slopes(broken, tensor(MEANS), tensor(VARIANCES))
    assert torch.isfinite(g).all() and torch.isfinite(h).all()
    assert (g < 0).all()


def categorical_case():
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    variance = 0.1 + torch.rand(1, 6, generator=generator, dtype=torch.float64)
    part = Modality(torch.tensor([[0.0, 2.0]]).double(), torch.full((1, 2), 2, dtype=torch.int8))
    normal = torch.randn(200_000, 6, generator=generator, dtype=torch.float64)
    log_p = (mean + variance.sqrt() * normal).view(-1, 2, 3).log_softmax(-1)
    return mean, variance, part, log_p[:, [0, 1], [0, 2]], log_p


def test_categorical_bound_is_below_monte_carlo_and_close_to_it():
    mean, variance, part, log_p, _ = categorical_case()
    likelihood = Categorical(2, 3)
    bound, truth = likelihood.expected(part, mean, variance)[0], log_p.mean(0)
    assert (bound < truth).all()
    assert (truth - bound < 0.3).all()
    found = likelihood.log_predictive(part, mean, variance)[0]
    torch.testing.assert_close(found, log_p.exp().mean(0).log(), atol=0.02, rtol=0)


def test_categorical_probabilities_sum_to_one():
    mean, variance, _, _, _ = categorical_case()
    likelihood = Categorical(2, 3)
    state = torch.full((1, 2), 2, dtype=torch.int8)
    each = [Modality(torch.full((1, 2), float(c)).double(), state) for c in range(3)]
    total = torch.stack([likelihood.log_predictive(part, mean, variance) for part in each]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gaussian", "student", "poisson", "negative-binomial", "bernoulli"])
def test_draws_have_the_predictive_distribution(name):
    likelihood = CASES[name][0]()
    n, ids = 4000, np.array(["a"])
    noise = Noise(0, ids, dtype=torch.float64)
    mean, variance = tensor(MEANS).expand(n, 1, 4), tensor(VARIANCES).expand(n, 1, 4)
    x = likelihood.draw(mean, variance, noise, "x")[:, 0].numpy()
    rng = np.random.default_rng(1)
    f = MEANS + np.sqrt(VARIANCES) * rng.normal(size=(n, 4))
    reference = {
        "gaussian": lambda: f + np.sqrt(NOISE) * rng.normal(size=f.shape),
        "student": lambda: f + np.sqrt(NOISE) * rng.standard_t(FREEDOM, size=f.shape),
        "poisson": lambda: rng.poisson(np.exp(f)),
        "negative-binomial": lambda: rng.poisson(np.exp(f) * rng.gamma(DISPERSION, 1 / DISPERSION, size=f.shape)),
        "bernoulli": lambda: rng.random(f.shape) < scipy.special.expit(f),
    }[name]()
    for cell in range(4):
        assert scipy.stats.ks_2samp(x[:, cell], reference[:, cell]).pvalue > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["gaussian", "student", "poisson", "negative-binomial", "bernoulli"])
def test_the_expectation_is_the_mean_of_draws(name):
    likelihood = CASES[name][0]()
    n = 20_000
    f = tensor(MEANS).expand(n, 1, 4)
    x = likelihood.draw(f, torch.zeros_like(f), Noise(0, np.array(["a"]), dtype=torch.float64), "x")
    error = x.std(0) / n**0.5
    assert ((x.mean(0) - likelihood.expectation(f[:1])[0]).abs() < 5 * error).all()


def test_quantiles_of_counts_are_scipys():
    rng = np.random.default_rng(0)
    rate = 10 ** rng.uniform(-4, 2, size=(40, 500))
    u = rng.uniform(1e-12, 1 - 1e-12, size=rate.shape)
    u[0] = 1 - 1e-12
    exact = scipy.stats.poisson.ppf(u, rate)
    found = poisson_quantile(u, rate)
    # at the very end of float64 the two sums may round to either side of a step
    assert np.abs(found - exact).max() <= 1 and (found[1:] == exact[1:]).all()


def test_classes_have_no_mean():
    with pytest.raises(RequestError, match="Categorical"):
        Categorical(2, 3).expectation(torch.zeros(1, 1, 6))


@torch.no_grad()
def test_categorical_draws_have_the_predictive_frequencies():
    mean, variance, _, _, log_p = categorical_case()
    n = 4000
    noise = Noise(0, np.array(["a"]), dtype=torch.float64)
    x = Categorical(2, 3).draw(mean.expand(n, 1, 6), variance.expand(n, 1, 6), noise, "x")[:, 0]
    for cell in range(2):
        frequency = torch.bincount(x[:, cell].long(), minlength=3) / n
        torch.testing.assert_close(frequency.double(), log_p[:, cell].exp().mean(0), atol=0.035, rtol=0)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("real", None, Gaussian),
        ("positive", "student", StudentT),
        ("count", None, Poisson),
        ("count", "negative-binomial", NegativeBinomial),
        ("binary", "bernoulli", Bernoulli),
        ("category", None, Categorical),
    ],
)
def test_the_kind_calls_for_its_likelihood(kind, name, expected):
    spec = ModalitySpec(name="x", shape=(4,), kind=kind, classes=3 if kind == "category" else 0)
    made = build_likelihood(name, spec)
    assert type(made) is expected
    assert made.functions == (3 if kind == "category" else 1)


@pytest.mark.parametrize(("kind", "name"), [("real", "poisson"), ("count", "gaussian"), ("binary", "student")])
def test_a_likelihood_that_does_not_fit_is_refused(kind, name):
    with pytest.raises(SchemaError, match=f"for the {kind} 'x'; got '{name}'"):
        build_likelihood(name, ModalitySpec(name="x", shape=(4,), kind=kind))
