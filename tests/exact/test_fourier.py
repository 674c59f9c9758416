"""Latent trajectories in Fourier coordinates against dense Gaussian processes in time."""

import math

import pytest
import torch

from consilience.blocks.fourier import SPECTRA, FourierPrior, TimePrior, fourier_basis
from consilience.blocks.trajectories import Sites, infer_trajectories
from consilience.errors import SchemaError

KERNELS = {  # of r = lag / length scale
    "rbf": lambda r: torch.exp(-0.5 * r**2),
    "matern12": lambda r: torch.exp(-r),
    "matern32": lambda r: (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r),
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * torch.exp(-math.sqrt(5) * r),
}


def prior(kernels=("rbf",), bins=40, length=(6.0,), variance=(1.0,), made=FourierPrior, **bounds):
    bounds = {"shortest": 2.0, "longest": 10.0} | bounds
    return made(
        kernels, bins, length=torch.tensor(length).double(), variance=torch.tensor(variance).double(), **bounds
    )


def dense(kernel, bins, length):
    lag = (torch.arange(bins)[:, None] - torch.arange(bins)).abs().double()
    return KERNELS[kernel](lag / length)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_sites(seed, rows, bins, latents, *, missing=0.4):
    """Sites of random linear maps of the latents; a part of the bins has none."""
    maps = normal(seed, rows, bins, 2 * latents, latents)
    uniform = torch.rand(rows, bins, generator=torch.Generator().manual_seed(seed))
    maps = torch.where((uniform > missing)[..., None, None], maps, 0.0)
    return Sites((maps.mT @ normal(seed + 1, rows, bins, 2 * latents, 1))[..., 0], maps.mT @ maps)


def stacked(root, sites):
    """The same in time: prior covariance and site precision (T L, T L), and shifts, ordered by latent, then bin."""
    latents, bins, _ = root.shape
    covariance = torch.block_diag(*(root @ root.mT))
    precision = torch.zeros(len(sites.shift), latents, bins, latents, bins).double()
    time = torch.arange(bins)
    precision[:, :, time, :, time] = sites.precision.permute(1, 0, 2, 3)
    size = latents * bins
    return covariance, precision.reshape(-1, size, size), sites.shift.mT.reshape(-1, size)


@pytest.mark.parametrize("circle", [31, 32])
def test_the_basis_is_orthonormal_on_the_circle(circle):
    basis, omega = fourier_basis(circle, circle)
    assert torch.allclose(basis @ basis.mT, torch.eye(circle).double(), atol=1e-12)
    assert torch.allclose(basis.mT @ basis, torch.eye(circle).double(), atol=1e-12)
    assert omega[0] == 0 and bool((omega.diff() >= 0).all()) and omega[-1] <= math.pi


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize(("bins", "length"), [(60, 3.0), (60, 10.0), (60, 15.0), (200, 50.0), (7, 1.7)])
def test_the_covariance_inside_a_trial_is_the_kernels(kernel, bins, length):
    found = prior((kernel,), bins, (0.999 * length,), (2.0,), shortest=0.3 * length, longest=length)
    covariance = (found.root() @ found.root().mT)[0]
    assert (covariance - 2 * dense(kernel, bins, 0.999 * length)).abs().max() < 2e-3


def test_a_short_circle_couples_the_ends_of_a_trial():
    """The reference's circle of 1.2 T bins is wrong by .43 of the variance at T = 60, ℓ = 10."""
    basis, omega = fourier_basis(60, 72)
    spectrum = SPECTRA["rbf"].density(omega, torch.tensor([[10.0]]).double())[0]
    wrong = (basis * spectrum) @ basis.mT - dense("rbf", 60, 10.0)
    assert wrong.abs().max() == pytest.approx(0.43, abs=0.01)


