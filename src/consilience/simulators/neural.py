r"""Simulated recordings of neurons and of what an animal does or sees, over time: shared and private dynamics.

Three latents drive each trial. The shared one turns a digit and is read by the neurons, the second only by the neurons,
the third zooms the digit:

.. math::
    \theta_t = \tfrac{2\pi}{3} a_t, \qquad \log \lambda_{tn} = w_{n1} a_t + w_{n2} b_t + c_n, \qquad
    y_{tn} \sim \mathrm{Poisson}(\lambda_{tn}), \qquad
    \mathrm{image}_t(p) = D\!\left(R_{-\theta_t}\, p / |1 + g_t|\right)

with Gaussian processes a, b, g of variances .3, .5 and .8 and length scale 10 bins (RBF kernel),
:math:`w \sim 1.5\,U(-1, 1)`, :math:`c \sim .5\,U(-1, 1)`, and D a digit of scikit-learn's, 20 pixels wide, on a
field of 36 x 36 pixels without noise. Only the magnitude of the zoom shows in an image.

References:
    Multi-modal Gaussian process variational autoencoders (Gondur et al., 2024), its simulation, with MNIST's digits
    replaced; Deterministic nonperiodic flow (Lorenz, 1963).
"""

from typing import Literal, cast

import numpy as np

from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema, TimeBins
from consilience.errors import RequestError
from consilience.typing import FloatArray

__all__ = ["digit_images", "neural"]

VARIANCES = (0.3, 0.5, 0.8)  # of the shared latent, the neurons' own and the zoom
LENGTH = 10.0  # bins
SIDE = 36  # pixels of an image's side
WIDTH = 20.0  # pixels that the digit covers at zoom 1
DIGIT = 3  # no turn but a whole one takes it to itself
LEAST_ZOOM = 0.1  # below it the digit is less than two pixels wide
SWITCHES = 0.1  # probability that the shared latent jumps between two bins (dynamics="switch")
LORENZ_STEP = 0.03  # time units of Lorenz' equations per bin: some 25 bins for a turn about one wing
BIN_WIDTH = 0.02  # seconds

Dynamics = Literal["smooth", "lorenz", "switch"]


def neural(n: int, *, seed: int, bins: int = 60, neurons: int = 100, dynamics: Dynamics = "smooth") -> Observations:
    """Trials of spike counts and images with one shared latent and two private ones, and the truth of all of them.

    **Modalities.** ``spikes`` (bins, neurons) counts; ``images`` (bins, 36, 36), from 0 to 1; and the truth:
    ``true_angle`` in degrees, ``true_private`` (the neurons' own latent), ``true_zoom`` (signed), each (bins,), and
    ``true_rates`` (bins, neurons), spikes per bin. Trials are the rows; time is the first event axis.

    Arguments:
        n: Number of trials; 300 of 60 bins take about six seconds and, with their images, 200 MB.
        seed: Seed of the generator; loadings, offsets and trials follow from it.
        bins: Bins of 20 ms per trial.
        neurons: Number of neurons.
        dynamics: Of the shared latent: ``"smooth"``, the process above; ``"lorenz"``, the first coordinate of Lorenz'
            equations, deterministic and chaotic; ``"switch"``, levels that jump with probability .1 per bin. All have
            the same variance.

    Raises:
        RequestError: fewer than one trial or neuron, fewer than two bins, or unknown dynamics.

    Example:
        >>> trials = neural(2, seed=0, bins=10, neurons=5)
        >>> trials.parts["spikes"].value.shape, trials.parts["images"].value.shape
        ((2, 10, 5), (2, 10, 36, 36))
    """
    if n < 1 or bins < 2 or neurons < 1:
        raise RequestError(f"Expected n >= 1, bins >= 2 and neurons >= 1; got {n}, {bins} and {neurons}.")
    makers = {"smooth": _smooth, "lorenz": _lorenz, "switch": _switching}
    if dynamics not in makers:
        raise RequestError(f"Expected dynamics among {sorted(makers)}; got {dynamics!r}.")
    rng = np.random.default_rng(seed)
    loadings = 1.5 * rng.uniform(-1, 1, (2, neurons))
    offset = 0.5 * rng.uniform(-1, 1, neurons)
    shared = np.sqrt(VARIANCES[0]) * makers[dynamics](rng, n, bins)
    private = np.sqrt(VARIANCES[1]) * _smooth(rng, n, bins)
    zoom = 1 + np.sqrt(VARIANCES[2]) * _smooth(rng, n, bins)
    rates = np.exp(np.stack([shared, private], -1) @ loadings + offset)
    values = {
        "spikes": rng.poisson(rates).astype(float),
        "images": digit_images(2 * np.pi / 3 * shared, np.abs(zoom)),
        "true_angle": 120 * shared,
        "true_private": private,
        "true_zoom": zoom,
        "true_rates": rates,
    }
    return Observations.from_arrays(_schema(bins, neurons), values, ids=[f"T{row:05d}" for row in range(n)])


