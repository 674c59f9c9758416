"""One model of simulated galaxies in many ways: sizes of blocks, weights of CLUB, learning rates, missing data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from astropy.table import Table

from consilience import plots
from consilience.analysis.information import block_information
from consilience.data.observations import Observations
from consilience.errors import SchemaError
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.studies.galaxy_fits import READ, Settings, Split, latent_scores
from consilience.studies.kept import Kept
from consilience.studies.runner import Results
from consilience.train.weights import Ramp, Weight
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Variation", "run_sweep", "variations"]

Rows = Literal["all", "half", "complete"]


@dataclass(frozen=True, slots=True)
class Variation:
    """One way to make and train the model.

    Arguments:
        name: In tables and in the names of numbers.
        family: Its configuration.
        penalty: Weight of CLUB's own terms; None for that of the settings.
        rate: Of learning; None for that of the configuration.
        rows: "all"; "half" of them without one of their modalities; or only the "complete" ones of these.
    """

    name: str
    family: DisentangledVAE
    penalty: float | None = None
    rate: float | None = None
    rows: Rows = "all"

    def weights(self, club: Mapping[str, Weight]) -> dict[str, Weight]:
        """Those with CLUB, with ramps of its own terms to the penalty."""
        found = dict(club)
        for name, weight in club.items():
            if self.penalty is not None and name.startswith("mi/") and isinstance(weight, Ramp):
                found[name] = weight.model_copy(update={"stop": self.penalty})
        return found


def variations(size: Settings, family: DisentangledVAE) -> list[Variation]:
    """Those of an experiment.

    Raises:
        SchemaError: no sizes, penalties or rates for it.
    """
    apart = family.model_copy(update={"club": True, "physics": {}})
    plain = apart.model_copy(update={"club": False})
    values = {"grid": size.blocks, "frontier": size.penalties, "rates": size.rates, "missing": ("",)}[size.experiment]
    if not values:
        key = {"grid": "blocks", "frontier": "penalties", "rates": "rates"}[size.experiment]
        raise SchemaError(f"Expected values of '{key}' in [study] for {size.experiment!r}; got none. Give some.")
    if size.experiment == "missing":
        each: tuple[Rows, ...] = ("all", "half", "complete")
        return [Variation(f"rows_{rows}", apart, rows=rows) for rows in each]
    if size.experiment == "rates":
        return [Variation(f"rate_{rate:g}", apart, rate=rate) for rate in size.rates]
    if size.experiment == "frontier":
        return [Variation(f"weight_{weight:g}", apart if weight else plain, weight) for weight in size.penalties]
    return [
        Variation(
            f"shared_{shared}_private_{private}" + "_club" * own.club,
            own.model_copy(update={"shared": shared, "private": dict.fromkeys(READ, private)}),
        )
        for own in (plain, apart)
        for shared in size.blocks
        for private in size.blocks
    ]


def run_sweep(splits: Sequence[Split], kept: Kept) -> Results:
    """Fit every variation to every split; one row each of what it knows, draws and keeps apart."""
    first = splits[0]
    every = variations(first.size, first.family)
    found: dict[str, list[Mapping[str, FloatArray]]] = {}
    for one in every:
        found[one.name] = [
            kept.part(split.label(one.name), lambda one=one, split=split: _measured(one, split)) for split in splits
        ]
    return _results(found, first)


def _measured(one: Variation, split: Split) -> dict[str, FloatArray]:
    rate = one.rate or split.config.learning_rate
    changed = {"seed": split.seed, "weights": one.weights(split.weights("dmvae_club")), "learning_rate": rate}
    config = split.config.model_copy(update=changed)
    own = replace(split, train=_rows(split.train, one.rows, split.seed))
    fitted = fit(one.family, own.train.select(*READ).renumbered(), config)
    found = latent_scores(fitted, own) | {"variance": split.test.parts["labels"].value.var(axis=0)}
    shared = block_information(fitted, own.train, own.test, seed=split.seed)
    kinds = {"private_shared": [], "private_private": []}
    for row, (block, other, of) in enumerate(zip(shared.one, shared.other, shared.of, strict=True)):
        if of == "draw":
            kinds["private_shared" if "shared" in (block, other) else "private_private"].append(row)
    for kind, rows in kinds.items():
        for score in ("ksg", "info_nce", "r2"):
            found[f"{score}_{kind}"] = np.array(getattr(shared, score)[rows].max())
    return found


def _rows(train: Observations, which: Rows, seed: int) -> Observations:
    """All rows; or with one of both modalities hidden in half of them; or without these."""
    rng = np.random.default_rng(seed)
    lacks, lost = rng.random(len(train)) < 0.5, rng.integers(len(READ), size=len(train))
    if which == "all":
        return train
    if which == "complete":
        return train[~lacks].renumbered()
    masks = {}
    for number, name in enumerate(READ):
        value = train.parts[name].value
        gone = (lacks & (lost == number)).reshape(-1, *[1] * (value.ndim - 1))
        masks[name] = np.broadcast_to(gone, value.shape)
    return train.hide_cells(masks)


SCORES = (
    *(f"{kind}_{name}" for kind in ("mse", "cross_mse") for name in READ), "ksg_private_shared",
    "info_nce_private_shared", "r2_private_shared", "ksg_private_private", "r2_private_private",
)  # fmt: skip


def _results(found: Mapping[str, Sequence[Mapping[str, FloatArray]]], split: Split) -> Results:
    labels = [cell.name for cell in split.train.schema["labels"].cells]
    numbers: dict[str, float | int | bool | None] = {"seeds": split.size.seeds, "galaxies": split.size.galaxies}
    rows, r2 = [], {}
    for name, several in found.items():
        r2[name] = np.mean([1 - part["squares"].mean(axis=0) / part["variance"] for part in several], axis=0)
        means = {score: float(np.mean([part[score] for part in several])) for score in SCORES}
        said = dict(zip((f"r2_{label}" for label in labels), map(float, r2[name]), strict=True)) | means
        numbers |= {f"{key}_{name}": value for key, value in said.items()}
        rows.append([name, *said.values()])
    names = ["variation", *(f"R² {label}" for label in labels), *SCORES]
    title = f"{split.size.experiment}: mean over seeds ({split.size.seeds}), on {len(split.test)} test rows of each"
    highlight = next(iter(found))
    drawn = {
        score: {name: np.array([np.mean([part[f"{kind}{score}"] for part in several]) for kind in ("", "cross_")])
                for name, several in found.items()}
        for score in ("mse_image", "mse_spectrum")
    }  # fmt: skip
    figures = {
        "labels": plots.methods({"R²": r2}, labels, highlight, f"mean over seeds ({split.size.seeds})"),
        "drawn": plots.methods(drawn, ["reconstructed", "crossed"], highlight, "relative to the mean; lower is better"),
    }
    return Results(numbers, {title: Table(rows=rows, names=names)}, figures)
