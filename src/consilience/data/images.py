"""Images as plain arrays: the middle of them, and the colours in which galaxies are looked at."""

from collections.abc import Callable

import numpy as np

from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["central", "lupton_rgb"]


def central(images: FloatArray, height: int, width: int) -> FloatArray:
    """The middle of images, a view: pixel H // 2 becomes pixel ``height // 2``, and so along the width.

    Arguments:
        images: Shape (..., H, W).
        height: Rows to keep, at most H.
        width: Columns to keep, at most W.

    Raises:
        DataError: images that are smaller.

    Example:
        >>> central(np.arange(5)[None] * np.ones((3, 1)), 1, 3).tolist()
        [[1.0, 2.0, 3.0]]
    """
    found = images.shape[-2:]
    if found[0] < height or found[1] < width:
        raise DataError(f"Expected images of at least {height} x {width} pixels; got {found[0]} x {found[1]}.")
    top, left = found[0] // 2 - height // 2, found[1] // 2 - width // 2
    return images[..., top : top + height, left : left + width]


def lupton_rgb(images: FloatArray, *, stretch: float = 0.5, softening: float = 8.0) -> FloatArray:
    r"""Colour images whose hue does not depend on brightness, :math:`(R, G, B) = (z, r, g)\,F(I) / I`.

    With the intensity :math:`I = (g + r + z) / 3` and :math:`s = 0.1`,

    .. math::
        F(I) = \frac{s}{\operatorname{asinh}(s Q)} \operatorname{asinh}\frac{Q I}{\alpha},

    then channels below 0 are 0, and a pixel is divided by its largest channel where that exceeds 1. Where
    :math:`I \le 0` a pixel is black; where one band is unseen, all three channels are.

    Arguments:
        images: Flux of g, r, z (or any three bands, blue first), shape (N, 3, H, W); NaN where unseen.
        stretch: :math:`\alpha`, in the unit of the flux: fainter than it, F is nearly linear.
        softening: Q > 0: how bright a pixel may be before it saturates.

    Returns:
        Red, green and blue in [0, 1], shape (N, 3, H, W).

    Raises:
        DataError: another shape.

    References:
        Lupton et al. 2004, PASP 116, 133; astropy.visualization.make_lupton_rgb.

    Example:
        >>> lupton_rgb(np.array([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)).ravel().round(3).tolist()
        [0.385, 0.257, 0.128]
    """
    from astropy.visualization import make_lupton_rgb

    painted: Callable[..., FloatArray] = make_lupton_rgb  # astropy's own annotations are those of its defaults
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"Expected images of shape (N, 3, H, W), bands g, r, z; got {images.shape}.")
    unseen = ~np.isfinite(images).all(axis=1, keepdims=True)
    rgb = np.empty(images.shape)
    with np.errstate(invalid="ignore"):  # F / I where I = 0, which is then put to zero
        for row, (g, r, z) in enumerate(np.where(unseen, 0.0, images)):
            picture = painted(z, r, g, stretch=stretch, Q=softening, output_dtype=np.float64)
            rgb[row] = np.moveaxis(picture, -1, 0)
    return np.where(unseen, np.nan, rgb)
