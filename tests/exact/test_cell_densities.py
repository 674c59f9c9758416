"""Mixtures of cells against quadrature and Bayes's rule; one cell after the other against all at once."""

import numpy as np
import pytest
import torch

from consilience.blocks.cell_densities import CellDensities, Mixture
from consilience.blocks.cell_network import CellNetwork, averaged_copy
from consilience.blocks.linear_denoising import LEAST, LinearDenoiser

GRID = torch.linspace(-8, 8, 8001, dtype=torch.float64)
THREE = Mixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(),
    torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64),
    torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64),
)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.2, -0.2], [0.3, -0.2, 0.7]], dtype=torch.float64)


def density(mixture, error=0.0):
    return mixture.log_prob(GRID, torch.full_like(GRID, error)).exp()


def test_densities_integrate_to_one_and_errors_widen_them():
    step = float(GRID[1] - GRID[0])
    for error in (0.0, 0.7):
        assert float(density(THREE, error).sum()) * step == pytest.approx(1, abs=1e-9)
    kernel = torch.distributions.Normal(*torch.tensor([0.0, 0.7], dtype=torch.float64)).log_prob(0.9 - GRID).exp()
    expected = float((density(THREE) * kernel).sum()) * step
    found = THREE.log_prob(torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    assert float(found.exp()) == pytest.approx(expected, rel=1e-8)


def test_the_truth_given_its_measurement_is_by_bayes():
    value, error = torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    product = density(THREE) * torch.distributions.Normal(value, error).log_prob(GRID).exp()
    expected = product / (product.sum() * (GRID[1] - GRID[0]))
    np.testing.assert_allclose(density(THREE.given(value, error)).numpy(), expected.numpy(), atol=1e-9)


def test_draws_have_the_quantiles_of_the_density():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(100_000, generator=generator, dtype=torch.float64)
    normal = torch.randn(100_000, generator=generator, dtype=torch.float64)
    draws = Mixture(*(part.expand(100_000, -1) for part in THREE)).draw(uniform, normal).sort().values
    below = (density(THREE).cumsum(0) * (GRID[1] - GRID[0])).numpy()
    reached = np.interp(draws.numpy(), GRID.numpy(), below)
    assert np.abs(reached - (np.arange(100_000) + 0.5) / 100_000).max() < 1.63 / 100_000**0.5  # Kolmogorov's 1 %


def linear():
    made = LinearDenoiser(3).double()
    made.middle.copy_(torch.tensor([0.5, -1.0, 2.0]))
    made.covariance.copy_(COVARIANCE)
    return made


def test_the_chain_is_the_gaussians_own_and_its_densities_add_up():
    """The first is given, the others are asked for in turn, of which the second is measured with an error."""
    net = linear()
    y = torch.tensor([[0.1, 0.4, 1.0]], dtype=torch.float64)
    level = torch.tensor([[0.3, 0.5, 0.002]], dtype=torch.float64)
    given, asked = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    chain = net.chain(level, given, asked)
    mean = net.middle + chain.means(y - net.middle)
    total = COVARIANCE + torch.diag(level[0].square() + LEAST)
    joint = torch.distributions.MultivariateNormal(net.middle, total).log_prob(y)[0]
    first = torch.distributions.Normal(net.middle[0], total[0, 0].sqrt()).log_prob(y[0, 0])
    spread = (chain.spread.square() + level.square()).sqrt()
    found = torch.distributions.Normal(mean, spread).log_prob(y)[0, 1:].sum()
    assert float(found) == pytest.approx(float(joint - first), abs=1e-4)
    steps = chain.steps((y - net.middle).expand(4, 1, 3), given)
    for cell in (1, 2):
        torch.testing.assert_close(net.middle[cell] + chain.mean(cell, steps), mean[:, cell].expand(4, 1))
        chain.put(cell, steps, (y - net.middle)[:, cell].expand(4, 1), torch.tensor([True]))


def test_one_cell_after_the_other_has_the_densities_of_all_at_once():
    torch.manual_seed(0)
    head = CellDensities(4, 3, width=8, components=5).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    read, told = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    mean, spread = torch.randn(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.1
    asked = torch.tensor([[True, False, True, True], [False, True, True, False]])
    every = head(read, told, asked, mean, spread)
    before = torch.zeros(2, 8, dtype=torch.float64)
    for cell in range(4):
        one = head.one(cell, read[:, cell], before, mean[:, cell], spread[:, cell])
        rows = asked[:, cell]
        for part, other in zip(one, every, strict=True):
            torch.testing.assert_close(part[rows], other[rows, cell])
        before = before + torch.where(rows[:, None], head.tell(cell, told[:, cell]), 0.0)


def test_a_copy_for_averages_has_no_parameters_and_the_same_answers():
    net = CellNetwork(3, width=8, layers=1, heads=2, components=2).eval()
    twin = averaged_copy(net)
    assert not list(twin.parameters()) and len(list(twin.buffers())) == len(list(net.parameters()))
    y, shown = torch.randn(4, 3), torch.ones(4, 3, dtype=torch.bool)
    guess = LinearDenoiser(3)(y, 0 * y + 0.1, shown)
    assert torch.equal(net.read(y, 0 * y + 0.1, shown, guess), twin.read(y, 0 * y + 0.1, shown, guess))
