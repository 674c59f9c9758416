"""Shares of blocks: closed forms, blocks that know nothing by construction, and blocks that leak on purpose."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.contributions import block_shap, shapley
from consilience.data.observations import Observations
from consilience.data.samples import Latent
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, DataError

rng = np.random.default_rng(0)


def table(count, seed, **values):
    """Rows of a modality x and of quantities: a, b, their sum, and one that nobody knows."""
    a, b, none = np.random.default_rng(seed).standard_normal((3, count))
    known = {"x": a, "a": a, "b": b, "sum": a + 0.5 * b, "none": none} | values
    schema = Schema(modalities=tuple(ModalitySpec(name=name) for name in known))
    return Observations.from_arrays(schema, known, ids=[f"{seed}-{k}" for k in range(count)])


class Known:
    """A model whose latents are functions of the rows' truth; ``blocks`` gives mean and standard deviation."""

    def __init__(self, names=("x",), **blocks):
        self.schema, self.blocks, self.asked = SimpleNamespace(names=names), blocks, []

    def latent(self, obs):
        self.asked.append(obs)
        seed, count = int(obs.ids[0].split("-")[0]), len(obs)
        a, b = np.random.default_rng(seed).standard_normal((3, count))[:2]
        noise = np.random.default_rng(seed + 100).standard_normal((count, 2))
        found = {name: make(a, b, noise) for name, make in self.blocks.items()}
        mean = {name: one[0] for name, one in found.items()}
        return Latent(mean, {name: np.broadcast_to(one[1], one[0].shape) for name, one in found.items()}, obs.ids)


def s(a, b, noise):
    return np.stack([np.tanh(a), np.zeros_like(a)], 1), 0.01


def p(a, b, noise):
    return np.stack([b, noise[:, 0]], 1), 0.01


def idle(a, b, noise):
    return noise, 0.01


TRAIN, TEST = table(1500, 1), table(600, 2)


@pytest.fixture(scope="module")
def right():
    return cs.analysis.contributions(Known(s=s, p=p, idle=idle), TRAIN, TEST, ["a", "sum", "none"])


