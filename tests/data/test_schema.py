import json

import numpy as np
import pytest

from consilience.data.schema import Cell, Grid, ModalitySpec, Schema, nearest, validated
from consilience.errors import RequestError, SchemaError

TOML = """
id = "name"
group = "star"

[modalities.spectrum]
unit = "1e-17 erg / (s cm2 Angstrom)"
ucd = "phot.flux.density"
column = "flux"
ivar = "ivar"
mask = "and_mask"
grid = { start = 1000.0, stop = 4000.0, size = 4, spacing = "log", unit = "Angstrom" }

[modalities.labels]
sentinels = [-99.0]

[[modalities.labels.cells]]
name = "log_mbh"
unit = "dex(solMass)"
sigma = "log_mbh_err"
sentinels = [-999.0]

[[modalities.labels.cells]]
name = "redshift"
"""


def test_reads_toml_and_json_alike(tmp_path):
    (tmp_path / "a.toml").write_text(TOML)
    schema = Schema.read(tmp_path / "a.toml")
    assert schema.names == ("spectrum", "labels")
    assert (schema.id, schema.group) == ("name", "star")
    assert schema["spectrum"].shape == (4,)
    assert schema["labels"].cell_units() == ["dex(solMass)", ""]
    assert schema["labels"].cells[0].sentinels == (-999.0,)
    (tmp_path / "a.json").write_text(schema.model_dump_json())
    assert Schema.read(tmp_path / "a.json") == schema


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("sentinels = [-99.0]", "sentinel = [-99.0]", "Did you mean 'sentinels'"),
        ("ivar =", "ivra =", "Did you mean 'ivar'"),
        ("spacing =", "spacin =", "Did you mean 'spacing'"),
        ('id = "name"', 'idd = "name"', "Did you mean 'id'"),
        ('unit = "dex(solMass)"', 'unit = "solarmazz"', "Expected a unit that astropy knows for 'labels'"),
        ('name = "redshift"', 'name = "log_mbh"', "Expected distinct cell names in 'labels'"),
        ("stop = 4000.0", "stop = 400.0", "Expected grid start < stop"),
        ("start = 1000.0", "start = -1000.0", "Expected a positive start for a log grid"),
        ("size = 4", "size = 1", "greater than or equal to 2"),
        ('ivar = "ivar"', 'ivar = "ivar"\nsigma = "s"', "Expected sigma or ivar for 'spectrum'"),
        ('ivar = "ivar"', "shape = [3]", "Expected last axis 4"),
        ('ivar = "ivar"', 'kind = "category"', "Expected classes >= 2"),
        ('ivar = "ivar"', 'kind = "complex"', "(at modalities.0.kind)"),
        ("[modalities.labels]", "[modalities.labels", "Expected a schema in TOML or JSON"),
    ],
)
def test_every_mistake_has_one_clear_line(tmp_path, before, after, words):
    assert before in TOML
    path = tmp_path / "wrong.toml"
    path.write_text(TOML.replace(before, after))
    with pytest.raises(SchemaError) as caught:
        Schema.read(path)
    message = str(caught.value)
    assert words in message
    assert "wrong.toml" in message
    if "Did you mean" in words:
        assert message.count("\n") == 0


def test_missing_file_and_missing_modalities(tmp_path):
    with pytest.raises(SchemaError, match=r"Expected a schema in TOML or JSON; got .*none\.toml"):
        Schema.read(tmp_path / "none.toml")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SchemaError):
        Schema.read(tmp_path / "list.json")
    (tmp_path / "empty.json").write_text(json.dumps({"modalities": []}))
    with pytest.raises(SchemaError):
        Schema.read(tmp_path / "empty.json")


def test_shapes_that_contradict_are_refused():
    for options in ({"shape": (0,)}, {"cells": (Cell(name="a"),), "shape": (2,)}):
        with pytest.raises(SchemaError, match="Expected"):
            validated(ModalitySpec, {"name": "x", **options}, where="here")
    with pytest.raises(SchemaError, match="Expected distinct modality names"):
        validated(Schema, {"modalities": [{"name": "x"}, {"name": "x"}]}, where="here")


def test_a_name_that_is_not_there_names_the_nearest(schema):
    with pytest.raises(RequestError, match=r"got 'spectrun'\. Did you mean 'spectrum'\?"):
        schema["spectrun"]
    assert nearest("zzz", schema.names) == ""
    assert "labels" in schema
    assert "label" not in schema
    assert schema.select(["labels"]).names == ("labels",)


def test_cell_names_come_from_cells_grid_or_index():
    grid = Grid(start=1.0, stop=2.0, size=2)
    assert ModalitySpec(name="x", grid=grid).cell_names() == ["x[1]", "x[2]"]
    assert ModalitySpec(name="x", shape=(2, 1)).cell_names() == ["x[0,0]", "x[1,0]"]
    assert ModalitySpec(name="x").cell_names() == ["x"]
    assert ModalitySpec(name="x").size == 1
    assert ModalitySpec(name="x", cells=({"name": "a"},)).cell_names() == ["a"]
    assert ModalitySpec(name="x", shape=(3,), unit="Jy").cell_units() == ["Jy"] * 3


@pytest.mark.parametrize(("kind", "scaling"), [("real", "standard"), ("positive", "log"), ("count", "none")])
def test_scaling_follows_the_kind_unless_said(kind, scaling):
    assert ModalitySpec(name="x", kind=kind).scaling == scaling
    assert ModalitySpec(name="x", kind=kind, scale="asinh").scaling == "asinh"


@pytest.mark.parametrize("spacing", ["linear", "log"])
def test_grid_edges_enclose_their_centres(spacing):
    grid = Grid(start=1000.0, stop=3000.0, size=7, spacing=spacing)
    centres, edges = grid.centres(), grid.edges()
    assert (edges[:-1] < centres).all() and (centres < edges[1:]).all()
    step = np.diff(np.log(edges) if spacing == "log" else edges)
    np.testing.assert_allclose(step, step[0])
    middle = np.sqrt(edges[1:] * edges[:-1]) if spacing == "log" else 0.5 * (edges[1:] + edges[:-1])
    np.testing.assert_allclose(middle, centres)
