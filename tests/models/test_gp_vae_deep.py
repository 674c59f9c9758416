"""GPVAE with deep decoders: sites from encoders beside exact ones, bounds below the evidence, known special cases."""

import math

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.blocks.networks import SiteEncoder
from consilience.blocks.noise import Noise
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.models.bins import DeepBins, LinearBins, _weighed
from consilience.models.deep_start import deep_start

BINS = 10


def table(rows=5, seed=0):
    """Trials of counts and of a picture of six pixels; some bins, some cells and one whole modality are missing."""
    rng = np.random.default_rng(seed)
    values = {"counts": rng.poisson(2.0, size=(rows, BINS, 3)) * 1.0, "picture": rng.normal(size=(rows, BINS, 2, 3))}
    for value in values.values():
        value[rng.random(value.shape) < 0.2] = np.nan
        value[:, 4:6] = np.nan
    values["picture"][1] = np.nan
    specs = (
        ModalitySpec(name="counts", shape=(BINS, 3), kind="count"),
        ModalitySpec(name="picture", shape=(BINS, 2, 3), scale="none"),
    )
    return Observations.from_arrays(Schema(modalities=specs), values)


def model_of(obs, seed=0, **options):
    options = {
        "shared": 1,
        "private": {"picture": 1},
        "decoders": {"picture": "deep"},
        "length": 4.0,
        "hidden": 8,
        "inference_steps": 15,
    } | options
    model = cs.GPVAE(**options).build(obs.schema, len(obs), seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("weights", "offsets")):
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("log_noise"):
                parameter.fill_(0.5)
    return model


def batch(obs):
    return Scaler.fit(obs).forward(obs).to(dtype=torch.float64)


def cells_of(model, obs):
    return {name: model.cells(name, part) for name, part in batch(obs).parts.items()}


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 3])
def test_a_bin_in_which_nothing_was_seen_has_no_site(window):
    obs = table()
    one = cells_of(model_of(obs, window=window), obs)["picture"]
    assert isinstance(one, DeepBins)
    sites = one.given() + one.first()
    assert not sites.shift[:, 4:6].any() and not sites.precision[:, 4:6].any()
    assert not sites.precision[1].any()
    assert (sites.precision[0, 0].diagonal() > 0).all()
    # latents are shared, private: the picture informs both, its site does not couple them
    assert not sites.precision[..., 0, 1].any()


@torch.no_grad()
def test_an_encoder_of_a_window_reads_its_neighbours_and_no_further():
    obs = table(rows=2)
    model = model_of(obs, window=3)
    moved = {name: part.value.copy() for name, part in obs.parts.items()}
    moved["picture"][0, 1, 0, 0] = 5.0
    before, after = (
        cells_of(model, rows)["picture"].taught.mean[0].flatten(1)
        for rows in (obs, Observations.from_arrays(obs.schema, moved))
    )
    changed = (before != after).any(-1)
    assert changed.tolist() == [True] * 3 + [False] * (BINS - 3)


def test_sites_of_counts_are_at_the_optimum_given_those_of_the_encoder():
    obs = table(rows=3, seed=3)
    model = model_of(obs)
    conditional = model.condition(batch(obs))
    cells = cells_of(model, obs)
    assert isinstance(cells["counts"], LinearBins)
    given = cells["picture"].given()
    start = conditional.q.coordinates
    mean, factor = start.mean.clone().requires_grad_(), start.factor.clone().requires_grad_()
    q = type(conditional.q)(conditional.q.root, type(start)(mean, factor.tril()))
    # the taught sites as factors that give way, by the bound of their logarithm
    moving = _weighed([cells["counts"], cells["picture"]], [given], model._posterior, hasty=False)
    center, precision = (some.detach() for some in moving[1].taught.moments)
    miss = precision * ((q.mean[..., :1] - center).square() + q.covariance[..., :1, 0])
    tails = -0.5 * torch.where(miss < 1, miss, 1 + 5 * torch.log1p((miss - 1).clamp_min(0) / 5)).flatten(1).sum(-1)
    bound = cells["counts"].expected(q) + given.expected(q.mean, q.covariance) + tails - q.divergence().sum(-1)
    slopes = torch.autograd.grad(bound.sum(), (mean, factor))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-4


