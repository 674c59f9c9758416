"""Statistics of draws by name."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from consilience.errors import RequestError
from consilience.typing import FloatArray

__all__ = ["statistic"]

STATISTICS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "mean": lambda draws: draws.mean(axis=0),
    "std": lambda draws: draws.std(axis=0),
}


def statistic(key: str) -> Callable[[FloatArray], FloatArray]:
    """The function of draws (S, …) that gives "mean", "std" or a percentile such as "q16", (…).

    Raises:
        RequestError: another name.

    Example:
        >>> float(statistic("q50")(np.arange(5.0)))
        2.0
    """
    if key in STATISTICS:
        return STATISTICS[key]
    match = re.fullmatch(r"q(\d+(?:\.\d+)?)", key)
    if not match or not 0 <= float(match[1]) <= 100:
        raise RequestError(f"Expected statistics 'mean', 'std' or a percentile such as 'q16'; got {key!r}.")
    percent = float(match[1])
    return lambda draws: np.percentile(draws, percent, axis=0)
