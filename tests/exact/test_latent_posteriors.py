"""Posteriors of latent positions against closed forms: Gauss-Newton, factor analysis, divergences."""

import numpy as np
import pytest
import torch

from consilience.blocks.counts import Poisson
from consilience.blocks.factors import FactorPosterior, fit_factors
from consilience.blocks.gp import SparseGP
from consilience.blocks.kernels import Linear, build_kernel
from consilience.blocks.laplace import View, gauss_newton
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.posteriors import (
    AmortisedPosterior,
    GaussianLatent,
    LocalPosterior,
    PopulationPrior,
    from_precision,
)
from consilience.data.observations import Modality


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def triangles(seed, rows, size):
    """Lower triangles with a positive diagonal."""
    square = normal(seed, rows, size, size)
    return torch.tril(square, -1) + torch.diag_embed(0.5 + square.diagonal(dim1=-2, dim2=-1).abs())


def cells(seed, rows, size):
    uniform = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed))
    state = torch.where(uniform > 0.3, 2, 1).to(torch.int8)
    return Modality(normal(seed + 1, rows, size), state, 0.1 + normal(seed + 2, rows, size).abs())


def linear_decoder(seed, loadings, offset):
    """A sparse GP with a linear kernel and Q inducing inputs, certain of f(z) = W z + b."""
    outputs, latent = loadings.shape
    gp = SparseGP(Linear(latent), normal(seed, latent, latent) + 2 * torch.eye(latent), outputs).double()
    with torch.no_grad():
        gp.constant.copy_(offset)
        a = gp.features(torch.eye(latent, dtype=torch.float64)).a
        weights = torch.linalg.solve(a, loadings.mT).mT
        gp.q.set_natural(1e10 * torch.eye(latent).expand_as(gp.q.natural_precision), 1e10 * weights)
    return gp


def unit(latent):
    """A standard normal prior."""
    return {"mean": torch.zeros(latent).double(), "precision": torch.eye(latent).double()}


@torch.no_grad()
def test_gauss_newton_through_linear_decoders_is_the_closed_form():
    rows, latent, sizes = 6, 3, (5, 4)
    columns = (torch.tensor([0, 1, 2]), torch.tensor([0, 2]))  # the second decoder reads two of the dimensions
    loadings = [normal(m, size, len(read)) for m, (size, read) in enumerate(zip(sizes, columns, strict=True))]
    offset = [normal(10 + m, size) for m, size in enumerate(sizes)]
    views, whole = [], []
    for m, read in enumerate(columns):
        likelihood = Gaussian(sizes[m]).double()
        likelihood.log_noise.copy_(-1 + 0.3 * normal(20 + m, sizes[m]))
        views.append(View(linear_decoder(m, loadings[m], offset[m]), likelihood, cells(30 + m, rows, sizes[m]), read))
        w = torch.zeros(sizes[m], latent, dtype=torch.float64)
        w[:, read] = loadings[m]
        whole.append(w)
    w, b = torch.cat(whole), torch.cat(offset)
    seen = torch.cat([view.part.measured for view in views], -1)
    tau = torch.cat([view.likelihood.total(view.part) for view in views], -1)
    value = torch.cat([view.part.value for view in views], -1)
    p = torch.where(seen, 1 / tau, 0.0)
    a, root = normal(41, latent), normal(42, latent, latent)
    prior = root @ root.mT + torch.eye(latent, dtype=torch.float64)
    precision = prior + torch.einsum("dq,nd,dr->nqr", w, p, w)
    mean = torch.linalg.solve(precision, ((p * (value - b)) @ w + prior @ a)[..., None])[..., 0]

    found, curvature = gauss_newton(normal(40, rows, latent), views, steps=10, mean=a, precision=prior)
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(curvature, precision, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "linear+rbf"])
def test_gauss_newton_climbs_and_ends_where_the_gradient_vanishes(kernel):
    rows, latent, outputs = 8, 2, 6
    gp = SparseGP(build_kernel(kernel, latent), 2 * normal(50, 8, latent), outputs).double()
    likelihood, part, z = Gaussian(outputs).double(), cells(51, rows, outputs), normal(54, rows, latent)
    features = gp.features(z)
    _, g, h = likelihood.slopes(part, *gp.moments(features))
    gp.natural_step(features, g, -2 * h, scale=20.0, rate=1.0)
    view = View(gp, likelihood, part, torch.arange(latent))

    def objective(at):
        mean, variance = gp.moments(gp.features(at))
        return likelihood.expected(part, mean, variance).sum(-1) - 0.5 * at.square().sum(-1)

    start = torch.zeros(rows, latent, dtype=torch.float64)
    few = gauss_newton(start, [view], steps=3, **unit(latent))[0]
    found, curvature = gauss_newton(start, [view], steps=60, **unit(latent))
    assert (objective(few) >= objective(start)).all()
    assert (objective(found) >= objective(few) - 1e-6).all()
    slopes = []
    for at in (start, found):
        at.requires_grad_()
        slopes.append(float(torch.autograd.grad(objective(at).sum(), at)[0].abs().max()))
    assert slopes[1] < 1e-3 * slopes[0]
    assert (torch.linalg.eigvalsh(curvature) >= 1 - 1e-9).all()


