r"""A bright survey of nearby galaxies, in five bands and images of three, with labels that not every galaxy has.

Light, population and shapes are those of :func:`~consilience.simulators.galaxies`, taken by another camera to r = 17.77
and z within 0.02 … 0.3, as the main galaxy sample of SDSS was (Strauss et al. 2002). On top of them, with m =
log M/M_sun, R the half-light radius in kpc, ε standard normal:

- ionisation log U = -3.1 - 0.4 log Z/Z_sun + 0.2 ε, within -3.9 … -2.1 (Kashino & Inoue 2019 find such a fall);
- dispersions fall with size at given mass, as (R / 5.6 kpc (M / 10^10.7)^0.3)^-0.3: the virial theorem, softened;
- black holes: log M_BH = 8.32 + 5.64 log(σ / 200 km/s) + 0.38 ε (McConnell & Ma 2013);
- 12 + log O/H = 8.69 + log Z/Z_sun;
- emission lines come from the disc; what falls into a fibre of 3 arcsec is measured with an error of 2e-17 erg / (s
  cm²), scatter 0.15 dex, and 3 % of the flux.

What images know beyond photometry is by construction: sizes and bulges tell of mass, star formation and distance; at
given mass, sizes tell of dispersions and so of black holes, and of how much of the lines the fibre sees. With ``blind``
images show the flux of their galaxy in the shape of another, and tell nothing that photometry does not.

References:
    Strauss et al. 2002, AJ 124, 1810; Gunn et al. 1998, AJ 116, 3040 (camera); Kashino & Inoue 2019, MNRAS 486, 1053;
    McConnell & Ma 2013, ApJ 764, 184; Tremonti et al. 2004, ApJ 613, 898 (labels).
"""

from dataclasses import replace

import numpy as np

from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.simulators.galaxies import PHYSICS, STRUCTURE, structure
from consilience.simulators.galaxy_images import EXPONENTIAL, in_aperture
from consilience.simulators.galaxy_population import Selection, Stars, kiloparsecs_per_arcsec, population
from consilience.simulators.galaxy_scenes import Camera, exposed, observed, tabled, together
from consilience.simulators.galaxy_spectra import LINES, Light, bagpipes
from consilience.simulators.galaxy_structure import Shapes, neighbours, shapes
from consilience.typing import FloatArray

__all__ = ["sdss_galaxies"]

SELECTION = Selection(redshifts=(0.02, 0.3), r_limit=17.77)
CAMERA = Camera(
    bands={
        "u": (3250.0, 3850.0),
        "g": (3990.0, 5370.0),
        "r": (5470.0, 6860.0),
        "i": (6710.0, 8250.0),
        "z": (8250.0, 9620.0),
    },
    imaged=(1, 2, 3),
    centres=(4690.0, 6170.0, 7480.0),
    pixel=0.396,
    gain=(1000.0, 950.0, 730.0),
    sky=(0.27, 0.69, 1.31),  # 21.9, 20.9 and 20.2 mag per square arcsec
)
SEEING, LEAST_SEEING = 1.3, 1.19  # arcsec
DEPTHS = (0.9, 0.35, 0.5, 0.8, 3.0)  # nanomaggies, standard error of a faint galaxy's photometry
DEPTH_SCATTER = 0.15  # dex, from field to field
ZERO_POINT_ERROR = 0.02  # of the flux in each band
LOST, NO_IMAGE = 0.02, 0.03  # share of cells of photometry without a measurement, and of galaxies without an image
FIBRE, FIBRE_SEEING = 1.5, 1.4  # radius and FWHM in arcsec
LINE_ERROR, LINE_ERROR_SCATTER, LINE_CALIBRATION = 2.0, 0.15, 0.03  # 1e-17 erg / (s cm2); dex; of the flux
DETECTED = 3.0  # signal-to-noise ratio of a line that counts
NO_BLACK_HOLE = 0.1  # share of galaxies without a dispersion that is good enough
SOLAR = 8.69  # 12 + log O/H

