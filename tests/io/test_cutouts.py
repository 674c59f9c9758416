"""Cutouts in files beside the table: what is written comes back, what is missing is unseen, a bad file is one error."""

from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from pyarrow import parquet

import consilience as cs
from consilience import io
from consilience.data.schema import Schema
from consilience.errors import DataError, SchemaError
from consilience.io.stream import stream

NAMES = ("NGC 1", "M31", "007", "a.b")
BANDS = ("g", "r", "z")
SIZE = 9
CUT = np.s_[..., 2:7, 2:7]  # pixel 4 of 9 becomes pixel 2 of 5


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(len(NAMES), 3, SIZE, SIZE)).astype(np.float32)
    return value, rng.uniform(0.5, 4, value.shape).astype(np.float32)


def spec(column="cutouts/{name}.fits", shape=(3, 5, 5), **changes):
    return {"name": "image", "column": column, "shape": shape, "unit": "nmgy"} | changes


def schema(*specs):
    return Schema(id="name", modalities=specs or (spec(ivar="cutouts/{name}.fits[1]"),))


def table(folder, names=NAMES, **columns):
    """The table beside the folder of cutouts."""
    parquet.write_table(pa.table({"name": list(names), **columns}), folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def cutout(folder, name, *planes, **cards):
    """One file: the first image in the primary HDU, the others in extensions."""
    hdus = fits.HDUList([fits.PrimaryHDU(planes[0]), *map(fits.ImageHDU, planes[1:])])
    for hdu in hdus:
        hdu.header.update(cards)
    (folder / "cutouts").mkdir(exist_ok=True)
    hdus.writeto(folder / "cutouts" / f"{name}.fits", overwrite=True)


def write(folder, images, **cards):
    for name, *planes in zip(NAMES, *images, strict=True):
        cutout(folder, name, *planes, **cards)
    return table(folder, redshift=np.arange(4) / 10)


def test_images_come_back_cut_to_their_middle_with_error_bars(tmp_path, images):
    value, ivar = images
    value[0, 0, 4, 4], ivar[1, 2, 4, 4] = np.nan, 0
    both = schema({"name": "redshift"}, spec(ivar="cutouts/{name}.fits[1]"))
    obs = io.read(write(tmp_path, (value, ivar)), both)
    part = obs.parts["image"]
    assert obs.ids.tolist() == list(NAMES) and obs.schema == both and list(obs.parts) == ["redshift", "image"]
    assert part.value.dtype == part.sigma.dtype == np.float32
    seen = np.ones((4, 3, 5, 5), bool)
    seen[0, 0, 2, 2] = seen[1, 2, 2, 2] = False
    np.testing.assert_array_equal(part.seen, seen)
    np.testing.assert_array_equal(part.value[seen], value[CUT][seen])
    np.testing.assert_allclose(part.sigma[seen], ivar[CUT][seen] ** -0.5, rtol=1e-6)
    assert np.isnan(part.value[~seen]).all() and np.isnan(part.sigma[~seen]).all()


def test_a_row_without_a_file_is_unseen(tmp_path, images):
    path = write(tmp_path, images)
    (tmp_path / "cutouts" / "M31.fits").unlink()
    part = io.read(path, schema()).parts["image"]
    assert part.seen.all(axis=(1, 2, 3)).tolist() == [True, False, True, True]
    assert not part.seen[1].any()


def test_one_file_for_each_band_and_a_missing_band(tmp_path, images):
    for name, planes, weights in zip(NAMES, *images, strict=True):
        for band, plane, weight in zip(BANDS, planes, weights, strict=True):
            cutout(tmp_path, f"{name}-{band}", plane, weight)
    (tmp_path / "cutouts" / "M31-r.fits").unlink()
    files = "cutouts/{name}-[z, g, r].fits"
    part = io.read(table(tmp_path), schema(spec(files, ivar=f"{files}[1]"))).parts["image"]
    assert part.seen.all(axis=(2, 3)).tolist() == [[True] * 3, [True, True, False], [True] * 3, [True] * 3]
    np.testing.assert_array_equal(part.value[0], images[0][CUT][0, [2, 0, 1]])
    np.testing.assert_array_equal(part.value[1, :2], images[0][CUT][1, [2, 0]])


def test_one_extension_for_each_band(tmp_path, images):
    path = write(tmp_path, images)
    for name, planes in zip(NAMES, images[0], strict=True):
        hdus = [fits.ImageHDU(plane, name=band) for band, plane in zip(BANDS, planes, strict=True)]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "cutouts" / f"{name}.fits", overwrite=True)
    value = io.read(path, schema(spec("cutouts/{name}.fits[R, g]", (2, 5, 5)))).parts["image"].value
    np.testing.assert_array_equal(value, images[0][CUT][:, [1, 0]])
    one = io.read(path, schema(spec("cutouts/{name}.fits[2]", (5, 5)))).parts["image"].value
    np.testing.assert_array_equal(one, images[0][CUT][:, 1])
    with pytest.raises(DataError, match=r"Expected an image 'i' in .*NGC 1.fits; got \['G', 'R', 'Z'\]"):
        io.read(path, schema(spec("cutouts/{name}.fits[g, r, i]")))


