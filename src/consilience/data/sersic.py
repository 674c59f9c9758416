r"""Sérsic's law :math:`I \propto \exp(-b_n r^{1/n})` of the light of a galaxy, r in half-light radii.

References:
    Sérsic 1968; Ciotti & Bertin 1999, A&A 352, 447; Hamilton 2000, MNRAS 312, 257 (FFTLog).
"""

from functools import cache

import numpy as np
from scipy.fft import fht
from scipy.special import gammainc, gammaincinv

from consilience.typing import FloatArray

__all__ = ["enclosed", "scale", "transform"]

LOG_R = np.linspace(-18.0, 14.0, 8192)
TRUSTED = (1e-3, 1e4)  # wave numbers: the transform wraps round at both ends


def scale(index: float) -> float:
    """b_n, with which half the light lies within the half-light radius.

    Example:
        >>> scale(1.0)
        1.678
    """
    return float(gammaincinv(2 * index, 0.5))


def enclosed(radius: FloatArray, index: float) -> FloatArray:
    """Share of the light within so many half-light radii.

    Example:
        >>> enclosed(np.array([1.0]), 4).round(6).tolist()
        [0.5]
    """
    return gammainc(2 * index, scale(index) * radius ** (1 / index))


@cache
def transform(index: float) -> tuple[FloatArray, FloatArray]:
    r"""Wave numbers k, and :math:`T_n(k) = 2π \int I(r) J_0(k r)\, r\, dr` of the round profile of unit light.

    Below k = 0.001, the first, T is 1 to 2e-6; the last k is 10 000.
    """
    r, step = np.exp(LOG_R), LOG_R[1] - LOG_R[0]
    profile = np.exp(-scale(index) * r ** (1 / index))
    profile /= 2 * np.pi * np.sum(profile * r**2) * step
    k = np.exp(LOG_R - LOG_R[0] - LOG_R[-1])
    found = 2 * np.pi * np.asarray(fht(profile * r, step, 0.0)) / k
    inside = (k > TRUSTED[0]) & (k < TRUSTED[1])
    return k[inside], found[inside]
