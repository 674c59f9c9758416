"""Bad files, whole files, described files."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience import io
from consilience.data.observations import Observations
from consilience.data.schema import Cell, ModalitySpec, Schema
from consilience.errors import ConsilienceError, DataError, SchemaError
from consilience.io.atomic import atomic_path

FORMATS = ("parquet", "csv", "ecsv", "fits", "npz")
LOSSLESS = ("parquet", "ecsv", "fits", "npz")
SCHEMA = Schema(
    modalities=(
        ModalitySpec(name="labels", cells=(Cell(name="m", unit="mag"), Cell(name="z"))),
        ModalitySpec(name="spectrum", shape=(6,), unit="Jy"),
    )
)


def observations(seed=0, size=20):
    rng = np.random.default_rng(seed)
    values = {"labels": rng.normal(size=(size, 2)), "spectrum": rng.normal(size=(size, 6))}
    values["spectrum"][0, 0] = np.nan
    return Observations.from_arrays(SCHEMA, values, ids=[f"object-{i}" for i in range(size)])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_file(tmp_path, suffix):
    with pytest.raises(DataError, match=f"Expected a file at .*nowhere.{suffix}; got none"):
        io.read(tmp_path / f"nowhere.{suffix}", SCHEMA)


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"ends in one of \.parquet, .*; got .*a.xlsx"):
        io.read(tmp_path / "a.xlsx", SCHEMA)
    with pytest.raises(DataError, match=r"ends in one of \.parquet, .*; got .*a.xlsx"):
        io.write(observations(), tmp_path / "a.xlsx")


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_and_one_of_another_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"a.{suffix}"):
        io.read(path, SCHEMA)
    other = "npz" if suffix != "npz" else "parquet"
    io.write(observations(), tmp_path / f"b.{other}")
    shutil.copy(tmp_path / f"b.{other}", path)
    with pytest.raises(DataError, match=f"a.{suffix}"):
        io.read(path, SCHEMA)


@pytest.mark.parametrize("suffix", LOSSLESS)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.none() | st.integers(0, 7))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_one_clear_error_or_is_read(tmp_path, suffix, where, bit):
    path, obs = tmp_path / f"a.{suffix}", observations(size=3)
    io.write(obs, path)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    if bit is None:
        data = data[:at]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    got, message = None, ""
    try:
        got = io.read(path)
    except ConsilienceError as error:
        message = str(error)
    if got is None:
        assert "\n" not in message
        assert f"a.{suffix}" in message
        return
    assert bit is not None, "a truncated file was read"
    if suffix in ("fits", "npz"):  # formats with a checksum over everything
        for name, part in obs.parts.items():
            np.testing.assert_array_equal(got.parts[name].value, part.value)


def test_a_csv_with_a_broken_last_line(tmp_path):
    io.write(observations().select("labels"), tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text[: text.rindex(",")])
    with pytest.raises(DataError, match=r"readable CSV file; got .*a.csv"):
        io.read(tmp_path / "a.csv", SCHEMA.select(["labels"]))


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_table(tmp_path, suffix):
    from astropy.table import Table

    empty = Table({"id": np.zeros(0, "U1"), "x": np.zeros(0)})
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, id=empty["id"], x=empty["x"])
    elif suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": pa.array([], pa.string()), "x": pa.array([], pa.float64())}), path)
    else:
        empty.write(path)
    schema = Schema(modalities=(ModalitySpec(name="x"),))
    with pytest.raises(DataError, match=f"at least one row in .*a.{suffix}; got an empty table"):
        io.read(path, schema)


def test_every_error_names_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("id,x\n1,2\n1,3\n")
    with pytest.raises(DataError, match=r"a.csv: Expected unique ids; got '1' in rows 0 and 1"):
        io.read(tmp_path / "a.csv", Schema(modalities=(ModalitySpec(name="x"),)))


def test_a_fits_file_without_a_table(tmp_path):
    from astropy.io import fits

    fits.HDUList([fits.PrimaryHDU(np.ones((3, 3)))]).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match="a.fits: no table among its extensions"):
        io.read(tmp_path / "a.fits", SCHEMA)


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2), words=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"a.npz: Object arrays cannot be loaded when allow_pickle=False"):
        io.read(tmp_path / "a.npz", SCHEMA)
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match=r"b.npz: one bare array instead of an archive"):
        io.read(tmp_path / "b.npz", SCHEMA)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_foreign_file_needs_a_schema_and_lists_its_columns(tmp_path, suffix):
    from astropy.table import Table

    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, mass=np.ones(2), z=np.ones(2))
    elif suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"mass": [1.0], "z": [2.0]}), path)
    else:
        Table({"mass": [1.0], "z": [2.0]}).write(path)
    with pytest.raises(SchemaError, match=r"Expected a schema for .*; it has the columns \['mass', 'z'\]"):
        io.read(path)


def test_a_column_that_another_tool_dropped_or_bent(tmp_path):
    import pyarrow.parquet as pq

    io.write(observations(), tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["m"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'm' in .*b.parquet"):
        io.read(tmp_path / "b.parquet")
    at = table.schema.get_field_index("spectrum")
    pq.write_table(table.set_column(at, "spectrum", table["m"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"20 rows of shape \(6,\) in column 'spectrum'"):
        io.read(tmp_path / "c.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="at least one row"):
        io.read(tmp_path / "d.parquet")
    metadata = {b"consilience.schema": b"{"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="schema inside .*e.parquet; got broken JSON"):
        io.read(tmp_path / "e.parquet")
    metadata = {b"consilience.schema": b'{"modalities": [], "idd": "x"}'}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "f.parquet")
    with pytest.raises(SchemaError, match="f.parquet, the schema inside"):
        io.read(tmp_path / "f.parquet")


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_another_schema_reads_our_file_as_foreign(tmp_path, suffix):
    io.write(observations(), tmp_path / f"a.{suffix}")
    schema = Schema(modalities=(ModalitySpec(name="magnitude", cells=(Cell(name="g", column="m", unit="mag"),)),))
    obs = io.read(tmp_path / f"a.{suffix}", schema)
    np.testing.assert_array_equal(obs.parts["magnitude"].value, observations().parts["labels"].value[:, :1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    io.write(observations(0), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)  # the new file is written by then
    with pytest.raises(OSError, match="disk full"):
        io.write(observations(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    monkeypatch.undo()
    io.write(observations(1), path)
    assert path.read_bytes() != before


def test_the_old_file_stays_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "half"

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("broken")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "half"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_that_does_not_exist(tmp_path, suffix):
    with pytest.raises(DataError, match="existing folder for .*nowhere"):
        io.write(observations(), tmp_path / "nowhere" / f"a.{suffix}")


def test_a_file_in_words(tmp_path):
    from astropy.table import MaskedColumn, Table

    table = Table(
        {
            "name": MaskedColumn(["a", "b", "c"], mask=[False, True, False]),
            "m": MaskedColumn([1.0, np.nan, 2.0], mask=[True, False, False], unit="mag"),
            "n": [1, 2, 3],
            "x": np.array([np.ones(1), np.ones(2), np.full(3, np.nan)], dtype=object),
        }
    )
    table.write(tmp_path / "a.ecsv")
    found = io.describe(tmp_path / "a.ecsv")
    assert (found.rows, found.schema) == (3, None)
    assert [(c.name, c.dtype, c.shape, c.unit, c.missing) for c in found.columns] == [
        ("name", "text", (), "", 1),
        ("m", "float64", (), "mag", 2),
        ("n", "int64", (), "", 0),
        ("x", "float64", (-1,), "", 3),
    ]


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_our_own_file_in_words(tmp_path, suffix):
    io.write(observations(), tmp_path / f"a.{suffix}")
    found = io.describe(tmp_path / f"a.{suffix}")
    assert found.rows == 20
    assert found.schema == SCHEMA
    columns = {column.name: column for column in found.columns}
    assert list(columns) == ["id", "m", "z", "spectrum"]
    assert (columns["spectrum"].shape, columns["spectrum"].missing) == ((6,), 1)


def test_importing_the_readers_is_light():
    code = (
        "import sys, consilience.io; "
        "heavy = {'torch', 'pydantic', 'astropy', 'pyarrow', 'matplotlib'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
