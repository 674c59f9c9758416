"""DisentangledVAE and VAE: blocks, bounds, fusion, CLUB, where they begin and what they leave out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.physics import Disc, Profile
from consilience.data.masking import conceal
from consilience.data.observations import Observations, State
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import Batch

NAMES = ("x1", "x2", "x3")


def table(rows=40, seed=0, modalities=2):
    made = cs.simulators.factors(rows, seed=seed, modalities=modalities, sizes=(1, 1, 6), missing=0.1, sigma=0.1)
    return made.select(*NAMES[:modalities])


def model_of(obs, seed=0, **options):
    family = cs.DisentangledVAE(**({"shared": 2, "private": {"x1": 1}, "hidden": 8} | options))
    return family.build(obs.schema, len(obs), seed).double()


def batch(obs):
    return Scaler.fit(obs).forward(obs).to(dtype=torch.float64)


def terms(model, rows, seed=0):
    torch.manual_seed(seed)
    return model.eval().terms(rows, rows)


def without(rows, name):
    parts = rows.parts
    return replace(rows, parts={**parts, name: conceal(parts[name], torch.ones_like(parts[name].seen))})


def test_a_missing_modality_leaves_its_private_latents_at_the_prior():
    rows = batch(table())
    model = model_of(rows)
    both, one = (model.condition(some).latent() for some in (rows, without(rows, "x1")))
    assert (both["private_x1"].std < 1).all()
    torch.testing.assert_close(one["private_x1"].std, torch.ones_like(one["private_x1"].std))
    assert not one["private_x1"].mean.any()
    assert (one["shared"].std > both["shared"].std).all()


def test_in_training_each_row_is_decoded_in_one_of_its_bounds_which_stands_for_all():
    rows = batch(table(6))
    hide = torch.arange(6)[:, None].expand(6, 6) < 2
    mixed = replace(rows, parts={**rows.parts, "x2": conceal(rows.parts["x2"], hide)})
    model = model_of(mixed)
    whole = [terms(model, mixed, seed) for seed in range(400)]
    model.train()
    lots = []
    for seed in range(3000):
        torch.manual_seed(seed)
        lots.append({name: one.value.detach() for name, one in model.terms(mixed, mixed).items()})
    kinds = ("nll", "self", "cross")
    for name in ("x1", "x2"):
        drawn = torch.stack([torch.stack([one[f"{kind}/{name}"] for kind in kinds]) for one in lots])
        seen = mixed.parts[name].seen.any(-1)
        assert ((drawn != 0).sum(1)[:, seen] == 1).all()
        assert not drawn[:, 2, :2].any()  # nothing crosses to rows without another modality
        mean, error = drawn.sum(1).mean(0), drawn.sum(1).std(0) / len(lots) ** 0.5
        every = torch.stack([sum(one[f"{kind}/{name}"].value.detach() for kind in kinds) for one in whole])
        spread = (error**2 + every.var(0) / len(whole)).sqrt()
        assert ((mean - every.mean(0)).abs() < 4.5 * spread + 1e-12).all()
    with torch.no_grad():
        assert (model.terms(mixed, mixed)["nll/x1"].value != 0).all()


def test_encoders_begin_as_quiet_about_private_latents_as_they_are_told():
    rows = batch(table())
    widths = {}
    for quiet in (-5.0, 0.0):
        latent = model_of(rows, quiet=quiet).condition(rows).latent()
        widths[quiet] = float(latent["private_x1"].std.mean()), float(latent["shared"].std.mean())
    assert widths[-5.0][0] > 0.99 > 0.9 > widths[0.0][0]
    assert widths[-5.0][1] == widths[0.0][1] < 0.9


def test_what_crosses_counts_where_another_modality_was_seen():
    rows = batch(table())
    model = model_of(rows)
    found = terms(model, rows)
    alone = terms(model, without(rows, "x2"))
    assert {"cross/x1", "cross/x2", "self/x1", "kl/cross_x2", "kl/private_x1", "kl/shared"} < set(found)
    assert found["cross/x1"].value.all()
    for name in ("cross/x1", "kl/cross_x1", "cross/x2", "self/x2", "nll/x2", "kl/self_x2"):
        assert not alone[name].value.any(), name
    # from one modality alone the joint bound is its own
    torch.testing.assert_close(alone["kl/shared"].value, alone["kl/self_x1"].value)


def test_bounds_that_were_not_asked_for_are_not_there():
    rows = batch(table())
    found = terms(model_of(rows, bounds=("joint",)), rows)
    assert set(found) == {"nll/x1", "nll/x2", "kl/shared", "kl/private_x1"}
    single = terms(cs.VAE(latent_dim=2, hidden=8).build(rows.select("x1").schema, 40, 0).double(), rows.select("x1"))
    assert set(single) == {"nll/x1", "kl/shared"}


def test_the_divergence_of_private_latents_counts_once_per_bound():
    rows = batch(table())
    every = terms(model_of(rows), rows)["kl/private_x1"].value
    joint = terms(model_of(rows, bounds=("joint",)), rows)["kl/private_x1"].value
    torch.testing.assert_close(every, 3 * joint)


@pytest.mark.parametrize("bounds", [("joint",), ("self", "cross")])
def test_parts_of_a_divergence_add_up_to_it(bounds):
    rows = batch(table())
    whole = terms(model_of(rows, bounds=bounds), rows)
    model = model_of(rows, bounds=bounds, parts=True)
    several = [terms(model, rows, seed) for seed in range(100)]
    for name, term in whole.items():
        if name.startswith("kl/"):
            parts = [f"kl/{part}_{name[3:]}" for part in ("index", "total", "each")]
            found = torch.stack([sum(one[part].value.detach() for part in parts) for one in several])
            expected, error = float(term.value.detach().mean()), float(found.std()) / 10
            assert float(found.mean()) == pytest.approx(expected, abs=4 * error + 1e-3), name
    assert not {name for name in several[0] if name.startswith("kl/")} & set(whole)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_of_three_modalities_a_random_set_crosses(posterior):
    rows = batch(table(modalities=3))
    model = model_of(rows, private=dict.fromkeys(NAMES, 1), posterior=posterior)
    seen = {float(terms(model, rows, seed)["kl/cross_x1"].value[0].detach()) for seed in range(40)}
    assert len(seen) == 3  # from x2, from x3, from both


def test_a_mixture_of_one_modality_is_its_product():
    rows = without(batch(table()), "x2")
    whole, mixed = (model_of(rows, fusion=fusion).condition(rows).latent() for fusion in ("product", "mixture"))
    for block, q in whole.items():
        torch.testing.assert_close(mixed[block].mean, q.mean)
        torch.testing.assert_close(mixed[block].std, q.std)


def test_a_mixture_is_between_what_its_modalities_say():
    rows = batch(table())
    model = model_of(rows, fusion="mixture")
    q = model.condition(rows).latent()["shared"]
    means = [model.condition(without(rows, name)).latent()["shared"].mean for name in ("x2", "x1")]
    torch.testing.assert_close(q.mean, (means[0] + means[1]) / 2)
    private = model.condition(rows).latent()["private_x1"].mean
    torch.testing.assert_close(private, model.condition(without(rows, "x2")).latent()["private_x1"].mean)


def test_club_has_every_pair_of_blocks_and_leaves_its_conditionals_to_their_own_term():
    rows = batch(table())
    model = model_of(rows, private={"x1": 1, "x2": 1}, club=True)
    found = terms(model, rows)
    pairs = {"shared_private_x1", "shared_private_x2", "private_x1_private_x2"}
    assert {name.removeprefix("mi/") for name in found if name.startswith("mi/")} == pairs
    club = dict(model.club.named_parameters())
    for pair in pairs:
        assert isinstance(found[f"mi/{pair}"], Batch)
        apart = torch.autograd.grad(
            found[f"mi/{pair}"].value, list(club.values()), allow_unused=True, retain_graph=True
        )
        assert all(slope is None for slope in apart)
    encoder = list(model.encoders.parameters())
    fit = sum(found[f"fit/{pair}"].value.sum() for pair in pairs)
    assert all(s is None for s in torch.autograd.grad(fit, encoder, allow_unused=True, retain_graph=True))
    moved = torch.autograd.grad(found["mi/private_x1_private_x2"].value, encoder, allow_unused=True)
    assert any(slope is not None and slope.any() for slope in moved)
    assert float(terms(model, without(rows, "x2"))["mi/private_x1_private_x2"].value) == 0


def test_a_small_table_begins_near_its_factor_analysis():
    """Without that all latents of such tables stay at the prior."""
    made = cs.simulators.linear_gaussian(seed=3, latent_dim=2, sizes={"x1": 6, "x2": 6}).simulate(
        60, seed=4, missing=0.1
    )
    family = cs.DisentangledVAE(shared=2, hidden=16)
    fitted = cs.fit(family, made, cs.TrainConfig(max_steps=1, batch_size=20, validation=0, learning_rate=1e-6))
    assert fitted.latent(made).used()["shared"] == 2
    exact, _ = cs.simulators.linear_gaussian(seed=3, latent_dim=2, sizes={"x1": 6, "x2": 6}).latent(made)
    latent = fitted.latent(made).mean["shared"]
    residual = exact - latent @ np.linalg.lstsq(latent, exact, rcond=None)[0]
    assert 1 - residual.var() / exact.var() > 0.9


def test_latents_that_nothing_decides_are_silent():
    rows = batch(table())
    model = model_of(rows)
    encoder = model.encoders["x1"].reader.rest.layers[-1]
    with torch.no_grad():  # what it says of its private latent is next to nothing
        encoder.bias[-1] = -8.0
        encoder.weight[-1] = 0.0
    before = model.condition(rows).latent()["private_x1"]
    assert before.mean.any()
    model.settle(rows)
    after = model.condition(rows).latent()
    assert not after["private_x1"].mean.any()
    assert (after["private_x1"].std == 1).all()


def test_shared_and_private_factors_are_told_apart():
    made = cs.simulators.factors(2500, seed=5, sizes=(1, 1, 20))
    train, test = made.split(0.8, seed=0)
    family = cs.DisentangledVAE(shared=1, private={"x1": 1, "x2": 1}, hidden=64)
    config = cs.TrainConfig(max_steps=900, learning_rate=3e-3, validation=0)
    fitted = cs.fit(family, train.select("x1", "x2").renumbered(), config)
    latent = fitted.latent(test.select("x1", "x2")).mean
    blocks = ("shared", "private_x1", "private_x2")
    ranks = np.argsort(
        np.argsort([*(latent[b][:, 0] for b in blocks), *(test.parts[f"true_{b}"].value[:, 0] for b in blocks)])
    )
    found = np.abs(np.corrcoef(ranks)[:3, 3:])
    assert np.diag(found).min() > 0.95
    assert found[~np.eye(3, dtype=bool)].max() < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": 0, "private": {}}, "at least one latent"),
        ({"shared": 0}, "latents that 'x2' reads"),
        ({"posterior": "full", "fusion": "mixture"}, "fusion 'product'"),
        ({"posterior": "full", "experts": "plain"}, "fusion 'product'"),
        ({"club": True, "private": {}}, "two blocks"),
        ({"parts": True, "posterior": "full"}, "diagonal posterior"),
        ({"club": True, "bounds": ("self",)}, "bound 'joint'"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    with pytest.raises(SchemaError, match=message):
        model_of(batch(table()), **options)


def test_a_vae_has_one_modality():
    with pytest.raises(SchemaError, match="one modality"):
        cs.VAE().build(table().schema, 40, 0)


def test_limits_need_a_likelihood_that_takes_them():
    schema = Schema(modalities=(ModalitySpec(name="x1", shape=(2,)),))
    state = np.full((6, 2), State.MEASURED)
    state[3, 1] = State.BELOW
    obs = Observations.from_arrays(schema, {"x1": np.random.default_rng(0).normal(size=(6, 2))}, state={"x1": state})
    with pytest.raises(DataError, match="no limits in 'x1'"):
        cs.fit(cs.VAE(latent_dim=1, likelihood="student"), obs, cs.TrainConfig(max_steps=1, validation=0))


def pictures(rows=30, seed=0):
    """Discs of different brightness, size and shape, and a spectrum that knows the brightness."""
    rng = np.random.default_rng(seed)
    disc, side = Disc((2, 12, 12), Profile()), 12
    u = torch.as_tensor(rng.standard_normal((rows, disc.size)), dtype=torch.float32)
    with torch.no_grad():
        image = 50 * disc.flux(u).numpy().astype(float)
    photo = ModalitySpec(name="image", shape=(2, side, side), scale="asinh")
    specs = (photo, ModalitySpec(name="spectrum", shape=(5,)))
    values = {"image": image + 0.1 * rng.standard_normal(image.shape), "spectrum": u.numpy()[:, :1] + np.arange(5.0)}
    values["spectrum"] = values["spectrum"] + 0.1 * rng.standard_normal((rows, 5))
    sigma = {"image": np.full(image.shape, 0.1), "spectrum": np.full((rows, 5), 0.1)}
    return Observations.from_arrays(Schema(modalities=specs), values, sigma=sigma), u


def disc_model(rows, **options):
    obs, _ = rows
    common = {"private": {"image": 1}, "networks": {"image": "conv"}, "channels": 4, "physics": {"image": Profile()}}
    model = model_of(obs, **(common | options))
    model.in_units(Scaler.fit(obs))
    return model


def slopes(model, value):
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, retain_graph=True)
    named = zip(dict(model.named_parameters()), found, strict=True)
    return {name for name, slope in named if slope is not None and bool(slope.any())}


def test_nothing_but_the_disc_moves_what_an_image_says_of_it():
    rows = pictures()
    model, scaled = disc_model(rows, club=True), batch(rows[0])
    found = terms(model, scaled)
    moved_by = slopes(model, found["physics/image"].value.sum())
    assert moved_by >= {"decoders.image.disc.location", "discs.image.log_noise"}
    mean = model.encoders["image"].reader.last.layers[1].bias  # of latents in their order, precisions after them
    columns = model.layout.columns()
    for name in ("nll/image", "self/image", "mi/physics_image_private_image"):
        slope = torch.autograd.grad(found[name].value.sum(), mean, retain_graph=True)[0]
        assert not slope[columns["physics_image"]].any(), name
        assert slope[-1].any(), name  # of private latents
    slope = torch.autograd.grad(found["physics/image"].value.sum(), mean)[0]
    assert slope[columns["physics_image"]].all()
    assert not slope[columns["shared"]].any()


def test_a_disc_is_guessed_from_other_modalities_and_is_the_prior_without_any():
    rows = pictures()
    model, scaled = disc_model(rows), batch(rows[0])
    found = terms(model, scaled)
    assert slopes(model, found["cross/image"].value.sum()) & {"encoders.spectrum.reader.seen.weight"}
    assert not slopes(model, found["physics/image"].value.sum()) & {"encoders.spectrum.reader.seen.weight"}
    blind = without(without(scaled, "image"), "spectrum")
    q = model.condition(blind).latent()["physics_image"]
    assert not q.mean.any()
    torch.testing.assert_close(q.std, torch.ones_like(q.std))
    unseen = terms(model, blind)
    assert not unseen["physics/image"].value.any()
    assert float(unseen["kl/physics_image"].value.detach().abs().max()) == pytest.approx(0, abs=1e-9)
    assert model.blocks["physics_image"].cells[0].name == "log_flux"


@pytest.mark.parametrize("method", ["encoder", "default"])
def test_an_image_alone_says_what_its_disc_is(method):
    rows = pictures()
    model, scaled = disc_model(rows), batch(rows[0])
    both, alone, guessed = (
        model.condition(context).latent(method)["physics_image"]
        for context in (scaled, without(scaled, "spectrum"), without(scaled, "image"))
    )
    assert torch.equal(both.mean, alone.mean)
    assert torch.equal(both.std, alone.std)
    assert guessed.mean.any()


def test_club_leaves_what_is_shared_to_discs():
    model = disc_model(pictures(), club=True)
    assert set(model.club.names) == {"shared_private_image", "physics_image_private_image"}


def test_discs_are_learned():
    obs, u = pictures(600)
    family = cs.DisentangledVAE(
        shared=1, private={"image": 1}, networks={"image": "conv"}, hidden=32, channels=4, physics={"image": Profile()}
    )
    fitted = cs.fit(family, obs, cs.TrainConfig(max_steps=150, validation=0, learning_rate=3e-3))
    with torch.no_grad():
        true = Disc((2, 12, 12), Profile()).physical(u)
    for method in ("encoder", "default"):
        said = torch.as_tensor(fitted.latent(obs, method=method).mean["physics_image"], dtype=torch.float32)
        with torch.no_grad():
            found = fitted.members[0].decoders["image"].disc.physical(said)
        for name in ("flux_1", "half_light_radius", "e_cos2", "e_sin2"):
            one, other = (torch.log(x[name]) if name[0] in "fh" else x[name] for x in (found, true))
            if name == "flux_1":
                other = other + np.log(50)
            assert 1 - float((one - other).square().mean() / other.var()) > 0.7, (method, name)


@pytest.mark.parametrize(
    "options",
    [{"likelihoods": {"image": "poisson"}}, {"bounds": ("joint",)}, {"posterior": "full"}, {"fusion": "mixture"}],
)
def test_discs_that_cannot_be_are_refused(options):
    with pytest.raises(SchemaError):
        disc_model(pictures(), **options)


def test_a_disc_needs_an_image():
    rows = table()
    with pytest.raises(SchemaError, match="real image"):
        model_of(rows, physics={"x1": Profile()})


def test_what_no_encoder_reads_is_drawn_from_its_population():
    """Latents of a VAE whose divergence hardly counts are not N(0, I)."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(-1, 0.3, size=300), rng.normal(1, 0.3, size=300)])
    x = z[:, None] * np.linspace(0.5, 1.5, 12) + 0.1 * rng.normal(size=(600, 12))
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(12,)),))
    table = Observations.from_arrays(schema, {"x": x})
    config = cs.TrainConfig(max_steps=200, learning_rate=1e-2, weights={"kl/*": 0.01}, validation=0)
    fit = cs.fit(cs.VAE(latent_dim=1, hidden=16), table, config)
    found, unseen = fit.latent(table), fit.latent(table.hide("x"))
    mean, std = found.mean["shared"], found.std["shared"]
    spread = np.sqrt(mean.var() + np.square(std).mean())
    np.testing.assert_allclose(unseen.mean["shared"], mean.mean(), atol=0.05)
    np.testing.assert_allclose(unseen.std["shared"], spread, rtol=0.05)
    assert abs(spread - 1) > 0.1
    drawn, true = fit.generate(2000, seed=0).values["x"], x
    assert drawn.std() == pytest.approx(true.std(), rel=0.1)
