"""Verbs of every fitted family: bits that do not depend on how a table is cut, densities, ensembles, files."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import trapezoid

import consilience as cs
from consilience.data.observations import Observations, State
from constructors import CONSTRUCTORS, fitted, produced


def pieces(rows, cuts):
    """The table shuffled and cut: orders of rows that together hold each once."""
    order = np.random.default_rng(cuts).permutation(len(rows))
    return np.array_split(order, cuts)


def assert_same_bits(found, expected, what):
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=f"{what}, {name}")


VERBS = {
    "sample": lambda fit, rows: fit.sample(rows, produced(fit), n=5).values,
    "observed": lambda fit, rows: fit.sample(rows, produced(fit), n=3, observed=True).values,
    "impute": lambda fit, rows: fit.impute(rows, n=2).values,
    "summarise": lambda fit, rows: {
        f"{name}/{key}": value
        for name, found in fit.summarise(rows, produced(fit), n=20).statistics.items()
        for key, value in found.items()
    },
    "latent": lambda fit, rows: {
        f"{block}/{kind}": value
        for kind, found in (("mean", fit.latent(rows).mean), ("std", fit.latent(rows).std))
        for block, value in found.items()
    },
    "log_prob": lambda fit, rows: {"value": fit.log_prob(rows, [produced(fit)[-1]]).value},
    "cell_log_prob": lambda fit, rows: fit.cell_log_prob(rows, [produced(fit)[0]]),
}
NEEDS = {"latent": "latent", "impute": "generate"}  # capabilities
DRAWN = ("sample", "observed", "impute")  # their first axis is the draws


def verbs(fit):
    return {verb: answer for verb, answer in VERBS.items() if NEEDS.get(verb, "density") in fit.capabilities}


@pytest.mark.parametrize(("verb", "cuts"), [("sample", 1), ("sample", 17), *((verb, 3) for verb in VERBS)])
def test_bits_do_not_depend_on_order_or_partitioning(fit, fresh, verb, cuts):
    if verb not in verbs(fit):
        pytest.skip(f"no {verb}")
    whole = VERBS[verb](fit, fresh)
    for some in pieces(fresh, cuts):
        expected = {name: value[:, some] if verb in DRAWN else value[some] for name, value in whole.items()}
        assert_same_bits(VERBS[verb](fit, fresh[some]), expected, f"{verb} of {len(some)} rows")


def test_one_row_alone_has_the_bits_it_has_among_others(fit, fresh):
    for verb in verbs(fit):
        whole, alone = VERBS[verb](fit, fresh), VERBS[verb](fit, fresh[70])
        expected = {name: value[:, [70]] if verb in DRAWN else value[[70]] for name, value in whole.items()}
        assert_same_bits(alone, expected, verb)


def test_what_is_hidden_changes_no_draw(fit, fresh):
    """Value, error bar, state: nothing of a hidden cell reaches an answer."""
    target, rng = produced(fit)[0], np.random.default_rng(0)
    part = fresh.parts[target]
    other = replace(
        part,
        value=np.where(part.seen, part.value * rng.uniform(1, 9, size=part.value.shape), np.nan),
        sigma=None if part.sigma is None else part.sigma * rng.uniform(1, 9, size=part.value.shape),
    )
    moved = replace(fresh, parts={**fresh.parts, target: other})
    hide = {target: rng.random(part.value.shape) < 2}  # all of it
    draws = [fit.sample(rows.hide_cells(hide), [target], n=4).values for rows in (fresh, moved)]
    assert_same_bits(*draws, "hidden cells")


def test_draws_are_of_the_shape_kind_and_ids_asked(fit, fresh):
    found = fit.sample(fresh, produced(fit), n=4)
    assert found.ids.tolist() == fresh.ids.tolist()
    assert len(found) == 4
    for spec in (fresh.schema[name] for name in produced(fit)):
        value = found.values[spec.name]
        assert value.shape == (4, len(fresh), *spec.shape)
        absent = fresh.parts[spec.name].state == State.ABSENT  # beyond the end of a trial
        assert np.isnan(value[:, absent]).all()
        value = value[:, ~absent]
        assert np.isfinite(value).all()
        if spec.kind == "positive":
            assert (value > 0).all()
        elif spec.kind in ("count", "binary", "category"):
            top = {"count": np.inf, "binary": 1, "category": spec.classes - 1}[spec.kind]
            assert ((value >= 0) & (value <= top) & (value == np.round(value))).all()


def test_same_seed_same_answer_and_another_seed_another(fit, fresh):
    first, again = (fit.sample(fresh, produced(fit), n=3, seed=4).values for _ in range(2))
    other = fit.sample(fresh, produced(fit), n=3, seed=5).values
    assert_same_bits(first, again, "seed")
    for name in first:
        assert not np.array_equal(first[name], other[name])


def test_same_seed_same_weights(name):
    first = fitted(name)
    again = fitted.__wrapped__(name)
    for key, value in first.members[0].state_dict().items():
        assert value.equal(again.members[0].state_dict()[key]), key


def test_a_saved_model_answers_with_the_same_bits(fit, fresh, tmp_path):
    fit.save(tmp_path / "model")
    loaded = cs.load(tmp_path / "model")
    for verb in verbs(fit):
        assert_same_bits(VERBS[verb](loaded, fresh[:70]), VERBS[verb](fit, fresh[:70]), verb)
    assert loaded.family == fit.family
    assert loaded.config == fit.config
    assert loaded.schema == fit.schema
    assert list(loaded.history) == list(fit.history)


def test_objects_nobody_has_observed(fit):
    if "generate" not in fit.capabilities:
        pytest.skip("draws no whole objects")
    found = fit.generate(70, seed=3)
    for spec in fit.schema.modalities:
        assert found.values[spec.name].shape == (1, 70, *spec.shape)
        assert np.isfinite(found.values[spec.name]).all()
    assert_same_bits(fit.generate(70, seed=3).values, found.values, "generate")


def single(rows, target, index, values):
    """Copies of one row of which only one cell of the target is known, with these values."""
    size = len(values)
    copies = rows[np.full(size, 0)]
    spec = rows.schema[target]
    cells = np.full((size, *spec.shape), np.nan)
    cells[(slice(None), *index)] = values
    table = {m: copies.parts[m].value for m in rows.schema.names} | {target: cells}
    # one id for all, so that all share their draws
    made = Observations.from_arrays(rows.schema, table)
    return replace(made, ids=np.full(size, "one"))


def test_the_density_of_one_cell_integrates_to_one(fit, fresh):
    for spec in (fresh.schema[name] for name in produced(fit)):
        index = (0,) * len(spec.shape)
        if spec.kind in ("count", "binary", "category"):
            grid = np.arange({"count": 150, "binary": 2, "category": spec.classes}[spec.kind], dtype=float)
            found = fit.log_prob(single(fresh, spec.name, index, grid), [spec.name])
            total = np.exp(found.value).sum()
        else:
            cell = fit.summarise(fresh[:1].hide(spec.name), [spec.name], statistics=("q0.1", "q99.9"), n=500)
            low, high = (cell.statistics[spec.name][q][(0, *index)] for q in ("q0.1", "q99.9"))
            if spec.kind == "positive":
                grid = np.exp(np.linspace(math.log(low) - 4, math.log(high) + 4, 500))
            else:
                grid = np.linspace(low - 3 * (high - low), high + 3 * (high - low), 700)
            found = fit.log_prob(single(fresh, spec.name, index, grid), [spec.name])
            total = trapezoid(np.exp(found.value), grid)
        # heavy tails reach beyond the grid, a softmax is averaged over fixed nodes
        assert total == pytest.approx(1, abs=5e-3), spec.name
        cells = fit.cell_log_prob(single(fresh, spec.name, index, grid[:5]), [spec.name])[spec.name]
        error = 0 if found.error is None else 5 * found.error[:5]
        near = np.abs(cells[(slice(None), *index)] - found.value[:5])
        assert (near <= 1e-4 * (1 + np.abs(found.value[:5])) + error).all(), spec.name


def test_densities_say_how_they_were_obtained_and_score_nothing_where_nothing_is_seen(fit, scored):
    fresh, target = scored, produced(fit)[0]
    found = fit.log_prob(fresh, [target])
    assert found.kind in ("exact", "bound", "estimate")
    if found.kind == "estimate":
        assert found.error is not None and (found.error >= 0).all()
    nothing = fit.log_prob(fresh.hide(target), [target], given=fresh.hide(target))
    np.testing.assert_allclose(nothing.value, 0.0, atol=1e-6)
    assert np.isnan(fit.cell_log_prob(fresh.hide(target), [target])[target]).all()


def test_seeing_more_is_scored_higher_on_average(name, scored):
    # encoders of a mixture are too sure of themselves for longer
    fit, fresh = fitted(name, steps=200 if name == "dvae-mixture" else 30), scored
    if fit.family.model_dump().get("posterior") in ("point", "map"):
        return  # without the latent's uncertainty they are certain of what they do not know
    if len(fresh.schema.names) == 1:
        return  # there is nothing else to see
    target = produced(fit)[0]
    informed = fit.log_prob(fresh, [target]).value.mean()
    blind = fit.log_prob(fresh, [target], given=fresh.hide(*fresh.schema.names)).value.mean()
    assert informed > blind


@pytest.mark.parametrize("entry", [next(iter(CONSTRUCTORS)), "gplvm-private-gaussian", "gplvm-mixed"])
def test_an_ensemble_is_a_mixture_of_its_members(entry, tmp_path):
    both = fitted(entry, members=2)
    rows = CONSTRUCTORS[entry][1](70, seed=1)
    target = rows.schema.names[0]
    draws = both.sample(rows, [target], n=5)
    assert draws.member.tolist() == [0, 0, 0, 1, 1]
    alone = [replace(both, members=(member,)) for member in both.members]
    np.testing.assert_array_equal(draws.values[target][:3], alone[0].sample(rows, [target], n=3).values[target])
    assert not np.array_equal(draws.values[target][3], draws.values[target][0])
    first, second = fitted(entry), fitted(entry, seed=1)
    for member, expected in zip(both.members, (first, second), strict=True):
        for key, value in member.state_dict().items():
            assert value.equal(expected.members[0].state_dict()[key]), key
    mixed = both.log_prob(rows, [target]).value
    each = [one.log_prob(rows, [target]).value for one in alone]
    np.testing.assert_allclose(mixed[: len(rows)].mean(), np.logaddexp(*each).mean() - math.log(2), atol=0.5)
    both.save(tmp_path / "pair")
    again = cs.load(tmp_path / "pair")
    np.testing.assert_array_equal(again.sample(rows, [target], n=5).values[target], draws.values[target])
