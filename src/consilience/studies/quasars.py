"""Labels of simulated quasars from their spectra alone, beside the mean, ridge regression and boosted trees."""

from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import analysis, plots
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, validated
from consilience.predict.fitted import Fitted
from consilience.report.page import report
from consilience.simulators import quasars
from consilience.studies.runner import Results, StudyConfig
from consilience.workflow.fit import fit

__all__ = ["Settings", "run"]

LEVELS = (0.68, 0.95)


class Settings(Frozen):
    """Sizes of the experiment."""

    train: int = Field(ge=20)  # simulated quasars to train on, validation rows among them
    test: int = Field(ge=10)  # held-out quasars
    draws: int = Field(default=500, ge=20)  # per object
    fresh: int = Field(default=0, ge=0)  # further rows on which coverage alone is measured


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Train on simulated quasars, predict the labels of held-out ones from spectra alone, check every error bar.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Not used; the table is simulated.
        seed: Of the simulation and the training.
        quick: Tiny sizes; already in ``config``.
        out: Folder for the model and the page.

    Raises:
        SchemaError: unfit settings.
    """
    size = validated(Settings, config.study, where="[study]")
    table = quasars(size.train + size.test, seed=seed).select("spectrum", "labels")
    train, test = table[: size.train].renumbered(), table[size.train :].renumbered()
    fitted = fit(config.config.family, train, config.config.train.model_copy(update={"seed": seed}))
    compared = analysis.compare(fitted, train, test, ["spectrum"], "labels", n=size.draws)
    given = test.hide("labels")
    checked = analysis.calibration(fitted, test, ["labels"], given=given, n=size.draws)
    numbers: dict[str, float | int | bool | None] = {
        "train_rows": len(train),
        "test_rows": len(test),
        "pixels": table.schema["spectrum"].size,
        "missing_fraction": float(1 - table.parts["spectrum"].seen.mean()),
        "missing_labels_fraction": float(1 - table.parts["labels"].seen.mean()),
        "fit_seconds": float(fitted.provenance["seconds"]),
        "nlpd_minus_best_baseline_max": float(compared.advantage().max()),
        "inside_band": checked.inside_band,
        "coverage_pvalue": checked.pvalue,
        **_misses(checked, ""),
        **_per_label(compared),
    }
    if size.fresh:
        numbers |= _on_fresh_rows(fitted, size.fresh, seed, size.draws)
    fitted.save(out / "model")
    report(fitted, test, out / "report.html", train=train, title="Simulated quasars", results=(checked, compared))
    return Results(
        numbers,
        {
            "Labels from spectra alone": compared.table(),
            "Coverage in %, and the simultaneous 99 % band over all labels and levels": _coverage_table(checked),
        },
        {
            "comparison": compared.figure(),
            "coverage": checked.figure(),
            "predicted": checked.scatter(),
            "spectrum": _one_spectrum(fitted, test, size.draws),
        },
        (
            f"Every coverage is {'inside' if checked.inside_band else 'NOT inside'} the simultaneous 99 % band.",
            "NLPD of the model minus that of the best baseline, worst label: "
            f"{numbers['nlpd_minus_best_baseline_max']:.3f} nats.",
        ),
    )


def _misses(checked: analysis.Calibration, suffix: str) -> dict[str, float]:
    found = {}
    for level in LEVELS:
        column = checked.bands.levels.index(level)
        found[f"coverage{100 * level:.0f}_error_max{suffix}"] = float(np.abs(checked.coverage[:, column] - level).max())
    return found


def _coverage_table(checked: analysis.Calibration) -> Table:
    columns: dict[str, list[object]] = {"cell": list(checked.cells), "rows": checked.rows.tolist()}
    for k, level in enumerate(checked.bands.levels):
        edges = zip(100 * checked.coverage[:, k], 100 * checked.low[:, k], 100 * checked.high[:, k], strict=True)
        columns[f"at {100 * level:g} %"] = [f"{value:.1f} ({low:.0f} to {high:.0f})" for value, low, high in edges]
    return Table(columns)


def _per_label(compared: analysis.Comparison) -> dict[str, float]:
    return {
        f"{score}_{cell}_{method.replace(' ', '_')}": float(values[c])
        for score, by in compared.scores.items()
        for method, values in by.items()
        for c, cell in enumerate(compared.cells)
    }


def _on_fresh_rows(fitted: Fitted, rows: int, seed: int, draws: int) -> dict[str, float | int | bool]:
    # A seed that no training of this study uses: seeds are small numbers.
    fresh = quasars(rows, seed=seed + 1_000_003).select("spectrum", "labels")
    checked = analysis.calibration(fitted, fresh, ["labels"], given=fresh.hide("labels"), n=draws)
    found: dict[str, float | int | bool] = {"fresh_rows": rows, "inside_band_fresh": checked.inside_band}
    for c, cell in enumerate(checked.cells):
        for level in LEVELS:
            found[f"coverage{100 * level:.0f}_{cell}_fresh"] = float(
                checked.coverage[c, checked.bands.levels.index(level)]
            )
    return {**found, **_misses(checked, "_fresh")}


def _one_spectrum(fitted: Fitted, test: Observations, draws: int) -> plots.Figure:
    grid = test.schema["spectrum"].grid
    assert grid is not None
    part = test.parts["spectrum"]
    row = int(part.seen.sum(axis=1).argmax())
    # A stretch in the middle of what was seen is kept from the model: does the band hold there?
    seen = np.flatnonzero(part.seen[row])
    hidden = np.zeros(part.value.shape, bool)
    hidden[row, seen[len(seen) // 2] : seen[len(seen) // 2] + 60] = True
    one = test.hide_cells({"spectrum": hidden})[row]
    samples = fitted.sample(one, ["spectrum"], n=draws)
    return plots.spectrum(
        grid.centres(), samples.values["spectrum"][:, 0], part.value[row], part.sigma[row], hidden[row],
        plots.Labels(grid.name, "flux", f"{test.ids[row]}, 60 pixels kept from the model", grid.unit, ""),
    )  # fmt: skip
