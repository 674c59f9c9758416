from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.observations import Modality, Observations, State, canonical_ids, modality
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, RequestError

X = ModalitySpec(name="x", shape=(3,))
ONE = np.array([[1.0, 2.0, 3.0]])


def arrays_of(part: Modality) -> list[np.ndarray]:
    return [array for array in (part.value, part.state, part.sigma, part.coord, part.exposure) if array is not None]


def test_state_of_a_cell_follows_value_sigma_state_and_extent():
    part = modality(
        X,
        np.array([[1.0, np.nan, 3.0], [np.inf, 5.0, 6.0], [7.0, 8.0, 9.0]]),
        sigma=np.array([[0.1, 0.1, np.inf], [0.1, np.nan, 0.1], [0.1, 0.1, 0.1]]),
        state=np.array([[2, 2, 2], [2, 2, 1], [3, 4, 2]]),
        extent=np.array([3, 3, 2]),
    )
    assert part.state.tolist() == [[2, 1, 1], [1, 2, 1], [3, 4, 0]]
    assert part.state.dtype == np.int8
    assert part.seen.tolist() == [[True, False, False], [False, True, False], [True, True, False]]
    assert part.measured.sum() == 2
    np.testing.assert_array_equal(np.isnan(part.value), ~part.seen)
    # a seen cell may have no error bar
    assert np.isnan(part.sigma[1, 1])


@pytest.mark.parametrize(
    ("spec", "value", "options", "words"),
    [
        (X, np.ones((1, 2)), {}, "Expected modality 'x' with event shape (3,); got (2,)"),
        (X, np.ones(3), {}, "Expected modality 'x' with event shape (3,); got ()"),
        (X, ONE, {"sigma": np.ones((1, 2))}, "Expected sigma of 'x' with shape (1, 3); got (1, 2)"),
        (X, ONE, {"coord": np.ones((2, 3))}, "Expected coord of 'x' with shape (1, 3)"),
        (X, ONE, {"exposure": np.ones(3)}, "Expected exposure of 'x'"),
        (X, ONE, {"state": np.full((1, 3), 5)}, "Expected states 0 to 4 in 'x'; got 5 to 5"),
        (X, ONE, {"sigma": np.array([[1.0, -0.5, 1.0]])}, "Expected a sigma that is not negative in 'x'; got -0.5"),
        (X, ONE, {"extent": np.array([1, 2])}, "Expected one extent per row of 'x'"),
        (ModalitySpec(name="x"), np.ones(1), {"extent": np.ones(1)}, "Expected one extent per row of 'x'"),
        (ModalitySpec(name="x", shape=(3,), kind="count"), ONE - 2, {}, "whole numbers from 0 to inf (count)"),
        (ModalitySpec(name="x", shape=(3,), kind="count"), ONE / 2, {}, "got 0.5 in row 0"),
        (ModalitySpec(name="x", shape=(3,), kind="binary"), ONE, {}, "whole numbers from 0 to 1 (binary)"),
        (ModalitySpec(name="x", shape=(3,), kind="category", classes=3), ONE, {}, "from 0 to 2 (category)"),
        (ModalitySpec(name="x", shape=(3,), kind="positive"), ONE - 1, {}, "Expected positive values in 'x'; got 0"),
    ],
)
def test_what_a_modality_refuses(spec, value, options, words):
    with pytest.raises(DataError) as caught:
        modality(spec, value, **options)
    assert words in str(caught.value)


def test_a_refusal_names_row_id_cell_and_how_many_more():
    spec = ModalitySpec(name="y", cells=({"name": "mass"}, {"name": "age"}), kind="positive")
    with pytest.raises(DataError, match=r"got -2 in row 1 \(id 'b'\), cell 'age', and 1 more"):
        modality(spec, np.array([[1.0, 1.0], [1.0, -2.0], [-3.0, 1.0]]), ids=["a", "b", "c"])
    with pytest.raises(DataError, match="cell 'z'"):
        modality(ModalitySpec(name="z", kind="positive"), np.array([-1.0]))


def test_unseen_cells_and_bounds_may_hold_anything():
    spec = ModalitySpec(name="x", shape=(3,), kind="positive")
    part = modality(spec, np.array([[-1.0, -2.0, 3.0]]), state=np.array([[State.UNSEEN, State.BELOW, 2]]))
    assert part.state.tolist() == [[1, 3, 2]]
    assert np.isnan(part.value[0, 0])