LABELS = (
    Cell(name="log_mass", unit="dex(Msun)", ucd="phys.mass"),
    Cell(name="log_sfr", unit="dex(Msun / yr)", ucd="phys.SFR"),
    Cell(name="redshift", ucd="src.redshift"),
    Cell(name="log_mbh", unit="dex(Msun)", ucd="phys.mass"),
    Cell(name="oh", unit="dex", ucd="phys.abund"),
    *(Cell(name=f"log_{line}", unit="dex(1e-17 erg / (s cm2))", ucd="phot.flux;spect.line") for line in LINES),
)


def sdss_galaxies(
    n: int, *, seed: int, pixels: int | None = None, blind: bool = False, workers: int = 1
) -> Observations:
    r"""A table of n nearby galaxies: photometry and images with error bars, labels with gaps, and the truth of all.

    **Modalities.** ``photometry`` in u, g, r, i, z, nanomaggies, 2 % of it unseen; with ``pixels``, ``image`` in g, r,
    i, nanomaggies per pixel of 0.396 arcsec, of all but 3 % of the galaxies, and ``seeing``, its FWHM in arcsec;
    ``labels``: log M_*, log SFR (of 100 Myr), redshift, log M_BH of nine galaxies in ten, and where Hα, Hβ, [N II] 6584
    and [O III] 5007 all have a signal-to-noise ratio above 3, 12 + log O/H and the log fluxes of these lines in the
    fibre, as measured; ``detected``: whether they are there.

    **Truth**, complete and without errors: ``true_photometry``, ``true_labels``, ``true_detected`` (by the true fluxes
    over their errors), ``true_structure`` and ``true_physics`` as of :func:`galaxies`, with log U.

    Arguments:
        n: Number of galaxies, of 7 ms each without images.
        seed: Seed of the generator; the same arguments give the same table, however many the workers.
        pixels: Pixels of an image's side; None for no images.
        blind: Show each galaxy in the shape of another.
        workers: Processes, of 0.7 GB each. A script that asks for more than one must guard the call with
            ``if __name__ == "__main__":``.

    Raises:
        RequestError: a number out of range, or bagpipes is not installed.

    Example:
        >>> table = sdss_galaxies(3, seed=0)
        >>> table.schema.names[:3]
        ('photometry', 'labels', 'detected')
        >>> table.parts["labels"].value.shape
        (3, 9)
    """
    if min(n, workers) < 1 or (pixels is not None and pixels < 2):
        raise RequestError(
            f"Expected n and workers of at least 1, and pixels of at least 2 or None; got n={n}, workers={workers} and "
            f"pixels={pixels}. Change them."
        )
    bagpipes()
    rng = np.random.default_rng(seed)
    stars, seen = _population(n, rng)
    # by a generator of its own: the rest of the table is the same with blind images
    pictured = seen[np.random.default_rng([seed, 1]).permutation(n)] if blind else seen
    beside = neighbours(n if pixels else 0, (pixels or 0) * CAMERA.pixel, rng)
    lights: list[Light] = []
    size = (n, 3, pixels or 0, pixels or 0)
    value, sigma = np.zeros((2, *size), dtype=np.float32)
    for rows, part, model in observed((stars, pictured, beside), CAMERA, None, pixels, workers):
        lights.append(part)
        if model is not None:
            value[rows], sigma[rows] = exposed(model, CAMERA, rng)
    light, count = together(lights), np.bincount(beside.owner, minlength=n)
    values, errors = _measured(stars, seen, light, rng)
    values["seeing"] = pictured.seeing[:, None]
    values["true_structure"] = structure(seen, count)
    image = None
    if pixels:
        there = np.broadcast_to(rng.random((n, 1, 1, 1)) >= NO_IMAGE, size)
        state = np.where(there, int(State.MEASURED), int(State.UNSEEN)).astype(np.int8)
        image = Modality(np.where(there, value, 0), state, np.where(there, sigma, 0))
    return tabled(_schema(pixels), values, errors, [f"S{row:06d}" for row in range(n)], image)


