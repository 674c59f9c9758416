r"""Simulated galaxies as a spectrograph and a camera see them: spectra, photometry, images and what made them.

**Population.** A flux-limited survey (r < 19.5; z < 0.6, half of it below 0.17) drawn from a stellar mass function, a
main sequence with quiescent galaxies beside it, delayed star-formation histories, a mass-metallicity relation and dust
that follows star formation: :mod:`consilience.simulators.galaxy_population`. What follows from these:
:mod:`~consilience.simulators.galaxy_spectra` (through bagpipes), :mod:`~consilience.simulators.galaxy_structure` and
:mod:`~consilience.simulators.galaxy_images`.

**Choices that matter to whoever trains on the table.**

- The apparent axis ratio and position angle show in images alone: they are independent of everything in the spectrum,
  the photometry and the labels. A model that credits the spectrum with them has found a leak.
- Photometry and image hold the same light, the spectrum what falls into a fibre: less of it the wider the galaxy looks,
  and more of its redder middle. Labels are of the whole galaxy, so the image has something to say of each of them. The
  fibre's share is that of the galaxy seen face-on, lest inclinations leak into spectra.
- Error bars tell nothing that the values do not. Those of spectra are the sky's; those of photometry and images are
  computed from measured flux and counts (of a pixel and its eight neighbours), as in a pipeline, never from the truth.
- Images of a survey hold Poisson counts of galaxy, neighbours and sky, at the depth of the Legacy Surveys.
- ``labels`` are the truth, without errors: a test's R² has no floor but the data's.

References:
    Dey et al. 2019, AJ 157, 168 (images); DESI Collaboration 2024, AJ 168, 58 (spectra); Schlafly et al. 2023, AJ 166,
    259 (exposure times).
"""

from typing import Literal, get_args

import numpy as np

from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import Cell, Grid, ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.simulators.galaxy_images import PIXEL
from consilience.simulators.galaxy_population import Stars, population
from consilience.simulators.galaxy_scenes import Camera, exposed, observed, tabled, together
from consilience.simulators.galaxy_spectra import BANDS, Light, bagpipes
from consilience.simulators.galaxy_structure import BAND_CENTRES, Shapes, neighbours, shapes
from consilience.typing import FloatArray, IntArray

__all__ = ["PHYSICS", "STRUCTURE", "galaxies", "structure"]

WINDOW = (3800.0, 8400.0)  # observed Angstrom
# 1e-17 erg / (s cm2 Angstrom) in a fibre and a bin of 1 Angstrom, where the spectrograph is best. A dark sky of 21 mag
# per square arcsec gives 27 electrons there in the 180 s of DESI's bright programme, and read noise the variance of 87
FIBRE_NOISE = 0.75
HIT = 0.005  # bins spoiled by a cosmic ray, each with its neighbour
DEPTHS = (0.05, 0.09, 0.2, 1.0, 2.0)  # nanomaggies, standard error of a faint galaxy's photometry
ZERO_POINT_ERROR = 0.02  # of the flux in each band
CAMERA = Camera(
    bands=BANDS,
    imaged=(0, 1, 2),
    centres=BAND_CENTRES,
    pixel=PIXEL,
    gain=(2500.0, 2400.0, 1700.0),
    sky=(0.10, 0.275, 1.9),  # 22.1, 21.0 and 18.9 mag per square arcsec
)

FLUX = "1e-17 erg / (Angstrom s cm2)"
LABELS = (
    Cell(name="log_mass", unit="dex(Msun)", ucd="phys.mass"),
    Cell(name="log_sfr", unit="dex(Msun / yr)", ucd="phys.SFR"),
    Cell(name="log_ssfr", unit="dex(1 / yr)", ucd="phys.SFR"),
    Cell(name="log_zmw", unit="dex", ucd="phys.abund.Z"),
    Cell(name="redshift", ucd="src.redshift"),
    Cell(name="age", unit="Gyr", ucd="time.age"),
)
STRUCTURE = (
    Cell(name="half_light_radius", unit="arcsec", ucd="phys.angSize"),
    Cell(name="axis_ratio", ucd="phys.size.axisRatio"),
    Cell(name="e_cos2", ucd="src.ellipticity"),
    Cell(name="e_sin2", ucd="src.ellipticity"),
    *(Cell(name=f"bulge_share_{band}", ucd="phot.flux;arith.ratio") for band in "grz"),
    Cell(name="disc_radius", unit="arcsec", ucd="phys.angSize"),
    Cell(name="bulge_radius", unit="arcsec", ucd="phys.angSize"),
    Cell(name="neighbours", ucd="meta.number"),
)
PHYSICS = (
    Cell(name="a_v", unit="mag", ucd="phys.absorption"),
    Cell(name="onset", unit="Gyr", ucd="time.age"),
    Cell(name="tau", unit="Gyr", ucd="time.scale"),
    Cell(name="dispersion", unit="km / s", ucd="phys.veloc.dispersion"),
    Cell(name="quiescent", ucd="meta.code.class"),
)