def test_planes_that_the_header_names(tmp_path, images):
    path = write(tmp_path, images, BANDS="grz", BAND0="g", BAND1="r", BAND2="z")
    files = {"column": "cutouts/{name}.fits[0][z, g]", "ivar": "cutouts/{name}.fits[1][z, g]"}
    part = io.read(path, schema(spec(**files, shape=(2, 5, 5)))).parts["image"]
    np.testing.assert_array_equal(part.value, images[0][CUT][:, [2, 0]])
    np.testing.assert_allclose(part.sigma, images[1][CUT][:, [2, 0]] ** -0.5, rtol=1e-6)
    with pytest.raises(DataError, match=r"Expected the bands g, i in .*NGC 1.fits; got \['g', 'r', 'z'\]"):
        io.read(path, schema(spec("cutouts/{name}.fits[0][g, i]", (2, 5, 5))))


@pytest.mark.parametrize("negated", [False, True])
def test_one_mask_for_all_bands(tmp_path, images, negated):
    path, bad = table(tmp_path), np.zeros((SIZE, SIZE), np.int16)
    bad[3, 5] = 4
    for name, planes in zip(NAMES, images[0], strict=True):
        cutout(tmp_path, name, planes, (bad == 0).astype(np.int16) if negated else bad)
    mask = f"{'not ' if negated else ''}cutouts/{{name}}.fits[1]"
    seen = io.read(path, schema(spec(mask=mask))).parts["image"].seen
    assert seen.sum() == seen.size - 4 * 3 and not seen[:, :, 1, 3].any()


def test_units_convert(tmp_path, images):
    value, ivar = images
    path = write(tmp_path, images)
    for name, plane, weight in zip(NAMES, value, ivar, strict=True):
        hdus = fits.HDUList([fits.PrimaryHDU(plane), fits.ImageHDU(weight)])
        hdus[0].header["BUNIT"], hdus[1].header["BUNIT"] = "nanomaggy", "1/nanomaggy^2"
        hdus.writeto(tmp_path / "cutouts" / f"{name}.fits", overwrite=True)
    part = io.read(path, schema(spec(ivar="cutouts/{name}.fits[1]", unit="mgy"))).parts["image"]
    np.testing.assert_allclose(part.value, 1e-9 * value[CUT], rtol=1e-6)
    np.testing.assert_allclose(part.sigma, 1e-9 * ivar[CUT] ** -0.5, rtol=1e-6)
    with pytest.raises(SchemaError, match="column 'cutouts/{name}.fits' of .*NGC 1.fits in a unit .* 'Jy m'"):
        io.read(path, schema(spec(unit="Jy m")))


