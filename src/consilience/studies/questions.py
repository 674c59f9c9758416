"""Analyses by name, as the command line asks for them."""

from collections.abc import Sequence

from consilience import analysis
from consilience.analysis.base import AbstractResult, default_targets
from consilience.data.observations import Observations
from consilience.data.schema import nearest
from consilience.errors import RequestError
from consilience.predict.fitted import Fitted

__all__ = ["QUESTIONS", "ask"]

OF_TARGETS = {  # given the rest
    "calibration": analysis.calibration,
    "conditional-calibration": analysis.conditional_calibration,
    "highest-density": analysis.highest_density,
    "joint-calibration": analysis.joint_calibration,
    "pattern-calibration": analysis.pattern_calibration,
    "recalibration": analysis.recalibration,
    "attribution": analysis.attribution,
    "decomposition": analysis.decomposition,
    "uncertainty": analysis.uncertainty,
}
QUESTIONS = (*OF_TARGETS, "what-next", "reconstruction", "imputation", "outliers", "comparison")


def ask(
    question: str,
    fitted: Fitted,
    obs: Observations,
    *,
    targets: Sequence[str] = (),
    given: Sequence[str] = (),
    reference: Observations | None = None,
) -> AbstractResult:
    """The answer to one of ``QUESTIONS``.

    Arguments:
        question: Its name.
        fitted: Any fitted model.
        obs: Rows to ask about.
        targets: Modalities asked for; the analysis's own default when empty.
        given: Modalities shown to the model (questions about targets, comparison); all but the targets when empty.
        reference: Ordinary rows (outliers), the model's training rows (comparison), or rows whose error bars a new
            measurement would have (what-next; ``obs`` themselves when absent).

    Raises:
        RequestError: an unknown question, a name that the schema lacks, or no reference where one is needed.
        CapabilityError: the model does not answer this question.
    """
    if question not in QUESTIONS:
        hint = nearest(question, QUESTIONS)
        raise RequestError(f"Expected a question among {list(QUESTIONS)}; got {question!r}.{hint}")
    for name in (*targets, *given):
        obs.schema[name]
    asked = tuple(targets) or tuple(name for name in default_targets(fitted.schema) if name in obs.schema)
    hidden = [name for name in obs.schema.names if name in asked or (given and name not in given)]
    if question in OF_TARGETS:
        return OF_TARGETS[question](fitted, obs, asked, given=obs.hide(*hidden))
    if question == "what-next":
        return analysis.what_next(fitted, obs.hide(*hidden), asked, like=reference or obs)
    if question == "reconstruction":
        return analysis.reconstruction(fitted, obs, list(targets) or None)
    if question == "imputation":
        return analysis.imputation(fitted, obs)
    if reference is None:
        what = "ordinary rows" if question == "outliers" else "the model's training rows"
        raise RequestError(f"Expected {what} as the reference of {question}; got none. Give --reference FILE.")
    if question == "outliers":
        return analysis.outliers(fitted, obs, reference)
    inputs = list(given) or [name for name in obs.schema.names if name not in asked]
    return analysis.compare(fitted, reference, obs, inputs, asked[0])
