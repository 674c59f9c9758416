"""The simulated quasars obey the relations that the docstrings cite, and the survey that they describe."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from astropy.io.votable.ucd import check_ucd
from sklearn.ensemble import HistGradientBoostingRegressor

from consilience.errors import RequestError
from consilience.simulators import quasars, quasars_at
from consilience.simulators.quasar_lines import LINES, LOG_EDDINGTON, VIRIAL
from consilience.simulators.quasar_spectra import GRID, physics, smc_extinction, spectra

WAVELENGTH = GRID.centres()
SPEED_OF_LIGHT = 299792.458


@pytest.fixture(scope="module")
def table():
    return quasars(4000, seed=7)


def profile(flux, ion):
    """Continuum-subtracted profiles around a line and their equivalent widths (N,), by a straight local continuum."""
    centre = next(line.wavelength for line in LINES if line.name == ion)
    near = np.abs(WAVELENGTH / centre - 1) < 0.035
    x, y = WAVELENGTH[near], flux[:, near]
    fraction = (x - x[0]) / (x[-1] - x[0])
    continuum = y[:, :1] + fraction * (y[:, -1:] - y[:, :1])
    return x, y - continuum, np.trapezoid(y / continuum - 1, x, axis=1)


def measured_fwhm(flux, ion):
    """Full width at half maximum in km/s of noiseless profiles, shape (N,)."""
    x, line, _ = profile(flux, ion)
    fine = np.geomspace(x[0], x[-1], 4000)
    found = []
    for row in line:
        y = np.interp(fine, x, row)
        above = fine[y > 0.5 * y.max()]
        found.append(np.log(above[-1] / above[0]) * SPEED_OF_LIGHT)
    return np.array(found)


@pytest.mark.parametrize(("ion", "family"), [("C IV", "civ"), ("Mg II", "mgii")])
def test_widths_follow_the_virial_relation(ion, family):
    mass = np.linspace(8.6, 9.2, 7)
    luminosity = np.full(7, 46.4)
    width = np.log10(measured_fwhm(quasars_at(luminosity, mass), ion))
    virial = VIRIAL[family]
    log_l = luminosity - np.log10(virial.correction)
    recovered = virial.a + virial.b * (log_l - 44) + 2 * width
    assert np.polyfit(mass, width, 1)[0] == pytest.approx(0.5, abs=0.06)
    np.testing.assert_allclose(recovered, mass, atol=0.12)


def test_widths_fall_with_luminosity_along_the_radius_luminosity_relation():
    luminosity = np.linspace(46.0, 46.8, 5)
    width = np.log10(measured_fwhm(quasars_at(luminosity, np.full(5, 8.9)), "C IV"))
    assert np.polyfit(luminosity, width, 1)[0] == pytest.approx(-0.5 * VIRIAL["civ"].b, abs=0.05)


@pytest.mark.parametrize(("ion", "tolerance"), [("C IV", 0.03), ("Mg II", 0.05)])
def test_equivalent_widths_follow_the_baldwin_effect(ion, tolerance):
    luminosity = np.linspace(45.6, 47.2, 9)
    # M rises as 2 b L/2 = 0.53 L, which keeps widths fixed, so that a fixed window measures a fixed share of the line.
    flux = quasars_at(luminosity, 8.6 + 0.53 * (luminosity - 46.4))
    slope = np.polyfit(luminosity, np.log10(profile(flux, ion)[2]), 1)[0]
    assert slope == pytest.approx(next(line.baldwin for line in LINES if line.name == ion), abs=tolerance)


def test_the_baldwin_effect_survives_the_scatter(table):
    luminosity, mass, _, _ = table.parts["true_labels"].value.T
    width = np.log10(profile(table.parts["true_spectrum"].value, "C IV")[2])
    # A fixed window loses the wings of wide lines; log M - 0.53 log L, which sets the width, takes that up.
    design = np.stack([luminosity - 46.4, mass - 0.53 * (luminosity - 46.4) - 9.0, np.ones(len(mass))], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, width, rcond=None)
    assert coefficients[0] == pytest.approx(-0.2, abs=0.03)
    assert 0.1 < (width - design @ coefficients).std() < 0.16


def test_iron_rises_and_oxygen_falls_with_the_eddington_ratio():
    eddington = np.array([-1.2, -0.7, -0.2])
    flux = quasars_at(np.full(3, 46.4), 46.4 - LOG_EDDINGTON - eddington)
    continuum = (WAVELENGTH / 3000) ** -1.55
    iron = (flux / continuum - 1)[:, (WAVELENGTH > 4450) & (WAVELENGTH < 4650)].mean(axis=1)
    near = np.abs(WAVELENGTH - 5008.24) < 25
    peak = (flux / continuum)[:, near].max(axis=1) - (flux / continuum)[:, near].min(axis=1)
    assert (np.diff(iron) > 0).all()
    assert (np.diff(peak) < 0).all()


def test_c_iv_is_blueshifted_more_at_high_eddington_ratio():
    eddington = np.array([-1.2, -0.2])
    x, line, _ = profile(quasars_at(np.full(2, 46.4), 46.4 - LOG_EDDINGTON - eddington), "C IV")
    velocity = SPEED_OF_LIGHT * np.log((line * x).sum(axis=1) / line.sum(axis=1) / 1549.06)
    assert velocity[1] < velocity[0] < 0
    assert -2500 < velocity[1] < -600


def test_dust_is_that_of_the_small_magellanic_cloud():
    log_lbol, log_mbh, slope = np.full(2, 47.5), np.full(2, 9.5), np.full(2, -1.5)
    flux = spectra(physics(log_lbol, log_mbh, slope, np.array([0.0, 0.1]), np.zeros))
    extinction = -2.5 * np.log10(flux[1] / flux[0])
    blue = WAVELENGTH < 2000  # no host there
    expected = 0.1 * (smc_extinction(WAVELENGTH) - smc_extinction(np.array(3000.0)))
    np.testing.assert_allclose(extinction[blue], expected[blue], atol=0.005)
    red = np.argmin(np.abs(WAVELENGTH - 5040))
    assert expected[red] < extinction[red] + 0.02 < 0.05


def test_the_host_is_redder_and_stronger_in_faint_quasars():
    luminosity = np.array([45.3, 47.3])
    flux = quasars_at(luminosity, luminosity - LOG_EDDINGTON + 0.7) / (WAVELENGTH / 3000) ** -1.55
    excess = (flux[0] - flux[1])[[np.argmin(np.abs(WAVELENGTH - w)) for w in (3300, 4750)]]
    assert excess[1] > 0.15
    assert abs(excess[0]) < 0.1


def test_a_line_has_its_equivalent_width():
    with_line = physics(*(np.array([v]) for v in (46.4, 8.4, -1.5, 0.0)), np.zeros)
    width = with_line.width.copy()
    width[:, [line.name for line in LINES].index("C IV")] = -np.inf
    without = replace(with_line, width=width)
    line = (spectra(with_line) - spectra(without))[0]
    # the width refers to the power law at the line's rest wavelength
    assert np.trapezoid(line, WAVELENGTH) == pytest.approx(26.0 * (1549.06 / 3000) ** -1.5, rel=1e-3)


def test_the_population_is_the_cited_one(table):
    labels = table.parts["true_labels"].value
    np.testing.assert_allclose(labels[:, 2], labels[:, 0] - labels[:, 1] - LOG_EDDINGTON, atol=1e-12)
    np.testing.assert_allclose(labels.mean(axis=0), [46.4, 9.0, -0.7, -1.55], atol=0.04)
    np.testing.assert_allclose(labels.std(axis=0), [0.47, 0.59, 0.35, 0.25], atol=0.03)
    assert abs(np.corrcoef(labels[:, 0], table.parts["redshift"].value[:, 0])[0, 1]) < 0.06


def test_at_least_forty_percent_of_the_cells_are_missing(table):
    seen = table.parts["spectrum"].seen
    assert 0.40 < 1 - seen.mean() < 0.55
    assert seen.mean(axis=0).min() > 0.1  # every pixel is seen in some quasars
    assert seen.sum(axis=1).min() > 100
    observed = WAVELENGTH * (1 + table.parts["redshift"].value)
    assert observed[seen].min() > 3790
    assert observed[seen].max() < 9210


def test_noise_is_white_and_as_large_as_stated(table):
    part = table.parts["spectrum"]
    noise = ((part.value - table.parts["true_spectrum"].value) / part.sigma)[part.seen]
    assert noise.mean() == pytest.approx(0.0, abs=0.005)
    assert noise.var() == pytest.approx(1.0, abs=0.02)
    assert np.mean(np.abs(noise) < 1) == pytest.approx(0.6827, abs=0.005)
    full = (part.value - table.parts["true_spectrum"].value) / part.sigma
    both = part.seen[:, 1:] & part.seen[:, :-1]
    assert np.mean((full[:, 1:] * full[:, :-1])[both]) == pytest.approx(0.0, abs=0.005)


def test_signal_to_noise_is_about_eight_and_falls_at_the_blue_end(table):
    ratio = table.parts["true_spectrum"].value / table.parts["spectrum"].sigma
    assert np.median(np.nanmedian(ratio, axis=1)) == pytest.approx(8.0, rel=0.15)
    observed = WAVELENGTH * (1 + table.parts["redshift"].value)
    sigma = table.parts["spectrum"].sigma
    assert np.nanmedian(sigma[(observed > 3800) & (observed < 4000)]) > 2 * np.nanmedian(
        sigma[(observed > 6000) & (observed < 6500)]
    )


def test_label_errors_are_calibrated_and_independent(table):
    part = table.parts["labels"]
    pull = (part.value - table.parts["true_labels"].value) / part.sigma
    np.testing.assert_allclose(np.nanvar(pull, axis=0), 1.0, atol=0.08)
    np.testing.assert_allclose(np.nanmean(pull, axis=0), 0.0, atol=0.06)
    complete = np.isfinite(pull).all(axis=1)
    np.testing.assert_allclose(np.corrcoef(pull[complete].T), np.eye(4), atol=0.06)
    assert 0.10 < 1 - part.seen.mean() < 0.15
    none = ~part.seen.any(axis=1)
    assert 0.05 < none.mean() < 0.11
    assert (part.seen.any(axis=1) & ~complete).mean() > 0.1
    redshift = table.parts["redshift"]
    assert redshift.seen.all()
    assert (redshift.sigma == 1e-3).all()


def test_gaps_and_error_bars_do_not_tell_the_labels(table):
    part = table.parts["spectrum"]
    pattern = np.hstack([part.seen[:, ::10], np.nan_to_num(np.log(part.sigma[:, ::10])), table.parts["redshift"].value])
    labels = table.parts["true_labels"].value
    for column in range(4):
        trees = HistGradientBoostingRegressor(max_iter=20, random_state=0).fit(pattern[:3000], labels[:3000, column])
        assert trees.score(pattern[3000:], labels[3000:, column]) < 0.02


def test_the_truth_is_complete_and_without_errors(table):
    for name in ("true_spectrum", "true_labels"):
        part = table.parts[name]
        assert part.measured.all()
        assert part.sigma is None
        assert part.value.dtype == np.float64
    assert table.parts["true_spectrum"].value.min() > 0


def test_same_seed_same_table():
    one, two, other = quasars(50, seed=1), quasars(50, seed=1), quasars(50, seed=2)
    for name, part in one.parts.items():
        np.testing.assert_array_equal(part.value, two.parts[name].value)
        assert not np.array_equal(part.value, other.parts[name].value, equal_nan=True)
    assert one.ids.tolist() == two.ids.tolist()


def test_units_and_ucds_are_known(table):
    for spec in table.schema.modalities:
        for ucd in [spec.ucd, *(cell.ucd for cell in spec.cells)]:
            assert not ucd or check_ucd(ucd, check_controlled_vocabulary=True, has_colon=False), ucd
    assert table.schema["labels"].cell_units() == ["dex(erg/s)", "dex(Msun)", "dex", ""]


def test_quasars_at_broadcasts_and_has_no_scatter():
    flux = quasars_at(np.array([46.0, 46.0]), np.array([9.0, 9.0]), -1.4)
    assert flux.shape == (2, 590)
    np.testing.assert_array_equal(flux[0], flux[1])
    assert quasars_at(np.array(46.0), np.array(9.0)).shape == (1, 590)


def test_none_at_all_is_refused():
    with pytest.raises(RequestError, match="at least 1"):
        quasars(0, seed=0)


def test_the_cost_per_quasar_allows_twenty_thousand():
    start = time.process_time()
    quasars(1000, seed=0)
    assert time.process_time() - start < 3.0
    tracemalloc.start()
    try:
        quasars(1000, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
