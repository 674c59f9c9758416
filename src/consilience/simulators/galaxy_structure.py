r"""Shapes of galaxies on the sky: bulges and discs of known size, inclination and colour, and what lies beside them.

With m = log M/M_sun, ε standard normal, scatters in dex:

- half-light radius 10^0.86 kpc (M / 5 · 10^10)^0.25, scatter 0.16; of quiescent galaxies 10^0.60 kpc
  (M / 5 · 10^10)^0.75, scatter 0.10, with exponent 0.25 below 10^10.3 (van der Wel et al. 2014 at z = 0.25);
- bulge: share of the light in r logit⁻¹(-1.8 + 0.8 (m - 10.5) + 0.8 ε), quiescent + 2.4; half-light radius 0.4 of the
  disc's, scatter 0.15; redder than the disc by g - r = 0.25 ± 0.1 and r - z = 0.15 ± 0.08 mag;
- inclination i isotropic, position angle θ uniform on [0, π); oblate spheroids of flattening 0.2 (disc) and 0.7 (bulge)
  appear with :math:`q^2 = q_0^2 + (1 - q_0^2) \cos^2 i`;
- seeing 1.15 arcsec, scatter 0.06, at least 0.85 (Dey et al. 2019).

i and θ are drawn independently of all else and no light depends on them. A spectrograph's fibre takes of bulge and disc
what falls into it if both are seen face-on: more of a bulge than of a disc, and of a distant galaxy than of a near one.

References:
    van der Wel et al. 2014, ApJ 788, 28; Dey et al. 2019, AJ 157, 168.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import expit, logit

from consilience.simulators.galaxy_images import (
    DE_VAUCOULEURS,
    EXPONENTIAL,
    Sources,
    half_light_radius,
    in_aperture,
)
from consilience.simulators.galaxy_population import Stars, kiloparsecs_per_arcsec
from consilience.typing import FloatArray, IntArray

__all__ = ["BAND_CENTRES", "Shapes", "bulge_share", "in_fibre", "neighbours", "shapes", "sources"]

DISC_FLATTENING, BULGE_FLATTENING = 0.2, 0.7
DENSITY = 12.0  # neighbours per square arcmin, r from 19 to 24 with counts rising as 10^(0.35 r)
MAGNITUDES = (19.0, 24.0)
FIBRE, FIBRE_SEEING = 0.76, 1.1  # radius and FWHM in arcsec
BAND_CENTRES = (4690.0, 6380.0, 9200.0)  # Angstrom, of g, r and z


@dataclass(frozen=True, slots=True)
class Shapes:
    """How N galaxies and the atmosphere before them shape their images.

    Arguments:
        half_light: Half-light radius in r, face-on, arcsec, shape (N,).
        disc: Half-light radius of the disc, arcsec, shape (N,).
        bulge: That of the bulge, 0 without one, arcsec, shape (N,).
        share: Of the bulge in the light, by band, shape (N, 3).
        axis_ratio: Apparent axis ratio q of the disc, shape (N,).
        angle: Position angle θ in radians from the image's columns towards its rows, shape (N,).
        seeing: FWHM in arcsec, shape (N,).
    """

    half_light: FloatArray
    disc: FloatArray
    bulge: FloatArray
    share: FloatArray
    axis_ratio: FloatArray
    angle: FloatArray
    seeing: FloatArray

    def __getitem__(self, rows: slice | IntArray) -> "Shapes":
        return Shapes(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.angle)


def shapes(stars: Stars, rng: np.random.Generator, *, single: bool) -> Shapes:
    """Shapes of these galaxies; ``single``: exponential discs alone, of the same sizes."""
    n, m = len(stars), stars.log_mass
    late = 0.86 + 0.25 * (m - 10.7) + 0.16 * rng.standard_normal(n)
    early = 0.60 - 0.75 * 0.4 + np.where(m > 10.3, 0.75, 0.25) * (m - 10.3) + 0.10 * rng.standard_normal(n)
    half_light = 10 ** np.where(stars.quiescent, early, late) / kiloparsecs_per_arcsec(stars.redshift)
    odds = -1.8 + 0.8 * (m - 10.5) + 2.4 * stars.quiescent + 0.8 * rng.standard_normal(n)
    # magnitudes by which the bulge is brighter, against the disc, than in r
    redder = np.stack([-0.25 + 0.1 * rng.standard_normal(n), np.zeros(n), 0.15 + 0.08 * rng.standard_normal(n)], axis=1)
    share = expit(odds[:, None] + 0.4 * np.log(10) * redder)
    ratio = 0.4 * 10 ** (0.15 * rng.standard_normal(n))
    disc = half_light / half_light_radius(np.ones(n), ratio, share[:, 1])
    seeing = np.maximum(1.15 * 10 ** (0.06 * rng.standard_normal(n)), 0.85)
    axis_ratio = _apparent(DISC_FLATTENING, rng.random(n))
    angle = rng.uniform(0, np.pi, n)
    if single:
        return Shapes(half_light, half_light, 0 * disc, 0 * share, axis_ratio, angle, seeing)
    return Shapes(half_light, disc, ratio * disc, share, axis_ratio, angle, seeing)


def sources(seen: Shapes, flux: FloatArray, wavelength: Sequence[float] = BAND_CENTRES) -> Sources:
    """Discs and, where there are any, bulges in the middle of their images; flux by band, shape (N, B)."""
    n, share = len(seen), bulge_share(seen, np.array(wavelength))
    cosine = np.sqrt((seen.axis_ratio**2 - DISC_FLATTENING**2) / (1 - DISC_FLATTENING**2))
    both = Sources(
        owner=np.tile(np.arange(n), 2),
        index=np.repeat([EXPONENTIAL, DE_VAUCOULEURS], n),
        flux=np.concatenate([(1 - share) * flux, share * flux]),
        radius=np.concatenate([seen.disc, seen.bulge]),
        axis_ratio=np.concatenate([seen.axis_ratio, _apparent(BULGE_FLATTENING, cosine)]),
        angle=np.tile(seen.angle, 2),
        centre=np.zeros((2 * n, 2)),
    )
    return both[both.radius > 0]


def bulge_share(seen: Shapes, wavelength: FloatArray) -> FloatArray:
    """Share of the bulges in the light of N galaxies at D wavelengths in Angstrom, shape (N, D).

    Between the bands its log odds are linear in log λ.
    """
    if not seen.share.any():
        return np.zeros((len(seen), len(wavelength)))
    odds = [np.interp(np.log(wavelength), np.log(BAND_CENTRES), row) for row in logit(seen.share)]
    return expit(np.stack(odds))


def in_fibre(seen: Shapes, wavelength: FloatArray, radius: float = FIBRE, seeing: float = FIBRE_SEEING) -> FloatArray:
    """Share of N galaxies' light that a fibre takes at D wavelengths in Angstrom, shape (N, D).

    Arguments:
        seen: Shapes of the galaxies.
        wavelength: Shape (D,).
        radius: Of the fibre, arcsec.
        seeing: FWHM in arcsec.
    """
    disc = in_aperture(seen.disc, EXPONENTIAL, radius, seeing)[:, None]
    share = bulge_share(seen, wavelength)
    if not share.any():
        return np.repeat(disc, wavelength.size, axis=1)
    bulge = in_aperture(seen.bulge, DE_VAUCOULEURS, radius, seeing)[:, None]
    return share * bulge + (1 - share) * disc


def neighbours(n: int, side: float, rng: np.random.Generator) -> Sources:
    """A Poisson number of exponential discs anywhere on n images of this side in arcsec, flux in nanomaggies.

    Half-light radii are 0.6 arcsec, scatter 0.2 dex; colours g - r = 0.7 ± 0.3 and r - z = 0.6 (g - r) ± 0.1.
    """
    owner = np.repeat(np.arange(n), rng.poisson(DENSITY * (side / 60) ** 2, n))
    size = len(owner)
    bright, faint = 10 ** (0.35 * np.array(MAGNITUDES))
    r = np.log10(rng.uniform(bright, faint, size)) / 0.35
    colour = 0.7 + 0.3 * rng.standard_normal(size)
    g, z = r + colour, r - 0.6 * colour + 0.1 * rng.standard_normal(size)
    return Sources(
        owner=owner,
        index=np.full(size, EXPONENTIAL),
        flux=10 ** (0.4 * (22.5 - np.stack([g, r, z], axis=1))),
        radius=0.6 * 10 ** (0.2 * rng.standard_normal(size)),
        axis_ratio=_apparent(DISC_FLATTENING, rng.random(size)),
        angle=rng.uniform(0, np.pi, size),
        centre=side * rng.uniform(-0.5, 0.5, (size, 2)),
    )


def _apparent(flattening: float, cosine: FloatArray) -> FloatArray:
    return np.sqrt(flattening**2 + (1 - flattening**2) * cosine**2)
