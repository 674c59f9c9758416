"""Discs against the simulator's images, which are made in other ways, and what fits them."""

import numpy as np
import pytest
import torch

from consilience.blocks.disc_fit import DiscFit
from consilience.blocks.encoders import Architecture
from consilience.blocks.physics import Disc, PhysicsDecoder, Profile
from consilience.blocks.posteriors import DiagonalLatent
from consilience.data.observations import Modality, Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.simulators.galaxy_images import PIXEL, Sources, images

SIDE = 32
R, Q, ANGLE, SEEING = np.array([2.0, 5.0, 3.0]), np.array([0.9, 0.3, 0.6]), np.array([0.2, 1.4, 2.7]), 4.6
FLUX = np.array([[3.0, 5.0, 9.0], [20.0, 40.0, 70.0], [1.0, 1.0, 1.0]])
CENTRE = np.array([[0.0, 0.0], [0.4, -0.3], [-1.0, 2.0]])


def truth(index):
    which = np.arange(3)
    sources = Sources(which, np.full(3, index), FLUX, PIXEL * R, Q, ANGLE, PIXEL * CENTRE)
    return images(sources, np.full(3, PIXEL * SEEING), SIDE)


def standardised(disc, **t):
    """u of parameters that are given by name, (3, P)."""
    found = torch.zeros(3, disc.size, dtype=torch.float64)
    for column, name in enumerate(disc.names):
        value = torch.as_tensor(t[name], dtype=torch.float64).expand(3)
        found[:, column] = (value - disc.location[column].detach()) / disc.log_width[column].detach().exp()
    return found


def parameters():
    e = 1 - Q
    return {
        "log_flux": np.log(FLUX[:, 1]), "colour_0": np.log(FLUX[:, 0] / FLUX[:, 1]),
        "colour_2": np.log(FLUX[:, 2] / FLUX[:, 1]), "log_radius": np.log(R), "log_seeing": np.log(SEEING),
        "v_1": np.arctanh(e) * np.cos(2 * ANGLE), "v_2": np.arctanh(e) * np.sin(2 * ANGLE),
        "column": CENTRE[:, 0], "row": CENTRE[:, 1],
    }  # fmt: skip


def test_exponential_discs_are_those_of_the_simulator():
    disc = Disc((3, SIDE, SIDE), Profile(seeing=4.0)).double()
    u = standardised(disc, **parameters())
    with torch.no_grad():
        found, said = disc.flux(u).numpy(), {name: value.numpy() for name, value in disc.physical(u).items()}
    expected = truth(1)
    assert np.abs(found - expected).max() < 1e-5 * expected.max()
    np.testing.assert_allclose(said["half_light_radius"], R)
    np.testing.assert_allclose(said["axis_ratio"], Q, rtol=1e-6)
    np.testing.assert_allclose(np.arctan2(said["e_sin2"], said["e_cos2"]) % (2 * np.pi), 2 * ANGLE % (2 * np.pi))
    np.testing.assert_allclose(said["seeing"], SEEING)
    for band in range(3):
        np.testing.assert_allclose(said[f"flux_{band}"], FLUX[:, band])


@pytest.mark.parametrize("index", [1, 4])
def test_sersic_profiles_are_those_of_the_simulator(index):
    disc = Disc((3, SIDE, SIDE), Profile(law="sersic", seeing=4.0)).double()
    share = np.log(index / 0.5) / np.log(6.0 / 0.5)
    u = standardised(disc, index=np.log(share / (1 - share)), **parameters())
    with torch.no_grad():
        found = disc.flux(u).numpy()
        np.testing.assert_allclose(disc.physical(u)["index"].numpy(), index)
    expected = truth(index)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < 1e-3 * other.max()


