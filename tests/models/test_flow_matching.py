"""FlowMatching against the closed form, and what it refuses so far."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import consilience as cs
from consilience.data.observations import Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.simulators import linear_gaussian

SMALL = cs.FlowMatching(width=24, layers=2, heads=2, steps=12)


@pytest.fixture(scope="module")
def world():
    return linear_gaussian(seed=0, latent_dim=2, sizes={"x": 4, "y": 2})


@pytest.fixture(scope="module")
def fitted(world):
    table = world.simulate(3000, seed=1, missing=0.2, sigma=0.2)
    config = cs.TrainConfig(max_steps=700, batch_size=128, learning_rate=4e-3, validation=0)
    return cs.fit(SMALL, table, config)


@pytest.mark.parametrize("method", ["fast", "ode"])
def test_every_direction_is_near_the_closed_form(world, fitted, method):
    rows = world.simulate(60, seed=2, missing=0.2, sigma=0.2)
    for hidden in ("x", "y"):
        given = rows.hide(hidden)
        draws = fitted.sample(given, [hidden], n=150, method=method).values[hidden]
        mean, covariance = world.posterior(given, [hidden])
        sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        blind, _ = world.posterior(rows.hide("x", "y"), [hidden])
        error = np.sqrt(np.mean(((draws.mean(0) - mean) / sd) ** 2))
        assert error < 0.4 < 0.7 * np.sqrt(np.mean(((blind - mean) / sd) ** 2))
        assert np.mean(draws.std(0) / sd) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("method", ["fast", "ode"])
def test_densities_are_near_the_closed_form_and_fall_with_the_error_bars(world, fitted, method):
    rows = world.simulate(40, seed=3, missing=0.2, sigma=0.2)
    found = fitted.log_prob(rows, ["y"], method=method)
    mean, covariance = world.posterior(rows.hide("y"), ["y"], observed=rows)
    expected = np.zeros(len(rows))
    for i, y in enumerate(rows.parts["y"].value):
        seen = np.isfinite(y)
        if seen.any():
            expected[i] = multivariate_normal(mean[i][seen], covariance[i][np.ix_(seen, seen)]).logpdf(y[seen])
    assert found.kind == "exact"
    assert np.mean(found.value - expected) == pytest.approx(0, abs=0.2)
    assert np.corrcoef(found.value, expected)[0, 1] > 0.85


@pytest.mark.parametrize("method", ["fast", "ode"])
def test_the_truth_of_measured_cells_is_drawn_between_measurement_and_prediction(world, fitted, method):
    rows = world.simulate(50, seed=6, missing=0.2, sigma=0.6)
    draws = fitted.sample(rows, ["x"], n=100, method=method).values["x"]
    mean, covariance = world.posterior(rows, ["x"])
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    measured = rows.parts["x"].measured
    kept = rows.parts["x"].value
    error = np.sqrt(np.mean(((draws.mean(0) - mean) / sd)[measured] ** 2))
    assert error < 0.5 < 0.7 * np.sqrt(np.mean(((kept - mean) / sd)[measured] ** 2))
    assert np.mean((draws.std(0) / sd)[measured]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("method", ["fast", "ode"])
def test_what_is_known_exactly_is_drawn_as_it_is(world, method):
    table = world.simulate(60, seed=4, missing=0.3, sigma=0.0)
    fit = cs.fit(SMALL, table, cs.TrainConfig(max_steps=3, validation=0))
    draws = fit.sample(table, ["x"], n=20, method=method).values["x"]
    known = table.parts["x"].measured
    np.testing.assert_allclose(
        draws[:, known], np.broadcast_to(table.parts["x"].value[known], (20, known.sum())), rtol=1e-5
    )
    assert (draws[:, ~known].std(axis=0) > 0.05).all()


def test_many_cells_have_an_estimated_density_with_its_error():
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(20,)),))
    value = np.random.default_rng(0).normal(size=(40, 20))
    table = Observations.from_arrays(schema, {"x": value})
    family = SMALL.model_copy(update={"steps": 4})
    fit = cs.fit(family, table, cs.TrainConfig(max_steps=3, validation=0))
    assert fit.log_prob(table, ["x"]).kind == "exact"
    found = fit.log_prob(table, ["x"], method="ode")
    assert found.kind == "estimate" and (found.error > 0).all()


def test_draws_along_the_path_have_the_same_bits_alone(world, fitted):
    rows = world.simulate(70, seed=8, missing=0.3, sigma=0.2).hide("y")
    every = fitted.sample(rows, ["y"], n=3, method="ode").values["y"]
    for row in (0, 68):
        alone = fitted.sample(rows[row : row + 1], ["y"], n=3, method="ode").values["y"]
        assert np.array_equal(alone[:, 0], every[:, row])


def test_answers_come_from_the_averaged_weights(world, fitted):
    model = fitted.members[0]
    averaged = dict(model.averaged.named_buffers())
    trained = {name: one.detach() for name, one in model.network.named_parameters()}
    assert max(float((averaged[name] - one).abs().max()) for name, one in trained.items()) > 1e-6
    rows = world.simulate(5, seed=7).hide("y")
    before = [fitted.sample(rows, ["y"], n=2, method=method).values["y"] for method in ("fast", "ode")]
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(2)
        after = [fitted.sample(rows, ["y"], n=2, method=method).values["y"] for method in ("fast", "ode")]
        for parameter in model.network.parameters():
            parameter.div_(2)
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        (ModalitySpec(name="a", kind="category", classes=3), {}, "'a', category"),
        (ModalitySpec(name="a", shape=(129,)), {}, "128 cells in all"),
        (ModalitySpec(name="a", shape=(2,)), {"width": 10}, "that 4 heads divide"),
    ],
)
def test_refusals(spec, options, match):
    with pytest.raises(SchemaError, match=match):
        cs.FlowMatching(**options).build(Schema(modalities=(spec,)), 10, 0)


def test_limits_are_refused_in_training_and_after(world):
    table = world.simulate(40, seed=5, missing=0.0, sigma=0.1)
    state = np.full((40, 4), State.MEASURED)
    state[3, 1] = State.BELOW
    values = {name: part.value for name, part in table.parts.items()}
    limited = Observations.from_arrays(table.schema, values, state={"x": state}, ids=table.ids)
    config = cs.TrainConfig(max_steps=2, validation=0)
    with pytest.raises(DataError, match="measured cells of 'x'; got limits"):
        cs.fit(SMALL, limited, config)
    with pytest.raises(DataError, match="got limits"):
        cs.fit(SMALL, table, config).sample(limited, ["y"], n=2)