def test_a_periodic_latent_returns_after_each_period_and_is_smooth_between():
    found = prior(("periodic",), 50, (3.0,), (1.5,), shortest=1.0, longest=8.0, period=12)
    lag = (torch.arange(50)[:, None] - torch.arange(50)).double()
    kernel = torch.exp(-2 * (torch.sin(math.pi * lag / 12) * 12 / (2 * math.pi * 3.0)).square())
    root = found.root()[0]
    assert torch.allclose(root @ root.mT, 1.5 * kernel, atol=1e-5)
    # near the diagonal it is the RBF of the same length scale
    near = lag.abs() <= 1
    assert torch.allclose(kernel[near], dense("rbf", 50, 3.0)[near], rtol=0.01)
    assert torch.autograd.gradcheck(lambda *_: found.spectrum(found.omega), tuple(found.parameters()))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_coordinates_of_time_give_the_same_process(kernel):
    found = prior((kernel,), 30, (5.0,), (1.5,), made=TimePrior).root()[0]
    assert torch.allclose(found @ found.mT, 1.5 * dense(kernel, 30, 5.0), atol=3e-6)
    with pytest.raises(SchemaError, match="in time"):
        prior(("white",), made=TimePrior)


def test_smooth_latents_need_few_frequencies_and_white_ones_all():
    smooth = prior(bins=60, length=(10.0,), shortest=5.0, longest=15.0)
    assert smooth.basis.shape[1] < 45
    white = prior(("white",), 60, (10.0,), (1.5,), shortest=5.0, longest=15.0)
    root = white.root()[0]
    assert torch.allclose(root @ root.mT, 1.5 * torch.eye(60).double(), atol=1e-12)


def test_hyperparameters_start_where_asked_stay_in_bounds_and_have_gradients():
    found = prior(("rbf", "matern32"), 30, (4.0, 7.0), (0.5, 2.0))
    assert torch.allclose(found.length, torch.tensor([4.0, 7.0]).double())
    assert torch.allclose(found.variance, torch.tensor([0.5, 2.0]).double())
    assert torch.autograd.gradcheck(lambda *_: found.spectrum(found.omega), tuple(found.parameters()))
    with torch.no_grad():
        found.position.fill_(100.0)
    assert found.length.max() <= 10.0


@pytest.mark.parametrize(
    ("change", "match"),
    [({"kernels": ("rbg",)}, "rbf"), ({"length": (12.0,)}, "longest"), ({"kernels": ("periodic",)}, "period")],
)
def test_bad_settings_are_named(change, match):
    with pytest.raises(SchemaError, match=match):
        prior(**change)


def test_the_posterior_is_that_of_the_process_in_time():
    found = prior(("rbf", "matern52"), 20, (6.0, 3.0), (1.0, 0.4))
    root = found.root().detach()
    sites = some_sites(3, 4, 20, 2)
    q = infer_trajectories(root, sites)
    covariance, precision, shift = stacked(root, sites)
    # (K⁻¹ + P)⁻¹ = K - K (K + P⁻¹)⁻¹ K without inverting either: K (I + P K)⁻¹
    expected = covariance @ torch.linalg.inv(torch.eye(40).double() + precision @ covariance)
    mean = (expected @ shift[..., None])[..., 0].view(4, 2, 20).mT
    assert torch.allclose(q.mean, mean, atol=1e-9)
    time = torch.arange(20)
    at_bins = expected.view(4, 2, 20, 2, 20)[:, :, time, :, time].permute(1, 0, 2, 3)
    assert torch.allclose(q.covariance, at_bins, atol=1e-9)
    # KL(N(m, C) ‖ N(0, K)) = ½ (tr K⁻¹C + mᵀ K⁻¹ m - log |K⁻¹C| - T L), with K⁻¹ C = (I + P K)⁻¹ up to a transpose
    ratio = torch.linalg.inv(torch.eye(40).double() + precision @ covariance)
    weight = ((ratio @ shift[..., None]).mT @ (covariance @ ratio @ shift[..., None]))[:, 0, 0]
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    kl = 0.5 * (trace + weight - torch.linalg.slogdet(ratio)[1] - 40)
    assert torch.allclose(q.divergence().sum(-1), kl, atol=1e-8)


