"""Shapley values of modalities against closed forms of a linear world, and on models that are wrong on purpose."""

import json
from dataclasses import replace

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.attribution import attribution
from consilience.data.masking import HideModalities
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, DataError, RequestError

SEEN = ("colour", "spectrum")


@pytest.fixture(scope="module")
def obs(world):
    return world.draw(3000, seed=11)


@pytest.fixture(scope="module")
def found(fakes, obs):
    return attribution(fakes.Fake(), obs, ["labels"])


def variances(fake, obs):
    """Posterior variances of the labels' measurements given nothing, colour, spectrum and both: (4, N, K)."""
    hidden = (SEEN, ("spectrum",), ("colour",), ())
    sigma = np.square(obs.parts["labels"].sigma)
    columns = fake.world.slices["labels"]
    return np.stack([fake._moments(obs.hide("labels", *names))[1][:, columns] ** 2 + sigma for names in hidden])


def shared(worth):
    """Shapley values of two players by hand."""
    nothing, one, other, both = worth
    return np.stack([(one - nothing + both - other) / 2, (other - nothing + both - one) / 2])


def test_bits_are_the_mutual_information_of_a_linear_world(fakes, obs, found):
    assert found.modalities == SEEN and found.cells == ("mass", "redshift")
    expected = shared(-0.5 * np.log2(variances(fakes.Fake(), obs)).mean(axis=1))
    width = np.diff(found.bits_interval, axis=0)[0]
    assert (np.abs(found.bits_value - expected) < 2 * width).all()
    assert (width < 0.05).all() and (expected > 0.1).any()


def test_r2_is_what_the_posterior_leaves_of_the_variance(fakes, obs, found):
    left = variances(fakes.Fake(), obs).mean(axis=1)
    np.testing.assert_allclose(found.r2, 1 - left / left[0], atol=0.02)
    np.testing.assert_allclose(found.r2_value, shared(1 - left / left[0]), atol=0.02)


def test_values_add_up_to_what_is_known(found):
    for worth, value in ((found.r2, found.r2_value), (found.bits, found.bits_value)):
        np.testing.assert_allclose(value.sum(axis=0), worth[-1] - worth[0], atol=1e-8)


def test_moves_of_a_row_add_up_to_its_posterior_mean(fakes, obs, found):
    said = fakes.Fake().summarise(obs.hide("labels"), ["labels"]).statistics["labels"]["mean"]
    np.testing.assert_allclose(found.start + found.moved.sum(axis=0), said, atol=1e-8)


def test_a_modality_of_noise_adds_nothing_and_one_not_there_neither(fakes, world, obs):
    deaf = replace(world)
    deaf.w[deaf.slices["colour"]] = 0.0
    found = attribution(fakes.Fake(deaf), deaf.draw(400, seed=2), ["labels"])
    np.testing.assert_allclose(found.bits_value[0], 0, atol=1e-8)
    assert (found.bits_value[1] > 0.1).any()
    some = obs[:100]
    gone = np.zeros(some.parts["colour"].value.shape, bool)
    gone[::2] = True
    half = attribution(fakes.Fake(), some, ["labels"], given=some.hide("labels").hide_cells({"colour": gone}))
    np.testing.assert_allclose(half.moved[0, ::2], 0, atol=1e-8)
    assert np.abs(half.moved[0, 1::2]).max() > 0.01


def test_twins_share_and_a_liar_loses(fakes, world, obs):
    class Liar(fakes.Fake):
        """What it is told of colours moves it the wrong way."""

        def summarise(self, rows, targets, **options):
            right, blind = (super(Liar, self).summarise(r, targets, **options) for r in (rows, rows.hide("colour")))
            each = [{t: answer.statistics[t]["mean"] for t in targets} for answer in (blind, right)]
            parts = {t: {"mean": 2 * each[0][t] - each[1][t]} for t in targets}
            return replace(right, statistics=parts)

    some = obs[:500]
    assert (attribution(Liar(), some, ["labels"]).r2_value[0] < -0.02).any()
    schema = Schema(modalities=tuple(ModalitySpec(name=name, shape=(2,)) for name in ("one", "other", "y")))
    twins = type(world)(schema=schema, latent=2)
    twins.w[2:4] = twins.w[:2]
    value = attribution(fakes.Fake(twins), twins.draw(4000, seed=1, missing=0.0), ["y"]).bits_value
    np.testing.assert_allclose(value[0], value[1], atol=0.05)
    assert value.sum(axis=0).max() > 0.3


