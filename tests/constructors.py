"""Every family in small: a name, a configuration and a table. A new family is one line here.

The contract tests of ``tests/contracts`` run on each entry.
"""

from contextlib import ExitStack
from functools import cache
from unittest import mock

import numpy as np

import consilience as cs
from consilience.blocks.physics import Profile
from consilience.data.observations import Observations, State
from consilience.data.schema import Grid, ModalitySpec, Schema
from consilience.models import deep_start, discs, network_start

ROWS = 48


def plain(rows=ROWS, seed=0):
    """A spectrum with gaps and error bars, and two labels of which some are absent."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    weights = np.random.default_rng(100).normal(size=(2, 10))
    clean = np.tanh(z @ weights) + 0.3 * z @ weights
    sigma = rng.uniform(0.05, 0.3, size=(rows, 8))
    spectrum = 5 + 2 * clean[:, :8] + sigma * rng.normal(size=sigma.shape)
    spectrum[rng.random(spectrum.shape) < 0.3] = np.nan
    labels = 10 * clean[:, 8:] + rng.normal(size=(rows, 2))
    labels[rng.random(labels.shape) < 0.2] = np.nan
    specs = (
        ModalitySpec(name="spectrum", grid=Grid(start=1.0, stop=8.0, size=8), scale="asinh"),
        ModalitySpec(name="labels", cells=({"name": "mass"}, {"name": "age"})),
    )
    ids = [f"{seed}-{row}" for row in range(rows)]
    values = {"spectrum": spectrum, "labels": labels}
    return Observations.from_arrays(Schema(modalities=specs), values, sigma={"spectrum": sigma}, ids=ids)


def many(rows=5 * ROWS, seed=0):
    """More of the same, for families whose networks have more to learn than factor analysis."""
    return plain(rows, seed)


def lone(rows=ROWS, seed=0):
    """The spectrum alone."""
    return plain(rows, seed).select("spectrum")


def mixed(rows=ROWS, seed=0):
    """Every kind of modality and of state: limits, counts, flags, a class, a positive flux, an image."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    weights = np.random.default_rng(101).normal(size=(2, 20))
    f = 0.7 * z @ weights
    values = {
        "bands": f[:, :3] + 0.2 * rng.normal(size=(rows, 3)),
        "flux": np.exp(f[:, 3:6] + 0.1 * rng.normal(size=(rows, 3))),
        "counts": rng.poisson(np.exp(np.clip(f[:, 6:9], -3, 3))).astype(float),
        "flags": (f[:, 9:11] + rng.logistic(size=(rows, 2)) > 0).astype(float),
        "type": np.argmax(f[:, 11:14] + rng.gumbel(size=(rows, 3)), axis=1).astype(float),
        "image": (f[:, 14:20] + 0.3 * rng.normal(size=(rows, 6))).reshape(rows, 2, 3),
    }
    for value in values.values():
        value[rng.random(value.shape) < 0.2] = np.nan
    state = np.full((rows, 3), State.MEASURED)
    state[rng.random(state.shape) < 0.2] = State.BELOW
    state[rng.random(state.shape) < 0.1] = State.ABOVE
    specs = (
        ModalitySpec(name="bands", shape=(3,)),
        ModalitySpec(name="flux", shape=(3,), kind="positive"),
        ModalitySpec(name="counts", shape=(3,), kind="count"),
        ModalitySpec(name="flags", shape=(2,), kind="binary"),
        ModalitySpec(name="type", kind="category", classes=3),
        ModalitySpec(name="image", shape=(2, 3), scale="robust"),
    )
    ids = [f"{seed}-{row}" for row in range(rows)]
    sigma = {"bands": np.full((rows, 3), 0.2), "flux": 0.1 * np.where(np.isfinite(values["flux"]), values["flux"], 1)}
    return Observations.from_arrays(Schema(modalities=specs), values, sigma=sigma, state={"bands": state}, ids=ids)


def trials(rows=ROWS, seed=0, *, counts=True):
    """Behaviour and neural activity over time, with missing bins and trials of unequal length."""
    rng = np.random.default_rng(seed)
    bins = np.arange(10)
    phase = rng.uniform(0, 2 * np.pi, size=(rows, 1, 2))
    z = rng.normal(size=(rows, 1, 2)) + np.sin(0.5 * bins[:, None] + phase)
    weights = np.random.default_rng(102).normal(size=(2, 7))
    f = z @ weights
    motion = 3 + f[..., :2] + 0.3 * rng.normal(size=(rows, 10, 2))
    activity = f[..., 2:] + rng.normal(size=(rows, 10, 5))
    if counts:
        activity = rng.poisson(np.exp(np.clip(0.5 * f[..., 2:], -3, 3))).astype(float)
    values = {"motion": motion, "activity": activity}
    for value in values.values():
        value[rng.random(value.shape[:2]) < 0.2] = np.nan
    motion[rng.random(motion.shape) < 0.05] = np.nan
    extent = rng.integers(7, 11, size=rows)
    specs = (
        ModalitySpec(name="motion", shape=(10, 2)),
        ModalitySpec(name="activity", shape=(10, 5), kind="count" if counts else "real"),
    )
    ids = [f"{seed}-{row}" for row in range(rows)]
    both = {"motion": extent, "activity": extent}
    return Observations.from_arrays(Schema(modalities=specs), values, extent=both, ids=ids)


