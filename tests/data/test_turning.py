"""Images turn as arrays do, whole rows at a time, and in model units as in their own."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.data.turning import turned, turns
from consilience.errors import RequestError, SchemaError

SIDE = 5


def pictures(n=40, seed=0):
    rng = np.random.default_rng(seed)
    specs = (
        ModalitySpec(name="image", shape=(2, SIDE, SIDE), scale="asinh"),
        ModalitySpec(name="flat", shape=(SIDE, SIDE)),
        ModalitySpec(name="spectrum", shape=(7,)),
    )
    value = {spec.name: rng.normal(1.0, 1.0, (n, *spec.shape)) for spec in specs}
    for array in value.values():
        array[rng.random(array.shape) < 0.2] = np.nan
    sigma = {name: 0.1 + rng.random(array.shape) for name, array in value.items()}
    return Observations.from_arrays(Schema(modalities=specs), value, sigma=sigma)


def test_turns_are_those_of_the_square():
    image = np.arange(9).reshape(3, 3)
    expected = {np.rot90(one, number).tobytes() for one in (image, image.T) for number in range(4)}
    assert {image.ravel()[row].reshape(3, 3).tobytes() for row in turns(3).numpy()} == expected
    assert len(expected) == 8


def test_all_arrays_of_a_row_turn_together():
    obs = pictures()
    table = obs.to(torch.device("cpu"), torch.float64)
    found = turned(table, ["image", "flat"], torch.Generator().manual_seed(0))
    again = turned(table, ["image", "flat"], torch.Generator().manual_seed(0))
    index = turns(SIDE).numpy()
    used = set()
    for row in range(len(obs)):
        fits = [
            all(
                np.array_equal(
                    getattr(obs.parts[name], field)[row].reshape(-1, SIDE**2)[:, index[which]].ravel(),
                    getattr(found.parts[name], field)[row].numpy().ravel(),
                    equal_nan=True,
                )
                for name in ("image", "flat")
                for field in ("value", "state", "sigma")
            )
            for which in range(8)
        ]
        assert sum(fits) == 1
        used.add(fits.index(True))
    assert used == set(range(8))
    assert found.parts["spectrum"] is table.parts["spectrum"]
    assert torch.equal(found.parts["image"].state, again.parts["image"].state)


@pytest.mark.parametrize("which", range(8))
def test_turning_and_scaling_commute(which):
    obs = pictures()
    scaler = Scaler.fit(obs).symmetric(["image"])
    index = turns(SIDE)[which].numpy()

    def turn(array):
        return array.reshape(*array.shape[:-2], -1)[..., index].reshape(array.shape)

    part = obs.parts["image"]
    other = Observations.from_arrays(
        Schema(modalities=(obs.schema["image"],)), {"image": turn(part.value)}, sigma={"image": turn(part.sigma)}
    )
    one = Scaler(other.schema, {"image": scaler.transforms["image"]}).forward(other).parts["image"]
    two = scaler.forward(obs).parts["image"]
    np.testing.assert_allclose(one.value, turn(two.value), rtol=1e-12)
    np.testing.assert_allclose(one.sigma, turn(two.sigma), rtol=1e-12)
    np.testing.assert_array_equal(
        scaler.transforms["flat"].location, Scaler.fit(obs).transforms["flat"].location, strict=True
    )


def test_a_model_that_saw_images_turned_knows_turns():
    obs = pictures(200)
    rng = np.random.default_rng(1)
    column = np.linspace(-1, 1, SIDE)
    amplitude = rng.standard_normal((200, 1, 1, 1))
    value = {"image": np.broadcast_to(amplitude * column, (200, 2, SIDE, SIDE)).copy()}
    rows = Observations.from_arrays(
        Schema(modalities=(obs.schema["image"].model_copy(update={"scale": "none"}),)), value
    )
    quick = {"max_steps": 200, "validation": 0, "batch_size": 50}
    family = cs.VAE(latent_dim=2, network="linear")

    def error(config):
        fitted = cs.fit(family, rows, config)
        sideways = Observations.from_arrays(rows.schema, {"image": value["image"].swapaxes(-1, -2)})
        drawn = fitted.summarise(sideways, ["image"], statistics=("mean",), n=8).statistics["image"]["mean"]
        return float(np.square(drawn - sideways.parts["image"].value).mean())

    assert error(cs.TrainConfig(**quick, augment=("image",))) < 0.5 * error(cs.TrainConfig(**quick))


def test_what_cannot_turn_is_refused():
    obs = pictures()
    with pytest.raises(SchemaError, match="Expected square images"):
        cs.fit(cs.VAE(), obs.select("spectrum"), cs.TrainConfig(max_steps=1, augment=("spectrum",)))
    with pytest.raises(RequestError, match="nothing"):
        cs.fit(cs.VAE(), obs.select("image"), cs.TrainConfig(max_steps=1, augment=("nothing",)))
    local = cs.SharedGPLVM(latent_dim=1, inducing=4, posterior="gaussian")
    with pytest.raises(RequestError, match="one direction"):
        cs.fit(local, obs.select("image"), cs.TrainConfig(max_steps=1, augment=("image",)))
