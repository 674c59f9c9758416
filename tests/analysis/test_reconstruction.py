"""χ² is 1 where the variance is right, and errors are those of the posterior mean."""

import numpy as np
import pytest

from consilience.analysis.likeness import ssim
from consilience.analysis.reconstruction import reconstruction
from consilience.data.observations import Observations
from consilience.data.samples import Predictive, Samples
from consilience.data.schema import ModalitySpec, Schema
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


def test_structural_similarity_is_that_of_every_window():
    rng = np.random.default_rng(2)
    x = np.cumsum(rng.normal(size=(2, 3, 14, 13)), axis=-1)
    y = 0.7 * x + 0.5 * rng.normal(size=x.shape) + 1
    ahead = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(ahead, ahead) / np.outer(ahead, ahead).sum()
    found = np.zeros((2, 3, 4, 3))
    for n, c, i, j in np.ndindex(found.shape):
        a, b = (image[n, c, i : i + 11, j : j + 11] for image in (x, y))
        ma, mb = (weight * a).sum(), (weight * b).sum()
        va, vb, cov = ((weight * p).sum() for p in ((a - ma) ** 2, (b - mb) ** 2, (a - ma) * (b - mb)))
        c1, c2 = (0.01 * np.ptp(x[n, c])) ** 2, (0.03 * np.ptp(x[n, c])) ** 2
        found[n, c, i, j] = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    np.testing.assert_allclose(ssim(x, y), found.mean(axis=(1, 2, 3)), rtol=1e-9)
    x[0, 1, 3, 3] = np.nan
    assert np.isnan(ssim(x, y)).tolist() == [True, False]
    with pytest.raises(DataError, match="11 pixels wide"):
        ssim(x[..., :10], y[..., :10])


class Painter:
    """Says of every image that it is a blurred copy of what was measured, with noise of its own."""

    capabilities = frozenset()

    def __init__(self, table, noise):
        self.schema, self.table, self.noise = table.schema, table, noise

    def answers(self, readable, producible):
        return True

    def _images(self, obs):
        return self.table.parts["image"].value[np.searchsorted(self.table.ids, obs.ids)]

    def summarise(self, obs, targets, **_):
        mean = self._images(obs)
        return Predictive(self.schema, {"image": {"mean": mean, "std": np.full(mean.shape, self.noise)}}, obs.ids, 1)

    def sample(self, obs, targets, *, n, seed=0, observed=False, at=None, method="default"):
        draws = self._images(obs) + self.noise * np.random.default_rng(seed).normal(size=(n, *self._images(obs).shape))
        return Samples(self.schema, {"image": draws}, obs.ids, np.zeros(n, int))


def test_images_are_compared_by_structure_and_by_what_a_network_sees():
    rng = np.random.default_rng(4)
    schema = Schema(modalities=(ModalitySpec(name="image", shape=(12, 12)),))
    value = np.cumsum(rng.normal(size=(40, 12, 12)), axis=-1)
    value[0, 0, 0] = np.nan
    obs = Observations.from_arrays(schema, {"image": value}, ids=[f"{i:03d}" for i in range(40)])
    filled = Observations.from_arrays(schema, {"image": np.nan_to_num(value)}, ids=obs.ids)

    def corner(images):
        assert images.shape[1:] == (12, 12) and np.isfinite(images).all()
        return images[:, :2, 0]

    good = reconstruction(Painter(filled, 0.1), obs, features={"image": corner}, n=1)
    assert good.similarity[0] == pytest.approx(1) and good.table()["ssim"][0] == good.similarity[0]
    bad = reconstruction(Painter(filled, 2.0), obs, features={"image": corner}, n=1)
    assert 0 <= good.frechet[0] < 0.2 < bad.frechet[0]
    assert "frechet" not in reconstruction(Painter(filled, 0.1), obs, n=1).table().colnames
    with pytest.raises(DataError, match="10 rows with all of 'image'"):
        reconstruction(Painter(filled, 0.1), obs[:5], features={"image": corner}, n=1)
