"""The sparse GP against GPyTorch, the exact GP and Titsias' collapsed bound, all in float64."""

import math

import numpy as np
import pytest
import torch

from consilience.blocks.gp import JITTER, SparseGP
from consilience.blocks.inducing import Features, inverse
from consilience.blocks.kernels import RBF, build_kernel
from consilience.blocks.likelihoods import Gaussian
from consilience.data.observations import Modality, State


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def spread_out(latent, size, seed):
    """Inducing inputs far enough apart that the jitter does not matter."""
    return 2 * normal(seed, size, latent)


def random_gp(seed, latent, size, outputs):
    """A sparse GP with random hyper-parameters and a random q(v) of full covariance."""
    gp = SparseGP(RBF(latent), spread_out(latent, size, seed), outputs).double()
    with torch.no_grad():
        gp.kernel.log_lengthscale.copy_(0.3 * normal(seed + 1, latent))
        gp.kernel.log_variance.fill_(0.4)
        gp.constant.copy_(normal(seed + 2, outputs))
        root = 0.5 * normal(seed + 3, outputs, size, size)
        precision = root @ root.mT + torch.eye(size, dtype=torch.float64)
        gp.q.set_natural(precision, normal(seed + 4, outputs, size))
        torch.testing.assert_close(gp.q.natural_precision, precision)
    return gp


def random_cells(seed, rows, outputs):
    """Cells of which a third is missing, each measured one with its own error bar."""
    seen = torch.rand(rows, outputs, generator=generator(seed)) > 0.35
    value = torch.where(seen, normal(seed + 1, rows, outputs), 0.0)
    sigma = torch.where(seen, 0.1 + torch.rand(rows, outputs, generator=generator(seed + 2), dtype=torch.float64), 1.0)
    state = torch.where(seen, int(State.MEASURED), int(State.UNSEEN)).to(torch.int8)
    return Modality(value, state, sigma)


def random_likelihood(seed, outputs):
    likelihood = Gaussian(outputs).double()
    with torch.no_grad():
        likelihood.log_noise.copy_(-1.5 + 0.5 * normal(seed, outputs))
    return likelihood


def bound(gp, likelihood, z, part, scale):
    mean, variance = gp.moments(gp.features(z))
    return scale * likelihood.expected(part, mean, variance).sum() - gp.divergence().sum()


def peer_bound(gp, likelihood, z, part, scale):
    """The same bound by GPyTorch's whitened variational strategy, with the same jitter."""
    import gpytorch
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    outputs, size = gp.q.mean.shape
    batch = torch.Size([outputs])

    class Peer(gpytorch.models.ApproximateGP):
        def __init__(self):
            q = CholeskyVariationalDistribution(size, batch_shape=batch)
            jitter = JITTER * float(gp.kernel.log_variance.detach().exp())
            points = gp.inducing.detach()
            super().__init__(
                VariationalStrategy(self, points, q, learn_inducing_locations=True, jitter_val=jitter)
            )
            self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch)
            base = gpytorch.kernels.RBFKernel(ard_num_dims=z.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(base)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    peer = Peer().double()
    with torch.no_grad():
        peer.covar_module.base_kernel.lengthscale = gp.kernel.log_lengthscale.exp()
        peer.covar_module.outputscale = gp.kernel.log_variance.exp()
        peer.mean_module.constant.copy_(gp.constant)
        q = peer.variational_strategy._variational_distribution
        q.variational_mean.copy_(gp.q.mean)
        q.chol_variational_covar.copy_(torch.linalg.cholesky(torch.linalg.inv(gp.q.natural_precision)))
        peer.variational_strategy.variational_params_initialized.fill_(1)
    peer.train()
    found = peer(z.expand(outputs, *z.shape))
    tau = likelihood.learned() + part.sigma.square()
    mean, variance = found.mean.mT, found.variance.mT
    expected = -0.5 * (torch.log(2 * math.pi * tau) + ((part.value - mean) ** 2 + variance) / tau)
    value = scale * expected[part.measured].sum() - peer.variational_strategy.kl_divergence().sum()
    return value, peer


@pytest.mark.parametrize(
    ("seed", "latent", "size", "outputs", "rows", "scale"),
    [(10, 1, 6, 4, 20, 1.0), (20, 3, 15, 7, 30, 8.5), (30, 5, 40, 11, 16, 100.0)],
)
def test_bound_and_gradients_equal_gpytorchs(seed, latent, size, outputs, rows, scale):
    gp, part = random_gp(seed, latent, size, outputs), random_cells(seed + 5, rows, outputs)
    likelihood, z = random_likelihood(seed + 8, outputs), normal(seed + 9, rows, latent)
    ours = bound(gp, likelihood, z, part, scale)
    theirs, peer = peer_bound(gp, likelihood, z, part, scale)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
    ours.backward()
    theirs.backward()
    at = peer.variational_strategy.inducing_points.grad
    assert at is not None
    torch.testing.assert_close(gp.inducing.grad, at, rtol=1e-3, atol=1e-3 * float(at.abs().max()))
    torch.testing.assert_close(gp.constant.grad, peer.mean_module.constant.grad, rtol=1e-6, atol=1e-6)


def test_full_batch_step_of_rate_one_is_the_collapsed_optimum():
    latent, size, outputs, rows = 2, 8, 3, 40
    gp = random_gp(1, latent, size, outputs)
    part, likelihood = random_cells(50, rows, outputs), random_likelihood(51, outputs)
    z = spread_out(latent, rows, 52)
    features = gp.features(z)
    _, g, h = likelihood.slopes(part, *gp.moments(features))
    gp.natural_step(features, g, -2 * h, scale=1.0, rate=1.0)

    inputs = gp.inducing.detach()
    k_uu = gp.kernel(inputs, inputs).detach().numpy()
    k_uu = k_uu + JITTER * np.diag(k_uu).mean() * np.eye(size)
    k_uf = gp.kernel(inputs, z).detach().numpy()
    k_ff = gp.kernel(z, z).detach().numpy()
    lower = np.linalg.cholesky(k_uu)
    tau = (likelihood.learned() + part.sigma.square()).detach().numpy()
    total = 0.0
    for d in range(outputs):
        seen = part.measured[:, d].numpy()
        y = part.value[seen, d].numpy() - float(gp.constant[d].detach())
        some, noise = k_uf[:, seen], tau[seen, d]
        # Titsias (2009): q(u) = N(K_uu Σ K_uf T⁻¹ y, K_uu Σ K_uu), Σ = (K_uu + K_uf T⁻¹ K_fu)⁻¹
        middle = np.linalg.inv(k_uu + (some / noise) @ some.T)
        mean, covariance = k_uu @ middle @ (some / noise) @ y, k_uu @ middle @ k_uu
        np.testing.assert_allclose(lower @ gp.q.mean[d].numpy(), mean, rtol=1e-6, atol=1e-8)
        ours = lower @ np.linalg.inv(gp.q.natural_precision[d].numpy()) @ lower.T
        np.testing.assert_allclose(ours, covariance, rtol=1e-6, atol=1e-8)
        nystrom = some.T @ np.linalg.solve(k_uu, some)
        evidence = nystrom + np.diag(noise)
        total += -0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(evidence)[1] + y @ np.linalg.solve(evidence, y))
        total -= 0.5 * ((np.diag(k_ff)[seen] - np.diag(nystrom)) / noise).sum()
    assert float(bound(gp, likelihood, z, part, 1.0).detach()) == pytest.approx(total, rel=1e-8)