@torch.no_grad()
def test_the_objective_is_a_bound_of_the_evidence():
    obs = table(rows=3, seed=4)
    model = model_of(obs)
    # an encoder that nobody trained is too sure of itself to be sampled from
    model.encoders["picture"].reader.rest.layers[-1].bias[1:] -= 3
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bounds = torch.stack(
            [
                -sum(t.value for name, t in model.terms(batch(obs), batch(obs)).items() if not name.startswith("fit/"))
                for _ in range(200)
            ]
        )
    # the evidence by importance sampling from q, with its error
    q = model.condition(batch(obs)).q
    normal = torch.randn(4000, *q.coordinates.mean.shape, generator=generator, dtype=torch.float64)
    v = q.coordinates.draw(normal)
    ratio = 0.5 * (normal.square() - v.square()).sum(-1) + q.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    cells = cells_of(model, obs).values()
    total = ratio + torch.stack([sum(one.log_prob(z) for one in cells) for z in q.latents(v)])
    evidence = torch.logsumexp(total, 0) - math.log(len(total))
    error = torch.exp(total - evidence).std(0) / len(total) ** 0.5
    assert (error < 0.2).all()
    assert (bounds.mean(0) < evidence + 3 * error).all()
    assert (bounds.mean(0) > evidence - 60).all()  # of nobody's training


