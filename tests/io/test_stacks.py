"""Stacks of images in HDF5 files of any layout: cut to the schema's size, bands first or last, integers."""

import numpy as np
import pytest

from consilience import io
from consilience.data.schema import Schema
from consilience.errors import DataError

h5py = pytest.importorskip("h5py")

ROWS, SIZE = 4, 9
CUT = np.s_[..., 2:7, 2:7]  # pixel 4 of 9 becomes pixel 2 of 5


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 255, (ROWS, 3, SIZE, SIZE), np.uint8)


def write(folder, **arrays):
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return folder / "a.h5"


def schema(shape=(3, 5, 5), **changes):
    return Schema(modalities=({"name": "image", "column": "images", "shape": shape} | changes,))


def test_a_stack_is_cut_to_the_middle_of_the_schema(tmp_path, images):
    path = write(tmp_path, images=images, id=np.array([f"g{row}" for row in range(ROWS)], "S"), ans=np.arange(ROWS))
    both = Schema(modalities=(*schema().modalities, {"name": "ans", "kind": "category", "classes": 4}))
    obs = io.read(path, both)
    assert obs.ids.tolist() == ["g0", "g1", "g2", "g3"]
    np.testing.assert_array_equal(obs.parts["image"].value, images[CUT])
    np.testing.assert_array_equal(obs.parts["ans"].value, np.arange(ROWS))
    whole = io.read(path, schema((3, SIZE, SIZE))).parts["image"]
    np.testing.assert_array_equal(whole.value, images)
    assert whole.seen.all()


def test_bands_that_come_last(tmp_path, images):
    """As in Galaxy10: (N, H, W, bands), bytes, without ids."""
    path = write(tmp_path, images=np.moveaxis(images, 1, -1), ra=np.zeros(ROWS))
    obs = io.read(path, schema())
    assert obs.ids.tolist() == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(obs.parts["image"].value, images[CUT])
    np.testing.assert_array_equal(io.read(path, schema((3, SIZE, SIZE))).parts["image"].value, images)


def test_error_bars_and_one_mask_for_all_bands_are_cut_alike(tmp_path, images):
    ivar = np.random.default_rng(1).uniform(0, 2, images.shape)
    ivar[ivar < 0.5] = 0
    clean = np.random.default_rng(2).random((ROWS, SIZE, SIZE)) < 0.8
    path = write(tmp_path, images=images, weights=np.moveaxis(ivar, 1, -1), clean=clean)
    part = io.read(path, schema(ivar="weights", mask="not clean")).parts["image"]
    seen = (ivar > 0)[CUT] & clean[:, None][CUT]
    np.testing.assert_array_equal(part.seen, seen)
    np.testing.assert_allclose(part.sigma[seen], ivar[CUT][seen] ** -0.5)


def test_one_band_has_no_axis_of_its_own(tmp_path, images):
    path = write(tmp_path, images=images[:, 0])
    np.testing.assert_array_equal(io.read(path, schema((1, 5, 5))).parts["image"].value, images[:, :1][CUT])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[..., :4], "column 'images' of .*a.h5: Expected images of at least 5 x 5 pixels; got 9 x 4"),
        (lambda v: v[:, :2], r"Expected modality 'image' with event shape \(3, 5, 5\); got \(2, 5, 5\)"),
        (lambda v: v[:, 0], r"Expected modality 'image' with event shape \(3, 5, 5\); got \(1, 5, 5\)"),
    ],
)
def test_a_stack_of_another_shape(tmp_path, images, change, message):
    with pytest.raises(DataError, match=message) as error:
        io.read(write(tmp_path, images=change(images)), schema())
    assert "a.h5" in str(error.value)


def test_other_modalities_are_not_cut(tmp_path):
    """Two axes may be bins and neurons: a schema that asks for fewer is wrong."""
    path = write(tmp_path, images=np.zeros((ROWS, SIZE, SIZE)))
    with pytest.raises(DataError, match=r"event shape \(5, 5\); got \(9, 9\)"):
        io.read(path, schema((5, 5)))
