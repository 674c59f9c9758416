"""Requests and answers of a fitted model that no contract covers: limits, errors, summaries, error bars."""

from dataclasses import replace

import numpy as np
import pytest

import consilience as cs
from consilience.data.observations import Modality, Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, MemoryLimitError, RequestError, SchemaError
from consilience.predict.tiles import TILE, TILE_CELLS, conform, tiles
from constructors import fitted, mixed, plain


@pytest.fixture
def fit():
    return fitted("gplvm-encoder")


@pytest.fixture
def rows():
    return plain(80, seed=1)


def test_summaries_equal_the_statistics_of_the_draws(fit, rows):
    draws = fit.sample(rows, rows.schema.names, n=37, seed=3).values
    keys = ("mean", "std", "q2.5", "q16", "q50", "q84", "q100")
    found = fit.summarise(rows, rows.schema.names, statistics=keys, n=37, seed=3)
    assert found.draws == 37
    for name, value in draws.items():
        np.testing.assert_allclose(found.statistics[name]["mean"], value.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.statistics[name]["std"], value.std(0), rtol=1e-10)
        for key in keys[2:]:
            np.testing.assert_array_equal(found.statistics[name][key], np.percentile(value, float(key[1:]), axis=0))


def test_summaries_of_an_ensemble_are_those_of_its_draws():
    both, rows = fitted("gplvm-encoder", members=2), plain(5, seed=1)
    draws = both.sample(rows, ["labels"], n=8).values["labels"]
    found = both.summarise(rows, ["labels"], statistics=("mean",), n=8).statistics["labels"]["mean"]
    np.testing.assert_allclose(found, draws.mean(0), rtol=1e-12)


@pytest.mark.parametrize("statistic", ["median", "q", "q101", "q-1", "qx", "Mean"])
def test_an_unknown_statistic_is_refused(fit, rows, statistic):
    with pytest.raises(RequestError, match=f"Expected statistics .*; got '{statistic}'"):
        fit.summarise(rows, ["labels"], statistics=(statistic,))


def test_draws_that_would_not_fit_are_refused_before_they_are_made(fit, rows, monkeypatch):
    import consilience.predict.fitted as module

    with pytest.raises(MemoryLimitError, match=r"at most 4 GiB; got 59.6 GiB \(10000000 draws of 80 objects\)"):
        fit.sample(rows, rows.schema.names, n=10_000_000)
    monkeypatch.setattr(module, "LIMIT", 8 * 80 * 2 * 5)
    assert len(fit.sample(rows, ["labels"], n=5)) == 5
    with pytest.raises(MemoryLimitError):
        fit.sample(rows, ["labels"], n=6)
    with pytest.raises(MemoryLimitError):
        fit.impute(rows, n=5)
    assert fit.summarise(rows, ["labels"], n=50).draws == 50


@pytest.mark.parametrize("n", [0, -3])
def test_less_than_one_draw_is_refused(fit, rows, n):
    with pytest.raises(RequestError, match=f"Expected n >= 1 draws; got {n}"):
        fit.sample(rows, ["labels"], n=n)
    with pytest.raises(RequestError, match=f"Expected n >= 1 draws; got {n}"):
        fit.summarise(rows, ["labels"], n=n)


def test_unknown_and_missing_targets_are_refused(fit, rows):
    with pytest.raises(RequestError, match="Did you mean 'labels'"):
        fit.sample(rows, ["label"], n=2)
    with pytest.raises(CapabilityError, match="Expected a question that this model answers"):
        fit.sample(rows, [], n=2)


def test_a_single_target_may_be_given_by_name(fit, rows):
    np.testing.assert_array_equal(
        fit.sample(rows, "labels", n=2).values["labels"], fit.sample(rows, ["labels"], n=2).values["labels"]
    )


def test_measurement_error_widens_the_draws_by_the_rows_sigma(fit, rows):
    hidden = rows.hide("spectrum")
    clean = fit.sample(hidden, ["spectrum"], n=400).values["spectrum"]
    part = rows.parts["spectrum"]
    big = replace(part, sigma=np.where(part.seen, 50.0, np.nan))
    at = replace(rows, parts={**rows.parts, "spectrum": big})
    noisy = fit.sample(hidden, ["spectrum"], n=400, observed=True, at=at).values["spectrum"]
    spread = (noisy - clean).std(0)
    np.testing.assert_allclose(spread[part.seen], 50.0, rtol=0.2)
    assert not spread[~part.seen].any()
    # nothing is known of the errors of hidden cells
    np.testing.assert_array_equal(fit.sample(hidden, ["spectrum"], n=400, observed=True).values["spectrum"], clean)


def test_rows_that_do_not_match_are_refused(fit, rows):
    with pytest.raises(RequestError, match="Expected `at` with the ids of the rows sampled"):
        fit.sample(rows, ["labels"], n=2, observed=True, at=rows[::-1])
    with pytest.raises(RequestError, match="Expected `given` with the ids of the rows scored"):
        fit.log_prob(rows, ["labels"], given=rows[:5])