def test_shares_of_a_sum_are_its_variances_and_its_sizes(right):
    assert right.blocks == ("s", "p", "idle")
    a, whole, none = range(3)
    np.testing.assert_allclose(right.share[:, a], [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(right.share[:, whole], [0.8, 0.2, 0], atol=0.03)  # variances 1 and 1/4
    np.testing.assert_allclose(right.shap[:, a], [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(right.shap[:, whole], [2 / 3, 1 / 3, 0], atol=0.03)  # mean sizes 1 and 1/2
    assert np.isnan([right.share[:, none], right.shap[:, none]]).all()  # there is nothing to divide
    assert right.spearman() > 0.7  # of the six shares that there are, four are next to nothing


def test_rank_correlation_of_shares_that_agree_and_of_shares_that_do_not(right):
    shapley_values = np.array([[0.5, 0.1], [0.3, 0.6]])
    alike = replace(right, blocks=("s", "p"), quantity=("a", "b"), shapley=shapley_values, r2=np.ones((4, 2)))
    alike = replace(alike, r2_interval=np.ones((2, 4, 2)), shap=shapley_values**0.5)
    assert alike.spearman() == pytest.approx(1)
    assert replace(alike, shap=-shapley_values).spearman() == pytest.approx(-1)
    unknown = np.stack([np.full((4, 2), -0.1), np.ones((4, 2))])
    assert np.isnan(replace(alike, r2_interval=unknown).share).all()


def test_r2_of_subsets_and_their_intervals(right):
    assert right.r2[0] == pytest.approx(0)
    np.testing.assert_allclose(right.shapley.sum(0), right.r2[-1])
    s_alone, p_alone, both = right.r2[0b001], right.r2[0b010], right.r2[0b011]
    np.testing.assert_allclose(s_alone[:2], [1, 0.8], atol=0.03)
    np.testing.assert_allclose(p_alone[:2], [0, 0.2], atol=0.04)
    assert min(both[:2]) > 0.95
    low, high = right.r2_interval
    assert (low[1:] < right.r2[1:]).all() and (right.r2[1:] < high[1:]).all()
    # of a correlation of .8: the standard error of R² is 2 ρ (1 − ρ²) / √N
    expected = 2 * np.sqrt(0.8) * 0.2 / np.sqrt(len(TEST))
    assert (high - low)[0b001, 1] / 2 == pytest.approx(expected, rel=0.25)
    assert len(right.table()) == 7 * 3 and list(right.table()["blocks"][:3]) == ["s"] * 3
    assert right.table()["blocks"][-1] == "s + p + idle"
    assert len(right.shares()) == 9


def test_a_block_that_leaks_gets_credit():
    def leak(a, b, noise):
        return np.stack([a**3, noise[:, 0]], 1), 0.01

    found = cs.analysis.contributions(Known(s=s, leak=leak), TRAIN, TEST, ["a"])
    np.testing.assert_allclose(found.share[:, 0], 0.5, atol=0.03)  # each knows all: halves
    assert found.shap.sum() == pytest.approx(1)


def test_draws_do_not_show_what_means_hold_at_a_tiny_scale():
    def tiny(a, b, noise):
        return 0.02 * b[:, None], 1.0

    model = Known(s=s, tiny=tiny)
    assert cs.analysis.contributions(model, TRAIN, TEST, ["b"]).share[1, 0] > 0.95
    drawn = cs.analysis.contributions(model, TRAIN, TEST, ["b"], of="draw")
    assert abs(drawn.shapley[1, 0]) < 0.03
    assert drawn.of == "draw" and np.isnan(drawn.share).all()
    assert np.isnan(drawn.spearman())


def test_blocks_over_time_are_flattened_and_silent_ones_left_alone():
    def path(a, b, noise):
        return np.stack([a, noise[:, 0]], 1)[:, :, None] * np.ones(3), 0.01

    def silent(a, b, noise):
        return 1e-9 * b[:, None], 1.0

    found = cs.analysis.contributions(Known(path=path, silent=silent), TRAIN, TEST, ["a", "b"])
    assert found.share[0, 0] > 0.98
    assert found.r2[0b10, 1] == pytest.approx(0, abs=0.02)  # rounding is not read
    assert np.isnan(found.shap[:, 1]).all()


def test_rows_without_a_quantity_and_the_target_itself_are_left_out():
    some = np.where(np.arange(1500) < 200, np.nan, TRAIN.parts["a"].value)
    model = Known(("x", "a"), s=s)
    found = cs.analysis.contributions(model, table(1500, 1, a=some), TEST, ["a", "b"])
    assert found.quantity == ("a", "b")
    assert found.r2[-1, 0] > 0.95 and found.r2[-1, 1] < 0.1
    assert all(not obs.parts["a"].seen.any() and obs.parts["x"].seen.all() for obs in model.asked)


def test_results_are_the_same_for_a_seed_and_are_written(tmp_path):
    first, again, other = (
        cs.analysis.contributions(Known(s=s, p=p), TRAIN[np.arange(200)], TEST, ["a"], seed=seed) for seed in (0, 0, 1)
    )
    assert again.record() == first.record() != other.record()
    first.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"contributions.{end}" for end in ("json", "csv", "png")}


def test_any_family_with_latents_is_asked_and_no_other():
    obs = cs.simulators.factors(160, seed=0, sizes=(1, 1, 4), missing=0.2)
    train, test = obs[np.arange(100)], obs[np.arange(100, 160)]
    family = cs.DisentangledVAE(shared=1, private={"x1": 1, "x2": 1}, hidden=8)
    short = cs.TrainConfig(max_steps=5, validation=0.0)
    fitted = cs.fit(family, train.select("x1", "x2").renumbered(), short)
    assert cs.analysis.contributions(fitted, train, test, ["true_shared"]).share.shape == (3, 1)
    assert len(cs.analysis.block_information(fitted, train, test).table()) == 6
    without = replace(fitted, members=(SimpleNamespace(capabilities=frozenset({"density"})),))
    with pytest.raises(CapabilityError, match="'latent'"):
        cs.analysis.contributions(without, train, test, ["true_shared"])
    with pytest.raises(CapabilityError, match="'latent'"):
        cs.analysis.block_information(without, train, test)


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(CapabilityError, match="at most 8 latent blocks"):
        cs.analysis.contributions(Known(**{f"b{k}": s for k in range(9)}), TRAIN, TEST, ["a"])
    with pytest.raises(DataError, match="'a' in 50 training and 10 test rows; got 49 and 600"):
        cs.analysis.contributions(Known(s=s), TRAIN[np.arange(49)], TEST, ["a"])
    with pytest.raises(DataError, match="that vary"):
        cs.analysis.contributions(Known(s=s), TRAIN, table(600, 2, a=np.ones(600)), ["a"])


@pytest.mark.parametrize("players", [1, 2, 4])
def test_shapley_values_are_average_gains_over_all_orders(players):
    worth = rng.standard_normal((2**players, 3))
    gains = np.zeros((players, 3))
    orders = list(permutations(range(players)))
    for order in orders:
        coalition = 0
        for player in order:
            gains[player] += worth[coalition | 1 << player] - worth[coalition]
            coalition |= 1 << player
    np.testing.assert_allclose(shapley(worth), gains / len(orders), atol=1e-12)
    np.testing.assert_allclose(shapley(worth).sum(0), worth[-1] - worth[0], atol=1e-12)


def test_shap_of_a_linear_function_is_weight_times_distance_from_the_mean():
    x, background, w = rng.standard_normal((7, 5)), rng.standard_normal((11, 5)), rng.standard_normal(5)
    owner = np.array([0, 2, 1, 0, 2])
    each = w * (x - background.mean(0))
    expected = [each[:, owner == b].sum(1) for b in range(3)]
    np.testing.assert_allclose(block_shap(lambda rows: rows @ w + 3, x, background, owner), expected, atol=1e-12)


def test_shap_of_a_product_is_shared_by_its_factors():
    x, background = rng.standard_normal((6, 3)), rng.standard_normal((9, 3))
    found = block_shap(lambda rows: rows[:, 0] * rows[:, 1], x, background, np.array([0, 1, 2]))
    u, v = background[:, 0], background[:, 1]
    first = 0.5 * ((x[:, 0] * v.mean() - (u * v).mean()) + (x[:, 0] - u.mean()) * x[:, 1])
    np.testing.assert_allclose(found[0], first, atol=1e-12)
    np.testing.assert_allclose(found[2], 0, atol=1e-12)
    np.testing.assert_allclose(found.sum(0), x[:, 0] * x[:, 1] - (u * v).mean(), atol=1e-12)
