"""GPVAE with linear decoders: Gaussian-process factor analysis exactly, counts at the optimum of the bound."""

import math

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.noise import Noise
from consilience.data.observations import Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import slot

BINS = 12


def table(rows=4, seed=0, *, counts=False):
    """Unscaled random trials of two modalities, with gaps."""
    rng = np.random.default_rng(seed)
    values = {"a": rng.normal(size=(rows, BINS, 3)), "b": rng.normal(size=(rows, BINS))}
    if counts:
        values["a"] = rng.poisson(2.0, size=values["a"].shape).astype(float)
    for value in values.values():
        value[rng.random(value.shape) < 0.3] = np.nan
    specs = (
        ModalitySpec(name="a", shape=(BINS, 3), kind="count" if counts else "real", scale="none"),
        ModalitySpec(name="b", shape=(BINS,), scale="none"),
    )
    return Observations.from_arrays(Schema(modalities=specs), values)


def model_of(obs, seed=1, **options):
    """A model with random parameters in float64, one shared latent and one private to "a"."""
    options = {"shared": 1, "private": {"a": 1}, "length": 4.0, "inference_steps": 12} | options
    model = cs.GPVAE(**options).build(obs.schema, len(obs), 0).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("weights", "offsets", "prior.stretch")):
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return model


def batch(obs):
    """Tensors with harmless numbers where nothing was seen; nothing is rescaled."""
    return Scaler.fit(obs).forward(obs).to(dtype=torch.float64)


def joint(model, obs):
    """Mean and covariance of all cells of one trial (D_total,), modality by modality, bin by bin."""
    root = model.prior.root().detach()
    kernel = root @ root.mT
    weights = {name: model._weight(name).detach() for name in obs.schema.names}
    blocks = [
        [torch.einsum("dl,lts,el->tdse", one, kernel, other).flatten(2).flatten(0, 1) for other in weights.values()]
        for one in weights.values()
    ]
    noise = torch.cat([model.likelihoods[slot(name)].learned().detach().repeat(BINS) for name in weights])
    mean = torch.cat([model.offsets[slot(name)].detach().repeat(BINS) for name in weights])
    return mean, torch.cat([torch.cat(row, 1) for row in blocks]) + torch.diag(noise)


def cells_of(obs, row):
    value = np.concatenate([obs.parts[name].value[row].ravel() for name in obs.schema.names])
    return torch.as_tensor(value), torch.as_tensor(np.isfinite(value))


def gaussian(mean, covariance, value):
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(value)


def test_the_objective_is_the_evidence():
    obs = table()
    model = model_of(obs)
    with torch.no_grad():
        terms = model.terms(batch(obs), batch(obs))
    bound = -sum(term.value for term in terms.values())
    mean, covariance = joint(model, obs)
    for row in range(len(obs)):
        value, seen = cells_of(obs, row)
        evidence = gaussian(mean[seen], covariance[seen][:, seen], value[seen])
        assert bound[row].item() == pytest.approx(evidence.item(), abs=1e-7)


def test_its_slope_is_that_of_the_evidence():
    """The sites are constants of the gradient: at the optimum of the bound nothing is lost."""
    obs = table(rows=1)
    model = model_of(obs)
    bound = -sum(term.value.sum() for term in model.terms(batch(obs), batch(obs)).values())
    slopes = torch.autograd.grad(bound, [model.prior.position, model.weights["a"]])
    value, seen = cells_of(obs, 0)

    def evidence():
        with torch.no_grad():
            mean, covariance = joint(model, obs)
            return gaussian(mean[seen], covariance[seen][:, seen], value[seen]).item()

    for parameter, slope in zip((model.prior.position, model.weights["a"]), slopes, strict=True):
        flat = parameter.data.view(-1)
        for k in range(len(flat)):
            flat[k] += 1e-5
            up = evidence()
            flat[k] -= 2e-5
            assert slope.reshape(-1)[k].item() == pytest.approx((up - evidence()) / 2e-5, rel=1e-4, abs=1e-5)
            flat[k] += 1e-5


def test_conditional_densities_are_those_of_the_joint_gaussian():
    obs = table()
    model = model_of(obs)
    hidden = obs.hide("b")
    found = model.condition(batch(hidden)).log_prob(batch(obs), ("b",), Noise(0, obs.ids))
    assert found.kind == "exact"
    mean, covariance = joint(model, obs)
    for row in range(len(obs)):
        value, seen = cells_of(obs, row)
        given = seen.clone()
        given[3 * BINS :] = False
        expected = gaussian(mean[seen], covariance[seen][:, seen], value[seen])
        expected = expected - gaussian(mean[given], covariance[given][:, given], value[given])
        assert found.value[row].item() == pytest.approx(expected.item(), abs=1e-7)


