"""The layout of the Multimodal Universe: what the test writes in it comes back, whichever file holds it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from consilience import io
from consilience.data.schema import Grid, Schema
from consilience.data.sky import cross_match
from consilience.errors import DataError, SchemaError
from consilience.io.resampling import resample

h5py = pytest.importorskip("h5py")

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "sdss_image_spectrum_10"
FLUX = "1e-17 erg / (s cm2 Angstrom)"
GRID = Grid(start=4000, stop=4400, size=41, unit="Angstrom")
LENGTHS = (300, 260, 300, 280, 300)  # pixels of each spectrum
BANDS = ("G", "R", "I", "Z", "Y")
SIZE = 11
WRITTEN = ("structs.parquet", "lists.parquet", "flat.hdf5")


def spectrum(column="spectrum.flux", **changes):
    given = {"ivar": "spectrum.ivar", "mask": "spectrum.mask", "coord": "spectrum.lambda", "unit": FLUX, "grid": GRID}
    return {"name": "spectrum", "column": column} | given | changes


def image(bands="[G, R, Z]", shape=(3, 6, 5), **changes):
    given = {name: f"image.{name}{bands}" for name in ("ivar", "mask")}
    return {"name": "image", "column": f"image.flux{bands}", "shape": shape} | given | changes


def schema(*specs):
    return Schema(id="object_id", modalities=specs or (spectrum(), image(), {"name": "Z", "shape": (1,)}))


def galaxies():
    """Rows as the survey has them: dictionaries with a spectrum, an image and a redshift."""
    rng = np.random.default_rng(0)
    rows = []
    for row, length in enumerate(LENGTHS):
        ivar = rng.uniform(0.5, 4, length).astype(np.float32)
        ivar[20:40], ivar[60] = 0, -1
        mask = np.zeros(length, bool)
        mask[100:130] = True
        flux = rng.normal(5, 1, length).astype(np.float32)
        flux[20:40], flux[60], flux[100:130] = 1e6, 1e6, -1e6
        found = {"flux": flux, "ivar": ivar, "lsf_sigma": np.ones(length, np.float32)}
        found |= {"lambda": (3950 + row + 1.7 * np.arange(length)).astype(np.float32), "mask": mask}
        planes = rng.normal(size=(2, len(BANDS), SIZE, SIZE)).astype(np.float32)
        weight = np.abs(planes[1])
        weight[:, 5, 5] = 0
        order = np.arange(5) if row % 2 else np.arange(5)[::-1]  # bands in two orders
        pictures = {"band": [BANDS[k] for k in order], "flux": planes[0][order], "ivar": weight[order]}
        pictures |= {"mask": weight[order] > 2, "psf_fwhm": 0.6 + 0.1 * order, "scale": np.full(5, 0.168)}
        rows.append({"spectrum": found, "image": pictures, "object_id": f"g{row}", "Z": row / 10, "ra": 10.0 + row})
    return rows


def nested(value):
    if isinstance(value, dict):
        return {name: nested(entry) for name, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def listed(struct):
    """A struct of lists as a list of structs."""
    return [dict(zip(struct, entries, strict=True)) for entries in zip(*nested(struct).values(), strict=True)]


def write(path, rows):
    """The rows in one of the three forms, by the name of the file."""
    if path.name == "structs.parquet":
        kind = pa.struct([(k, pa.list_(pa.bool_() if k == "mask" else pa.float32())) for k in rows[0]["spectrum"]])
        table = pa.Table.from_pylist([nested(row) for row in rows])
        spectra = pa.array([nested(row["spectrum"]) for row in rows], kind)
        parquet.write_table(table.set_column(0, "spectrum", spectra), path, row_group_size=2)
    elif path.name == "lists.parquet":
        both = [row | {name: listed(row[name]) for name in ("spectrum", "image")} for row in rows]
        parquet.write_table(pa.Table.from_pylist(both), path, row_group_size=2)
    else:
        longest = max(len(row["spectrum"]["flux"]) for row in rows)
        fill = {"lambda": -1, "mask": True}  # how the survey pads
        with h5py.File(path, "w") as file:
            for name in rows[0]["spectrum"]:
                padded = np.stack(
                    [np.r_[e := r["spectrum"][name], [fill.get(name, 0)] * (longest - len(e))] for r in rows]
                )
                file[f"spectrum_{name}"] = padded.astype(rows[0]["spectrum"][name].dtype)
            for name in rows[0]["image"]:
                values = np.array([row["image"][name] for row in rows])
                words = values.astype("S") if name == "band" else values
                file["image_array" if name == "flux" else f"image_{name}"] = words
            file["object_id"] = np.array([row["object_id"] for row in rows], "S")
            file["Z"] = [row["Z"] for row in rows]
            file["survey"] = "one word for all rows"
            file.create_group("meta")["x"] = [1]
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_gives_values_and_errors_on_the_grid_and_in_the_bands_asked_for(tmp_path, name):
    rows = galaxies()
    obs = io.read(write(tmp_path / name, rows), schema())
    assert obs.ids.tolist() == [row["object_id"] for row in rows]
    np.testing.assert_allclose(obs.parts["Z"].value.ravel(), [row["Z"] for row in rows])
    for at, row in enumerate(rows):
        one = {key: np.asarray(entry, float) for key, entry in row["spectrum"].items()}
        seen = (one["ivar"] > 0) & (one["mask"] == 0)
        sigma = np.where(seen, one["ivar"], 1) ** -0.5
        value, sigma = resample(one["flux"], one["lambda"], GRID.edges(), sigma=sigma, seen=seen)
        np.testing.assert_allclose(obs.parts["spectrum"].value[at], value, rtol=1e-9)
        np.testing.assert_allclose(obs.parts["spectrum"].sigma[at], sigma, rtol=1e-9)
        assert 20 < obs.parts["spectrum"].seen[at].sum() < GRID.size
        picture = row["image"]
        place = [picture["band"].index(band) for band in ("G", "R", "Z")]
        cut = np.s_[place, 2:8, 3:8]  # pixel 5 of 11 becomes pixel 3 of 6, and 2 of 5
        seen = (picture["ivar"][cut] > 0) & ~picture["mask"][cut]
        part = obs.parts["image"]
        np.testing.assert_array_equal(part.seen[at], seen)
        assert not seen[:, 3, 2].any()
        np.testing.assert_array_equal(part.value[at][seen], picture["flux"][cut][seen])
        np.testing.assert_allclose(part.sigma[at][seen], picture["ivar"][cut][seen].astype(float) ** -0.5)


@pytest.mark.parametrize("name", WRITTEN)
def test_masks_that_are_true_where_a_pixel_is_clean(tmp_path, name):
    rows = galaxies()
    expected = io.read(write(tmp_path / name, rows), schema(image(), spectrum()))
    for row in rows:
        for part in ("image", "spectrum"):
            row[part]["mask"] = ~row[part]["mask"]
    clean = schema(image(mask="not image.mask[G, R, Z]"), spectrum(mask="not spectrum.mask"))
    obs = io.read(write(tmp_path / name, rows), clean)
    for part in ("image", "spectrum"):
        np.testing.assert_array_equal(obs.parts[part].value, expected.parts[part].value)
        np.testing.assert_array_equal(obs.parts[part].sigma, expected.parts[part].sigma)


@pytest.mark.parametrize("name", WRITTEN)
def test_numbers_of_each_band_and_the_whole_list_of_columns(tmp_path, name):
    rows = galaxies()
    path = write(tmp_path / name, rows)
    seeing = {"name": "seeing", "shape": (2,), "column": "image.psf_fwhm[Z, G]", "unit": "arcsec"}
    np.testing.assert_allclose(io.read(path, schema(seeing)).parts["seeing"].value, [[0.9, 0.6]] * 5, rtol=1e-6)
    shapes = {column.name: column.shape for column in io.describe(path).columns}
    assert shapes["image.flux"] == shapes["image.ivar"] == (5, SIZE, SIZE)
    assert shapes["image.band"] == (5,)
    assert shapes["spectrum.lambda"] == ((max(LENGTHS),) if name == "flat.hdf5" else (-1,))
    assert not {"survey", "meta"} & set(shapes)


def test_all_bands_where_every_row_has_the_same(tmp_path):
    rows = galaxies()[1::2]
    obs = io.read(write(tmp_path / "structs.parquet", rows), schema(image("", (5, SIZE, SIZE))))
    assert obs.parts["image"].value.shape == (2, 5, SIZE, SIZE)
    seen = obs.parts["image"].seen[0]
    np.testing.assert_array_equal(obs.parts["image"].value[0][seen], rows[0]["image"]["flux"][seen])


def test_one_mask_for_all_bands(tmp_path):
    """The Legacy Surveys' files have masks without an axis of bands."""
    rows = galaxies()
    path = write(tmp_path / "flat.hdf5", rows)
    with h5py.File(path, "a") as file:
        del file["image_mask"]
        mask = np.zeros((len(rows), SIZE, SIZE), bool)
        mask[1, 4, 6] = True
        file["image_mask"] = mask
    seen = io.read(path, schema(image())).parts["image"].seen
    ivar = np.stack([row["image"]["ivar"][0] > 0 for row in rows])
    np.testing.assert_array_equal(seen[:, 1], (ivar & ~mask)[:, 2:8, 3:8])


