"""The Scaler: invertible on value and error bar, fitted on what was measured, neutral where nothing was seen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consilience.data.observations import Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import DataError

SCALES = ("standard", "robust", "asinh", "log", "none")
ROWS = 30


def spec_of(scale, **more):
    return ModalitySpec(name="x", shape=(3,), scale=scale, **more)


def table_of(spec, value, sigma=None, state=None):
    options = {"sigma": None if sigma is None else {"x": sigma}, "state": None if state is None else {"x": state}}
    return Observations.from_arrays(Schema(modalities=(spec,)), {"x": value}, **options)


def numbers(scale, seed, magnitude=1.0):
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(ROWS, 3)) * magnitude + rng.normal() * magnitude
    return np.exp(np.clip(value / magnitude, -5, 5)) * magnitude if scale == "log" else value


@pytest.mark.parametrize("scale", SCALES)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-12, 12))
def test_values_and_error_bars_come_back(scale, seed, exponent):
    magnitude = 10.0**exponent
    value = numbers(scale, seed, magnitude)
    sigma = 1e-4 * magnitude * np.random.default_rng(seed).uniform(0.1, 1, size=value.shape)
    obs = table_of(spec_of(scale), value, sigma)
    scaler = Scaler.fit(obs)
    part = scaler.forward(obs).parts["x"]
    back = scaler.inverse("x", part.value)
    np.testing.assert_allclose(back, value, rtol=1e-9, atol=1e-9 * magnitude)
    # σ by the delta method: a step of the error bar in model units is one of σ in physical units
    step = 1e-3 * part.sigma
    width = (scaler.inverse("x", part.value + step) - scaler.inverse("x", part.value - step)) / 2e-3
    np.testing.assert_allclose(width, sigma, rtol=1e-3)


@pytest.mark.parametrize("scale", ["standard", "robust", "asinh", "log"])
@given(seed=st.integers(0, 10_000))
def test_log_jacobian_equals_finite_differences(scale, seed):
    obs = table_of(spec_of(scale), numbers(scale, seed))
    scaler = Scaler.fit(obs)
    value = obs.parts["x"].value
    step = 1e-6 * np.maximum(np.abs(value), 1e-2)
    up, down = (scaler.forward(table_of(spec_of(scale), value + s * step)).parts["x"].value for s in (1, -1))
    assume((up > down).all())
    np.testing.assert_allclose(scaler.log_jacobian(obs)["x"], np.log((up - down) / (2 * step)), atol=1e-4)


@pytest.mark.parametrize("scale", ["standard", "robust", "asinh", "log"])
def test_maps_are_strictly_increasing(scale):
    obs = table_of(spec_of(scale), numbers(scale, 0))
    scaler = Scaler.fit(obs)
    order = np.sort(obs.parts["x"].value, axis=0)
    scaled = scaler.forward(table_of(spec_of(scale), order)).parts["x"].value
    assert (np.diff(scaled, axis=0) > 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_unseen_cells_leave_with_value_zero_and_error_one(scale):
    rng = np.random.default_rng(0)
    value, sigma = numbers(scale, 1), rng.uniform(0.1, 0.2, size=(ROWS, 3))
    value[rng.random(value.shape) < 0.4] = np.nan
    sigma[rng.random(value.shape) < 0.2] = np.nan
    obs = table_of(spec_of(scale), value, sigma)
    part = Scaler.fit(obs).forward(obs).parts["x"]
    unseen = np.isnan(value)
    assert (part.value[unseen] == 0).all() and (part.sigma[unseen] == 1).all()
    unstated = np.isnan(sigma) & ~unseen
    assert unstated.any() and (part.sigma[unstated] == 0).all()
    assert np.isfinite(part.value).all() and np.isfinite(part.sigma).all()
    assert (part.state == obs.parts["x"].state).all()


@pytest.mark.parametrize("scale", SCALES)
def test_numbers_left_in_unseen_cells_go_no_further(scale):
    obs = table_of(spec_of(scale), numbers(scale, 1), np.full((ROWS, 3), 0.1))
    part = obs.parts["x"]
    state = np.where(np.random.default_rng(0).random(part.state.shape) < 0.5, State.UNSEEN, part.state).astype(np.int8)
    left = Scaler.fit(obs).forward(replace(obs, parts={"x": replace(part, state=state)})).parts["x"]
    assert (left.value[state == State.UNSEEN] == 0).all()
    assert (left.sigma[state == State.UNSEEN] == 1).all()


@pytest.mark.parametrize("scale", SCALES)
def test_limits_are_mapped_but_do_not_fit_and_have_no_jacobian(scale):
    value = numbers(scale, 2)
    state = np.full(value.shape, State.MEASURED)
    state[:5] = State.BELOW
    moved = value.copy()
    moved[:5] *= 1.5
    first, second = (Scaler.fit(table_of(spec_of(scale), v, state=state)) for v in (value, moved))
    for field, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[field])
    obs = table_of(spec_of(scale), value, state=state)
    np.testing.assert_allclose(first.inverse("x", first.forward(obs).parts["x"].value), value, rtol=1e-9)
    assert (first.log_jacobian(obs)["x"][:5] == 0).all()


@pytest.mark.parametrize(("kind", "classes"), [("count", 0), ("binary", 0), ("category", 2)])
def test_counts_binaries_and_categories_are_never_rescaled(kind, classes):
    value = np.random.default_rng(0).integers(0, 2, size=(ROWS, 3)).astype(float)
    obs = table_of(spec_of(None, kind=kind, classes=classes), value)
    scaler = Scaler.fit(obs)
    np.testing.assert_array_equal(scaler.forward(obs).parts["x"].value, value)
    assert not scaler.log_jacobian(obs)["x"].any()
    asked = table_of(spec_of("standard", kind=kind, classes=classes), value)
    np.testing.assert_array_equal(Scaler.fit(asked).forward(asked).parts["x"].value, value)


def test_standard_and_robust_scales_are_the_columns_own_for_named_cells():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(5000, 2)) * [1.0, 1000.0] + [5.0, -3.0]
    value[:50, 0] = 1e6  # outliers: robust does not mind
    cells = ({"name": "a"}, {"name": "b"})
    found = {}
    for scale in ("standard", "robust"):
        spec = ModalitySpec(name="x", cells=cells, scale=scale)
        obs = Observations.from_arrays(Schema(modalities=(spec,)), {"x": value})
        found[scale] = Scaler.fit(obs).transforms["x"]
    np.testing.assert_allclose(found["robust"].scale, [1.0, 1000.0], rtol=0.06)
    np.testing.assert_allclose(found["robust"].location, [5.0, -3.0], atol=50)
    assert found["standard"].scale[0] > 1e4


def test_a_cell_of_a_grid_seen_in_few_rows_borrows_the_scale_of_the_others():
    value = np.random.default_rng(0).normal(size=(ROWS, 3))
    value[1:, 2] = np.nan
    value[0, 2] = 40.0
    transform = Scaler.fit(table_of(spec_of("standard"), value)).transforms["x"]
    assert 0 < transform.location[2] < 40 * 0.5
    assert transform.scale[2] > 0.5
    never = value.copy()
    never[:, 2] = np.nan
    transform = Scaler.fit(table_of(spec_of("standard"), never)).transforms["x"]
    assert np.isfinite(transform.location).all() and (transform.scale > 0).all()


def test_a_constant_column_keeps_a_positive_scale():
    for scale in ("standard", "robust", "asinh", "log"):
        value = np.full((ROWS, 3), 7.0)
        scaler = Scaler.fit(table_of(spec_of(scale), value))
        assert (scaler.transforms["x"].scale > 0).all()
        obs = table_of(spec_of(scale), value)
        np.testing.assert_allclose(scaler.inverse("x", scaler.forward(obs).parts["x"].value), value)


def test_other_rows_do_not_move_a_fitted_scaler():
    train, test = table_of(spec_of("robust"), numbers("robust", 3)), table_of(spec_of("robust"), numbers("robust", 4))
    scaler = Scaler.fit(train)
    before = {name: array.copy() for name, array in scaler.arrays().items()}
    scaler.forward(test)
    for name, array in scaler.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_each_band_is_softened_by_its_own_noise():
    """Depths decades apart: faint fluxes keep their signal-to-noise ratio, of bright ones it is the logarithm."""
    rng = np.random.default_rng(0)
    depth = np.array([0.01, 1.0, 100.0])
    true = depth * 10 ** rng.uniform(-1, 4, (2000, 1))
    sigma = np.broadcast_to(depth, true.shape[:1] + depth.shape)
    names = ("deep", "shallow", "shallower")
    spec = ModalitySpec(name="x", cells=tuple(Cell(name=name) for name in names), axis="band", scale="asinh")
    flux = true + sigma * rng.standard_normal(sigma.shape)
    flux[:, 2] = np.where(rng.random(2000) < 0.5, np.nan, flux[:, 2])
    obs = Observations.from_arrays(Schema(modalities=(spec,)), {"x": flux}, sigma={"x": sigma})
    scaler = Scaler.fit(obs)
    np.testing.assert_allclose(scaler.transforms["x"].stretch, 3 * depth, rtol=1e-12)
    bare = Observations.from_arrays(Schema(modalities=(spec,)), {"x": flux})
    np.testing.assert_allclose(Scaler.fit(bare).transforms["x"].stretch, np.nanmedian(np.abs(flux), axis=0))
    grid = Schema(modalities=(ModalitySpec(name="x", shape=(3,), scale="asinh"),))
    one = Scaler.fit(Observations.from_arrays(grid, {"x": flux}, sigma={"x": sigma})).transforms["x"].stretch
    assert len(set(one)) == 1 and one[0] == max(np.nanmedian(np.abs(flux)), 3 * np.median(sigma[np.isfinite(flux)]))


def test_arrays_rebuild_the_scaler():
    obs = table_of(spec_of("asinh"), numbers("asinh", 5))
    scaler = Scaler.fit(obs)
    again = Scaler.from_arrays(obs.schema, scaler.arrays())
    np.testing.assert_array_equal(again.forward(obs).parts["x"].value, scaler.forward(obs).parts["x"].value)


@pytest.mark.parametrize(
    ("scale", "value", "words"),
    [
        ("standard", np.full((ROWS, 3), np.nan), "Expected measured cells in modality 'x'; got none"),
        ("log", np.linspace(-1, 1, 3 * ROWS).reshape(ROWS, 3), r"positive values in 'x' \(scale 'log'\); got -1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(scale, value, words):
    with pytest.raises(DataError, match=words):
        Scaler.fit(table_of(spec_of(scale), value))


def test_a_new_row_that_has_no_logarithm_is_one_error():
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,), scale="log"),))
    scaler = Scaler.fit(Observations.from_arrays(schema, {"x": np.array([[1.0], [2.0]])}))
    new = Observations.from_arrays(schema, {"x": np.array([[3.0], [-1.0]])})
    with pytest.raises(DataError, match=r"positive values in 'x'.*row 1"):
        scaler.forward(new)


def bounded(**more):
    cells = ({"name": "z", "bounds": (0.0, 7.0)}, {"name": "mass"})
    return Schema(modalities=(ModalitySpec(name="labels", cells=cells, **more),))


def test_cells_with_bounds_come_back_between_them_and_the_others_as_they_were():
    rng = np.random.default_rng(0)
    value = np.stack([rng.uniform(0, 7, 400), rng.normal(10, 2, 400)], -1)
    value[0, 0], value[1, 0] = 0.0, 7.0
    obs = Observations.from_arrays(bounded(), {"labels": value}, sigma={"labels": np.full_like(value, 0.01)})
    scaler = Scaler.fit(obs)
    part = scaler.forward(obs).parts["labels"]
    assert (
        np.isfinite(part.value).all()
        and abs(part.value.mean()) < 0.02
        and part.value.std() == pytest.approx(1, abs=0.1)
    )
    np.testing.assert_allclose(scaler.inverse("labels", part.value), value, atol=1e-5)
    wild = scaler.inverse("labels", 50 * rng.normal(size=(100_000, 2)))
    assert wild[:, 0].min() >= 0 and wild[:, 0].max() <= 7 and wild[:, 1].max() > 100
    step = 1e-6
    shifted = Observations.from_arrays(bounded(), {"labels": np.clip(value + [step, step], None, [7.0, np.inf])})
    slope = (scaler.forward(shifted).parts["labels"].value - part.value)[2:] / step
    np.testing.assert_allclose(np.exp(scaler.log_jacobian(obs)["labels"])[2:], slope, rtol=1e-3)
    np.testing.assert_allclose(part.sigma[2:], 0.01 * slope, rtol=1e-3)


def test_values_beyond_their_bounds_are_named():
    obs = Observations.from_arrays(bounded(), {"labels": np.array([[1.0, 10.0], [7.5, 11.0]])})
    with pytest.raises(DataError, match="values of 'z' between its bounds 0 and 7; got 7.5 in row 1"):
        Scaler.fit(obs)


@pytest.mark.parametrize(
    "more", [{"kind": "count"}, {"scale": "standard"}, {"bounds": (1.0, 1.0)}, {"scale": "bounded"}]
)
def test_bounds_that_make_no_sense_are_refused(more):
    plain = {"shape": (2,)} if more == {"scale": "bounded"} else {"shape": (2,), "bounds": (0.0, 1.0)}
    with pytest.raises(ValueError, match="Expected (finite )?bounds"):
        ModalitySpec(name="x", **plain | more)