@torch.no_grad()
def test_gauss_newton_learns_the_length_of_its_steps_where_full_ones_overshoot():
    """Most rows are at the optimum after eight steps; with steps of length one, shortened when refused, a tenth lacks
    a quarter of a nat."""
    noise, gp, likelihood = 0.05, SparseGP(build_kernel("rbf", 2), normal(60, 15, 2), 8).double(), Gaussian(8).double()
    likelihood.log_noise.fill_(np.log(noise))
    maps = normal(62, 2, 8)
    known = torch.sin(2 * normal(61, 40, 2) @ maps)
    features = gp.features(normal(61, 40, 2))
    weight = torch.full_like(known, 1 / noise)
    gp.natural_step(features, weight * (known - gp.mean_at(features)), weight, scale=1.0, rate=1.0)
    z = normal(63, 60, 2)
    value = torch.sin(2 * z @ maps) + noise**0.5 * normal(64, 60, 8)
    view = View(gp, likelihood, Modality(value, torch.full(value.shape, 2, dtype=torch.int8)), torch.arange(2))

    def objective(steps):
        at = gauss_newton(z + 0.3 * normal(65, 60, 2), [view], steps=steps, **unit(2))[0]
        return likelihood.expected(view.part, *gp.moments(gp.features(at))).sum(-1) - 0.5 * at.square().sum(-1)

    assert (objective(200) - objective(8)).quantile(0.9) < 0.05


@torch.no_grad()
def test_gauss_newton_of_a_row_does_not_depend_on_the_others():
    gp, likelihood = SparseGP(build_kernel("rbf", 2), normal(60, 5, 2), 4).double(), Poisson(4)
    gp.q.natural_mean.copy_(normal(61, 4, 5))
    gp.refresh()
    counts = Modality(torch.poisson(normal(62, 3, 4).abs() * 3), torch.full((3, 4), 2, dtype=torch.int8))
    extreme = Modality(counts.value.clone(), counts.state)
    extreme.value[1:] = 1000.0

    def infer(part):
        view = View(gp, likelihood, part, torch.arange(2))
        return gauss_newton(torch.zeros(3, 2).double(), [view], steps=6, **unit(2))

    torch.testing.assert_close(infer(counts)[0][0], infer(extreme)[0][0])
    assert not torch.allclose(infer(counts)[0][1], infer(extreme)[0][1])


