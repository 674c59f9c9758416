"""Information between blocks: against that of Gaussians, independent and silent blocks, and a leak on purpose."""

from types import SimpleNamespace

import numpy as np
import pytest

import consilience as cs
from consilience.analysis.estimators import club, contrastive, gaussian_information, ksg
from consilience.data.observations import Observations
from consilience.data.samples import Latent
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import CapabilityError, DataError, RequestError


def pair(rho, size, count=2000, seed=0):
    """Two Gaussian vectors whose columns correlate one by one, and their information."""
    x, e = np.random.default_rng(seed).standard_normal((2, count, size))
    return x, rho * x + np.sqrt(1 - rho**2) * e, -0.5 * size * np.log(1 - rho**2)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_ksg_finds_the_information_of_gaussians(rho, size):
    found = []
    for seed in range(3):
        x, y, expected = pair(rho, size, seed=seed)
        found.append(ksg(x, y))
        assert found[-1] == pytest.approx(expected, abs=0.06)
    assert np.mean(found) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("size", "other"), [(1, 1), (2, 2), (3, 1), (8, 8)])
def test_ksg_of_independent_vectors_is_zero(size, other):
    noise = [np.random.default_rng(seed).standard_normal((2000, size + other)) for seed in range(4)]
    assert abs(np.mean([ksg(x[:, :size], x[:, size:]) for x in noise])) < 0.02


def test_ksg_does_not_depend_on_units_and_little_on_monotone_maps():
    x, y, expected = pair(0.8, 1)
    plain = ksg(x, y)
    assert ksg(1e-4 * x + 7, 1e3 * y) == pytest.approx(plain, abs=1e-6)
    assert ksg(y, x) == pytest.approx(plain, abs=1e-12)
    assert ksg(np.exp(x), np.tanh(y)) == pytest.approx(expected, abs=0.05)
    assert ksg(x**3, y) == pytest.approx(expected, abs=0.05)
    assert ksg(x, y, neighbours=20) == pytest.approx(expected, abs=0.05)


def test_ksg_finds_what_no_correlation_shows():
    angle, e = np.random.default_rng(0).uniform(-np.pi, np.pi, 2000), 0.1 * np.random.default_rng(1).normal(size=2000)
    assert abs(np.corrcoef(np.cos(angle), np.sin(angle))[0, 1]) < 0.05
    assert ksg(np.cos(angle) + e, np.sin(angle)) > 0.5


def test_columns_that_do_not_vary_count_nothing():
    x, y, _ = pair(0.8, 1, 500)
    assert ksg(np.hstack([x, np.ones_like(x)]), y) == ksg(x, y)
    assert ksg(np.ones(500), y) == ksg(np.zeros(500), np.zeros(500)) == 0.0
    same = (x > 0).astype(float)
    assert np.isfinite(ksg(same, same))  # ties are no reason to break
    assert ksg(x.reshape(500, 1, 1), y) == ksg(x, y)


def test_ksg_refuses_what_it_cannot_measure():
    x, y, _ = pair(0.8, 1, 10)
    with pytest.raises(DataError, match="as many rows"):
        ksg(x, y[:9])
    with pytest.raises(DataError, match="more than 10"):
        ksg(x, y, neighbours=10)
    with pytest.raises(DataError, match="finite"):
        ksg(np.where(x > 0, np.nan, x), y)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_gaussian_information_is_that_of_gaussians(rho, size):
    found = [gaussian_information(*pair(rho, size, seed=seed)[:2]) for seed in range(4)]
    assert np.mean(found) == pytest.approx(pair(rho, size)[2], abs=0.03)


def test_gaussian_information_in_general_and_where_it_is_not_defined():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    z = rng.normal(size=(50_000, 5)) @ mix
    covariance = mix.T @ mix
    blocks = [np.linalg.slogdet(one)[1] for one in (covariance[:2, :2], covariance[2:, 2:], covariance)]
    assert gaussian_information(z[:, :2], z[:, 2:]) == pytest.approx(
        0.5 * (blocks[0] + blocks[1] - blocks[2]), abs=0.02
    )
    assert gaussian_information(z[:, :2], np.ones((50_000, 1))) == 0.0
    assert abs(gaussian_information(z[:, :1], np.square(z[:, :1]))) < 0.01  # no correlation shows it
    with pytest.raises(DataError, match="more rows"):
        gaussian_information(z[:4], z[:4])
    with pytest.raises(DataError, match="finite"):
        gaussian_information(np.where(z > 0, np.nan, z), z)


