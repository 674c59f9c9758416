"""Local coordinates of long trials: the same processes and the same posteriors as dense algebra gives."""

import pytest
import torch

import consilience as cs
from consilience.blocks.fourier import KERNELS, FourierPrior
from consilience.blocks.local import LocalTrajectories, infer_local
from consilience.blocks.trajectories import Sites, Trajectories, infer_trajectories
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema

BINS = 130


def prior(kernels=("rbf", "rbf"), bins=BINS, length=(4.0, 3.0), **options):
    scales = {
        "length": torch.tensor(length),
        "shortest": 1.0,
        "longest": 8.0,
        "variance": torch.tensor([1.0, 0.7][: len(length)]),
    }
    return FourierPrior(kernels, bins, **scales | options).double()


def sites(rows=3, bins=BINS, latents=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(rows, bins, latents, latents, generator=generator, dtype=torch.float64)
    shift = 3 * torch.randn(rows, bins, latents, generator=generator, dtype=torch.float64)
    seen = torch.ones(bins, 1, dtype=torch.float64)
    seen[40:60] = 0
    return Sites(shift * seen, half @ half.mT * seen[..., None])


def dense_root(root):
    """Φ of all coordinates as one matrix for each latent, (L, T, K)."""
    blocks = root.windows + 1
    each = torch.eye(blocks * root.block, dtype=torch.float64)
    return root.latents(each.view(len(each), blocks, root.block)).permute(2, 1, 0)


@torch.no_grad()
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("length", [3.0, 4.7])
def test_bumps_add_up_to_the_kernel(kernel, length):
    found = prior((kernel,), length=(length,))
    root = found.local_root()
    phi = dense_root(root)[0]
    lag = (torch.arange(BINS)[:, None] - torch.arange(BINS)).abs().double()
    assert (phi @ phi.mT - KERNELS[kernel](lag / length)).abs().max() < 5e-4
    torch.testing.assert_close(root.variance()[:, 0], phi.square().sum(-1))
    torch.testing.assert_close(found.marginals(), root.variance())


@torch.no_grad()
def test_without_dynamics_every_bin_is_its_own():
    phi = dense_root(prior(("white",), length=(4.0,)).local_root())[0]
    torch.testing.assert_close(phi @ phi.mT, torch.eye(BINS, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("bins", [128, 130])
def test_the_posterior_is_that_of_dense_algebra_and_so_are_its_slopes(bins):
    """In the same coordinates, whether or not the last window is full."""
    found, some = prior(bins=bins), sites(bins=bins)
    answers = []
    for infer in (infer_local, lambda root, s: infer_trajectories(dense_root(root), s)):
        one = Sites(some.shift.clone().requires_grad_(), some.precision.clone().requires_grad_())
        q = infer(found.local_root(), one)
        values = [q.mean, q.covariance, q.divergence().sum(-1), q.variance]
        generator = torch.Generator().manual_seed(1)
        total = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
        inputs = [one.shift, one.precision, *found.parameters()]
        along, across, *rest = torch.autograd.grad(total, inputs)
        answers.append([*values, along, across + across.mT, *rest])
    for fast, slow in zip(*answers, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_it_is_that_of_fourier_coordinates():
    found, some = prior(), sites()
    fast, slow = infer_local(found.local_root(), some), infer_trajectories(found.root(), some)
    assert isinstance(found.posterior(some), LocalTrajectories)
    assert isinstance(found.posterior(some, diagonal=True), Trajectories)
    torch.testing.assert_close(fast.mean, slow.mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(fast.covariance, slow.covariance, atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.divergence().sum(-1), slow.divergence().sum(-1), atol=3e-3, rtol=0)


@torch.no_grad()
def test_draws_have_the_posterior_mean_and_covariance():
    q = infer_local(prior().local_root(), sites(rows=1))
    normal = torch.randn(4000, *q.coordinates.mean.shape, generator=torch.Generator().manual_seed(2)).double()
    z = q.latents(q.coordinates.draw(normal))[:, 0].flatten(1)
    half = q.half()[0].flatten(0, 1)
    covariance = half @ half.mT
    torch.testing.assert_close(half.square().sum(-1), q.variance[0].flatten())
    assert ((z.mean(0) - q.mean[0].flatten()).abs() < 5 * (q.variance[0].flatten() / len(z)).sqrt()).all()
    assert (torch.cov(z.T) - covariance).abs().max() < 6 * covariance.diagonal().max() / len(z) ** 0.5


@torch.no_grad()
def test_a_trial_has_the_same_bits_whatever_stands_beside_it():
    found, some = prior(), sites(rows=5)
    whole = found.posterior(some)
    order = torch.tensor([3, 1])
    few = found.posterior(Sites(some.shift[order], some.precision[order]))
    assert torch.equal(few.mean, whole.mean[order])
    assert torch.equal(few.covariance, whole.covariance[order])


def test_a_long_trial_is_answered_as_in_time():
    """Means, draws and densities of the family."""
    schema = Schema(modalities=(ModalitySpec(name="calcium", shape=(BINS, 3), scale="none"),))
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(3, BINS, 3, generator=generator).double().numpy()
    obs = Observations.from_arrays(schema, {"calcium": value}).hide_cells({"calcium": value > 1.5})
    batch = Scaler.fit(obs).forward(obs).to(dtype=torch.float64)
    found = []
    for coordinates in ("fourier", "time"):
        model = cs.GPVAE(shared=2, length=4.0, coordinates=coordinates).build(schema, 3, 0).double()
        assert getattr(model.prior, "long", False) == (coordinates == "fourier")
        with torch.no_grad():
            model.weights["calcium"].copy_(torch.randn(3, 2, generator=torch.Generator().manual_seed(4)))
        latent = model.condition(batch).latent()["shared"]
        terms = model.terms(batch, batch)
        draws = latent.draw(torch.randn(2000, 3, BINS, 2, generator=torch.Generator().manual_seed(5)).double())
        density = model.condition(batch[:1]).log_prob(batch[:1], ("calcium",), None)
        found.append((latent.mean, latent.std, -sum(t.value for t in terms.values()), draws, density.value))
    for fast, slow, atol in zip(found[0], found[1], (1e-3, 1e-4, 0.1, None, 0.1), strict=True):
        if atol is None:
            torch.testing.assert_close(fast.std(0), slow.std(0), atol=0.1, rtol=0.1)
        else:
            torch.testing.assert_close(fast, slow, atol=atol, rtol=0)
