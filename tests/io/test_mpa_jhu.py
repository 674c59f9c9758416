"""The MPA-JHU catalogue: columns as SkyServer calls them become what the simulator of the survey makes."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from consilience import io
from consilience.data.schema import Schema
from consilience.errors import DataError, SchemaError
from consilience.io.mpa_jhu import SCHEMA, derived, read_mpa_jhu
from consilience.io.raw import RawColumn, RawTable
from consilience.predict.tiles import conform
from consilience.simulators import sdss

IDS = [299489676975171584 + 2**11 * row for row in range(5)]  # beyond what a double holds
LINES = ("h_alpha", "h_beta", "nii_6584", "oiii_5007")


def catalogue(**changes):
    """Five galaxies: all is well, one line too faint, no line measured, no parameters, no dispersion."""
    rng = np.random.default_rng(0)
    table = Table({"specObjID": np.array(IDS), "z": [0.05, 0.06, 0.07, 0.08, 0.09], "z_err": [1e-5] * 5})
    for name, middle in (("lgm_tot", 10.5), ("sfr_tot", 0.3), ("oh", 8.9)):
        for percentile, shift in ((16, -0.2), (50, 0.0), (84, 0.1)):
            table[f"{name}_p{percentile}"] = np.array([middle + shift] * 5) + np.arange(5)
    for line in LINES:
        table[f"{line}_flux"], table[f"{line}_flux_err"] = [100.0, 50, 0, 200, 300], [2.0, 3, -1, 4, 5]
    table["oiii_5007_flux"][1] = 8.9
    for column in table.colnames[2:]:
        if column.startswith(("lgm", "oh")):
            table[column][3] = -9999
        elif column.startswith("sfr"):
            table[column][3] = np.float32(-99.9)
    table["v_disp"], table["v_disp_err"] = [200.0, 100, 69, 430, 150], [10.0, 5, 5, 5, -1]
    for band in "ugriz":
        table[f"modelFlux_{band}"], table[f"modelFluxIvar_{band}"] = rng.normal(50, 9, 5), rng.uniform(0.1, 9, 5)
    table["modelFlux_u"][2], table["modelFluxIvar_z"][1] = -9999, 0
    for name, values in changes.items():
        table[name] = values
    return table


def write(table, path):
    table.write(path)
    return path


@pytest.fixture(scope="module")
def obs(tmp_path_factory):
    return read_mpa_jhu(write(catalogue(), tmp_path_factory.mktemp("sdss") / "a.csv"))


def test_a_model_of_the_simulator_can_be_asked(obs):
    simulated = sdss._schema(None).select(("photometry", "labels", "detected"))
    assert conform(obs, simulated).schema == simulated
    for spec in simulated.modalities:
        found = obs.schema[spec.name]
        assert (found.scaling, found.ucd, found.axis) == (spec.scaling, spec.ucd, spec.axis)
        assert [cell.ucd for cell in found.cells] == [cell.ucd for cell in spec.cells]


def test_what_is_stated_is_read(obs):
    table = catalogue()
    assert obs.ids.tolist() == [str(key) for key in IDS]
    flux = np.column_stack([table[f"modelFlux_{band}"] for band in "ugriz"])
    ivar = np.column_stack([table[f"modelFluxIvar_{band}"] for band in "ugriz"])
    seen = np.ones((5, 5), bool)
    seen[2, 0] = seen[1, 4] = False
    part = obs.parts["photometry"]
    np.testing.assert_array_equal(part.seen, seen)
    np.testing.assert_allclose(part.value[seen], flux[seen])
    np.testing.assert_allclose(part.sigma[seen], ivar[seen] ** -0.5)
    labels = obs.parts["labels"]
    np.testing.assert_allclose(labels.value[:, 2], table["z"])
    np.testing.assert_allclose(labels.sigma[:, 2], 1e-5)
    measured = [0, 1, 2, 4]
    for cell, middle in ((0, 10.5), (1, 0.3), (4, 8.9)):
        np.testing.assert_array_equal(labels.seen[:, cell], [True, True, True, False, True])
        np.testing.assert_allclose(labels.value[measured, cell], middle + np.array(measured))
        np.testing.assert_allclose(labels.sigma[measured, cell], 0.15)


def test_lines_are_there_where_all_four_are_detected(obs):
    detected, labels = obs.parts["detected"], obs.parts["labels"]
    np.testing.assert_array_equal(detected.value, [1, 0, np.nan, 1, 1])
    flux, error = np.array([100, 200, 300]), np.array([2, 4, 5])
    for cell in (5, 6, 7, 8):
        np.testing.assert_array_equal(labels.seen[:, cell], [True, False, False, True, True])
        np.testing.assert_allclose(labels.value[[0, 3, 4], cell], np.log10(flux))
        rise = 0.5 * (np.log10(flux + error) - np.log10(flux - error))
        np.testing.assert_allclose(labels.sigma[[0, 3, 4], cell], rise, rtol=1e-3)


def test_black_holes_are_what_the_dispersion_says_within_its_scatter(obs):
    labels = obs.parts["labels"]
    assert labels.seen[:, 3].tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(labels.value[:2, 3], [8.32, 8.32 - 5.64 * np.log10(2)])
    rise = 5.64 * 0.5 * (np.log10(210) - np.log10(190))
    np.testing.assert_allclose(labels.sigma[:2, 3], np.hypot(0.38, rise), rtol=1e-4)


@pytest.mark.parametrize("name", ["a.parquet", "a.fits"])
def test_any_file_and_any_case(tmp_path, obs, name):
    table = catalogue()
    table.rename_columns(table.colnames, [column.upper() for column in table.colnames])
    again = read_mpa_jhu(write(table, tmp_path / name))
    assert again.ids.tolist() == obs.ids.tolist()
    for part in obs.parts:
        np.testing.assert_allclose(again.parts[part].value, obs.parts[part].value)
        np.testing.assert_array_equal(again.parts[part].state, obs.parts[part].state)


def test_a_written_table_comes_back(tmp_path, obs):
    io.write(obs, tmp_path / "b.parquet")
    again = io.read(tmp_path / "b.parquet")
    assert again.schema == obs.schema
    np.testing.assert_array_equal(again.parts["labels"].value, obs.parts["labels"].value)


def test_images_join_by_the_id(tmp_path, obs):
    path = write(catalogue(), tmp_path / "a.csv")
    fits.writeto(tmp_path / f"{IDS[2]}.fits", np.ones((3, 9, 9), np.float32))
    image = {"name": "image", "shape": (3, 5, 5), "column": "{specObjID}.fits", "unit": "nmgy"}
    joined = obs.join(io.read(path, Schema(id="specObjID", modalities=(image,))))
    assert joined.parts["image"].seen.all(axis=(1, 2, 3)).tolist() == [False, False, True, False, False]
    assert joined.ids.tolist() == obs.ids.tolist()


def test_stated_units_convert():
    table = catalogue()
    columns = {name: RawColumn(np.asarray(table[name])) for name in table.colnames}
    columns["lgm_tot_p84"] = RawColumn(columns["lgm_tot_p84"].values, "dex(Msun)")
    columns["v_disp"] = RawColumn(1e3 * columns["v_disp"].values, "m / s")
    found = derived(RawTable(columns, 5, "a.fits"), Schema.read(SCHEMA))
    np.testing.assert_allclose(found.columns["log_mbh"].values[0], 8.32)
    columns["v_disp"] = RawColumn(columns["v_disp"].values, "kg")
    with pytest.raises(SchemaError, match="column 'v_disp' of a.fits in a unit that converts to 'km / s'; got 'kg'"):
        derived(RawTable(columns, 5, "a.fits"), Schema.read(SCHEMA))


@pytest.mark.parametrize("name", ["lgm_tot_p84", "h_beta_flux_err", "v_disp", "modelFluxIvar_g", "z", "specObjID"])
def test_a_missing_column(tmp_path, name):
    table = catalogue()
    table.remove_column(name)
    with pytest.raises(DataError, match=f"Expected a column '{name}' in .*a.csv"):
        read_mpa_jhu(write(table, tmp_path / "a.csv"))


def test_wrong_numbers(tmp_path):
    path = write(catalogue(modelFluxIvar_r=[1.0, -2, 1, 1, 1]), tmp_path / "a.csv")
    with pytest.raises(DataError, match="no negative number in column 'modelFluxIvar_r' .* got -2 in row 1"):
        read_mpa_jhu(path)
    path = write(catalogue(v_disp=["fast"] * 5), tmp_path / "b.csv")
    with pytest.raises(DataError, match="Expected numbers in column 'v_disp' of .*b.csv; got text"):
        read_mpa_jhu(path)
    with pytest.raises(DataError, match="Expected a file at"):
        read_mpa_jhu(tmp_path / "nowhere.csv")
