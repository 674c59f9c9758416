"""Discs that are known, read back with their error bars; and the share that right and wrong ones explain."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.analysis import discs
from consilience.blocks.physics import Disc, Profile
from consilience.data.observations import Observations
from consilience.data.samples import Latent
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.plots.style import png

SPEC = ModalitySpec(name="image", shape=(2, 16, 16), unit="nmgy")


def world(rows=30, spread=0.1, seed=0, *, sigma=True):
    """A table of discs with noise, and a model that knows them up to a spread."""
    rng = np.random.default_rng(seed)
    disc = Disc(SPEC.shape, Profile(seeing=3.0)).double()
    u = rng.standard_normal((rows, disc.size))
    with torch.no_grad():
        image = 100 * disc.flux(torch.as_tensor(u)).numpy()
        disc.location[0] += np.log(100)
    bars = np.full(image.shape, 0.05)
    image = image + bars * rng.standard_normal(image.shape)
    image[rng.random(image.shape) < 0.1] = np.nan
    errors = {"image": bars} if sigma else None
    obs = Observations.from_arrays(Schema(modalities=(SPEC,)), {"image": image}, sigma=errors)
    mean = u + spread * rng.standard_normal(u.shape)

    def latent(rows):
        return Latent({"physics_image": mean}, {"physics_image": np.full(mean.shape, spread)}, rows.ids)

    model = SimpleNamespace(discs_of=lambda: {"image": disc})
    return SimpleNamespace(schema=obs.schema, members=(model,), latent=latent), obs, disc, u


def test_parameters_are_those_of_the_discs():
    fitted, obs, disc, u = world(spread=1e-6)
    found = discs(fitted, obs, "image")
    table = found.table()
    with torch.no_grad():
        true = {name: value.numpy() for name, value in disc.physical(torch.as_tensor(u)).items()}
    for name in ("flux_0", "half_light_radius", "axis_ratio", "column", "seeing"):
        np.testing.assert_allclose(table[name], true[name], rtol=1e-4, atol=1e-4)
    angle = np.rad2deg(0.5 * np.arctan2(true["e_sin2"], true["e_cos2"])) % 180
    np.testing.assert_allclose(table["position_angle"], angle, atol=1e-2)
    assert str(table["half_light_radius"].unit) == "pix"
    assert str(table["position_angle_84"].unit) == "deg"
    assert str(table["flux_1"].unit) == "nmgy"
    assert 0.99 < found.share < 1.01


def test_quantiles_cover_and_an_angle_near_zero_is_whole():
    fitted, obs, disc, u = world(rows=400, spread=0.2)
    found = discs(fitted, obs, "image", n=400)
    with torch.no_grad():
        true = disc.physical(torch.as_tensor(u))["half_light_radius"].numpy()
    column = [name for name, _ in found.quantities].index("half_light_radius")
    inside = (found.low[:, column] < true) & (true < found.high[:, column])
    assert 0.6 < inside.mean() < 0.76
    column = [name for name, _ in found.quantities].index("position_angle")
    assert (found.high[:, column] >= found.low[:, column]).all()
    assert (found.high[:, column] - found.low[:, column] < 180).all()
    assert ((found.median[:, column] >= 0) & (found.median[:, column] < 180)).all()


@pytest.mark.parametrize("sigma", [True, False])
def test_wrong_discs_explain_less(sigma):
    right, obs, *_ = world(spread=1e-6, sigma=sigma)
    wrong, *_ = world(spread=2.0, sigma=sigma)
    assert discs(wrong, obs, "image").share < 0.5 < discs(right, obs, "image").share


def test_the_figure_shows_images_discs_and_residuals():
    fitted, obs, *_ = world()
    found = discs(fitted, obs, "image")
    assert found.shown.shape == (4, 3, 16, 16)
    figure = found.figure()
    assert "% of the variance" in figure.get_suptitle()
    assert len(png(figure)) > 10_000


def test_a_model_without_discs_is_refused():
    fitted, obs, *_ = world()
    with pytest.raises(RequestError, match="physics decoder of 'spectrum'"):
        discs(fitted, obs, "spectrum")
    with pytest.raises(RequestError, match="n >= 2"):
        discs(fitted, obs, "image", n=1)
    table = cs.simulators.gaussian(30, seed=0)
    other = cs.fit(cs.SharedGPLVM(latent_dim=1, inducing=4), table, cs.TrainConfig(max_steps=1, validation=0))
    with pytest.raises(RequestError, match="physics decoder"):
        discs(other, table, table.schema.names[0])
