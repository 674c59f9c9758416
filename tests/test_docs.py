"""The documentation runs: every Python block, every command and every link."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import consilience as cs

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], key=str)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
CONTRACT = "docs/design.md"  # shows what will be, and fragments of it


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands():
    from consilience.cli import app

    return get_command(app).commands


def console_lines() -> list[str]:
    lines = [line for text in TEXTS.values() for block in blocks(text, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ").split("#")[0] for line in lines if line.startswith("$ consilience ")]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A folder of its own, and a training configuration that is quick where a page does not give one."""
    monkeypatch.chdir(tmp_path)
    short = cs.TrainConfig(max_steps=5, validation=0.2)
    monkeypatch.setattr(importlib.import_module("consilience.workflow.fit"), "TrainConfig", lambda: short)
    return tmp_path


@pytest.fixture
def quasar_files(quick):
    """The files that the README reads: a table with foreign column names, and the schema that explains it."""
    import pyarrow as pa
    from pyarrow import parquet

    obs = cs.simulators.quasars(120, seed=3).select("spectrum", "labels")
    spectrum, labels = obs.parts["spectrum"], obs.parts["labels"]
    grid = obs.schema["spectrum"].grid
    grid = grid.model_copy(update={"size": 32})  # every nineteenth of 590 pixels
    columns = {"name": obs.ids.tolist(), "flux": list(spectrum.value[:, ::19])}
    columns["flux_error"] = list(spectrum.sigma[:, ::19])
    text = 'id = "name"\n[modalities.spectrum]\ncolumn = "flux"\n'
    text += f'sigma = "flux_error"\ngrid = {{ start = {grid.start}, stop = {grid.stop}, size = {grid.size}, '
    text += f'spacing = "{grid.spacing}", unit = "{grid.unit}" }}\n'
    for i, cell in enumerate(obs.schema["labels"].cells):
        columns |= {cell.name: labels.value[:, i], f"{cell.name}_error": labels.sigma[:, i]}
        text += f'[[modalities.labels.cells]]\nname = "{cell.name}"\nunit = "{cell.unit}"\n'
        text += f'sigma = "{cell.name}_error"\n'
    parquet.write_table(pa.table(columns), quick / "quasars.parquet")
    (quick / "quasars.toml").write_text(text)
    return quick


def run(page: str) -> dict[str, object]:
    """Run the Python blocks of a page in order, in one namespace."""
    namespace: dict[str, object] = {}
    found = blocks(TEXTS[page], "python")
    assert found, f"{page} has no Python block"
    for number, block in enumerate(found):
        exec(compile(block, f"{page}[{number}]", "exec"), namespace)
    return namespace


def test_the_readme_runs(quasar_files):
    found = run("README.md")
    assert found["draws"].values["labels"].shape[0] == 1000
    assert (quasar_files / "report.html").stat().st_size > 0
    assert (quasar_files / "quasar-model").is_dir()


def test_the_tour_runs(quick):
    found = run("docs/tour.md")
    assert found["draws"].values["labels"].shape == (200, 60, 4)
    assert found["again"].schema == found["fitted"].schema
    assert (quick / "results" / "calibration.csv").is_file()


def test_the_page_of_trajectories_runs(quick):
    found = run("docs/families/gp_vae.md")
    assert found["decoded"].values["position"].shape == (50, 24, 30)


def test_the_page_of_blocks_runs(quick):
    found = run("docs/families/disentangled_vae.md")
    assert set(found["blocks"]) == {"shared", "private_x1", "private_x2"}
    assert found["crossed"].values["x2"].shape == (50, 120, 50)


def test_the_page_of_regression_runs(quick):
    assert run("docs/families/regression.md")["fitted"].capabilities == {"density", "limits"}


def test_the_page_of_analyses_runs(quick):
    page = run("docs/analyses.md")
    assert page["better"].recalibration is not None and len(page["alone"].cells) == 2


def test_the_page_of_flows_runs(quick):
    assert run("docs/families/vae_flow.md")["fitted"].capabilities == {"density"}


def test_the_flow_matching_page_runs():
    found = run("docs/families/flow_matching.md")
    assert found["fitted"].capabilities == {"density", "generate"} and found["density"].kind == "exact"
    assert found["given"].values["y"].shape[:2] == found["back"].values["x"].shape[:2] == (20, 20)


@pytest.mark.parametrize("page", sorted({page for page in TEXTS if blocks(TEXTS[page], "python")} - {CONTRACT}))
def test_no_page_with_code_is_left_out(page):
    families = ("disentangled_vae", "flow_matching", "gp_vae", "regression", "vae_flow")
    run_here = ("README.md", "docs/analyses.md", "docs/tour.md", *(f"docs/families/{name}.md" for name in families))
    assert page in run_here, f"{page} has Python blocks that no test runs"


def test_the_schema_of_the_tour_is_one(tmp_path):
    (text,) = blocks(TEXTS["docs/tour.md"], "toml")
    (tmp_path / "a.toml").write_text(text)
    assert cs.Schema.read(tmp_path / "a.toml").names == ("spectrum", "labels")


def test_every_command_is_in_the_readme_and_the_tour():
    shown = {shlex.split(line)[1] for line in console_lines()}
    assert shown == set(commands())
    (listed,) = re.findall(r"`consilience (demo[^`]*)`", TEXTS["README.md"])
    assert {word.strip() for word in listed.split("|")} == set(commands())


@pytest.mark.parametrize("line", console_lines())
def test_every_command_shown_has_the_options_shown(line):
    words = shlex.split(line)
    command = commands()[words[1]]
    # parses, or raises what a user would see
    command.make_context(words[1], words[2:])


def test_every_command_has_help():
    for name, command in commands().items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option"), name


@pytest.mark.parametrize("page", sorted(set(TEXTS) - {CONTRACT}))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[page]):
        if not target.startswith(("http:", "https:")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_make_target_is_documented():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for target in targets - {"help"}:
        assert f"make {target}" in TEXTS["CONTRIBUTING.md"]
    documented = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert documented == targets


PAGES = [
    (cs.SharedGPLVM, "shared_gplvm"),
    (cs.GPVAE, "gp_vae"),
    (cs.DisentangledVAE, "disentangled_vae"),
    (cs.VAE, "disentangled_vae"),
    (cs.Regression, "regression"),
    (cs.VAEFlow, "vae_flow"),
    (cs.FlowMatching, "flow_matching"),
]


@pytest.mark.parametrize(("family", "page"), PAGES)
def test_every_option_of_a_model_is_on_its_page(family, page):
    rows = [line for line in TEXTS[f"docs/families/{page}.md"].splitlines() if line.startswith("| `")]
    for name, field in family.model_fields.items():
        if name != "family":
            row = next((row for row in rows if f"`{name}`" in row.split("|")[1]), None)
            assert row, f"{name} is not on the page"
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).replace("'", '"')
            assert default in row or default in ("{}", "None"), f"{name}: the default is {default}"


def test_pinned_versions_agree_with_what_is_installed():
    from importlib.metadata import version

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    for name in ("torch", "numpy", "astropy", "pyarrow", "pydantic", "lightning"):
        assert version(name).split("+")[0] == pins[name]