def test_an_object_without_an_image_or_without_a_spectrum_is_unseen(tmp_path):
    rows = [nested(row) for row in galaxies()]
    rows[1]["image"] = rows[3]["spectrum"] = None
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    obs = io.read(tmp_path / "a.parquet", schema())
    assert obs.parts["image"].seen.any(axis=(1, 2, 3)).tolist() == [True, False, True, True, True]
    assert obs.parts["spectrum"].seen.any(axis=1).tolist() == [True, True, True, False, True]


def test_bands_and_other_lists_of_text(tmp_path):
    rows = [nested(row) | {"lines": {"name": ["Ha", "Hb"][: at % 3]}} for at, row in enumerate(galaxies())]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (lines,) = (column for column in io.describe(tmp_path / "a.parquet").columns if column.name == "lines.name")
    assert (lines.dtype, lines.shape) == ("text", ())
    for row in rows:
        row["image"]["band"] = [""] * 5
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Expected bands for column 'image.flux' of .*a.parquet; got none in any row"):
        io.read(tmp_path / "a.parquet", schema(image()))


def test_units_of_nested_columns_convert(tmp_path):
    rows = [nested(row) for row in galaxies()]
    table = pa.Table.from_pylist(rows)
    kind = pa.struct(
        [
            field.with_metadata({"unit": "nJy"}) if field.name == "flux" else field
            for field in table.schema.field("image").type
        ]
    )
    images = pa.array([row["image"] for row in rows], kind)
    parquet.write_table(
        table.set_column(table.schema.get_field_index("image"), "image", images), tmp_path / "a.parquet"
    )
    one = io.read(tmp_path / "a.parquet", schema(image(unit="nJy"))).parts["image"]
    other = io.read(tmp_path / "a.parquet", schema(image(unit="uJy"))).parts["image"]
    np.testing.assert_allclose(other.value, 1e-3 * one.value)
    np.testing.assert_allclose(other.sigma, 1e-3 * one.sigma)
    with pytest.raises(SchemaError, match="'image.flux\\[G, R, Z\\]' of .*a.parquet in a unit that converts to 'K'"):
        io.read(tmp_path / "a.parquet", schema(image(unit="K")))


