"""A table, a schema, a configuration or a model in words."""

import json
from pathlib import Path

from consilience.config import config_from, read_toml
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError
from consilience.io import describe
from consilience.io.raw import ColumnSummary
from consilience.predict.fitted import Fitted, load

__all__ = ["in_words", "model_in_words", "schema_in_words"]

SHOWN = 60  # columns of a table


def in_words(path: Path) -> list[str]:
    """What stands at a path, told by its kind: a model directory, a TOML or JSON file, or a table.

    Raises:
        RequestError: nothing is there, or it is none of these.
    """
    if not path.exists():
        raise RequestError(f"Expected a table, a schema, a configuration or a model; got nothing at {path}.")
    if (path / "model.json").is_file():
        return model_in_words(load(path))
    if path.suffix == ".toml" and "model" in (data := read_toml(path)):
        found = config_from({name: table for name, table in data.items() if name not in ("study", "quick")}, path)
        options = json.loads(found.family.model_dump_json(exclude_defaults=True))
        training = json.loads(found.train.model_dump_json(exclude_defaults=True))
        return [
            f"A configuration of {type(found.family).__name__}.",
            f"Its options: {_listed(options)}.",
            f"Training: {_listed(training)}.",
            *(schema_in_words(found.schema) if found.schema else []),
        ]
    if path.suffix in (".toml", ".json"):
        return schema_in_words(Schema.read(path))
    summary = describe(path)
    lines = [f"A table of {summary.rows} rows and {len(summary.columns)} columns."]
    lines += [_column(column, summary.rows) for column in summary.columns[:SHOWN]]
    if len(summary.columns) > SHOWN:
        lines.append(f"… and {len(summary.columns) - SHOWN} more columns.")
    meaning = schema_in_words(summary.schema) if summary.schema else ["It carries no schema: give one to read it."]
    return lines + meaning


def schema_in_words(schema: Schema) -> list[str]:
    """A schema in words, one line per modality.

    Example:
        >>> schema_in_words(Schema(modalities=(ModalitySpec(name="x", shape=(3,), unit="Jy"),)))
        ['A schema of 1 modality; rows are identified by the column id.', '  x: 3 real numbers in Jy']
    """
    count = len(schema.modalities)
    head = f"A schema of {count} modalit{'y' if count == 1 else 'ies'}; rows are identified by the column {schema.id}"
    grouped = f" and grouped by {schema.group}." if schema.group else "."
    return [head + grouped, *(f"  {spec.name}: {_modality(spec)}" for spec in schema.modalities)]


def model_in_words(fitted: Fitted) -> list[str]:
    """A model in words: what it is, what it was trained on, what it answers, and how good its error bars were."""
    about = fitted.provenance
    members = f", {len(fitted.members)} members" if len(fitted.members) > 1 else ""
    options = json.loads(fitted.family.model_dump_json(exclude={"family"}))
    lines = [
        f"A {type(fitted.family).__name__} trained on {about['rows']} rows in {about['seconds']:g} s{members}.",
        f"Options: {_listed(options)}.",
        f"It can: {', '.join(sorted(fitted.capabilities))}.",
        *schema_in_words(fitted.schema),
    ]
    if fitted.calibration is None:
        return [*lines, "Its coverage was not measured: no rows were held out."]
    lines.append(f"Coverage on {fitted.calibration['rows']} held-out rows, given the other modalities:")
    for name, found in fitted.calibration["given_the_rest"].items():
        pairs = zip(found["levels"], found["coverage"], strict=True)
        covered = ", ".join(f"{100 * level:g} % -> {100 * value:.1f} %" for level, value in pairs)
        band = "inside" if found["inside_band"] else "not inside"
        lines.append(f"  {name}: {covered} ({found['cells']} cells, {band} the band)")
    return lines


def _modality(spec: ModalitySpec) -> str:
    numbers = {"real": "real number", "positive": "positive number", "count": "count", "binary": "yes or no"}
    kind = numbers.get(spec.kind, f"one of {spec.classes} classes")
    text = f"{spec.size} {kind}{'s' if spec.size > 1 and spec.kind in numbers and spec.kind != 'binary' else ''}"
    if spec.cells:
        pairs = zip(spec.cells, spec.cell_units(), strict=True)
        return f"{text}: {', '.join(f'{cell.name} [{unit}]' if unit else cell.name for cell, unit in pairs)}"
    text += f" in {spec.unit}" if spec.unit else ""
    if spec.time:
        text += f", {spec.shape[0]} bins of {spec.time.width:g} {spec.time.unit}"
    if spec.grid:
        text += f", {spec.grid.name} {spec.grid.start:g} to {spec.grid.stop:g} {spec.grid.unit} ({spec.grid.spacing})"
    return text


def _column(column: ColumnSummary, rows: int) -> str:
    unit = f" in {column.unit}" if column.unit else ""
    shape = "" if not column.shape else " of its own length" if -1 in column.shape else f" x {column.shape}"
    size = rows
    for length in column.shape:
        size *= max(length, 1)
    missing = f", {100 * column.missing / size:.1f} % missing" if column.missing and -1 not in column.shape else ""
    return f"  {column.name}: {column.dtype}{shape}{unit}{missing}"


def _listed(options: dict[str, object]) -> str:
    said = [f"{key} = {value}" for key, value in options.items() if value not in ({}, [], None)]
    return ", ".join(said) or "the defaults"