def test_sites_of_counts_are_at_the_optimum_of_the_bound():
    """Of all Gaussians: neither moving nor stretching q raises the bound, here against a dense optimisation."""
    obs = table(rows=2, seed=3, counts=True)
    model = model_of(obs, seed=4)
    with torch.no_grad():
        found = -sum(term.value for term in model.terms(batch(obs), batch(obs)).values())
    conditional = model.condition(batch(obs))
    start = conditional.q.coordinates
    mean = start.mean.clone().requires_grad_()
    factor = start.factor.clone().requires_grad_()
    cells = [model.cells(name, part) for name, part in batch(obs).parts.items()]

    def bound():
        q = type(conditional.q)(conditional.q.root, type(start)(mean, factor.tril()))
        value = -q.divergence().sum(-1)
        for one in cells:
            value = value + one.expected(q)
        return value

    torch.testing.assert_close(bound().detach(), found)
    slopes = torch.autograd.grad(bound().sum(), (mean, factor))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


@torch.no_grad()
def test_training_stops_at_the_optimum_and_not_before():
    """With fewer proposals where none gains a hundredth of a nat."""
    obs = table(rows=6, seed=8, counts=True)
    model = model_of(obs, inference_steps=40)
    calls = []
    infer = model.prior.posterior
    model.prior.posterior = lambda *a, **k: calls.append(1) or infer(*a, **k)
    found = []
    for training in (False, True):
        calls.clear()
        terms = model.train(training).terms(batch(obs), batch(obs))
        found.append((len(calls), sum(term.value for term in terms.values())))
    assert found[1][0] < found[0][0] / 2
    torch.testing.assert_close(found[1][1], found[0][1], atol=2e-2, rtol=0)


def test_densities_of_counts_agree_with_plain_averaging():
    obs = table(rows=3, seed=5, counts=True)
    hide = {"a": np.ones_like(obs.parts["a"].seen)}
    hide["a"][:, :10] = False  # of the counts the last two bins are scored
    scored = obs.hide_cells({"a": ~hide["a"]})
    conditional = model_of(obs, seed=6).condition(batch(obs.hide_cells(hide)))
    found = conditional.log_prob(batch(scored), ("a",), Noise(0, obs.ids, dtype=torch.float64))
    assert found.kind == "estimate" and float(found.error.max()) < 0.05
    one = conditional.cells("a", batch(scored).parts["a"])
    normal = torch.randn(20_000, *conditional.q.coordinates.mean.shape, generator=torch.Generator().manual_seed(0))
    draws = conditional.q.latents(conditional.q.coordinates.draw(normal.double()))
    with torch.no_grad():
        total = torch.stack([conditional._at([one], z) for z in draws])
    plain = torch.logsumexp(total, 0) - math.log(len(total))
    assert torch.allclose(found.value, plain, atol=0.1)


def test_cells_beyond_the_end_of_a_trial_say_nothing():
    obs = table(rows=2)
    short = {name: part.value.copy() for name, part in obs.parts.items()}
    whole = model_of(obs)
    cut = Observations.from_arrays(obs.schema, short, extent={"a": np.array([8, 12]), "b": np.array([8, 12])})
    assert (cut.parts["a"].state[0, 8:] == State.ABSENT).all()
    hide = {name: np.zeros_like(part.seen) for name, part in obs.parts.items()}
    for name in hide:
        hide[name][0, 8:] = True
    ends = [whole.condition(batch(rows)).q for rows in (cut, obs.hide_cells(hide))]
    assert torch.equal(ends[0].mean, ends[1].mean) and torch.equal(ends[0].covariance, ends[1].covariance)


def test_exposure_scales_the_rate():
    obs = table(rows=2, seed=7, counts=True)
    model = model_of(obs, private={})
    doubled = {name: part.value for name, part in obs.parts.items()}
    long = Observations.from_arrays(obs.schema, doubled, exposure={"a": np.full((2, BINS, 3), 2.0)})
    with torch.no_grad():
        model.offsets["a"] += math.log(2)
        expected = model.terms(batch(obs), batch(obs))["nll/a"].value
        model.offsets["a"] -= math.log(2)
        found = model.terms(batch(long), batch(long))["nll/a"].value
    torch.testing.assert_close(found, expected)


def test_a_limit_pulls_its_function_to_its_side_as_far_as_the_tilted_gaussian():
    schema = Schema(modalities=(ModalitySpec(name="b", shape=(BINS,), scale="none"),))
    value, state = np.full((1, BINS), np.nan), np.full((1, BINS), State.UNSEEN)
    value[0, 4], state[0, 4] = -0.5, State.BELOW
    obs = Observations.from_arrays(schema, {"b": value}, state={"b": state})
    model = model_of(obs, private={})
    one = model.cells("b", batch(obs).parts["b"])
    mean, variance = (moment[4, 0].item() for moment in one.moments(model.condition(batch(obs)).q))
    kernel = (model.prior.root()[0, 4].square().sum() * model._weight("b").square().sum()).item()
    f = torch.linspace(-12, 12, 40_001).double()
    tilted = torch.exp(-0.5 * (f - model.offsets["b"].item()).square() / kernel)
    tilted = tilted * torch.special.ndtr((-0.5 - f) / one.likelihood.learned().item() ** 0.5)
    exact = ((f * tilted).sum() / tilted.sum()).item()
    spread = ((f**2 * tilted).sum() / tilted.sum()).item() - exact**2
    # of all Gaussians q is the one with the least divergence, not the one with the same moments
    assert mean == pytest.approx(exact, abs=0.15 * spread**0.5)
    assert variance == pytest.approx(spread, rel=0.25)