def test_slopes_are_those_of_differences_for_round_discs_too():
    disc = Disc((8, 8), Profile(law="sersic", seeing=2.0)).double()
    u = torch.randn(3, disc.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(disc.flux, (u.requires_grad_(),), atol=1e-5)
    u = torch.zeros(1, disc.size, dtype=torch.float64, requires_grad=True)
    disc.flux(u).square().sum().backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("law", ["exponential", "sersic"])
def test_slopes_of_images_in_several_bands_are_their_gradients(law):
    disc = Disc((2, 8, 8), Profile(law=law, seeing=2.0)).double()
    u = torch.randn(3, disc.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        image, found = disc.slopes(u)
        torch.testing.assert_close(image, disc.flux(u))
    for row in range(3):
        expected = torch.autograd.functional.jacobian(lambda one: disc.flux(one[None])[0], u[row])
        torch.testing.assert_close(found[row], expected.movedim(-1, 0))


@pytest.mark.parametrize("scale", ["asinh", "standard", "none"])
def test_cells_are_in_units_of_the_model(scale):
    spec = ModalitySpec(name="image", shape=(3, SIDE, SIDE), scale=scale)
    obs = Observations.from_arrays(Schema(modalities=(spec,)), {"image": truth(1)})
    scaler = Scaler.fit(obs)
    disc = Disc(spec.shape, Profile(seeing=4.0), asinh=scale == "asinh").double()
    disc.in_units(scaler.transforms["image"])
    u = standardised(disc, **parameters())
    scaled = scaler.forward(obs).parts["image"].value.reshape(3, -1)
    with torch.no_grad():
        np.testing.assert_allclose(disc(u).numpy(), scaled, atol=1e-4)
        np.testing.assert_allclose(disc.linear(torch.as_tensor(scaled)).numpy(), truth(1).reshape(3, -1), atol=1e-5)


def test_it_begins_at_the_typical_disc_whatever_is_missing():
    rng = np.random.default_rng(0)
    n, radius, seeing = 60, 3.0, 4.6
    flux = np.exp(rng.normal(3.0, 0.7, (n, 1)) + [-0.5, 0.0, 0.4] + 0.1 * rng.standard_normal((n, 3)))
    q, angle = rng.uniform(0.5, 1, n), rng.uniform(0, np.pi, n)
    sources = Sources(np.arange(n), np.ones(n, int), flux, np.full(n, PIXEL * radius), q, angle, np.zeros((n, 2)))
    x = torch.as_tensor(images(sources, np.full(n, PIXEL * seeing), SIDE)).reshape(n, -1).double()
    x = x + 0.02 * torch.as_tensor(rng.standard_normal(x.shape))
    seen = torch.as_tensor(rng.random(x.shape) > 0.2)
    disc = Disc((3, SIDE, SIDE), Profile(seeing=4.6)).double()
    disc.begin(torch.where(seen, x, 1e3), seen)
    found = dict(zip(disc.names, disc.location.tolist(), strict=True))
    assert found["log_flux"] == pytest.approx(np.median(np.log(flux[:, 1])), abs=0.2)
    assert found["colour_0"] == pytest.approx(-0.5, abs=0.1)
    assert found["colour_2"] == pytest.approx(0.4, abs=0.1)
    assert radius * 0.6 < np.exp(found["log_radius"]) < radius * 1.1  # inclined ones are smaller on the minor axis
    width = dict(zip(disc.names, disc.log_width.exp().tolist(), strict=True))
    assert width["log_flux"] == pytest.approx(0.7, rel=0.3)
    assert (found["v_1"], found["v_2"]) == (0.0, 0.0)


def test_the_decoder_is_its_disc_before_anything_is_learned_and_takes_an_offset():
    decoder = PhysicsDecoder(2, Architecture("conv", (2, 16, 16), 1, 8, 4), Profile(), asinh=False)
    z = torch.randn(4, 2 + decoder.disc.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = decoder.disc(z[:, 2:]) + decoder.rest(z[:, :2])
        torch.testing.assert_close(decoder(z), plain)
        offset = torch.randn(512, generator=torch.Generator().manual_seed(1))
        decoder.begin(offset)
        typical = decoder.disc(torch.zeros(1, decoder.disc.size))[0] + decoder.rest.offset
        torch.testing.assert_close(typical, offset)


def crowd(n, misfit=0.0):
    """Discs with noise, a tenth of the pixels unseen, their images and what is known before."""
    disc = Disc((3, SIDE, SIDE), Profile(seeing=4.0)).double()
    rng = np.random.default_rng(0)
    u = torch.as_tensor(0.7 * rng.standard_normal((n, disc.size)))
    with torch.no_grad():
        disc.location[0] += np.log(30)
        clean = disc.flux(u).flatten(1)
    sigma = torch.full_like(clean, 0.05)
    state = torch.where(torch.as_tensor(rng.random(clean.shape)) < 0.1, 0, 2).to(torch.int8)
    scatter = torch.hypot(sigma, misfit * clean)
    value = torch.where(state > 0, clean + scatter * torch.as_tensor(rng.standard_normal(clean.shape)), 1e6)
    prior = DiagonalLatent(torch.zeros_like(u), torch.full_like(u, 0.7))
    return disc, u, Modality(value, state, sigma), prior, rng


def afar(u, rng, how_far):
    return DiagonalLatent(u + how_far * torch.as_tensor(rng.standard_normal(u.shape)), torch.ones_like(u))


@pytest.mark.parametrize("misfit", [0.0, 0.1])
def test_refinement_finds_the_posterior_from_afar(misfit):
    disc, u, part, prior, rng = crowd(60, misfit)
    fit = DiscFit().double()
    fit.learn(disc, part, afar(u, rng, 0.3), prior)
    assert float(fit.log_misfit.exp()) == pytest.approx(misfit, rel=0.1, abs=0.01)
    found = fit.refined(disc, part, afar(u, rng, 0.3), prior)
    pull = ((found.mean - u) / found.std).numpy()
    assert np.abs(np.median(pull, axis=0)).max() < 0.5
    assert 0.62 < np.mean(np.abs(pull) < 1) < 0.74
    assert found.std[:, 0].max() < 0.5


def test_refinement_of_a_row_is_the_same_in_any_company():
    disc, u, part, prior, rng = crowd(70)
    fit, begin = DiscFit().double(), afar(u, rng, 0.3)
    whole = fit.refined(disc, part, begin, prior)
    some = torch.tensor([3, 65, 69])
    alone = fit.refined(disc, part[some], *(DiagonalLatent(q.mean[some], q.std[some]) for q in (begin, prior)))
    assert torch.equal(alone.mean, whole.mean[some])
    assert torch.equal(alone.std, whole.std[some])


def test_refinement_of_nothing_seen_is_what_was_known():
    disc, u, part, prior, rng = crowd(5)
    hidden = Modality(part.value, torch.zeros_like(part.state), part.sigma)
    blind = DiscFit().double().refined(disc, hidden, afar(u, rng, 1.0), prior)
    torch.testing.assert_close(blind.mean, prior.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(blind.std, prior.std)
