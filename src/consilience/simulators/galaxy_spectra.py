r"""Light of stellar populations through bagpipes: what a spectrograph and a camera would see without noise.

Stellar populations of Bruzual & Charlot (2003) with the MILES library and Kroupa's initial mass function, nebular
emission of Cloudy, dust after Calzetti et al. (2000) that attenuates stars below 10 Myr and their nebulae
twice as much, and its emission after Draine & Li (2007).

Everything is linear in the mass, so a galaxy is one solar mass of stars formed, multiplied. Spectra are smoothed by the
velocity dispersion and a Gaussian line-spread function of 85 km/s, and averaged over their bins. bagpipes' own grid
has a step of 150 km/s, so bins narrower than 1/2000 of their wavelength hold no more than that.

References:
    Carnall et al. 2018, MNRAS 480, 4379 (bagpipes); Bruzual & Charlot 2003, MNRAS 344, 1000; Calzetti et al. 2000, ApJ
    533, 682; Draine & Li 2007, ApJ 657, 810; Flaugher et al. 2015, AJ 150, 150; Wright et al. 2010, AJ 140, 1868.
"""

import fcntl
import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from consilience.data.schema import Grid
from consilience.errors import RequestError
from consilience.simulators.galaxy_population import Stars
from consilience.typing import FloatArray

__all__ = ["BANDS", "LINES", "Light", "bagpipes", "light"]

# Half-power wavelengths in Angstrom (Flaugher et al. 2015; Wright et al. 2010). Colours depend on a band's mean and
# width; its edges, here blurred by 2 %, matter only to strong lines that cross them.
BANDS = {
    "g": (3980.0, 5520.0),
    "r": (5680.0, 7160.0),
    "z": (8480.0, 9980.0),
    "W1": (30_900.0, 37_500.0),
    "W2": (40_900.0, 51_500.0),
}
LINES = {"ha": "H  1  6562.80A", "hb": "H  1  4861.32A", "nii": "N  2  6583.45A", "oiii": "O  3  5006.84A"}
FINE = (2200.0, 24_250.0)  # rest-frame Angstrom where bagpipes samples finely: all optical bands, lines included
SMOOTHED = (2250.0, 8900.0)  # rest-frame Angstrom that the spectrograph sees at some redshift, and a margin
LINE_SPREAD = 85.0  # km/s, a resolving power of 1500
SPEED_OF_LIGHT = 299792.458  # km/s
NANOMAGGY = 3.631e-29  # erg / (s cm2 Hz)
FLUX_UNIT = 1e-17  # erg / (s cm2), of lines, and per Angstrom


@dataclass(frozen=True, slots=True)
class Light:
    """Noiseless light of N galaxies, and what their star-formation histories come to.

    Arguments:
        spectrum: Mean flux density in each bin, 1e-17 erg / (s cm2 Angstrom), shape (N, D).
        photometry: Flux in each of B bands, nanomaggies, shape (N, B).
        lines: Flux of each of ``LINES``, 1e-17 erg / (s cm2), shape (N, 4).
        sfr: Mean star-formation rate of the last 100 Myr, M_sun / yr, shape (N,).
        age: Mean age of the stars formed, weighted by their mass, Gyr, shape (N,).
    """

    spectrum: FloatArray
    photometry: FloatArray
    lines: FloatArray
    sfr: FloatArray
    age: FloatArray


def light(
    stars: Stars, grid: Grid | None, bands: Mapping[str, tuple[float, float]] = BANDS, bluest: float = FINE[0]
) -> Light:
    """Spectra, photometry and lines of these galaxies, N of them, in some 7 ms each.

    Arguments:
        stars: What they are made of.
        grid: D bins of observed wavelength within 3700 … 8500 Angstrom; None for no spectra.
        bands: B pairs of half-power wavelengths in Angstrom, to 55 000.
        bluest: Rest-frame Angstrom from which light is sampled finely.

    Raises:
        RequestError: bagpipes is not installed.
    """
    bagpipes()
    model = _model(bluest)
    edges, weights = _bands(tuple(bands.values()))
    step = _edges(model.wavelengths)
    photometry, lines = np.empty((len(stars), len(bands))), np.empty((len(stars), len(LINES)))
    spectrum = np.empty((len(stars), grid.size if grid else 0))
    sfr, age = np.empty(len(stars)), np.empty(len(stars))
    for row in range(len(stars)):
        model.update(_components(stars, row))
        formed = 10 ** (stars.log_mass[row] - model.sfh.stellar_mass)
        flux = formed * model.spectrum_full
        sfr[row] = formed * model.sfh.sfr
        age[row] = model.sfh.mass_weighted_age
        lines[row] = [formed * model.line_fluxes[name] / FLUX_UNIT for name in LINES.values()]
        observed = (1 + stars.redshift[row]) * step
        photometry[row] = weights @ _averages(edges, observed, flux)
        if grid:
            dispersion = math.hypot(stars.dispersion[row], LINE_SPREAD)
            spectrum[row] = _spectrum(flux, model.wavelengths, observed, dispersion, grid) / FLUX_UNIT
    return Light(spectrum, photometry, lines, sfr, age)


