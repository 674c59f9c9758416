"""The middle of images, and Lupton's colours against his formula."""

import numpy as np
import pytest

from consilience.data.images import central, lupton_rgb
from consilience.errors import DataError


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("kept", range(1, 8))
def test_the_centre_stays_the_centre(size, kept):
    picture = np.zeros((2, size, size + 1))
    picture[:, size // 2, (size + 1) // 2] = 1
    if kept > size:
        with pytest.raises(DataError, match=f"at least {kept} x {kept} pixels; got {size} x {size + 1}"):
            central(picture, kept, kept)
        return
    cut = central(picture, kept, kept)
    assert cut.shape == (2, kept, kept)
    assert (cut[:, kept // 2, kept // 2] == 1).all()


def test_colours_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    images = rng.normal(0.3, 2.0, size=(4, 3, 9, 7))
    stretch, q, s = 0.5, 8.0, 0.1
    intensity = images.mean(axis=1, keepdims=True)
    curve = s / np.arcsinh(s * q) * np.arcsinh(q * intensity / stretch)
    expected = np.clip(images[:, ::-1] * np.where(intensity > 0, curve / intensity, 0), 0, None)
    expected /= np.maximum(expected.max(axis=1, keepdims=True), 1)
    found = lupton_rgb(images)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert (found.max() <= 1) and (found.min() == 0) and (found.max(axis=1) == 1).any()


def test_rows_do_not_depend_on_each_other_and_nothing_is_changed():
    images = np.random.default_rng(1).exponential(size=(3, 3, 5, 5)).astype(np.float32)
    before = images.copy()
    found = lupton_rgb(images)
    np.testing.assert_array_equal(found[1:2], lupton_rgb(images[1:2]))
    np.testing.assert_array_equal(images, before)


def test_a_pixel_unseen_in_one_band_has_no_colour():
    images = np.ones((1, 3, 2, 2))
    images[0, 1, 0, 1] = np.nan
    found = lupton_rgb(images)
    assert np.isnan(found[0, :, 0, 1]).all()
    assert np.isfinite(found).sum() == 9


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"shape \(N, 3, H, W\), bands g, r, z; got \(2, 4, 5, 5\)"):
        lupton_rgb(np.ones((2, 4, 5, 5)))
