"""The report: one HTML page that needs nothing else, on a screen, a phone or paper."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from consilience.analysis.base import AbstractResult
from consilience.data.observations import Observations
from consilience.io.atomic import atomic_path
from consilience.report.answers import answers
from consilience.report.sections import Section, sections
from consilience.typing import PathOrStr

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["report"]


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

    Figures are inside the file and nothing is fetched; text from data is escaped. The one script shows the values under
    the pointer and enlarges figures; browsers run no other, since the page states its hash. What the analyses found is
    said in words first. A question the model cannot answer is named on the page instead of shown. The file is written
    whole or not at all.

    Beside calibration, reconstruction and outliers, coverage is judged apart for every pattern of what is missing, and
    each of two to four modalities gets its share of what is known; of more, pass an :func:`attribution` in ``results``.

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
    import markupsafe

    found = answers(fitted, obs, train, results)
    notes = list(found.refused)
    shown = list(sections(fitted, obs, found, notes))
    if notes:
        shown.append(Section("skipped", "What is not shown", points=tuple(notes)))
    script = resources.files("consilience.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("consilience", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    family = str(fitted.provenance.get("family", type(fitted.family).__name__))
    page = environment.get_template("page.html").render(
        title=title or f"{family} on {len(obs)} objects",
        family=family,
        rows=len(obs),
        sections=shown,
        script=markupsafe.Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
