"""``cs.fit``: scale, train, measure coverage on rows that were not trained on, and record it all."""

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilience.analysis.calibration import calibration
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.streaming import Streamed
from consilience.data.turning import refuse_turns
from consilience.errors import CapabilityError, RequestError
from consilience.models.base import AbstractFamily, AbstractModel
from consilience.predict.fitted import Fitted
from consilience.train.config import TrainConfig
from consilience.train.loop import SOME, History
from consilience.train.loop import train as run_training
from consilience.typing import PathOrStr

__all__ = ["fit", "measure_coverage"]

CHECKED = 500  # held-out rows behind the calibration record
CHECKED_CELLS = 500_000  # and at most so many cells of a modality, but at least two rows
DRAWS = 200


def fit(
    family: AbstractFamily,
    train: Observations | Streamed,
    config: TrainConfig | None = None,
    *,
    real: Observations | None = None,
    pairs: Observations | None = None,
    members: int = 1,
    resume: PathOrStr | None = None,
) -> Fitted:
    """Fit a family to a table and measure its coverage on held-out rows of it.

    A share ``config.validation`` of the rows (whole groups where the schema has them) is never trained on: it chooses
    the best weights and gives the calibration record, which says so.

    Arguments:
        family: What to fit, for instance ``SharedGPLVM(latent_dim=10)``.
        train: The table, in memory or on disk (:func:`consilience.stream`); of the latter the scaling and the held-out
            checks see at most 10 000 rows drawn at random.
        config: How to train.
        real: Rows of the real domain (families with domain adaptation only).
        pairs: Simulated-real pairs (families with domain adaptation only).
        members: Size of the ensemble; member k trains with seed ``config.seed + k``.
        resume: Directory of checkpoints to write to and continue from.

    Raises:
        CapabilityError: ``real`` or ``pairs`` for a family without domain adaptation.
        RequestError: members < 1, too few rows to hold out, or images to augment that the table has not.
        SchemaError: images to augment that are not square.
        TrainingError: a term of the objective is not finite.

    Example:
        >>> import consilience as cs
        >>> obs = cs.simulators.gaussian(60, seed=0)
        >>> quick = cs.TrainConfig(max_steps=5, validation=0.2)
        >>> cs.fit(cs.SharedGPLVM(latent_dim=2, inducing=10), obs, quick).provenance["rows"]
        48
    """
    config = config or TrainConfig()
    if real is not None or pairs is not None:
        raise CapabilityError(
            f"Expected a family with domain adaptation for real= or pairs=; got {type(family).__name__}."
        )
    if members < 1:
        raise RequestError(f"Expected members >= 1; got {members}.")
    if resume is not None:
        config = config.model_copy(update={"checkpoint": str(resume)})
    begun = time.time()
    kept, held = _hold_out(train, config)
    refuse_turns(kept.schema, config.augment)
    scaler = Scaler.fit(kept.some(SOME, seed=config.seed) if isinstance(kept, Streamed) else kept)
    scaler = scaler.symmetric(config.augment)
    data = kept.mapped(scaler.forward) if isinstance(kept, Streamed) else scaler.forward(kept)
    held_scaled = None if held is None else scaler.forward(held.detached())
    models: list[AbstractModel] = []
    histories: list[History] = []
    for member in range(members):
        mine = config.model_copy(update={"seed": config.seed + member})
        if config.checkpoint is not None and members > 1:
            mine = mine.model_copy(update={"checkpoint": str(Path(config.checkpoint) / f"member-{member}")})
        model = family.build(kept.schema, len(kept), mine.seed)
        model.in_units(scaler)
        histories.append(run_training(model, data, held_scaled, family, mine, resume=resume is not None))
        models.append(model.eval())
    provenance = _provenance(family, kept, held, config, time.time() - begun)
    fitted = Fitted(tuple(models), family, scaler, config, provenance, None, histories[0])
    return fitted if held is None else replace(fitted, calibration=measure_coverage(fitted, held))


def measure_coverage(fitted: Fitted, held: Observations) -> dict[str, Any]:
    """Coverage of each modality given all others, per pattern, on held-out rows: plain numbers for the record."""
    most = max(spec.size for spec in fitted.schema.modalities)
    some = held[: min(CHECKED, max(2, CHECKED_CELLS // most))]
    record: dict[str, Any] = {"rows": len(some), "selected_weights_on_these_rows": True, "given_the_rest": {}}
    for name in fitted.schema.names:
        ordered = fitted.schema[name].kind != "category"
        if len(fitted.schema.names) < 2 or not ordered or not some.parts[name].measured.any():
            continue
        if not fitted.answers(frozenset(fitted.schema.names) - {name}, frozenset([name])):
            continue
        found = calibration(fitted, some, [name], given=some.hide(name), n=DRAWS)
        weight = found.rows / max(found.rows.sum(), 1)
        record["given_the_rest"][name] = {
            "levels": list(found.bands.levels),
            "coverage": [float(c) for c in np.nansum(found.coverage * weight[:, None], axis=0)],
            "nlpd": float(np.nansum(found.scores["nlpd"] * weight)),
            "cells": int(found.rows.sum()),
            "inside_band": bool(found.inside_band),
        }
    return record


def _hold_out(
    rows: Observations | Streamed, config: TrainConfig
) -> tuple[Observations | Streamed, Observations | None]:
    if config.validation == 0:
        return (rows if isinstance(rows, Streamed) else rows.renumbered()), None
    by = None if rows.group is None else "group"
    if round((1 - config.validation) * len(rows)) in (0, len(rows)):
        raise RequestError(
            f"Expected rows on both sides of validation={config.validation}; got {len(rows)} rows. Use validation=0."
        )
    kept, held = rows.split(1 - config.validation, seed=config.seed, by=by)
    return kept, held.some(SOME, seed=config.seed) if isinstance(held, Streamed) else held


def _provenance(
    family: AbstractFamily,
    kept: Observations | Streamed,
    held: Observations | None,
    config: TrainConfig,
    seconds: float,
) -> Mapping[str, Any]:
    return {
        "family": type(family).__name__,
        "rows": len(kept),
        "held_out_rows": 0 if held is None else len(held),
        "seed": config.seed,
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("consilience", "torch", "numpy")},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
