"""Which parts of each row were seen, in words, so that rows that show the same can be judged together."""

from collections.abc import Sequence

import numpy as np

from consilience.data.observations import Observations
from consilience.typing import BoolArray, StringArray

__all__ = ["patterns", "seen_parts"]

NAMED = 32  # most named cells that are told apart; of more only whether any is seen


def patterns(obs: Observations, names: Sequence[str] | None = None) -> StringArray:
    """The pattern of every row, (N,): "all", or "without" what is not seen in it.

    Of a modality with at most 32 named cells, such as the bands of a camera, every cell counts; of another only whether
    any of its cells is seen, since no two spectra have the same gaps.

    Arguments:
        obs: Rows.
        names: Modalities that count; all of them by default. One that the schema lacks is not seen.

    Example:
        >>> from consilience.data.schema import ModalitySpec, Schema
        >>> bands = ModalitySpec(name="bands", cells=({"name": "g"}, {"name": "r"}, {"name": "z"}))
        >>> schema = Schema(modalities=(bands, ModalitySpec(name="spectrum", shape=(3,))))
        >>> values = {"bands": [[1, 2, 3], [1, np.nan, np.nan]], "spectrum": [[1, np.nan, 2], [np.nan] * 3]}
        >>> patterns(Observations.from_arrays(schema, {k: np.array(v) for k, v in values.items()})).tolist()
        ['all', 'without bands r z, spectrum']
    """
    kept = obs.schema.names if names is None else names
    shown = [seen_parts(obs, name) for name in kept]
    if not shown:
        return np.full(len(obs), "all")
    every, which = np.unique(np.concatenate([seen for seen, _ in shown], axis=1), axis=0, return_inverse=True)
    ends = np.cumsum([seen.shape[1] for seen, _ in shown])[:-1]
    found = []
    for row in every:
        lost = [
            _words(name, flags, cells)
            for name, flags, (_, cells) in zip(kept, np.split(row, ends), shown, strict=True)
            if not flags.all()
        ]
        found.append("without " + ", ".join(lost) if lost else "all")
    return np.array(found)[which.ravel()] if found else np.empty(0, dtype="<U1")


def seen_parts(obs: Observations, name: str) -> tuple[BoolArray, list[str]]:
    """What of a modality is seen in each row, (N, parts), and the names of its cells if each is a part of its own."""
    if name not in obs.schema:
        return np.zeros((len(obs), 1), dtype=bool), []
    spec = obs.schema[name]
    seen = obs.parts[name].seen.reshape(len(obs), spec.size)
    if spec.cells and len(spec.cells) <= NAMED:
        return seen, spec.cell_names()
    return seen.any(axis=1, keepdims=True), []


def _words(name: str, seen: BoolArray, cells: list[str]) -> str:
    if not seen.any():
        return name
    return " ".join([name, *(cell for cell, there in zip(cells, seen, strict=True) if not there)])
