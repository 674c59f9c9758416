"""What a report knows: the analyses it was given, and those that it asks for itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from consilience import analysis
from consilience.analysis.base import AbstractResult, default_targets
from consilience.data.observations import Observations
from consilience.data.patterns import patterns
from consilience.errors import RequestError
from consilience.predict.tiles import seen

if TYPE_CHECKING:
    from consilience.predict.fitted import Fitted

__all__ = ["SEED", "Answers", "answers"]

SEED = 0
DRAWS = 200  # behind answers of which many are asked
PLAYERS = 4  # modalities, all of whose coalitions a report asks for by itself

Result = TypeVar("Result", bound=AbstractResult)


@dataclass(frozen=True, slots=True)
class Answers:
    """One answer to each question of a report, or None; ``others`` are shown as they are, ``refused`` says why not."""

    targets: tuple[str, ...]
    calibration: analysis.Calibration | None
    patterns: analysis.PatternCalibration | None
    conditional: analysis.ConditionalCalibration | None
    attribution: analysis.Attribution | None
    comparison: analysis.Comparison | None
    reconstruction: analysis.Reconstruction | None
    outliers: analysis.Outliers | None
    others: tuple[AbstractResult, ...]
    refused: tuple[str, ...]


def answers(
    fitted: "Fitted", obs: Observations, train: Observations | None, results: Sequence[AbstractResult]
) -> Answers:
    """Take what was given, and ask the model for the rest; what it cannot answer is refused in words.

    Patterns are asked for where rows differ in what they show, shares of modalities where they are two to four.

    Arguments:
        fitted: The model.
        obs: Rows to show and to check on.
        train: Ordinary rows that outliers are judged against, or None.
        results: Analyses already made.
    """
    targets = default_targets(fitted.schema)
    refused: list[str] = []

    def found(kind: type[Result], name: str, question: Callable[[], Result] | None) -> Result | None:
        given = next((result for result in results if isinstance(result, kind)), None)
        if given is not None or question is None:
            return given
        try:
            return question()
        except RequestError as error:
            refused.append(f"{name}: {error}")
            return None

    shown = obs.hide(*(name for name in targets if name in obs.schema))
    players = len(seen(shown))
    kept = [name for name in fitted.schema.names if name not in targets]
    several = len(np.unique(patterns(shown, kept))) > 1
    kinds = (
        analysis.Calibration,
        analysis.PatternCalibration,
        analysis.ConditionalCalibration,
        analysis.Attribution,
        analysis.Comparison,
        analysis.Reconstruction,
        analysis.Outliers,
    )
    by_pattern = (lambda: analysis.pattern_calibration(fitted, obs, targets, seed=SEED)) if several else None
    shares = (
        (lambda: analysis.attribution(fitted, obs, targets, n=DRAWS, seed=SEED)) if 2 <= players <= PLAYERS else None
    )
    judged = None if train is None else lambda: analysis.outliers(fitted, obs, train, seed=SEED)
    return Answers(
        targets,
        found(kinds[0], "calibration", lambda: analysis.calibration(fitted, obs, targets, seed=SEED)),
        found(kinds[1], "patterns", by_pattern),
        found(kinds[2], "conditional calibration", lambda: analysis.conditional_calibration(fitted, obs, targets)),
        found(kinds[3], "shares of the modalities", shares),
        found(kinds[4], "comparison", None),
        found(kinds[5], "reconstruction", lambda: analysis.reconstruction(fitted, obs, seed=SEED)),
        found(kinds[6], "outliers", judged),
        tuple(result for result in results if not isinstance(result, kinds)),
        tuple(refused),
    )
