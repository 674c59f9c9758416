"""cs.fit: what is held out, what is recorded, what is refused."""

import numpy as np
import pytest
import torch

import consilience as cs
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.errors import CapabilityError, RequestError, SchemaError
from constructors import SMALL, plain

FAMILY = cs.SharedGPLVM(**SMALL)
QUICK = {"max_steps": 6, "batch_size": 16, "evaluate_every": 3}


@pytest.fixture(scope="module")
def fit():
    return cs.fit(FAMILY, plain(60), cs.TrainConfig(**QUICK, validation=0.25))


def test_the_record_says_what_was_done(fit):
    record = fit.provenance
    assert record["family"] == "SharedGPLVM"
    assert (record["rows"], record["held_out_rows"], record["seed"]) == (45, 15, 0)
    assert record["threads"] == torch.get_num_threads()
    assert record["seconds"] >= 0
    assert set(record["versions"]) >= {"consilience", "torch", "numpy"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert [row["stage"] for row in fit.history] == [0, 0, 1]  # gradient steps, then the refit


def test_coverage_is_measured_on_rows_that_were_held_out(fit):
    found = fit.calibration
    assert found["rows"] == 15
    assert set(found["given_the_rest"]) == {"spectrum", "labels"}
    for record in found["given_the_rest"].values():
        assert len(record["levels"]) == len(record["coverage"])
        assert all(0 <= c <= 1 for c in record["coverage"])
        assert record["cells"] > 0
        assert np.isfinite(record["nlpd"])


def test_the_scaler_has_never_met_the_held_out_rows(fit):
    table = plain(60)
    kept, held = table.split(0.75, seed=0)
    for name, array in Scaler.fit(kept).arrays().items():
        np.testing.assert_array_equal(fit.scaler.arrays()[name], array)
    # numbers of held-out rows reach neither the scaler nor a weight but through the choice of the best step
    values = {name: part.value.copy() for name, part in table.parts.items()}
    rows = np.isin(table.ids, held.ids)
    values["labels"][rows] += 3
    sigma = {"spectrum": table.parts["spectrum"].sigma}
    moved = Observations.from_arrays(table.schema, values, sigma=sigma, ids=table.ids)
    one_step = cs.TrainConfig(max_steps=1, batch_size=16, validation=0.25)
    first, second = (cs.fit(FAMILY, rows, one_step).members[0].state_dict() for rows in (table, moved))
    for name in first:
        if name != "shared_misfit":
            assert torch.equal(first[name], second[name]), name


def test_groups_are_held_out_whole():
    table = plain(60)
    values = {name: part.value for name, part in table.parts.items()}
    group = [str(row // 6) for row in range(60)]
    grouped = Observations.from_arrays(table.schema, values, ids=table.ids, group=group)
    config = cs.TrainConfig(max_steps=1, batch_size=16, validation=0.3)
    assert cs.fit(FAMILY, grouped, config).provenance["held_out_rows"] == 18


def test_nothing_held_out_leaves_no_record():
    fit = cs.fit(FAMILY, plain(20), cs.TrainConfig(**QUICK, validation=0))
    assert fit.calibration is None
    assert fit.provenance["rows"] == 20


def test_members_have_seeds_of_their_own(fit):
    config = cs.TrainConfig(**QUICK, validation=0.25)
    both = cs.fit(FAMILY, plain(60), config, members=2)
    assert len(both.members) == 2
    for name, value in fit.members[0].state_dict().items():
        assert torch.equal(both.members[0].state_dict()[name], value), name
    first, second = (member.state_dict()["decoders.labels.inducing"] for member in both.members)
    assert not torch.equal(first, second)


def test_an_ensemble_resumes_member_by_member(tmp_path):
    config = cs.TrainConfig(**QUICK, validation=0)
    first = cs.fit(FAMILY, plain(20), config, members=2, resume=tmp_path)
    again = cs.fit(FAMILY, plain(20), config, members=2, resume=tmp_path)
    for one, other in zip(first.members, again.members, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member-0", "member-1"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"members": 0}, RequestError, "Expected members >= 1; got 0"),
        ({"real": plain(4)}, CapabilityError, "domain adaptation for real= or pairs=; got SharedGPLVM"),
        ({"pairs": plain(4)}, CapabilityError, "domain adaptation"),
        ({"config": cs.TrainConfig(validation=0.01)}, RequestError, "rows on both sides of validation=0.01; got 20"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        cs.fit(FAMILY, plain(20), **options)


def test_an_unknown_option_is_refused():
    from consilience.data.schema import validated

    with pytest.raises(SchemaError, match="Did you mean 'max_steps'"):
        validated(cs.TrainConfig, {"max_step": 3}, where="config")


def test_the_training_table_is_not_changed():
    table = plain(20)
    before = {name: (part.value.copy(), part.state.copy()) for name, part in table.parts.items()}
    cs.fit(FAMILY, table, cs.TrainConfig(**QUICK, validation=0.2))
    for name, part in table.parts.items():
        np.testing.assert_array_equal(part.value, before[name][0])
        np.testing.assert_array_equal(part.state, before[name][1])