def recordings(rows=ROWS, seed=0):
    """The same with Gaussian activity."""
    return trials(rows, seed, counts=False)


def scenes(rows=5 * ROWS, seed=0):
    """An image in two bands and a spectrum, with gaps and error bars, and classes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    across, down = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7))
    blob = np.exp(-3 * ((across - 0.4 * z[:, 0, None, None]) ** 2 + down**2))
    image = np.stack([blob, (1 + 0.5 * np.tanh(z[:, 1, None, None])) * blob], 1)
    spectrum = np.sin(np.linspace(0, 6, 18) + z[:, :1]) * (1.5 + np.tanh(z[:, 1:]))
    values = {"image": image, "spectrum": spectrum, "type": (z[:, 0] + rng.normal(size=rows) > 0).astype(float)}
    sigma = {name: rng.uniform(0.05, 0.2, size=values[name].shape) for name in ("image", "spectrum")}
    for name, bars in sigma.items():
        values[name] = values[name] + bars * rng.normal(size=bars.shape)
        values[name][rng.random(bars.shape) < 0.1] = np.nan
    specs = (
        ModalitySpec(name="image", shape=(2, 7, 9)),
        ModalitySpec(name="spectrum", shape=(18,)),
        ModalitySpec(name="type", kind="category", classes=2),
    )
    ids = [f"{seed}-{row}" for row in range(rows)]
    return Observations.from_arrays(Schema(modalities=specs), values, sigma=sigma, ids=ids)


def survey(rows=5 * ROWS, seed=0):
    """An image, fluxes with error bars and gaps, labels of which some are absent, and whether they are bright."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 2))
    across, down = np.meshgrid(np.linspace(-1, 1, 6), np.linspace(-1, 1, 6))
    blob = np.exp(-3 * ((across - 0.4 * z[:, 0, None, None]) ** 2 + down**2))
    flux = np.stack([z[:, 0] + z[:, 1], z[:, 1], np.sin(z[:, 0])], 1)
    sigma = {"image": np.full(blob.shape, 0.1), "flux": rng.uniform(0.05, 0.3, size=flux.shape)}
    labels = np.stack([3 + z[:, 0], 5 * z[:, 1] + z[:, 0], np.exp(z[:, 0])], 1)
    values = {
        "image": blob + 0.1 * rng.normal(size=blob.shape),
        "flux": flux + sigma["flux"] * rng.normal(size=flux.shape),
        "labels": labels + 0.3 * rng.normal(size=labels.shape),
        "bright": (4 * z[:, 1:] + rng.logistic(size=(rows, 1)) > 0).astype(float),
    }
    for name, share in (("image", 0.1), ("flux", 0.2), ("labels", 0.2), ("bright", 0.1)):
        values[name][rng.random(values[name].shape) < share] = np.nan
    specs = (
        ModalitySpec(name="image", shape=(6, 6)),
        ModalitySpec(name="flux", shape=(3,)),
        ModalitySpec(name="labels", cells=({"name": "mass"}, {"name": "age"}, {"name": "oh"})),
        ModalitySpec(name="bright", shape=(1,), kind="binary"),
    )
    ids = [f"{seed}-{row}" for row in range(rows)]
    return Observations.from_arrays(Schema(modalities=specs), values, sigma=sigma, ids=ids)


def catalogue(rows=5 * ROWS, seed=0):
    """The same without images and flags."""
    return survey(rows, seed).select("flux", "labels")


CONVOLVED = {"image": "conv", "spectrum": "conv"}
DISC = {"image": Profile()}
SMALL = {"latent_dim": 2, "inducing": 6, "hidden": 8}
FLOW = {"latent_dim": 2, "hidden": 8, "layers": 3}

