"""χ² is 1 where the variance is right, and errors are those of the posterior mean."""

import numpy as np
import pytest

from consilience.analysis.reconstruction import reconstruction
from consilience.errors import CapabilityError, DataError


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(800, seed=5)


@pytest.fixture(scope="module")
def hidden(obs):
    rng = np.random.default_rng(0)
    return {"spectrum": rng.uniform(size=obs.parts["spectrum"].value.shape) < 0.2}


def test_held_out_cells_have_unit_chi2(fakes, obs, hidden):
    found = reconstruction(fakes.Fake(), obs, hidden=hidden)
    assert (
        found.quantities == ("spectrum",) and found.cells[0] == (obs.parts["spectrum"].seen & hidden["spectrum"]).sum()
    )
    np.testing.assert_allclose(found.chi2, 1.0, atol=0.06)
    narrow = reconstruction(fakes.Fake(width=0.5), obs, hidden=hidden)
    assert narrow.chi2[0] > 1.5


def test_shown_cells_score_below_one_and_units_are_per_cell(fakes, obs):
    found = reconstruction(fakes.Fake(), obs)
    assert found.quantities == ("spectrum", "colour", "mass", "redshift")
    assert found.units == ("erg / (s cm2)", "mag", "solMass", "")
    assert (found.chi2 < 1.0).all() and (found.chi2 > 0.1).all()
    np.testing.assert_allclose(found.mse, found.rmse**2)
    expected = fakes.Fake().summarise(obs, ["colour"]).statistics["colour"]["mean"] - obs.parts["colour"].value
    assert found.rmse[1] == pytest.approx(np.sqrt((expected**2).mean()))
    assert found.chi2_cell["spectrum"].shape == (24,)


def test_skips_and_refusals(fakes, obs, tmp_path):
    found = reconstruction(fakes.Fake(refuse=frozenset({"colour"})), obs[:50])
    assert found.skipped == ("colour",) and "colour" not in found.quantities
    assert len(found.figure().axes) == 2
    found.save(tmp_path)
    with pytest.raises(CapabilityError):
        reconstruction(fakes.Fake(refuse=frozenset({"colour"})), obs[:50], ["colour"])
    with pytest.raises(DataError, match="measured"):
        reconstruction(fakes.Fake(), obs.hide("colour"), ["colour"])
