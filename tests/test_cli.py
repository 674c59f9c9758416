"""The command line: every verb runs, every wrong request is one line and exit code 2."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

import consilience as cs
from consilience.cli import app
from consilience.errors import MemoryLimitError, TrainingError
from consilience.studies.runner import STUDIES

CONFIG = """
[model]
family = "SharedGPLVM"
latent_dim = 2
inducing = 6
hidden = 8
[train]
max_steps = 4
validation = 0.25
"""
SCHEMA = """
[modalities.x]
cells = [{ name = "a", unit = "m", sigma = "a_error" }, { name = "b", sentinels = [-99] }]
[modalities.spectrum]
coord = "wave"
column = "flux"
unit = "Jy"
grid = { start = 1.0, stop = 4.0, size = 4, unit = "um" }
"""


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    """The one line on standard error of a wrong request."""
    found = call(*words)
    assert found.exit_code == 2, found.output
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in found.output
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, a simulated table and a model fitted to it, all made by the command line."""
    path = tmp_path_factory.mktemp("cli")
    (path / "config.toml").write_text(CONFIG)
    assert call("simulate", "gaussian", "--n", 48, "--seed", 1, "--out", path / "data.parquet").exit_code == 0
    found = call("fit", path / "data.parquet", "--config", path / "config.toml", "--out", path / "model")
    assert found.exit_code == 0, found.output
    assert "trained on 36 rows" in found.stdout
    assert "Coverage on 12 held-out rows" in found.stdout
    return path


@pytest.fixture
def table(tmp_path):
    """A foreign table with a schema, as columns that a test may spoil before it is written."""
    from astropy.table import QTable

    rng = np.random.default_rng(0)
    columns = {"id": [f"s{row}" for row in range(12)], "a": rng.normal(size=12), "a_error": np.full(12, 0.1)}
    columns |= {"b": rng.normal(size=12), "flux": rng.normal(size=(12, 4))}
    columns["wave"] = np.tile(np.arange(1.0, 5.0), (12, 1))
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "config.toml").write_text(CONFIG)

    def fit(units=None, **changes):
        found = QTable({key: value for key, value in {**columns, **changes}.items() if value is not None})
        for name, unit in (units or {}).items():
            found[name].unit = unit
        found.write(tmp_path / "data.fits", overwrite=True)
        return ("fit", tmp_path / "data.fits", "--schema", tmp_path / "schema.toml", "--config",
                tmp_path / "config.toml", "--out", tmp_path / "model")  # fmt: skip

    fit.columns = columns
    return fit


def test_every_command_has_help_with_an_example():
    commands = get_command(app).commands
    assert set(commands) == {
        "analyse", "demo", "fit", "impute", "inspect", "latent", "report", "sample", "simulate", "study",
    }  # fmt: skip
    for name in commands:
        found = call(name, "--help")
        assert found.exit_code == 0
        assert f"consilience {name}" in found.stdout
        assert "Example:" in found.stdout


def test_help_names_every_study_and_size():
    said = {option.name: option.help for option in get_command(app).commands["study"].params}
    assert re.findall(r"[\w-]+", said["name"].replace(" or ", " ")) == sorted(STUDIES)
    for name, module in STUDIES.items():
        file = files("consilience.studies") / f"{module.rsplit('.', 1)[1]}.toml"
        for size in tomllib.loads(file.read_text()).get("size", {}):
            assert re.search(rf"of {name} [^:;]*\b{size}\b", said["size"]), (name, size)


def test_sample_writes_draws(folder, tmp_path):
    out = tmp_path / "draws.parquet"
    words = ("sample", folder / "model", folder / "data.parquet", "--targets", "y", "--hide", "y", "--n", 20)
    assert call(*words, "--seed", 3, "--out", out).exit_code == 0
    from pyarrow import parquet

    found = parquet.read_table(out)
    assert found.num_rows == 48
    fitted, obs = cs.load(folder / "model"), cs.read(folder / "data.parquet")
    expected = fitted.sample(obs.hide("y"), ["y"], n=20, seed=3).to_arrow()
    assert found.to_pydict() == expected.to_pydict()