def _population(n: int, rng: np.random.Generator) -> tuple[Stars, Shapes]:
    """Galaxies of this survey, whose dispersions know of their sizes, and their shapes through its seeing."""
    stars = population(n, rng, SELECTION)
    seen = shapes(stars, rng, single=False)
    scale = 10 ** (0.75 + 0.3 * (stars.log_mass - 10.7))
    radius = seen.half_light * kiloparsecs_per_arcsec(stars.redshift)
    log_u = np.clip(-3.1 - 0.4 * stars.log_zmw + 0.2 * rng.standard_normal(n), -3.9, -2.1)
    stars = replace(stars, log_u=log_u, dispersion=stars.dispersion * (radius / scale) ** -0.3)
    seeing = np.maximum(SEEING * 10 ** (0.05 * rng.standard_normal(n)), LEAST_SEEING)
    return stars, replace(seen, seeing=seeing)


def _measured(
    stars: Stars, seen: Shapes, light: Light, rng: np.random.Generator
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """What the survey's catalogue holds beside images, the truth, and the error bars of photometry."""
    n, true = len(stars), light.photometry
    depth = DEPTHS * 10 ** (DEPTH_SCATTER * rng.standard_normal(true.shape))
    flux = true + np.hypot(depth, ZERO_POINT_ERROR * true) * rng.standard_normal(true.shape)
    flux = np.where(rng.random(true.shape) < LOST, np.nan, flux)
    lines = light.lines * in_aperture(seen.disc, EXPONENTIAL, FIBRE, FIBRE_SEEING)[:, None]
    error = LINE_ERROR * 10 ** (LINE_ERROR_SCATTER * rng.standard_normal(lines.shape))
    error = np.hypot(error, LINE_CALIBRATION * lines)
    found = lines + error * rng.standard_normal(lines.shape)
    black_hole = 8.32 + 5.64 * np.log10(stars.dispersion / 200) + 0.38 * rng.standard_normal(n)
    core = [stars.log_mass, np.log10(light.sfr), stars.redshift, black_hole, SOLAR + stars.log_zmw]
    complete = np.column_stack([*core, np.log10(np.maximum(lines, 1e-6))])
    # the abundance takes all four lines
    detected, massive = (found > DETECTED * error).all(axis=1), rng.random(n) >= NO_BLACK_HOLE
    there = np.column_stack([np.ones((n, 3), bool), massive, *[detected] * 5])
    labels = complete.copy()
    labels[:, 5:] = np.log10(np.maximum(found, 1e-6))
    physics = [stars.a_v, stars.onset, stars.tau, stars.dispersion, stars.quiescent, stars.log_u]
    values = {
        "photometry": flux,
        "labels": np.where(there, labels, np.nan),
        "detected": detected.astype(float),
        "true_photometry": true,
        "true_labels": complete,
        "true_detected": (lines > DETECTED * error).all(axis=1).astype(float),
        "true_physics": np.column_stack(physics).astype(float),
    }
    return values, {"photometry": np.hypot(depth, ZERO_POINT_ERROR * np.nan_to_num(flux))}


def _schema(pixels: int | None) -> Schema:
    log_u = Cell(name="log_u", unit="dex")
    return Schema(
        id="galaxy",
        modalities=(
            CAMERA.photometry("photometry", "flux"),
            *(CAMERA.images(pixels) if pixels else ()),
            ModalitySpec(name="labels", cells=LABELS, axis="label"),
            ModalitySpec(name="detected", kind="binary", ucd="meta.code"),
            CAMERA.photometry("true_photometry", "true_flux"),
            ModalitySpec(name="true_labels", cells=_renamed(LABELS), axis="label"),
            ModalitySpec(name="true_detected", kind="binary", ucd="meta.code"),
            ModalitySpec(name="true_structure", cells=STRUCTURE, axis="structure"),
            ModalitySpec(name="true_physics", cells=(*PHYSICS, log_u), axis="physics"),
        ),
    )


def _renamed(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    return tuple(cell.model_copy(update={"name": f"true_{cell.name}"}) for cell in cells)