def test_integers_and_bands_that_come_last(tmp_path, images):
    path = table(tmp_path)
    value = np.random.default_rng(0).integers(0, 255, (4, SIZE, SIZE, 3), np.uint8)
    for name, plane in zip(NAMES, value, strict=True):
        cutout(tmp_path, name, plane)
    found = io.read(path, schema(spec(unit="", sentinels=[float(value[2, 4, 4, 1])]))).parts["image"]
    whole = np.moveaxis(value, -1, 1)[CUT].astype(float)
    np.testing.assert_array_equal(found.seen, whole != value[2, 4, 4, 1])
    np.testing.assert_array_equal(found.value[found.seen], whole[found.seen])


def test_files_are_opened_again_by_row_groups(tmp_path, images):
    path = write(tmp_path, images)
    whole, streamed = io.read(path, schema()), stream(path, schema())
    np.testing.assert_array_equal(streamed[np.arange(4)].parts["image"].value, whole.parts["image"].value)


@pytest.mark.parametrize("suffix", ["parquet", "fits", "npz"])
def test_a_written_table_holds_the_images_itself(tmp_path, images, suffix):
    obs = io.read(write(tmp_path, images), schema())
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / f"b.{suffix}"
    cs.write(obs, copy)
    for again in (io.read(copy), io.read(copy, schema())):
        np.testing.assert_array_equal(again.parts["image"].value, obs.parts["image"].value)
        np.testing.assert_array_equal(again.parts["image"].sigma, obs.parts["image"].sigma)


def test_rows_without_ids_and_a_csv_table(tmp_path, images):
    write(tmp_path, images)
    (tmp_path / "a.csv").write_text("\n".join(["name,field", *(f"{name},cutouts" for name in NAMES)]))
    whole = Schema(modalities=(spec("{field}/{name}.fits"),))
    obs = io.read(tmp_path / "a.csv", whole)
    assert obs.ids.tolist() == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(obs.parts["image"].value, images[0][CUT])


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "a\\b", "a\0b"])
def test_no_id_leads_out_of_the_folder(tmp_path, images, name):
    write(tmp_path, images)
    fits.writeto(tmp_path / "secret.fits", images[0][0])
    path = table(tmp_path, names=("M31", name))
    with pytest.raises(DataError, match="Expected text that can be part of a file's name in column 'name' .* row 1"):
        io.read(path, schema(spec()))


def test_a_name_too_long_for_a_file_is_no_file(tmp_path, images):
    write(tmp_path, images)
    part = io.read(table(tmp_path, names=("M31", "x" * 5000)), schema(spec())).parts["image"]
    assert part.seen.any(axis=(1, 2, 3)).tolist() == [True, False]


def test_no_file_at_all(tmp_path):
    with pytest.raises(DataError, match="Expected seen pixels of 'image' in .*cutouts/{name}.fits; got none in 4 rows"):
        io.read(table(tmp_path), schema())


BROKEN = {
    "small": (lambda v: v[:, :4], "at least 5 x 5 pixels; got 4 x 9"),
    "bands": (lambda v: v[:2], "Expected images of 3 bands in .*got 2"),
    "flat": (lambda v: v[0], "Expected images of 3 bands in .*got 1"),
    "cubes": (lambda v: np.stack([v, v]), r"images of shape \(bands, H, W\) in .*got \(2, 3, 9, 9\)"),
    "no image": (lambda v: None, r"Expected an image in .*got \[\]"),
    "line": (lambda v: v[0, 0], r"Expected an image in .*got \[\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_of_another_shape(tmp_path, images, case):
    path = write(tmp_path, images)
    change, message = BROKEN[case]
    cutout(tmp_path, "007", change(images[0][2]))
    with pytest.raises(DataError, match=message) as error:
        io.read(path, schema(spec()))
    assert "007.fits" in str(error.value)


def test_a_leading_axis_of_one_is_none(tmp_path, images):
    path = write(tmp_path, images)
    cutout(tmp_path, "007", images[0][2][None])
    np.testing.assert_array_equal(io.read(path, schema(spec())).parts["image"].value, images[0][CUT])


@pytest.mark.parametrize("keep", [0, 100, 2880, 3500])
def test_a_truncated_file(tmp_path, images, keep):
    path = write(tmp_path, images)
    file = tmp_path / "cutouts" / "007.fits"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"007\.fits"):
        io.read(path, schema())


def test_compressed_files(tmp_path, images):
    path = write(tmp_path, images)
    for name, planes in zip(NAMES, images[0], strict=True):
        packed = fits.CompImageHDU(planes, compression_type="GZIP_2", quantize_level=0)
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "cutouts" / f"{name}.fits.fz")
    files = schema(spec("cutouts/{name}.fits.fz"))
    np.testing.assert_array_equal(io.read(path, files).parts["image"].value, images[0][CUT])
    file = tmp_path / "cutouts" / "007.fits.fz"
    content, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(content)
        for place in rng.integers(6000, len(content), 20):
            damaged[place] ^= 255
        file.write_bytes(damaged)
        with suppress(DataError):  # or numbers that nobody can tell from others
            io.read(path, files)


