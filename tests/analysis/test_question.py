"""What every analysis of targets asks the same way: defaults, refusals, draws in tiles that do not show."""

import numpy as np
import pytest

from consilience.analysis import base
from consilience.analysis.question import ask
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError


def test_targets_are_hidden_and_the_other_modalities_shown(fakes, world):
    obs = world.draw(12, seed=1)
    question = ask(fakes.Fake(), obs, None, None)
    assert question.targets == ("labels",)
    assert question.readable == ("colour", "spectrum")
    assert not question.given.parts["labels"].measured.any()
    assert [q.name for q in question.cells()] == ["mass", "redshift"]
    np.testing.assert_array_equal(question.truth(), obs.parts["labels"].value)
    assert question[3:5].truth().shape == question[np.array([1, 7])].truth().shape == (2, 2)


def test_draws_of_several_targets_cover_the_rows_in_any_tiles(fakes, world, monkeypatch):
    question = ask(fakes.Fake(), world.draw(12, seed=1), ["labels", "colour"], None)
    ((rows, draws, member),) = question.draws(50, 0, observed=True)
    assert draws[:, rows].shape == (50, 12, 5)
    assert member.shape == (50,)
    monkeypatch.setattr(base, "TILE_VALUES", 3 * 50 * 5 * 4)
    tiled = np.concatenate([some for _, some, _ in question.draws(50, 0, observed=True)], axis=1)
    np.testing.assert_allclose(tiled.mean(axis=0), draws.mean(axis=0), atol=6 * draws.std() / np.sqrt(50))


def test_a_category_has_no_order(fakes):
    schema = Schema(modalities=(ModalitySpec(name="x"), ModalitySpec(name="type", kind="category", classes=3)))
    rows = Observations.from_arrays(schema, {"x": np.zeros(4), "type": np.arange(4) % 3})
    with pytest.raises(RequestError, match="category 'type'"):
        ask(fakes.Fake(fakes.World(schema=schema)), rows, ["type"], None)