def test_factor_analysis_recovers_the_covariance():
    rows, size, latent = 20_000, 8, 2
    loadings, offset = normal(0, size, latent), normal(1, size)
    psi = 0.1 + 0.4 * torch.rand(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    s = 0.3 * normal(3, rows, size).abs()
    value = normal(4, rows, latent) @ loadings.mT + offset + (psi + s**2).sqrt() * normal(5, rows, size)
    seen = torch.rand(rows, size, generator=torch.Generator().manual_seed(6)) > 0.3
    with torch.no_grad():
        found = fit_factors(torch.where(seen, value, 0.0), s.square(), seen, factors=latent, iterations=100)
    covariance = found.loadings @ found.loadings.mT + torch.diag(found.log_noise.exp())
    truth = loadings @ loadings.mT + torch.diag(psi)
    spread = truth.diagonal().sqrt()
    assert float(((covariance - truth) / (spread[:, None] * spread)).detach().abs().max()) < 0.04
    assert float(((found.offset - offset) / spread).detach().abs().max()) < 0.04
    torch.testing.assert_close(found.log_noise.detach().exp(), psi, rtol=0.1, atol=0.01)


@torch.no_grad()
def test_factor_analysis_survives_a_cell_nobody_saw_and_more_factors_than_cells():
    value, seen = normal(7, 30, 3), torch.ones(30, 3, dtype=torch.bool)
    seen[:, 1] = False
    found = fit_factors(torch.where(seen, value, 0.0), torch.zeros(30, 3), seen, factors=5)
    for tensor in (found.loadings, found.offset, found.log_noise):
        assert torch.isfinite(tensor).all()
    assert float(found.loadings[1].abs().max()) < 1e-6


@torch.no_grad()
def test_factor_posterior_is_bayes_rule_and_the_prior_where_nothing_is_seen():
    w, b, psi = normal(8, 5, 2), normal(9, 5), normal(10, 5).abs() + 0.1
    posterior = FactorPosterior(w, b, psi)
    part = cells(11, 4, 5)
    seen = part.measured.clone()
    seen[3] = False
    mean, precision = posterior(part.value, part.sigma.square(), seen)
    for row in range(4):
        use = seen[row]
        # conditioning the joint Gaussian of (z, y): the dense route
        noise = torch.diag((psi + 1e-4 + part.sigma[row] ** 2)[use])
        gain = torch.linalg.solve(w[use] @ w[use].mT + noise, w[use]).mT
        expected = torch.eye(2, dtype=torch.float64) - gain @ w[use]
        torch.testing.assert_close(mean[row], gain @ (part.value[row] - b)[use])
        torch.testing.assert_close(torch.linalg.inv(precision[row]), expected)
    torch.testing.assert_close(mean[3], torch.zeros(2, dtype=torch.float64))


def test_divergences_sum_to_the_kl_and_marginal_sums_to_a_blocks_own():
    root = triangles(20, 6, 4)
    latent = GaussianLatent(normal(21, 6, 4), root)
    found = latent.divergence()
    for size in (4, 2, 1):  # the leading dimensions are a Gaussian with the leading corner of L
        q = torch.distributions.MultivariateNormal(latent.mean[:, :size], scale_tril=root[:, :size, :size])
        p = torch.distributions.MultivariateNormal(torch.zeros(size).double(), torch.eye(size).double())
        torch.testing.assert_close(found[:, :size].sum(-1), torch.distributions.kl_divergence(q, p))
    covariance = root @ root.mT
    torch.testing.assert_close(latent.std, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    point = GaussianLatent(latent.mean, None)
    torch.testing.assert_close(point.divergence(), 0.5 * latent.mean.square())
    assert not point.std.any()


def test_draws_have_the_mean_and_covariance():
    root = triangles(22, 1, 3)
    latent = GaussianLatent(normal(23, 1, 3), root)
    z = latent.draw(normal(24, 40_000, 1, 3))[:, 0]
    torch.testing.assert_close(z.mean(0), latent.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(z.mT), (root @ root.mT)[0], atol=0.15, rtol=0.05)
    assert torch.equal(GaussianLatent(latent.mean, None).draw(normal(25, 2, 1, 3)), latent.mean.expand(2, 1, 3))


def test_a_precision_matrix_gives_its_inverse():
    root = normal(26, 5, 3, 3)
    precision = root @ root.mT + torch.eye(3)
    factor = from_precision(normal(27, 5, 3), precision).factor
    torch.testing.assert_close(factor @ factor.mT, torch.linalg.inv(precision))
    assert torch.equal(factor, torch.tril(factor))


@torch.no_grad()
@pytest.mark.parametrize("form", ["point", "full", "diagonal"])
def test_local_posteriors_start_where_they_are_put(form):
    root = triangles(28, 7, 3)
    start = GaussianLatent(normal(29, 7, 3), root)
    found = LocalPosterior(start, form)(torch.tensor([4, 1]))
    assert torch.equal(found.mean, start.mean[[4, 1]])
    if form == "point":
        assert found.factor is None
    elif form == "full":
        torch.testing.assert_close(found.factor, root[[4, 1]])
    else:
        diagonal = root.diagonal(dim1=-2, dim2=-1)[[4, 1]]
        torch.testing.assert_close(found.factor, torch.diag_embed(diagonal))


@torch.no_grad()
def test_amortised_posterior_starts_linear_and_keeps_the_prior_where_nothing_is_seen():
    factors = FactorPosterior(normal(30, 5, 2), normal(31, 5), normal(32, 5).abs() + 0.1)
    amortised = AmortisedPosterior(factors, hidden=8).double()
    part = cells(33, 4, 5)
    seen = part.measured.clone()
    seen[2] = False
    arguments = part.value, part.sigma.square(), seen
    expected = from_precision(*factors(*arguments))
    found = amortised(*arguments)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.factor @ found.factor.mT, expected.factor @ expected.factor.mT)
    for layer in amortised.network.parameters():
        layer.add_(0.5)
    bent = amortised(*arguments)
    assert not torch.allclose(bent.mean[0], expected.mean[0])
    torch.testing.assert_close(bent.mean[2], torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(bent.factor[2], torch.eye(2).double(), atol=1e-12, rtol=0)


@torch.no_grad()
def test_more_error_never_narrows_a_linear_posterior():
    factors = FactorPosterior(normal(34, 6, 3), normal(35, 6), normal(36, 6).abs() + 0.1)
    part = cells(37, 5, 6)
    before = from_precision(*factors(part.value, part.sigma.square(), part.measured)).factor
    grown = part.sigma.clone()
    grown[:, 2:4] *= 3
    after = from_precision(*factors(part.value, grown.square(), part.measured)).factor
    change = torch.linalg.eigvalsh(after @ after.mT - before @ before.mT)
    assert np.all(change.numpy() > -1e-12)
    assert change.max() > 1e-4


def test_the_population_prior_becomes_what_the_population_is():
    """Expectation-maximisation through noisy measurements of z, against the generating mean and covariance."""
    rows, latent = 20_000, 3
    a = torch.tensor([1.0, -2.0, 0.5]).double()
    c = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.5, 0.0], [0.0, 0.0, 1.4]]).double()
    noise = torch.tensor([0.3, 0.6, 0.4]).double()
    y = a + normal(70, rows, latent) @ c.mT + noise * normal(71, rows, latent)
    prior = PopulationPrior(latent).double()
    blocks = (torch.tensor([0, 1]), torch.tensor([2]))
    weight = torch.diag(noise**-2)
    for _ in range(60):
        precision = prior.precision() + weight
        mean = torch.linalg.solve(precision, (y @ weight + prior.precision() @ prior.mean)[..., None])[..., 0]
        q = from_precision(mean, precision.expand(rows, -1, -1))
        prior.learn(q, blocks, rate=1.0)
    torch.testing.assert_close(prior.mean, a, rtol=0, atol=0.03)
    torch.testing.assert_close(prior.factor @ prior.factor.mT, c @ c.mT, rtol=0, atol=0.05)
    assert prior.factor[2, :2].abs().max() == 0  # blocks stay independent
    exact = torch.distributions.MultivariateNormal(prior.mean, scale_tril=prior.factor)
    approximate = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor)
    expected = torch.distributions.kl_divergence(approximate, exact)
    torch.testing.assert_close(prior.divergence(q).sum(-1), expected)
