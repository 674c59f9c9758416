"""The command line: every verb of the library, one-line errors, exit codes 0 (ok), 1 (failed), 2 (wrong request)."""

import os

# Before torch is imported anywhere: matrix products then do not depend on the alignment of their rows.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Sheet
from typer.core import TyperGroup

from consilience.errors import ConsilienceError, RequestError

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.data.observations import Observations
    from consilience.predict.fitted import Fitted
    from consilience.studies.runner import Results

__all__ = ["app"]

ASKED = (
    "calibration, conditional-calibration, highest-density, joint-calibration, pattern-calibration, recalibration, "
    "attribution, decomposition, uncertainty, what-next, reconstruction, imputation, outliers or comparison."
)
NAMED = (
    "diagnostics, factors, fly, galaxies, galaxies-flow, hyperspectral, neural-sim, photoz, quasars, quasars-hst, "
    "quasars-sdss or rat."
)
SIZES = "Another size: of quasars 1000 or 23000, of galaxies discs, frontier, grid, missing or rates."
SIMULATORS = ("quasars", "gaussian")


class _Group(TyperGroup):
    """Commands whose errors are one line on standard error and an exit code that means something."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own signature
        try:
            return super().invoke(ctx)
        except RequestError as error:
            _fail(error, 2)
        except (ConsilienceError, OSError, MemoryError) as error:
            _fail(error, 1)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One probability model over everything that was observed, with error bars that were checked.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the request was wrong.",
)

Model = Annotated[Path, typer.Argument(help="Model directory that fit wrote.", show_default=False)]
Data = Annotated[Path, typer.Argument(help="Parquet, CSV, ECSV, NPZ or FITS file.", show_default=False)]
SchemaFile = Annotated[Path | None, typer.Option("--schema", help="What the columns mean, TOML or JSON.")]
OutFile = Annotated[Path, typer.Option("--out", help="File to write; its suffix names the format.", show_default=False)]
Hide = Annotated[str, typer.Option("--hide", help="Modalities kept from the model, separated by commas.")]
Reference = Annotated[
    Path | None, typer.Option("--reference", help="Ordinary rows for outliers, training rows for comparison.")
]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same answer.")]
Draws = Annotated[int, typer.Option("--n", min=1, help="Draws per object.")]


@app.command(epilog="Example: consilience demo --out demo-output")
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of results.")] = Path("demo-output"),
    seed: Seed = 0,
) -> None:
    """Train on 2 000 simulated quasars, predict the labels of 500 others, check it, write a page."""
    _study("quasars", out, seed=seed)
    _say(f"Open {out / 'report.html'} in a browser.")


@app.command(epilog="Example: consilience study quasars-hst --data DIR --out results/quasars-hst")
def study(
    name: Annotated[
        str,
        typer.Argument(help=NAMED, show_default=False),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of results.", show_default=False)],
    data: Annotated[Path | None, typer.Option("--data", help="Folder of real data.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see that it runs.")] = False,
    size: Annotated[str | None, typer.Option("--size", help=SIZES)] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="TOML instead of the study's own.")] = None,
    seed: Seed = 0,
) -> None:
    """Run an experiment; write results.json, table.md and figures."""
    _study(name, out, data=data, quick=quick, size=size, seed=seed, settings=settings)


@app.command(epilog="Example: consilience fit quasars.parquet --select spectrum,labels --config model.toml --out model")
def fit(
    data: Data,
    *,
    config: Annotated[Path, typer.Option("--config", help="TOML: [model], [train], [schema].", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Model directory to write.", show_default=False)],
    schema: SchemaFile = None,
    select: Annotated[str, typer.Option("--select", help="Modalities to model; all by default.")] = "",
    resume: Annotated[Path | None, typer.Option("--resume", help="Folder of checkpoints to go on from.")] = None,
    members: Annotated[int, typer.Option("--members", min=1, help="Size of the ensemble.")] = 1,
    on_disk: Annotated[bool, typer.Option("--stream", help="Leave a Parquet table on disk while training.")] = False,
) -> None:
    """Fit a model to a table and measure its coverage on held-out rows."""
    from consilience.config import read_config
    from consilience.io import read
    from consilience.io.stream import stream
    from consilience.workflow.fit import fit as fit_model

    found = read_config(config)
    obs = (stream if on_disk else read)(data, schema or found.schema)
    obs = obs.select(*_names(select)) if select else obs
    fitted = fit_model(found.family, obs, found.train, members=members, resume=resume)
    fitted.save(out)
    _describe_model(fitted, out)


@app.command(epilog="Example: consilience sample model new.parquet --targets labels --hide labels --out draws.parquet")
def sample(
    model: Model,
    data: Data,
    *,
    targets: Annotated[str, typer.Option("--targets", help="Modalities to draw, with commas.", show_default=False)],
    out: OutFile,
    hide: Hide = "",
    n: Draws = 1000,
    seed: Seed = 0,
    observed: Annotated[bool, typer.Option("--observed", help="Add each row's measurement error.")] = False,
    schema: SchemaFile = None,
) -> None:
    """Draw modalities given everything seen in each row: whole draws in Parquet and NPZ, summaries in ECSV and FITS."""
    from consilience.io import write

    fitted, obs = _open(model, data, schema)
    given = obs.hide(*_names(hide))
    write(fitted.sample(given, _names(targets), n=n, seed=seed, observed=observed, at=obs), out)
    _say(f"{n} draws of {targets} for {len(obs)} objects in {out}.")


@app.command(epilog="Example: consilience impute model new.parquet --out filled.parquet")
def impute(
    model: Model, data: Data, *, out: OutFile, n: Draws = 200, seed: Seed = 0, schema: SchemaFile = None
) -> None:
    """Fill every unseen cell with its predictive mean and standard deviation; seen cells stay as they are."""
    from consilience.io import write
    from consilience.studies.filling import filled

    fitted, obs = _open(model, data, schema)
    found, cells = filled(fitted, obs, n=n, seed=seed)
    write(found, out)
    _say(f"{cells} cells of {len(obs)} objects filled in {out}.")


@app.command(epilog="Example: consilience latent model new.parquet --out latent.fits")
def latent(model: Model, data: Data, *, out: OutFile, hide: Hide = "", schema: SchemaFile = None) -> None:
    """Write the posterior mean and standard deviation of every latent block."""
    from consilience.io import write
    from consilience.studies.filling import as_observations

    fitted, obs = _open(model, data, schema)
    write(as_observations(fitted.latent(obs.hide(*_names(hide)))), out)
    _say(f"Latent positions of {len(obs)} objects in {out}.")


@app.command(epilog="Example: consilience analyse model test.parquet --question calibration --out results")
def analyse(
    model: Model,
    data: Data,
    *,
    question: Annotated[str, typer.Option("--question", help=ASKED, show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of results.", show_default=False)],
    targets: Annotated[str, typer.Option("--targets", help="Modalities asked for, with commas.")] = "",
    given: Annotated[str, typer.Option("--given", help="Modalities shown to the model; all others by default.")] = "",
    reference: Reference = None,
    schema: SchemaFile = None,
) -> None:
    """Ask a question of a model; write its numbers and a figure."""
    from consilience.studies.questions import ask

    fitted, obs = _open(model, data, schema)
    other = None if reference is None else _rows(fitted, reference, schema)
    result = ask(question, fitted, obs, targets=_names(targets), given=_names(given), reference=other)
    result.save(out)
    _show(result.name, result.table())
    _say(f"{result.name}.json, .csv and .png in {out}.")


@app.command(epilog="Example: consilience report model test.parquet --out report.html")
def report(
    model: Model,
    data: Data,
    *,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.", show_default=False)],
    train: Annotated[Path | None, typer.Option("--train", help="Ordinary rows to judge outliers against.")] = None,
    schema: SchemaFile = None,
) -> None:
    """Write one self-contained page about a model and how it does on a table."""
    from consilience.report.page import report as write_page

    fitted, obs = _open(model, data, schema)
    write_page(fitted, obs, out, train=None if train is None else _rows(fitted, train, schema))
    _say(f"Page written to {out}.")


@app.command(epilog="Example: consilience inspect quasars.parquet")
def inspect(
    path: Annotated[Path, typer.Argument(help="A table, schema, configuration or model.", show_default=False)],
) -> None:
    """Describe a table, a schema, a configuration or a model in words."""
    from consilience.studies.words import in_words

    for line in in_words(path):
        _say(line)


@app.command(epilog="Example: consilience simulate quasars --n 2500 --seed 0 --out quasars.parquet")
def simulate(
    name: Annotated[str, typer.Argument(help=" or ".join(SIMULATORS), show_default=False)],
    *,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of objects.", show_default=False)],
    out: OutFile,
    seed: Seed = 0,
) -> None:
    """Write a table with known truth."""
    from consilience import simulators
    from consilience.data.schema import nearest
    from consilience.io import write

    known = {"quasars": simulators.quasars, "gaussian": simulators.gaussian}
    if name not in known:
        raise RequestError(f"Expected a simulator among {list(SIMULATORS)}; got {name!r}.{nearest(name, SIMULATORS)}")
    obs = known[name](n, seed=seed)
    write(obs, out)
    _say(f"{n} simulated objects with {', '.join(obs.schema.names)} in {out}.")


def _study(name: str, out: Path, **options: Any) -> None:  # noqa: ANN401 - checked by run_study
    from consilience.studies.runner import run_study

    found: Results = run_study(name, out, **options)
    for title, table in found.tables.items():
        _show(title, table)
    for note in found.notes:
        _say(note)
    _say(f"results.json, table.md and {len(found.figures)} figures in {out}.")


def _open(model: Path, data: Path, schema: Path | None) -> "tuple[Fitted, Observations]":
    from consilience.predict.fitted import load

    fitted = load(model)
    return fitted, _rows(fitted, data, schema)


def _rows(fitted: "Fitted", data: Path, schema: Path | None) -> "Observations":
    from consilience.studies.filling import read_for

    return read_for(fitted.schema, data, schema)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _describe_model(fitted: "Fitted", out: Path) -> None:
    from consilience.studies.words import model_in_words

    for line in model_in_words(fitted):
        _say(line)
    _say(f"Model written to {out}.")


def _show(title: str, table: "Table") -> None:
    import numpy as np

    from consilience.analysis.base import numbers

    shown = Sheet(title=escape(title), box=box.SIMPLE, title_justify="left")
    for column in table.colnames:
        shown.add_column(escape(column), justify="right" if np.asarray(table[column]).dtype.kind in "fi" else "left")
    for row in numbers(table):
        shown.add_row(*map(escape, row))
    _console().print(shown)


def _say(text: str) -> None:
    _console().print(escape(text), soft_wrap=True)


def _console() -> Console:
    # In a pipe a table keeps its columns, however narrow the terminal that is not there.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _fail(error: Exception, code: int) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    Console(stderr=True, highlight=False).print(escape(f"Error: {text}"), soft_wrap=True, style="red")
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