CONSTRUCTORS = {
    "gplvm-encoder": (cs.SharedGPLVM(**SMALL), plain),
    "gplvm-gaussian": (cs.SharedGPLVM(**SMALL, posterior="gaussian"), plain),
    "gplvm-diagonal": (cs.SharedGPLVM(**SMALL, posterior="diagonal"), plain),
    "gplvm-map": (cs.SharedGPLVM(**SMALL, posterior="map"), plain),
    "gplvm-point": (cs.SharedGPLVM(**SMALL, posterior="point"), plain),
    "gplvm-linear": (cs.SharedGPLVM(**SMALL, kernel="linear"), plain),
    "gplvm-amortised": (cs.SharedGPLVM(**SMALL, inference_steps=0), plain),
    "gplvm-student": (cs.SharedGPLVM(**SMALL, kernel="matern52", likelihoods={"spectrum": "student"}), plain),
    "gplvm-scatter": (cs.SharedGPLVM(**SMALL, likelihoods={"labels": "heteroscedastic"}), plain),
    "gplvm-private": (cs.SharedGPLVM(**SMALL, private={"spectrum": 2, "labels": 1}), plain),
    "gplvm-private-gaussian": (cs.SharedGPLVM(**SMALL, private={"spectrum": 1}, posterior="gaussian"), plain),
    "gplvm-coregionalised": (cs.SharedGPLVM(**SMALL, functions={"spectrum": 3}), plain),
    "gplvm-mixed": (cs.SharedGPLVM(**SMALL), mixed),
    "gpvae": (cs.GPVAE(shared=2, private={"activity": 1}, length=3.0), trials),
    "gpvae-gaussian": (cs.GPVAE(shared=1, private={"motion": 1}, length=3.0, kernel="matern32"), recordings),
    "gpvae-diagonal": (cs.GPVAE(shared=2, length=3.0, posterior="diagonal"), trials),
    "gpvae-deep": (
        cs.GPVAE(shared=1, private={"motion": 1}, length=3.0, decoders={"motion": "deep"}, hidden=8, window=3),
        trials,
    ),
    "gpvae-scattered": (
        cs.GPVAE(length=3.0, likelihoods={"activity": "negative-binomial"}, coordinates="time"),
        trials,
    ),
    "dvae": (cs.DisentangledVAE(shared=1, private={"spectrum": 1}, hidden=8), many),
    "dvae-club": (cs.DisentangledVAE(shared=1, private={"spectrum": 2}, hidden=8, club=True), many),
    "dvae-parts": (cs.DisentangledVAE(shared=1, private={"spectrum": 2}, hidden=8, parts=True), many),
    "dvae-full": (cs.DisentangledVAE(shared=2, private={"labels": 1}, hidden=8, posterior="full"), many),
    "dvae-mixture": (cs.DisentangledVAE(shared=2, private={"spectrum": 1}, hidden=8, fusion="mixture"), many),
    "dvae-mixed": (
        cs.DisentangledVAE(shared=2, private={"image": 1}, hidden=8, fusion="mixture-of-products", experts="posterior"),
        mixed,
    ),
    "dvae-plain": (cs.DisentangledVAE(shared=2, hidden=8, experts="plain", networks={"labels": "linear"}), many),
    "dvae-conv": (cs.DisentangledVAE(shared=2, private={"image": 1}, hidden=8, channels=2, networks=CONVOLVED), scenes),
    "dvae-physics": (
        cs.DisentangledVAE(
            shared=2, private={"image": 1}, hidden=8, channels=4, networks=CONVOLVED, club=True, physics=DISC
        ),
        scenes,
    ),
    "regression": (cs.Regression(target="labels", hidden=8), many),
    "vaeflow": (cs.VAEFlow(**FLOW, blocks=[["age", "mass"], ["oh"]], images=["image"], detected="bright"), survey),
    "vaeflow-splines": (cs.VAEFlow(**FLOW, univariate="spline"), catalogue),
    "flow": (cs.FlowMatching(width=8, layers=2, heads=2, steps=4), many),
    "flow-straight": (cs.FlowMatching(width=8, layers=1, heads=2, steps=4, path="flow"), catalogue),
    "vae": (cs.VAE(latent_dim=2, hidden=8), lone),
    "gplvm-mixed-diagonal": (cs.SharedGPLVM(**SMALL, private={"image": 1}, posterior="diagonal"), mixed),
}


def produced(fit):
    """Modalities that a model draws."""
    return tuple(m for m in fit.schema.names if fit.answers(frozenset(), frozenset([m])))


@cache  # all entries in both precisions, asked for by every file of contracts
def fitted(name, *, steps=30, precision="32-true", members=1, seed=0):
    """The family of an entry after a few steps on its table, kept for the session: do not change it."""
    family, factory = CONSTRUCTORS[name]
    config = cs.TrainConfig(
        max_steps=steps, batch_size=16, evaluate_every=10, validation=0, precision=precision, seed=seed
    )
    # contracts hold wherever training begins: a short start will do
    starts = {network_start: 150, deep_start: 60, discs: 20}
    with ExitStack() as short:
        for module, number in starts.items():
            short.enter_context(mock.patch.object(module, "STEPS", number))
        return cs.fit(family, factory(), config, members=members)
