"""Aleatoric and epistemic variance of ensembles of which both are known."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.uncertainty import uncertainty
from consilience.data.observations import Observations
from consilience.data.samples import Samples
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, DataError, RequestError

SCHEMA = Schema(
    modalities=(
        ModalitySpec(name="x", shape=(1,)),
        ModalitySpec(name="y", cells=({"name": "mass", "unit": "kg"}, {"name": "age"})),
        ModalitySpec(name="type", kind="category", classes=2),
    )
)
WITHIN, BETWEEN = np.array([2.0, 0.5]), np.array([0.3, 0.0])


@dataclass
class Ensemble:
    """Members whose means scatter by BETWEEN in each row, and whose draws do by WITHIN about these."""

    members: tuple = (None,) * 5
    schema: Schema = SCHEMA

    def answers(self, readable, producible):
        return "x" not in producible

    def sample(self, obs, targets, *, n, seed=0, observed=False, at=None):
        assert not observed and at is None  # errors of measurement are nobody's ignorance
        rng = np.random.default_rng(seed)
        member = np.arange(n) * len(self.members) // n
        centre = BETWEEN * rng.normal(size=(len(self.members), len(obs), 2))
        values = centre[member] + WITHIN * rng.normal(size=(n, len(obs), 2))
        return Samples(SCHEMA.select(targets), {"y": values}, obs.ids, member)


def rows(n=4000):
    values = {"x": np.ones((n, 1)), "y": np.full((n, 2), np.nan), "type": np.zeros(n)}
    return Observations.from_arrays(SCHEMA, values)


def test_both_variances_are_unbiased():
    found = uncertainty(Ensemble(), rows(), ["y"], n=23)  # few draws, unequally many of each member
    np.testing.assert_allclose(found.aleatoric.mean(axis=0), WITHIN**2, rtol=0.02)
    np.testing.assert_allclose(found.epistemic.mean(axis=0), BETWEEN**2, atol=0.04)
    spread = found.spread()
    np.testing.assert_allclose(spread["total"], np.hypot(WITHIN, BETWEEN), rtol=0.02)
    assert found.table()["epistemic_share"][1] < 0.01


def test_it_is_saved_and_drawn(tmp_path):
    found = uncertainty(Ensemble(), rows(20), ["y"], n=50)
    found.save(tmp_path)
    assert json.loads((tmp_path / "uncertainty.json").read_text())["members"] == 5
    assert (tmp_path / "uncertainty.csv").read_text().startswith("cell,unit,aleatoric,epistemic,total,epistemic_share")
    assert len(found.figure().axes) == 2


def test_questions_that_are_refused():
    with pytest.raises(RequestError, match="got 1 members"):
        uncertainty(Ensemble(members=(None,)), rows(3), ["y"])
    with pytest.raises(RequestError, match="n=9"):
        uncertainty(Ensemble(), rows(3), ["y"], n=9)
    with pytest.raises(RequestError, match="category 'type'"):
        uncertainty(Ensemble(), rows(3), ["y", "type"])
    with pytest.raises(CapabilityError, match="'x'"):
        uncertainty(Ensemble(), rows(3), ["x"])
    with pytest.raises(DataError, match="same rows"):
        uncertainty(Ensemble(), rows(3), ["y"], given=rows(4)[1:])


def test_more_rows_lower_what_is_epistemic_and_not_what_is_aleatoric():
    rng = np.random.default_rng(0)

    def table(n):
        x = rng.normal(size=(n, 3))
        y = np.stack([x[:, 0] - x[:, 1], x[:, 2]], axis=1) + 0.5 * rng.normal(size=(n, 2))
        schema = Schema(modalities=(ModalitySpec(name="x", shape=(3,)), ModalitySpec(name="y", shape=(2,))))
        return Observations.from_arrays(schema, {"x": x, "y": y})

    config = cs.TrainConfig(max_steps=200, batch_size=64, learning_rate=1e-2, validation=0.2, evaluate_every=25)
    test, found = table(300), []
    for n in (100, 3000):
        fit = cs.fit(cs.Regression(target="y", hidden=32, likelihood="gaussian"), table(n), config, members=3)
        found.append(uncertainty(fit, test, ["y"], n=300).spread())
    few, many = found
    assert (many["epistemic"] < 0.6 * few["epistemic"]).all()
    np.testing.assert_allclose(many["aleatoric"], 0.5, rtol=0.2)
