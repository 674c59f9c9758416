"""Known shared and private factors through random curved maps: is each found in its own block, and in no other?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.analysis.probes import Probes, probes
from consilience.config import Config
from consilience.data.schema import Frozen, validated
from consilience.errors import SchemaError
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.simulators.gaussian import factors
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, StudyConfig
from consilience.workflow.fit import fit

__all__ = ["Settings", "run"]


class Settings(Frozen):
    """Sizes of the simulations, of the blocks, and what is made incomplete."""

    objects: int = Field(ge=100)
    train: float = Field(gt=0, lt=1)  # share of the objects
    modalities: tuple[int, ...] = Field(min_length=1)  # numbers of them, one simulation each
    sizes: tuple[int, int, int]  # shared factors, private ones of each modality, cells of each
    noise: float = Field(gt=0)
    oversized: int = Field(ge=2)  # blocks are also this many times as large as they need to be
    missing: float = Field(ge=0, lt=1)  # share of the cells, in the incomplete tables
    sigma: float = Field(ge=0)  # error bars there
    seeds: int = Field(ge=1)


@dataclass(frozen=True, slots=True)
class _Case:
    """One table and one model."""

    modalities: int
    times: int
    incomplete: bool
    club: bool

    def label(self) -> str:
        modalities, blocks, cells, club = self.row()
        return f"{modalities} modalities, {blocks} size, {cells} cells" + (", CLUB" if club == "yes" else "")

    def row(self) -> list[object]:
        return [
            self.modalities,
            "right" if self.times == 1 else f"{self.times} x",
            "incomplete" if self.incomplete else "complete",
            "yes" if self.club else "no",
        ]


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Simulate, split, train and probe every case for every seed; what is reported is the worst of them.

    Arguments:
        config: Model, training and :class:`Settings`; the sizes of the blocks and ``club`` are the study's.
        data: Not used.
        seed: The first seed.
        quick: Tiny sizes; already in ``config``.
        out: Where the scores of every fit are kept, so that a study which was stopped goes on.
    """
    size = validated(Settings, config.study, where="[study]")
    if not isinstance(config.config.family, DisentangledVAE):
        raise SchemaError(f"Expected a DisentangledVAE for factors; got {type(config.config.family).__name__}.")
    cases = [
        _Case(modalities, times, incomplete, club)
        for modalities in size.modalities
        for times in (1, size.oversized)
        for incomplete in (False, True)
        for club in (False, True)
    ]
    kept = Kept(out, config.config.family, config.config.train, size)
    found = {case: [_scores(config.config, size, case, seed + k, kept) for k in range(size.seeds)] for case in cases}
    rows = [
        [
            *case.row(),
            *(float(f(np.array(scores)[:, k])) for k, f in ((0, np.min), (1, np.max), (2, np.min), (3, np.max))),
        ]
        for case, scores in found.items()
    ]
    names = ["modalities", "blocks", "cells", "CLUB", "own, draws", "other, draws", "own, means", "other, means"]
    title = f"Worst R² of {size.seeds} seeds, {size.objects} objects: factors read from their own block and from others"
    by_case = {case.label(): np.array(row[4:6], dtype=float) for case, row in zip(cases, rows, strict=True)}
    columns = ["own block", "others"]
    figure = plots.methods(
        {"R²": by_case}, columns, cases[0].label(), f"factors read from draws of blocks; worst of {size.seeds} seeds"
    )
    return Results({"seeds": size.seeds, **_numbers(found)}, {title: Table(rows=rows, names=names)}, {"blocks": figure})


def _numbers(found: Mapping[_Case, list[tuple[float, ...]]]) -> dict[str, float]:
    """The worst over modalities and seeds, from draws."""
    numbers = {}
    for case in found:
        alike = [
            one
            for other, scores in found.items()
            if (other.times, other.incomplete, other.club) == (case.times, case.incomplete, case.club)
            for one in scores
        ]
        which = "_oversized" * (case.times > 1) + "_incomplete" * case.incomplete + "_no_club" * (not case.club)
        numbers[f"r2_own_min{which}"] = min(own for own, *_ in alike)
        numbers[f"r2_leak_max{which}"] = max(leak for _, leak, *_ in alike)
    return numbers


def _scores(config: Config, size: Settings, case: _Case, seed: int, kept: Kept) -> tuple[float, ...]:
    """Least R² of a factor from its own block and largest from another: of draws, then of means."""
    name = f"{case.label()}, seed {seed}"
    return tuple(map(float, kept.part(name, lambda: _fit_and_probe(config, size, case, seed)).values()))


def _fit_and_probe(config: Config, size: Settings, case: _Case, seed: int) -> dict[str, float]:
    some = {"missing": size.missing, "sigma": size.sigma} if case.incomplete else {}
    table = factors(size.objects, seed=seed, modalities=case.modalities, sizes=size.sizes, noise=size.noise, **some)
    train, test = table.split(size.train, seed=seed)
    names = [f"x{k + 1}" for k in range(case.modalities)]
    shared, private, _ = size.sizes
    assert isinstance(config.family, DisentangledVAE)
    blocks = {"shared": case.times * shared, "private": dict.fromkeys(names, case.times * private), "club": case.club}
    family = config.family.model_copy(update=blocks)
    fitted = fit(family, train.select(*names).renumbered(), config.train.model_copy(update={"seed": seed}))
    truths = ["true_shared", *(f"true_private_{name}" for name in names)]
    answer = probes(fitted, train, test, truths, seed=seed)
    own = _own(answer)
    return {
        f"{which} of {kind}": float(value)
        for kind, r2 in (("draws", answer.of_draw), ("means", answer.of_mean))
        for which, value in (("own", r2[own].min()), ("other", r2[~own].max()))
    }


def _own(answer: Probes) -> np.ndarray:
    """Which rows read a factor from its own block."""
    pairs = zip(answer.block, answer.quantity, strict=True)
    return np.array([quantity.startswith(f"true_{block}") for block, quantity in pairs])
