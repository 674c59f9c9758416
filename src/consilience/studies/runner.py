"""Run a study by name and record it: ``results.json``, ``table.md`` and figures, each whole or not there."""

import importlib
import importlib.metadata
import importlib.resources
import json
import os
import platform
import resource
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.config import Config, config_from, read_toml
from consilience.data.schema import nearest
from consilience.errors import DataError, RequestError
from consilience.typing import PathOrStr

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure

__all__ = [
    "STUDIES",
    "Results",
    "StudyConfig",
    "configuration",
    "markdown",
    "meta",
    "peak_memory",
    "read_arrays",
    "run_study",
    "write_results",
]

STUDIES = {  # name -> module with ``run``; a new study is one module, one TOML and one line here
    "diagnostics": "consilience.studies.diagnostics",
    "factors": "consilience.studies.factors",
    "fly": "consilience.studies.fly",
    "galaxies": "consilience.studies.galaxies",
    "galaxies-flow": "consilience.studies.galaxies_flow",
    "hyperspectral": "consilience.studies.hyperspectral",
    "neural-sim": "consilience.studies.neural_sim",
    "photoz": "consilience.studies.photoz",
    "rat": "consilience.studies.rat",
    "quasars": "consilience.studies.quasars",
    "quasars-hst": "consilience.studies.quasars_hst",
    "quasars-sdss": "consilience.studies.quasars_sdss",
}
PACKAGES = ("consilience", "torch", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """Settings of one experiment: ``[model]``, ``[train]`` and the study's own table ``[study]``, still unchecked."""

    config: Config
    study: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """What a study found.

    Arguments:
        numbers: Flat named numbers, the content of ``results.json``.
        tables: Tables by heading.
        figures: Figures by file name without suffix.
        notes: Sentences for whoever reads the table.
    """

    numbers: Mapping[str, float | int | bool | None]
    tables: Mapping[str, "Table"]
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run_study(
    name: str,
    out: PathOrStr,
    *,
    data: PathOrStr | None = None,
    quick: bool = False,
    size: str | None = None,
    seed: int = 0,
    settings: PathOrStr | None = None,
) -> Results:
    """Run a study and write what it found into ``out``, made if absent.

    Arguments:
        name: One of ``STUDIES``.
        out: Folder of results.
        data: Folder of real data, for the studies that need one.
        quick: Tiny sizes, to see that it runs.
        size: One of the study's further sizes.
        seed: Of simulation, split and training.
        settings: A TOML file instead of the study's own.

    Raises:
        RequestError: an unknown study, or data missing for one that needs them.
        SchemaError: unfit settings.
    """
    if name not in STUDIES:
        raise RequestError(f"Expected a study among {sorted(STUDIES)}; got {name!r}.{nearest(name, STUDIES)}")
    module = importlib.import_module(STUDIES[name])
    config = configuration(name, quick=quick, size=size, settings=settings)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = module.run(config, None if data is None else Path(data), seed=seed, quick=quick, out=folder)
    made = {"study": name, "size": size, "quick": quick, **meta(seed, time.perf_counter() - begun)}
    write_results(folder, found, made)
    return found


def configuration(
    name: str, *, quick: bool = False, size: str | None = None, settings: PathOrStr | None = None
) -> StudyConfig:
    """The settings of a study; its table ``[size.NAME]``, then ``[quick]`` is laid over the others where asked for.

    Raises:
        RequestError: an unknown size.
        SchemaError: an unknown table or key.

    Example:
        >>> whole, tiny = configuration("quasars"), configuration("quasars", quick=True)
        >>> tiny.config.train.max_steps < whole.config.train.max_steps
        True
    """
    file = f"{STUDIES[name].rsplit('.', 1)[1]}.toml"
    if settings is None:
        where: PathOrStr = file
        text = importlib.resources.files("consilience.studies").joinpath(file).read_text(encoding="utf-8")
        data = tomllib.loads(text)
    else:
        where, data = settings, read_toml(settings)
    sizes, tiny = data.pop("size", {}), data.pop("quick", {})
    if size is not None and size not in sizes:
        raise RequestError(f"Expected a size of {name} among {sorted(sizes)}; got {size!r}. Leave it out for its own.")
    for over in ({} if size is None else sizes[size], tiny if quick else {}):
        for table, values in over.items():
            data[table] = {**data.get(table, {}), **values}
    study = data.pop("study", {})
    return StudyConfig(config_from(data, where), study)


def read_arrays(folder: Path | None, name: str) -> dict[str, Any]:
    """The arrays of ``folder/NAME.npz``; nothing in it is executed.

    Raises:
        RequestError: no folder was given.
        DataError: no such file, or it is damaged.
    """
    import numpy as np

    if folder is None:
        raise RequestError(f"Expected a folder that holds {name}.npz; got none. Give --data DIR.")
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise DataError(f"Expected a file at {path}; got none. Give --data the folder that holds it.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"Expected a readable NPZ file; got {path}: {error}. Fetch it anew.") from error


def write_results(folder: Path, found: Results, meta: Mapping[str, Any]) -> None:
    """Write ``results.json`` (flat numbers and ``meta``), ``table.md`` and one PNG per figure, each atomically."""
    from consilience.analysis.base import plain
    from consilience.io.atomic import atomic_path
    from consilience.plots.style import png

    parts = [f"## {title}\n\n{markdown(table)}" for title, table in found.tables.items()]
    parts += ["\n".join(f"- {note}" for note in found.notes)] if found.notes else []
    texts = {
        "results.json": json.dumps(plain({**found.numbers, "meta": dict(meta)}), indent=1, allow_nan=False) + "\n",
        "table.md": "\n\n".join(parts) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    for name, figure in found.figures.items():
        with atomic_path(folder / f"{name}.png") as path:
            path.write_bytes(png(figure))


def meta(seed: int, seconds: float) -> dict[str, Any]:
    """What a number needs to be believed: command, seed, versions, threads, seconds, peak memory."""
    import torch

    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(peak_memory(), 1),
        "threads": torch.get_num_threads(),
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def peak_memory() -> float:
    """Most memory that this process has had resident until now, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def markdown(table: "Table") -> str:
    """A table in Markdown, four significant digits.

    Example:
        >>> from astropy.table import Table
        >>> print(markdown(Table({"label": ["mass"], "rmse": [0.25]})))
        | label | rmse |
        |---|---|
        | mass | 0.25 |
    """
    from consilience.analysis.base import numbers

    lines = [table.colnames, ["---"] * len(table.colnames), *numbers(table)]
    return "\n".join("|" + "|".join(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)
