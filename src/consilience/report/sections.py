"""The sections of a report: tables, figures and what they mean, one function for each kind of answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from consilience import analysis, plots
from consilience.analysis.base import AbstractResult, numbers
from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.predict.tiles import seen
from consilience.report.answers import SEED, Answers
from consilience.report.card import caveats, facts, modalities, record_rows
from consilience.report.figures import Picture, corner_of, latent_of, picture, spectra_of
from consilience.report.words import sentences

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["Section", "Sheet", "sections"]

LONGEST = 40  # rows of a table in the page; files keep all
WATERFALLS = 2  # objects of which it is shown who told what

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text, with what it means."""

    header: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    strong: tuple[int, ...] = ()  # rows that stand out


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of the page with what stands under it."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    pictures: tuple[Picture, ...] = ()
    points: tuple[str, ...] = ()


def sections(fitted: "Fitted", obs: Observations, found: Answers, notes: list[str]) -> Iterable[Section]:
    """All sections of a page, in order; why one is missing is added to ``notes``."""
    spoken = sentences(found)
    if spoken:
        yield Section("words", "In words", points=spoken)
    yield from _of(found.calibration, _headline)
    yield from _of(found.comparison, _comparison)
    yield from _of(found.calibration, _calibration)
    yield from _of(found.patterns, _patterns)
    yield from _of(found.conditional, _conditional)
    yield from _of(found.attribution, _attribution)
    yield from _examples(fitted, obs, found.targets, notes)
    yield from _of(found.reconstruction, _reconstruction)
    latent = _try("latent map", notes, lambda: latent_of(fitted, obs, found.targets))
    if latent:
        yield Section("latent", "Latent map", pictures=(latent,))
    yield from _of(found.outliers, _outliers)
    for number, result in enumerate(found.others):
        yield _other(result, number)
    if fitted.history:
        drawn = picture(
            plots.history(list(fitted.history)), "training history", "The objective and its terms while training."
        )
        yield Section("history", "Training", pictures=(drawn,))
    yield _card(fitted)


def _of(answer: Answer | None, build: Callable[[Answer], Section]) -> Iterable[Section]:
    if answer is not None:
        yield build(answer)


def _examples(fitted: "Fitted", obs: Observations, targets: tuple[str, ...], notes: list[str]) -> Iterable[Section]:
    examples = _try("example spectra", notes, lambda: spectra_of(fitted, obs, SEED))
    if examples:
        yield Section("examples", "Objects with gaps", pictures=tuple(examples))
    if fitted.answers(seen(obs) - set(targets), frozenset(targets)):
        corner = _try("corner", notes, lambda: corner_of(fitted, obs, targets, SEED))
        if corner:
            yield Section("corner", "Posterior of one object", pictures=(corner,))


def _headline(found: analysis.Calibration) -> Section:
    from astropy.table import Table

    levels = [k for k, level in enumerate(found.bands.levels) if level in (0.68, 0.95)] or [0]
    table = found.table()
    keep = ["cell", "unit", "rows", "mae", "rmse", "r2", "nlpd", "crps", "contraction"]
    rows = numbers(Table([table[name] for name in keep]))
    for c, row in enumerate(rows):
        row += [
            f"{100 * found.coverage[c, k]:.1f} % ({100 * found.low[c, k]:.1f}–{100 * found.high[c, k]:.1f})"
            for k in levels
        ]
    names = ("quantity", "unit", "rows", "MAE", "RMSE", "R²", "NLPD", "CRPS", "contraction")
    header = (*names, *(f"inside {100 * found.bands.levels[k]:g} %" for k in levels))
    inside = (
        f"Every coverage lies inside the simultaneous {100 * found.bands.confidence:g} % band"
        if found.inside_band
        else f"At least one coverage lies outside the simultaneous {100 * found.bands.confidence:g} % band"
    )
    text = f"{inside} (p = {found.pvalue:.2g}). Predicted from: {', '.join(found.given) or 'nothing'}."
    note = (
        "MAE, RMSE and CRPS in the quantity's unit; NLPD in nats; contraction is posterior over population standard "
        "deviation (1: nothing learned); in brackets, the coverage that right error bars would show."
    )
    return Section("numbers", "In numbers", (text,), (_sheet(header, rows, note),))


def _comparison(found: analysis.Comparison) -> Section:
    rows = numbers(found.table())
    for row in rows:
        row[-2:] = [f"{100 * float(value):.1f} %" if value != "–" else value for value in row[-2:]]
    own = tuple(k for k, row in enumerate(rows) if row[2] == "model")
    header = ("quantity", "unit", "method", "rows", "MAE", "RMSE", "NLPD", "inside 68 %", "inside 95 %")
    caption = "Negative log predictive density and error of the model (blue) and of the baselines."
    drawn = picture(found.figure(), "scores of the model and the baselines", caption)
    text = f"The same test rows, predicted from the same inputs: {', '.join(found.inputs)}."
    return Section("comparison", "Beside simpler methods", (text,), (_sheet(header, rows, strong=own),), (drawn,))


def _calibration(found: analysis.Calibration) -> Section:
    text = (
        "Above: how much more (or less) often than stated the truth lies in the central interval; bars show where "
        "right error bars would be, for all quantities and levels together. Below: probability integral transform, "
        "flat when error bars are right. Both would also pass a model that learned nothing: read NLPD and contraction "
        "too."
    )
    pictures = (
        picture(found.figure(), "coverage minus nominal level and PIT histograms with bands", text),
        picture(found.scatter(), "predicted against measured values", "Posterior mean and standard deviation."),
    )
    return Section("calibration", "Can the error bars be believed?", pictures=pictures)


