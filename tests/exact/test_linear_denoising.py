"""The linear denoiser against Gaussians in closed form, and the fit of m and C against tables with gaps."""

import numpy as np
import pytest
import torch

from consilience.blocks.linear_denoising import LEAST, SOFT, LinearDenoiser, fit_gaussian

MIDDLE = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.2, -0.2], [0.3, -0.2, 0.7]], dtype=torch.float64)


def net():
    made = LinearDenoiser(3).double()
    made.middle.copy_(MIDDLE)
    made.covariance.copy_(COVARIANCE)
    return made


@pytest.mark.parametrize("cells", [(0, 1, 2), (0, 2), (1,)])
def test_mean_spread_and_surprise_are_those_of_the_gaussian(cells):
    y = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.tensor([[0.1, 1.0, 30.0], [2.0, 0.01, 0.5]], dtype=torch.float64)
    shown = torch.zeros(2, 3, dtype=torch.bool)
    shown[:, list(cells)] = True
    found = net()(y, level, shown)
    some = list(cells)
    for row in range(2):
        c = COVARIANCE[some][:, some] + LEAST * torch.eye(len(some))
        noise = torch.diag(level[row, some].square())
        gain = c @ torch.linalg.inv(c + noise)
        left = y[:, row][:, some] - MIDDLE[some]
        torch.testing.assert_close(found.mean[:, row][:, some], MIDDLE[some] + left @ gain.T, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.spread[row, some], (c - gain @ c).diagonal().sqrt(), atol=1e-5, rtol=1e-4)
        for at, cell in enumerate(some):
            rest = [k for k in range(len(some)) if k != at]
            total = c + noise
            slope = torch.linalg.solve(total[rest][:, rest], total[rest, at])
            width = (total[at, at] - total[at, rest] @ slope + SOFT**2).sqrt()
            expected = (left[:, at] - left[:, rest] @ slope) / width
            torch.testing.assert_close(found.surprise[:, row, cell], expected, atol=1e-5, rtol=1e-5)


def test_the_fit_finds_the_truth_behind_gaps_and_error_bars():
    rng = np.random.default_rng(1)
    rows = 6000
    x = rng.multivariate_normal(MIDDLE.numpy(), COVARIANCE.numpy(), size=rows)
    sigma = rng.uniform(0.1, 1.0, size=x.shape)
    seen = rng.random(x.shape) < 0.6
    y = np.where(seen, x + sigma * rng.standard_normal(x.shape), np.nan)
    middle, covariance = fit_gaussian(torch.tensor(np.nan_to_num(y)), torch.tensor(sigma**2), torch.tensor(seen))
    np.testing.assert_allclose(middle, MIDDLE, atol=0.06)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.1)
    naive = np.nanvar(y, axis=0)
    assert (naive - np.diag(COVARIANCE) > 0.2).all()  # what neglects the error bars is far off


def test_a_cell_that_no_row_shows_with_another_hangs_on_nothing():
    rng = np.random.default_rng(2)
    x = torch.tensor(rng.multivariate_normal(MIDDLE.numpy(), COVARIANCE.numpy(), size=4000))
    seen = torch.ones(4000, 3, dtype=torch.bool)
    seen[:, 2] = False
    seen[2000:] = torch.tensor([False, False, True])
    _, covariance = fit_gaussian(x, torch.zeros_like(x), seen)
    np.testing.assert_allclose(covariance[:2, :2], COVARIANCE[:2, :2], atol=0.08)
    assert covariance[:2, 2].abs().max() < 0.05
