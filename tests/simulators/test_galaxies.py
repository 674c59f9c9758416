"""The simulated galaxies: light from bagpipes, images against direct integration, truth that is the truth."""

import atexit
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from astropy.io.votable.ucd import check_ucd
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import erf, gammaincinv

from consilience.data.schema import Grid
from consilience.data.sersic import enclosed
from consilience.errors import RequestError
from consilience.simulators.galaxies import galaxies
from consilience.simulators.galaxy_images import PIXEL, Sources, half_light_radius, images, in_aperture
from consilience.simulators.galaxy_population import kiloparsecs_per_arcsec, population
from consilience.simulators.galaxy_spectra import BANDS, light
from consilience.simulators.galaxy_structure import DENSITY, FIBRE, FIBRE_SEEING, in_fibre, neighbours, shapes, sources

# bagpipes keeps its tables open until the interpreter ends
atexit.register(warnings.simplefilter, "ignore", ResourceWarning)

N = 20  # two chunks
SMALL = {"bins": 160, "pixels": 32}
WAVES = np.array([4500.0, 8000.0])


@pytest.fixture(scope="module")
def table():
    return galaxies(N, seed=3, **SMALL)


@pytest.fixture(scope="module")
def stars():
    return population(4000, np.random.default_rng(0))


def value(table, name):
    return table.parts[name].value


def labels(table):
    cells = [cell.name for cell in table.schema["labels"].cells]
    return dict(zip(cells, value(table, "labels").T, strict=True))


def one_source(index=1, radius=1.0, axis_ratio=1.0, angle=0.0, centre=(0.0, 0.0)):
    arrays = (np.ones((1, 3)), *(np.array([x]) for x in (radius, axis_ratio, angle)), np.array([centre]))
    return Sources(np.zeros(1, int), np.array([index]), *arrays)


def arrays(table):
    return [array for part in table.parts.values() for array in (part.value, part.sigma) if array is not None]


def same(one, other):
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(arrays(one), arrays(other), strict=True))


