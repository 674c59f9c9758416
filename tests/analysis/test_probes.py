"""Probes of latent blocks: what is there is read, what is not is not, and draws tell less than means."""

from types import SimpleNamespace

import numpy as np
import pytest

import consilience as cs
from consilience.data.observations import Observations
from consilience.data.samples import Latent
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError


def rows(count, seed):
    """A modality, a quantity that one block knows, and one that the other knows of at a tiny scale."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, count))
    schema = Schema(
        modalities=(ModalitySpec(name="x"), ModalitySpec(name="true_a", shape=(1,)), ModalitySpec(name="b"))
    )
    return Observations.from_arrays(schema, {"x": a, "true_a": a[:, None], "b": b}), a, b


class Known:
    """A model whose latents are given by row."""

    schema = SimpleNamespace(names=("x",))

    def __init__(self, latents):
        self.latents = latents

    def latent(self, obs):
        mean, std = self.latents[len(obs)]
        return Latent(mean, std, obs.ids)


def model_of(*tables):
    latents = {}
    for obs, a, b in tables:
        first = np.stack([np.tanh(a), np.zeros_like(a)], 1)
        second = 0.05 * b[:, None]
        std = {"first": np.full_like(first, 0.02), "second": np.ones_like(second)}
        latents[len(obs)] = ({"first": first, "second": second}, std)
    return Known(latents)


def test_each_block_tells_what_it_knows():
    train, test = rows(1500, 0), rows(500, 1)
    found = cs.analysis.probes(model_of(train, test), train[0], test[0], ["true_a", "b"])
    assert found.block == ("first", "first", "second", "second")
    of_mean, of_draw = (
        dict(zip(zip(found.block, found.quantity, strict=True), r2, strict=True))
        for r2 in (found.of_mean, found.of_draw)
    )
    names = list(dict.fromkeys(found.quantity))
    assert of_mean["first", names[0]] > 0.98
    assert of_draw["first", names[0]] > 0.95
    assert of_mean["second", names[1]] > 0.98  # however small it is
    assert of_draw["second", names[1]] < 0.05
    assert max(of_mean["first", names[1]], of_mean["second", names[0]]) < 0.05
    assert len(found.table()) == 4


def test_results_are_written(tmp_path):
    train, test = rows(200, 0), rows(100, 1)
    cs.analysis.probes(model_of(train, test), train[0], test[0], ["true_a"]).save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".png"}


def test_too_few_rows_are_an_error():
    train, test = rows(40, 0), rows(100, 1)
    with pytest.raises(DataError, match="50 training rows"):
        cs.analysis.probes(model_of(train, test), train[0], test[0], ["true_a"])
