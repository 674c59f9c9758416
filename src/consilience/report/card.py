"""The model card: what a model is, what it was fitted on, and what is known of its error bars."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from consilience.analysis.base import plain
from consilience.data.schema import ModalitySpec, Schema

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["card", "caveats", "facts", "modalities", "record_rows"]

Rows = list[tuple[str, ...]]


def card(fitted: "Fitted") -> str:
    """The model card as Markdown: family, training, modalities with units, calibration record and its caveats.

    Whatever comes from data (names, units, provenance) is escaped, so it can neither break a table nor add markup.
    """
    lines = [f"# Model card: {_escape(str(fitted.provenance.get('family', type(fitted.family).__name__)))}", ""]
    lines += ["One conditional distribution over named modalities: any of them given any seen cells of the others.", ""]
    lines += ["## Model and training", "", *_table(("", ""), facts(fitted)), ""]
    lines += ["## Modalities", "", *_table(("name", "kind", "shape", "unit", "on"), modalities(fitted.schema)), ""]
    lines += ["## Calibration record", ""]
    header, rows = record_rows(fitted.calibration)
    if rows:
        lines += [*_table(header, rows), ""]
    lines += [f"- {_escape(text)}" for text in caveats(fitted.calibration)]
    return "\n".join(lines) + "\n"


def facts(fitted: "Fitted") -> Rows:
    """What the model is and how it came to be, as pairs of name and text; nested records are flattened with dots."""
    found = [("capabilities", ", ".join(sorted(fitted.capabilities)))]
    found += _flat(plain(fitted.provenance))
    found += [(f"family.{key}", value) for key, value in _flat(fitted.family.model_dump(mode="json"))]
    return [(key, value) for key, value in found]


def modalities(schema: Schema) -> Rows:
    """Name, kind, shape, unit and grid or cells of every modality.

    Example:
        >>> modalities(Schema(modalities=(ModalitySpec(name="x", shape=(3,), unit="mag"),)))
        [('x', 'real', '3', 'mag', '')]
    """
    return [
        (spec.name, spec.kind, " × ".join(map(str, spec.shape)) or "scalar", _units(spec), _axis(spec))
        for spec in schema.modalities
    ]


def record_rows(calibration: Mapping[str, Any] | None) -> tuple[tuple[str, ...], Rows]:
    """Header and rows of the calibration record: coverage at each level per modality, given all others."""
    given = (calibration or {}).get("given_the_rest", {})
    if not given:
        return (), []
    levels = next(iter(given.values()))["levels"]
    header = (
        "modality",
        "cells",
        *(f"covered at {100 * level:g} %" for level in levels),
        "NLPD per cell",
        "in the band",
    )
    rows: Rows = []
    for name, entry in given.items():
        covered = [f"{100 * value:.1f} %" for value in entry["coverage"]]
        nlpd, inside = entry.get("nlpd"), "yes" if entry["inside_band"] else "no"
        rows.append((name, str(entry["cells"]), *covered, "–" if nlpd is None else f"{nlpd:.3g}", inside))
    return header, rows


def caveats(calibration: Mapping[str, Any] | None) -> list[str]:
    """What the calibration record cannot promise, in plain sentences."""
    if not calibration:
        return ["No rows were held out, so the error bars of this model have not been checked."]
    found = [
        "Coverage holds for objects like the training table's; nothing is promised for others. See the outlier scores.",
        "Coverage is an average over objects: it can hold overall and fail for a subgroup.",
        "Cells of one object depend on each other, so the average over a modality has a larger sampling error than the "
        "number of its cells suggests; the verdict uses a simultaneous band that allows for that.",
    ]
    if calibration.get("selected_weights_on_these_rows"):
        found.append(
            "The same held-out rows chose the best weights while training, which flatters the record a little."
        )
    return found


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None else str(value))]


def _units(spec: ModalitySpec) -> str:
    units = list(dict.fromkeys(spec.cell_units()))
    return units[0] if len(units) == 1 else ", ".join(unit or "1" for unit in spec.cell_units()[:12])


def _axis(spec: ModalitySpec) -> str:
    if spec.time:
        return f"{spec.shape[0]} bins of {spec.time.width:g} {spec.time.unit}"
    if spec.grid:
        grid = spec.grid
        return f"{grid.name} {grid.start:g} to {grid.stop:g} {grid.unit}, {grid.size} {grid.spacing} bins".replace(
            "  ", " "
        )
    names = [cell.name for cell in spec.cells]
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")


def _table(header: tuple[str, ...], rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows]


def _escape(text: str) -> str:
    # Whitespace is folded first: a line break would end a table row.
    folded = re.sub(r"\s+", " ", text)
    folded = folded.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]#])", r"\\\1", folded)