def test_the_same_seed_is_the_same_table_whatever_the_workers(table, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert same(table, galaxies(N, seed=3, workers=2, **SMALL))
    assert not same(table, galaxies(N, seed=4, **SMALL))
    # the workers imported bagpipes anew
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_the_table_says_what_it_holds(table):
    assert table.schema.names[:5] == ("spectrum", "photometry", "image", "seeing", "labels")
    assert list(labels(table)) == ["log_mass", "log_sfr", "log_ssfr", "log_zmw", "redshift", "age"]
    assert value(table, "image").shape == (N, 3, 32, 32)
    ucds = {spec.ucd for spec in table.schema.modalities} | {c.ucd for s in table.schema.modalities for c in s.cells}
    assert all(check_ucd(ucd, check_controlled_vocabulary=True) for ucd in ucds if ucd)
    for name in table.schema.names:
        part = table.parts[name]
        assert part.seen.all() or (name == "spectrum" and 0.98 < part.seen.mean() < 1)
        assert (part.sigma is None) == (name not in ("spectrum", "photometry", "image"))


def test_labels_obey_their_relations(table):
    found = labels(table)
    np.testing.assert_allclose(found["log_ssfr"], found["log_sfr"] - found["log_mass"])
    a_v, onset, tau, *_ = value(table, "true_physics").T
    s = np.linspace(0, 1, 4001) * onset[:, None]
    rate = s * np.exp(-s / tau[:, None])
    mean = np.trapezoid(s * rate, s, axis=1) / np.trapezoid(rate, s, axis=1)
    np.testing.assert_allclose(found["age"], onset - mean, rtol=0.01)
    recent = s > onset[:, None] - 0.1
    formed = np.trapezoid(rate, s, axis=1)
    ssfr = np.log10(np.trapezoid(rate * recent, s, axis=1) / formed / 1e8)
    # of the mass of all stars formed, 40 to 80 % is still there
    living = 10 ** (ssfr - found["log_ssfr"])
    assert ((living > 0.4) & (living < 0.8)).all()


def test_the_population_is_the_one_described(stars):
    m, z = stars.log_mass, stars.redshift
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    np.testing.assert_allclose(kiloparsecs_per_arcsec(z[:9]) * 60, cosmology.kpc_proper_per_arcmin(z[:9]).value, 1e-4)
    assert (stars.onset < cosmology.age(z).value).all()
    assert 0.03 < z.min() and z.max() < 0.6 and 0.14 < np.median(z) < 0.2
    for low, expected in ((9.0, -0.62), (10.05, -0.25), (11.0, 0.14)):
        near = np.abs(m - low) < 0.1
        assert np.median(stars.log_zmw[near]) == pytest.approx(expected, abs=0.08)
    assert stars.a_v[~stars.quiescent].mean() > 2 * stars.a_v[stars.quiescent].mean()
    assert stars.quiescent[m > 11].mean() > 0.7 and stars.quiescent[m < 9.5].mean() < 0.2
    shorter = population(100, np.random.default_rng(0))
    np.testing.assert_array_equal(shorter.log_mass, m[:100])


def test_light_is_linear_in_mass_and_the_limit_is_that_of_the_survey(stars):
    grid = Grid(start=3800, stop=8400, size=200, spacing="log", unit="Angstrom")
    one = light(stars[:30], grid)
    two = light(replace(stars[:30], log_mass=stars.log_mass[:30] + np.log10(2)), grid)
    for field in ("spectrum", "photometry", "sfr"):
        np.testing.assert_allclose(getattr(two, field), 2 * getattr(one, field), rtol=1e-10)
    np.testing.assert_array_equal(two.age, one.age)
    assert (22.5 - 2.5 * np.log10(one.photometry[:, 1])).max() < 19.5 + 0.5


def test_spectrum_is_the_light_of_the_photometry_that_falls_into_the_fibre(table):
    wavelength, flux = table.schema["spectrum"].grid.centres(), 1e-17 * value(table, "true_spectrum")
    structure = value(table, "true_structure")
    for band, name in enumerate("gr"):
        share, disc, bulge = structure[:, 4 + band], structure[:, 7], structure[:, 8]
        inner, outer = (in_aperture(*each, FIBRE, FIBRE_SEEING) for each in ((bulge, 4), (disc, 1)))
        taken = share * inner + (1 - share) * outer
        low, high = BANDS[name]
        curve = erf(np.log(wavelength / low) / 0.02) - erf(np.log(wavelength / high) / 0.02)
        norm = 2.99792458e18 * np.trapezoid(curve / wavelength, wavelength)
        found = np.trapezoid(flux * wavelength * curve, wavelength, axis=1) / norm / 3.631e-29
        np.testing.assert_allclose(found, taken * value(table, "true_photometry")[:, band], rtol=0.025)


def test_lines_lie_where_the_redshift_puts_them():
    found = galaxies(12, seed=1, bins=1500, pixels=2)
    wavelength, flux = found.schema["spectrum"].grid.centres(), value(found, "true_spectrum")
    for row in np.flatnonzero((labels(found)["log_ssfr"] > -10.5) & (labels(found)["redshift"] < 0.25)):
        halpha = 6563.0 * (1 + labels(found)["redshift"][row])
        near = np.abs(wavelength / halpha - 1) < 0.01
        assert wavelength[near][flux[row, near].argmax()] == pytest.approx(halpha, rel=1e-3)


@pytest.mark.parametrize(("index", "tolerance"), [(1, 5e-4), (4, 5e-3)])
def test_images_equal_direct_integration(index, tolerance):
    radius, q, angle, seeing, pixels, fine = 1.0, 0.4, 0.7, 1.1, 32, 15
    step = PIXEL / fine
    x = (np.arange(pixels * fine) - 0.5 * (pixels * fine - 1)) * step
    u, v = np.meshgrid(x - 0.3, x + 0.5)
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    b = gammaincinv(2 * index, 0.5)
    profile = np.exp(-b * (np.hypot(along, across / q) / radius) ** (1 / index))
    t = np.linspace(0, 40, 200_001) ** 2  # r = t: dense at the cusp
    profile /= 2 * np.pi * q * np.trapezoid(np.exp(-b * (t / radius) ** (1 / index)) * t, t)
    wide = np.arange(-x.size + 1, x.size) * step
    scale = seeing / (2 * np.sqrt(2 ** (1 / 3.5) - 1))
    psf = (1 + (wide[:, None] ** 2 + wide**2) / scale**2) ** -3.5 * 2.5 / (np.pi * scale**2)
    expected = fftconvolve(psf, profile, mode="valid").reshape(pixels, fine, pixels, fine).sum((1, 3)) * step**4
    found = images(one_source(index, radius, q, angle, (0.3, -0.5)), np.array([seeing]), pixels)[0, 1]
    assert np.abs(found - expected).max() < tolerance * expected.max()


def test_an_exponential_disc_has_its_half_light_radius_axis_ratio_and_angle():
    radius, q, angle, pixels, seeing = 14.0, 0.5, 2.2, 512, 0.9
    image = images(one_source(1, radius, q, angle), np.array([seeing]), pixels)[0, 0].astype(float)
    assert image.sum() == pytest.approx(1, abs=1e-3)
    x = (np.arange(pixels) - 0.5 * (pixels - 1)) * PIXEL
    u, v = np.meshgrid(x, x)
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    within = np.hypot(along, across / q)
    order = np.argsort(within, axis=None)
    growth = np.cumsum(image.ravel()[order])
    assert np.interp(0.5, growth, within.ravel()[order]) == pytest.approx(radius, rel=0.01)
    xx, yy, xy = (np.sum(image * product) for product in (u * u, v * v, u * v))
    assert 0.5 * np.arctan2(2 * xy, xx - yy) % np.pi == pytest.approx(angle, abs=3e-3)
    major = np.sum(image * along**2)
    assert major == pytest.approx(3 * (radius / 1.678347) ** 2, rel=0.03)


def test_images_hold_the_light_of_the_photometry(stars):
    seen = shapes(stars[:8], np.random.default_rng(1), single=False)
    flux = np.arange(1.0, 25.0).reshape(8, 3)
    seen = replace(seen, disc=np.minimum(seen.disc, 1.5), bulge=np.minimum(seen.bulge, 1.0))
    drawn = sources(seen, flux)
    order = np.argsort(drawn.owner, kind="stable")
    found = images(drawn[order], seen.seeing, 160)
    np.testing.assert_allclose(found.sum((2, 3)), flux, rtol=5e-3)
    # the bulge's share is larger in redder bands
    assert (np.median(np.diff(seen.share, axis=1), axis=0) > 0).all()


def test_half_the_light_lies_within_the_half_light_radius():
    disc, bulge, share = np.array([2.0, 1.0, 3.0]), np.array([0.5, 2.0, 1.0]), np.array([0.3, 0.8, 0.0])
    found = half_light_radius(disc, bulge, share)

    def missing(r, row):
        return (share * enclosed(r / bulge, 4) + (1 - share) * enclosed(r / disc, 1))[row] - 0.5

    np.testing.assert_allclose(found, [brentq(missing, 0.1, 10, args=(row,)) for row in range(3)])
    assert found[2] == pytest.approx(3.0)


def test_structure_is_independent_of_what_makes_the_spectrum(stars):
    seen = shapes(stars, np.random.default_rng(2), single=False)
    turn = (1 - seen.axis_ratio) * np.exp(2j * seen.angle)
    light_of = np.stack([stars.redshift, stars.log_mass, stars.a_v, stars.log_zmw, np.log(stars.tau), stars.quiescent])
    for shape in (seen.axis_ratio, turn.real, turn.imag):
        assert np.abs([np.corrcoef(shape, physics)[0, 1] for physics in light_of]).max() < 0.06
    # sizes are not: they grow with mass
    assert np.corrcoef(np.log(seen.half_light * kiloparsecs_per_arcsec(stars.redshift)), stars.log_mass)[0, 1] > 0.4


@pytest.mark.parametrize("index", [1, 4])
def test_what_falls_into_a_circle_is_what_the_image_holds_there(index):
    radius, seeing, pixels = 1.3, 1.1, 65
    image = images(one_source(index, radius), np.array([seeing]), pixels)[0, 0].astype(float)
    x = (np.arange(pixels) - 32) * PIXEL
    fine = (np.arange(-10, 11) / 21) * PIXEL
    inside = [np.hypot(x[:, None] + v, x + u) < 2.5 for u in fine for v in fine]
    assert np.sum(image * np.mean(inside, axis=0)) == pytest.approx(
        in_aperture(np.array([radius]), index, 2.5, seeing)[0], rel=5e-3
    )


def test_the_fibre_sees_the_middle_and_no_inclination(stars):
    seen = shapes(stars, np.random.default_rng(4), single=False)
    taken = in_fibre(seen, WAVES)
    assert 0.1 < np.median(taken) < 0.2 and 0 < taken.min() and taken.max() < 0.6
    assert (taken[:, 1] > taken[:, 0]).mean() > 0.9
    np.testing.assert_array_equal(taken, in_fibre(replace(seen, axis_ratio=0 * seen.axis_ratio + 1), WAVES))
    single = in_fibre(shapes(stars, np.random.default_rng(4), single=True), WAVES)
    np.testing.assert_array_equal(single[:, 0], single[:, 1])


def test_neighbours_are_of_the_stated_density():
    side = 64 * PIXEL
    found = neighbours(4000, side, np.random.default_rng(0))
    assert len(found) / 4000 == pytest.approx(DENSITY * (side / 60) ** 2, rel=0.05)
    assert np.abs(found.centre).max() <= side / 2
    r = 22.5 - 2.5 * np.log10(found.flux[:, 1])
    assert np.mean(r < 23) == pytest.approx(10**-0.35, abs=0.03)


def rendered(table):
    """Images without noise, from nothing but the truth that the table holds."""
    radius, q, cos2, sin2, *_ = value(table, "true_structure").T
    n = len(table)
    flux, angle = value(table, "true_photometry")[:, :3], 0.5 * np.arctan2(sin2, cos2)
    every = Sources(np.arange(n), np.ones(n, int), flux, radius, q, angle, np.zeros((n, 2)))
    return images(every, value(table, "seeing")[:, 0], value(table, "image").shape[-1])


@pytest.mark.parametrize("snr", [None, 40.0])
def test_single_galaxies_are_their_truth_and_noise_of_the_stated_error_bars(snr):
    table = galaxies(12, seed=8, bins=64, pixels=48, components="single", image_snr=snr)
    part, true = table.parts["image"], rendered(table)
    pull = (part.value - true) / part.sigma
    assert pull.mean() == pytest.approx(0, abs=0.01)
    assert pull.std() == pytest.approx(1, abs=0.01)
    ratio = np.sqrt(np.sum((true[:, 1] / part.sigma[:, 1]) ** 2, axis=(1, 2)))
    assert (ratio > 40).all() if snr is None else ratio == pytest.approx(snr, rel=1e-4)
    assert not value(table, "true_structure")[:, 4:7].any()  # no bulge
    assert not value(table, "true_structure")[:, 9].any()  # no neighbour


def test_spectra_and_photometry_are_the_truth_and_noise_of_the_stated_error_bars(table):
    for name, least in (("spectrum", 0.97), ("photometry", 0.8)):
        part = table.parts[name]
        pull = ((part.value - value(table, f"true_{name}")) / part.sigma)[part.seen]
        assert least < pull.std() < 2 - least
        assert np.abs(pull.mean()) < 4 / np.sqrt(pull.size)
    noise = np.nanmedian(table.parts["spectrum"].sigma, axis=0)
    wavelength = table.schema["spectrum"].grid.centres()
    assert noise[0] > 2 * np.median(noise) and noise[wavelength > 7200].max() > 1.3 * np.median(noise)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"workers": 0}, "workers=0"),
        ({"bins": 1}, "bins=1"),
        ({"pixels": 1}, "pixels=1"),
        ({"components": "triple"}, "'triple'"),
        ({"image_snr": 0.0}, "positive image_snr"),
    ],
)
def test_wrong_requests_are_refused(wrong, message):
    with pytest.raises(RequestError, match=message):
        galaxies(**({"n": 2, "seed": 0} | wrong))


def test_without_bagpipes_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bagpipes", None)
    with pytest.raises(RequestError, match=r"pip install 'consilience\[galaxies\]'"):
        galaxies(2, seed=0)