def test_a_file_that_is_no_fits_is_not_executed(tmp_path, images):
    path = write(tmp_path, images)
    (tmp_path / "cutouts" / "007.fits").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(DataError, match=r"Expected a readable FITS file; got .*007\.fits"):
        io.read(path, schema())


def test_a_negative_inverse_variance(tmp_path, images):
    images[1][2, 0, 4, 4] = -1
    with pytest.raises(DataError, match=r"no negative number in column .*fits\[1\]' of .*007\.fits; got -1"):
        io.read(write(tmp_path, images), schema())


def test_values_that_the_kind_does_not_allow(tmp_path, images):
    with pytest.raises(DataError, match="NGC 1.fits: Expected positive values in 'image'"):
        io.read(write(tmp_path, images), schema(spec(kind="positive")))


def test_no_extension_with_error_bars(tmp_path, images):
    path = write(tmp_path, images[:1])
    with pytest.raises(DataError, match=r"Expected an image '1' in .*NGC 1\.fits"):
        io.read(path, schema())


def test_the_file_of_one_band_is_named(tmp_path, images):
    path = table(tmp_path, names=("M31",))
    cutout(tmp_path, "M31-g", images[0][0, 0])
    cutout(tmp_path, "M31-r", images[0][0, 1, :4])
    with pytest.raises(DataError, match=r"M31-r\.fits: Expected images of at least 5 x 5 pixels; got 4 x 9"):
        io.read(path, schema(spec("cutouts/{name}-[g, r].fits", (2, 5, 5))))


def test_bands_in_two_units(tmp_path, images):
    path = table(tmp_path, names=("M31",))
    cutout(tmp_path, "M31-g", images[0][0, 0], BUNIT="nmgy")
    cutout(tmp_path, "M31-r", images[0][0, 1], BUNIT="mgy")
    with pytest.raises(DataError, match=r"Expected one unit in all bands .*M31-g\.fits.*got \['mgy', 'nmgy'\]"):
        io.read(path, schema(spec("cutouts/{name}-[g, r].fits", (2, 5, 5))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "cutouts/{name}.jpg"}, "Expected a FITS file for each row, .*jpg"),
        ({"column": "cutouts/{name}"}, "Expected a FITS file for each row"),
        ({"column": "cutouts/{name}-[g, r].fits"}, r"as many bands as in shape \(3, 5, 5\) .*; got 2 in 'cutouts"),
        ({"shape": (3, 25)}, "at least 3 x 25 pixels"),
        ({"shape": (75,)}, r"Expected shape \(bands, height, width\) for 'image'"),
        ({"column": "cutouts/{nmae}.fits"}, "Expected a column 'nmae' .* Did you mean 'name'"),
    ],
)
def test_a_schema_that_names_no_such_files(tmp_path, images, changes, message):
    with pytest.raises((DataError, SchemaError), match=message):
        io.read(write(tmp_path, images), schema(spec(**changes)))
