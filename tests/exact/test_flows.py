"""Coupling flows against autograd, quadrature and Gaussians."""

import math

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.flows import CouplingFlow, Marginals, normal_log_prob
from consilience.blocks.labels import LabelDensity
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema

UNIVARIATE = ("affine", "spline")


def flow(univariate, cells=3, context=2, layers=4):
    """A flow with weights far from the identity."""
    torch.manual_seed(0)
    found = CouplingFlow(cells, 1, context - 1, layers=layers, hidden=8, univariate=univariate).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return found


def rows(cells=3, context=2, n=6):
    torch.manual_seed(1)
    y, context = torch.randn(n, cells).double(), torch.randn(n, context).double()
    return y, (context[:, :1], context[:, 1:])


def of(context, row):
    return tuple(part[row : row + 1] for part in context)


@pytest.mark.parametrize("univariate", UNIVARIATE)
@pytest.mark.parametrize("there", [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 0)])
def test_the_slope_is_the_jacobians_determinant(univariate, there):
    found, (y, context) = flow(univariate), rows()
    seen = torch.tensor(there, dtype=torch.bool)
    _, slope = found(y, context, seen.expand_as(y))
    for row in range(len(y)):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, row=row: found(one[None], of(context, row), seen[None])[0][0], y[row]
        )
        expected = torch.linalg.slogdet(jacobian[seen][:, seen])[1] if seen.any() else torch.zeros(()).double()
        torch.testing.assert_close(slope[row], expected)


@pytest.mark.parametrize("univariate", UNIVARIATE)
@pytest.mark.parametrize("cells", [2, 5])
def test_the_inverse_leads_back(univariate, cells):
    found, (y, context) = flow(univariate, cells=cells), rows(cells)
    for seen in (torch.ones_like(y, dtype=torch.bool), torch.arange(cells).expand_as(y) % 3 != 1):
        u, _ = found(y, context, seen)
        torch.testing.assert_close(found.inverse(u, context, seen), y)
        assert (u - y).abs().max() > 0.3


def marginals():
    torch.manual_seed(0)
    found = Marginals(3, 1, 1, hidden=8).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return found


