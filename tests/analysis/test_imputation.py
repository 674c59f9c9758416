"""More sources never do worse by much, coverage holds, and refused questions are named."""

import numpy as np
import pytest

from consilience.analysis.imputation import imputation
from consilience.errors import CapabilityError, RequestError


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(300, seed=8)


def test_matrix_of_hidden_and_given(fakes, obs):
    found = imputation(fakes.Fake(), obs, n=60)
    table = found.table()
    assert set(found.source) == {"all others", "spectrum", "colour", "labels", "all but 20 % of its cells"}
    by = {(h, g): r for h, g, r in zip(table["hidden"], table["given"], table["rmse"], strict=True)}
    assert by["mass", "all others"] <= by["mass", "colour"] * 1.02
    assert by["spectrum", "all but 20 % of its cells"] < by["spectrum", "colour"]
    many = np.array(found.cells) >= 290
    np.testing.assert_allclose(found.coverage68[many], 0.68, atol=0.08)
    np.testing.assert_allclose(found.coverage95[many], 0.95, atol=0.04)
    assert max(r for (h, _), r in zip(by, found.r2, strict=True) if h == "mass") > 0.3
    assert len(found.figure().axes) == 4


def test_overconfidence_shows(fakes, obs):
    assert (imputation(fakes.Fake(width=0.5), obs, n=60).coverage68 < 0.6).all()


def test_refusals(fakes, obs):
    found = imputation(fakes.Fake(refuse=frozenset({"spectrum"})), obs[:40], n=20)
    assert "spectrum from all others" in found.skipped and "spectrum" not in found.quantity
    with pytest.raises(CapabilityError):
        imputation(fakes.Fake(refuse=frozenset(obs.schema.names)), obs[:40], n=20)
    with pytest.raises(RequestError, match="fraction"):
        imputation(fakes.Fake(), obs, fraction=1.0)
