"""Draws and densities by transport, with the denoiser of a Gaussian in closed form: both must be the Gaussian's own."""

import numpy as np
import pytest
import torch

from consilience.blocks.attention import CellTransformer
from consilience.blocks.linear_denoising import LinearDenoiser
from consilience.blocks.transport import HIGHEST, LOWEST, Denoising, Straight, drawn, levels, raised

COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.2, -0.2], [0.3, -0.2, 0.7]], dtype=torch.float64)
SIGMA = 0.3  # of the second cell, which is measured; the third is known exactly
SEEN = torch.tensor([0.0, 0.9, -0.5], dtype=torch.float64)


def denoiser(shown=(0, 1, 2)):
    """E[x | y] of x ~ N(0, C) and y = x + s ε, of the cells that are shown."""
    c = COVARIANCE[list(shown)][:, list(shown)]

    def mean(y, level):
        some = y[:, list(shown)]
        total = c + torch.diag_embed(level[:, list(shown)].square())
        found = y.clone()
        found[:, list(shown)] = torch.linalg.solve(total, some[..., None])[..., 0] @ c
        return found

    return mean


def test_draws_are_of_the_posterior_and_measurements_stay():
    """Two cells given a third that was measured with an error."""
    rows, generator = 20_000, torch.Generator().manual_seed(0)
    known = torch.tensor([HIGHEST, SIGMA, HIGHEST], dtype=torch.float64).expand(rows, -1)
    noise = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    found = drawn(denoiser(), torch.where(known == HIGHEST, HIGHEST * noise, SEEN), known, steps=30)
    gain = COVARIANCE[[0, 2], 1] / (COVARIANCE[1, 1] + SIGMA**2)
    expected = COVARIANCE[[0, 2]][:, [0, 2]] - gain[:, None] * COVARIANCE[1, [0, 2]]
    assert found[:, [0, 2]].mean(0).tolist() == pytest.approx((gain * SEEN[1]).tolist(), abs=0.015)
    np.testing.assert_allclose(torch.cov(found[:, [0, 2]].T).numpy(), expected.numpy(), atol=0.015)
    assert (found[:, 1] == SEEN[1]).all()


@pytest.mark.parametrize("scored", [(0,), (0, 1), (0, 1, 2)])
def test_densities_of_measurements_are_the_gaussians(scored):
    """At their error bars, given the others at theirs."""
    rows = 5
    y = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level = torch.tensor([LOWEST, SIGMA, 0.1], dtype=torch.float64).expand(rows, -1)
    asked = torch.zeros(rows, 3, dtype=torch.bool)
    asked[:, list(scored)] = True
    found = raised(denoiser(), y, level, asked, 40)
    total = COVARIANCE + torch.diag(level[0].square())
    rest = [k for k in range(3) if k not in scored]
    joint = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), total).log_prob(y)
    if rest:
        zero = torch.zeros(len(rest), dtype=torch.float64)
        joint = joint - torch.distributions.MultivariateNormal(zero, total[rest][:, rest]).log_prob(y[:, rest])
    np.testing.assert_allclose(found.numpy(), joint.numpy(), atol=5e-3)


def test_probes_estimate_the_trace():
    y = torch.zeros(4000, 3, dtype=torch.float64)
    level = torch.full_like(y, 0.1)
    asked = torch.ones_like(y, dtype=torch.bool)
    signs = torch.randn(4, 4000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).sign()
    exact, found = raised(denoiser(), y[:1], level[:1], asked[:1], 20), raised(denoiser(), y, level, asked, 20, signs)
    assert float(found.mean()) == pytest.approx(float(exact[0]), abs=4 * float(found.std()) / 4000**0.5)
    assert float(found.std()) > 0.01


@pytest.mark.parametrize("path", [Denoising(), Straight()])
def test_what_a_network_must_say_has_the_variance_of_its_path(path):
    """a and b leave a target F = (x - a) / b of variance 1 of Gaussian cells, or 2 of a velocity, at every level."""
    generator = torch.Generator().manual_seed(3)
    x, e = torch.randn(2, 200_000, 1, generator=generator, dtype=torch.float64)
    for height in (0.01, 0.3, 1.0, 20.0):
        level = torch.full((1, 1), height, dtype=torch.float64)
        y = x + level * e
        linear = LinearDenoiser(1)(y, level, torch.ones(1, 1, dtype=torch.bool))
        begun, unit = path.parts(y, level, linear)
        target = (x - begun) / unit
        assert float(target.var()) == pytest.approx(1.0 if isinstance(path, Denoising) else 2.0, rel=0.02)
        if isinstance(path, Straight):
            torch.testing.assert_close(target, x - e)  # the velocity


def test_levels_of_training_and_of_draws():
    torch.manual_seed(0)
    like = torch.zeros(1, dtype=torch.float64)
    assert Denoising().draw(20_000, like).log().mean() == pytest.approx(-1.2, abs=0.05)
    t = 1 / (1 + Straight().draw(20_000, like))
    assert float(t.mean()) == pytest.approx(0.5, abs=0.02) and float(t.std()) == pytest.approx(12**-0.5, abs=0.02)
    grid = levels(10, like=like)
    assert grid[0] == pytest.approx(HIGHEST) and grid[-1] == pytest.approx(LOWEST) and (grid.diff() < 0).all()


def test_cells_that_are_absent_reach_no_other_and_get_no_gradient():
    torch.manual_seed(0)
    net = CellTransformer(5, 3, width=8, layers=2, heads=2)
    x = torch.randn(4, 5, 3, requires_grad=True)
    shown = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]).bool()
    found = net(x, shown)
    (slope,) = torch.autograd.grad(torch.where(shown, found[..., 0], 0.0).sum(), x)
    assert torch.isfinite(found).all() and not slope[~shown].any() and slope[shown].any(-1).all()
    alone = net(x[2:3], shown[2:3])
    torch.testing.assert_close(alone[0], found[2])
