"""Studies run at tiny sizes and record what they promise; real data are used where they exist."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from consilience.cli import app
from consilience.data.schema import validated
from consilience.errors import DataError, RequestError, SchemaError
from consilience.simulators.deep import deep_galaxies
from consilience.simulators.galaxies import galaxies
from consilience.simulators.quasar_spectra import GRID
from consilience.simulators.sdss import sdss_galaxies
from consilience.studies import photoz, quasars_hst, runner
from consilience.studies.fly import heading_error
from consilience.studies.galaxies_flow import _shallower
from consilience.studies.galaxy_discs import least_squares
from consilience.studies.galaxy_fits import Settings, Split
from consilience.studies.galaxy_sweeps import _rows, variations
from consilience.studies.hyperspectral import _predicted
from consilience.studies.linear import mean_spectrum, principal_components
from consilience.studies.quasar_trends import CIV, HBETA, equivalent_width, half_width
from consilience.studies.quasars_sdss import Settings as SdssSettings
from consilience.studies.quasars_sdss import _hidden, _normalised
from consilience.studies.rat import _stretches
from consilience.studies.read_outs import ReadOut, explained
from consilience.studies.regressions import luminosity_line, ridge

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} here")
    return REAL / name


def ran(tmp_path, *words):
    """Numbers of a study run on the command line, and what it printed."""
    found = CliRunner().invoke(app, ["study", *map(str, words), "--quick", "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {"command", "seed", "versions", "threads", "seconds", "peak_memory_mb"} <= set(numbers["meta"])
    for key, value in numbers.items():
        assert key == "meta" or value is None or isinstance(value, float | int)
    assert (tmp_path / "table.md").read_text().startswith("## ")
    return numbers, found.stdout


def test_quasars(tmp_path):
    numbers, text = ran(tmp_path, "quasars", "--seed", 3)
    assert numbers["meta"]["seed"] == 3
    assert numbers["missing_fraction"] > 0.4
    own = [numbers[f"nlpd_{cell}_model"] for cell in ("log_lbol", "log_mbh", "log_edd", "slope")]
    assert np.isfinite(own).all()
    peers = ("mean", "ridge_on_PCA", "boosted_trees")
    assert numbers["splits"] == 2
    kept = json.loads((tmp_path / "splits.json").read_text())
    assert len(kept["splits"]) == 2
    model = np.mean([split["nlpd"]["model"] for split in kept["splits"]], axis=0)
    assert model.tolist() == pytest.approx(own)
    worst = max(  # of scores averaged over splits: the same baseline may not be best in each
        numbers[f"nlpd_{cell}_model"] - min(numbers[f"nlpd_{cell}_{peer}"] for peer in peers)
        for cell in ("log_lbol", "log_mbh", "log_edd", "slope")
    )
    assert numbers["nlpd_minus_best_baseline_max"] >= worst - 1e-9
    assert numbers["coverage68_error_max_fresh_terciles"] >= numbers["coverage68_error_max_fresh"]
    for key in ("baldwin_slope", "virial_slope_mgii", "virial_slope_hbeta"):
        assert np.isfinite([numbers[f"{key}_true"], numbers[f"{key}_model"]]).all()
    assert -0.3 < numbers["baldwin_slope_true"] < -0.1
    assert 0.2 < numbers["virial_slope_hbeta_true"] < 0.6
    errors = [abs(numbers[f"coverage68_{cell}_fresh"] - 0.68) for cell in ("log_lbol", "log_mbh", "log_edd", "slope")]
    assert numbers["coverage68_error_max_fresh"] == pytest.approx(max(errors))
    assert "simultaneous 99 % band" in text
    for name in ("report.html", "model/model.json"):
        assert (tmp_path / name).is_file()
    for name in ("comparison", "coverage", "predicted", "spectrum", "trends"):
        assert (tmp_path / f"{name}.png").is_file()


def test_a_size_lies_between_the_settings_and_the_quick_ones():
    large = runner.configuration("quasars", size="23000")
    assert large.study["train"] == 20700
    assert large.config.family.functions == {"spectrum": 24}
    assert large.config.family.latent_dim == runner.configuration("quasars").config.family.latent_dim
    assert runner.configuration("quasars", size="23000", quick=True).study["train"] == 150
    with pytest.raises(RequestError, match=r"among \['1000', '23000'\]; got '5'"):
        runner.configuration("quasars", size="5")


def test_widths_of_known_lines():
    wavelength = GRID.centres()
    sigma, centre, area = 18.0, 1549.06, 30.0
    profile = np.exp(-0.5 * ((wavelength - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    spectra = np.stack([2.0 + 2.0 * area * profile, np.full(len(wavelength), 3.0)])
    assert equivalent_width(spectra, CIV) == pytest.approx([area, 0.0], abs=1.5)
    sigma, centre = 22.0, 4855.0  # pixels have 11.7 Angstrom
    bump = 1 + 0.5 * np.exp(-0.5 * ((wavelength - centre) / sigma) ** 2)[None]
    assert half_width(bump, HBETA) == pytest.approx([2.3548 * sigma / centre * 299792.458], rel=0.05)
    assert np.isnan(half_width(np.ones((1, len(wavelength))), HBETA)).all()


def test_quasars_hst(tmp_path):
    numbers, text = ran(tmp_path, "quasars-hst", "--data", real("qso_hst_rm31"))
    assert {"rmse_log_mbh_with_luminosity", "rmse_log_mbh_spectrum_only", "coverage68_log_mbh"} <= set(numbers)
    assert numbers["objects"] == 3
    assert "luminosity line" in text
    assert (tmp_path / "predicted.png").is_file()


def test_quasars_sdss(tmp_path):
    numbers, _ = ran(tmp_path, "quasars-sdss", "--data", real("qso_sdss_picca80"))
    assert 0 < numbers["chi2_per_dof"] < 10
    assert numbers["test_objects"] > 5
    assert numbers["nlpd_minus_pca"] == pytest.approx(numbers["nlpd_model"] - numbers["nlpd_pca"])
    for name in ("noise.png", "spectrum.png"):
        assert (tmp_path / name).is_file()


def hst(rows=12, pixels=16):
    rng = np.random.default_rng(0)
    luminosity = rng.normal(45, 1, rows)
    labels = np.zeros((rows, 7))
    labels[:, 0], labels[:, 6] = 8 + 0.5 * (luminosity - 45) + 0.2 * rng.normal(size=rows), luminosity
    ivar = rng.uniform(1, 4, (rows, pixels)) * (rng.random((rows, pixels)) > 0.3)
    flux = np.where(ivar > 0, rng.normal(1, 0.1, (rows, pixels)), np.nan)
    return {
        "wavelength": 1223.0 + 2 * np.arange(pixels), "flux": flux, "ivar": ivar, "labels": labels,
        "label_ivar": np.full((rows, 7), 25.0), "object_names": np.array([f"o{row}" for row in range(rows)]),
    }  # fmt: skip


def test_rebinning_is_the_inverse_variance_mean():
    arrays = hst()
    obs = quasars_hst.observations(arrays, 4)
    weight, flux = arrays["ivar"][2, 4:8], np.nan_to_num(arrays["flux"][2, 4:8])
    assert obs.parts["spectrum"].value[2, 1] == pytest.approx((weight * flux).sum() / weight.sum())
    assert obs.parts["spectrum"].sigma[2, 1] == pytest.approx(weight.sum() ** -0.5)
    np.testing.assert_allclose(obs.schema["spectrum"].grid.centres()[1], arrays["wavelength"][4:8].mean())
    assert obs.parts["labels"].sigma[0].tolist() == [0.2, 0.2]


def test_a_left_out_object_does_not_enter_its_own_prediction():
    arrays = hst()
    left = np.array([4])
    changed = {**arrays, "labels": arrays["labels"].copy()}
    changed["labels"][4, 0] += 3
    ridges = [lambda obs, rows, both=both: ridge(obs, rows, luminosity=both) for both in (True, False)]
    for predict in (luminosity_line, *ridges):
        one, two = (predict(quasars_hst.observations(a, 4), left) for a in (arrays, changed))
        assert one.mean == two.mean
        assert one.scale == two.scale


def test_the_line_has_the_density_of_least_squares():
    from scipy import stats

    obs = quasars_hst.observations(hst(), 4)
    x, y = obs.parts["labels"].value[1:, 1], obs.parts["labels"].value[1:, 0]
    fit = stats.linregress(x, y)
    found = luminosity_line(obs, np.array([0]))
    at = obs.parts["labels"].value[0, 1]
    assert found.mean[0] == pytest.approx(fit.intercept + fit.slope * at)
    # standard error of the line there, from those of its coefficients about the mean
    s = fit.stderr * np.sqrt(((x - x.mean()) ** 2).sum())
    assert found.scale[0] == pytest.approx(np.hypot(s, np.hypot(s / len(x) ** 0.5, fit.stderr * (at - x.mean()))))


def spectra(rows=150, pixels=30):
    from consilience.data.observations import Observations
    from consilience.data.schema import Grid, ModalitySpec, Schema

    rng = np.random.default_rng(1)
    grid = Grid(start=1280.0, stop=3000.0, size=pixels, spacing="log", unit="Angstrom")
    z = rng.normal(size=(rows, 1))
    clean = 3 * (grid.centres() / 2000) ** -1.55 * (1 + 0.3 * z * np.sin(np.arange(pixels)))
    value = clean + 0.05 * rng.normal(size=clean.shape)
    value[rng.random(value.shape) < 0.1] = np.nan
    schema = Schema(modalities=(ModalitySpec(name="spectrum", grid=grid),))
    return Observations.from_arrays(schema, {"spectrum": value}, sigma={"spectrum": np.full(value.shape, 0.05)})


def test_linear_predictions_of_hidden_pixels_hold():
    table = spectra()
    train, test = table[:120], table[120:]
    size = SdssSettings(start=1280.0, stop=3000.0, pixels=30, train=0.5, gap=0.3, single=0.1)
    hidden = _hidden(test, size, np.random.default_rng(0))
    assert hidden.any(axis=1).all()
    assert not (hidden & ~test.parts["spectrum"].seen).any()
    given = test.hide_cells({"spectrum": hidden})
    chi2 = {}
    for name, predict in (("mean", mean_spectrum), ("components", principal_components)):
        found = predict(train, given)
        truth = test.parts["spectrum"].value[hidden]
        chi2[name] = np.mean((truth - found.mean[hidden]) ** 2 / (found.variance[hidden] + 0.05**2))
        assert 0.5 < chi2[name] < 1.8
    narrow, wide = (predict(train, given).variance[hidden].mean() for predict in (principal_components, mean_spectrum))
    assert narrow < 0.3 * wide


def test_hidden_pixels_play_no_part_in_the_norm():
    table = spectra()
    hidden = np.zeros(table.parts["spectrum"].value.shape, bool)
    hidden[:, 10:18] = True
    spoilt = table.parts["spectrum"].value.copy()
    spoilt[hidden] *= 100
    from dataclasses import replace

    other = replace(table, parts={"spectrum": replace(table.parts["spectrum"], value=spoilt)})
    one, two = (_normalised(obs, hidden).parts["spectrum"] for obs in (table, other))
    np.testing.assert_array_equal(one.value[~hidden], two.value[~hidden])
    np.testing.assert_array_equal(one.sigma, two.sigma)


def test_wrong_requests(tmp_path):
    with pytest.raises(RequestError, match="quasars-hst"):
        runner.run_study("quasars-hsd", tmp_path)
    with pytest.raises(RequestError, match="--data DIR"):
        runner.run_study("quasars-sdss", tmp_path)
    with pytest.raises(DataError, match="qso_sdss_picca80.npz"):
        runner.run_study("quasars-sdss", tmp_path, data=tmp_path)
    (tmp_path / "qso_sdss_picca80.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="readable NPZ"):
        runner.run_study("quasars-sdss", tmp_path, data=tmp_path)


def test_a_study_reads_other_settings(tmp_path):
    settings = tmp_path / "own.toml"
    settings.write_text('[study]\ntrain = 30\ntrainn = 3\ntest = 20\n[model]\nfamily = "SharedGPLVM"\n')
    with pytest.raises(SchemaError, match="Did you mean 'train'"):
        runner.run_study("quasars", tmp_path, settings=settings)
    settings.write_text('[model]\nfamily = "SharedGPLVM"\n[quick.train]\nmax_steps = 2\n')
    assert runner.configuration("quasars", settings=settings).config.train.max_steps == 2000
    assert runner.configuration("quasars", quick=True, settings=settings).config.train.max_steps == 2


def test_results_are_flat_finite_json(tmp_path):
    found = runner.Results({"a": float("nan"), "b": 1.5, "c": True}, {"Title": Table({"x": [1]})}, notes=("Said.",))
    runner.write_results(tmp_path, found, {"seed": 0})
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": None, "b": 1.5, "c": True, "meta": {"seed": 0}}
    assert (tmp_path / "table.md").read_text() == "## Title\n\n| x |\n|---|\n| 1 |\n\n- Said.\n"


@pytest.mark.parametrize("name", sorted(runner.STUDIES))
@pytest.mark.parametrize("quick", [False, True])
def test_every_study_has_fit_settings(name, quick):
    assert runner.configuration(name, quick=quick).study


def test_neural_sim(tmp_path):
    numbers, _ = ran(tmp_path, "neural-sim")
    assert {"r2_own_shared", "r2_own_private_spikes", "r2_own_private_images", "r2_leak_max"} <= set(numbers)
    assert {"r2_linear_shared", "length_scale_error_max", "r2_rates", "image_mse_fraction"} <= set(numbers)
    assert numbers["seconds"] > 0 and 0 < numbers["image_mse_fraction"] < 3
    for name in ("trajectories", "rates", "images"):
        assert (tmp_path / f"{name}.png").is_file()


def test_factors(tmp_path):
    numbers, _ = ran(tmp_path, "factors")
    kinds = ("", "_oversized", "_incomplete", "_oversized_incomplete")
    for which in (*kinds, *(f"{kind}_no_club" for kind in kinds)):
        assert numbers[f"r2_own_min{which}"] <= 1
        assert numbers[f"r2_leak_max{which}"] <= 1
    assert (tmp_path / "blocks.png").is_file()


def test_factors_need_a_model_with_blocks(tmp_path):
    settings = tmp_path / "own.toml"
    study = runner.configuration("factors", quick=True).study
    lines = [f"{key} = {list(value) if isinstance(value, list | tuple) else value}" for key, value in study.items()]
    settings.write_text("[study]\n" + "\n".join(lines) + '\n[model]\nfamily = "SharedGPLVM"\n')
    with pytest.raises(SchemaError, match="DisentangledVAE for factors"):
        runner.run_study("factors", tmp_path, settings=settings)


@pytest.mark.parametrize("data", [(), ("--data", "hsi_samson")])
def test_hyperspectral(tmp_path, data):
    numbers, _ = ran(tmp_path, "hyperspectral", *(real(word) if word == "hsi_samson" else word for word in data))
    blocks = ("private_rgb", "private_spectrum", "shared")
    pairs = [f"{one}_{other}" for one, other in itertools.combinations(blocks, 2)]
    read = ("all", *pairs, *blocks, "pca_rgb", "pca_spectrum", "pca_both")
    for name in read:
        assert 0 < numbers[f"mse_{name}"] < 1.5 and numbers[f"mse_{name}_sd"] >= 0
        assert -0.5 < numbers[f"r2_abundance_{name}"] <= 1
    # two training steps give no latents worth reading; components need none
    assert numbers["mse_pca_both"] < 0.5 and numbers["mse_mean"] > 0
    assert numbers["mse_all_minus_pca_both"] == pytest.approx(numbers["mse_all"] - numbers["mse_pca_both"])
    assert numbers["patches"] == (225 if data else 60)
    for name in ("subsets", "spectra", "patches"):
        assert (tmp_path / f"{name}.png").is_file()


def test_hyperspectral_needs_the_file_of_its_settings_and_blocks(tmp_path):
    with pytest.raises(DataError, match=r"samson\.npz; got none"):
        runner.run_study("hyperspectral", tmp_path, data=tmp_path)
    settings = tmp_path / "own.toml"
    study = 'file = "a.npz"\nobjects = 60\nsize = 3\nstride = 3\nblocks = 5\ntrain = 0.8\nsplits = 1\ncomponents = 3\n'
    model = 'family = "DisentangledVAE"\nprivate = { rgb = 1 }\n'
    settings.write_text(f"[study]\n{study}epochs = 2\n[model]\n{model}")
    with pytest.raises(SchemaError, match=r"private ones of \['rgb', 'spectrum'\]"):
        runner.run_study("hyperspectral", tmp_path, settings=settings)


def test_a_cube_is_read_from_what_determines_it_and_not_from_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1]], -1) @ rng.normal(size=(3, 40))
    guesses = [_predicted(z[:400], y[:400], z[400:], 40, 0) for z in (x, x[::-1])]
    left, of_noise = (np.mean((y[400:] - guess) ** 2) / y.var(0).mean() for guess in guesses)
    assert left < 0.05 and 0.9 < of_noise < 1.6


def test_fly(tmp_path):
    numbers, _ = ran(tmp_path, "fly", "--data", real("fly_heading_circuit"))
    # not trained by steps; chance is 90 degrees, and in the dark the bump drifts
    assert numbers["heading_error_deg_ridge"] < 80 and numbers["heading_error_deg_bump"] < 75
    assert 0 < numbers["heading_error_deg"] < 120
    assert numbers["trials"] == 102 and numbers["flies"] == 19


def test_rat(tmp_path):
    numbers, _ = ran(tmp_path, "rat", "--data", real("rat_linear_track"))
    assert numbers["position_error_px_ridge"] < numbers["position_error_px_mean"]
    assert numbers["units"] == 31 and numbers["runs"] > 40
    assert numbers["bits_per_spike_place_fields"] > 0.2


def test_runs_are_parted_by_pauses():
    flags = np.array([0, 1, 1, 0, 1, 0, 0, 0, 1, 1], bool)
    assert _stretches(flags, 2) == [(1, 5), (8, 10)]
    assert _stretches(flags, 1) == [(1, 3), (4, 5), (8, 10)]


def test_headings_are_scored_after_the_stretch_that_aligns_them():
    rng = np.random.default_rng(0)
    heading = rng.uniform(-np.pi, np.pi, size=(3, 5, 50))
    assert heading_error(heading, heading - 1.7) == pytest.approx(np.zeros(3), abs=1e-9)
    turned = heading.copy()
    turned[1, 1:] += np.pi / 2  # after the first stretch
    assert heading_error(heading, turned) == pytest.approx([0, 90, 0])
    assert heading_error(heading, rng.permuted(heading, axis=2))[0] == pytest.approx(90, abs=15)


def test_a_read_out_recovers_a_curve_and_not_more():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 50, 2))
    quantity = np.abs(x[..., 0]) + x[..., 1] ** 2 + 0.1 * rng.normal(size=(40, 50))
    curved, straight = ReadOut.fit(x[:30], quantity[:30]), ReadOut.fit(x[:30], quantity[:30], linear=True)
    assert explained(quantity[30:], curved(x[30:])) > 0.95
    assert explained(quantity[30:], straight(x[30:])) < 0.05
    other = rng.normal(size=x.shape)
    assert explained(quantity[30:], ReadOut.fit(other[:30], quantity[:30])(other[30:])) < 0.02


def test_galaxies(tmp_path):
    numbers, _ = ran(tmp_path, "galaxies")
    for model in ("trees", "regression_both", "vae_image", "vae_spectrum", "dmvae", "dmvae_club"):
        assert np.isfinite([numbers[f"r2_{model}_{label}"] for label in ("log_mass", "redshift", "age")]).all()
    assert {"mse_image_vae_image", "mse_spectrum_dmvae", "cross_mse_image_dmvae_club"} <= set(numbers)
    assert "mse_spectrum_vae_image" not in numbers
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert len(kept["parts"]) == 9
    assert np.isfinite([numbers["physics_share"], numbers["r2_invisible_private_spectrum"]]).all()
    assert {"r2_dmvae_club_physics_age", "cross_mse_image_dmvae_club_physics"} <= set(numbers)
    for name in ("labels", "shares", "information", "discs"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_galaxies_flow(tmp_path):
    numbers, _ = ran(tmp_path, "galaxies-flow")
    for arm in ("photometry_mlp", "image_mlp", "image_knn", "photometry_flow", "image_photometry_flow", "blind_flow"):
        assert np.isfinite([numbers[f"r2_{arm}_{label}"] for label in ("log_mass", "log_mbh", "oh", "log_ha")]).all()
        assert (f"nlpd_{arm}" in numbers) == (arm != "image_knn")
    names = ("coverage68_error_max", "tarp_pvalue", "detected_auc", "epistemic_log_mass_30", "aleatoric_oh_30")
    assert numbers["patterns"] == 16 >= numbers["patterns_inside_band"]
    assert np.isfinite([numbers[name] for name in names]).all()
    assert numbers["detected_base_rate"] >= 0.5
    figures = "labels calibration joint main_sequence metallicity ignorance traversals map_image map_both"
    for name in figures.split():
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    kept = json.loads((tmp_path / "kept.json").read_text())
    again, _ = ran(tmp_path, "galaxies-flow")  # of what was kept
    assert len(kept["parts"]) == 6 + 16
    assert again["nlpd_blind_flow"] == numbers["nlpd_blind_flow"]


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ("grid", ["shared_2_private_2", "shared_2_private_2_club"]),
        ("missing", ["rows_all", "rows_half", "rows_complete"]),
    ],
)
def test_galaxies_in_many_ways(tmp_path, size, names):
    numbers, _ = ran(tmp_path, "galaxies", "--size", size)
    for name in names:
        keys = ("r2_log_mass", "mse_image", "cross_mse_spectrum", "ksg_private_shared", "r2_private_private")
        assert np.isfinite([numbers[f"{key}_{name}"] for key in keys]).all()
    assert sum(key.startswith("r2_age_") for key in numbers) == len(names)
    assert (tmp_path / "drawn.png").stat().st_size > 1000


def test_every_experiment_varies_what_it_says():
    found = {}
    for size in ("grid", "frontier", "rates"):
        config = runner.configuration("galaxies", size=size)
        settings = validated(Settings, config.study, where="[study]")
        found[size] = {one.name: one for one in variations(settings, config.config.family)}
    assert len(found["grid"]) == 18
    assert found["grid"]["shared_4_private_48_club"].family.private == {"image": 48, "spectrum": 48}
    assert [one.family.club for one in found["frontier"].values()] == [False, *[True] * 6]
    club = settings.weights["dmvae_club"]
    assert found["frontier"]["weight_30"].weights(club) == club | {"mi/*": club["mi/*"].model_copy(update={"stop": 30})}
    assert all(one.weights(club) == club for one in found["grid"].values())
    assert {one.rate for one in found["rates"].values()} == {3e-4, 1e-3, 3e-3}
    with pytest.raises(SchemaError, match="values of 'blocks'"):
        variations(settings.model_copy(update={"experiment": "grid"}), config.config.family)


def test_weights_of_the_longest_name_win():
    config = runner.configuration("galaxies")
    own = config.config.train.weights
    size = validated(Settings, config.study, where="[study]").model_copy(
        update={"weights": {"dmvae_club": {"kl/*": 3.0}, "dmvae": {"kl/*": 2.0, "nll/*": 0.5}}}
    )
    split = Split(size, config.config.train, config.config.family, None, None, 0, 0)
    assert split.weights("vae_image") == own
    assert split.weights("dmvae") == own | {"kl/*": 2.0, "nll/*": 0.5}
    assert split.weights("dmvae_club_physics") == own | {"kl/*": 3.0, "nll/*": 0.5}


def test_discs_of_galaxies(tmp_path):
    numbers, _ = ran(tmp_path, "galaxies", "--size", "discs")
    for which in ("", "_same_rows", "_least_squares"):
        assert np.isfinite([numbers[f"r2_{name}{which}"] for name in ("radius", "axis_ratio", "angle")]).all()
    assert numbers["physics_share_min"] == numbers["physics_share"]


def test_half_of_the_rows_lack_a_modality():
    table = galaxies(40, seed=0, bins=16, pixels=8)
    half, complete = (_rows(table, which, seed=0) for which in ("half", "complete"))
    lacks = [~half.parts[name].seen.reshape(40, -1).any(axis=1) for name in ("image", "spectrum")]
    assert not (lacks[0] & lacks[1]).any()
    assert 10 < (lacks[0] | lacks[1]).sum() < 30
    assert complete.ids.tolist() == table.ids[~(lacks[0] | lacks[1])].tolist()


def test_least_squares_finds_the_discs():
    table = galaxies(12, seed=0, bins=16, pixels=40, components="single", image_snr=300.0)
    found, cells = least_squares(table), [cell.name for cell in table.schema["true_structure"].cells]
    true = dict(zip(cells, table.parts["true_structure"].value.T, strict=True))
    assert explained(np.log(true["half_light_radius"]), np.log(found["radius"])) > 0.97
    assert explained(true["axis_ratio"], found["axis_ratio"]) > 0.95
    turned = np.cos(2 * found["angle"] - np.arctan2(true["e_sin2"], true["e_cos2"]))
    assert (turned[1 - true["axis_ratio"] > 0.2] > 0.98).all()


def test_a_study_that_was_stopped_goes_on(tmp_path):
    ran(tmp_path, "factors")
    path = tmp_path / "kept.json"
    kept = json.loads(path.read_text())
    name = next(iter(kept["parts"]))
    del kept["parts"][name]
    other = next(iter(kept["parts"]))
    kept["parts"][other]["own of draws"] = -7.0
    path.write_text(json.dumps(kept))
    again, _ = ran(tmp_path, "factors")
    assert set(json.loads(path.read_text())["parts"]) == {name, *kept["parts"]}
    assert min(value for key, value in again.items() if key.startswith("r2_own")) == -7.0
    path.write_text("{}")
    found = CliRunner().invoke(app, ["study", "factors", "--quick", "--out", str(tmp_path)])
    assert found.exit_code != 0
    assert "Remove it to begin anew" in found.output


def test_shorter_exposures_scatter_by_their_error_bars():
    table = sdss_galaxies(300, seed=2)
    part, true = table.parts["photometry"], table.parts["true_photometry"].value
    other = _shallower(table, 1.0, np.random.default_rng(0)).parts["photometry"]
    factor = (other.sigma / part.sigma)[part.measured]
    assert 1 <= factor.min() < 1.2 < 8 < factor.max() <= 10
    assert ((other.value - true) / other.sigma)[part.measured].std() == pytest.approx(1, abs=0.08)
    np.testing.assert_array_equal(other.state, part.state)


def test_photoz_twice_gives_the_same_numbers(tmp_path):
    """On a file in the catalogue's layout, with redshifts of half of its galaxies and one flux missing."""
    made = deep_galaxies(24, seed=9)
    part, z = made.parts["photometry"], np.expm1(made.parts["labels"].value[:, 0])
    columns = {"id": np.arange(24), "z_spec": np.where(np.arange(24) % 2, z, np.nan)}
    for at, name in enumerate(photoz.COLUMNS):
        columns |= {f"f_{name}": part.value[:, at].copy(), f"e_{name}": part.sigma[:, at]}
    columns["f_irimk"][3] = np.nan
    Table(columns).write(tmp_path / "hdfn.parquet")
    numbers, text = ran(tmp_path, "photoz", "--data", str(tmp_path))
    again, _ = ran(tmp_path / "again", "photoz", "--data", str(tmp_path))
    known = set(numbers) - {"meta", "seconds", "peak_gb"}
    assert {key: again[key] for key in known} == {key: numbers[key] for key in known}
    assert numbers["galaxies"] == 12
    names = ("nmad", "outlier_fraction", "coverage68", "nmad_templates_simulated", "crps_minus_templates_near_high95")
    assert np.isfinite([numbers[name] for name in names]).all()
    assert "simultaneous 99 % band" in text
    assert (tmp_path / "redshifts.png").stat().st_size > 1000
    with pytest.raises(RequestError, match="--data"):
        photoz.field(None)
    with pytest.raises(DataError, match=r"hdfn\.parquet"):
        photoz.field(tmp_path / "nowhere")


