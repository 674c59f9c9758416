"""Latents that are set decode to what the model says of them, and their traversals to what a linear decoder must."""

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.traversals import traversals
from consilience.data.observations import Observations
from consilience.data.schema import Grid, ModalitySpec, Schema
from consilience.errors import CapabilityError, RequestError

STEPS = cs.TrainConfig(max_steps=60, batch_size=64, learning_rate=1e-2, validation=0.1)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 2)) * [2.0, 0.5]
    grid = Grid(start=1.0, stop=2.0, size=9, unit="um")
    image = z[:, :1, None, None] * np.linspace(-1, 1, 16).reshape(1, 4, 4) + 0.1 * rng.normal(size=(200, 1, 4, 4))
    spectrum = z @ rng.normal(size=(2, 9)) + 0.1 * rng.normal(size=(200, 9))
    y = z @ [[1.0], [0.3]] + 0.1 * rng.normal(size=(200, 1))
    specs = (
        ModalitySpec(name="image", shape=(1, 4, 4), unit="nmgy"),
        ModalitySpec(name="spectrum", grid=grid, unit="Jy"),
        ModalitySpec(name="y", cells=({"name": "mass"}, )),
    )  # fmt: skip
    return Observations.from_arrays(Schema(modalities=specs), {"image": image, "spectrum": spectrum, "y": y})


@pytest.fixture(scope="module")
def linear(table):
    return cs.fit(cs.VAE(latent_dim=3, network="linear"), table.select("spectrum"), STEPS)


def test_a_linear_decoder_is_traversed_in_straight_lines(table, linear):
    found = traversals(linear, table.select("spectrum"), "shared", "spectrum", steps=5, reach=2.0)
    centre = found.decoded[:, 2]
    np.testing.assert_allclose(centre, np.broadcast_to(centre[0], centre.shape), atol=1e-5)
    steps = np.diff(found.decoded, axis=1)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=1e-4)
    # from -2 to 2 spreads the root of the mean square over five positions is √2 of one spread's change
    slope = (found.decoded[:, 3] - centre) / 1.0
    np.testing.assert_allclose(found.change, np.sqrt(2) * np.sqrt(np.mean(slope**2, axis=1)), rtol=1e-3)
    assert found.order.tolist() == np.argsort(-found.change).tolist()
    assert found.axis_name == "wavelength" and found.axis_unit == "um" and found.unit == "Jy"
    assert found.table()["latent"].tolist() == found.order.tolist()
    assert len(found.figure().axes) == 3


def test_decoding_the_posterior_mean_is_what_a_sure_posterior_draws(table, linear):
    rows = table.select("spectrum")[:20]
    latent = linear.latent(rows).mean["shared"]
    draws = linear.decode(rows, {"shared": latent}, ["spectrum"], n=4000).values["spectrum"]
    decoded = draws[0]
    # the decoder is linear: the mean of all draws is the decoded mean
    drawn = linear.sample(rows, ["spectrum"], n=4000).values["spectrum"]
    error = np.hypot(drawn.std(axis=0), draws.std(axis=0)) / np.sqrt(4000)
    assert (np.abs(drawn.mean(axis=0) - draws.mean(axis=0)) < 5 * error).all()
    # what the latents leave open is the same in every row
    np.testing.assert_allclose(draws[1] - draws[0], np.tile(draws[1, 0] - draws[0, 0], (20, 1)), atol=1e-5)
    # a block that is not set stays at its posterior mean
    kept = linear.decode(rows, {}, ["spectrum"]).values["spectrum"][0]
    np.testing.assert_allclose(kept, decoded, atol=1e-6)
    blank = linear.decode(rows.hide("spectrum"), {"shared": latent}, ["spectrum"]).values["spectrum"][0]
    np.testing.assert_allclose(blank, decoded, atol=1e-6)


def test_images_of_a_flow_are_decoded_by_their_autoencoder(table):
    family = cs.VAEFlow(target="y", images=["image"], latent_dim=2, hidden=8, networks={"image": "linear"})
    fit = cs.fit(family, table.select("image", "y"), STEPS)
    found = traversals(fit, table.select("image"), "image", "image", steps=3)
    assert found.decoded.shape == (2, 3, 1, 4, 4)
    assert found.change[found.order[0]] > 0.1
    assert len(found.figure().axes) == 2 * 3 + 1
    rows = table.select("image")[:5]
    decoded = fit.decode(rows, {"image": fit.latent(rows).mean["image"]}, ["image"]).values["image"][0]
    assert np.corrcoef(decoded.ravel(), rows.parts["image"].value.ravel())[0, 1] > 0.8
    with pytest.raises(RequestError, match="Sample it"):
        fit.decode(rows, {}, ["y"])


def test_what_cannot_be_traversed_is_refused(table, linear):
    rows = table.select("spectrum")[:4]
    for latents in ({"private": np.zeros((4, 3))}, {"shared": np.zeros((4, 2))}, {"shared": np.zeros((3, 3))}):
        with pytest.raises(RequestError, match="Expected latents among"):
            linear.decode(rows, latents, ["spectrum"])
    for options in ({"steps": 4}, {"steps": 1}, {"reach": 0.0}):
        with pytest.raises(RequestError, match="odd number"):
            traversals(linear, rows, "shared", "spectrum", **options)
    with pytest.raises(RequestError, match="block of latents"):
        traversals(linear, rows, "nothing", "spectrum")
    regression = cs.fit(cs.Regression(target="y", hidden=4), table.select("spectrum", "y"), STEPS)
    with pytest.raises(CapabilityError, match="latent"):
        regression.decode(table[:4].select("spectrum"), {}, ["y"])
