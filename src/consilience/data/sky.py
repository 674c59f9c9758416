"""Objects that two tables share, found by where they are on the sky."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from consilience.data.observations import Observations
from consilience.errors import DataError
from consilience.typing import FloatArray, IntArray

__all__ = ["Pairs", "cross_match", "sky_pairs"]


class Pairs(NamedTuple):
    """Row numbers in two tables of the same objects, shapes (P,), and how far apart they are, in arcsec."""

    left: IntArray
    right: IntArray
    separation: FloatArray


def cross_match(
    left: Observations, right: Observations, left_sky: FloatArray, right_sky: FloatArray, *, radius: float = 1.0
) -> Observations:
    """The objects that both tables hold, with the modalities of both: the join of two surveys on the sky.

    Each row is the pair of :func:`sky_pairs` and has the id of ``left``. For the objects of one side only, give the
    pairs one id and use :meth:`Observations.join`, which keeps every row.

    Arguments:
        left: One table.
        right: Another, with other modalities.
        left_sky: Right ascension and declination (ICRS) of its rows in degrees, shape (N, 2).
        right_sky: The same of the other, shape (M, 2).
        radius: Largest separation of a pair in arcsec.

    Raises:
        DataError: positions that are no positions, another number of them than of rows, or no pair at all.
        RequestError: a modality that both tables have.

    Example:
        >>> from consilience.data.schema import ModalitySpec, Schema
        >>> one = lambda name, n: Observations.from_arrays(
        ...     Schema(modalities=(ModalitySpec(name=name, shape=(1,)),)), {name: np.arange(n * 1.0)[:, None]}
        ... )
        >>> sky = np.array([[10.0, 0.0], [10.1, 0.0], [10.2, 0.0]])
        >>> both = cross_match(one("x", 3), one("y", 2), sky, sky[[2, 0]] + 1e-4)
        >>> both.ids.tolist(), both.parts["y"].value.ravel().tolist()
        (['0', '2'], [1.0, 0.0])
    """
    for name, obs, sky in (("left", left, left_sky), ("right", right, right_sky)):
        if len(sky) != len(obs):
            raise DataError(f"Expected one position per row on the {name} ({len(obs)}); got {len(sky)}.")
    pairs = sky_pairs(left_sky, right_sky, radius=radius)
    if not len(pairs.left):
        raise DataError(
            f"Expected objects within {radius:g} arcsec of each other in both tables; got none. "
            "Check that positions are (ra, dec) in degrees, or enlarge the radius."
        )
    first = left[pairs.left]
    return first.join(replace(right[pairs.right], ids=first.ids))


def sky_pairs(left: FloatArray, right: FloatArray, *, radius: float = 1.0) -> Pairs:
    """Pairs of positions each of which is the other's nearest, within ``radius`` arcsec, in the order of ``left``.

    Arguments:
        left: Right ascension and declination (ICRS) in degrees, shape (N, 2).
        right: The same, shape (M, 2).
        radius: Largest separation in arcsec.

    Raises:
        DataError: another shape, no rows, or a position that is none.

    Example:
        >>> sky_pairs(np.array([[0.0, 89.0], [359.9999, 0.0]]), np.array([[1e-4, 0.0]])).separation.round(3)
        array([0.72])
    """
    from astropy.coordinates import SkyCoord

    a, b = (SkyCoord(*_positions(sky, side).T, unit="deg") for sky, side in ((left, "left"), (right, "right")))
    nearest, angle, _ = a.match_to_catalog_sky(b)
    back, _, _ = b.match_to_catalog_sky(a)
    separation: FloatArray = np.asarray(angle.to_value("arcsec"), dtype=np.float64)
    rows = np.flatnonzero((back[nearest] == np.arange(len(nearest))) & (separation <= radius))
    return Pairs(rows, nearest[rows], separation[rows])


def _positions(sky: FloatArray, side: str) -> FloatArray:
    sky = np.asarray(sky, dtype=np.float64)
    if sky.ndim != 2 or sky.shape[1] != 2 or not len(sky):
        raise DataError(f"Expected positions (ra, dec) of shape (N, 2) on the {side}; got shape {sky.shape}.")
    wrong = np.flatnonzero(~np.isfinite(sky).all(axis=1) | (np.abs(sky[:, 1]) > 90))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"Expected (ra, dec) in degrees in every row on the {side}; got {sky[row].tolist()} in row {row}. "
            "Mend or drop it."
        )
    return sky