def test_the_best_template_is_the_galaxy_itself():
    made = deep_galaxies(30, seed=4)
    library = made.parts["true_photometry"].value, made.parts["labels"].value[:, 0]
    bright = made[np.flatnonzero(library[0][:, 3] > 5)]
    # the same light, three times as bright
    part = bright.parts["photometry"]
    value = 3 * bright.parts["true_photometry"].value
    other = replace(bright, parts={**bright.parts, "photometry": replace(part, value=value, sigma=0.01 * value)})
    draws = photoz.templates(other, library, None, 50, 0)
    np.testing.assert_allclose(np.median(draws, axis=0), bright.parts["labels"].value[:, 0], rtol=1e-12)


def test_the_deep_field_is_read():
    table = photoz.field(real("galaxy_photoz_hdfn"))
    part = table.parts["photometry"]
    assert len(table) == 114 and part.measured.all()
    assert (part.value < 0).any() and (part.sigma >= 0.05 * np.abs(part.value)).all()
    assert np.expm1(table.parts["labels"].value).max() == pytest.approx(5.6)


def test_diagnostics(tmp_path):
    numbers, text = ran(tmp_path, "diagnostics")
    assert numbers["shapley_sum_error"] < 1e-8 and numbers["shapley_noise_max"] < 1e-8
    assert 0 <= numbers["false_alarm_max"] <= 1 and numbers["power_conditional_prior"] == 1
    assert {f"mi_relative_error_{name}" for name in ("ksg", "club", "infonce", "gaussian")} <= set(numbers)
    assert {"recalibrated_coverage_error_max", "power_any_min", "power_tarp_uncorrelated"} <= set(numbers)
    assert "ignored" in text and (tmp_path / "power.png").is_file()
    for of in ("", "_pca", "_forest"):
        assert 0 <= numbers[f"outlier_detection_at_1pct{of}"] <= 1 and numbers[f"outlier_false_positives{of}"] < 0.2