def test_the_users_arrays_are_not_changed():
    value, state = np.array([[1.0, np.nan, 3.0]]), np.full((1, 3), 2, np.int8)
    modality(X, value, state=state, extent=np.array([1]))
    assert state.tolist() == [[2, 2, 2]]
    assert value[0, 2] == 3.0


@given(hide=st.lists(st.booleans(), min_size=12, max_size=12), perturbation=st.floats(-1e6, 1e6))
def test_hiding_leaves_no_trace(hide, perturbation):
    rng = np.random.default_rng(0)
    hide = np.array(hide).reshape(4, 3)
    value, sigma, coord = (rng.uniform(1, 2, size=(4, 3)) for _ in range(3))
    extent = np.array([3, 2, 3, 1])

    def table(value, sigma, coord, state):
        options = {"sigma": sigma, "coord": coord, "exposure": coord + 1, "state": state, "extent": extent}
        return modality(X, value, **options).hidden(hide)

    moved = np.where(hide, abs(perturbation), 0)
    states = np.full((4, 3), State.MEASURED)
    first = table(value, sigma, coord, states)
    second = table(value + moved, sigma + moved, coord + moved, np.where(hide, State.ABOVE, states))
    for one, other in zip(arrays_of(first), arrays_of(second), strict=True):
        np.testing.assert_array_equal(one, other)
    absent = np.arange(3) >= extent[:, None]
    assert (first.state[hide & ~absent] == State.UNSEEN).all()
    assert (first.state[absent] == State.ABSENT).all()
    np.testing.assert_array_equal(first.value[first.seen], value[~hide & ~absent])


def test_hide_touches_the_named_modality_only(obs):
    hidden = obs.hide("labels")
    assert not hidden.parts["labels"].seen.any()
    assert np.isnan(hidden.parts["labels"].value).all()
    assert hidden.parts["spectrum"] is obs.parts["spectrum"]
    assert obs.parts["labels"].seen.any()
    with pytest.raises(RequestError, match="Did you mean 'labels'"):
        obs.hide("label")
    with pytest.raises(DataError, match=r"Expected a mask of shape \(12, 2\) for 'labels'; got \(12,\)"):
        obs.hide_cells({"labels": np.ones(12, bool)})


def test_rows_by_slice_mask_position_and_id(obs):
    assert obs[2:5].ids.tolist() == ["J02", "J03", "J04"]
    assert obs[np.arange(12) % 6 == 0].ids.tolist() == ["J00", "J06"]
    assert obs[4].ids.tolist() == ["J04"]
    one = obs["J07"]
    assert len(one) == 1
    assert one.index.tolist() == [7]
    assert one.total == 12
    assert one.group.tolist() == ["2"]
    np.testing.assert_array_equal(one.parts["spectrum"].sigma, obs.parts["spectrum"].sigma[7:8])
    with pytest.raises(RequestError, match="Expected the id of a row; got 'J99'"):
        obs["J99"]


def test_select_keeps_order_asked(obs):
    assert obs.select("labels", "spectrum").schema.names == ("labels", "spectrum")
    assert set(obs.select("labels").parts) == {"labels"}


def test_join_is_outer_and_keeps_cells_with_their_ids(obs):
    left, right = obs[:8].select("spectrum"), obs[[11, 5, 6, 7]].select("labels")
    both = left.join(right)
    assert both.ids.tolist() == [*obs.ids[:8], "J11"]
    assert both.schema.names == ("spectrum", "labels")
    assert both.total == len(both) == 9
    np.testing.assert_array_equal(both["J07"].parts["labels"].value, obs["J07"].parts["labels"].value)
    np.testing.assert_array_equal(both["J11"].parts["labels"].state, obs["J11"].parts["labels"].state)
    assert not both["J00"].parts["labels"].seen.any()
    assert not both["J11"].parts["spectrum"].seen.any()
    assert np.isnan(both["J11"].parts["spectrum"].sigma).all()
    with pytest.raises(RequestError, match=r"Expected distinct modalities on the two sides; got \['labels'\]"):
        obs.join(right)