@pytest.mark.parametrize("kernel", ["rbf", "matern52", "linear+rbf"])
@torch.no_grad()
def test_inducing_inputs_at_the_data_give_the_exact_gp(kernel):
    rows, latent = 15, 2
    z, new = spread_out(latent, rows, 3), spread_out(latent, 10, 4)
    gp = SparseGP(build_kernel(kernel, latent), z, 1).double()
    part = Modality(normal(5, rows, 1), torch.full((rows, 1), 2, dtype=torch.int8), 0.1 + normal(6, rows, 1).abs())
    likelihood = random_likelihood(7, 1)
    features = gp.features(z)
    _, g, h = likelihood.slopes(part, *gp.moments(features))
    gp.natural_step(features, g, -2 * h, scale=1.0, rate=1.0)
    mean, variance = gp.moments(gp.features(new))

    tau = (likelihood.learned() + part.sigma.square())[:, 0]
    gram = gp.kernel(z, z) + torch.diag(tau)
    across = gp.kernel(new, z)
    exact_mean = across @ torch.linalg.solve(gram, part.value[:, 0])
    exact_variance = gp.kernel.diagonal(new) - (across * torch.linalg.solve(gram, across.mT).mT).sum(-1)
    torch.testing.assert_close(mean[:, 0], exact_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance[:, 0], exact_variance, rtol=1e-4, atol=1e-4)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(tau), gram).log_prob(part.value[:, 0])
    assert float(bound(gp, likelihood, z, part, 1.0).detach()) == pytest.approx(float(evidence), rel=1e-4)


def test_small_rates_reach_the_same_optimum_in_small_batches():
    gp, part = random_gp(1, 2, 6, 2), random_cells(60, 24, 2)
    likelihood, z = random_likelihood(61, 2), normal(62, 24, 2)
    for _ in range(2):  # the second step starts at the optimum: nothing moves
        before = gp.q.natural_precision.clone(), gp.q.natural_mean.clone()
        features = gp.features(z)
        _, g, h = likelihood.slopes(part, *gp.moments(features))
        gp.natural_step(features, g, -2 * h, scale=1.0, rate=1.0)
    torch.testing.assert_close(gp.q.natural_precision, before[0])
    torch.testing.assert_close(gp.q.natural_mean, before[1])
    optimum = gp.q.natural_precision.clone(), gp.q.natural_mean.clone()
    # halves of the batch with twice the scale: their average is the full step
    moved = torch.zeros_like(optimum[0]), torch.zeros_like(optimum[1])
    for half in (slice(0, 12), slice(12, 24)):
        gp.q.set_natural(*optimum)
        features = gp.features(z[half])
        _, g, h = likelihood.slopes(part[half], *gp.moments(features))
        gp.natural_step(features, g, -2 * h, scale=2.0, rate=0.3)
        moved = moved[0] + 0.5 * gp.q.natural_precision, moved[1] + 0.5 * gp.q.natural_mean
    torch.testing.assert_close(moved[0], optimum[0])
    torch.testing.assert_close(moved[1], optimum[1])


