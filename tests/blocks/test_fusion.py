"""Products and mixtures of experts, against closed forms and enumeration."""

import itertools

import numpy as np
import pytest
import torch

from consilience.blocks.fusion import DiagonalExperts, FullExperts, sets_of_experts, some_others
from consilience.blocks.posteriors import DiagonalLatent, MixtureLatent

MEMBERS, ROWS, SIZE = 3, 5, 2


def experts(seed=0, *, plain=False):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(MEMBERS, ROWS, SIZE, generator=generator, dtype=torch.float64)
    precision = torch.rand(MEMBERS, ROWS, SIZE, generator=generator, dtype=torch.float64) + 0.1
    return DiagonalExperts(shift, precision, plain)


def everyone(chosen=True):
    return torch.full((MEMBERS, ROWS), chosen)


def test_a_product_is_the_normalised_product_of_densities():
    one = experts()
    q = one.product(everyone())
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for row, latent in itertools.product(range(ROWS), range(SIZE)):
        log_density = -0.5 * z**2
        for k in range(MEMBERS):
            log_density = log_density + one.shift[k, row, latent] * z - 0.5 * one.precision[k, row, latent] * z**2
        density = log_density.exp() / log_density.exp().sum()
        mean = (density * z).sum()
        assert float(q.mean[row, latent]) == pytest.approx(float(mean), abs=1e-8)
        assert float(q.std[row, latent]) == pytest.approx(float((density * (z - mean) ** 2).sum().sqrt()), rel=1e-8)


def test_without_experts_there_is_the_prior():
    for plain in (False, True):
        q = experts(plain=plain).product(everyone(False))
        torch.testing.assert_close(q.mean, torch.zeros_like(q.mean), rtol=0, atol=0)
        some = DiagonalExperts(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), plain)
        assert float(some.product(torch.ones(1, 1, dtype=torch.bool)).std) == 1.0


def test_a_plain_product_leaves_the_prior_out():
    one = experts(plain=True)
    q = one.product(everyone())
    torch.testing.assert_close(q.std.square(), 1 / one.precision.sum(0), rtol=1e-4, atol=0)


def test_full_experts_with_diagonal_matrices_are_diagonal_ones():
    one = experts()
    full = FullExperts(one.shift, torch.diag_embed(one.precision))
    chosen = torch.tensor([[True, False, True, True, False]] * MEMBERS)
    for found, expected in ((full.product(chosen), one.product(chosen)),):
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.std, expected.std)
        torch.testing.assert_close(found.divergence().sum(-1), expected.divergence().sum(-1))


@pytest.mark.parametrize(("fusion", "count"), [("product", 1), ("mixture", 3), ("mixture-of-products", 7)])
def test_the_sets_of_a_fusion(fusion, count):
    seen = torch.tensor([[True, True, False, False], [True, False, False, True], [True, True, False, False]])
    members, weight = sets_of_experts(fusion, seen)
    assert members.shape == (count, 3, 4)
    torch.testing.assert_close(weight.sum(0), torch.ones(4))
    for row in range(4):
        there = [k for k in range(3) if seen[k, row]]
        sets = {tuple(k for k in range(3) if members[s, k, row]) for s in range(count) if weight[s, row] > 0}
        if not there:
            expected = {()}
        elif fusion == "product":
            expected = {tuple(there)}
        else:
            sizes = [1] if fusion == "mixture" else range(1, len(there) + 1)
            expected = {c for size in sizes for c in itertools.combinations(there, size)}
        assert sets == expected
        alike = weight[weight[:, row] > 0, row]
        torch.testing.assert_close(alike, torch.full_like(alike, 1 / len(expected)))


def test_some_others_leave_oneself_out_and_are_never_none_of_several():
    seen = torch.tensor([[True] * 400, [True] * 200 + [False] * 200, [True] * 400, [True] * 400])
    torch.manual_seed(0)
    every = some_others(seen)
    assert not every.diagonal().any()
    others = every[0]
    assert not (others & ~seen).any()
    assert others.any(0).all()
    # one surely, each further one with one half: with three others 2/3 each, with two 3/4
    np.testing.assert_allclose(others[1:, :200].float().mean(1), 2 / 3, atol=0.12)
    np.testing.assert_allclose(others[2:, 200:].float().mean(1), 3 / 4, atol=0.12)
    assert not some_others(seen[:1]).any()
    assert (some_others(seen[:2]).flatten(0, 1) == torch.stack([~seen[0], seen[1], seen[0], ~seen[0]])).all()


def test_draws_of_a_mixture_have_its_moments_and_components():
    weight = torch.tensor([[0.2, 1.0], [0.5, 0.0], [0.3, 0.0]], dtype=torch.float64)
    means = torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64)[:, None, None] * torch.ones(3, 2, 2)
    q = MixtureLatent(weight, means, torch.tensor([0.3, 0.3, 0.2]).double()[:, None, None] * torch.ones(3, 2, 2))
    normal = torch.randn(40_000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = q.draw(normal)
    torch.testing.assert_close(z.mean(0), q.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(z.std(0), q.std, rtol=0.02, atol=0)
    near = ((z[:, 0, :, None] - torch.tensor([-4.0, 0.0, 5.0])).abs() < 2).double()
    torch.testing.assert_close(near[:, 0].mean(0), weight[:, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(near[:, 0], near[:, 1])  # all latents of a draw are of one component
    inside = z[:, 0, 0][near[:, 0, 0] > 0]
    assert float(inside.std()) == pytest.approx(0.3, rel=0.05)
    first = q.block(torch.tensor([1]))
    torch.testing.assert_close(first.mean, q.mean[:, 1:])
    torch.testing.assert_close(first.std, q.std[:, 1:])


def test_a_diagonal_posterior_is_a_gaussian_one():
    q = DiagonalLatent(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.5, 2.0]]))
    other = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.std), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(q.divergence(), other)
    torch.testing.assert_close(q.draw(torch.ones(3, 1, 2)), (q.mean + q.std).expand(3, 1, 2))
    torch.testing.assert_close(q.block(torch.tensor([1])).mean, q.mean[:, 1:])
