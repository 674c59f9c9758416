"""What rows show, in words."""

import numpy as np

from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.data.schema import ModalitySpec, Schema

BANDS = ModalitySpec(name="bands", cells=({"name": "g"}, {"name": "r"}))
SCHEMA = Schema(modalities=(BANDS, ModalitySpec(name="image", shape=(2, 2))))


def rows():
    bands = np.array([[1.0, 2.0], [1.0, np.nan], [np.nan, np.nan], [np.nan, 1.0]])
    image = np.ones((4, 2, 2))
    image[1, 0, 0] = image[3] = np.nan
    return Observations.from_arrays(SCHEMA, {"bands": bands, "image": image})


def test_named_cells_count_each_and_others_together():
    assert patterns(rows()).tolist() == ["all", "without bands r", "without bands", "without bands g, image"]
    assert patterns(rows(), ["image"]).tolist() == ["all", "all", "all", "without image"]


def test_a_modality_that_is_not_there_is_not_seen():
    found = patterns(rows().select("image"), ["bands", "image"])
    assert found.tolist()[2:] == ["without bands", "without bands, image"]


def test_no_modalities_and_no_rows():
    assert patterns(rows(), []).tolist() == ["all"] * 4
    assert patterns(rows()[:0]).tolist() == []


def test_many_named_cells_are_one_part():
    spec = ModalitySpec(name="lines", cells=tuple({"name": f"l{k}"} for k in range(40)))
    value = np.where(np.arange(40) < 3, np.nan, 1.0) * np.ones((2, 1))
    assert patterns(Observations.from_arrays(Schema(modalities=(spec,)), {"lines": value})).tolist() == ["all"] * 2