@torch.no_grad()
def test_the_density_of_a_cell_is_its_average_over_the_posterior():
    obs = table(rows=2, seed=5)
    model = model_of(obs)
    conditional = model.condition(batch(obs.hide("picture")))
    found = conditional.cell_log_prob(batch(obs), ("picture",), Noise(0, obs.ids, dtype=torch.float64))["picture"]
    one = cells_of(model, obs)["picture"]
    normal = torch.randn(
        4000, *conditional.q.coordinates.mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    f = one.functions(conditional.q.latents(conditional.q.coordinates.draw(normal)))
    value = torch.stack([one.at(some.flatten(0, 1)) for some in f])
    expected = (torch.logsumexp(value, 0) - math.log(len(value))).view(found.shape)
    seen = torch.as_tensor(obs.parts["picture"].seen)
    assert not found[~seen].any()
    assert torch.allclose(found[seen], expected[seen], atol=0.1)


def test_without_dynamics_bins_are_exchangeable():
    """A white kernel: the variational autoencoder of single bins."""
    obs = table(rows=4, seed=6)
    model = model_of(obs, kernel="white", shared=0, private={"picture": 2}, coordinates="fourier")
    order = np.random.default_rng(0).permutation(BINS)
    shuffled = {name: part.value[:, order] for name, part in obs.parts.items()}
    straight = model.condition(batch(obs)).latent()["private_picture"]
    moved = model.condition(batch(Observations.from_arrays(obs.schema, shuffled))).latent()["private_picture"]
    torch.testing.assert_close(moved.mean, straight.mean[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved.std, straight.std[:, order], atol=1e-6, rtol=0)


def test_in_time_or_in_fourier_coordinates_the_posterior_is_the_same():
    """Of a GP-VAE of one modality: coordinates are a matter of speed."""
    obs = table(rows=3, seed=7).select("picture")
    found = []
    for coordinates in ("fourier", "time"):
        model = model_of(obs, shared=0, private={"picture": 2}, coordinates=coordinates, longest=5.0)
        found.append(model.condition(batch(obs)).latent()["private_picture"])
    torch.testing.assert_close(found[0].mean, found[1].mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0].std, found[1].std, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def circles():
    """A point that turns on a circle as a smooth process tells, its noisy picture, and counts that know the angle."""
    rng, maps = np.random.default_rng(0), np.random.default_rng(1)
    lag = np.subtract.outer(np.arange(24), np.arange(24)) / 5.0
    z = rng.normal(size=(70, 24)) @ np.linalg.cholesky(np.exp(-0.5 * lag**2) + 1e-8 * np.eye(24)).T
    ring = np.stack([np.cos(1.2 * z), np.sin(1.2 * z)], -1)
    picture = 30 * (ring @ maps.normal(size=(2, 12)) + 0.2 * rng.normal(size=(70, 24, 12))) + 100
    counts = rng.poisson(np.exp(0.5 + z[..., None] * maps.uniform(-1, 1, size=20))) * 1.0
    specs = (
        ModalitySpec(name="counts", shape=(24, 20), kind="count"),
        ModalitySpec(name="picture", shape=(24, 12)),
    )
    obs = Observations.from_arrays(Schema(modalities=specs), {"counts": counts, "picture": picture})
    family = cs.GPVAE(shared=1, decoders={"picture": "deep"}, length=5.0, hidden=32)
    config = cs.TrainConfig(max_steps=250, batch_size=20, learning_rate=2e-2, validation=0)
    return cs.fit(family, obs[:50].renumbered(), config), obs[50:], z[50:]


def test_a_curved_decoder_is_learned_and_read_from_either_modality(circles):
    fitted, test, z = circles
    for hidden, least in (("", 0.97), ("counts", 0.7), ("picture", 0.9)):
        mean = fitted.latent(test.hide(*hidden.split())).mean["shared"][..., 0]
        assert np.corrcoef(mean.ravel(), z.ravel())[0, 1] ** 2 > least, hidden
    explained = fitted.summarise(test, ["picture"], statistics=["mean"], method="expected").statistics["picture"]
    error = np.mean((explained["mean"] - test.parts["picture"].value) ** 2)
    assert error < 0.15 * test.parts["picture"].value.var()


def test_what_is_drawn_of_a_curved_decoder_covers(circles):
    fitted, test, _ = circles
    draws = fitted.sample(test.hide("picture"), ["picture"], n=200).values["picture"]
    inside = np.abs((draws < test.parts["picture"].value).mean(0) - 0.5) < 0.34
    assert 0.58 < inside.mean() < 0.78


def test_expected_values_are_what_draws_scatter_about(circles):
    fitted, test, _ = circles
    some = test[:3]
    expected = fitted.sample(some, ["counts"], n=400, method="expected").values["counts"]
    drawn = fitted.sample(some, ["counts"], n=400).values["counts"]
    error = drawn.std(0) / 20
    assert (np.abs(expected.mean(0) - drawn.mean(0)) < 5 * error + 0.01).all()
    assert (expected.var(0) < drawn.var(0)).mean() > 0.95


def test_settings_that_do_not_fit_are_named():
    obs = table()
    with pytest.raises(SchemaError, match="odd window"):
        cs.GPVAE(window=2).build(obs.schema, 3, 0)
    with pytest.raises(cs.errors.RequestError, match="pictur"):
        cs.GPVAE(decoders={"pictur": "deep"}).build(obs.schema, 3, 0)


def pictures_of_a_turn():
    """Pictures of something that turns smoothly, trials (60, 40), and its angle; half of the pixels are dark."""
    rng = np.random.default_rng(11)
    bins = 40
    lag = np.subtract.outer(np.arange(bins), np.arange(bins)) / 8
    factor = np.linalg.cholesky(np.exp(-0.5 * lag**2) + 1e-8 * np.eye(bins))
    z = rng.normal(size=(60, bins)) @ factor.T
    angle = (z * 2 * np.pi / 6)[..., None] + np.linspace(0, 2 * np.pi, 12, endpoint=False)
    pictures = np.concatenate([np.exp(2 * np.cos(angle)), np.full((60, bins, 6), 1e-3)], -1)
    schema = Schema(modalities=(ModalitySpec(name="picture", shape=(bins, 18)),))
    return Observations.from_arrays(schema, {"picture": pictures}), z


def test_a_step_of_training_moves_the_outputs_of_a_wide_window_as_far_as_those_of_one_bin():
    def moved(window):
        torch.manual_seed(0)
        encoder = SiteEncoder(20, 1, 64, window=window)
        value = torch.randn(1, BINS, 20, generator=torch.Generator().manual_seed(1)) + 1
        optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-2)
        before = encoder(value, torch.ones_like(value, dtype=torch.bool))[0]
        before.sum().backward()
        optimiser.step()
        after = encoder(value, torch.ones_like(value, dtype=torch.bool))[0]
        return float((after - before).detach().abs().mean())

    assert 0.2 * moved(1) < moved(9) < 2 * moved(1)


def test_a_model_of_pictures_alone_begins_along_their_curve():
    """A pixel that is always dark, known within a hair, does not lead the others; the latent follows the turn."""
    obs, z = pictures_of_a_turn()
    config = cs.TrainConfig(max_steps=30, batch_size=15, validation=0.0)
    family = cs.GPVAE(shared=1, decoders={"picture": "deep"}, length=8.0, hidden=32)
    latent = cs.fit(family, obs, config).latent(obs).mean["shared"].ravel()
    ranks = np.argsort(np.argsort(np.stack([latent, z.ravel()]), axis=1), axis=1)
    assert abs(np.corrcoef(ranks)[0, 1]) > 0.9


@torch.no_grad()
def test_deep_start_leaves_alone_what_it_cannot_know():
    obs = table(rows=3)  # every bin misses some cell
    model = model_of(obs, shared=0)
    before = {name: p.clone() for name, p in model.encoders.named_parameters()}
    cells = [one for one in cells_of(model, obs).values() if isinstance(one, DeepBins)]
    deep_start(cells, torch.ones(1, dtype=torch.float64), lag=2)
    for name, parameter in model.encoders.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


def test_an_encoder_that_knows_nothing_at_all_still_teaches_and_learns():
    """Precisions whose inverse no float can hold, as a large step of training may leave them."""
    obs = table(rows=4)
    model = model_of(obs, private={}).float()
    with torch.no_grad():
        model.pupils["picture"].reader.rest.layers[-1].bias.view(2, 3)[:, 1] = -95.0
    rows = batch(obs).to(dtype=torch.float32)
    found = model.terms(rows, rows)
    assert all(torch.isfinite(term.value).all() for term in found.values())
    slopes = torch.autograd.grad(found["fit/picture"].value.sum(), list(model.pupils.parameters()), allow_unused=True)
    assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)