def test_club_is_its_own_exact_value_and_above_the_information():
    x, y, expected = pair(0.6, 2, 6000)
    found = club(x[:4000], y[:4000], x[4000:], y[4000:])
    assert found == pytest.approx(2 * 0.36 / 0.64, rel=0.12) and found > expected
    rng = np.random.default_rng(5)
    assert abs(club(x[:4000], rng.normal(size=(4000, 2)), x[4000:], rng.normal(size=(2000, 2)))) < 0.05
    with pytest.raises(DataError, match="20 rows"):
        club(x[:10], y[:10], x, y)


def test_info_nce_is_near_the_information_and_below_its_cap():
    x, y, expected = pair(0.8, 2, 3000)
    held = 2000 + np.argsort(x[2000:, 0])  # a sorted table: neighbours are alike
    found = contrastive(x[:2000], y[:2000], x[held], y[held], batch=128)
    assert 0.85 * expected < found < expected + 0.05
    capped = contrastive(x[:600], x[:600], x[2000:], x[2000:], batch=16)
    assert 0.9 * np.log(16) < capped <= np.log(16) + 1e-6
    assert abs(contrastive(x[:2000], y[1000:], x[2000:], y[:1000])) < 0.02
    with pytest.raises(DataError, match="20 rows"):
        contrastive(x[:19], y[:19], x, y)


SCHEMA = Schema(modalities=(ModalitySpec(name="x"),))


def rows(count, seed):
    values = {"x": np.zeros(count)}
    return Observations.from_arrays(SCHEMA, values, ids=[f"{seed}-{k}" for k in range(count)])


class Known:
    """Two blocks that share a factor of correlation ``rho``, a silent one, and one whose means alone tell of it."""

    schema = SimpleNamespace(names=("x",))
    capabilities = frozenset({"latent"})

    def __init__(self, rho, drop=()):
        self.rho, self.drop = rho, drop

    def latent(self, obs):
        rng = np.random.default_rng(int(obs.ids[0].split("-")[0]))
        a, e, b = rng.standard_normal((3, len(obs)))
        mean = {
            "shared": np.stack([a, b], 1),
            "private": np.stack([rng.standard_normal(len(obs)), self.rho * a + np.sqrt(1 - self.rho**2) * e], 1),
            "silent": np.stack([0 * b, 1e-9 * b, 1e-9 * a], 1),  # rounding tells nothing
            "tiny": 0.01 * b.reshape(-1, 1, 1),
        }
        std = {"shared": 0.01, "private": 0.01, "silent": 0.0, "tiny": 1.0}
        kept = [name for name in mean if name not in self.drop]
        return Latent(
            {name: mean[name] for name in kept},
            {name: np.full(mean[name].shape, std[name]) for name in kept},
            obs.ids,
        )


@pytest.fixture(scope="module")
def found():
    return cs.analysis.block_information(Known(0.9), rows(1500, 0), rows(600, 1), batch=100)


def numbers(found, *key):
    (row,) = [k for k, name in enumerate(zip(found.one, found.other, found.of, strict=True)) if name == key]
    return found.ksg[row], found.info_nce[row], found.r2[row], found.club[row], found.gaussian[row]


def test_a_leak_is_found_in_every_way_from_means_and_draws(found):
    expected = -0.5 * np.log(1 - 0.9**2)
    for of in ("mean", "draw"):
        nats, bound, r2, club, gaussian = numbers(found, "shared", "private", of)
        assert gaussian == pytest.approx(expected, abs=0.1)
        assert expected < club == pytest.approx(0.81 / 0.19, rel=0.35)
        assert nats == pytest.approx(expected, abs=0.2)  # the two columns of noise make it smaller
        assert 0.8 * expected < bound < expected + 0.08
        assert r2 == pytest.approx(0.81, abs=0.06)
    assert found.cap == pytest.approx(np.log(100))