def test_what_was_read_is_written_and_read_again(tmp_path):
    obs = io.read(write(tmp_path / "lists.parquet", galaxies()), schema())
    for name in ("a.parquet", "a.npz", "a.fits"):
        io.write(obs, tmp_path / name)
        again = io.read(tmp_path / name)
        assert again.schema == obs.schema
        for part in obs.parts:
            np.testing.assert_array_equal(again.parts[part].value, obs.parts[part].value)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        (image("[G, R, U]"), DataError, r"bands G, R, U in column 'image.flux' of .*; got Y, Z, I, R, G in row 0"),
        (image("", (5, 6, 6)), DataError, r"bands Y, Z, I, R, G in .*; got G, R, I, Z, Y in row 1"),
        (image(shape=(3, 12, 12)), DataError, r"column 'image.flux' of .*at least 12 x 12 pixels; got 11 x 11"),
        (image(shape=(2, 6, 6)), DataError, r"event shape \(2, 6, 6\); got \(3, 6, 6\)"),
        (image(ivar="image.weight[G, R, Z]"), DataError, "Expected a column 'image.weight"),
        (image(mask="spectrum.mask[G]"), SchemaError, "Expected a column 'spectrum.band' for 'spectrum.mask"),
        (image(column="image.flux[G, R"), DataError, r"Expected a column 'image.flux\[G, R' in"),
        (spectrum("spectrum.fluxx"), DataError, "Did you mean 'spectrum.flux'"),
        (spectrum(coord=None), DataError, "Declare `coord` and `grid`|event shape"),
    ],
)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_schema_that_does_not_fit_gives_one_error_that_names_the_file(tmp_path, name, spec, error, words):
    path = write(tmp_path / name, galaxies())
    with pytest.raises(error, match=words) as caught:
        io.read(path, schema(spec))
    assert name in str(caught.value)


