"""vCLUB and InfoNCE of Gaussians, whose information is known."""

import math

import pytest
import torch

from consilience.blocks.information import ConditionalGaussian, Critic, info_nce, kl_parts, vclub
from consilience.blocks.posteriors import DiagonalLatent

ROWS = 40_000


def pair(rho, seed=0, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(rows, 1, generator=generator, dtype=torch.float64)


class Exact(ConditionalGaussian):
    """The conditional of a Gaussian pair."""

    def __init__(self, rho):
        super().__init__(1, 1, 2)
        self.rho = torch.nn.Parameter(torch.tensor(rho, dtype=torch.float64))

    def forward(self, x):
        return self.rho * x, torch.log1p(-self.rho.square()).expand(len(x), 1)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.8])
def test_club_with_the_true_conditional(rho):
    """ρ² / (1 − ρ²), which is above the information."""
    x, y = pair(rho)
    found = float(vclub(Exact(rho), y, x).detach())
    assert found == pytest.approx(rho**2 / (1 - rho**2), abs=0.04)
    assert found > -0.5 * math.log(1 - rho**2) - 0.01


def test_club_is_the_average_over_all_pairs():
    x, y = pair(0.7, rows=40)
    q = ConditionalGaussian(1, 1, 4).double()
    matched = q.log_prob(y, x).mean()
    every = q.log_prob(y.repeat(40, 1), x.repeat_interleave(40, 0)).mean()
    torch.testing.assert_close(vclub(q, y, x), matched - every)


def test_club_moves_latents_and_not_the_conditional():
    x, y = (one.requires_grad_() for one in pair(0.7, rows=40))
    q = ConditionalGaussian(1, 1, 4).double()
    vclub(q, y, x).backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.any()
    assert y.grad.any()
    assert all(parameter.grad is None for parameter in q.parameters())


def test_the_conditional_learns_the_true_one():
    x, y = (one.float() for one in pair(0.8))
    torch.manual_seed(0)
    q = ConditionalGaussian(1, 1, 16)
    optimiser = torch.optim.Adam(q.parameters(), lr=1e-2)
    for _ in range(300):
        rows = torch.randint(len(x), (512,))
        optimiser.zero_grad()
        (-q.log_prob(y[rows], x[rows]).mean()).backward()
        optimiser.step()
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1 - 0.8**2))
    assert float(-q.log_prob(y, x).mean().detach()) == pytest.approx(entropy, abs=0.02)
    assert float(vclub(q, y, x).detach()) == pytest.approx(0.64 / 0.36, rel=0.1)


@pytest.mark.parametrize(("rho", "batch"), [(0.6, 64), (0.95, 64), (0.999, 16)])
def test_info_nce_is_below_the_information_and_the_logarithm_of_the_batch(rho, batch):
    x, y = pair(rho)
    xs, ys = (one.view(-1, batch, 1) for one in (x, y))
    # the best scores are log p(y | x) up to what does not depend on y
    scores = -0.5 * (ys.mT - rho * xs).square() / (1 - rho**2) + 0.5 * ys.mT.square()
    found = float(torch.stack([info_nce(one) for one in scores]).mean())
    information = -0.5 * math.log(1 - rho**2)
    assert found < min(information, math.log(batch)) + 0.02
    assert found > 0.6 * min(information, math.log(batch))


def test_a_critic_scores_all_pairs():
    x, y = (one.float()[:6] for one in pair(0.5, rows=10))
    scores = Critic(1, 1, 8)(x, y)
    assert scores.shape == (6, 6)
    torch.testing.assert_close(Critic(1, 1, 8)(x, y[:2]).shape, torch.Size([6, 2]))


def population(rows, seed=0):
    """Posteriors whose means are correlated, so that q(z) is the Gaussian of covariance C; draws of them."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.tensor([[0.8, 0.0, 0.0], [0.6, 0.5, 0.0], [0.0, 0.3, 0.7]], dtype=torch.float64)
    mean = torch.randn(rows, 3, generator=generator, dtype=torch.float64) @ root.mT
    std = torch.tensor([0.5, 0.3, 0.4], dtype=torch.float64)
    z = mean + std * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return z, DiagonalLatent(mean, std.expand(rows, 3)), root @ root.mT + std.square().diag()


def some(q, rows):
    return DiagonalLatent(q.mean[rows], q.std[rows])


def test_parts_of_the_kl_of_gaussians():
    z, q, covariance = population(4000)
    log_det = float(torch.logdet(covariance))
    index = 0.5 * (log_det - float(2 * q.std[0].log().sum()))
    total = 0.5 * (float(covariance.diagonal().log().sum()) - log_det)
    each = 0.5 * float((covariance.diagonal() - 1 - covariance.diagonal().log()).sum())
    assert total > 0.2
    found = kl_parts(z, q, len(z))
    assert float(found.index) == pytest.approx(index, abs=0.05)
    assert float(found.total) == pytest.approx(total, abs=0.05)
    assert float(found.each) == pytest.approx(each, abs=0.05)


def test_parts_add_up_to_the_kl_of_the_draws():
    z, q, _ = population(50)
    prior = DiagonalLatent(torch.zeros_like(z), torch.ones_like(z))
    expected = (q.log_prob(z) - prior.log_prob(z)).mean()
    for objects in (50, 5000):
        torch.testing.assert_close(sum(kl_parts(z, q, objects)), expected)
    torch.testing.assert_close(sum(kl_parts(z[:1], some(q, slice(1)), 50)), (q.log_prob(z) - prior.log_prob(z))[0])


def test_batches_stand_for_the_table():
    """Parts of batches are on average near those of the whole, and right for one object that fills the table."""
    z, q, _ = population(2000)
    whole = kl_parts(z, q, len(z))
    batches = [kl_parts(z[k : k + 200], some(q, slice(k, k + 200)), len(z)) for k in range(0, len(z), 200)]
    for part, expected in enumerate(whole):
        assert float(torch.stack([one[part] for one in batches]).mean()) == pytest.approx(float(expected), abs=0.12)
