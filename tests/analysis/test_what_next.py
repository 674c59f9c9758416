"""Expected information gains against the closed form of a linear world."""

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.what_next import _measured, what_next
from consilience.data.schema import ModalitySpec
from consilience.errors import CapabilityError, DataError, RequestError


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(40, seed=21)


def exact(fake, obs, hidden):
    """Half the logarithm of the ratio of variances without and with one modality, (N, K), in bits."""
    columns = fake.world.slices["labels"]
    known = obs.hide("labels")
    sigma = np.median(obs.parts[hidden].sigma, axis=0)
    typical = cs.Observations.from_arrays(
        known.schema.select([hidden]),
        {hidden: np.zeros(known.parts[hidden].value.shape)},
        sigma={hidden: np.broadcast_to(sigma, known.parts[hidden].value.shape)},
        ids=known.ids,
    )
    both = known.select(*(name for name in known.schema.names if name != hidden)).join(typical)
    both = both.select(*known.schema.names)
    with_, without = (fake._moments(rows)[1][:, columns] for rows in (both, known.hide(hidden)))
    return np.log2(without / with_)


@pytest.mark.parametrize("hidden", ["colour", "spectrum"])
def test_gains_are_those_of_a_linear_world(fakes, obs, hidden):
    complete = obs.hide_cells({"spectrum": np.zeros(obs.parts["spectrum"].value.shape, bool)})
    if hidden == "spectrum":  # a new spectrum has no gaps
        rng = np.random.default_rng(0)
        value = np.where(obs.parts["spectrum"].measured, obs.parts["spectrum"].value, rng.normal(size=(40, 24)))
        sigma = np.where(obs.parts["spectrum"].measured, obs.parts["spectrum"].sigma, 0.15)
        spectrum = cs.Observations.from_arrays(
            obs.schema.select(["spectrum"]), {"spectrum": value}, sigma={"spectrum": sigma}, ids=obs.ids
        )
        complete = spectrum.join(obs.select("colour", "labels")).select(*obs.schema.names)
    found = what_next(fakes.Fake(), complete.hide(hidden), ["labels"], like=complete, n=400)
    assert found.modalities == (hidden,) and found.cells == ("mass", "redshift")
    expected = exact(fakes.Fake(), complete, hidden)
    pull = (found.bits[:, 0] - expected) / found.error[:, 0]
    assert np.abs(pull.mean(axis=0)).max() < 0.5 and 0.7 < pull.std() < 1.3
    assert found.bits.mean() == pytest.approx(expected.mean(), abs=0.03)
    assert expected.max() > 0.05


def test_the_prior_expects_nothing(fakes, obs):
    found = what_next(fakes.Fake(prior=True), obs.hide("colour"), ["labels"], n=4)
    assert np.abs(found.bits).max() < 1e-10


def test_rows_that_have_a_modality_are_not_asked_about_it(fakes, obs):
    gone = np.zeros(obs.parts["colour"].value.shape, bool)
    gone[:10] = True
    table = obs.hide_cells({"colour": gone}).hide("spectrum")
    found = what_next(fakes.Fake(), table, ["labels"], like=obs, n=50)
    assert np.isfinite(found.bits[:10]).all() and np.isnan(found.bits[10:, found.modalities.index("colour")]).all()
    best = found.best("mass")
    assert set(best[10:]) == {"spectrum"}
    assert found.catalogue().colnames[:2] == ["id", "next_mass"] and len(found.catalogue()) == 40
    rows = {(row["modality"], row["cell"]): row["rows"] for row in found.table()}
    assert rows["colour", "mass"] == 10 and rows["spectrum", "mass"] == 40
    assert found.figure().axes[0].get_title(loc="left") == "40 rows, given colour"
    with pytest.raises(RequestError, match="cell among"):
        found.best("age")


def test_a_noisier_measurement_is_expected_to_tell_less(fakes, obs):
    def gain(factor):
        part = obs.parts["colour"]
        like = cs.Observations.from_arrays(
            obs.schema.select(["colour"]), {"colour": part.value}, sigma={"colour": factor * part.sigma}
        )
        return what_next(fakes.Fake(), obs.hide("colour", "spectrum"), ["labels"], like=like, n=100)

    near, far = gain(1.0), gain(20.0)
    colour, spectrum = near.modalities.index("colour"), near.modalities.index("spectrum")
    assert near.bits[:, colour].mean() > far.bits[:, colour].mean() + 0.3
    np.testing.assert_array_equal(near.bits[:, spectrum], far.bits[:, spectrum])


def test_errors_of_logarithms_are_relative():
    spec = ModalitySpec(name="x", shape=(1,), kind="positive")
    value = _measured(spec, np.full((4000, 1, 1), 2.0), np.array([0.2]), np.random.default_rng(0))
    assert value.min() > 0 and np.log(value).std() == pytest.approx(0.1, rel=0.05)


def test_what_cannot_be_asked_is_refused(fakes, obs):
    with pytest.raises(DataError, match="show all"):
        what_next(fakes.Fake(), obs, ["labels"])
    with pytest.raises(CapabilityError, match="densities"):
        what_next(fakes.Fake(capabilities=frozenset()), obs.hide("colour"), ["labels"])
    with pytest.raises(CapabilityError, match="draws"):
        what_next(fakes.Fake(refuse=frozenset({"colour"})), obs.hide("colour"), ["labels"])
    with pytest.raises(RequestError, match="2 draws"):
        what_next(fakes.Fake(), obs.hide("colour"), ["labels"], n=1)