def test_impute_fills_the_gaps_and_leaves_the_rest(folder, tmp_path):
    out = tmp_path / "filled.parquet"
    assert call("impute", folder / "model", folder / "data.parquet", "--n", 30, "--out", out).exit_code == 0
    before, after = cs.read(folder / "data.parquet"), cs.read(out)
    for name, part in before.parts.items():
        assert not part.seen.all()
        assert after.parts[name].seen.all()
        np.testing.assert_array_equal(after.parts[name].value[part.seen], part.value[part.seen])
        assert (after.parts[name].sigma[~part.seen] > 0).all()


def test_latent_writes_means_and_deviations(folder, tmp_path):
    out = tmp_path / "latent.fits"
    assert call("latent", folder / "model", folder / "data.parquet", "--out", out).exit_code == 0
    expected = cs.load(folder / "model").latent(cs.read(folder / "data.parquet"))
    np.testing.assert_allclose(cs.read(out).parts["shared"].value, expected.mean["shared"])
    np.testing.assert_allclose(cs.read(out).parts["shared"].sigma, expected.std["shared"])


ANSWERED = [
    "calibration",
    "conditional-calibration",
    "joint-calibration",
    "pattern-calibration",
    "highest-density",
    "attribution",
    "reconstruction",
    "imputation",
]


@pytest.mark.parametrize("question", ANSWERED)
def test_analyse_answers(folder, tmp_path, question):
    words = ("analyse", folder / "model", folder / "data.parquet", "--question", question, "--out", tmp_path / "new")
    found = call(*words)
    assert found.exit_code == 0, found.output
    for suffix in ("json", "csv", "png"):
        assert (tmp_path / "new" / f"{question}.{suffix}").stat().st_size > 0


def test_analyse_says_what_to_observe_next(folder, tmp_path):
    words = ("analyse", folder / "model", folder / "data.parquet", "--question", "what-next", "--targets", "y")
    assert "lack a modality" in refused(*words, "--out", tmp_path)
    cs.write(cs.read(folder / "data.parquet")[:6].hide("x"), tmp_path / "blind.parquet")
    asked = ("analyse", folder / "model", tmp_path / "blind.parquet", *words[3:], "--out", tmp_path)
    found = call(*asked, "--reference", folder / "data.parquet")
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "what-next.json").read_text())["modalities"] == ["x"]


def test_analyse_with_a_reference(folder, tmp_path):
    call("simulate", "gaussian", "--n", 230, "--seed", 1, "--out", tmp_path / "ordinary.parquet")
    words = ("analyse", folder / "model", folder / "data.parquet", "--question", "outliers", "--out", tmp_path)
    assert "Give --reference FILE" in refused(*words)
    assert call(*words, "--reference", tmp_path / "ordinary.parquet").exit_code == 0
    assert (tmp_path / "outliers.csv").exists()


def test_analyse_compares_with_baselines(folder, tmp_path):
    obs = cs.read(folder / "data.parquet")
    cs.write(obs[:36], tmp_path / "train.parquet")
    cs.write(obs[36:], tmp_path / "test.parquet")
    words = ("analyse", folder / "model", tmp_path / "test.parquet", "--question", "comparison", "--targets", "y")
    found = call(*words, "--given", "x", "--reference", tmp_path / "train.parquet", "--out", tmp_path)
    assert found.exit_code == 0, found.output
    assert "ridge on PCA" in found.stdout


def test_analyse_shows_only_what_is_given(folder, tmp_path):
    words = ("analyse", folder / "model", folder / "data.parquet", "--question", "calibration", "--targets", "y")
    assert call(*words, "--given", "x", "--out", tmp_path).exit_code == 0
    assert json.loads((tmp_path / "calibration.json").read_text())["given"] == ["x"]


def test_report_writes_a_page(folder, tmp_path):
    out = tmp_path / "page.html"
    assert call("report", folder / "model", folder / "data.parquet", "--out", out).exit_code == 0
    assert "<html" in out.read_text()[:300]


