r"""Images of elliptical Sérsic profiles through the atmosphere, integrated over pixels, by Fourier synthesis.

A source of flux F, half-light semi-major axis R, axis ratio q and position angle θ (from the image's columns towards
its rows) has :math:`I \propto \exp(-b_n r^{1/n})` with :math:`r^2 = (x'^2 + y'^2 / q^2) / R^2` in axes turned by θ. Its
image is the inverse Fourier transform of

.. math:: F\, T_n\!\big(R\,(k_{x'}^2 + q^2 k_{y'}^2)^{1/2}\big)\, M(k)\,
          \mathrm{sinc}\tfrac{k_x p}{2}\, \mathrm{sinc}\tfrac{k_y p}{2}\, e^{-i k \cdot c}

with T_n the transform of the round profile of unit flux and radius, M that of the point-spread function, p the pixel
and c the position. Each factor is known at every k, so the integral over pixels is exact, flux is conserved, and no
sampling limits compact sources. What remains is the period, twice the image: light that leaves it comes back.

- T_1 = (1 + k² / b_1²)^{-3/2}, the exponential disc; T_4, the de Vaucouleurs bulge, a Hankel transform made once.
- M = e^{-x} (1 + x + x² / 3) with x = α k: a Moffat profile of β = 7/2, α = FWHM / 2 (2^{1/β} - 1)^{-1/2}.

References:
    Sérsic 1968; Ciotti & Bertin 1999, A&A 352, 447; Moffat 1969, A&A 3, 455.
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import j1

from consilience.data.sersic import enclosed, scale, transform
from consilience.typing import BoolArray, FloatArray, IntArray

__all__ = ["PIXEL", "Sources", "half_light_radius", "images", "in_aperture"]

PIXEL = 0.262  # arcsec, of the Legacy Surveys' images (Dey et al. 2019, AJ 157, 168)
EXPONENTIAL, DE_VAUCOULEURS = 1, 4
MOFFAT_BETA = 3.5


@dataclass(frozen=True, slots=True)
class Sources:
    """K elliptical sources on N images, in order of their image.

    Arguments:
        owner: Number of the image, from 0 to N - 1, shape (K,).
        index: Sérsic index n, 1 or 4, shape (K,).
        flux: In each band, any unit, shape (K, 3).
        radius: Half-light semi-major axis R in arcsec, shape (K,).
        axis_ratio: q, shape (K,).
        angle: θ in radians, shape (K,).
        centre: x (column) and y (row) of the centre in arcsec from the middle of the image, shape (K, 2).
    """

    owner: IntArray
    index: IntArray
    flux: FloatArray
    radius: FloatArray
    axis_ratio: FloatArray
    angle: FloatArray
    centre: FloatArray

    def __getitem__(self, rows: IntArray | BoolArray) -> "Sources":
        return Sources(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.owner)


def images(sources: Sources, seeing: FloatArray, pixels: int, pixel: float = PIXEL) -> FloatArray:
    """Flux in each pixel of N images in three bands, shape (N, 3, pixels, pixels), single precision.

    Arguments:
        sources: What is on them.
        seeing: FWHM of each image in arcsec, at least three pixels, shape (N,).
        pixels: Number of pixels of a side.
        pixel: Side of one in arcsec.

    Example:
        >>> one, centre = np.ones(1), np.zeros((1, 2))
        >>> disc = Sources(np.array([0]), np.array([1]), np.ones((1, 3)), 2 * one, 0.5 * one, 0 * one, centre)
        >>> float(images(disc, 1.2 * one, 64)[0, 0].sum())
        1.00
    """
    size = 2 * pixels
    column, row = np.meshgrid(np.fft.rfftfreq(size), np.fft.fftfreq(size))  # cycles per pixel
    square = np.sinc(column) * np.sinc(row)
    kx, ky = 2 * np.pi / pixel * column, 2 * np.pi / pixel * row
    k, middle = np.hypot(kx, ky), 0.5 * (pixels - 1) * pixel
    found = np.empty((len(seeing), 3, pixels, pixels), dtype=np.float32)
    first = np.searchsorted(sources.owner, np.arange(len(seeing) + 1))
    for image in range(len(seeing)):
        total = np.zeros((3, *k.shape), dtype=complex)
        for s in range(first[image], first[image + 1]):
            cos, sin = np.cos(sources.angle[s]), np.sin(sources.angle[s])
            along, across = cos * kx + sin * ky, sources.axis_ratio[s] * (cos * ky - sin * kx)
            profile = _transform(int(sources.index[s]), sources.radius[s] ** 2 * (along**2 + across**2))
            x, y = middle + sources.centre[s]
            total += sources.flux[s][:, None, None] * (
                profile * np.exp(-1j * (kx[:1] * x)) * np.exp(-1j * ky[:, :1] * y)
            )
        total *= square * _moffat(seeing[image] * k)
        found[image] = np.fft.irfft2(total, s=(size, size))[:, :pixels, :pixels]
    return found


def half_light_radius(disc: FloatArray, bulge: FloatArray, share: FloatArray) -> FloatArray:
    """Radius that holds half the light of an exponential disc and a de Vaucouleurs bulge, seen face-on, shape (N,).

    Arguments:
        disc: Half-light radius of the disc, shape (N,).
        bulge: That of the bulge, same unit, shape (N,).
        share: Of the bulge in the light, shape (N,).
    """
    low, high = np.minimum(disc, bulge), np.maximum(disc, bulge)
    for _ in range(50):
        middle = 0.5 * (low + high)
        inner, outer = enclosed(middle / bulge, DE_VAUCOULEURS), enclosed(middle / disc, EXPONENTIAL)
        light = share * inner + (1 - share) * outer
        low, high = np.where(light < 0.5, middle, low), np.where(light < 0.5, high, middle)
    return 0.5 * (low + high)


def in_aperture(radius: FloatArray, index: int, aperture: float, seeing: float) -> FloatArray:
    r"""Share of the light of round sources that falls into a circle around each, shape (N,).

    .. math:: a \int T_n(k R)\, M(k)\, J_1(k a)\, dk

    Arguments:
        radius: Half-light radii R in arcsec, shape (N,).
        index: Sérsic index n, 1 or 4.
        aperture: Radius a of the circle in arcsec.
        seeing: FWHM in arcsec.

    Example:
        >>> in_aperture(np.array([0.01, 1.0]), 1, 0.76, 1.1).round(2).tolist()
        [0.58, 0.24]
    """
    k = np.geomspace(1e-4, 60 / seeing, 4096)
    kernel = _moffat(seeing * k) * j1(k * aperture) * aperture * k * np.log(k[1] / k[0])
    return _transform(index, (radius[:, None] * k) ** 2) @ kernel


def _moffat(k_fwhm: FloatArray) -> FloatArray:
    x = k_fwhm / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    return np.exp(-x) * (1 + x + x**2 / 3)


def _transform(index: int, k2: FloatArray) -> FloatArray:
    """T_n at squared wave numbers times R²."""
    if index == EXPONENTIAL:
        rise = 1 + k2 / scale(index) ** 2
        return 1 / (rise * np.sqrt(rise))
    k, found = transform(index)
    return np.interp(k2, k**2, found)
