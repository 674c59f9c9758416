r"""Faint galaxies of a deep field at any distance: fluxes in seven bands, and the redshifts that they are to tell.

The field is the Hubble Deep Field North, with the bands and depths of its classic catalogue: F300W to F814W from space,
J, H and K from the ground, where half of the galaxies are not seen at all. Fluxes are in μJy and may be negative.

**Population.** With m the AB magnitude in F814W, uniform in 17 … 28.5 (what is told of a galaxy does not depend on how
many others are as bright):

- early, spiral and irregular types with p(T | m), and redshifts with p(z | T, m), z < 7, of Benítez 2000, whose
  parameters are those of this field and of the Canada-France Redshift Survey;
- stars form as :math:`s\,e^{-s/τ}` with s the time since the onset, which was u t(z) ago; t is the age of the Universe:

  ========= =========== =========== ================= ==============
  type      u           onset / τ   log Z / Z_sun     A_V, mag
  ========= =========== =========== ================= ==============
  early     0.5 … 0.95  5 … 20      N(-0.1, 0.2)      0.1, 0.3 dex
  spiral    0.3 … 0.95  1 … 5       N(-0.3, 0.2)      0.5, 0.3 dex
  irregular 0.03 … 0.6  0.1 … 2     N(-0.6, 0.3)      0.4, 0.4 dex
  ========= =========== =========== ================= ==============

- light of :mod:`~consilience.simulators.galaxy_spectra`, through the intergalactic medium of Inoue et al. 2014.

**Errors.** Those from space fall with m as apertures do, by 0.15 dex a magnitude; those from the ground hardly. On top
comes ``FLOOR`` of each flux, for templates and zero points that are not quite those of the sky; whoever compares with a
real catalogue should widen its errors in the same way: :func:`widened`.

References:
    Williams et al. 1996, AJ 112, 1335 (field); Fernández-Soto et al. 1999, ApJ 513, 34 (catalogue); Benítez 2000, ApJ
    536, 571; Inoue et al. 2014, MNRAS 442, 1805.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from consilience.data.observations import Observations
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.simulators.galaxy_population import Stars, cosmic_age
from consilience.simulators.galaxy_scenes import CHUNK, mapped, together
from consilience.simulators.galaxy_spectra import bagpipes, light
from consilience.typing import FloatArray, IntArray

__all__ = ["BANDS", "FLOOR", "SCHEMA", "deep_galaxies", "widened"]

# Ångström; the widths hold 95 % of the transmission
BANDS = {
    "f300w": (2460.0, 3520.0),
    "f450w": (3900.0, 5214.0),
    "f606w": (4890.0, 7114.0),
    "f814w": (6813.0, 9179.0),
    "j": (10_970.0, 13_610.0),
    "h": (15_060.0, 17_830.0),
    "k": (20_170.0, 24_080.0),
}
REFERENCE = 3  # F814W
BLUEST = 700.0  # rest-frame Ångström; the intergalactic medium takes what is bluer
MAGNITUDES, REDSHIFTS = (17.0, 28.5), (0.02, 7.0)
# of early, spiral and irregular galaxies: share at m = 20 and its fall, then α, z_0 and k of their redshifts
SHARES = ((0.35, 0.147), (0.50, 0.450))
REDSHIFT_PRIOR = ((2.46, 0.431, 0.091), (1.81, 0.390, 0.0636), (0.91, 0.063, 0.123))
ONSETS = ((0.5, 0.95), (0.3, 0.95), (0.03, 0.6))
TURNS = ((5.0, 20.0), (1.0, 5.0), (0.1, 2.0))
METALLICITIES = ((-0.1, 0.2), (-0.3, 0.2), (-0.6, 0.3))
ATTENUATIONS = ((0.1, 0.3), (0.5, 0.3), (0.4, 0.4))
# log10 of the standard errors at m = 25, μJy; their fall a magnitude, and scatter from galaxy to galaxy, which bands of
# one telescope share
DEPTHS = np.array([-1.78, -2.09, -2.26, -2.03, -0.41, -0.16, -0.21])
FALL, SCATTER = np.array([0.15] * 4 + [0.02] * 3), (0.1, 0.14)
FLOOR = 0.05  # of the flux


def _bands(name: str, cell: str) -> ModalitySpec:
    cells = tuple(Cell(name=f"{cell}_{band}") for band in BANDS)
    return ModalitySpec(name=name, cells=cells, axis="band", unit="uJy", ucd="phot.flux", scale="asinh")


SCHEMA = Schema(
    id="id",
    group="galaxy",
    modalities=(
        _bands("photometry", "flux"),
        ModalitySpec(name="labels", cells=(Cell(name="ln_1pz", ucd="src.redshift.phot"),), axis="label"),
        _bands("true_photometry", "true_flux"),
        ModalitySpec(name="true_kind", kind="category", classes=3),
    ),
)


def deep_galaxies(n: int, *, seed: int, exposures: int = 1, workers: int = 1) -> Observations:
    r"""A table of n galaxies of a deep field: fluxes with error bars, redshifts, and the truth.

    Of one galaxy there may be several rows with depths and noise of their own, which are a group: light takes long to
    make, noise does not. Keep groups whole in every split.

    **Modalities.** ``photometry`` in ``BANDS``, μJy; ``labels``: ln(1 + z), in which photometric redshifts are about
    equally sure at all z.

    **Truth**: ``true_photometry``, and ``true_kind``: 0 early, 1 spiral, 2 irregular.

    Arguments:
        n: Number of galaxies, of 15 ms each.
        seed: Seed of the generator; the same arguments give the same table, however many the workers.
        exposures: Rows of each galaxy.
        workers: Processes, of 0.7 GB each. A script that asks for more than one must guard the call with
            ``if __name__ == "__main__":``.

    Raises:
        RequestError: a number out of range, or bagpipes is not installed.

    Example:
        >>> table = deep_galaxies(2, seed=0)
        >>> table.parts["photometry"].value.shape, table.schema["labels"].cell_names()
        ((2, 7), ['ln_1pz'])
    """
    if min(n, exposures, workers) < 1:
        raise RequestError(f"Expected n, exposures and workers of at least 1; got {n}, {exposures}, {workers}.")
    bagpipes()
    rng = np.random.default_rng(seed)
    magnitude = rng.uniform(*MAGNITUDES, n)
    kind = _kinds(magnitude, rng)
    redshift = _redshifts(kind, magnitude, rng)
    stars = _stars(kind, redshift, rng)
    chunks = [stars[first : first + CHUNK] for first in range(0, n, CHUNK)]
    made = together(list(mapped(partial(light, grid=None, bands=BANDS, bluest=BLUEST), chunks, workers)))
    # a galaxy is as massive as its magnitude asks for
    true = made.photometry * (10 ** (0.4 * (23.9 - magnitude)) / made.photometry[:, REFERENCE])[:, None]
    row = np.repeat(np.arange(n), exposures)
    flux, depth = _exposed(true[row], magnitude[row], rng)
    values = {
        "photometry": flux,
        "labels": np.log1p(redshift)[row, None],
        "true_photometry": true[row],
        "true_kind": kind[row].astype(float),
    }
    galaxy = [f"D{number:06d}" for number in row]
    ids = galaxy if exposures == 1 else [f"{name}-{k % exposures}" for k, name in enumerate(galaxy)]
    return widened(Observations.from_arrays(SCHEMA, values, sigma={"photometry": depth}, ids=ids, group=galaxy))


def _exposed(true: FloatArray, magnitude: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Fluxes with noise, and their error bars without the floor, (N, B) each."""
    shared = np.repeat(rng.standard_normal((len(true), 2)) * SCATTER, (4, 3), axis=1)
    depth = 10 ** (DEPTHS - FALL * (magnitude[:, None] - 25) + shared)
    return true + np.hypot(depth, FLOOR * true) * rng.standard_normal(true.shape), depth


