"""Flux-conserving resampling of a spectrum onto other bins, with its error bars."""

import numpy as np
from scipy.sparse import csr_array

from consilience.errors import DataError
from consilience.typing import BoolArray, FloatArray

__all__ = ["COVERAGE", "overlap", "pixel_bounds", "require_ascending", "resample"]

COVERAGE = 0.5  # a bin is seen where at least this fraction of its width is


def resample(
    value: FloatArray,
    coord: FloatArray,
    edges: FloatArray,
    *,
    sigma: FloatArray | None = None,
    seen: BoolArray | None = None,
    redshift: float = 0.0,
) -> tuple[FloatArray, FloatArray | None]:
    r"""Mean flux density of the seen part of each bin, and its standard error.

    With :math:`w_{ji}` the length of the overlap of bin j with pixel i, and :math:`m_i` 1 where the pixel is seen,

    .. math::
        f_j = \frac{\sum_i w_{ji} m_i f_i}{\sum_i w_{ji} m_i}, \qquad
        s_j^2 = \frac{\sum_i w_{ji}^2 m_i s_i^2}{(\sum_i w_{ji} m_i)^2},

    exact for piecewise-constant densities and independent pixels. Bins that share a pixel have correlated errors,
    which the standard errors alone do not carry. A bin is unseen (NaN) where
    :math:`\sum_i w_{ji} m_i < \tfrac12 \Delta_j`. A redshift z moves the pixels to :math:`\lambda / (1 + z)` and
    multiplies the density by :math:`1 + z`, so that the integral stays what it was.

    Arguments:
        value: Flux density, shape (..., L); NaN where unseen.
        coord: Centres of the pixels, shape (L,), strictly ascending.
        edges: Edges of the bins, shape (D + 1,), in the unit of ``coord``, ascending.
        sigma: Standard error, shape (..., L), or None; infinite means unseen, NaN means not stated.
        seen: False where a pixel must not be used, shape (..., L).
        redshift: z > -1.

    Returns:
        The value (..., D) and its sigma (..., D) or None; NaN where unseen.

    Raises:
        DataError: coordinates that do not ascend, or a redshift that is not above -1.

    References:
        Carnall 2017, arXiv:1705.05165.

    Example:
        >>> f, s = resample(np.array([1.0, 3.0]), np.array([0.5, 1.5]), np.array([0.0, 2.0]), sigma=np.ones(2))
        >>> f.tolist(), s.round(3).tolist()
        ([2.0], [0.707])
    """
    if not redshift > -1:
        raise DataError(f"Expected a redshift above -1; got {redshift}. Mend or drop that row.")
    require_ascending(coord)
    shape = (*np.shape(value)[:-1], len(edges) - 1)
    if len(coord) < 2:  # one pixel alone has no width
        nothing = np.full(shape, np.nan)
        return nothing, None if sigma is None else nothing.copy()
    stretch = 1.0 + redshift
    m = np.isfinite(value) if seen is None else np.isfinite(value) & seen
    if sigma is not None:
        m = m & ~np.isposinf(sigma)
    w = overlap(*pixel_bounds(np.asarray(coord, np.float64) / stretch), edges)

    def total(weights: csr_array, pixels: FloatArray) -> FloatArray:
        return (weights @ pixels.reshape(-1, len(coord)).T).T.reshape(shape)

    width = total(w, m.astype(np.float64))
    kept = width >= COVERAGE * np.diff(edges) * (1 - 1e-9)
    safe = np.where(kept, width, 1.0)
    f = np.where(kept, total(w, np.where(m, value, 0.0)) * stretch / safe, np.nan)
    if sigma is None:
        return f, None
    variance = total(w.power(2), np.where(m, sigma, 0.0) ** 2)
    return f, np.where(kept, np.sqrt(variance) * stretch / safe, np.nan)


def pixel_bounds(coord: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound of each pixel, half-way to its neighbours, shapes (L,).

    Beside a gap, where one neighbour is more than twice as far as the other, a pixel is symmetric about its centre:
    it does not reach into the gap.

    Example:
        >>> [bound.tolist() for bound in pixel_bounds(np.array([1.0, 2.0, 3.0, 9.0, 10.0]))]
        [[0.5, 1.5, 2.5, 8.5, 9.5], [1.5, 2.5, 3.5, 9.5, 10.5]]
    """
    middle = 0.5 * (coord[1:] + coord[:-1])
    low = np.concatenate([[2 * coord[0] - middle[0]], middle])
    high = np.concatenate([middle, [2 * coord[-1] - middle[-1]]])
    left, right = coord - low, high - coord
    return np.where(left > 2 * right, coord - right, low), np.where(right > 2 * left, coord + left, high)


def overlap(low: FloatArray, high: FloatArray, edges: FloatArray) -> csr_array:
    """Lengths w (D, L) of the overlaps of bins with pixels: two intervals meet in one segment between cuts.

    Example:
        >>> overlap(np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([0.5, 1.75])).toarray().tolist()
        [[0.5, 0.75]]
    """
    bounds = np.stack([low, high], axis=1).ravel()
    cuts = np.unique(np.concatenate([bounds, edges]))
    inside, width = 0.5 * (cuts[1:] + cuts[:-1]), np.diff(cuts)
    at = np.searchsorted(bounds, inside) - 1  # even: in pixel at / 2; odd: in a gap between pixels
    bin_ = np.searchsorted(edges, inside) - 1
    ok = (at >= 0) & (at < len(bounds) - 1) & (at % 2 == 0) & (bin_ >= 0) & (bin_ < len(edges) - 1)
    return csr_array((width[ok], (bin_[ok], at[ok] // 2)), shape=(len(edges) - 1, len(low)))


def require_ascending(coord: FloatArray, what: str = "coordinates") -> None:
    """Raise a DataError unless the coordinates (L,) are strictly ascending."""
    wrong = np.flatnonzero(~(np.diff(coord) > 0))
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"Expected strictly ascending {what}; got {coord[first]:g} followed by {coord[first + 1]:g} "
            f"at position {first}. Sort the pixels or mend that row."
        )