def test_one_column_in_two_sizes_is_refused(tmp_path):
    path = write(tmp_path / "flat.hdf5", galaxies())
    with pytest.raises(SchemaError, match=r"in one size; got \(3, 6, 5\) and \(3, 4, 4\)"):
        io.read(path, schema(image(), image(shape=(3, 4, 4)) | {"name": "stamp"}))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_truncated_or_foreign_file_gives_one_error(tmp_path, name):
    path = write(tmp_path / name, galaxies())
    whole = path.read_bytes()
    for content in (b"", b"no such format" * 99, whole[: len(whole) // 2], whole[:-30], whole[40:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"Expected a readable (Parquet|HDF5) file; got .*{name}"):
            io.read(path, schema())


def test_images_of_different_sizes_name_the_row(tmp_path):
    rows = galaxies()
    rows[3]["image"]["flux"] = rows[3]["image"]["flux"][:, :, :7]
    path = write(tmp_path / "structs.parquet", rows)
    with pytest.raises(DataError, match=r"column 'image.flux' of .*; got 11 and 7 \(row 3\)"):
        io.read(path, schema(image()))
    assert io.read(path, schema(spectrum())).parts["spectrum"].seen.any()  # who does not ask is not troubled


def test_hdf5_arrays_of_other_lengths_and_rows_of_their_own_length(tmp_path):
    path = write(tmp_path / "flat.hdf5", galaxies())
    with h5py.File(path, "a") as file:
        del file["Z"], file["image_ivar"]
        file["Z"], file["image_ivar"] = np.ones(3), np.ones((3, 5, SIZE, SIZE))
        for field in ("flux", "lambda"):
            kept = [row["spectrum"][field] for row in galaxies()]
            ragged = file.create_dataset(f"spectrum_raw_{field}", (5,), h5py.vlen_dtype(np.float32))
            ragged[:] = np.array([*kept, None], object)[:-1]
    raw = spectrum("spectrum.raw_flux", coord="spectrum.raw_lambda", ivar=None, mask=None)
    plain = io.read(path, schema(spectrum(ivar=None, mask=None))).parts["spectrum"]
    np.testing.assert_allclose(io.read(path, schema(raw)).parts["spectrum"].value, plain.value)
    with pytest.raises(DataError, match=r"Expected 5 rows in column 'Z' of .*; got 3"):
        io.read(path, schema({"name": "Z", "shape": (1,)}))
    with pytest.raises(
        DataError, match=r"Expected bands of shape \(3, 5\) for column 'image.ivar' of .*; got \(5, 5\)"
    ):
        io.read(path, schema(image()))


def test_a_file_without_rows_or_arrays(tmp_path):
    table = pa.Table.from_pylist([nested(row) for row in galaxies()])
    parquet.write_table(table.slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"at least one row in .*a.parquet; got an empty table"):
        io.read(tmp_path / "a.parquet", schema())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("x")
    with pytest.raises(DataError, match=r"readable HDF5 file; got .*a.h5: no arrays in it"):
        io.read(tmp_path / "a.h5", schema())


@pytest.mark.parametrize("name", WRITTEN)
def test_real_galaxies_written_in_the_layout_come_back(tmp_path, name):
    if not REAL.is_dir():
        pytest.skip("no sdss_image_spectrum_10 here")
    with np.load(REAL / "pairs.npz", allow_pickle=False) as file:
        real = {key: file[key] for key in file.files}
    rows = []
    for at, key in enumerate(real["objid"]):
        there = np.isfinite(real["flux"][at])
        spectra = {key: real[key][at][there] for key in ("flux", "ivar")}
        spectra |= {"lambda": real["wavelength_A"][there], "mask": spectra["ivar"] <= 0}
        planes = np.moveaxis(real["images_rgb_u8"][at], -1, 0).astype(np.float32)  # red, green, blue: i, r, g
        pictures = {"band": ["i", "r", "g"], "flux": planes, "ivar": np.ones_like(planes), "mask": planes > 1e9}
        rows.append({"spectrum": spectra, "image": pictures, "object_id": str(key), "Z": real["z"][at]})
    grid = Grid(start=3800, stop=8400, size=400, spacing="log", unit="Angstrom")
    asked = schema(spectrum(grid=grid), image("[g, r, i]", (3, 64, 64)), {"name": "Z", "shape": (1,)})
    obs = io.read(write(tmp_path / name, rows), asked)
    np.testing.assert_allclose(obs.parts["Z"].value.ravel(), real["z"])
    np.testing.assert_array_equal(
        obs.parts["image"].value, np.moveaxis(real["images_rgb_u8"][:, 96:160, 96:160, ::-1], -1, 1)
    )
    good = real["ivar"] > 0
    sigma = np.where(good, real["ivar"], 1.0) ** -0.5
    value, sigma = resample(real["flux"], real["wavelength_A"], grid.edges(), sigma=sigma, seen=good)
    part = obs.parts["spectrum"]
    np.testing.assert_array_equal(part.seen, np.isfinite(value))
    np.testing.assert_allclose(part.value, value, rtol=0, atol=1e-4 * np.nanmax(value))  # wavelengths in float32
    np.testing.assert_allclose(part.sigma, sigma, rtol=2e-4)
    # the same galaxies, seen again in another order and .3 arcsec off
    sky = np.stack([real["ra"], real["dec"]], axis=1)
    order = np.random.default_rng(1).permutation(len(sky))
    again = sky[order] + [[0, 0.3 / 3600]]
    joined = cross_match(obs.select("image"), obs.select("spectrum", "Z")[order], sky, again)
    assert joined.ids.tolist() == obs.ids.tolist()
    np.testing.assert_array_equal(joined.parts["Z"].value, obs.parts["Z"].value)
