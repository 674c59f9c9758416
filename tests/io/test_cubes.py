"""Cubes: what was put into a file comes back, patches hold what their pixels hold; a bad file gives one error."""

import numpy as np
import pytest
from astropy.io import fits

from consilience.errors import DataError, RequestError
from consilience.io.cubes import Cube, patches, read_cube

BANDS = 12
WAVES = np.linspace(420.0, 880.0, BANDS)


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    return Cube(rng.random((23, 20, BANDS)), WAVES, {"abundances": rng.random((23, 20, 3))})


def arrays(scene, **changes):
    return {"cube": scene.value, "wavelength": WAVES, "abundances": scene.maps["abundances"]} | changes


def test_an_archive_comes_back(scene, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(scene), depth=scene.value[..., 0])
    found = read_cube(tmp_path / "a.npz", array="cube", maps=["abundances", "depth"])
    np.testing.assert_array_equal(found.value, scene.value)
    np.testing.assert_array_equal(found.wavelength, WAVES)
    np.testing.assert_array_equal(found.maps["abundances"], scene.maps["abundances"])
    assert found.maps["depth"].shape == (23, 20, 1)
    given = read_cube(tmp_path / "a.npz", array="cube", wavelength=(1, 12))
    assert given.wavelength.tolist() == list(range(1, 13)) and not given.maps


def test_one_bare_array_comes_back(scene, tmp_path):
    np.save(tmp_path / "a.npy", scene.value.astype(np.float32))
    found = read_cube(tmp_path / "a.npy", wavelength=(420, 880))
    np.testing.assert_array_equal(found.value, scene.value.astype(np.float32))
    np.testing.assert_allclose(found.wavelength, WAVES)
    with pytest.raises(DataError, match=r"wavelengths of 'cube' in .*a\.npy"):
        read_cube(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz"])
@pytest.mark.parametrize("step", [{"CDELT3": 0.0418181818}, {"CD3_3": 0.0418181818, "CD1_1": 1.0, "CD2_2": 1.0}])
def test_images_of_fits_have_bands_first_and_their_own_unit(scene, tmp_path, name, step):
    image = fits.ImageHDU(np.moveaxis(scene.value, -1, 0), name="FLUX")
    image.header.update({"CTYPE3": "AWAV", "CUNIT3": "um", "CRPIX3": 1.0, "CRVAL3": 0.42, **step})
    known = fits.ImageHDU(np.moveaxis(scene.maps["abundances"], -1, 0), name="ABUNDANCES")
    fits.HDUList([fits.PrimaryHDU(), image, known]).writeto(tmp_path / name)
    found = read_cube(tmp_path / name, array="FLUX", maps=["ABUNDANCES"])
    np.testing.assert_array_equal(found.value, scene.value)
    np.testing.assert_allclose(found.wavelength, WAVES, rtol=1e-8)
    np.testing.assert_array_equal(found.maps["ABUNDANCES"], scene.maps["abundances"])
    assert len(patches(found, size=4, stride=4, blocks=2)) == 20


def test_an_image_without_a_spectral_axis_needs_wavelengths(scene, tmp_path):
    fits.PrimaryHDU(np.moveaxis(scene.value, -1, 0)).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match="Give `wavelength`"):
        read_cube(tmp_path / "a.fits")
    assert read_cube(tmp_path / "a.fits", wavelength=(420, 880)).value.shape == scene.value.shape


def test_patches_hold_what_their_pixels_hold(scene):
    table = patches(scene, size=4, stride=3, blocks=2, colours=((600, 880), (500, 600), (420, 500)))
    for row, name in enumerate(table.ids):
        y, x = map(int, name.split("-"))
        pixels = scene.value[y : y + 4, x : x + 4]
        np.testing.assert_array_equal(table.parts["cube"].value[row], np.moveaxis(pixels, -1, 0))
        np.testing.assert_allclose(table.parts["spectrum"].value[row], pixels.mean((0, 1)))
        green = pixels[..., (WAVES >= 500) & (WAVES <= 600)].mean(-1)
        np.testing.assert_allclose(table.parts["rgb"].value[row, 1], green)
        known = scene.maps["abundances"][y : y + 4, x : x + 4]
        np.testing.assert_array_equal(table.parts["abundances"].value[row], np.moveaxis(known, -1, 0))
    grid = table.schema["spectrum"].grid
    assert grid is not None
    np.testing.assert_allclose(grid.centres(), WAVES)


