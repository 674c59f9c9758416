"""The report: one HTML page that needs nothing else, on a screen, a phone or paper."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from consilience import analysis, plots
from consilience.analysis.base import AbstractResult, default_targets, numbers
from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.io.atomic import atomic_path
from consilience.predict.tiles import seen
from consilience.report.card import caveats, facts, modalities, record_rows
from consilience.report.figures import Picture, corner_of, latent_of, picture, spectra_of
from consilience.typing import PathOrStr

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["report"]

LONGEST = 40  # rows of a table in the page; files keep all
SEED = 0

Result = TypeVar("Result", bound=AbstractResult)


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


def report(
    fitted: "Fitted",
    obs: Observations,
    path: PathOrStr,
    *,
    train: Observations | None = None,
    title: str | None = None,
    results: Sequence[AbstractResult] = (),
) -> None:
    """Write one self-contained HTML page about a fitted model and how it does on a table.

    Figures are inside the file, there are no scripts and nothing is fetched; text from data is escaped. A question
    the model cannot answer is named on the page instead of shown. The file is written whole or not at all.

    Arguments:
        fitted: Any fitted model.
        obs: Rows to show and to check on, best ones the model was not trained on.
        path: File to write.
        train: Ordinary rows that outliers are judged against; without them there is no outlier section.
        title: Heading of the page.
        results: Analyses already made: they are shown, and not made again.

    Raises:
        DataError: the folder does not exist.
    """
    import jinja2

    notes: list[str] = []
    sections = [section for section in _sections(fitted, obs, train, results, notes) if section is not None]
    if notes:
        sections.append(Section("skipped", "What is not shown", points=tuple(notes)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("consilience", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    family = str(fitted.provenance.get("family", type(fitted.family).__name__))
    page = environment.get_template("page.html").render(
        title=title or f"{family} on {len(obs)} objects", family=family, rows=len(obs), sections=sections
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _sections(
    fitted: "Fitted",
    obs: Observations,
    train: Observations | None,
    results: Sequence[AbstractResult],
    notes: list[str],
) -> Iterable[Section | None]:
    targets = default_targets(fitted.schema)
    found = _given(results, analysis.Calibration)
    if found is None:
        found = _try("calibration", notes, lambda: analysis.calibration(fitted, obs, targets, seed=SEED))
    yield None if found is None else _headline(found)
    comparison = _given(results, analysis.Comparison)
    yield None if comparison is None else _comparison(comparison)
    yield None if found is None else _calibration(found)
    examples = _try("example spectra", notes, lambda: spectra_of(fitted, obs, SEED))
    yield Section("examples", "Objects with gaps", pictures=tuple(examples)) if examples else None
    askable = fitted.answers(seen(obs) - set(targets), frozenset(targets))
    corner = _try("corner", notes, lambda: corner_of(fitted, obs, targets, SEED)) if askable else None
    yield Section("corner", "Posterior of one object", pictures=(corner,)) if corner else None
    rebuilt = _given(results, analysis.Reconstruction)
    if rebuilt is None:
        rebuilt = _try("reconstruction", notes, lambda: analysis.reconstruction(fitted, obs, seed=SEED))
    yield None if rebuilt is None else _reconstruction(rebuilt)
    latent = _try("latent map", notes, lambda: latent_of(fitted, obs, targets))
    yield Section("latent", "Latent map", pictures=(latent,)) if latent else None
    unusual = _given(results, analysis.Outliers)
    if unusual is None and train is not None:
        unusual = _try("outliers", notes, lambda: analysis.outliers(fitted, obs, train, seed=SEED))
    yield None if unusual is None else _outliers(unusual)
    shown = (analysis.Calibration, analysis.Comparison, analysis.Reconstruction, analysis.Outliers)
    for number, result in enumerate(result for result in results if not isinstance(result, shown)):
        yield _other(result, number)
    if fitted.history:
        drawn = picture(
            plots.history(list(fitted.history)), "training history", "The objective and its terms while training."
        )
        yield Section("history", "Training", pictures=(drawn,))
    yield _card(fitted)


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


def _reconstruction(found: analysis.Reconstruction) -> Section:
    text = "χ² per degree of freedom with the full predictive variance. " + (
        "These cells were kept from the model: 1 is right."
        if found.hidden
        else "The model was shown these cells, so values somewhat below 1 are expected; well above 1 is a misfit."
    )
    drawn = picture(found.figure(), "χ² per degree of freedom of every cell", text)
    header = ("quantity", "unit", "cells", "RMSE", "MSE", "MAE", "χ² / dof")
    return Section("reconstruction", "Reconstruction", (), (_sheet(header, numbers(found.table())),), (drawn,))


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


def _given(results: Sequence[AbstractResult], kind: type[Result]) -> Result | None:
    return next((result for result in results if isinstance(result, kind)), None)


Answer = TypeVar("Answer")


def _try(name: str, notes: list[str], question: Callable[[], Answer]) -> Answer | None:
    try:
        return question()
    except RequestError as error:
        notes.append(f"{name}: {error}")
        return None