def _schema(bins: int, neurons: int) -> Schema:
    time = TimeBins(width=BIN_WIDTH, unit="s")
    return Schema(
        id="trial",
        modalities=(
            ModalitySpec(name="spikes", shape=(bins, neurons), kind="count", time=time),
            ModalitySpec(name="images", shape=(bins, SIDE, SIDE), time=time),
            ModalitySpec(name="true_angle", shape=(bins,), unit="deg", time=time),
            ModalitySpec(name="true_private", shape=(bins,), time=time),
            ModalitySpec(name="true_zoom", shape=(bins,), time=time),
            ModalitySpec(name="true_rates", shape=(bins, neurons), time=time),
        ),
    )


def _smooth(rng: np.random.Generator, n: int, bins: int) -> FloatArray:
    """Standard Gaussian processes (n, bins)."""
    lag = np.subtract.outer(np.arange(bins), np.arange(bins)) / LENGTH
    values, vectors = np.linalg.eigh(np.exp(-0.5 * lag**2))
    return (rng.standard_normal((n, bins)) * np.sqrt(values.clip(0))) @ vectors.T


def _lorenz(rng: np.random.Generator, n: int, bins: int) -> FloatArray:
    """The first coordinate on the attractor, in units of its standard deviation, (n, bins)."""
    state = np.array([0.0, 0.0, 25.0]) + rng.standard_normal((n, 3))

    def slope(s: FloatArray) -> FloatArray:
        x, y, z = s.T
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    found = np.empty((n, bins))
    half = 0.5 * LORENZ_STEP
    for step in range(-1000, bins):
        if step >= 0:
            found[:, step] = state[:, 0] / 7.9
        k1 = slope(state)
        k2 = slope(state + half * k1)
        k3 = slope(state + half * k2)
        k4 = slope(state + LORENZ_STEP * k3)
        state = state + LORENZ_STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return found


def _switching(rng: np.random.Generator, n: int, bins: int) -> FloatArray:
    """Standard normal levels that last until the next jump, (n, bins)."""
    jump = rng.random((n, bins)) < SWITCHES
    jump[:, 0] = True
    levels = rng.standard_normal((n, bins))
    last = np.maximum.accumulate(np.where(jump, np.arange(bins), 0), axis=1)
    return np.take_along_axis(levels, last, axis=1)


def digit_images(angle: FloatArray, zoom: FloatArray) -> FloatArray:
    """The digit turned by angles in radians and zoomed by positive factors, both (n, bins): (n, bins, 36, 36), 0 to 1.

    Example:
        >>> digit_images(np.zeros((1, 2)), np.array([[1.0, 0.5]])).shape
        (1, 2, 36, 36)
    """
    from scipy.ndimage import map_coordinates
    from sklearn.datasets import load_digits

    digits = cast("dict[str, FloatArray]", load_digits())
    digit = digits["images"][np.flatnonzero(digits["target"] == DIGIT)[0]] / 16
    pixel = np.arange(SIDE) - 0.5 * (SIDE - 1)
    down, right = np.meshgrid(pixel, pixel, indexing="ij")
    found = np.empty((*angle.shape, SIDE, SIDE))
    per_pixel = len(digit) / WIDTH
    for row, (turn, size) in enumerate(zip(angle, np.maximum(zoom, LEAST_ZOOM), strict=True)):
        cos, sin = (f(turn)[:, None, None] * per_pixel / size[:, None, None] for f in (np.cos, np.sin))
        middle = 0.5 * (len(digit) - 1)
        where = np.stack([cos * down + sin * right + middle, cos * right - sin * down + middle])
        found[row] = map_coordinates(digit, where, order=1, mode="constant")
    return found