def with_spec(rows, name, **changes):
    """The table with one modality described differently."""
    spec = rows.schema[name].model_copy(update=changes)
    return replace(rows, schema=Schema(modalities=tuple(spec if s.name == name else s for s in rows.schema.modalities)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (9,), "grid": None}, r"with shape \(8,\); got \(9,\)"),
        ({"kind": "positive"}, "with kind real; got positive"),
        ({"grid": None}, "with grid"),
        ({"unit": "Jy"}, "Expected units of 'spectrum' like ''; got 'Jy'"),
    ],
)
def test_a_schema_that_does_not_match_gives_one_line(fit, rows, changes, words):
    wrong = with_spec(rows, "spectrum", **changes)
    for verb in (
        lambda: fit.sample(wrong, ["labels"], n=2),
        lambda: fit.latent(wrong),
        lambda: fit.log_prob(wrong, ["labels"]),
        lambda: fit.cell_log_prob(wrong, ["labels"]),
    ):
        with pytest.raises(SchemaError, match=words) as caught:
            verb()
        assert "\n" not in str(caught.value)


def test_a_modality_the_model_does_not_know_is_refused(fit, rows):
    spec = ModalitySpec(name="radio", shape=(1,))
    other = Observations.from_arrays(Schema(modalities=(spec,)), {"radio": np.ones((80, 1))}, ids=rows.ids)
    with pytest.raises((SchemaError, CapabilityError), match="radio"):
        fit.latent(rows.join(other))


def test_a_modality_that_is_not_given_is_unseen(fit, rows):
    alone = fit.sample(rows.select("spectrum"), ["labels"], n=3).values["labels"]
    np.testing.assert_array_equal(alone, fit.sample(rows.hide("labels"), ["labels"], n=3).values["labels"])


def test_error_bars_may_be_absent_from_new_rows(fit, rows):
    values = {name: part.value for name, part in rows.parts.items()}
    bare = Observations.from_arrays(rows.schema, values, ids=rows.ids)
    assert np.isfinite(fit.sample(bare, ["labels"], n=3).values["labels"]).all()


def test_cells_outside_the_extent_have_no_draws(fit, rows):
    part = rows.parts["spectrum"]
    outside = np.zeros(part.state.shape, bool)
    outside[:, 5:] = True
    state = np.where(outside, np.int8(0), part.state)
    gone = Modality(np.where(outside, np.nan, part.value), state, np.where(outside, np.nan, part.sigma))
    draws = fit.impute(replace(rows, parts={**rows.parts, "spectrum": gone}), n=2).values
    np.testing.assert_array_equal(np.isnan(draws["spectrum"]), np.broadcast_to(outside, (2, *outside.shape)))
    assert np.isfinite(draws["labels"]).all()


def test_densities_are_per_physical_unit():
    """The same table in other units: log densities move by the log of the factor, per measured cell."""
    factor = 1000.0
    table = plain(40)
    specs = tuple(spec.model_copy(update={"scale": "standard"}) for spec in table.schema.modalities)
    config = cs.TrainConfig(max_steps=5, batch_size=16, validation=0)
    found = []
    for times in (1.0, factor):
        values = {name: part.value * times for name, part in table.parts.items()}
        sigma = {"spectrum": table.parts["spectrum"].sigma * times}
        scaled = Observations.from_arrays(Schema(modalities=specs), values, sigma=sigma, ids=table.ids)
        fit = cs.fit(cs.SharedGPLVM(latent_dim=2, inducing=5), scaled, config)
        found.append(fit.log_prob(scaled, ["spectrum"]).value)
    cells = table.parts["spectrum"].measured.sum(-1)
    np.testing.assert_allclose(found[0] - found[1], cells * np.log(factor), rtol=1e-3, atol=1e-2)


def test_a_limit_is_scored_by_its_probability():
    fit, rows = fitted("gplvm-mixed"), mixed(6, seed=1)
    far = {name: part.value for name, part in rows.parts.items()}
    for value, expected in ((1e6, 0.0), (-1e6, -np.inf)):
        far["bands"] = np.full((6, 3), value)
        state = {"bands": np.full((6, 3), 3)}
        bound = Observations.from_arrays(rows.schema, far, state=state, ids=rows.ids)
        found = fit.log_prob(bound, ["bands"]).value
        if expected == 0:
            np.testing.assert_allclose(found, 0.0, atol=1e-6)
        else:
            assert (found < -1000).all()


def test_objects_of_many_cells_come_in_smaller_tiles():
    """A recording of pictures must not be padded to sixty-four of them."""
    cells = TILE_CELLS // 4 + 1
    schema = Schema(modalities=(ModalitySpec(name="film", shape=(cells,)),))
    film = Observations.from_arrays(schema, {"film": np.zeros((4, cells))})
    assert [len(tile.obs) for tile in tiles(film)] == [3, 3]
    assert [len(tile.obs) for tile in tiles(film[:1])] == [3]


def test_tiles_cover_the_table_in_order_and_are_all_of_one_size(rows):
    cut = list(tiles(rows))
    assert [tile.start for tile in cut] == [0, TILE]
    assert [tile.rows for tile in cut] == [TILE, 80 - TILE]
    assert all(len(tile.obs) == TILE for tile in cut)
    last = cut[-1]
    np.testing.assert_array_equal(last.obs.ids[: last.rows], rows.ids[last.place])
    assert not any(part.seen[last.rows :].any() for part in last.obs.parts.values())
    assert (last.obs.index[last.rows :] == -1).all()


def test_conforming_keeps_the_models_order_and_fills_in_what_is_missing(rows):
    found = conform(rows.select("labels"), rows.schema)
    assert tuple(found.parts) == found.schema.names == rows.schema.names
    assert not found.parts["spectrum"].seen.any()
    np.testing.assert_array_equal(found.parts["labels"].value, rows.parts["labels"].value)