def test_inspect_says_what_it_is(folder, tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    assert "A table of 48 rows" in call("inspect", folder / "data.parquet").stdout
    assert "A SharedGPLVM trained on 36 rows" in call("inspect", folder / "model").stdout
    assert "latent_dim = 2" in call("inspect", folder / "config.toml").stdout
    assert "spectrum: 4 real numbers in Jy" in call("inspect", tmp_path / "schema.toml").stdout
    assert "got nothing at" in refused("inspect", tmp_path / "nowhere")


def test_a_model_that_was_never_checked_says_so(folder, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG.replace("0.25", "0.0"))
    words = ("fit", folder / "data.parquet", "--select", "x", "--members", 2, "--config", tmp_path / "config.toml")
    found = call(*words, "--out", tmp_path / "model")
    assert found.exit_code == 0, found.output
    assert "not measured" in found.stdout
    assert "2 members" in found.stdout
    assert cs.load(tmp_path / "model").schema.names == ("x",)


def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(folder, tmp_path):
    words = ("fit", folder / "data.parquet", "--config", folder / "config.toml", "--resume", tmp_path / "checkpoints")
    assert call(*words, "--out", tmp_path / "one").exit_code == 0
    assert call(*words, "--out", tmp_path / "two").exit_code == 0
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_missing_column(table):
    assert "'a_error'" in refused(*table(a_error=None))


def test_a_wrong_unit(table):
    assert "'kg'" in refused(*table(units={"a": "kg"}))


def test_a_negative_sigma(table):
    error = refused(*table(a_error=np.where(np.arange(12) == 3, -0.1, 0.1)))
    assert "sigma" in error and "'s3'" in error


def test_a_duplicated_id(table):
    assert "'s0' in rows 0 and 5" in refused(*table(id=["s0" if row == 5 else f"s{row}" for row in range(12)]))


def test_a_grid_that_does_not_ascend(table):
    wave = table.columns["wave"].copy()
    wave[2] = wave[2, ::-1]
    assert "strictly ascending" in refused(*table(wave=wave))


def test_a_modality_without_any_value(table):
    assert "'spectrum'" in refused(*table(flux=np.full((12, 4), np.nan)))


def test_an_unknown_key_names_the_nearest(folder, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG.replace("max_steps", "max_stepz"))
    words = ("fit", folder / "data.parquet", "--config", tmp_path / "config.toml", "--out", tmp_path / "model")
    assert "Did you mean 'max_steps'?" in refused(*words)


def test_a_schema_that_does_not_match_the_model(folder, tmp_path):
    obs = cs.simulators.gaussian(5, seed=0, sizes={"x": 3, "y": 2})
    cs.write(obs, tmp_path / "other.parquet")
    words = ("sample", folder / "model", tmp_path / "other.parquet", "--targets", "y", "--out", tmp_path / "out.npz")
    assert "Expected modality 'x' with shape" in refused(*words)
    cs.write(cs.simulators.gaussian(5, seed=0, sizes={"z": 3}), tmp_path / "other.parquet")
    assert "at least one of the model's modalities" in refused(*words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("simulate", "quasar", "--n", 3, "--out", "x.npz"), "Did you mean 'quasars'?"),
        (("study", "quasars-hts", "--out", "x"), "Did you mean 'quasars-hst'?"),
        (("study", "quasars-hst", "--out", "x"), "Give --data DIR"),
        (("inspect", "nowhere.parquet"), "got nothing at"),
    ],
)
def test_other_wrong_requests(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(*words)


def test_wrong_names_in_a_good_model(folder, tmp_path):
    ask = ("analyse", folder / "model", folder / "data.parquet", "--out", tmp_path, "--question")
    assert "Did you mean 'calibration'?" in refused(*ask, "calibrations")
    assert "Did you mean" not in refused(*ask, "calibration", "--targets", "zzz")
    sample = ("sample", folder / "model", folder / "data.parquet", "--out", tmp_path / "x.npz", "--targets", "y")
    assert "'zzz'" in refused(*sample, "--hide", "zzz")


def test_usage_errors_exit_with_2():
    assert call("simulate", "quasars").exit_code == 2
    assert call("nonsense").exit_code == 2


@pytest.mark.parametrize("error", [TrainingError("Not finite."), MemoryLimitError("Too big."), OSError("disk")])
def test_failed_work_exits_with_1(folder, tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("consilience.workflow.fit.fit", fail)
    words = ("fit", folder / "data.parquet", "--config", folder / "config.toml", "--out", tmp_path / "model")
    found = call(*words)
    assert found.exit_code == 1
    assert found.stderr.strip() == f"Error: {error}"


def test_torch_is_not_imported_for_help_and_the_variable_is_set_first():
    code = "import os, sys, consilience.cli; print('torch' in sys.modules, os.environ['MKL_CBWR'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "AVX2,STRICT"]
