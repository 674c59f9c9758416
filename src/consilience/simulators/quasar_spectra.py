r"""Noiseless rest-frame spectra of quasars: what follows from luminosity, black-hole mass and continuum slope.

With e = log(L/L_Edd) + 0.7 and l = log L_bol - 46.4, and log-normal scatter (in dex) in brackets:

- FWHM = 10^{(log M - a - b (log λL_λ - 44))/2} [0.08 shared by all lines, 0.07-0.12 each], kept in 900-20 000 km/s;
- EW = EW_0 · 10^{β l} [0.08 shared, 0.09 each]: the Baldwin effect;
- UV iron EW = 70 Å · 10^{0.3 e} [0.12]; optical iron EW / EW(H beta) = 10^{-0.3 + 0.5 e} [0.15]; narrow-line EW
  · 10^{-0.6 e} [0.25 shared]: Eigenvector 1 (Boroson & Green 1992; Shen & Ho 2014);
- velocity of C IV = -(700 + 700 e + 300 l) km/s, scatter 250 km/s (Richards et al. 2011; Rankine et al. 2020);
- host / continuum at 5100 Å = 0.24 · 10^{-0.9 (log λL_5100 - 44.5)} [0.2], a power law through eq. 1 of Shen et
  al. 2011; Balmer continuum 8 % of the power law at 3000 Å [0.15] (Grandi 1982).

References:
    See :mod:`consilience.simulators.quasar_lines`; Richards et al. 2011, AJ 141, 167; Rankine et al. 2020, MNRAS 492,
    4553; Shen & Ho 2014, Nature 513, 210; Grandi 1982, ApJ 255, 25.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from consilience.data.schema import Grid
from consilience.simulators.quasar_lines import (
    BROAD_BASE,
    IRON_OPTICAL,
    IRON_OPTICAL_WINDOW,
    IRON_UV,
    LINES,
    LOG_EDDINGTON,
    VIRIAL,
)
from consilience.typing import FloatArray

__all__ = ["GRID", "QuasarPhysics", "physics", "smc_extinction", "spectra"]

GRID = Grid(start=1216.0, stop=5040.0, size=590, spacing="log", unit="Angstrom")

SPEED_OF_LIGHT = 299792.458  # km/s
FWHM_PER_SIGMA = 2.3548200450309493
PIVOT_LUMINOSITY = 46.4  # log L_bol at which the tabulated equivalent widths hold
PIVOT_EDDINGTON = -0.7  # log Eddington ratio at which the Eigenvector-1 relations have their mean
REACH = 0.3  # a component ends at this |Δ ln λ|, beyond 4 standard deviations of the widest wing
ROWS = 2000  # objects rendered at a time

Deviates = Callable[[tuple[int, ...]], FloatArray]


@dataclass(frozen=True, slots=True)
class QuasarPhysics:
    """Everything that fixes the noiseless spectra of N quasars.

    Arguments:
        slope: Power-law slope alpha_lambda of the intrinsic continuum, shape (N,).
        reddening: E(B - V) in mag, shape (N,).
        host: Host flux in units of the intrinsic continuum, both at 5100 Angstrom, shape (N,).
        balmer: Balmer continuum in units of the power law at 3000 Angstrom, shape (N,).
        iron: log10 equivalent widths in Angstrom of the UV and the optical iron blends, shape (N, 2).
        width: log10 equivalent widths in Angstrom of the lines, shape (N, L).
        fwhm: log10 FWHM in km/s by virial family (C IV, Mg II, H beta), shape (N, 3).
        wind: Velocity of C IV in km/s, negative towards the observer, shape (N,).
    """

    slope: FloatArray
    reddening: FloatArray
    host: FloatArray
    balmer: FloatArray
    iron: FloatArray
    width: FloatArray
    fwhm: FloatArray
    wind: FloatArray

    def __getitem__(self, rows: slice) -> "QuasarPhysics":
        return QuasarPhysics(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.slope)


def physics(
    log_lbol: FloatArray, log_mbh: FloatArray, slope: FloatArray, reddening: FloatArray, deviates: Deviates
) -> QuasarPhysics:
    """The mean relations of quasars, with scatter wherever ``deviates`` is not zero.

    The relations are those of the module's docstring.

    Arguments:
        log_lbol: log bolometric luminosity, dex(erg/s), shape (N,).
        log_mbh: log black-hole mass, dex(Msun), shape (N,).
        slope: Continuum slope, shape (N,).
        reddening: E(B - V) in mag, shape (N,).
        deviates: Shape -> standard normal numbers, or zeros for the mean quasar.
    """
    n = len(log_lbol)
    e = log_lbol - log_mbh - LOG_EDDINGTON - PIVOT_EDDINGTON
    l_bol = log_lbol - PIVOT_LUMINOSITY
    shared = 0.08 * deviates((n,))
    fwhm = np.stack(
        [
            0.5 * (log_mbh - v.a - v.b * (log_lbol - np.log10(v.correction) - 44.0))
            + shared
            + v.scatter * deviates((n,))
            for v in VIRIAL.values()
        ],
        axis=1,
    )
    width = np.array([np.log10(line.width) for line in LINES]) + np.outer(l_bol, [line.baldwin for line in LINES])
    width += 0.08 * deviates((n, 1)) + 0.09 * deviates((n, len(LINES)))
    narrow = np.array([line.family == "narrow" for line in LINES])
    width[:, narrow] += (-0.6 * e + 0.25 * deviates((n,)))[:, None]
    balmer_line = width[:, [line.name for line in LINES].index("H beta")]
    iron = np.stack(
        [
            np.log10(70.0) + 0.3 * e + 0.12 * deviates((n,)),
            balmer_line - 0.3 + 0.5 * e + 0.15 * deviates((n,)),
        ],
        axis=1,
    )
    log_l5100 = log_lbol - np.log10(VIRIAL["hbeta"].correction)
    return QuasarPhysics(
        slope=slope,
        reddening=reddening,
        host=0.24 * 10 ** (-0.9 * (log_l5100 - 44.5) + 0.2 * deviates((n,))),
        balmer=0.08 * 10 ** (0.15 * deviates((n,))),
        iron=iron,
        width=width,
        fwhm=np.clip(fwhm, np.log10(900.0), np.log10(20000.0)),
        wind=np.minimum(-(700.0 + 700.0 * e + 300.0 * l_bol) + 250.0 * deviates((n,)), 300.0),
    )


def spectra(quasars: QuasarPhysics) -> FloatArray:
    r"""Flux densities f_λ on ``GRID``, in units of the reddened power law at 3000 Angstrom, shape (N, 590).

    .. math:: f_λ = [(λ/3000)^α + Balmer + iron + lines]\, 10^{-0.4 E(B-V)(k_λ - k_{3000})} + host

    Equivalent widths refer to the power law at the line. Pixels are narrower than the lines but for the narrow ones,
    whose profile is convolved with the pixel.
    """
    flux = np.empty((len(quasars), GRID.size))
    for start in range(0, len(quasars), ROWS):
        rows = slice(start, start + ROWS)
        flux[rows] = _render(quasars[rows])
    return flux


def smc_extinction(wavelength: FloatArray) -> FloatArray:
    """A_λ / E(B - V) of the Small Magellanic Cloud: 1.39 (λ / µm)^-1.2, for wavelengths in Angstrom.

    References:
        Prevot et al. 1984, A&A 132, 389; Richards et al. 2003, AJ 126, 1131.

    Example:
        >>> round(float(smc_extinction(3000.0)), 1)
        5.9
    """
    return 1.39 * (np.asarray(wavelength) / 1e4) ** -1.2


def _render(q: QuasarPhysics) -> FloatArray:
    wavelength = GRID.centres()
    slope = q.slope[:, None]
    flux = (wavelength / 3000.0) ** slope
    flux += q.balmer[:, None] * _balmer_continuum(wavelength)
    families = list(VIRIAL)
    narrow = np.full(len(q), 600.0)
    for i, line in enumerate(LINES):
        area = _area(q, 10 ** q.width[:, i], line.wavelength)
        if line.family == "narrow":
            _add(flux, line.wavelength, area, narrow, 0.0 * q.wind)
            continue
        fwhm = line.stretch * 10 ** q.fwhm[:, families.index(line.family)]
        for share, factor in BROAD_BASE:
            _add(flux, line.wavelength, share * area, factor * fwhm, line.wind * q.wind)
    low, high = IRON_OPTICAL_WINDOW
    inside = sum(strength for centre, strength in IRON_OPTICAL if low < centre < high)
    total = sum(strength for _, strength in IRON_UV)
    broad = 10 ** q.fwhm[:, families.index("hbeta")]
    for blend, column, norm, own in ((IRON_UV, 0, total, 8000.0), (IRON_OPTICAL, 1, inside, 900.0)):
        fwhm = np.hypot(own, broad)
        for centre, strength in blend:
            area = _area(q, strength / norm * 10 ** q.iron[:, column], centre)
            _add(flux, centre, area, fwhm, 0.0 * q.wind)
    curve = smc_extinction(wavelength)
    reference = smc_extinction(np.array(3000.0))
    flux *= 10 ** (-0.4 * q.reddening[:, None] * (curve - reference))
    # Dust lies in front of the nucleus only; the unit is its reddened power law, hence the factor on the host.
    host = q.host * (5100.0 / 3000.0) ** q.slope * 10 ** (0.4 * q.reddening * reference)
    return flux + host[:, None] * _host_template(wavelength)


def _area(q: QuasarPhysics, width: FloatArray, wavelength: float) -> FloatArray:
    return width * (wavelength / 3000.0) ** q.slope


def _add(flux: FloatArray, wavelength: float, area: FloatArray, fwhm: FloatArray, velocity: FloatArray) -> None:
    x = np.log(GRID.centres())
    columns = np.flatnonzero(np.abs(x - np.log(wavelength)) < REACH)
    window = slice(int(columns[0]), int(columns[-1]) + 1)
    pixel = x[1] - x[0]
    sigma = np.hypot(fwhm / FWHM_PER_SIGMA / SPEED_OF_LIGHT, pixel / np.sqrt(12.0))[:, None]
    centre = (np.log(wavelength) + velocity / SPEED_OF_LIGHT)[:, None]
    profile = np.exp(-0.5 * ((x[window] - centre) / sigma) ** 2)
    # A Gaussian of unit area in ln λ, divided by λ, has unit area in λ.
    flux[:, window] += (area[:, None] / (np.sqrt(2 * np.pi) * sigma)) * profile / GRID.centres()[window]


def _balmer_continuum(wavelength: FloatArray) -> FloatArray:
    """Partly thick bound-free emission at 15 000 K below 3646 Å, 1 at 3000 Å, its edge blended by the high series."""

    def shape(x: FloatArray) -> FloatArray:
        planck = x**-5.0 / np.expm1(1.4388e8 / (x * 15000.0))
        return planck * -np.expm1(-((x / 3646.0) ** 3))

    below = shape(np.minimum(wavelength, 3646.0)) / shape(np.array(3000.0))
    return below / (1.0 + np.exp((wavelength - 3680.0) / 40.0))


def _host_template(wavelength: FloatArray) -> FloatArray:
    """A stylised old stellar population, 1 at 5100 Å: red, the 4000 Å break, Ca H and K, the G band, Hβ."""
    ultraviolet = 0.06 * (np.minimum(wavelength, 4000.0) / 4000.0) ** 0.5
    optical = (wavelength / 5100.0) ** 0.6 / (1.0 + np.exp(-(wavelength - 3900.0) / 90.0))
    template = ultraviolet + 0.94 * optical
    for centre, depth, width in ((3934.8, 0.3, 14.0), (3969.6, 0.3, 14.0), (4305.6, 0.15, 18.0), (4862.7, 0.08, 12.0)):
        template *= 1.0 - depth * np.exp(-0.5 * ((wavelength - centre) / width) ** 2)
    return template / np.interp(5040.0, wavelength, template)
