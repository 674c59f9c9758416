"""Regression: as good as least squares where that is best, one model for every pattern of gaps, one question."""

import numpy as np
import pytest

import consilience as cs
from consilience.errors import CapabilityError, DataError, SchemaError


def table(rows, seed=0):
    """Labels that are linear in two modalities, with known noise."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(rows, 6)), np.random.default_rng(9).normal(size=(6, 2))
    labels = 3 + x @ w + 0.5 * rng.normal(size=(rows, 2))
    specs = [cs.ModalitySpec(name=name, shape=(size,)) for name, size in (("a", 4), ("b", 2), ("labels", 2))]
    values = {"a": x[:, :4], "b": x[:, 4:], "labels": labels}
    return cs.Observations.from_arrays(cs.Schema(modalities=tuple(specs)), values)


def gappy(rows):
    """Every other object has no b."""
    part = rows.parts["b"]
    return rows.hide_cells({"b": np.arange(len(rows))[:, None] % 2 < np.ones(part.value.shape)})


@pytest.fixture(scope="module")
def fitted():
    config = cs.TrainConfig(max_steps=600, learning_rate=5e-3, batch_size=128, validation=0.0)
    return cs.fit(cs.Regression(target="labels", hidden=32), gappy(table(3000)), config)


def errors(fitted, rows):
    found = fitted.summarise(rows.hide("labels"), ["labels"], statistics=("mean",), n=400)
    return (found.statistics["labels"]["mean"] - rows.parts["labels"].value).std(0)


def test_errors_and_widths_are_those_of_the_noise(fitted):
    rows = table(1000, seed=1)
    assert (errors(fitted, rows) < 0.55).all()
    for given in (rows, rows.hide("b")):
        found = fitted.summarise(given.hide("labels"), ["labels"], statistics=("std",), n=400)
        np.testing.assert_allclose(found.statistics["labels"]["std"].mean(0), errors(fitted, given), rtol=0.1)


def test_without_a_modality_it_is_as_good_as_least_squares_without_it(fitted):
    train, rows = table(3000), table(1000, seed=1)
    x, y = (np.c_[np.ones(len(t)), t.parts["a"].value] for t in (train, rows))
    coefficients = np.linalg.lstsq(x, train.parts["labels"].value, rcond=None)[0]
    best = (y @ coefficients - rows.parts["labels"].value).std(0)
    assert (errors(fitted, rows.hide("b")) < 1.1 * best).all()


def test_what_it_does_not_answer_is_refused(fitted):
    rows = table(4)
    with pytest.raises(CapabilityError, match="hide what it does not read"):
        fitted.sample(rows, ["labels"], n=2)
    with pytest.raises(CapabilityError, match="question"):
        fitted.sample(rows.hide("labels"), ["a"], n=2)
    with pytest.raises(CapabilityError):
        fitted.impute(rows)
    with pytest.raises(CapabilityError, match="latent"):
        fitted.latent(rows)


def test_its_record_has_the_coverage_of_the_target_alone():
    config = cs.TrainConfig(max_steps=5, validation=0.2)
    record = cs.fit(cs.Regression(hidden=8), table(200), config).calibration
    assert set(record["given_the_rest"]) == {"labels"}


def test_bad_options_and_tables_are_refused():
    with pytest.raises(SchemaError, match="besides"):
        cs.fit(cs.Regression(), table(20).select("labels"), cs.TrainConfig(max_steps=1))
    with pytest.raises(SchemaError, match="of what is read"):
        cs.fit(cs.Regression(networks={"labels": "linear"}), table(20), cs.TrainConfig(max_steps=1))
    rows = table(20)
    state = np.where(np.arange(40).reshape(20, 2) % 2, cs.State.MEASURED, cs.State.BELOW)
    values = {name: part.value for name, part in rows.parts.items()}
    limited = cs.Observations.from_arrays(rows.schema, values, state={"labels": state})
    with pytest.raises(DataError, match="no limits in 'labels'"):
        cs.fit(cs.Regression(likelihood="student"), limited, cs.TrainConfig(max_steps=1))