@pytest.mark.parametrize(("size", "stride", "blocks"), [(4, 1, 2), (3, 2, 3), (5, 5, 4)])
def test_blocks_share_no_pixel(scene, size, stride, blocks):
    table = patches(scene, size=size, stride=stride, blocks=blocks)
    owner = np.full(scene.value.shape[:2], "", dtype=object)
    for name, block in zip(table.ids, table.group, strict=True):
        y, x = map(int, name.split("-"))
        here = owner[y : y + size, x : x + size]
        assert here.shape == (size, size) and set(here.ravel()) <= {"", block}
        here[:] = block
    assert len(set(table.group)) == blocks**2
    train, test = table.split(0.5, seed=0, by="group")
    assert not set(train.group) & set(test.group)


def test_uneven_wavelengths_have_no_grid(scene):
    uneven = Cube(scene.value, WAVES + np.arange(BANDS) ** 2)
    assert patches(uneven, size=4, stride=4, blocks=2).schema["spectrum"].grid is None


def test_patches_that_cannot_be(scene):
    with pytest.raises(RequestError, match="at most 20 // blocks"):
        patches(scene, size=6, stride=1, blocks=4)
    with pytest.raises(RequestError, match="stride 0"):
        patches(scene, size=4, stride=0, blocks=2)
    infrared = Cube(scene.value, WAVES + 1000)
    with pytest.raises(DataError, match="1420 to 1880 nm.*Give `colours`"):
        patches(infrared, size=4, stride=4, blocks=2)
    assert patches(infrared, size=4, stride=4, blocks=2, colours=((1420, 1500), (1500, 1600), (1600, 1880)))
    with pytest.raises(DataError, match=r"not called rgb.*got \['rgb'\]"):
        patches(Cube(scene.value, WAVES, {"rgb": scene.value}), size=4, stride=4, blocks=2)


def spoilt(value):
    value = value.copy()
    value[1, 2, 3] = np.nan
    return value


BAD = {
    "flat": (lambda scene: arrays(scene, cube=scene.value[..., 0]), r"three axes.*got shape \(23, 20\)"),
    "missing": (lambda scene: {"cub": scene.value}, "Expected 'cube' among .*Did you mean 'cub'"),
    "empty": (lambda scene: arrays(scene, cube=scene.value[:0]), "three axes"),
    "nan": (lambda scene: arrays(scene, cube=spoilt(scene.value)), "finite numbers in 'cube'.*NaN"),
    "text": (lambda scene: arrays(scene, cube=scene.value.astype(str)), "finite numbers in 'cube'"),
    "objects": (lambda scene: arrays(scene, cube=scene.value.astype(object)), "allow_pickle=False"),
    "other pixels": (lambda scene: arrays(scene, abundances=np.ones((2, 2, 3))), r"'abundances'.*shape \(2, 2, 3\)"),
    "fewer waves": (lambda scene: arrays(scene, wavelength=WAVES[1:]), r"12 bands.*got shape \(11,\)"),
    "falling waves": (lambda scene: arrays(scene, wavelength=WAVES[::-1]), "increasing order.*not in order"),
    "waves of text": (lambda scene: arrays(scene, wavelength=WAVES.astype("U3") + "x"), "could not convert"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_archive_is_one_error_that_names_it(scene, tmp_path, kind):
    make, message = BAD[kind]
    np.savez(tmp_path / "bad.npz", **make(scene))
    with pytest.raises(DataError, match=message) as caught:
        read_cube(tmp_path / "bad.npz", array="cube", maps=["abundances"] if kind == "other pixels" else ())
    assert "bad.npz" in str(caught.value)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.fits"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_one_error_that_names_it(scene, tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez_compressed(path, **arrays(scene))
    elif name.endswith("npy"):
        np.save(path, scene.value)
    else:
        fits.PrimaryHDU(np.moveaxis(scene.value, -1, 0)).writeto(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=name):
        read_cube(path, wavelength=(420, 880))


def test_other_files_are_named(scene, tmp_path):
    with pytest.raises(DataError, match=r"\.npz, \.npy, \.fits.*a\.mat"):
        read_cube(tmp_path / "a.mat")
    with pytest.raises(DataError, match=r"Expected a file at .*a\.npz"):
        read_cube(tmp_path / "a.npz")
    np.savez(tmp_path / "two.npz", **arrays(scene))
    with pytest.raises(DataError, match=r"two\.npz; got \['cube', 'abundances'\]"):
        read_cube(tmp_path / "two.npz")