@given(fraction=st.floats(0.1, 0.9), seed=st.integers(0, 2**31))
def test_split_is_disjoint_complete_and_repeatable(fraction, seed):
    obs = Observations.from_arrays(Schema(modalities=(X,)), {"x": np.arange(60.0).reshape(20, 3)})
    first, second = obs.split(fraction, seed=seed)
    assert len(first) == round(20 * fraction)
    assert sorted([*first.ids, *second.ids]) == sorted(obs.ids)
    assert first.total == len(first)
    assert second.index.tolist() == list(range(len(second)))
    again, _ = obs.split(fraction, seed=seed)
    assert again.ids.tolist() == first.ids.tolist()
    # which side a row falls on does not depend on the order of the table
    shuffled, _ = obs[np.random.default_rng(seed).permutation(20)].split(fraction, seed=seed)
    assert set(shuffled.ids) == set(first.ids)


def test_split_by_group_keeps_groups_whole(obs):
    first, second = obs.split(0.5, seed=1, by="group")
    assert not set(first.group) & set(second.group)
    assert len(first) == len(second) == 6


@pytest.mark.parametrize(
    ("fraction", "by", "words"),
    [
        (0.0, None, "Expected a fraction between 0 and 1; got 0.0"),
        (1.0, None, "Expected a fraction"),
        (0.5, "colour", "Expected by=None or by='group'; got 'colour'"),
        (0.01, None, "Expected rows on both sides"),
        (0.99, None, "Expected rows on both sides"),
    ],
)
def test_what_split_refuses(obs, fraction, by, words):
    with pytest.raises(RequestError) as caught:
        obs.split(fraction, seed=0, by=by)
    assert words in str(caught.value)


def test_split_by_group_needs_groups(obs):
    with pytest.raises(RequestError, match="Expected a group column"):
        replace(obs, group=None).split(0.5, seed=0, by="group")


def test_detached_rows_are_in_no_training_table(obs):
    assert obs.detached().index.tolist() == [-1] * 12
    assert obs.index.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("values", "options", "error", "words"),
    [
        ({}, {}, DataError, "got none for ['x']"),
        ({"x": ONE, "y": ONE}, {}, RequestError, "Expected a modality among ['x']; got 'y'"),
        ({"x": ONE}, {"sigma": {"z": ONE}}, RequestError, "got 'z'"),
        ({"x": ONE}, {"state": {"z": ONE}}, RequestError, "got 'z'"),
        ({"x": np.ones((0, 3))}, {}, DataError, "Expected at least one row; got an empty table"),
        ({"x": ONE}, {"ids": ["a", "b"]}, DataError, "Expected one id per row (1); got 2"),
    ],
)
def test_what_a_table_refuses(values, options, error, words):
    with pytest.raises(error) as caught:
        Observations.from_arrays(Schema(modalities=(X,)), values, **options)
    assert words in str(caught.value)


def test_ragged_modalities_are_refused(schema):
    with pytest.raises(DataError, match=r"Expected the same number of rows .* {'spectrum': 2, 'labels': 3}"):
        Observations.from_arrays(schema, {"spectrum": np.ones((2, 5)), "labels": np.ones((3, 2))})


@pytest.mark.parametrize("key", [None, "", "  ", float("nan"), "None", "<NA>", "--", b""])
def test_a_missing_id_is_refused_with_its_row(key):
    with pytest.raises(DataError, match="Expected an id in every row; got .* in row 1"):
        canonical_ids(["a", key])


@pytest.mark.parametrize("other", ["7", b"7", 7.0, "7 ", np.int64(7), np.float32(7), np.str_(" 7")])
def test_spellings_of_one_id_are_one(other):
    assert canonical_ids([other]).tolist() == ["7"]
    with pytest.raises(DataError, match="Expected unique ids; got '7' in rows 0 and 2"):
        canonical_ids([7, 8, other])
    assert canonical_ids([7, other], unique=False).tolist() == ["7", "7"]


def test_to_torch_keeps_states_and_takes_a_dtype(obs):
    import torch

    batch = obs.to(dtype=torch.float64)
    part = batch.parts["spectrum"]
    assert part.value.dtype == torch.float64
    assert part.state.dtype == torch.int8
    assert obs.to().parts["spectrum"].sigma.dtype == torch.float32
    assert batch.index.dtype == torch.int64
    np.testing.assert_array_equal(part.seen.numpy(), obs.parts["spectrum"].seen)
    np.testing.assert_array_equal(part.value.numpy(), obs.parts["spectrum"].value)