def _spectrum(flux: FloatArray, rest: FloatArray, observed: FloatArray, dispersion: float, grid: Grid) -> FloatArray:
    """Means over the bins of a grid of a flux density between edges ``observed``, blurred by km/s."""
    smoothed = slice(*np.searchsorted(rest, SMOOTHED))
    pixel = SPEED_OF_LIGHT * math.log(rest[smoothed.start + 1] / rest[smoothed.start])
    blurred = _blurred(flux[smoothed], dispersion / pixel)
    return _averages(grid.edges(), observed[smoothed.start : smoothed.stop + 1], blurred)


def bagpipes() -> Any:  # noqa: ANN401 - a module without annotations
    """The package of that name, imported without what it prints and warns of.

    Raises:
        RequestError: it is not installed.
    """
    try:
        with _alone(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bagpipes
    except ImportError as error:
        raise RequestError(
            "Expected bagpipes to simulate galaxies; it is not installed. Run pip install 'consilience[galaxies]'."
        ) from error
    return bagpipes


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: the first import of bagpipes writes a table, of which another might read half."""
    with open(Path(tempfile.gettempdir()) / f"consilience-{os.getuid()}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _model(bluest: float) -> Any:  # noqa: ANN401 - bagpipes' own class
    pipes = bagpipes()
    one = np.ones(1)
    stars = Stars(*(0.1 * one, one, 5 * one, one, 0 * one, one, one, one > 0, -3 * one))
    # sampling is fine from the first wavelength / (1 + max_redshift) to the last
    ends = np.array([bluest * (1 + pipes.config.max_redshift), FINE[1]])
    with warnings.catch_warnings():  # some of its grids end before the ultraviolet does
        warnings.simplefilter("ignore")
        model = pipes.model_galaxy(_components(stars, 0), spec_wavs=ends)
    model.spec_wavs = None  # its own resampling takes longer than all the rest
    return model


def _components(stars: Stars, row: int) -> dict[str, Any]:
    """One solar mass formed, in the terms of bagpipes."""
    history = {"age": stars.onset[row], "tau": stars.tau[row], "massformed": 0.0}
    return {
        "redshift": stars.redshift[row],
        "delayed": {**history, "metallicity": 10 ** stars.log_zmw[row]},
        "dust": {"type": "Calzetti", "Av": stars.a_v[row], "eta": 2.0},
        "nebular": {"logU": stars.log_u[row]},
    }


def _edges(centres: FloatArray) -> FloatArray:
    middle = np.sqrt(centres[1:] * centres[:-1])
    return np.concatenate([[centres[0] ** 2 / middle[0]], middle, [centres[-1] ** 2 / middle[-1]]])


def _averages(edges: FloatArray, own: FloatArray, flux: FloatArray) -> FloatArray:
    """Means over bins of a flux density that is constant between its own edges: flux is conserved."""
    total = np.concatenate([[0.0], np.cumsum(flux * np.diff(own))])
    return np.diff(np.interp(edges, own, total)) / np.diff(edges)


def _blurred(flux: FloatArray, sigma: float) -> FloatArray:
    reach = np.arange(-int(np.ceil(4 * sigma)), int(np.ceil(4 * sigma)) + 1)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    return np.convolve(flux, kernel / kernel.sum(), mode="same")


@cache
def _bands(bands: tuple[tuple[float, float], ...]) -> tuple[FloatArray, FloatArray]:
    r"""Edges of bins and what turns means over them into :math:`\int f_λ T λ\,dλ / (c \int T\,dλ / λ)`."""
    step = math.log(57_000.0 / 3500.0) / 1400
    first = min(-110, math.floor(math.log(0.87 * min(bands)[0] / 3500.0) / step))
    edges = 3500.0 * (57_000.0 / 3500.0) ** (np.arange(first, 1401) / 1400)
    centre, width = np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)
    weights = []
    for low, high in bands:
        curve = erf(np.log(centre / low) / 0.02) - erf(np.log(centre / high) / 0.02)
        weights.append(curve * centre * width / (1e13 * SPEED_OF_LIGHT * np.sum(curve * width / centre)) / NANOMAGGY)
    return edges, np.array(weights)
