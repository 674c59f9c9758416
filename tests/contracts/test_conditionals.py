"""Conditionals of every family, on scaled tensors: rows stand alone, noise is supplied, nothing seen is the prior."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.noise import Noise
from consilience.data.observations import Observations
from constructors import CONSTRUCTORS, fitted, produced

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def scaled(fit, rows):
    some = next(fit.members[0].parameters())
    return fit.scaler.forward(rows.detached()).to(dtype=some.dtype)


def conditional(fit, rows):
    batch = scaled(fit, rows)
    return fit.members[0].fresh(batch).condition(batch)


def noise(fit, rows):
    return Noise(0, rows.ids, dtype=next(fit.members[0].parameters()).dtype)


def draws(fit, rows, n=5):
    return conditional(fit, rows).sample(produced(fit), noise(fit, rows), n)


def assert_close(found, expected, names, factor=1):
    """Equal within the promise; of discrete draws at most one may sit on the edge of a step."""
    for name in found:
        tolerance = factor * TOLERANCE[found[name].dtype]
        if names[name].kind in ("count", "binary", "category"):
            assert int((found[name] != expected[name]).sum()) <= 1, name
            continue
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_batch_equals_its_rows_one_by_one(name, precision):
    fit, rows = fitted(name, precision=precision), CONSTRUCTORS[name][1](8, seed=1)
    together = draws(fit, rows)
    alone = [draws(fit, rows[k]) for k in range(len(rows))]
    joined = {target: torch.cat([one[target] for one in alone], 1) for target in together}
    assert_close(joined, together, rows.schema)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_permuted_objects_give_permuted_answers(name, precision, fresh):
    fit = fitted(name, precision=precision)
    order = np.random.default_rng(0).permutation(len(fresh))
    straight, permuted = draws(fit, fresh), draws(fit, fresh[order])
    # the worst of 90 rows: nearly singular gram matrices amplify the rounding of float32
    assert_close(permuted, {target: value[:, order] for target, value in straight.items()}, fresh.schema, factor=5)


def test_draws_have_their_shapes_and_precision(fit, fresh):
    dtype = next(fit.members[0].parameters()).dtype
    for target, value in draws(fit, fresh, n=3).items():
        assert value.shape[:2] == (3, len(fresh))
        assert value.shape[2:].numel() == fresh.schema[target].size
        assert value.dtype == dtype
        assert torch.isfinite(value).all()


def test_draws_are_a_pure_map_of_the_noise(fit, fresh):
    found = conditional(fit, fresh)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = found.sample(produced(fit), noise(fit, fresh), 4)
        torch.manual_seed(2)
        again = found.sample(produced(fit), noise(fit, fresh), 4)
        other = found.sample(produced(fit), replace(noise(fit, fresh), seed=1), 4)
    for target, value in first.items():
        assert torch.equal(value, again[target])
        assert not torch.equal(value, other[target])


def test_the_draws_of_a_window_follow_those_before_it(fit, fresh):
    found, whole = conditional(fit, fresh), noise(fit, fresh)
    long = found.sample(produced(fit), whole, 6)
    late = found.sample(produced(fit), replace(whole, first=4), 2)
    assert_close(late, {target: value[4:] for target, value in long.items()}, fresh.schema)


def test_a_target_is_the_same_alone_and_among_others(fit, fresh):
    target = produced(fit)[-1]
    alone = conditional(fit, fresh).sample((target,), noise(fit, fresh), 3)
    assert set(alone) == {target}
    assert torch.equal(alone[target], draws(fit, fresh, n=3)[target])


def test_nothing_seen_gives_the_prior(latent, fresh):
    fit = latent
    found = conditional(fit, fresh[:4].hide(*fresh.schema.names))
    for block, posterior in found.latent().items():
        assert posterior.mean.shape[1:] == fit.members[0].blocks[block].shape
        mean, std = fit.members[0].population()[block]
        torch.testing.assert_close(posterior.mean, mean.expand_as(posterior.mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(posterior.std, std.expand_as(posterior.std), atol=1e-4, rtol=0)


def test_an_empty_row_takes_nothing_from_its_neighbours(latent, fresh):
    fit = latent
    blank = fresh[:1].hide(*fresh.schema.names)
    values = {m: np.concatenate([blank.parts[m].value, fresh[1:5].parts[m].value]) for m in fresh.schema.names}
    states = {m: np.concatenate([blank.parts[m].state, fresh[1:5].parts[m].state]) for m in fresh.schema.names}
    table = Observations.from_arrays(fresh.schema, values, state=states, ids=fresh.ids[:5])
    block, *_ = fit.members[0].blocks
    found = conditional(fit, table).latent()[block]
    _, std = fit.members[0].population()[block]
    torch.testing.assert_close(found.std[0], std, atol=1e-4, rtol=0)
    assert ((found.std[1:] / std).flatten(1).min(-1).values < 0.9).all()


def test_latents_are_the_blocks_declared(latent, fresh):
    fit = latent
    found = conditional(fit, fresh[:3]).latent()
    assert set(found) == set(fit.members[0].blocks)
    for posterior in found.values():
        assert torch.isfinite(posterior.mean).all()
        assert torch.isfinite(posterior.std).all() and (posterior.std >= 0).all()
        z = posterior.draw(torch.randn(2, *posterior.mean.shape))
        assert z.shape == (2, *posterior.mean.shape)
    if isinstance(fit.family, cs.SharedGPLVM) and fit.family.posterior in ("point", "map"):
        assert not any(posterior.std.any() for posterior in found.values())
    else:
        assert all((posterior.std > 0).all() for posterior in found.values())


def test_a_training_row_is_treated_as_any_other(name, fit, table):
    """Its index, and what a per-object posterior learned with its labels, must not matter."""
    target = produced(fit)[-1]
    inside, outside = table[5:9].hide(target), table[5:9].hide(target).detached()
    model = fit.members[0]
    both = []
    for rows in (inside, outside):
        batch = fit.scaler.forward(rows).to(dtype=torch.float32)
        found = model.fresh(batch).condition(batch)
        both.append(found.sample((target,), noise(fit, rows), 5)[target])
    assert torch.equal(*both)


def test_more_error_never_narrows_a_linear_posterior(fresh):
    if set(fresh.schema.names) != {"spectrum", "labels"}:
        fresh = CONSTRUCTORS["gplvm-linear"][1](90, seed=1)
    fit = fitted("gplvm-linear")
    part = fresh.parts["spectrum"]
    wide = replace(fresh, parts={**fresh.parts, "spectrum": replace(part, sigma=3 * part.sigma)})
    before, after = (conditional(fit, rows).latent()["shared"].std for rows in (fresh, wide))
    assert (after >= before * (1 - 1e-4)).all()
    assert (after > 1.01 * before).any()