def test_divergence_agrees_with_draws():
    root = prior(bins=12, length=(4.0,)).root().detach()
    q = infer_trajectories(root, some_sites(5, 2, 12, 1))
    v = q.coordinates.draw(normal(6, 40_000, 2, root.shape[2]))
    log_q = torch.distributions.MultivariateNormal(q.coordinates.mean, scale_tril=q.coordinates.factor).log_prob(v)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(v).sum(-1)
    error = (log_q - log_p).std(0) / math.sqrt(len(v))
    assert bool(((log_q - log_p).mean(0) - q.divergence().sum(-1)).abs().lt(5 * error).all())
    z = q.latents(q.coordinates.draw(normal(7, 40_000, 2, root.shape[2])))
    assert torch.allclose(z.var(0)[..., 0], q.covariance[..., 0, 0], rtol=0.08)


def test_the_bound_with_exact_sites_is_the_evidence_of_gaussian_process_factor_analysis():
    """y_t = C z_t + d + noise: the sites are Cᵀ R⁻¹ (y - d) and Cᵀ R⁻¹ C, and the bound is tight."""
    bins, latents, outputs = 15, 2, 5
    root = prior(("rbf", "rbf"), bins, (5.0, 3.0), (1.0, 0.7)).root().detach()
    loadings, noise, y = normal(8, outputs, latents), 0.2 + normal(9, outputs).square(), normal(10, 3, bins, outputs)
    seen = torch.rand(3, bins, outputs, generator=torch.Generator().manual_seed(11)) > 0.3
    weight = torch.where(seen, 1 / noise, 0.0)
    sites = Sites((weight * y) @ loadings, torch.einsum("bto,ol,om->btlm", weight, loadings, loadings))
    q = infer_trajectories(root, sites)
    mean = q.mean @ loadings.mT
    variance = torch.einsum("ol,btlm,om->bto", loadings, q.covariance, loadings)
    expected = -0.5 * (torch.log(2 * math.pi * noise) + ((y - mean).square() + variance) / noise)
    bound = torch.where(seen, expected, 0.0).sum((1, 2)) - q.divergence().sum(-1)
    kernel = root @ root.mT
    for row in range(3):
        full = torch.einsum("ol,lts,pl->tops", loadings, kernel, loadings)
        full = full.permute(0, 1, 3, 2).reshape(bins * outputs, bins * outputs)
        full = full + torch.diag_embed(noise.repeat(bins))
        keep = seen[row].reshape(-1)
        evidence = torch.distributions.MultivariateNormal(torch.zeros(int(keep.sum())).double(), full[keep][:, keep])
        assert bound[row].item() == pytest.approx(evidence.log_prob(y[row].reshape(-1)[keep]).item(), abs=1e-8)


def test_the_diagonal_posterior_is_the_mean_field_optimum_and_too_narrow_in_gaps():
    root = prior(bins=40, length=(8.0,)).root().detach()
    sites = some_sites(12, 1, 40, 1, missing=0.0)
    sites.precision[:, 10:30], sites.shift[:, 10:30] = 0, 0
    exact, q = infer_trajectories(root, sites), infer_trajectories(root, sites, diagonal=True)
    assert torch.equal(q.mean, exact.mean)
    precision = torch.linalg.inv(exact.coordinates.factor @ exact.coordinates.factor.mT)[0]

    def objective(log_std):
        std = log_std.exp()
        return 0.5 * (std.square() * precision.diagonal()).sum() - log_std.sum()

    slope = torch.func.grad(objective)(q.coordinates.factor[0].diagonal().log())
    assert slope.abs().max() < 1e-8
    assert (q.covariance / exact.covariance)[0, 20].sqrt() < 0.65


def test_nothing_seen_gives_the_prior_and_experts_add():
    root = prior(bins=10, length=(4.0,)).root().detach()
    one, nothing = some_sites(13, 2, 10, 1), Sites(torch.zeros(2, 10, 1).double(), torch.zeros(2, 10, 1, 1).double())
    q = infer_trajectories(root, nothing)
    assert torch.equal(q.mean, torch.zeros_like(q.mean)) and q.divergence().abs().max() < 1e-12
    assert torch.allclose(q.covariance[..., 0, 0], root.square().sum(-1)[0].expand(2, 10))
    both, alone = infer_trajectories(root, one + nothing), infer_trajectories(root, one)
    assert torch.equal(both.mean, alone.mean)
    twice = infer_trajectories(root, one + one)
    assert bool((twice.covariance < alone.covariance).any())