def test_blocks_that_are_apart_share_nothing():
    alone = cs.analysis.block_information(Known(0.0, ("silent", "tiny")), rows(2000, 0), rows(1000, 1))
    assert np.abs(alone.ksg).max() < 0.04
    assert np.abs(alone.info_nce).max() < 0.02
    assert alone.r2.max() < 0.02
    assert alone.cap == pytest.approx(np.log(256))


def test_what_only_means_hold_is_told_apart(found):
    assert min(numbers(found, "shared", "tiny", "mean")[1:]) > 0.9
    assert max(map(abs, numbers(found, "shared", "tiny", "draw"))) < 0.08


def test_a_latent_that_does_not_vary_is_not_read():
    class Rounding(Known):
        def latent(self, obs):
            latent = super().latent(obs)
            b = latent.mean["shared"][:, 1:]
            mean = {"shared": latent.mean["shared"], "private": np.hstack([latent.mean["private"], 1e-9 * b])}
            return Latent(mean, {name: np.zeros_like(value) for name, value in mean.items()}, obs.ids)

    found = cs.analysis.block_information(Rounding(0.0), rows(600, 0), rows(300, 1))
    assert max(found.r2.max(), found.info_nce.max()) < 0.05


def test_a_silent_block_tells_nothing(found):
    for other in ("shared", "private"):
        assert numbers(found, other, "silent", "mean") == numbers(found, other, "silent", "draw") == (0,) * 5


def test_a_modality_stands_beside_the_blocks_and_rows_without_it_are_left_out():
    class Told(Known):
        """Reads the first of two columns that correlate by .8 with a third."""

        schema = SimpleNamespace(names=("x",))

        def latent(self, obs):
            x = np.nan_to_num(obs.parts["x"].value[:, None])
            return Latent({"shared": x}, {"shared": 0.01 + 0 * x}, obs.ids)

    schema = Schema(modalities=(ModalitySpec(name="x"), ModalitySpec(name="y"), ModalitySpec(name="z")))

    def told(count, seed):
        x, e, z = np.random.default_rng(seed).standard_normal((3, count))
        y = 0.8 * x + 0.6 * e
        y[::5] = np.nan
        return Observations.from_arrays(schema, {"x": x, "y": y, "z": z}, ids=[f"{seed}-{k}" for k in range(count)])

    found = cs.analysis.block_information(Told(0), told(1000, 0), told(700, 1), ["y", "z"], batch=100)
    assert len(found.table()) == 3 * 2
    expected = -np.log(0.6)
    for of in ("mean", "draw"):
        nats, bound, r2, club, gaussian = numbers(found, "shared", "y", of)
        assert nats == pytest.approx(expected, abs=0.1) and gaussian == pytest.approx(expected, abs=0.06)
        assert bound < expected + 0.08 and club == pytest.approx(0.64 / 0.36, rel=0.25) and r2 > 0.55
        assert max(map(abs, numbers(found, "y", "z", of))) < 0.08
    assert numbers(found, "y", "z", "mean") == numbers(found, "y", "z", "draw")
    without = cs.analysis.block_information(Told(0), told(150, 0), told(90, 1), ["y"], hide=["x"])
    assert without.info_nce[0] == without.ksg[0] == 0 and abs(without.info_nce[1]) < 0.1  # it was told nothing
    blind = Told(0)
    blind.capabilities = frozenset()
    assert len(cs.analysis.block_information(blind, told(150, 0), told(90, 1), ["y", "z"]).table()) == 2
    with pytest.raises(CapabilityError, match="name modalities too"):
        cs.analysis.block_information(Told(0), told(150, 0), told(90, 1))
    with pytest.raises(RequestError, match="'w'"):
        cs.analysis.block_information(Told(0), told(150, 0), told(90, 1), ["w"])


def test_tables_and_files(found, tmp_path):
    assert len(found.table()) == 6 * 2
    found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"block_information.{end}" for end in ("json", "csv", "png")}


def test_a_single_block_and_few_rows_are_errors():
    with pytest.raises(CapabilityError, match="two latent blocks"):
        cs.analysis.block_information(Known(0, ("private", "silent", "tiny")), rows(60, 0), rows(60, 1))
    with pytest.raises(DataError, match="50 training and test rows"):
        cs.analysis.block_information(Known(0), rows(60, 0), rows(49, 1))