def test_cells_alone_have_normalised_densities_and_an_inverse():
    found, (y, context) = marginals(), rows()
    u, slope = found(y, context)
    seen = torch.tensor([True, False, True]).expand_as(y)
    torch.testing.assert_close(found.inverse(u, context, seen), torch.where(seen, y, u))
    expected = torch.where(seen, normal_log_prob(u) + slope, 0.0).sum(-1)
    torch.testing.assert_close(found.log_prob(y, context, seen), expected)
    grid = torch.linspace(-40, 40, 8001).double()[:, None].expand(-1, 3)
    with torch.no_grad():
        for row in range(3):
            u, slope = found(grid, tuple(part.expand(len(grid), 1) for part in of(context, row)))
            total = (normal_log_prob(u) + slope).exp().sum(0) * 0.01
            torch.testing.assert_close(total, torch.ones(3).double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("univariate", UNIVARIATE)
def test_densities_of_all_cells_and_of_some_integrate_to_one(univariate):
    end, size = (20, 401) if univariate == "affine" else (8, 481)  # beyond 5 a spline leaves a normal as it is
    found, grid = flow(univariate, cells=2, context=1), torch.linspace(-end, end, size).double()
    step, shared = float(grid[1] - grid[0]), torch.full((1, 1), 0.3).double()
    both = torch.cartesian_prod(grid, grid)
    everywhere = torch.ones_like(both, dtype=torch.bool)
    with torch.no_grad():
        total = found.log_prob(both, (shared, both[:, :0]), everywhere).exp().sum() * step**2
        for cell in range(2):
            y = torch.zeros(len(grid), 2).double()
            y[:, cell] = grid
            seen = torch.zeros_like(y, dtype=torch.bool)
            seen[:, cell] = True
            alone = found.log_prob(y, (shared, y[:, :0]), seen).exp().sum() * step
            assert float(alone) == pytest.approx(1, abs=5e-3)
    assert float(total) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("univariate", UNIVARIATE)
def test_a_missing_cell_changes_nothing(univariate):
    found, (y, context) = flow(univariate), rows()
    seen = torch.tensor([True, False, True]).expand_as(y)
    other = torch.where(seen, y, 7.0)
    assert torch.equal(found.log_prob(y, context, seen), found.log_prob(other, context, seen))


MIXING = np.array([[1.0, 0.0], [0.6, 0.8], [-0.5, 0.4]])
SCATTER = 0.5 * np.array([[1.0, 0.7, 0.0], [0.7, 1.0, -0.4], [0.0, -0.4, 0.8]])


def linear(n, seed, missing=0.0):
    """Labels that are linear in x with correlated Gaussian scatter."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = x @ MIXING.T + rng.multivariate_normal(np.zeros(3), SCATTER, size=n)
    y[rng.random(y.shape) < missing] = np.nan
    cells = tuple({"name": name} for name in "abc")
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(2,)), ModalitySpec(name="y", cells=cells)))
    return Observations.from_arrays(schema, {"x": x, "y": y}, ids=[f"{seed}-{row}" for row in range(n)])


@pytest.fixture(scope="module")
def learned():
    """A flow of blocks, from rows that lack labels at random."""
    family = cs.VAEFlow(target="y", blocks=[["c", "a"], ["b"]], hidden=32, layers=4)
    config = cs.TrainConfig(max_steps=500, batch_size=256, learning_rate=3e-3, validation=0.1)
    return cs.fit(family, linear(6000, 0, missing=0.3), config)


def test_gaps_in_later_blocks_do_not_move_what_comes_before():
    """b exists where a is large: draws of a are those of all rows, and b follows a as in rows that have it."""
    rng = np.random.default_rng(0)
    a, noise = rng.normal(size=(2, 4000))
    y = np.column_stack([a, np.where(a > -0.3, 0.8 * a + 0.2 * noise, np.nan)])
    cells = ({"name": "a"}, {"name": "b"})
    schema = Schema(modalities=(ModalitySpec(name="x"), ModalitySpec(name="y", cells=cells)))
    table = Observations.from_arrays(schema, {"x": 0.1 * rng.normal(size=4000), "y": y})
    config = cs.TrainConfig(max_steps=250, batch_size=256, learning_rate=1e-2, validation=0.1)
    means = []
    for blocks in ([["a"], ["b"]], [["a", "b"]]):
        fit = cs.fit(cs.VAEFlow(target="y", hidden=16, layers=4, blocks=blocks), table, config)
        draws = fit.sample(table[:200].hide("y"), ["y"], n=100).values["y"]
        means.append(draws[..., 0].mean())
        if len(blocks) == 2:
            assert draws[..., 0].std() == pytest.approx(1, abs=0.06)
            left = (draws[..., 1] - 0.8 * draws[..., 0])[draws[..., 0] > 0]
            assert left.mean() == pytest.approx(0, abs=0.05) and left.std() == pytest.approx(0.2, abs=0.04)
    assert means[0] == pytest.approx(0, abs=0.06)
    assert means[1] > 0.3  # of one block: draws are of objects that have all of it


def test_gradients_of_the_flow_end_before_what_makes_the_means():
    torch.manual_seed(0)
    found = LabelDensity([[0], [1, 2]], 4, layers=2, hidden=8, univariate="affine")
    y, h, g = torch.randn(6, 3), torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    losses = found.losses(y, torch.ones_like(y, dtype=torch.bool), h, g)
    reached = {}
    for term, value in losses.items():
        slopes = torch.autograd.grad(value.sum(), (h, g), allow_unused=True, retain_graph=True)
        reached[term] = tuple(slope is not None for slope in slopes)
    assert reached == {"mean": (True, False), "alone": (False, True), "nll": (False, False)}
    with torch.no_grad():
        seen = torch.ones_like(y, dtype=torch.bool)
        torch.testing.assert_close(-losses["nll"], found.log_prob(y, seen, h, g))
        torch.testing.assert_close(-losses["alone"], found.alone(y, h, g).sum(-1))


@pytest.mark.parametrize("cells", [(0, 1, 2), (0, 1), (1,)])
def test_blocks_learned_from_rows_with_gaps_are_the_gaussian(learned, cells):
    test = linear(2000, 1)
    hide = np.ones((len(test), 3), bool)
    hide[:, cells] = False
    some = test.hide_cells({"y": hide})
    found = learned.log_prob(some, ["y"]).value
    x, y = test.parts["x"].value, test.parts["y"].value
    left, scatter = (y - x @ MIXING.T)[:, cells], SCATTER[np.ix_(cells, cells)]
    square = np.sum(left * np.linalg.solve(scatter, left.T).T, axis=1)
    exact = -0.5 * (square + np.linalg.slogdet(2 * math.pi * scatter)[1])
    assert 0 < np.mean(exact - found) < 0.03
    # what independent labels would miss, where there is something to miss
    apart = -0.5 * (left**2 / scatter.diagonal() + np.log(2 * math.pi * scatter.diagonal())).sum(axis=1)
    assert len(cells) == 1 or np.mean(exact - apart) > 0.2


def test_draws_have_the_gaussians_moments(learned):
    test = linear(500, 2)
    draws = learned.sample(test.hide("y"), ["y"], n=20).values["y"]
    left = draws - test.parts["x"].value @ MIXING.T
    np.testing.assert_allclose(left.mean(axis=(0, 1)), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(left.reshape(-1, 3).T), SCATTER, atol=0.05)


def test_a_single_label_may_have_two_peaks_and_its_draws_are_of_its_density():
    """y = ±x with equal chances, and scatter 0.2."""
    rng = np.random.default_rng(3)
    x = rng.uniform(1, 2, 4000)
    y = x * rng.choice([-1, 1], 4000) + 0.2 * rng.normal(size=4000)
    schema = Schema(modalities=(ModalitySpec(name="x"), ModalitySpec(name="y")))
    table = Observations.from_arrays(schema, {"x": x, "y": y})
    config = cs.TrainConfig(max_steps=600, batch_size=256, learning_rate=1e-2, validation=0.1)
    fit = cs.fit(cs.VAEFlow(target="y", hidden=32), table, config)
    test = table[:300]
    draws = fit.sample(test.hide("y"), ["y"], n=400).values["y"]
    near = np.abs(np.abs(draws) - x[:300]) < 0.5
    assert near.mean() > 0.93
    assert (draws > 0).mean() == pytest.approx(0.5, abs=0.06)
    density = np.mean(fit.log_prob(test, ["y"]).value)
    best = np.log(0.5) - 0.5 * np.log(2 * np.pi * 0.04) - 0.5
    assert best - 0.2 < density < best + 0.1


@pytest.mark.parametrize("cells", [1, 3])
def test_widths_are_those_of_rows_that_taught_nothing(cells):
    """Labels scatter by 2, 1.3 and ½ times what untaught densities, which are about N(0, 1), say; less counts as 1."""
    torch.manual_seed(0)
    order = [[0]] if cells == 1 else [[2, 0], [1]]
    found = LabelDensity(order, 4, layers=4, hidden=8, univariate="affine")
    for network in (found.mean, *found.shifts):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
    scale = torch.tensor([2.0, 1.3, 0.5])[:cells]
    y, context = scale * torch.randn(3000, cells), torch.randn(3000, 4)
    seen = torch.rand(3000, cells) < 0.8
    before = found.log_prob(y, seen, context, context).mean()
    found.settle(y, seen, context, context)
    for widths in found.widths[: 1 if cells == 1 else 2]:  # of one label, what it is alone is all there is
        torch.testing.assert_close(widths, scale.clamp_min(1), rtol=0.06, atol=0)
    assert found.log_prob(y, seen, context, context).mean() > before + 0.1
    draws = found.drawn(torch.randn(2000, 1, cells), context[:1], context[:1])
    torch.testing.assert_close(draws.std(0)[0], scale.clamp_min(1), rtol=0.1, atol=0)
    # a handful of rows says little, none says nothing
    found.settle(y[:2], seen[:2], context[:2], context[:2])
    assert (found.widths[:, 0] < 1.7).all()
    found.settle(y[:5], torch.zeros(5, cells, dtype=torch.bool), context[:5], context[:5])
    torch.testing.assert_close(found.widths, torch.ones(2, cells))


def test_what_rows_share_may_be_given_once():
    for found in (flow("affine"), flow("spline"), marginals()):
        y, (shared, own) = rows()
        draws, seen = torch.stack([y, 2 * y]), torch.ones(2, *y.shape, dtype=torch.bool)
        several = torch.stack([own, own - 1])
        once = found.log_prob(draws, (shared, several), seen)
        each = [found.log_prob(a, (shared, b), seen[0]) for a, b in zip(draws, several, strict=True)]
        torch.testing.assert_close(once, torch.stack(each))
        back = found.inverse(draws, (shared, several), seen)
        torch.testing.assert_close(back[1], found.inverse(draws[1], (shared, several[1]), seen[1]))
