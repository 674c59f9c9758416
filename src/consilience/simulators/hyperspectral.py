r"""Simulated hyperspectral scenes: smooth maps of a few materials, mixed linearly in every pixel.

.. math::
    x(u, \lambda) = \sum_k a_k(u)\, e_k(\lambda) + \psi\, \epsilon, \qquad
    a(u) = \mathrm{softmax}\bigl(s\, f_1(u), …, s\, f_K(u)\bigr), \qquad
    e_k(\lambda) = 1 / \bigl(1 + \exp(-g_k(\lambda))\bigr)

with standard Gaussian processes f over the scene (RBF kernel, length scale 8 pixels) and g over 400 to 900 nm (RBF, 80
nm), s = 4 and standard normal ε. Large s makes regions of one material with narrow borders.

References:
    Hyperspectral unmixing overview (Bioucas-Dias et al., 2012), its linear mixing model.
"""

import numpy as np

from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.io.cubes import Cube, patches
from consilience.typing import FloatArray

__all__ = ["hyperspectral"]

BLOCKS = 5  # along each side of the scene
LENGTH = 8.0  # pixels, of the maps
CONTRAST = 4.0  # s
RANGE = (400.0, 900.0)  # nm
SMOOTH = 80.0  # nm, length scale of the spectra


def hyperspectral(
    n: int, *, seed: int, bands: int = 100, endmembers: int = 6, size: int = 5, noise: float = 0.01
) -> Observations:
    """Patches of a scene as colour image, mean spectrum and cube, and the abundances of its materials.

    **Modalities.** ``rgb`` (3, p, p), ``spectrum`` (bands,) and ``cube`` (bands, p, p), as
    :func:`consilience.io.cubes.patches` makes them, and the truth ``abundances`` (endmembers, p, p), which sum to one.
    Patches do not overlap and lie evenly in the scene, a square of 5 x 5 blocks (the groups of the rows) as large as n
    needs.

    Arguments:
        n: Number of patches; 5 000 take about two seconds and 600 MB, of which 120 stay.
        seed: Seed of the spectra, the maps and the noise.
        bands: Equally spaced from 400 to 900 nm.
        endmembers: K, materials.
        size: Pixels of a patch's side, p.
        noise: ψ, in units in which spectra lie between 0 and 1.

    Raises:
        RequestError: fewer than one patch, material or pixel, fewer than ten bands, or negative noise.

    Example:
        >>> table = hyperspectral(4, seed=0, bands=20)
        >>> {name: part.value.shape[1:] for name, part in table.parts.items()}
        {'rgb': (3, 5, 5), 'spectrum': (20,), 'cube': (20, 5, 5), 'abundances': (6, 5, 5)}
    """
    if min(n, endmembers, size) < 1 or bands < 10 or noise < 0:
        raise RequestError(
            f"Expected n, endmembers and size >= 1, bands >= 10 and noise >= 0; got {n}, {endmembers}, {size}, {bands} "
            f"and {noise}."
        )
    rng = np.random.default_rng(seed)
    side = BLOCKS * size * int(np.ceil(np.sqrt(n) / BLOCKS))
    wavelength = np.linspace(*RANGE, bands)
    spectra = 1 / (1 + np.exp(-_curves(rng, endmembers, wavelength)))
    field = np.exp(CONTRAST * _maps(rng, endmembers, side))
    abundances = np.moveaxis(field / field.sum(0), 0, -1)
    value = abundances @ spectra + noise * rng.standard_normal((side, side, bands))
    scene = Cube(value, wavelength, {"abundances": abundances})
    table = patches(scene, size=size, stride=size, blocks=BLOCKS)
    return table[np.arange(n) * len(table) // n].renumbered()


def _curves(rng: np.random.Generator, count: int, wavelength: FloatArray) -> FloatArray:
    """Standard Gaussian processes over wavelength (count, bands)."""
    lag = np.subtract.outer(wavelength, wavelength) / SMOOTH
    values, vectors = np.linalg.eigh(np.exp(-0.5 * lag**2))
    return (rng.standard_normal((count, len(wavelength))) * np.sqrt(values.clip(0))) @ vectors.T


def _maps(rng: np.random.Generator, count: int, side: int) -> FloatArray:
    """Standard Gaussian processes over the pixels of a square that closes on itself (count, side, side)."""
    lag = np.minimum(np.arange(side), side - np.arange(side)) / LENGTH
    row = np.fft.fft(np.exp(-0.5 * lag**2)).real.clip(0)
    amplitude = np.sqrt(np.outer(row, row))
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal((count, side, side))) * amplitude).real
