r"""A flux-limited population of galaxies: what each is made of, before any light is computed.

With m = log M/M_sun, t(z) the age of the Universe in Gyr, ε standard normal and scatters in dex:

- z uniform in comoving volume within the survey's limits; m from the double Schechter function of Baldry et al. 2012
  within 8.5 … 12; quiescent with probability 1 - exp(-(M / 10^10.56)^0.8) (Peng et al. 2010);
- log sSFR on the main sequence of Speagle et al. 2014, (0.84 - 0.026 t) m - (6.51 - 0.11 t) - m, scatter 0.3; of
  quiescent galaxies N(-12, 0.4), at least -13;
- stars form as :math:`s\,e^{-s/τ}` with s the time since the onset, which was :math:`u\,\min(t, 1.9 / \mathrm{sSFR})`
  ago, u uniform in 0.3 … 0.95 (quiescent: 0.6 … 0.95); τ gives that sSFR;
- log Z/Z_sun = -0.25 + 0.4 tanh((m - 10.05) / 0.45), scatter 0.2: the relation of Gallazzi et al. 2005;
- A_V = 0.45 mag · (SFR / M_sun yr⁻¹)^0.3, scatter 0.2, at most 3 mag: dust follows star formation;
- velocity dispersion 10^2.07 (M / 10^10.26)^0.3 km/s, scatter 0.07 (Zahid et al. 2016);
- log U = -3.

**Selection.** A galaxy is in the survey where the r magnitude expected of its mass, redshift, sSFR and A_V is below
the limit. That of its spectrum scatters by 0.1 mag about it, so the limit is soft, as that of a real survey.

References:
    Baldry et al. 2012, MNRAS 421, 621; Peng et al. 2010, ApJ 721, 193; Speagle et al. 2014, ApJS 214, 15; Gallazzi
    et al. 2005, MNRAS 362, 41; Zahid et al. 2016, ApJ 832, 203; Hahn et al. 2023, AJ 165, 253 (the survey's limit).
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from scipy.integrate import cumulative_trapezoid

from consilience.typing import BoolArray, FloatArray

__all__ = ["Selection", "Stars", "cosmic_age", "kiloparsecs_per_arcsec", "population"]

LOG_MASSES = (8.5, 12.0)
SCHECHTER = (10.66, (3.96, -0.35), (0.79, -1.47))  # log M*, then (φ, α) of both parts
BLOCK = 20_000  # candidates drawn at a time; the survey takes some three in a hundred
HUBBLE, OMEGA = 70.0, 0.3  # km/s/Mpc; the flat cosmology that bagpipes uses
HUBBLE_TIME = 977.792 / HUBBLE  # Gyr
SPEED_OF_LIGHT = 299792.458  # km/s
SURVIVING = 0.5  # of the mass formed, about; it only sets which τ a given sSFR asks for


@dataclass(frozen=True, slots=True)
class Selection:
    """Which galaxies a survey takes; by default the bright ones of DESI."""

    redshifts: tuple[float, float] = (0.03, 0.6)
    r_limit: float = 19.5  # magnitude


@dataclass(frozen=True, slots=True)
class Stars:
    """What fixes the light of N galaxies.

    Arguments:
        redshift: z, shape (N,).
        log_mass: log10 of the mass in living stars and remnants, M_sun, shape (N,).
        onset: Gyr since the first star, shape (N,).
        tau: τ in Gyr, shape (N,).
        log_zmw: log10 metallicity in solar units, shape (N,).
        a_v: Attenuation of stars older than 10 Myr in V, mag, shape (N,).
        dispersion: Of stars and gas along the line of sight, km/s, shape (N,).
        quiescent: True where it was drawn from the quiescent population, shape (N,).
        log_u: log10 of the ionisation parameter of its nebulae, shape (N,).
    """

    redshift: FloatArray
    log_mass: FloatArray
    onset: FloatArray
    tau: FloatArray
    log_zmw: FloatArray
    a_v: FloatArray
    dispersion: FloatArray
    quiescent: BoolArray
    log_u: FloatArray

    def __getitem__(self, rows: slice | BoolArray) -> "Stars":
        return Stars(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.redshift)


def population(n: int, rng: np.random.Generator, selection: Selection = Selection()) -> Stars:
    """The first n galaxies of a survey of the population that the module's docstring describes.

    Example:
        >>> stars = population(100, np.random.default_rng(0))
        >>> bool((stars.redshift < 0.6).all()), len(stars)
        (True, 100)
    """
    found: list[Stars] = []
    while sum(map(len, found)) < n:
        found.append(_block(rng, selection))
    columns = (np.concatenate([getattr(part, field.name) for part in found])[:n] for field in fields(Stars))
    return Stars(*columns)


def kiloparsecs_per_arcsec(redshift: FloatArray) -> FloatArray:
    """Proper transverse kiloparsecs in an arcsecond, shape (N,)."""
    z, distance, _ = _cosmology()
    return 1e3 * np.interp(redshift, z, distance / (1 + z)) * np.pi / 648_000


def cosmic_age(redshift: FloatArray) -> FloatArray:
    """Age of the Universe in Gyr, shape (N,)."""
    return 2 / 3 * HUBBLE_TIME / np.sqrt(1 - OMEGA) * np.arcsinh(np.sqrt(1 / OMEGA - 1) * (1 + redshift) ** -1.5)


@cache
def _cosmology() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Redshifts, comoving distances in Mpc and ages of the Universe in Gyr."""
    z = np.linspace(0.0, 1.0, 1001)
    expansion = np.sqrt(OMEGA * (1 + z) ** 3 + 1 - OMEGA)
    distance = SPEED_OF_LIGHT / HUBBLE * cumulative_trapezoid(1 / expansion, z, initial=0.0)
    return z, distance, cosmic_age(z)


