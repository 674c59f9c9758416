"""How alike are two images to the eye? Structure in small windows, whatever their brightness."""

import numpy as np

from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["ssim"]

WIDTH = 1.5  # pixels: standard deviation of the window
RADIUS = 5  # pixels of it on each side
STABILITY = (0.01, 0.03)  # of brightness and contrast, over the range


def ssim(first: FloatArray, second: FloatArray) -> FloatArray:
    r"""Mean structural similarity of images with those beside them: 1 where they are the same, 0 where unrelated.

    .. math::
        \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}{(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)},
        \qquad c_1 = (.01 L)^2, \quad c_2 = (.03 L)^2

    with means, variances and covariance in Gaussian windows of 1.5 pixels, eleven across, averaged over all windows
    that lie inside; L is the range of the first image. Bands are averaged.

    Arguments:
        first: What was measured, shape (N, H, W) or (N, C, H, W); NaN where unseen.
        second: What is compared with it, of the same shape.

    Returns:
        Shape (N,); NaN where a pixel is unseen or an image is of one value.

    Raises:
        DataError: other shapes, or images narrower than a window.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 16, 16))
        >>> ssim(x, x).round(3).tolist(), bool(abs(ssim(x, np.random.default_rng(1).normal(size=x.shape))) < 0.2)
        ([1.0], True)

    References:
        Image quality assessment: from error visibility to structural similarity (Wang et al., 2004)
    """
    from scipy.ndimage import correlate1d

    if first.shape != second.shape or first.ndim not in (3, 4) or min(first.shape[-2:]) <= 2 * RADIUS:
        raise DataError(
            f"Expected images (N, H, W) or (N, C, H, W), {2 * RADIUS + 1} pixels wide at least, and others of the same "
            f"shape; got {first.shape} and {second.shape}."
        )
    weight = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / WIDTH) ** 2)
    weight /= weight.sum()
    inside = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))

    def smooth(image: FloatArray) -> FloatArray:
        return correlate1d(correlate1d(image, weight, axis=-1), weight, axis=-2)[inside]

    whole = np.isfinite(first) & np.isfinite(second)
    x, y = np.where(whole, first, 0.0), np.where(whole, second, 0.0)
    span = np.ptp(x, axis=(-2, -1), keepdims=True)
    c1, c2 = ((share * span) ** 2 for share in STABILITY)
    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    mean = found.mean(axis=tuple(range(1, found.ndim)))
    usable = whole.all(axis=tuple(range(1, whole.ndim))) & (span > 0).all(axis=tuple(range(1, span.ndim)))
    return np.where(usable, mean, np.nan)