Components = Literal["bulge+disc", "single"]


def galaxies(
    n: int,
    *,
    seed: int,
    bins: int = 1000,
    pixels: int = 64,
    components: Components = "bulge+disc",
    image_snr: float | None = None,
    workers: int = 1,
) -> Observations:
    r"""A survey's table of n galaxies: spectra, photometry and images with error bars, labels, and the truth of all.

    **Modalities.** ``spectrum`` of a fibre (3800 to 8400 Å as observed, logarithmic), 1e-17 erg / (s cm² Å), 1 % of it
    unseen; ``photometry`` in g, r, z, W1 and W2, nanomaggies; ``image`` in g, r, z, nanomaggies per pixel of 0.262
    arcsec, the galaxy in the middle, and ``seeing``, its FWHM in arcsec; ``labels`` of the whole galaxy: log M_*, log
    SFR (of 100 Myr), log sSFR, log Z / Z_sun, redshift and mass-weighted age in Gyr.

    **Truth**, complete and without errors: ``true_spectrum``, ``true_photometry``, ``true_physics`` (A_V, onset and τ
    of star formation, velocity dispersion, 1 for quiescent) and ``true_structure``: half-light radius (semi-major axis,
    in r), the disc's axis ratio q, the position angle θ from the image's columns towards its rows as (1 - q) times (cos
    2θ, sin 2θ), the bulge's share of the light, the radii of both, and the number of neighbours.

    The population and the choices that matter in training are those of the module's docstring.

    Arguments:
        n: Number of galaxies; 8 503 take 75 seconds of one core, which workers share, and 1.7 GB.
        seed: Seed of the generator; the same arguments give the same table, however many the workers.
        bins: Bins of the spectra. bagpipes resolves about 1 500 of them.
        pixels: Pixels of an image's side.
        components: ``"bulge+disc"``, or ``"single"``: one exponential disc each and no neighbours, the image of which
            is exactly that of ``true_structure``, ``true_photometry`` and ``seeing``.
        image_snr: Signal-to-noise ratio of every image in r, :math:`(\sum_p I_p^2)^{1/2} / σ`, against uniform Gaussian
            noise, scaled to the other bands as the sky's; σ then tells of the flux. None for the survey's counts.
        workers: Processes, of 0.7 GB each. A script that asks for more than one must guard the call with
            ``if __name__ == "__main__":``.

    Raises:
        RequestError: a number out of range, unknown components, or bagpipes is not installed.

    Example:
        >>> table = galaxies(2, seed=0, bins=200, pixels=16)
        >>> table.schema.names[:5]
        ('spectrum', 'photometry', 'image', 'seeing', 'labels')
        >>> table.parts["image"].value.shape
        (2, 3, 16, 16)
    """
    _check(n, bins, pixels, components, image_snr, workers)
    bagpipes()
    rng = np.random.default_rng(seed)
    single = components == "single"
    grid = Grid(start=WINDOW[0], stop=WINDOW[1], size=bins, spacing="log", unit="Angstrom")
    stars = population(n, rng)
    seen = shapes(stars, rng, single=single)
    beside = neighbours(0 if single else n, pixels * PIXEL, rng)
    lights: list[Light] = []
    value, sigma = np.empty((2, n, 3, pixels, pixels), dtype=np.float32)
    for rows, part, model in observed((stars, seen, beside), CAMERA, grid, pixels, workers):
        assert model is not None
        lights.append(part)
        value[rows], sigma[rows] = exposed(model, CAMERA, rng) if image_snr is None else _even(model, image_snr, rng)
    true = _truth(stars, seen, together(lights), np.bincount(beside.owner, minlength=n))
    values, errors = _measured(true, grid, rng)
    image = Modality(value, np.full(value.shape, State.MEASURED, dtype=np.int8), sigma)
    return tabled(_schema(grid, pixels), values | true, errors, [f"G{row:06d}" for row in range(n)], image)