def test_limits_of_counts_are_refused():
    obs = table(counts=True)
    state = obs.parts["a"].state.copy()
    state[1, 2, 0] = State.ABOVE
    values = {name: np.where(np.isfinite(part.value), part.value, 0.0) for name, part in obs.parts.items()}
    limited = Observations.from_arrays(obs.schema, values, state={"a": state})
    with pytest.raises(DataError, match="no limits in 'a'"):
        cs.fit(cs.GPVAE(length=4.0), limited, cs.TrainConfig(max_steps=2, validation=0))


def process(rng, rows, length):
    lag = np.arange(40)[:, None] - np.arange(40)
    return rng.normal(size=(rows, 40)) @ np.linalg.cholesky(np.exp(-0.5 * (lag / length) ** 2) + 1e-8 * np.eye(40)).T


def recordings(rows, seed):
    """Counts of 15 neurons and four motions: one latent of both, one of the motions alone."""
    rng, maps = np.random.default_rng(seed), np.random.default_rng(9)
    z = np.stack([process(rng, rows, 8), process(rng, rows, 4)], -1)
    rate = np.exp(0.5 + z[..., :1] * maps.uniform(-1, 1, size=(1, 15)))
    motion = z @ maps.normal(size=(2, 4)) + 0.3 * rng.normal(size=(rows, 40, 4))
    specs = (
        ModalitySpec(name="spikes", shape=(40, 15), kind="count"),
        ModalitySpec(name="motion", shape=(40, 4), scale="none"),
    )
    values = {"spikes": rng.poisson(rate).astype(float), "motion": motion}
    return Observations.from_arrays(Schema(modalities=specs), values, ids=[f"{seed}-{k}" for k in range(rows)]), z


def explained(fitted, train, test, block, which):
    """R² on test trials of a linear read-out of one latent from one block, fitted on training trials."""
    columns = [fitted.latent(obs).mean[block].reshape(-1, 1) for obs in (train[0], test[0])]
    design = [np.hstack([column, np.ones_like(column)]) for column in columns]
    truth = [z[..., which].ravel() for _, z in (train, test)]
    guess = design[1] @ np.linalg.lstsq(design[0], truth[0], rcond=None)[0]
    return 1 - np.mean((truth[1] - guess) ** 2) / np.var(truth[1])


def test_shared_and_private_dynamics_and_their_length_scales_are_recovered():
    train, test = recordings(40, 0), recordings(15, 1)
    family = cs.GPVAE(shared=1, private={"motion": 1}, length=6.0, longest=14.0)
    fitted = cs.fit(family, train[0], cs.TrainConfig(max_steps=120, batch_size=20, learning_rate=3e-2, seed=0))
    assert explained(fitted, train, test, "shared", 0) > 0.9
    assert explained(fitted, train, test, "private_motion", 1) > 0.9
    assert explained(fitted, train, test, "shared", 1) < 0.1
    assert explained(fitted, train, test, "private_motion", 0) < 0.1
    assert np.allclose(fitted.members[0].prior.length.detach(), [8, 4], rtol=0.3)
    # from either modality alone: wider where less is known, and covered
    truth = test[0].parts["motion"].value
    alone = fitted.sample(test[0].hide("motion"), ["motion"], n=400)
    both = fitted.latent(test[0]).std["shared"].mean()
    assert fitted.latent(test[0].hide("motion")).std["shared"].mean() > 1.2 * both
    draws = alone.values["motion"]
    pit = (draws < truth).mean(0)
    # the noise of the motions is part of what is drawn
    assert 0.6 < np.mean(np.abs(pit - 0.5) < 0.34) < 0.76


@pytest.mark.parametrize(
    ("specs", "match"),
    [
        ((ModalitySpec(name="x", shape=(5, 2)), ModalitySpec(name="y", shape=(4, 2))), "'y'.*4"),
        ((ModalitySpec(name="x", kind="category", classes=3, shape=(5,)),), "classes"),
        ((ModalitySpec(name="x"),), "single number"),
    ],
)
def test_schemas_without_a_common_time_axis_are_refused(specs, match):
    with pytest.raises(SchemaError, match=match):
        cs.GPVAE().build(Schema(modalities=specs), 3, 0)


def test_at_least_one_latent_is_needed_and_private_ones_are_enough():
    obs = table()
    with pytest.raises(SchemaError, match="latent"):
        cs.GPVAE(shared=0).build(obs.schema, 3, 0)
    fitted = cs.fit(cs.GPVAE(shared=0, private={"a": 1}, length=4.0), obs, cs.TrainConfig(max_steps=2, validation=0))
    assert set(fitted.latent(obs).mean) == {"private_a"}
