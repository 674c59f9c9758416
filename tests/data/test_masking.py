"""Masking policies: what is hidden, how often, and without a trace."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from consilience.data.masking import HideCells, HideGaps, HideModalities, HidePatterns, conceal
from consilience.data.observations import Modality, Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.models import family_from

ROWS = 600
POLICIES = (HideModalities(), HideCells(), HideGaps(), HidePatterns())


@pytest.fixture(scope="module")
def target():
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(ROWS, 40)), "b": rng.normal(size=(ROWS, 3)), "c": rng.normal(size=(ROWS, 2, 4))}
    for value in values.values():
        value[rng.random(value.shape) < 0.3] = np.nan
    specs = tuple(ModalitySpec(name=name, shape=value.shape[1:]) for name, value in values.items())
    obs = Observations.from_arrays(Schema(modalities=specs), values, sigma={"a": rng.uniform(1, 2, size=(ROWS, 40))})
    return Scaler.fit(obs).forward(obs).to()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_the_context_is_a_part_of_the_target(policy, target):
    context = policy(target, generator())
    hidden = 0
    for name, part in context.parts.items():
        whole = target.parts[name]
        assert not (part.seen & ~whole.seen).any()
        gone = whole.seen & ~part.seen
        hidden += int(gone.sum())
        assert (part.state[gone] == State.UNSEEN).all()
        assert not part.value[gone].any()
        assert torch.equal(part.value[~gone], whole.value[~gone])
        if part.sigma is not None:
            assert (part.sigma[gone] == 1).all()
            assert torch.equal(part.sigma[~gone], whole.sigma[~gone])
    assert hidden > 0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_the_choice_is_the_generators_alone(policy, target):
    first, again, other = (policy.hide(target, generator(seed)) for seed in (0, 0, 1))
    moved = replace(target, parts={n: replace(p, value=p.value + 5) for n, p in target.parts.items()})
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], policy.hide(moved, generator(0))[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_a_policy_survives_a_file(policy):
    assert type(policy).model_validate_json(policy.model_dump_json()) == policy
    with pytest.raises(SchemaError):
        family_from({"family": "SharedGPLVM", "masking": policy.kind})


def test_modalities_are_hidden_whole_and_never_all(target):
    hidden = HideModalities(probability=0.6).hide(target, generator())
    rows = torch.stack([mask.flatten(1).float().mean(1) for mask in hidden.values()], 1)
    assert set(rows.unique().tolist()) == {0.0, 1.0}
    assert (rows.sum(1) < 3).all()
    # each is kept for certain in a third of the rows
    assert rows.mean(0).numpy() == pytest.approx(0.6 * 2 / 3, abs=0.07)


def test_only_the_named_modalities_are_hidden(target):
    for policy in (HideModalities(probability=1.0, names=("b",)), HideCells(names=("b",)), HideGaps(names=("b",))):
        assert set(policy.hide(target, generator())) == {"b"}
    assert HideModalities(probability=1.0, names=("b",)).hide(target, generator())["b"].all()


def test_cells_are_hidden_at_their_rate_independently(target):
    hidden = HideCells(fraction=0.2).hide(target, generator())["a"].double()
    assert float(hidden.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(torch.corrcoef(hidden.mT).fill_diagonal_(0).abs().max()) < 0.2


def test_gaps_are_contiguous_and_of_bounded_length(target):
    hidden = HideGaps(fraction=0.3).hide(target, generator())
    for name in ("a", "c"):
        runs = hidden[name].long().flatten(0, -2)
        edges = (runs.diff(dim=1) != 0).sum(1) + runs[:, 0] + runs[:, -1]
        assert (edges <= 2).all()
        assert int(runs.sum(1).max()) <= np.ceil(0.3 * runs.shape[1]) + 1
    assert 0.1 < float(hidden["a"].double().mean()) < 0.2
    # one run per row, the same in every line of an image
    assert torch.equal(hidden["c"][:, 0], hidden["c"][:, 1])


def test_patterns_are_those_of_other_rows(target):
    hidden = HidePatterns(probability=1.0).hide(target, generator())
    context = HidePatterns(probability=1.0)(target, generator())
    order = torch.randperm(ROWS, generator=generator())
    for name, part in target.parts.items():
        assert torch.equal(hidden[name], ~part.seen[order])
        assert torch.equal(context.parts[name].seen, part.seen & part.seen[order])
    assert not any(mask.any() for mask in HidePatterns(probability=0.0).hide(target, generator()).values())


def test_concealing_keeps_what_is_outside_the_extent():
    state = torch.tensor([[2, 3, 0, 1]], dtype=torch.int8)
    ones = torch.ones(1, 4)
    part = conceal(Modality(5 * ones, state, 2 * ones, 3 * ones, 4 * ones), torch.ones(1, 4, dtype=torch.bool))
    assert part.state.tolist() == [[1, 1, 0, 1]]
    for field, neutral, before in (("value", 0, 5), ("sigma", 1, 2), ("coord", 0, 3), ("exposure", 1, 4)):
        assert getattr(part, field).tolist() == [[neutral, neutral, before, neutral]]
    assert state.tolist() == [[2, 3, 0, 1]]
