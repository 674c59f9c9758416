"""Weights by pattern and step, the weighted objective, the guard against numbers that are not finite."""

import math

import pytest
import torch

from consilience.errors import SchemaError, TrainingError
from consilience.models.base import Batch, Global, PerObject
from consilience.train.weights import Ramp, objective, weights_at

NAMES = ["nll/spectrum", "nll/labels", "kl/shared", "kl/private_spectrum", "kl/inducing"]


def test_a_term_weighs_one_unless_a_pattern_says_otherwise():
    assert weights_at(0, NAMES, {}) == dict.fromkeys(NAMES, 1.0)


def test_the_longest_matching_pattern_wins():
    found = weights_at(0, NAMES, {"*": 9.0, "kl/*": 0.5, "kl/private*": 0.25, "kl/inducing": 3.0})
    assert found == {
        "nll/spectrum": 9.0,
        "nll/labels": 9.0,
        "kl/shared": 0.5,
        "kl/private_spectrum": 0.25,
        "kl/inducing": 3.0,
    }


def test_two_longest_patterns_are_an_error_only_where_they_meet():
    patterns = {"kl/s*": 1.0, "*ared": 2.0}
    with pytest.raises(SchemaError, match=r"one longest pattern for the term 'kl/shared'"):
        weights_at(0, NAMES, patterns)
    assert weights_at(0, ["kl/sum"], patterns) == {"kl/sum": 1.0}


def test_patterns_are_case_sensitive():
    assert weights_at(0, ["nll/X"], {"nll/x": 0.0}) == {"nll/X": 1.0}


@pytest.mark.parametrize(
    ("shape", "step", "expected"),
    [
        ("linear", 0, 2.0),
        ("linear", 10, 2.0),
        ("linear", 15, 3.0),
        ("linear", 20, 4.0),
        ("linear", 99, 4.0),
        ("cosine", 10, 2.0),
        ("cosine", 15, 3.0),
        ("cosine", 20, 4.0),
        ("cosine", 12, 2 + 2 * (0.5 - 0.5 * math.cos(0.2 * math.pi))),
    ],
)
def test_a_ramp_moves_between_its_two_steps(shape, step, expected):
    ramp = Ramp(start=2.0, stop=4.0, begin=10, end=20, shape=shape)
    assert ramp.at(step) == pytest.approx(expected)
    assert weights_at(step, ["kl/x"], {"kl/*": ramp})["kl/x"] == pytest.approx(expected)


def test_the_objective_reduces_each_kind_in_its_own_way():
    applies = torch.tensor([True, False, True])
    terms = {
        "nll/x": PerObject(torch.tensor([1.0, 100.0, 3.0]), applies),
        "kl/inducing": Global(torch.tensor(5.0)),
        "align/x": Batch(torch.tensor(7.0)),
        "nll/none": PerObject(torch.ones(3), torch.zeros(3, dtype=torch.bool)),
    }
    total, values = objective(terms, {"nll/x": 2.0, "kl/inducing": 1.0, "align/x": 0.5, "nll/none": 1.0})
    assert float(total) == 2 * 2 + 5 + 3.5
    assert values == {"nll/x": 2.0, "kl/inducing": 5.0, "align/x": 7.0, "nll/none": 0.0}


def test_weight_zero_skips_a_term_even_one_that_is_not_finite():
    terms = {"nll/x": Global(torch.tensor(1.0)), "kl/y": Global(torch.tensor(torch.inf))}
    total, values = objective(terms, {"nll/x": 1.0, "kl/y": 0.0})
    assert float(total) == 1.0
    assert set(values) == {"nll/x"}
    with pytest.raises(TrainingError, match="at least one term with a weight"):
        objective(terms, {"nll/x": 0.0, "kl/y": 0.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_named_with_its_modality(bad):
    terms = {"nll/spectrum": PerObject(torch.tensor([0.0, bad]), torch.ones(2, dtype=torch.bool))}
    with pytest.raises(TrainingError, match=r"finite term 'nll/spectrum'; got .*\(nll of 'spectrum'\)"):
        objective(terms, {"nll/spectrum": 1.0})
