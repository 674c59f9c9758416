"""Planted outliers are found, clean rows are flagged at the stated rate."""

import numpy as np
import pytest
from scipy import stats

from consilience.analysis.outliers import outliers
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, RequestError


def planted(world, obs, kind, rows):
    values = {m: np.array(p.value) for m, p in obs.parts.items()}
    if kind == "residual":
        values["spectrum"][rows] += 2.0 * (-1.0) ** np.arange(24)
    else:
        away = world.w @ np.full(world.latent, 4.0)
        for name, cells in world.slices.items():
            values[name][rows] += away[cells]
    return Observations.from_arrays(obs.schema, values, sigma={m: p.sigma for m, p in obs.parts.items()}, ids=obs.ids)


@pytest.fixture(scope="module")
def reference(world):
    return world.draw(1000, seed=20)


def test_clean_rows_are_flagged_at_the_stated_rate(fakes, world, reference):
    found = outliers(fakes.Fake(), world.draw(2000, seed=21), reference, rate=0.05)
    # 500 calibrators make the realised rate itself a Beta variable with sd .0097.
    assert stats.betabinom(2000, 25, 476).cdf(found.flagged.sum()) < 0.999
    assert stats.betabinom(2000, 25, 476).cdf(found.flagged.sum()) > 0.001
    assert found.pvalue.min() >= 1 / 501
    np.testing.assert_array_equal(found.flagged, found.score >= found.threshold)


@pytest.mark.parametrize("kind", ["residual", "latent"])
def test_planted_rows_are_flagged(fakes, world, reference, kind):
    obs = planted(world, world.draw(200, seed=22), kind, slice(0, 10))
    found = outliers(fakes.Fake(), obs, reference)
    assert found.flagged[:10].all() and found.flagged[10:].mean() < 0.05
    assert set(found.table()["id"][:10]) == set(obs.ids[:10])
    own, other = (found.residual, found.latent) if kind == "residual" else (found.latent, found.residual)
    assert own[:10].min() > 3 and np.median(other[:10]) < np.median(own[:10])


def test_a_single_cell_is_found_that_the_sum_hides(fakes, world, reference):
    obs = world.draw(400, seed=24)
    part = obs.parts["spectrum"]
    value = np.array(part.value)
    column = np.isfinite(value).argmax(axis=1)
    value[np.arange(20), column[:20]] += 2.2  # about six standard deviations of what is expected there
    rows = Observations.from_arrays(
        obs.schema,
        {m: value if m == "spectrum" else p.value for m, p in obs.parts.items()},
        sigma={m: p.sigma for m, p in obs.parts.items()},
        ids=obs.ids,
    )
    found = outliers(fakes.Fake(), rows, reference)
    assert found.flagged[:20].mean() > 0.7 and found.flagged[20:].mean() < 0.04
    assert np.median(found.peak[:20]) > np.median(found.residual[:20]) + 1
    assert len(found.table().colnames) == 7


def test_one_component_is_enough_and_none_is_refused(fakes, world, reference, tmp_path):
    obs = world.draw(50, seed=23)
    no_latent = outliers(fakes.Fake(capabilities=frozenset()), obs, reference, rate=0.02)
    assert np.isnan(no_latent.latent).all() and np.isfinite(no_latent.score).all()
    no_latent.save(tmp_path)
    everything = frozenset(obs.schema.names)
    only_latent = outliers(fakes.Fake(refuse=everything), obs, reference, rate=0.02)
    assert np.isnan(only_latent.residual).all() and np.isfinite(only_latent.score).all()
    with pytest.raises(CapabilityError):
        outliers(fakes.Fake(refuse=everything, capabilities=frozenset()), obs, reference, rate=0.02)
    with pytest.raises(RequestError, match="reference rows"):
        outliers(fakes.Fake(), obs, reference[:20])
