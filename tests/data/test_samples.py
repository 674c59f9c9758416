import numpy as np
import pytest
from astropy import units

from consilience.data.samples import Latent, Samples
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError

IDS = np.array(["a", "b", "c"])
DRAWS = 40


@pytest.fixture
def draws(schema):
    rng = np.random.default_rng(2)
    image = ModalitySpec(name="image", shape=(2, 3), unit="adu")
    scalar = ModalitySpec(name="period", unit="d", ucd="time.period")
    every = Schema(modalities=(*schema.modalities, image, scalar))
    values = {spec.name: rng.normal(size=(DRAWS, 3, *spec.shape)) for spec in every.modalities}
    return Samples(every, values, IDS, np.repeat([0, 1], DRAWS // 2))


def test_summaries_are_those_of_the_draws(draws):
    assert len(draws) == DRAWS
    x = draws.values["labels"]
    np.testing.assert_allclose(draws.mean()["labels"], x.mean(0))
    np.testing.assert_allclose(draws.std()["labels"], x.std(0))
    quantiles = draws.quantiles([0.16, 0.5])["spectrum"]
    assert quantiles.shape == (2, 3, 5)
    np.testing.assert_allclose(quantiles[1], np.median(draws.values["spectrum"], 0))


def test_objects_by_id_keep_every_draw(draws):
    one = draws["b"]
    assert one.ids.tolist() == ["b"]
    np.testing.assert_array_equal(one.values["image"], draws.values["image"][:, [1]])
    assert draws[["c", "a"]].ids.tolist() == ["c", "a"]
    np.testing.assert_array_equal(draws[["c", "a"]].values["labels"][:, 0], draws.values["labels"][:, 2])
    with pytest.raises(RequestError, match=r"Expected ids of sampled objects; got \['z'\]"):
        draws["z"]


def test_table_has_units_and_ucds(draws):
    table = draws.to_table()
    assert table["id"].tolist() == IDS.tolist()
    assert table["spectrum_mean"].unit == units.Jy
    assert table["spectrum_q16"].shape == (3, 5)
    assert table["period_q50"].unit == units.d
    assert table["log_mbh_std"].unit == units.Unit("dex(solMass)")
    assert table["log_mbh_mean"].info.meta["ucd"] == "phys.mass"
    assert table["redshift_mean"].info.meta["ucd"] == "src.redshift"
    x = draws.values["labels"][..., 1]
    for name, q in {"q025": 0.025, "q16": 0.16, "q50": 0.5, "q84": 0.84, "q975": 0.975}.items():
        np.testing.assert_allclose(np.asarray(table[f"redshift_{name}"]), np.quantile(x, q, axis=0))


def test_arrow_round_trip_keeps_every_draw(draws):
    table = draws.to_arrow()
    assert table.column("id").to_pylist() == IDS.tolist()
    assert table.schema.metadata[b"draws"] == str(DRAWS).encode()
    assert table.schema.field("log_mbh").metadata == {b"unit": b"dex(solMass)", b"ucd": b"phys.mass"}
    assert table.schema.field("spectrum").metadata[b"unit"] == b"Jy"
    mbh = np.array(table.column("log_mbh").to_pylist())
    np.testing.assert_array_equal(mbh, draws.values["labels"][..., 0].T)
    image = np.array(table.column("image").to_pylist()).reshape(3, 2, 3, DRAWS)
    np.testing.assert_array_equal(np.moveaxis(image, -1, 0), draws.values["image"])
    period = np.array(table.column("period").to_pylist())
    np.testing.assert_array_equal(period.T, draws.values["period"])


def test_xarray_round_trip_keeps_every_draw(draws):
    data = draws.to_xarray()
    for name, value in draws.values.items():
        assert data[name].dims[:3] == ("chain", "draw", "object")
        np.testing.assert_array_equal(data[name].values[0], value)
    assert data["spectrum"].attrs["units"] == "Jy"
    assert data["spectrum"].attrs["ucd"] == "phot.flux.density"
    assert data["labels"].attrs["cell_units"] == "dex(solMass), "
    assert data["labels_cell"].values.tolist() == ["log_mbh", "redshift"]
    np.testing.assert_allclose(data["spectrum_wavelength"].values, [1000, 1100, 1200, 1300, 1400])
    assert data.sel(object="b")["period"].shape == (1, DRAWS)


def test_datatree_holds_the_dataset_as_posterior(draws):
    tree = draws.to_datatree()
    assert list(tree.children) == ["posterior"]
    assert tree["posterior"].to_dataset().identical(draws.to_xarray())


def test_dimensions_that_observations_decide_are_told_from_those_they_do_not():
    rng = np.random.default_rng(0)
    mean = np.stack([rng.normal(size=4000), 0.5 * rng.normal(size=4000), np.zeros(4000)], axis=1)
    std = np.broadcast_to([1e-3, np.sqrt(0.75), 1.0], mean.shape)
    found = Latent({"shared": mean}, {"shared": std}, np.arange(4000).astype(str))
    np.testing.assert_allclose(found.informed()["shared"], [1.0, 0.25, 0.0], atol=0.02)
    assert found.used() == {"shared": 2}
    assert found.used(0.5) == {"shared": 1}