def _block(rng: np.random.Generator, selection: Selection) -> Stars:
    """Those of ``BLOCK`` candidates that the survey takes."""
    grid, distances, ages = _cosmology()
    cube = distances**3
    nearest, farthest = np.interp(selection.redshifts, grid, cube)
    z = np.interp(rng.uniform(nearest, farthest, BLOCK), cube, grid)
    age, comoving = np.interp(z, grid, ages), np.interp(z, grid, distances)
    mass = _masses(rng)
    quiescent = rng.random(BLOCK) < 1 - np.exp(-(10 ** (0.8 * (mass - 10.56))))
    forming = (0.84 - 0.026 * age) * mass - (6.51 - 0.11 * age) - mass + 0.3 * rng.standard_normal(BLOCK)
    ssfr = np.where(quiescent, np.maximum(-12 + 0.4 * rng.standard_normal(BLOCK), -13), forming)
    formed = SURVIVING * 10 ** (ssfr + 9)  # stars formed per Gyr and star ever formed
    onset = rng.uniform(np.where(quiescent, 0.6, 0.3), 0.95) * np.minimum(age, 1.9 / formed)
    attenuation = np.log10(0.45) + 0.3 * (ssfr + mass) + 0.2 * rng.standard_normal(BLOCK)
    stars = Stars(
        redshift=z,
        log_mass=mass,
        onset=onset,
        tau=onset / _turns(onset * formed),
        log_zmw=-0.25 + 0.4 * np.tanh((mass - 10.05) / 0.45) + 0.2 * rng.standard_normal(BLOCK),
        a_v=np.minimum(10**attenuation, 3.0),
        dispersion=10 ** (2.07 + 0.3 * (mass - 10.26) + 0.07 * rng.standard_normal(BLOCK)),
        quiescent=quiescent,
        log_u=np.full(BLOCK, -3.0),
    )
    modulus = 5 * np.log10(comoving * (1 + z)) + 25
    return stars[_absolute(stars, ssfr) + modulus < selection.r_limit]


def _masses(rng: np.random.Generator) -> FloatArray:
    m = np.linspace(*LOG_MASSES, 2000)
    centre, *parts = SCHECHTER
    x = 10 ** (m - centre)
    density = np.exp(-x) * sum(phi * x ** (alpha + 1) for phi, alpha in parts)
    share = np.cumsum(density)
    return np.interp(rng.uniform(share[0], share[-1], BLOCK), share, m)


def _turns(growth: FloatArray) -> FloatArray:
    r"""x = onset / τ at which onset · SFR / (mass formed), :math:`x^2 / (e^x - 1 - x)`, is ``growth``."""
    x = np.geomspace(1e-3, 100.0, 4000)
    log_growth = 2 * np.log(x) - x - np.log(-np.expm1(-x) - x * np.exp(-x))
    return np.interp(-np.log(growth), -log_growth, x)


def _absolute(stars: Stars, ssfr: FloatArray) -> FloatArray:
    """Magnitude at 10 pc in the observed r band: the Sun's 4.65, and a mass-to-light ratio fitted to bagpipes'."""
    young = np.log10(10 ** (ssfr + 10) + 0.2)
    ratio = -0.03 - 0.57 * young + 0.42 * stars.a_v + 0.22 * stars.redshift + 0.2 * stars.log_zmw
    return 4.65 - 2.5 * (stars.log_mass - ratio)
