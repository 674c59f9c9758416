"""Length scales and variances learn from q what they would from the evidence, in all three kinds of coordinates."""

import pytest
import torch

from consilience.blocks.fourier import FourierPrior, TimePrior
from consilience.blocks.local import LocalTrajectories
from consilience.blocks.trajectories import Sites, Trajectories

SHORT, LONG = 40, 300


def some_sites(bins, seed=0, rows=2, latents=2):
    generator = torch.Generator().manual_seed(seed)
    z = 0.2 * torch.randn(rows, bins, latents, generator=generator, dtype=torch.float64).cumsum(1)
    half = 0.7 * torch.randn(rows, bins, latents, latents, generator=generator, dtype=torch.float64)
    seen = (torch.rand(rows, bins, generator=generator, dtype=torch.float64) < 0.6)[..., None, None]
    precision = torch.where(seen, half @ half.mT, 0.0)
    return Sites((precision @ z[..., None])[..., 0], precision)


def evidence(root, sites):
    """Log of the mean of the sites over the prior, by dense algebra in the bins, (B,)."""
    covariance = torch.stack([torch.block_diag(*(phi[t : t + 1] for phi in root)) for t in range(root.shape[1])])
    phi = covariance.flatten(0, 1)  # (T L, L F), bins first
    found = []
    for shift, precision in zip(sites.shift, sites.precision, strict=True):
        wide = torch.block_diag(*precision)
        total = torch.eye(phi.shape[1], dtype=phi.dtype) + phi.mT @ wide @ phi
        along = phi.mT @ shift.flatten()
        found.append(0.5 * along @ torch.linalg.solve(total, along) - 0.5 * torch.logdet(total))
    return torch.stack(found)


@pytest.mark.parametrize("kernel", ["rbf", "matern32"])
@pytest.mark.parametrize(
    ("made", "bins", "kind"),
    [(FourierPrior, SHORT, Trajectories), (TimePrior, SHORT, Trajectories), (FourierPrior, LONG, LocalTrajectories)],
)
def test_the_slope_of_the_expected_log_prior_is_that_of_the_evidence(kernel, made, bins, kind):
    length, variance = torch.tensor([5.0, 4.0]), torch.tensor([1.0, 0.6])
    prior = made([kernel] * 2, bins, length=length, shortest=2.0, longest=9.0, variance=variance).double()
    sites = some_sites(bins)
    q = prior.posterior(sites)
    assert isinstance(q, kind)
    learned = prior.expected_log(q)
    assert learned.shape == (2, 2)
    parameters = [prior.position, prior.stretch]
    for row in range(2):
        found = torch.autograd.grad(learned[row].sum(), parameters, retain_graph=True)
        wanted = torch.autograd.grad(evidence(prior.root(), sites)[row], parameters)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_q_does_not_move_with_the_scales():
    """Nor do they follow what an encoder makes of q: the slope of the divergence along the sites alone is left."""
    for made, bins in ((FourierPrior, SHORT), (TimePrior, SHORT), (FourierPrior, LONG)):
        one = torch.ones(1)
        prior = made(["rbf"], bins, length=5 * one, shortest=2.0, longest=9.0, variance=one).double()
        sites = some_sites(bins, latents=1)
        shift = sites.shift.requires_grad_()
        q = prior.posterior(Sites(shift, sites.precision))
        divergence = q.divergence().sum()
        slopes = torch.autograd.grad(divergence, [shift, *prior.parameters()], allow_unused=True)
        assert slopes[0].abs().max() > 0
        assert slopes[1] is None
        assert slopes[2] is None
