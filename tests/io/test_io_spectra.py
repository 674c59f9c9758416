"""Spectra in the layout of SDSS: one file, a folder, a list, and back."""

import shutil

import numpy as np
import pytest
from astropy.io import fits

from consilience import io
from consilience.data.observations import Observations
from consilience.data.schema import Grid, ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.io.columns import to_observations
from consilience.io.spectra import SDSS_FLUX, write_spectra

GRID = Grid(start=4000, stop=4200, size=41, unit="Angstrom")
SPECTRUM = ModalitySpec(
    name="spectrum", grid=GRID, unit=SDSS_FLUX, column="flux", ivar="ivar", mask="and_mask", coord="wavelength"
)
SCHEMA = Schema(modalities=(SPECTRUM, ModalitySpec(name="redshift", shape=(1,), column="z")))


def make(folder, plate, fiber, pixels=600, *, record="SPECOBJ", z=1.5):
    rng = np.random.default_rng(fiber)
    loglam = 3.59 + 1e-4 * np.arange(pixels) + 1e-4 * (fiber % 7)
    ivar = rng.uniform(1, 4, pixels)
    ivar[100:110] = 0
    mask = np.zeros(pixels, np.int32)
    mask[200:230] = 1 << 24
    flux = 10 + rng.normal(size=pixels) / np.sqrt(np.where(ivar > 0, ivar, 1))
    flux[100:110], flux[200:230] = -1e6, 1e6
    columns = [
        fits.Column("flux", "E", array=flux),
        fits.Column("loglam", "E", array=loglam),
        fits.Column("ivar", "E", array=ivar),
        fits.Column("and_mask", "J", array=mask),
        fits.Column("or_mask", "J", array=mask),
    ]
    primary = fits.PrimaryHDU()
    primary.header["PLATEID"], primary.header["MJD"], primary.header["FIBERID"] = plate, 51602, fiber
    hdus = [primary, fits.BinTableHDU.from_columns(columns, name="COADD")]
    if record:
        numbers = [fits.Column(name, "E", array=[value]) for name, value in (("Z", z), ("Z_ERR", 1e-3))]
        words = [fits.Column("CLASS", "3A", array=["QSO"]), fits.Column("MAGS", "5E", array=np.ones((1, 5)))]
        hdus.append(fits.BinTableHDU.from_columns(numbers + words, name=record))
    path = folder / f"spec-{plate:04d}-51602-{fiber:04d}.fits"
    fits.HDUList(hdus).writeto(path)
    return path


def test_one_file(tmp_path):
    obs = io.read(make(tmp_path, 266, 3), SCHEMA)
    assert obs.ids.tolist() == ["0266-51602-0003"]
    assert obs.parts["redshift"].value.tolist() == [[1.5]]
    part = obs.parts["spectrum"]
    seen = part.seen[0]
    assert seen.sum() > 30
    assert abs((part.value[0][seen] - 10) / part.sigma[0][seen]).max() < 5
    wave = 10 ** (3.59 + 1e-4 * (np.arange(600) + 3))
    hole = (GRID.centres() > wave[202]) & (GRID.centres() < wave[228])
    assert hole.any()
    assert not seen[hole].any()


@pytest.mark.parametrize("record", ["SPALL", "SPECOBJ"])
def test_a_folder_and_a_list_with_lengths_of_their_own(tmp_path, record):
    paths = [make(tmp_path, 266, fiber, 590 + fiber, record=record, z=fiber / 10) for fiber in (3, 1, 2)]
    whole = io.read(tmp_path, SCHEMA)
    assert whole.ids.tolist() == ["0266-51602-0001", "0266-51602-0002", "0266-51602-0003"]
    listed = io.read(paths, SCHEMA)
    assert listed.ids.tolist() == ["0266-51602-0003", "0266-51602-0001", "0266-51602-0002"]
    for path, key in zip(paths, listed.ids, strict=True):
        alone = io.read(path, SCHEMA)
        for name in SCHEMA.names:
            np.testing.assert_array_equal(alone.parts[name].value, listed[str(key)].parts[name].value)
            np.testing.assert_array_equal(alone.parts[name].value, whole[str(key)].parts[name].value)


def test_the_rest_frame(tmp_path):
    make(tmp_path, 266, 1, z=1.0)
    make(tmp_path, 266, 2, z=1.02)
    grid = Grid(start=2000, stop=2080, size=21, unit="Angstrom")
    schema = Schema(modalities=(SPECTRUM.model_copy(update={"grid": grid, "shape": (21,)}),))
    obs = to_observations(io.read_table(tmp_path), schema, redshift="Z")
    part = obs.parts["spectrum"]
    for row, z in enumerate((1.0, 1.02)):
        seen = part.seen[row]
        assert seen.sum() > 10
        assert abs((part.value[row][seen] - 10 * (1 + z)) / part.sigma[row][seen]).max() < 5


