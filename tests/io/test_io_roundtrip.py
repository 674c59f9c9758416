"""What is written is what is read: every array, name, unit and identifier, in every format."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consilience import io
from consilience.data.observations import Observations, State, modality
from consilience.data.samples import Samples
from consilience.data.schema import Cell, Grid, ModalitySpec, Schema
from consilience.errors import DataError, SchemaError

LOSSLESS = ("parquet", "ecsv", "fits", "npz")
GRID = Grid(start=1000, stop=2000, size=4, unit="Angstrom", spacing="log")
SCHEMA = Schema(
    modalities=(
        ModalitySpec(name="spectrum", grid=GRID, unit="1e-17 erg / (Angstrom s cm2)", ucd="phot.flux.density;em.wl"),
        ModalitySpec(name="labels", cells=(Cell(name="log_mbh", unit="dex(Msun)", ucd="phys.mass"), Cell(name="z"))),
        ModalitySpec(name="image", shape=(2, 3), unit="Jy"),
        ModalitySpec(name="spikes", shape=(3,), kind="count"),
        ModalitySpec(name="flag", kind="binary"),
    ),
    group="star",
)
ARRAYS = ("value", "state", "sigma", "coord", "exposure", "extent")


def rich() -> Observations:
    size = 5
    rng = np.random.default_rng(1)
    values = {
        "spectrum": rng.normal(size=(size, 4)),
        "labels": rng.normal(size=(size, 2)),
        "image": rng.normal(size=(size, 2, 3)) * 1e-300,
        "spikes": rng.poisson(3, size=(size, 3)).astype(float),
        "flag": rng.integers(0, 2, size=size).astype(float),
    }
    values["spectrum"][0, 2] = values["image"][1, 1, 1] = np.nan
    sigma = {"spectrum": rng.uniform(0.1, 1, (size, 4)), "labels": np.full((size, 2), np.nan)}
    sigma["labels"][0] = 0.25, 0.0
    state = {"labels": np.full((size, 2), State.MEASURED)}
    state["labels"][:4] = [[2, 3], [4, 2], [1, 2], [0, 2]]
    ids = ["007", "J0042-0107", "a b", "9223372036854775807", "x,y"]
    obs = Observations.from_arrays(SCHEMA, values, sigma=sigma, state=state, ids=ids, group=list("aabbc"))
    spikes = modality(
        SCHEMA["spikes"],
        values["spikes"],
        coord=np.tile(np.arange(3.0), (size, 1)),
        exposure=np.full((size, 3), 0.02),
        extent=np.array([1, 2, 3, 3, 3]),
    )
    whole = {"domain": np.array([0, 0, 1, 1, 0]), "pair": np.array([-1, 4, 4, -1, -1])}
    return replace(obs, parts={**obs.parts, "spikes": spikes}, **whole)


def assert_same(got: Observations, expected: Observations) -> None:
    assert got.schema == expected.schema
    assert got.ids.tolist() == expected.ids.tolist()
    for field in ("group", "domain", "pair"):
        ours, theirs = getattr(got, field), getattr(expected, field)
        assert (ours is None) == (theirs is None)
        assert ours is None or ours.tolist() == theirs.tolist()
    for name in expected.schema.names:
        for field in ARRAYS:
            ours, theirs = getattr(got.parts[name], field), getattr(expected.parts[name], field)
            assert (ours is None) == (theirs is None), (name, field)
            if theirs is not None:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {field}", strict=True)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_everything_comes_back(tmp_path, suffix):
    obs = rich()
    io.write(obs, tmp_path / f"a.{suffix}")
    assert_same(io.read(tmp_path / f"a.{suffix}"), obs)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_the_schema_may_be_given_and_may_ask_for_less(tmp_path, suffix):
    obs = rich()
    io.write(obs, str(tmp_path / f"a.{suffix}"))
    assert_same(io.read(tmp_path / f"a.{suffix}", SCHEMA), obs)
    fewer = SCHEMA.select(["labels", "spectrum"])
    got = io.read(tmp_path / f"a.{suffix}", fewer)
    assert_same(got, obs.select("labels", "spectrum"))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_what_was_hidden_on_purpose_stays_hidden(tmp_path, suffix):
    obs = rich().hide("labels")
    io.write(obs, tmp_path / f"a.{suffix}")
    assert_same(io.read(tmp_path / f"a.{suffix}"), obs)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_one_row(tmp_path, suffix):
    obs = rich()[:1]
    io.write(obs, tmp_path / f"a.{suffix}")
    assert_same(io.read(tmp_path / f"a.{suffix}"), obs)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_names_that_collide_stay_apart(tmp_path, suffix):
    schema = Schema(
        modalities=(
            ModalitySpec(name="a", cells=(Cell(name="x"), Cell(name="X"), Cell(name="x_sigma"), Cell(name="id"))),
            ModalitySpec(name="b", cells=(Cell(name="x"), Cell(name="file"))),
            ModalitySpec(name="group", shape=(1,)),
            ModalitySpec(name="domain", shape=(2,)),
        )
    )
    rng = np.random.default_rng(0)
    values = {spec.name: rng.normal(size=(3, *spec.shape)) for spec in schema.modalities}
    sigma = {"a": rng.uniform(1, 2, (3, 4)), "b": rng.uniform(1, 2, (3, 2))}
    obs = Observations.from_arrays(schema, values, sigma=sigma, ids="pqr", group="uuv")
    obs = replace(obs, domain=np.array([0, 1, 1]))
    io.write(obs, tmp_path / f"a.{suffix}")
    assert_same(io.read(tmp_path / f"a.{suffix}"), obs)


LETTERS = st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)
IDS = st.text(LETTERS, max_size=6).map(str.strip).filter(lambda text: text not in ("", "nan", "None", "--", "<NA>"))


@st.composite
def tables(draw: st.DrawFn) -> Observations:
    ids = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    shape = (len(ids), 2)
    numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
    errors = st.floats(min_value=0) | st.just(np.nan)
    spec = ModalitySpec(name="x", cells=(Cell(name="p", unit="mag(AB)"), Cell(name="q", unit="km / s")))
    return Observations.from_arrays(
        Schema(modalities=(spec, ModalitySpec(name="y", shape=(2,)))),
        {"x": draw(hnp.arrays(float, shape, elements=numbers)), "y": draw(hnp.arrays(float, shape, elements=numbers))},
        sigma={"x": draw(hnp.arrays(float, shape, elements=errors))},
        state={"x": draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 4)))},
        ids=ids,
    )


@pytest.mark.parametrize("suffix", LOSSLESS)
@given(obs=tables())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_comes_back(tmp_path, suffix, obs):
    io.write(obs, tmp_path / f"a.{suffix}")
    assert_same(io.read(tmp_path / f"a.{suffix}"), obs)


@pytest.mark.parametrize("suffix", ["parquet", "ecsv", "fits"])
def test_other_tools_see_units_and_ucds(tmp_path, suffix):
    io.write(rich(), tmp_path / f"a.{suffix}")
    table = io.read_table(tmp_path / f"a.{suffix}")
    assert table.columns["spectrum"].ucd == "phot.flux.density;em.wl"
    assert table.columns["log_mbh"].ucd == "phys.mass"
    from astropy import units

    assert units.Unit(table.columns["log_mbh"].unit) == units.Unit("dex(Msun)")
    assert units.Unit(table.columns["spectrum_sigma"].unit) == units.Unit("1e-17 erg / (Angstrom s cm2)")


def test_fits_opens_in_astropy_with_its_units(tmp_path):
    from astropy.table import Table

    io.write(rich().select("image", "flag"), tmp_path / "a.fits")
    table = Table.read(tmp_path / "a.fits", hdu=1)
    assert str(table["image"].unit) == "Jy"
    assert table["image"].shape == (5, 2, 3)


def test_csv_needs_its_schema_and_then_gives_values_errors_and_limits(tmp_path):
    spec = ModalitySpec(
        name="labels", cells=(Cell(name="m", sigma="m_error", limit="m_limit", unit="mag"), Cell(name="z"))
    )
    schema = Schema(modalities=(spec, ModalitySpec(name="spectrum", grid=GRID, ivar="ivar", coord="wave", mask="bad")))
    rng = np.random.default_rng(3)
    values = {"labels": rng.normal(size=(3, 2)), "spectrum": rng.normal(size=(3, 4))}
    values["labels"][1, 1] = values["spectrum"][2, 0] = np.nan
    sigma = {"spectrum": np.full((3, 4), 0.5), "labels": np.array([[0.1, np.nan]] * 3)}
    state = {"labels": np.array([[2, 2], [3, 2], [4, 2]])}
    obs = Observations.from_arrays(schema, values, sigma=sigma, state=state, ids=["a", "b", "c"])
    io.write(obs, tmp_path / "a.csv")
    with pytest.raises(SchemaError, match="Expected a schema for .*a.csv.*'m_error'"):
        io.read(tmp_path / "a.csv")
    assert_same(io.read(tmp_path / "a.csv", schema), obs)


def test_csv_refuses_what_it_cannot_hold(tmp_path):
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(2,)),))
    limits = Observations.from_arrays(schema, {"x": np.ones((1, 2))}, state={"x": np.array([[2, 3]])})
    with pytest.raises(DataError, match="no limits in array modality 'x'"):
        io.write(limits, tmp_path / "a.csv")
    declared = Schema(modalities=(ModalitySpec(name="x", cells=(Cell(name="x", ivar="w"),)),))
    with pytest.raises(DataError, match="error bar in every seen cell of 'x'"):
        io.write(Observations.from_arrays(declared, {"x": np.ones((1, 1))}), tmp_path / "a.csv")
    twice = Schema(modalities=(ModalitySpec(name="id", shape=(1,)),))
    with pytest.raises(DataError, match="distinct column names .* 'id' twice"):
        io.write(Observations.from_arrays(twice, {"id": np.ones((1, 1))}), tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def draws() -> Samples:
    schema = Schema(
        modalities=(
            ModalitySpec(name="labels", cells=(Cell(name="m", unit="mag", ucd="phot.mag"), Cell(name="z"))),
            ModalitySpec(name="spectrum", grid=GRID, unit="Jy", ucd="phot.flux"),
        )
    )
    rng = np.random.default_rng(0)
    values = {"labels": rng.normal(size=(7, 3, 2)), "spectrum": rng.normal(size=(7, 3, 4))}
    return Samples(schema, values, np.array(["a", "b", "c"]), np.zeros(7, int))


def test_draws_go_whole_to_parquet_and_npz(tmp_path):
    samples = draws()
    io.write(samples, tmp_path / "s.parquet")
    table = io.read_table(tmp_path / "s.parquet")
    np.testing.assert_array_equal(table.columns["m"].values, samples.values["labels"][:, :, 0].T)
    assert (table.columns["m"].unit, table.columns["m"].ucd) == ("mag", "phot.mag")
    io.write(samples, tmp_path / "s.npz")
    table = io.read_table(tmp_path / "s.npz")
    np.testing.assert_array_equal(table.columns["spectrum"].values, samples.values["spectrum"])
    with pytest.raises(SchemaError, match="Expected a schema"):
        io.read(tmp_path / "s.npz")


@pytest.mark.parametrize("suffix", ["ecsv", "fits"])
def test_draws_go_as_summaries_to_tables(tmp_path, suffix):
    samples = draws()
    io.write(samples, tmp_path / f"s.{suffix}")
    table = io.read_table(tmp_path / f"s.{suffix}")
    np.testing.assert_array_equal(table.columns["m_mean"].values, samples.mean()["labels"][:, 0])
    np.testing.assert_array_equal(table.columns["spectrum_q84"].values, samples.quantiles([0.84])["spectrum"][0])
    assert (table.columns["m_q50"].unit, table.columns["m_q50"].ucd) == ("mag", "phot.mag")
    assert (table.columns["spectrum_std"].unit, table.columns["spectrum_std"].ucd) == ("Jy", "phot.flux")


def test_draws_refuse_csv_and_reserved_names(tmp_path):
    with pytest.raises(DataError, match="which CSV cannot hold"):
        io.write(draws(), tmp_path / "s.csv")
    schema = Schema(modalities=(ModalitySpec(name="member", shape=(1,)),))
    clash = Samples(schema, {"member": np.ones((2, 1, 1))}, np.array(["a"]), np.zeros(2, int))
    with pytest.raises(DataError, match="not called id or member"):
        io.write(clash, tmp_path / "s.npz")


def test_fits_refuses_text_that_is_not_ascii(tmp_path):
    schema = Schema(modalities=(ModalitySpec(name="x", shape=(1,)),))
    obs = Observations.from_arrays(schema, {"x": np.ones((1, 1))}, ids=["α Cen"])
    with pytest.raises(DataError, match="Expected ASCII text in .*'α Cen'"):
        io.write(obs, tmp_path / "a.fits")
    for suffix in ("parquet", "ecsv", "npz"):
        io.write(obs, tmp_path / f"a.{suffix}")
        assert io.read(tmp_path / f"a.{suffix}").ids.tolist() == ["α Cen"]


def test_tensors_are_written_like_arrays(tmp_path):
    obs = rich().select("spectrum")
    io.write(obs.to("cpu"), tmp_path / "a.parquet")
    got = io.read(tmp_path / "a.parquet")
    np.testing.assert_allclose(got.parts["spectrum"].value, obs.parts["spectrum"].value, rtol=1e-6)
