"""The nearby survey: labels with the stated gaps and relations, stated errors, images of the same light."""

import numpy as np
import pytest
from astropy.io.votable.ucd import check_ucd

from consilience.errors import RequestError
from consilience.simulators.galaxy_images import in_aperture
from consilience.simulators.galaxy_population import kiloparsecs_per_arcsec
from consilience.simulators.sdss import CAMERA, FIBRE, FIBRE_SEEING, LOST, sdss_galaxies

N = 400


@pytest.fixture(scope="module")
def table():
    return sdss_galaxies(N, seed=1, workers=1)


def value(table, name):
    return table.parts[name].value


def cells(table, name):
    return dict(zip(table.schema[name].cell_names(), value(table, name).T, strict=True))


def measured(table, name):
    return dict(zip(table.schema[name].cell_names(), table.parts[name].measured.T, strict=True))


def test_the_same_seed_is_the_same_table_whatever_the_workers():
    one, two = (sdss_galaxies(20, seed=3, pixels=8, workers=workers) for workers in (1, 2))
    for name, part in one.parts.items():
        np.testing.assert_array_equal(part.value, two.parts[name].value)
        np.testing.assert_array_equal(part.state, two.parts[name].state)
    assert not np.array_equal(value(one, "labels"), value(sdss_galaxies(20, seed=4), "labels"))


def test_the_table_says_what_it_holds(table):
    names = ("photometry", "labels", "detected", "true_photometry", "true_labels", "true_detected")
    assert table.schema.names == (*names, "true_structure", "true_physics")
    pictured = sdss_galaxies(2, seed=0, pixels=8)
    assert pictured.schema.names == ("photometry", "image", "seeing", *table.schema.names[1:])
    assert table.parts["photometry"].sigma is not None
    assert table.parts["labels"].sigma is None
    ucds = {spec.ucd for spec in table.schema.modalities} | {c.ucd for s in table.schema.modalities for c in s.cells}
    assert all(check_ucd(ucd, check_controlled_vocabulary=True) for ucd in ucds if ucd)


def test_photometry_scatters_by_its_error_bars_and_has_gaps(table):
    part, true = table.parts["photometry"], value(table, "true_photometry")
    pull = ((part.value - true) / part.sigma)[part.measured]
    assert np.abs(pull.mean()) < 0.1
    assert pull.std() == pytest.approx(1, abs=0.08)
    assert 1 - part.measured.mean() == pytest.approx(LOST, abs=0.012)
    r = 22.5 - 2.5 * np.log10(true[:, 2])
    assert np.quantile(r, 0.99) < 17.77 + 0.35
    assert (np.diff(np.median(true, axis=0)) > 0).all()  # galaxies are red


def test_labels_are_there_where_they_can_be_measured(table):
    there, truth, found = measured(table, "labels"), cells(table, "true_labels"), cells(table, "labels")
    for name in ("log_mass", "log_sfr", "redshift"):
        assert there[name].all()
    assert there["log_mbh"].mean() == pytest.approx(0.9, abs=0.04)
    detected = value(table, "detected").ravel() == 1
    assert 0.3 < detected.mean() < 0.6
    for name in ("oh", "log_ha", "log_hb", "log_nii", "log_oiii"):
        np.testing.assert_array_equal(there[name], detected)
    # noise moves few galaxies over the limit
    assert np.mean((value(table, "true_detected").ravel() == 1) == detected) > 0.92
    for name in ("log_mass", "log_sfr", "redshift", "log_mbh", "oh"):
        np.testing.assert_array_equal(found[name][there[name]], truth[f"true_{name}"][there[name]])
    bright = detected & (truth["true_log_ha"] > 2)
    assert 0.005 < np.std((found["log_ha"] - truth["true_log_ha"])[bright]) < 0.02
    # those seen have a true flux that could be
    assert truth["true_log_oiii"][detected].min() > 0.3


def test_relations_are_those_described(table):
    truth, physics, structure = (cells(table, f"true_{name}") for name in ("labels", "physics", "structure"))
    m, z = truth["true_log_mass"], truth["true_redshift"]
    rest = truth["true_log_mbh"] - 8.32 - 5.64 * np.log10(physics["dispersion"] / 200)
    assert rest.std() == pytest.approx(0.38, abs=0.04)
    assert abs(rest.mean()) < 0.06
    size = np.log10(structure["half_light_radius"] * kiloparsecs_per_arcsec(z)) - 0.75 - 0.3 * (m - 10.7)
    at_mass = np.log10(physics["dispersion"]) - 2.07 - 0.3 * (m - 10.26)
    slope = np.polyfit(size, at_mass, 1)[0]
    assert slope == pytest.approx(-0.3, abs=0.06)
    forming = physics["quiescent"] == 0
    # case B with dust: more Hα than Hβ
    decrement = truth["true_log_ha"] - truth["true_log_hb"]
    assert (decrement[forming] > np.log10(2.7)).all()
    assert 0.02 < z.min() and z.max() < 0.3


def test_the_fibre_takes_lines_of_the_disc(table):
    truth, forming = cells(table, "true_labels"), cells(table, "true_physics")["quiescent"] == 0
    share = in_aperture(cells(table, "true_structure")["disc_radius"], 1, FIBRE, FIBRE_SEEING)
    seen = truth["true_log_ha"] + 2 * np.log10(truth["true_redshift"])  # as from one distance
    sfr = truth["true_log_sfr"][forming]
    assert np.corrcoef(seen[forming], sfr)[0, 1] < 0.85
    assert np.corrcoef((seen - np.log10(share))[forming], sfr)[0, 1] > 0.9


def test_blind_images_hold_the_same_light_in_the_shape_of_another():
    own, other = (sdss_galaxies(40, seed=6, pixels=64, blind=blind) for blind in (False, True))
    for name in ("true_photometry", "true_structure", "true_physics"):
        np.testing.assert_array_equal(value(own, name), value(other, name))
    flux = value(own, "true_photometry")[:, CAMERA.imaged]
    size = np.log(cells(own, "true_structure")["half_light_radius"])
    tell = []
    for some in (own, other):
        assert some.parts["image"].measured.any(axis=(1, 2, 3)).mean() > 0.85
        image = value(some, "image")[:, 1].astype(float)
        there = (cells(own, "true_structure")["half_light_radius"] < 5) & (image.sum((1, 2)) > 0)
        # neighbours add to it, the wings of large galaxies leave it
        assert np.median(image[there].sum((1, 2)) / flux[there, 1]) == pytest.approx(1.0, abs=0.1)
        middle = image[:, 30:34, 30:34].sum((1, 2)) / flux[:, 1]
        tell.append(np.corrcoef(size[there], np.log(np.maximum(middle[there], 1e-3)))[0, 1])
    assert tell[0] < -0.8
    assert abs(tell[1]) < 0.4


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 3, "pixels": 1}, {"n": 3, "workers": 0}])
def test_numbers_out_of_range(bad):
    with pytest.raises(RequestError, match="Expected n and workers of at least 1"):
        sdss_galaxies(**bad, seed=0)