def test_a_redshift_that_is_missing_or_useless(tmp_path):
    make(tmp_path, 266, 1, record=None)
    with pytest.raises(DataError, match="redshift above -1 in row 0 .*got nan"):
        to_observations(io.read_table(tmp_path), Schema(modalities=(SPECTRUM,)), redshift="z")
    with pytest.raises(SchemaError, match="modality with coord and grid"):
        to_observations(io.read_table(tmp_path), SCHEMA.select(["redshift"]), redshift="z")


def test_scalars_of_the_record_are_columns(tmp_path):
    make(tmp_path, 266, 1)
    make(tmp_path, 266, 2, record=None)
    table = io.read_table(tmp_path)
    np.testing.assert_array_equal(table.columns["Z_ERR"].values.astype(np.float32), np.float32([1e-3, np.nan]))
    assert "CLASS" not in table.columns
    assert "MAGS" not in table.columns


def test_the_id_comes_from_the_name_when_the_header_has_none(tmp_path):
    path = make(tmp_path, 266, 1)
    with fits.open(path, mode="update") as hdus:
        del hdus[0].header["PLATEID"]
    shutil.move(path, tmp_path / "spec-other.fits")
    assert io.read(tmp_path, SCHEMA).ids.tolist() == ["other"]


def test_gzip(tmp_path):
    import gzip

    path = make(tmp_path, 266, 1)
    zipped = tmp_path / (path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(
        io.read(zipped, SCHEMA).parts["spectrum"].value, io.read(path, SCHEMA).parts["spectrum"].value
    )
    zipped.write_bytes(zipped.read_bytes()[:-2000])
    with pytest.raises(DataError, match="readable FITS file"):
        io.read(zipped, SCHEMA)


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(DataError, match="spec-.* files in .*; got none"):
        io.read(tmp_path, SCHEMA)
    with pytest.raises(DataError, match="Expected spec-.* files; got none"):
        io.read([], SCHEMA)
    with pytest.raises(DataError, match="spectrum at .*nowhere.fits; got no such file"):
        io.read([tmp_path / "nowhere.fits"], SCHEMA)
    fits.HDUList([fits.PrimaryHDU(np.ones((3, 3)))]).writeto(tmp_path / "spec-1.fits")
    with pytest.raises(DataError, match=r"spec-1.fits: no columns flux, ivar, loglam"):
        io.read(tmp_path, SCHEMA)


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    value = rng.normal(size=(2, 41))
    value[0, 3:6] = np.nan
    spec = SPECTRUM.model_copy(update={"unit": "erg / (Angstrom s cm2)"})
    schema = Schema(modalities=(spec,))
    obs = Observations.from_arrays(
        schema, {"spectrum": value * 1e-17}, sigma={"spectrum": np.full((2, 41), 2e-18)}, ids=["a/b", "0266-51602-0001"]
    )
    paths = write_spectra(obs, "spectrum", tmp_path)
    assert sorted(path.name for path in paths) == ["spec-0266-51602-0001.fits", "spec-a_b.fits"]
    got = io.read(paths, schema)
    assert got.ids.tolist() == obs.ids.tolist()
    for field in ("value", "sigma", "state"):
        np.testing.assert_allclose(
            getattr(got.parts["spectrum"], field), getattr(obs.parts["spectrum"], field), rtol=1e-12, atol=0
        )


def test_spectra_that_cannot_be_written(tmp_path):
    plain = Schema(modalities=(ModalitySpec(name="x", shape=(2,)), ModalitySpec(name="y", grid=GRID, unit="Jy")))
    obs = Observations.from_arrays(plain, {"x": np.ones((1, 2)), "y": np.ones((1, 41))})
    with pytest.raises(SchemaError, match="grid of wavelengths for 'x'"):
        write_spectra(obs, "x", tmp_path)
    with pytest.raises(SchemaError, match="'y' in units of flux density"):
        write_spectra(obs, "y", tmp_path)
    bare = Observations.from_arrays(Schema(modalities=(SPECTRUM,)), {"spectrum": np.ones((1, 41))})
    with pytest.raises(DataError, match="error bar in every seen cell"):
        write_spectra(bare, "spectrum", tmp_path)
    assert list(tmp_path.iterdir()) == []
