"""Terms, gradients and groups of every family."""

import re
from dataclasses import replace

import numpy as np
import torch

from consilience.data.masking import conceal
from consilience.data.observations import Modality, State
from consilience.models.base import Batch, Global, PerObject
from consilience.train.weights import objective
from constructors import CONSTRUCTORS, fitted, produced

KINDS = ("nll", "self", "cross", "kl", "velocity", "align", "pair", "mi", "fit", "physics", "mean", "alone")


def scaled(fit, rows):
    some = next(fit.members[0].parameters())
    return fit.scaler.forward(rows).to(dtype=some.dtype)


def total(found):
    return objective(found, dict.fromkeys(found, 1.0))[0]


def gradients(model, found):
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(total(found), list(named.values()), allow_unused=True)
    return dict(zip(named, slopes, strict=True))


def garbage(rows, seed):
    """The same table with arbitrary numbers wherever nothing was seen."""
    rng = np.random.default_rng(seed)

    def fill(array, unseen):
        return np.where(unseen, 10.0 ** rng.uniform(-3, 3, size=unseen.shape), array)

    parts = {}
    for name, part in rows.parts.items():
        unseen = ~part.seen
        sigma = np.full(unseen.shape, np.nan) if part.sigma is None else part.sigma
        blank = np.full(unseen.shape, np.nan)
        parts[name] = Modality(
            fill(part.value, unseen), part.state, fill(sigma, unseen), fill(blank, unseen), fill(blank, unseen)
        )
    return replace(rows, parts=parts)


def test_terms_are_finite_and_of_their_declared_kind(fit, table, terms):
    found = terms(fit.members[0], scaled(fit, table))
    kinds = [name.split("/") for name in found]
    assert {name for kind, name in kinds if kind in ("nll", "velocity")} == set(produced(fit))
    for name, term in found.items():
        assert re.fullmatch(rf"({'|'.join(KINDS)})/\w+", name)
        assert torch.isfinite(term.value).all()
        if isinstance(term, PerObject):
            assert term.value.shape == term.applies.shape == (len(table),)
            assert term.applies.dtype == torch.bool
        else:
            assert isinstance(term, Global | Batch)
            assert term.value.shape == ()


def test_every_parameter_is_in_exactly_one_group(fit):
    model = fit.members[0]
    grouped = [(name, id(p)) for group in model.groups() for name, p in group.parameters.items()]
    assert sorted(grouped) == sorted((name, id(p)) for name, p in model.named_parameters())
    names = [group.name for group in model.groups()]
    assert len(set(names)) == len(names)


def test_a_gradient_reaches_every_parameter(fit, table, terms):
    model = fit.members[0]
    for name, slope in gradients(model, terms(model, scaled(fit, table))).items():
        assert slope is not None, name
        assert torch.isfinite(slope).all(), name
        assert slope.any(), name


def test_what_is_unseen_changes_no_term_and_no_gradient(fit, table, terms):
    model = fit.members[0]
    clean = terms(model, scaled(fit, garbage(table, 0)))
    other = terms(model, scaled(fit, garbage(table, 1)))
    for name in clean:
        assert torch.equal(clean[name].value, other[name].value), name
    slopes = gradients(model, clean), gradients(model, other)
    for name in slopes[0]:
        assert torch.equal(slopes[0][name], slopes[1][name]), name


def test_what_training_conceals_leaves_no_trace(fit, table, terms):
    """Cells hidden by a masking policy: their value, error bar, bound, coordinate and exposure are gone."""
    model = fit.members[0]

    def context(seed):
        rng = np.random.default_rng(5)
        hide = {name: rng.random(part.state.shape) < 0.5 for name, part in table.parts.items()}
        moved = scaled(fit, table)
        parts = {}
        for name, part in moved.parts.items():
            cells = torch.as_tensor(hide[name])
            noise = torch.as_tensor(np.random.default_rng(seed).integers(0, 3, size=cells.shape)).to(part.value.dtype)
            state = torch.where(cells & part.measured, int(State.MEASURED) + noise.to(torch.int8), part.state)
            value = torch.where(cells, noise, part.value)
            coord = torch.where(cells, noise, 0)
            parts[name] = conceal(Modality(value, state, part.sigma, coord, coord + 1, part.extent), cells)
        return replace(moved, parts=parts)

    first, second = (terms(model, context(seed)) for seed in (0, 1))
    for name in first:
        assert torch.equal(first[name].value, second[name].value), name


def test_terms_of_one_row(fit, table, terms):
    found = terms(fit.members[0], scaled(fit, table[7]))
    assert all(torch.isfinite(term.value).all() for term in found.values())


def test_terms_of_a_row_do_not_depend_on_its_batch(fit, table):
    """The same noise for the row: its own terms stay, whatever stands beside it."""
    model = fit.members[0]

    def of(rows, first):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return {n: t.value[first] for n, t in model.terms(rows, rows).items() if isinstance(t, PerObject)}

    both = of(scaled(fit, table[[3, 8]]), 0)
    other = of(scaled(fit, table[[3, 21]]), 0)
    for name in both:
        torch.testing.assert_close(both[name], other[name], rtol=1e-5, atol=1e-5)


def test_nothing_seen_costs_nothing_but_the_prior(fit, table, terms):
    blank = table.hide(*table.schema.names)
    found = terms(fit.members[0], scaled(fit, blank))
    for name, term in found.items():
        if name.startswith("nll/"):
            assert not term.value.any(), name
        elif isinstance(term, PerObject) and "encoder" in dict(fit.members[0].named_modules()):
            torch.testing.assert_close(term.value, torch.zeros_like(term.value), atol=1e-6, rtol=0)


def test_steps_lower_the_objective(name, terms):
    one, many = (fitted(name, steps=steps) for steps in (1, 30))
    table = CONSTRUCTORS[name][1]()

    def mean(fit):
        rows = scaled(fit, table)
        with torch.no_grad():
            return np.mean([float(total(terms(fit.members[0], rows, seed))) for seed in range(20)])

    assert mean(many) < mean(one) - 0.01


def test_precision_is_kept(name, terms):
    fit = fitted(name, precision="64-true")
    model = fit.members[0]
    floats = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    assert {t.dtype for t in model.parameters()} == {torch.float64}
    assert torch.float32 not in {t.dtype for t in floats}
    found = terms(model, scaled(fit, CONSTRUCTORS[name][1]()))
    assert {term.value.dtype for term in found.values()} == {torch.float64}
