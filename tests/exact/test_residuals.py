"""The number of cells that share a misfit, against processes whose autocorrelation is known."""

import numpy as np
import pytest
import torch

from consilience.blocks.residuals import correlated_cells


def autoregressive(rho, rows=1500, cells=300, seed=0):
    """A stationary AR(1) process of variance 1: Σ_k ρ_k = ρ / (1 - ρ)."""
    rng = np.random.default_rng(seed)
    x = np.empty((rows, cells))
    x[:, 0] = rng.normal(size=rows)
    for d in range(1, cells):
        x[:, d] = rho * x[:, d - 1] + np.sqrt(1 - rho**2) * rng.normal(size=rows)
    return torch.as_tensor(x)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_equals_the_integrated_autocorrelation_of_an_autoregressive_process(rho):
    x = autoregressive(rho)
    found = correlated_cells(x, torch.ones_like(x, dtype=torch.bool), torch.ones(x.shape[1]), torch.zeros_like(x))
    assert found == pytest.approx((1 + rho) / (1 - rho), rel=0.1, abs=0.05)


def test_independent_error_bars_and_gaps_do_not_change_it():
    x = autoregressive(0.7, rows=2000)
    generator = torch.Generator().manual_seed(1)
    sigma = 0.2 + 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype)
    noisy = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    seen = torch.rand(x.shape, generator=generator) < 0.7
    found = correlated_cells(torch.where(seen, noisy, 1e6), seen, torch.ones(x.shape[1]), sigma**2)
    assert found == pytest.approx(1.7 / 0.3, rel=0.15)


def test_counting_independent_cells_once_is_too_narrow_and_c_mends_it():
    """The mean of D correlated cells: variance c / D, of which the independent formula says 1 / D."""
    x = autoregressive(0.8, rows=3000)
    c = correlated_cells(x, torch.ones_like(x, dtype=torch.bool), torch.ones(x.shape[1]), torch.zeros_like(x))
    variance = float(x.mean(1).var())
    assert variance * x.shape[1] > 5
    assert variance * x.shape[1] / c == pytest.approx(1, rel=0.1)


def test_a_few_strange_objects_do_not_decide():
    x = autoregressive(0.5)
    x[:20] = 30.0
    found = correlated_cells(x, torch.ones_like(x, dtype=torch.bool), torch.ones(x.shape[1]), torch.zeros_like(x))
    assert found == pytest.approx(3.0, rel=0.15)


def test_nothing_seen_says_nothing():
    x = torch.zeros(3, 4)
    assert correlated_cells(x, x > 0, torch.ones(4), x) == 1.0
