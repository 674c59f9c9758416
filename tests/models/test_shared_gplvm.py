"""What the configuration of a shared GPLVM means, beyond the contracts."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.data.observations import Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, RequestError, SchemaError
from consilience.models import family_from
from consilience.models.base import slot
from constructors import SMALL, fitted, mixed, plain


def scaled(table):
    return Scaler.fit(table).forward(table).to()


def test_a_family_survives_a_file():
    family = cs.SharedGPLVM(latent_dim=3, private={"spectrum": 2}, likelihoods={"labels": "student"})
    assert family_from(family.model_dump(mode="json")) == family
    assert type(family).model_validate_json(family.model_dump_json()) == family


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"family": "SharedGPLM"}, "Did you mean 'SharedGPLVM'"),
        ({"family": None}, "Expected a family among"),
        ({"family": "SharedGPLVM", "latentdim": 2}, "Did you mean 'latent_dim'"),
        ({"family": "SharedGPLVM", "latent_dim": 0}, "greater than or equal to 1"),
        ({"family": "SharedGPLVM", "posterior": "laplace"}, "posterior"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(data, words):
    with pytest.raises(SchemaError, match=words):
        family_from(data)


@pytest.mark.parametrize("options", [
    {"private": {"spectra": 1}}, {"likelihoods": {"spectra": "student"}},
    {"functions": {"spectra": 3}}, {"one_mask": ("spectra",)}, {"closed": ("spectra",)},
])  # fmt: skip
def test_an_option_for_an_unknown_modality_names_the_nearest(options):
    with pytest.raises(RequestError, match="Did you mean 'spectrum'"):
        cs.SharedGPLVM(**SMALL, **options).build(plain().schema, 10, seed=0)


def test_unknown_kernels_and_unfit_likelihoods_are_refused():
    schema = plain().schema
    with pytest.raises(SchemaError, match="Expected kernels among"):
        cs.SharedGPLVM(**SMALL, kernel="rbg").build(schema, 10, seed=0)
    with pytest.raises(SchemaError, match="Expected a likelihood among"):
        cs.SharedGPLVM(**SMALL, likelihoods={"labels": "poisson"}).build(schema, 10, seed=0)


def test_a_built_model_is_a_function_of_its_seed():
    schema, family = plain().schema, cs.SharedGPLVM(**SMALL)
    states = []
    for seed, ambient in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(ambient)
        before = torch.random.get_rng_state()
        states.append(family.build(schema, 10, seed=seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_private_latents_are_read_by_their_modality_only():
    fit = fitted("gplvm-private")
    model = fit.members[0]
    assert set(model.blocks) == {"shared", "private_spectrum", "private_labels"}
    batch = fit.scaler.forward(plain(4, seed=1).detached()).to()
    conditional = model.condition(batch)
    z = torch.randn(1, 4, model.size)
    shared, spectrum, labels = (conditional.columns[f"{name}"] for name in model.blocks)
    for block, moved in ((shared, {"spectrum", "labels"}), (spectrum, {"spectrum"}), (labels, {"labels"})):
        other = z.clone()
        other[..., block] += 1
        both = {name: [conditional._moments(name, at)[0] for at in (z, other)] for name in ("spectrum", "labels")}
        assert {name for name, found in both.items() if not torch.equal(*found)} == moved


def test_a_private_latent_learns_nothing_from_the_other_modality():
    fit = fitted("gplvm-private")
    rows = plain(20, seed=1).hide("labels")
    found = fit.latent(rows)
    prior = fit.members[0].prior  # of the population; the last latent is that of the labels alone
    np.testing.assert_allclose(found.mean["private_labels"], float(prior.mean[-1]), atol=1e-6)
    np.testing.assert_allclose(found.std["private_labels"], float(prior.factor[-1, -1]), rtol=1e-5)
    assert (found.std["private_spectrum"].min(axis=1) < 0.9).any()


@pytest.mark.parametrize("kind", ["count", "binary", "category"])
def test_limits_are_refused_where_the_likelihood_has_none(kind):
    spec = ModalitySpec(name="x", shape=(3,), kind=kind, classes=2 if kind == "category" else 0)
    value = np.random.default_rng(0).integers(0, 2, size=(20, 3)).astype(float)
    state = np.full(value.shape, State.MEASURED)
    state[0, 0] = State.BELOW
    table = Observations.from_arrays(Schema(modalities=(spec,)), {"x": value}, state={"x": state})
    model = cs.SharedGPLVM(**SMALL).build(table.schema, 20, seed=0)
    with pytest.raises(DataError, match="Expected no limits in 'x'"):
        model.start(scaled(table))


def test_limits_inform_the_latent_in_their_direction():
    fit = fitted("gplvm-mixed")
    rows = mixed(1, seed=3).hide(*(name for name in mixed(1).schema.names if name != "bands"))
    means = []
    for state, value in ((State.BELOW, -1.0), (State.ABOVE, 1.0)):
        table = Observations.from_arrays(
            rows.schema,
            {name: part.value for name, part in rows.parts.items()} | {"bands": np.full((1, 3), value)},
            state={"bands": np.full((1, 3), state)},
        )
        means.append(fit.summarise(table, ["bands"], statistics=("mean",), n=200).statistics["bands"]["mean"])
    assert (np.abs(means[0] + means[1]) < np.abs(means[0] - means[1])).all()
    assert (means[0] - means[1]).sum() < 0


@pytest.mark.parametrize("names", [("type", "x"), ("sdss.flux", "half"), ("a b", "T"), ("keys", "ü/1")])
def test_any_name_of_a_modality_will_do(names, tmp_path):
    table = plain(24)
    pairs = zip(table.schema.modalities, names, strict=True)
    specs = tuple(spec.model_copy(update={"name": name}) for spec, name in pairs)
    values = dict(zip(names, (part.value for part in table.parts.values()), strict=True))
    renamed = Observations.from_arrays(Schema(modalities=specs), values)
    config = cs.TrainConfig(max_steps=2, batch_size=12, validation=0)
    fit = cs.fit(cs.SharedGPLVM(**SMALL, private={names[0]: 1}), renamed, config)
    fit.save(tmp_path / "model")
    found = cs.load(tmp_path / "model").impute(renamed, n=2)
    np.testing.assert_array_equal(found.values[names[1]], fit.impute(renamed, n=2).values[names[1]])
    assert f"train/nll/{names[0]}" in fit.history[-1]


def test_slots_are_distinct():
    names = ["a.b", "a%2Eb", "type", "type%", "a%b", "a.b%", "half", "keys", "training"]
    assert len({slot(name) for name in names}) == len(names)
    assert not any("." in slot(name) for name in names)
    torch.nn.ModuleDict({slot(name): torch.nn.Identity() for name in names})


def test_it_answers_any_question_about_its_modalities_and_no_other():
    model = fitted("gplvm-encoder").members[0]
    both = frozenset({"spectrum", "labels"})
    assert model.answers(both, frozenset({"labels"}))
    assert model.answers(frozenset(), both)
    assert not model.answers(both, frozenset())
    assert not model.answers(both, frozenset({"radio"}))
    assert not model.answers(frozenset({"radio"}), frozenset({"labels"}))


def test_the_start_uses_what_every_modality_says():
    """Factor analysis already correlates the posterior of the labels with the labels, before any step."""
    table = plain(60)
    fit = cs.fit(cs.SharedGPLVM(**SMALL), table, cs.TrainConfig(max_steps=1, learning_rate=1e-9, validation=0))
    mean = fit.summarise(table.hide("labels"), ["labels"], statistics=("mean",), n=50).statistics["labels"]["mean"]
    truth = table.parts["labels"]
    for cell in range(2):
        seen = truth.measured[:, cell]
        assert np.corrcoef(mean[seen, cell], truth.value[seen, cell])[0, 1] > 0.7


def test_relevance_is_one_for_the_strongest_latent():
    relevance = fitted("gplvm-private").members[0].relevance()
    assert relevance.shape == (5,)
    assert float(relevance.max()) == pytest.approx(1.0)
    assert (relevance > 0).all()


def test_more_inducing_inputs_than_rows_and_more_latents_than_cells():
    table = plain(6)
    family = cs.SharedGPLVM(latent_dim=12, inducing=20, hidden=4)
    fit = cs.fit(family, table, cs.TrainConfig(max_steps=3, batch_size=4, validation=0))
    assert np.isfinite(fit.impute(table, n=2).values["labels"]).all()


def test_the_encoder_answers_in_one_pass_where_there_is_one():
    table = plain(seed=3)
    refined, alone = fitted("gplvm-encoder"), fitted("gplvm-amortised")
    for verb in (
        lambda fit, method: fit.sample(table, ["labels"], n=3, method=method).values["labels"],
        lambda fit, method: fit.summarise(table, ["labels"], n=20, method=method).statistics["labels"]["mean"],
        lambda fit, method: fit.log_prob(table, ["labels"], method=method).value,
        lambda fit, method: fit.cell_log_prob(table, ["labels"], method=method)["labels"],
        lambda fit, method: fit.latent(table, method=method).mean["shared"],
    ):
        assert not np.array_equal(verb(refined, "encoder"), verb(refined, "default"), equal_nan=True)
        np.testing.assert_array_equal(verb(alone, "encoder"), verb(alone, "default"))
        with pytest.raises(RequestError, match=r"among \['default', 'encoder'\]; got 'fast'"):
            verb(refined, "fast")
        with pytest.raises(RequestError, match=r"among \['default'\]; got 'encoder'"):
            verb(fitted("gplvm-gaussian"), "encoder")


def complete(rows=60, seed=0):
    """A table without gaps or error bars in "x"; labels have both."""
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=(rows, 2)), np.random.default_rng(5).normal(size=(2, 9))
    f = np.tanh(z @ w) + 0.1 * rng.normal(size=(rows, 9))
    labels = np.where(rng.random((rows, 2)) < 0.2, np.nan, f[:, 7:])
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(7,)), ModalitySpec(name="y", shape=(2,))))
    return Observations.from_arrays(schema, {"x": f[:, :7], "y": labels}, ids=[f"{seed}-{row}" for row in range(rows)])


def test_outputs_with_one_mask_have_the_posterior_of_separate_ones():
    table = scaled(complete())
    found = []
    for one_mask in ((), ("x",)):
        model = cs.SharedGPLVM(**SMALL, one_mask=one_mask).build(table.schema, 60, seed=0)
        torch.manual_seed(0)
        model.start(table)
        for step in range(8):
            some = table[torch.arange(60).roll(13 * step)[:20].numpy()]
            model.closed_form_step(some, some, 3.0, {}, 0.3)
        torch.manual_seed(1)
        found.append({name: term.value.detach() for name, term in model.terms(table, table).items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-4)


def test_outputs_with_one_mask_are_learned():
    new = complete(seed=1)
    fit = cs.fit(cs.SharedGPLVM(**SMALL, one_mask=("x",)), complete(), cs.TrainConfig(max_steps=60, validation=0))
    guess = fit.summarise(new.hide("y"), ["y"], n=50).statistics["y"]["mean"]
    truth = new.parts["y"].value
    assert np.nanmean((guess - truth) ** 2) < 0.3 * np.nanvar(truth)


def test_one_mask_refuses_what_it_cannot_hold():
    config = cs.TrainConfig(max_steps=1, validation=0)
    with pytest.raises(DataError, match="error bars"):
        cs.fit(cs.SharedGPLVM(**SMALL, one_mask=("spectrum",)), plain(), config)
    with pytest.raises(DataError, match="gaps in row"):
        cs.fit(cs.SharedGPLVM(**SMALL, one_mask=("y",)), complete(), config)
    for options in ({"functions": {"spectrum": 2}}, {"likelihoods": {"spectrum": "student"}}):
        with pytest.raises(SchemaError, match="one_mask to be gaussian and not in functions"):
            cs.SharedGPLVM(**SMALL, one_mask=("spectrum",), **options).build(plain().schema, 10, seed=0)


def test_a_closed_expectation_is_the_mean_of_many_draws():
    table = scaled(plain())
    models = {}
    for closed in ((), ("spectrum",)):
        model = cs.SharedGPLVM(**SMALL, closed=closed).build(table.schema, 48, seed=0)
        torch.manual_seed(0)
        model.start(table)
        models[closed] = model
    models[("spectrum",)].load_state_dict(models[()].state_dict())
    models[("spectrum",)].refresh()
    exact = models[("spectrum",)].terms(table, table)["nll/spectrum"].value
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([models[()].terms(table, table)["nll/spectrum"].value for _ in range(3000)])
    error = drawn.std(0) / 3000**0.5
    assert ((drawn.mean(0) - exact).abs() < 5 * error + 1e-3).all()
    assert (drawn.std(0) > 0.05).any()
    exact.sum().backward()
    assert torch.isfinite(models[("spectrum",)].decoders["spectrum"].inducing.grad).all()


def test_closed_refuses_what_has_no_closed_form():
    for options in ({"kernel": "linear"}, {"likelihoods": {"labels": "student"}}, {"functions": {"labels": 1}}):
        with pytest.raises(SchemaError, match="Leave it out of closed"):
            cs.SharedGPLVM(**SMALL, closed=("labels",), **options).build(plain().schema, 10, seed=0)
    with pytest.raises(DataError, match="no limits in 'bands' of closed"):
        cs.fit(cs.SharedGPLVM(**SMALL, closed=("bands",)), mixed(), cs.TrainConfig(max_steps=1, validation=0))