def _check(n: int, bins: int, pixels: int, components: str, image_snr: float | None, workers: int) -> None:
    if min(n, workers) < 1 or bins < 2 or pixels < 2:
        raise RequestError(
            f"Expected n and workers of at least 1, bins and pixels of at least 2; got n={n}, workers={workers}, "
            f"bins={bins} and pixels={pixels}. Change them."
        )
    if components not in get_args(Components):
        raise RequestError(f"Expected components among {list(get_args(Components))}; got {components!r}. Name one.")
    if image_snr is not None and not 0 < image_snr < np.inf:
        raise RequestError(f"Expected a positive image_snr, or None; got {image_snr}. Change it.")


def _even(model: FloatArray, snr: float, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Images with uniform noise of this signal-to-noise ratio in r and their error bars, both (N, 3, P, P)."""
    sky = np.sqrt(np.divide(CAMERA.sky, CAMERA.gain))[:, None, None]
    level = np.sqrt(np.sum(model[:, 1].astype(float) ** 2, axis=(1, 2))) / snr
    sigma = np.broadcast_to(level[:, None, None, None] * sky / sky[1], model.shape)
    return model + sigma * rng.standard_normal(model.shape), sigma


def _measured(
    true: dict[str, FloatArray], grid: Grid, rng: np.random.Generator
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """What the survey measures beside images, and its error bars."""
    spectrum, photometry = true["true_spectrum"], true["true_photometry"]
    n = len(spectrum)
    sigma = _spectral_noise(grid) * 10 ** (0.1 * rng.standard_normal((n, 1)))
    sigma = sigma * np.exp(0.05 * rng.standard_normal(spectrum.shape))
    hit = rng.random(spectrum.shape) < HIT
    hit[:, 1:] |= hit[:, :-1]
    depth = DEPTHS * 10 ** (0.1 * rng.standard_normal(photometry.shape))
    flux = photometry + np.hypot(depth, ZERO_POINT_ERROR * photometry) * rng.standard_normal(photometry.shape)
    values = {
        "spectrum": np.where(hit, np.nan, spectrum + sigma * rng.standard_normal(spectrum.shape)),
        "photometry": flux,
    }
    return values, {"spectrum": sigma, "photometry": np.hypot(depth, ZERO_POINT_ERROR * flux)}


def _spectral_noise(grid: Grid) -> FloatArray:
    """Standard error in each bin of a typical exposure: poor in the blue, airglow in the red, a line at 5577 Å."""
    wavelength = grid.centres()
    blue = 2.0 * np.exp(-(wavelength - WINDOW[0]) / 350.0)
    airglow = 1.0 + 0.6 * (wavelength > 7200.0) * (np.sin(wavelength / 40.0) > 0.7)
    line = 1.0 + 4.0 * np.exp(-0.5 * ((wavelength - 5578.9) / 5.0) ** 2)
    return FIBRE_NOISE / np.sqrt(np.diff(grid.edges())) * (1.0 + blue) * airglow * line


def structure(seen: Shapes, count: IntArray) -> FloatArray:
    """The cells of ``STRUCTURE``, (N, 10), of shapes and the number of neighbours."""
    turn, e = 2 * seen.angle, 1 - seen.axis_ratio
    shape = [seen.half_light, seen.axis_ratio, e * np.cos(turn), e * np.sin(turn), *seen.share.T]
    return np.stack([*shape, seen.disc, seen.bulge, count], axis=1).astype(float)


def _truth(stars: Stars, seen: Shapes, found: Light, count: IntArray) -> dict[str, FloatArray]:
    log_sfr, m = np.log10(found.sfr), stars.log_mass
    physics = [stars.a_v, stars.onset, stars.tau, stars.dispersion, stars.quiescent]
    return {
        "seeing": seen.seeing[:, None],
        "labels": np.stack([m, log_sfr, log_sfr - m, stars.log_zmw, stars.redshift, found.age], axis=1),
        "true_spectrum": found.spectrum,
        "true_photometry": found.photometry,
        "true_structure": structure(seen, count),
        "true_physics": np.stack(physics, axis=1).astype(float),
    }


def _schema(grid: Grid, pixels: int) -> Schema:
    spectrum = ModalitySpec(name="spectrum", grid=grid, unit=FLUX, ucd="phot.flux.density;em.wl", scale="asinh")
    return Schema(
        id="galaxy",
        modalities=(
            spectrum,
            CAMERA.photometry("photometry", "flux"),
            *CAMERA.images(pixels),
            ModalitySpec(name="labels", cells=LABELS, axis="label"),
            spectrum.model_copy(update={"name": "true_spectrum"}),
            CAMERA.photometry("true_photometry", "true_flux"),
            ModalitySpec(name="true_structure", cells=STRUCTURE, axis="structure"),
            ModalitySpec(name="true_physics", cells=PHYSICS, axis="physics"),
        ),
    )