@pytest.mark.parametrize(("size", "outputs"), [(1, 3), (2, 20), (5, 3), (8, 50)])
def test_moments_and_divergence_equal_their_definitions(size, outputs):
    gp = random_gp(2, 2, size, outputs)
    z = normal(70, 7, 2)
    covariance = torch.linalg.inv(gp.q.natural_precision)
    mean_v = (covariance @ gp.q.natural_mean[..., None])[..., 0]
    a = gp.features(z).a
    mean, variance = gp.moments(gp.features(z))
    torch.testing.assert_close(mean, gp.constant + a @ mean_v.mT)
    full = (gp.kernel.diagonal(z) - a.square().sum(-1))[:, None] + torch.einsum("nm,dmk,nk->nd", a, covariance, a)
    torch.testing.assert_close(variance, full)
    q = torch.distributions.MultivariateNormal(mean_v, covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros_like(mean_v), torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(gp.divergence(), torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize("size", [1, 2, 7, 30, 31, 64, 121])
def test_inverse_and_log_determinant(size):
    root = normal(size, 4, size, size)
    matrix = root @ root.mT + torch.eye(size, dtype=torch.float64)
    found, log_determinant = inverse(matrix)
    torch.testing.assert_close(found, torch.linalg.inv(matrix), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_determinant, torch.linalg.slogdet(matrix)[1])


@pytest.mark.parametrize("size", [5, 50])
def test_an_indefinite_matrix_has_no_inverse(size):
    matrix = torch.eye(size, dtype=torch.float64).repeat(3, 1, 1)
    matrix[1, size - 1, size - 1] = -1.0
    _, log_determinant = inverse(matrix)
    assert torch.isnan(log_determinant).tolist() == [False, True, False]


def test_a_precision_that_float32_cannot_invert_is_inverted_in_float64():
    gp = SparseGP(RBF(1), torch.linspace(-1, 1, 2)[:, None], 1)
    precision = torch.tensor([[[1e7 + 1, 1e7], [1e7, 1e7]]])  # exact in float32, its factor is not
    assert torch.isnan(inverse(precision)[1]).all()
    gp.q.set_natural(precision, torch.zeros(1, 2))
    wide = gp.q.natural_precision.double()
    torch.testing.assert_close(gp.q.log_determinant.double(), torch.linalg.slogdet(wide)[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gp.q.trace.double(), torch.linalg.inv(wide)[0].trace()[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "linear", "matern32", "linear+rbf", "rbf*periodic"])
def test_slopes_equal_reverse_differentiation(kernel):
    gp = SparseGP(build_kernel(kernel, 3), spread_out(3, 6, 80), 2).double()
    gp.q.set_natural(torch.eye(6).repeat(2, 1, 1), normal(82, 2, 6))
    z, vectors, rows = normal(81, 5, 3), normal(83, 5, 6), torch.arange(5)
    with torch.no_grad():
        means, along = gp.slopes(z, vectors, gp.root())
        diagonals = gp.kernel.diagonal_slope(z).mT
    # (B, D, B, Q) and the like: block diagonal
    dense = torch.func.jacrev(lambda at: gp.mean_at(gp.features(at)))(z)
    torch.testing.assert_close(means, dense[rows, :, rows].mT, rtol=1e-6, atol=1e-8)
    dense = torch.func.jacrev(lambda at: (gp.features(at).a * vectors).sum(-1))(z)
    torch.testing.assert_close(along, dense[rows, rows], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(diagonals, torch.func.jacrev(gp.kernel.diagonal)(z)[rows, rows], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("outputs", [5, 70], ids=["dense", "packed"])
def test_variances_and_their_slopes(outputs):
    gp = random_gp(90, 2, 6, outputs)
    a = normal(91, 4, 6).requires_grad_()
    expected = torch.einsum("nm,dmk,nk->nd", a, torch.linalg.inv(gp.q.natural_precision), a)
    quadratic = gp.q.quadratic(Features(a, a[:, 0]))
    torch.testing.assert_close(quadratic, expected)
    weight = normal(92, 4, outputs)
    found, right = (torch.autograd.grad((q * weight).sum(), a)[0] for q in (quadratic, expected))
    torch.testing.assert_close(found, right)
