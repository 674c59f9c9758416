"""A foreign table and a schema: sentinels, error bars, limits, masks, units, lengths and coordinates."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Column, MaskedColumn, Table

from consilience import io
from consilience.data.observations import State
from consilience.data.schema import Cell, Grid, ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.io.columns import to_observations
from consilience.io.conversion import error_scale, linear_map
from consilience.io.raw import RawColumn, RawTable


def table(**columns):
    raw = {name: c if isinstance(c, RawColumn) else RawColumn(np.asarray(c)) for name, c in columns.items()}
    return RawTable(raw, len(next(iter(raw.values())).values), "a.parquet")


def cells(*found, **fields):
    return Schema(modalities=(ModalitySpec(name="labels", cells=found, **fields),))


def array(**fields):
    return Schema(modalities=(ModalitySpec(name="x", **fields),))


def ragged(*rows):
    found = np.empty(len(rows), dtype=object)
    for at, row in enumerate(rows):
        found[at] = np.asarray(row, dtype=float)
    return found


def test_a_row_without_anything_special():
    obs = to_observations(table(id=[7, 8], m=[1, 2], flux=np.ones((2, 3))), cells(Cell(name="m")))
    assert obs.ids.tolist() == ["7", "8"]
    assert obs.parts["labels"].value.tolist() == [[1.0], [2.0]]
    assert obs.parts["labels"].sigma is None
    assert (obs.total, obs.index.tolist()) == (2, [0, 1])


def test_row_numbers_serve_as_ids_unless_the_schema_names_a_column():
    assert to_observations(table(m=[1.0, 2.0]), cells(Cell(name="m"))).ids.tolist() == ["0", "1"]
    schema = Schema(modalities=cells(Cell(name="m")).modalities, id="nmae", group="star")
    with pytest.raises(DataError, match="column 'nmae' .*Did you mean 'name'"):
        to_observations(table(m=[1.0, 2.0], name=["a", "b"]), schema)
    with pytest.raises(DataError, match="column 'star'"):
        to_observations(table(m=[1.0, 2.0], nmae=["a", "b"]), schema)
    got = to_observations(table(m=[1.0, 2.0], nmae=["a", "b"], star=[4, 4]), schema)
    assert got.group.tolist() == ["4", "4"]


def test_sentinels_of_the_cell_and_of_the_modality_also_in_float32():
    columns = table(m=np.float32([-99.9, 1, -999, 2]), e=np.float32([-99.9, 1, 1, -999]), z=[-99.9, -999, 3, 4])
    schema = cells(Cell(name="m", sigma="e", sentinels=(-99.9,)), Cell(name="z"), sentinels=(-999,))
    part = to_observations(columns, schema).parts["labels"]
    assert part.seen.tolist() == [[False, True], [True, False], [False, True], [True, True]]
    assert part.value[0, 1] == -99.9
    np.testing.assert_array_equal(part.sigma[:, 0], [np.nan, 1, np.nan, np.nan])
    np.testing.assert_array_equal(part.sigma[:, 1], np.full(4, np.nan))


def test_inverse_variances():
    schema = array(shape=(3,), ivar="w")
    part = to_observations(table(x=np.ones((2, 3)), w=[[4, 0, np.nan], [1, 16, 0.25]]), schema).parts["x"]
    assert part.seen.tolist() == [[True, False, False], [True, True, True]]
    np.testing.assert_array_equal(part.sigma, [[0.5, np.nan, np.nan], [1, 0.25, 2]])


def test_limits():
    schema = cells(Cell(name="m", limit="side"))
    part = to_observations(table(m=[1, 2, 3, np.nan, 5], side=[-1, 0, 1, -1, np.nan]), schema).parts["labels"]
    assert part.state[:, 0].tolist() == [State.BELOW, State.MEASURED, State.ABOVE, State.UNSEEN, State.MEASURED]
    with pytest.raises(DataError, match="-1, 0 or 1 in the limit column 'side' .*got 2 in row 1"):
        to_observations(table(m=[1, 2], side=[0, 2]), schema)


def test_masks():
    schema = array(shape=(2,), mask="bad")
    part = to_observations(table(x=np.ones((2, 2)), bad=[[0, 16], [1, 0]]), schema).parts["x"]
    assert part.seen.tolist() == [[True, False], [False, True]]


def test_units_are_converted_with_their_errors():
    columns = table(
        m=RawColumn(np.array([1.0, 2.0]), "km"),
        e=RawColumn(np.array([0.5, 0.5]), "m"),
        x=RawColumn(np.ones((2, 2)), "nm"),
        w=RawColumn(np.full((2, 2), 4.0), "1 / nm2"),
    )
    schema = Schema(
        modalities=(
            ModalitySpec(name="labels", cells=(Cell(name="m", sigma="e", unit="m"),)),
            ModalitySpec(name="x", shape=(2,), ivar="w", unit="Angstrom"),
        )
    )
    obs = to_observations(columns, schema)
    assert obs.parts["labels"].value.tolist() == [[1000], [2000]]
    assert obs.parts["labels"].sigma.tolist() == [[0.5], [0.5]]
    np.testing.assert_allclose(obs.parts["x"].value, 10)
    np.testing.assert_allclose(obs.parts["x"].sigma, 5)


def test_errors_without_a_unit_share_that_of_the_value():
    columns = table(
        m=RawColumn(np.array([1.0]), "km"), e=[0.5], x=RawColumn(np.ones((1, 2)), "nm"), w=np.full((1, 2), 4.0)
    )
    schema = Schema(
        modalities=(
            ModalitySpec(name="labels", cells=(Cell(name="m", sigma="e"),), unit="m"),
            ModalitySpec(name="x", shape=(2,), ivar="w", unit="Angstrom"),
        )
    )
    obs = to_observations(columns, schema)
    assert obs.parts["labels"].sigma.tolist() == [[500]]
    np.testing.assert_allclose(obs.parts["x"].sigma, 5)


def test_logarithmic_units():
    assert linear_map("dex(Msun)", "dex(kg)", "m") == pytest.approx((1, np.log10(1.98840987e30)))
    assert error_scale("mag", "mag(AB)", "e") == 1
    assert error_scale("mag(AB)", "mag(AB)", "e") == 1
    for stated, wanted in (("mag(AB)", "Jy"), ("mag", "dex"), ("mag", ""), ("deg_C", "K")):
        with pytest.raises(SchemaError, match="Expected m in a unit that converts to"):
            linear_map(stated, wanted, "m")


def test_wrong_units_name_the_column():
    columns = table(m=RawColumn(np.ones(1), "km"), e=RawColumn(np.ones(1), "s"), n=RawColumn(np.ones(1), "blorks"))
    with pytest.raises(SchemaError, match="column 'm' of a.parquet in a unit that converts to 's'; got 'km'"):
        to_observations(columns, cells(Cell(name="m", unit="s")))
    with pytest.raises(SchemaError, match="column 'm' .*'dimensionless'; got 'km'"):
        to_observations(columns, cells(Cell(name="m")))
    with pytest.raises(SchemaError, match="column 'e' .*'km'; got 's'"):
        to_observations(columns, cells(Cell(name="m", sigma="e", unit="km")))
    with pytest.raises(SchemaError, match="column 'n' .*got 'blorks', which astropy does not know"):
        to_observations(columns, cells(Cell(name="n", unit="km")))


def test_cells_may_share_one_array_column_and_keep_their_units():
    schema = cells(Cell(name="a", unit="m"), Cell(name="b", unit="cm"), column="y", sigma="e")
    columns = table(y=RawColumn(np.array([[1.0, 2.0]]), "km"), e=np.array([[0.5, np.nan]]))
    part = to_observations(columns, schema).parts["labels"]
    assert part.value.tolist() == [[1e3, 2e5]]
    np.testing.assert_array_equal(part.sigma, [[500, np.nan]])


def test_images_may_be_flat_and_scalars_may_be_columns():
    part = to_observations(table(x=np.arange(12).reshape(2, 6)), array(shape=(2, 3))).parts["x"]
    assert part.value[1].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert to_observations(table(x=[3.0, 4.0]), array()).parts["x"].value.tolist() == [3, 4]
    with pytest.raises(DataError, match=r"'x' with event shape \(2, 3\); got \(5,\)"):
        to_observations(table(x=np.ones((2, 5))), array(shape=(2, 3)))


def test_arrays_spread_over_columns():
    part = to_observations(table(x_0=[1.0, 2.0], x_1=RawColumn(np.array([3.0, 4.0]))), array(shape=(2,))).parts["x"]
    assert part.value.tolist() == [[1, 3], [2, 4]]


def test_short_rows_are_absent_beyond_their_length():
    columns = table(x=ragged([1, 2], [3], [], [4, np.nan, 6]), t=ragged([0, 1], [5], [], [1, 2, 9]))
    part = to_observations(columns, array(shape=(4,), coord="t")).parts["x"]
    assert part.extent.tolist() == [2, 1, 4, 3]
    assert part.state.tolist() == [[2, 2, 0, 0], [2, 0, 0, 0], [1, 1, 1, 1], [2, 1, 2, 0]]
    np.testing.assert_array_equal(part.coord[3], [1, np.nan, 9, np.nan])


def test_rows_of_their_own_length_need_a_grid_or_room():
    columns = table(x=ragged([1, 2], [3, 4, 5]))
    with pytest.raises(DataError, match=r"rows of shape \(2,\) for modality 'x' .*up to 3. Declare `coord` and `grid`"):
        to_observations(columns, array(shape=(2,)))
    with pytest.raises(DataError, match="Declare `coord`"):
        to_observations(columns, array(grid=Grid(start=0, stop=5, size=6)))


GRID = Grid(start=1000, stop=1100, size=11, unit="Angstrom")


def test_spectra_are_resampled_to_the_grid_in_its_unit():
    wave = [np.linspace(98, 111, 131), np.linspace(100, 106, 50)]
    columns = table(
        flux=ragged(2 * wave[0], 3 * wave[1]),
        wave=RawColumn(ragged(*wave), "nm"),
        error=ragged(np.ones(131), np.ones(50)),
    )
    schema = array(column="flux", sigma="error", coord="wave", grid=GRID)
    part = to_observations(columns, schema).parts["x"]
    np.testing.assert_allclose(part.value[0], 2 * GRID.centres() / 10, rtol=1e-6)
    np.testing.assert_allclose(part.value[1, 1:6], 3 * GRID.centres()[1:6] / 10, rtol=1e-3)
    assert part.seen.sum(axis=1).tolist() == [11, 7]
    assert (part.sigma[0] < 0.5).all()


def test_a_shared_wavelength_axis_gives_what_one_per_row_gives():
    rng = np.random.default_rng(0)
    wave, flux = np.linspace(990, 1110, 40), rng.normal(size=(3, 40))
    flux[1, 20:24] = np.nan
    schema = array(column="flux", coord="wave", grid=GRID)
    own = to_observations(table(flux=flux, wave=np.tile(wave, (3, 1))), schema)
    shared = to_observations(RawTable({"flux": RawColumn(flux), "wave": RawColumn(wave)}, 3, "a.npz"), schema)
    jittered = np.tile(wave, (3, 1))
    jittered[2] += 1e-9
    alone = to_observations(table(flux=flux, wave=jittered), schema)
    np.testing.assert_array_equal(own.parts["x"].value, shared.parts["x"].value)
    np.testing.assert_allclose(own.parts["x"].value, alone.parts["x"].value, rtol=1e-6)


def test_spectra_on_the_grid_already_are_left_alone():
    flux = np.random.default_rng(0).normal(size=(2, 11))
    flux[0, 3] = np.nan
    columns = table(flux=flux, wave=np.tile(GRID.centres() * (1 + 1e-12), (2, 1)))
    part = to_observations(columns, array(column="flux", coord="wave", grid=GRID)).parts["x"]
    np.testing.assert_array_equal(part.value, flux)


def test_coordinates_that_do_not_ascend_name_the_row():
    wave = np.tile(np.linspace(990, 1110, 40), (3, 1))
    wave[1, 7] = wave[1, 6]
    columns = table(id=["a", "b", "c"], flux=np.ones((3, 40)), wave=wave)
    with pytest.raises(DataError, match=r"strictly ascending 'wave' in row 1 \(id 'b'\) of a.parquet"):
        to_observations(columns, array(column="flux", coord="wave", grid=GRID))


def test_padded_coordinates_are_no_pixels():
    wave = np.tile(np.linspace(990, 1110, 40), (2, 1))
    flux = np.ones((2, 40))
    wave[1, 30:], flux[1, 30:] = np.nan, 7
    part = to_observations(table(flux=flux, wave=wave), array(column="flux", coord="wave", grid=GRID)).parts["x"]
    assert part.seen[0].all()
    assert set(part.value[1][part.seen[1]].round(9)) == {1.0}


@pytest.mark.parametrize(
    ("columns", "schema", "message"),
    [
        ({"flx": np.ones(2)}, array(column="flux"), "column 'flux' in a.parquet; .*Did you mean 'flx'"),
        ({"x": np.array(["a", "b"], object)}, array(), "numbers in column 'x' of a.parquet; got text"),
        ({"x": [1.0, np.nan]}, array(sigma="e"), "column 'e'"),
        ({"x": np.ones((2, 2)), "e": np.ones((2, 3))}, array(shape=(2,), sigma="e"), r"shape \(2,\) in column 'e'"),
        ({"x": [1.0, 1.0], "e": [1.0, -1.0]}, array(sigma="e"), "no negative number in column 'e' .*-1 in row 1"),
        ({"x": [1.0, 1.0], "e": [1.0, -1.0]}, array(ivar="e"), "no negative number in column 'e' .*-1 in row 1"),
        ({"x": [np.nan, np.nan]}, array(), "every cell of modality 'x' is unseen"),
        ({"x": [-99.0, -99.0]}, array(sentinels=(-99,)), "every cell of modality 'x' is unseen"),
        ({"x": []}, array(), "at least one row in a.parquet; got an empty table"),
        ({"x": [1.0, 2.0], "id": ["a", "a "]}, array(), "unique ids; got 'a' in rows 0 and 1"),
        ({"x": [1.0, 2.0], "id": [1.0, np.nan]}, array(), "an id in every row; got .*nan.* in row 1"),
        ({"x": [1.0, 2.0], "id": np.array(["a", None])}, array(), "an id in every row; got None in row 1"),
        ({"x": [1.0, 2.0], "y": [1.0, 2.0, 3.0]}, array(sigma="y"), "2 rows in column 'y' of a.parquet; got 3"),
        ({"m": np.ones((2, 3))}, cells(Cell(name="m")), "one number per row in column 'm'"),
        ({"x": [1.0, -1.0]}, array(kind="positive"), "positive values in 'x'"),
    ],
)
def test_bad_columns(columns, schema, message):
    with pytest.raises(DataError, match=message):
        to_observations(table(**columns), schema)


def test_a_grid_and_coordinates_need_one_spectrum_per_row():
    columns = table(x=np.ones((2, 3, 11)), wave=np.ones((2, 3, 11)))
    with pytest.raises(SchemaError, match="one spectrum per row for 'x'"):
        to_observations(columns, array(shape=(3, 11), coord="wave", grid=GRID))


def test_parquet_of_other_tools(tmp_path):
    columns = {
        "id": pa.array([3, 4, 9223372036854775807], pa.int64()),
        "n": pa.array([1, None, 3], pa.int32()),
        "ok": pa.array([True, None, False]),
        "name": pa.array(["a", None, "c"]).dictionary_encode(),
        "flux": pa.array([[1.0, None], None, [3.0, 4.0]], pa.list_(pa.float32())),
        "own": pa.array([[1.0], [2.0, 3.0], None], pa.large_list(pa.float64())),
        "image": pa.array([[[1, 2], [3, 4]], None, [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.int16(), 2), 2)),
        "when": pa.array([0, 1, None], pa.timestamp("s")),
        "price": pa.array([1, 2, None], pa.decimal128(5, 2)),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
    }
    schema = pa.schema(
        [
            pa.field(name, column.type, metadata={"unit": "Jy"} if name == "flux" else None)
            for name, column in columns.items()
        ]
    )
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet", row_group_size=2)
    spec = {
        "n": ModalitySpec(name="n"),
        "ok": ModalitySpec(name="ok", kind="binary"),
        "flux": ModalitySpec(name="flux", shape=(2,), unit="mJy"),
        "own": ModalitySpec(name="own", shape=(2,)),
        "image": ModalitySpec(name="image", shape=(2, 2)),
        "price": ModalitySpec(name="price"),
    }
    obs = io.read(tmp_path / "a.parquet", Schema(modalities=tuple(spec.values())))
    assert obs.ids.tolist() == ["3", "4", "9223372036854775807"]
    expected = {
        "n": [1, np.nan, 3],
        "ok": [1, np.nan, 0],
        "flux": [[1000, np.nan], [np.nan, np.nan], [3000, 4000]],
        "own": [[1, np.nan], [2, 3], [np.nan, np.nan]],
        "image": [[[1, 2], [3, 4]], [[np.nan] * 2] * 2, [[5, 6], [7, 8]]],
        "price": [1, 2, np.nan],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(obs.parts[name].value, value, err_msg=name)
    assert obs.parts["own"].extent.tolist() == [1, 2, 2]


@pytest.mark.parametrize("suffix", ["fits", "ecsv"])
def test_masked_columns_of_astropy(tmp_path, suffix):
    raw = Table(
        {
            "id": ["a", "b"],
            "n": MaskedColumn([1, 2], mask=[False, True]),
            "m": MaskedColumn([1.5, 2.5], mask=[True, False], unit="mag"),
            "flux": MaskedColumn([[1.0, 2.0], [3.0, 4.0]], mask=[[False, True], [False, False]], unit="Jy"),
        }
    )
    raw.write(tmp_path / f"a.{suffix}")
    schema = Schema(
        modalities=(
            ModalitySpec(name="labels", cells=(Cell(name="n"), Cell(name="m", unit="mag"))),
            ModalitySpec(name="flux", shape=(2,), unit="Jy"),
        )
    )
    obs = io.read(tmp_path / f"a.{suffix}", schema)
    np.testing.assert_array_equal(obs.parts["labels"].value, [[1, np.nan], [np.nan, 2.5]])
    np.testing.assert_array_equal(obs.parts["flux"].value, [[1, np.nan], [3, 4]])


@pytest.mark.parametrize("suffix", ["fits", "ecsv"])
def test_rows_of_their_own_length_in_astropy_tables(tmp_path, suffix):
    from astropy.io import fits

    rows = [np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])]
    if suffix == "fits":
        column = fits.Column("x", "PD()", array=np.array(rows, dtype=object))
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])]).writeto(tmp_path / "a.fits")
    else:
        Table([Column(np.array(rows, dtype=object), name="x")]).write(tmp_path / "a.ecsv")
    part = io.read(tmp_path / f"a.{suffix}", array(shape=(3,))).parts["x"]
    np.testing.assert_array_equal(part.value, [[1, 2, np.nan], [3, 4, 5]])
    assert part.extent.tolist() == [2, 3]


def test_csv_of_other_tools(tmp_path):
    (tmp_path / "a.csv").write_text('name,m,e\n"x, y",1.5,-99\nb,,0.5\nc,3,0.25\n')
    schema = Schema(modalities=cells(Cell(name="m", sigma="e", sentinels=(-99,), unit="mag")).modalities, id="name")
    obs = io.read(tmp_path / "a.csv", schema)
    assert obs.ids.tolist() == ["x, y", "b", "c"]
    np.testing.assert_array_equal(obs.parts["labels"].value, [[1.5], [np.nan], [3]])
    np.testing.assert_array_equal(obs.parts["labels"].sigma, [[np.nan], [np.nan], [0.25]])


def test_ids_in_csv_are_kept_as_they_are_spelt(tmp_path):
    (tmp_path / "a.csv").write_text('id,star,m\n007,01,1\n1e5,1,2\n"NA",0x1,3\n')
    schema = Schema(modalities=cells(Cell(name="m")).modalities, group="star")
    obs = io.read(tmp_path / "a.csv", schema)
    assert obs.ids.tolist() == ["007", "1e5", "NA"]
    assert obs.group.tolist() == ["01", "1", "0x1"]


def test_npz_of_other_tools(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz", wave=GRID.centres(), flux=rng.normal(size=(4, 11)), names=np.array(list("abcd")), h=0.7
    )
    schema = Schema(modalities=(ModalitySpec(name="flux", grid=GRID, coord="wave"),), id="names")
    obs = io.read(tmp_path / "a.npz", schema)
    assert obs.ids.tolist() == list("abcd")
    assert obs.parts["flux"].seen.all()


def test_the_schema_may_be_a_file(tmp_path):
    (tmp_path / "a.csv").write_text("id,m\n1,2\n")
    (tmp_path / "a.toml").write_text('[modalities.labels]\ncells = [{name = "m"}]\n')
    assert io.read(tmp_path / "a.csv", tmp_path / "a.toml").parts["labels"].value.tolist() == [[2]]
    (tmp_path / "b.toml").write_text('[modalities.labels]\nclels = [{name = "m"}]\n')
    with pytest.raises(SchemaError, match="Did you mean 'cells'"):
        io.read(tmp_path / "a.csv", str(tmp_path / "b.toml"))