def _patterns(found: analysis.PatternCalibration) -> Section:
    text = (
        "The same coverage, apart for rows that show the same. Error bars that are right on average may be too small "
        f"where an instrument is missing. All together: p = {found.pvalue:.2g}."
    )
    levels = [k for k, level in enumerate(found.each[0].bands.levels) if level in (0.68, 0.95)] or [0]
    rows = []
    for name, one in zip(found.patterns, found.each, strict=True):
        covered = [
            f"{100 * np.nanmin(one.coverage[:, k]):.1f}–{100 * np.nanmax(one.coverage[:, k]):.1f} %" for k in levels
        ]
        rows.append([name, str(one.rows.max()), *covered, f"{one.pvalue:.2g}", "yes" if one.inside_band else "no"])
    inside = [f"inside {100 * found.each[0].bands.levels[k]:g} %" for k in levels]
    sheet = _sheet(("what is shown", "rows", *inside, "p", "in the band"), rows, "From the worst to the best quantity.")
    drawn = picture(found.figure(), "coverage minus nominal level by pattern and quantity", text)
    return Section("patterns", "Whatever is missing?", (), (sheet,), (drawn,))


def _conditional(found: analysis.ConditionalCalibration) -> Section:
    text = (
        "Where a posterior makes everything of what it was shown, nothing that was shown foretells where in it the "
        "truth lies (position), or how far from its middle (width). Above zero: a modality tells more than the model "
        "heard. One that knows only the population passes the checks of coverage and fails here."
    )
    drawn = picture(found.figure(), "what each modality foretells of the place of the truth", text)
    return Section("conditional", "Was every modality heard?", pictures=(drawn,))


def _attribution(found: analysis.Attribution) -> Section:
    text = (
        "What each modality adds to what the model knows, shared out over all orders in which they could be seen "
        "(Shapley values). Those that tell the same share it; one that is not there in a row adds nothing to it."
    )
    pictures = [picture(found.figure(), "what each modality adds to each quantity", text)]
    cell = found.cells[int(np.nanargmax(np.nan_to_num(found.r2_value.sum(axis=0))))]
    moved = np.abs(found.moved[:, :, found.cells.index(cell)]).sum(axis=0)
    for row in found.ids[np.argsort(-moved)[:WATERFALLS]]:
        caption = f"How what is said of {cell} of object {row} comes about, from what is said of any object."
        pictures.append(
            picture(found.waterfall(str(row), cell), f"steps to the posterior mean of {cell} of {row}", caption)
        )
    note = "In bits of information and in R², with 68 % intervals over objects."
    header = ("modality", "quantity", "R²", "low", "high", "bits", "low", "high")
    return Section("attribution", "Who told?", (), (_sheet(header, numbers(found.table()), note),), tuple(pictures))


def _reconstruction(found: analysis.Reconstruction) -> Section:
    text = "χ² per degree of freedom with the full predictive variance. " + (
        "These cells were kept from the model: 1 is right."
        if found.hidden
        else "The model was shown these cells, so values somewhat below 1 are expected; well above 1 is a misfit."
    )
    drawn = picture(found.figure(), "χ² per degree of freedom of every cell", text)
    table = found.table()
    more = tuple({"ssim": "SSIM", "frechet": "Fréchet"}[name] for name in table.colnames[7:])
    header = ("quantity", "unit", "cells", "RMSE", "MSE", "MAE", "χ² / dof", *more)
    return Section("reconstruction", "Reconstruction", (), (_sheet(header, numbers(table)),), (drawn,))


def _outliers(found: analysis.Outliers) -> Section:
    count = int(found.flagged.sum())
    text = (
        f"{count} of {len(found.ids)} objects are flagged at a false-positive rate of {100 * found.rate:g} %; "
        f"{found.rate * len(found.ids):.1f} would be by chance if all were ordinary. If the reference rows trained the "
        "model, it explains them too well, and somewhat more are flagged."
    )
    header = ("object", "latent score", "χ² score", "peak score", "largest", "p-value", "flagged")
    rows = numbers(found.table())[:10]
    drawn = picture(found.figure(), "latent and reconstruction scores of all objects", "Dashed: the threshold.")
    return Section("outliers", "Unusual objects", (text,), (_sheet(header, rows, "The most unusual first."),), (drawn,))


def _other(result: AbstractResult, number: int) -> Section:
    table = result.table()
    drawn = picture(result.figure(), f"figure of {result.name}", "")
    sheet = _sheet(tuple(table.colnames), numbers(table))
    return Section(f"result-{number}", result.name.capitalize(), (), (sheet,), (drawn,))


def _card(fitted: "Fitted") -> Section:
    spec = [list(row) for row in modalities(fitted.schema)]
    sheets = [Sheet(("modality", "kind", "shape", "unit", "on"), spec)]
    header, rows = record_rows(fitted.calibration)
    if rows:
        note = "Coverage of each modality given all others, measured on rows held out when the model was fitted."
        sheets.append(Sheet(header, [list(row) for row in rows], note))
    sheets.append(Sheet(("fact", "value"), [list(row) for row in facts(fitted)]))
    text = "One conditional distribution over named modalities: any of them given any seen cells of the others."
    return Section("card", "Model card", (text,), tuple(sheets), points=tuple(caveats(fitted.calibration)))


def _sheet(header: tuple[str, ...], rows: list[list[str]], note: str = "", strong: tuple[int, ...] = ()) -> Sheet:
    more = len(rows) - LONGEST
    if more > 0:
        note = f"{note} {more} more rows are not shown.".strip()
    return Sheet(header, rows[:LONGEST], note, strong)


def _try(name: str, notes: list[str], question: Callable[[], Answer]) -> Answer | None:
    try:
        return question()
    except RequestError as error:
        notes.append(f"{name}: {error}")
        return None