def widened(table: Observations) -> Observations:
    """The same table with error bars of ``photometry`` that have ``FLOOR`` of the flux added in quadrature.

    Raises:
        RequestError: photometry without error bars.
    """
    part = table.parts["photometry"]
    if part.sigma is None:
        raise RequestError("Expected error bars of 'photometry'; got none. Name them in the schema.")
    sigma = np.hypot(part.sigma, FLOOR * np.where(part.measured, part.value, 0.0))
    return replace(table, parts={**table.parts, "photometry": replace(part, sigma=sigma)})


def _kinds(magnitude: FloatArray, rng: np.random.Generator) -> IntArray:
    """0 early, 1 spiral, 2 irregular, (N,)."""
    fainter = np.maximum(magnitude - 20, 0.0)  # where the relation was fitted
    early, spiral = (share * np.exp(-fall * fainter) for share, fall in SHARES)
    u = rng.random(len(magnitude))
    return np.where(u < early, 0, np.where(u < early + spiral, 1, 2))


def _redshifts(kind: IntArray, magnitude: FloatArray, rng: np.random.Generator) -> FloatArray:
    r"""Draws of :math:`p(z) \propto z^α \exp(-(z / z_m)^α)`, :math:`z_m = z_0 + k (m - 20)`, (N,)."""
    alpha, start, rise = np.array(REDSHIFT_PRIOR)[kind].T
    scale = start + rise * np.maximum(magnitude - 20, 0.0)
    # (z / z_m)^α has a gamma distribution of shape (α + 1) / α
    z = np.full(len(kind), np.nan)
    while (outside := ~((z > REDSHIFTS[0]) & (z < REDSHIFTS[1]))).any():
        a = alpha[outside]
        z[outside] = scale[outside] * rng.gamma((a + 1) / a) ** (1 / a)
    return z


def _stars(kind: IntArray, redshift: FloatArray, rng: np.random.Generator) -> Stars:
    def uniform(ranges: tuple[tuple[float, float], ...]) -> FloatArray:
        low, high = np.array(ranges)[kind].T
        return rng.uniform(low, high)

    def normal(moments: tuple[tuple[float, float], ...]) -> FloatArray:
        mean, sd = np.array(moments)[kind].T
        return mean + sd * rng.standard_normal(len(kind))

    n = len(kind)
    onset = uniform(ONSETS) * cosmic_age(redshift)
    typical = np.log10([one for one, _ in ATTENUATIONS])
    attenuation = 10 ** normal(tuple(zip(typical, [sd for _, sd in ATTENUATIONS], strict=True)))
    return Stars(
        redshift=redshift,
        log_mass=np.full(n, 10.0),
        onset=onset,
        tau=onset / uniform(TURNS),
        log_zmw=np.clip(normal(METALLICITIES), -1.9, 0.39),
        a_v=np.minimum(attenuation, 3.0),
        dispersion=np.full(n, 150.0),
        quiescent=kind == 0,
        log_u=np.full(n, -3.0),
    )