def test_the_prior_knows_nothing(fakes, obs):
    found = attribution(fakes.Fake(prior=True), obs[:200], ["labels"])
    assert np.abs(found.bits_value).max() < 1e-8 and np.abs(found.r2_value).max() < 1e-8


def test_without_densities_there_are_no_bits(fakes, obs):
    found = attribution(fakes.Fake(capabilities=frozenset()), obs[:200], ["labels"])
    assert np.isnan(found.bits_value).all() and np.isfinite(found.r2_value).all()
    assert "R²" in found.figure().axes[-1].get_ylabel()


def test_rows_without_a_cell_are_left_out(fakes, obs):
    some = obs[:100]
    gone = np.zeros(some.parts["labels"].value.shape, bool)
    gone[40:, 1] = True
    found = attribution(fakes.Fake(), some.hide_cells({"labels": gone}), ["labels"])
    assert found.rows.tolist() == [100, 40]
    alone = attribution(fakes.Fake(), some[:40], ["labels"])
    np.testing.assert_allclose(found.r2[:, 1], alone.r2[:, 1], rtol=1e-10)


def test_tables_figures_and_files(found, tmp_path):
    assert len(found.table()) == 4
    table = found.coalitions()
    assert table["seen"][0] == "nothing" and table["seen"][-1] == "colour + spectrum"
    np.testing.assert_allclose(table["nlpd"][-2:], -np.log(2) * found.bits[-1])
    row = str(found.ids[3])
    axes = found.waterfall(row, "mass").axes[0]
    assert axes.get_xlabel() == "mass [solMass]" and len(axes.patches) == 2
    with pytest.raises(RequestError, match="nobody"):
        found.waterfall("nobody", "mass")
    found.save(tmp_path)
    assert json.loads((tmp_path / "attribution.json").read_text())["modalities"] == list(SEEN)
    assert (tmp_path / "attribution.png").stat().st_size > 1000


def test_what_cannot_be_asked_is_refused(fakes, obs):
    some = obs[:50]
    with pytest.raises(DataError, match="between 1 and 8"):
        attribution(fakes.Fake(), some, ["labels"], given=some.hide("labels", *SEEN))
    with pytest.raises(DataError, match="'mass' that vary"):
        attribution(fakes.Fake(), obs[:5], ["labels"])
    with pytest.raises(CapabilityError, match="answers"):
        attribution(fakes.Fake(refuse=frozenset({"labels"})), some, ["labels"])
    many = Schema(modalities=tuple(ModalitySpec(name=f"m{k}", shape=(1,)) for k in range(10)))
    wide = type(fakes.World())(schema=many, latent=2)
    with pytest.raises(CapabilityError, match="between 1 and 8"):
        attribution(fakes.Fake(wide), wide.draw(20, seed=0), ["m0"])


def test_a_trained_model_gives_credit_where_it_is_due():
    """Of y, x tells; idle does not."""
    rng = np.random.default_rng(0)
    x, idle = rng.standard_normal((600, 2)), rng.standard_normal((600, 2))
    y = x @ np.array([[1.0], [0.5]]) + 0.3 * rng.standard_normal((600, 1))
    schema = Schema(modalities=tuple(ModalitySpec(name=n, shape=(k,)) for n, k in (("x", 2), ("idle", 2), ("y", 1))))
    table = cs.Observations.from_arrays(schema, {"x": x, "idle": idle, "y": y})
    train, test = table.split(0.6, seed=0)
    config = cs.TrainConfig(max_steps=400, masking=HideModalities(probability=0.5))
    fit = cs.fit(cs.Regression(target="y", hidden=32), train.renumbered(), config)
    found = attribution(fit, test, ["y"])
    value = dict(zip(found.modalities, found.bits_value[:, 0], strict=True))
    assert value["x"] > 1.0 and abs(value["idle"]) < 0.1  # of 1.9 bits
