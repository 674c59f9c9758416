"""Nearby galaxies without spectra: labels from photometry and images, by several arms, and how far to believe them.

Arms: a regression on photometry; a regression and the nearest neighbours on what the image's autoencoder says; the flow
on photometry, and on photometry and images; and as a control the last one again, of images that show the flux of their
galaxy in the shape of another (``blind``), where images should gain nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from pydantic import Field
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from consilience import plots
from consilience.analysis.calibration import Bands, calibration
from consilience.analysis.joint import joint_calibration
from consilience.analysis.traversals import traversals
from consilience.analysis.uncertainty import uncertainty
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, ModalitySpec, Schema, validated
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily
from consilience.models.regression import Regression
from consilience.models.vae_flow import VAEFlow
from consilience.predict.fitted import Fitted
from consilience.simulators.sdss import sdss_galaxies
from consilience.studies.galaxy_flow_figures import drawn_and_measured, ignorance, maps
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, StudyConfig
from consilience.train.config import TrainConfig
from consilience.typing import BoolArray, FloatArray
from consilience.workflow.fit import fit

__all__ = ["ARMS", "Settings", "run"]

ARMS = ("photometry_mlp", "image_mlp", "image_knn", "photometry_flow", "image_photometry_flow", "blind_flow")
FLOW = "image_photometry_flow"
MISSING = ("labels", "detected")  # what is not shown
LEVEL = 0.68  # at which coverages are compared


class Settings(Frozen):
    """Sizes of the surveys and of what is measured on them."""

    galaxies: int = Field(ge=40)  # with images
    pixels: int = Field(ge=8)
    train: float = Field(gt=0, lt=1)  # share of them, with those by which training stops
    seeds: int = Field(ge=1)  # of split and training
    neighbours: int = Field(ge=1)
    draws: int = Field(ge=20)
    photometric: int = Field(ge=40)  # galaxies without images, on which ignorance is seen to fall
    sizes: tuple[int, ...]  # training rows of these
    members: int = Field(ge=2)  # of the ensembles there
    gaps: float = Field(gt=0, lt=1)  # share of their bands without a measurement, where coverage is by pattern of them
    shallower: float = Field(ge=0)  # dex, up to which noise is raised there, the same in all bands of a galaxy
    scored: int = Field(ge=20)  # galaxies of each pattern
    workers: int = Field(default=1, ge=1)  # processes that simulate


@dataclass(frozen=True, slots=True)
class _Split:
    """One seed's halves of the survey and of its blind twin, and how arms are trained on them."""

    size: Settings
    config: TrainConfig
    family: VAEFlow
    own: tuple[Observations, Observations]
    blind: tuple[Observations, Observations]
    seed: int

    def fitted(self, arm: str, kept: Kept) -> Fitted:
        """The model of an arm, trained or as it was kept."""
        train, _ = self.rows(arm, kept)
        family, config = self._family(arm), self.config.model_copy(update={"seed": self.seed})
        if not isinstance(family, VAEFlow) or not family.images:
            config = _without_images(config)
        return kept.model(f"{arm}, seed {self.seed}", lambda: fit(family, train.renumbered(), config))

    def rows(self, arm: str, kept: Kept) -> tuple[Observations, Observations]:
        """Training and test rows, of what the arm reads and learns."""
        if arm.startswith(("image_mlp", "image_knn")):
            fitted = self.fitted(FLOW, kept)
            return self._embedded(fitted, self.own[0]), self._embedded(fitted, self.own[1])
        both = self.blind if arm == "blind_flow" else self.own
        names = ("photometry", "labels") if arm == "photometry_mlp" else ("photometry", "image", *MISSING)
        if arm == "photometry_flow":
            names = ("photometry", *MISSING)
        return both[0].select(*names), both[1].select(*names)

    def on_photometry(self) -> tuple[VAEFlow, TrainConfig]:
        """The flow without images, and how it is trained."""
        family = self.family.model_copy(update={"images": (), "networks": {}})
        return family, _without_images(self.config.model_copy(update={"seed": self.seed}))

    def _family(self, arm: str) -> AbstractFamily:
        if arm.endswith("mlp"):
            return Regression(target="labels", hidden=self.family.hidden)
        if arm == "photometry_flow":
            return self.on_photometry()[0]
        return self.family

    def _embedded(self, fitted: Fitted, rows: Observations) -> Observations:
        """Means and standard deviations of the image's latents, as a table with the labels."""
        latent = fitted.latent(rows.select(*fitted.schema.names).hide(*MISSING))
        value = np.concatenate([latent.mean["image"], latent.std["image"]], axis=1)
        value = np.where(rows.parts["image"].measured.any(axis=(1, 2, 3))[:, None], value, np.nan)
        schema = Schema(id=rows.schema.id, modalities=(ModalitySpec(name="embedding", shape=value.shape[1:]),))
        return Observations.from_arrays(schema, {"embedding": value}, ids=rows.ids).join(rows.select("labels"))


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Fit every arm of every seed, then the flow on photometry alone to more and more rows.

    Arguments:
        config: A VAEFlow that reads images and predicts ``detected``; training and :class:`Settings`.
        data: Not used.
        seed: Of the simulations, and of the first split and training.
        quick: Tiny sizes; already in ``config``.
        out: Where models and scores are kept, so that a study which was stopped goes on.

    Raises:
        SchemaError: another model.
    """
    size = validated(Settings, config.study, where="[study]")
    family = config.config.family
    if not isinstance(family, VAEFlow) or family.images != ("image",) or family.detected != "detected":
        raise SchemaError(
            f"Expected a VAEFlow with images = ['image'] and detected = 'detected' for galaxies-flow; got {family!r}."
        )
    kept = Kept(out, family, config.config.train, size)
    own, blind = (
        sdss_galaxies(size.galaxies, seed=seed, pixels=size.pixels, blind=blind, workers=size.workers)
        for blind in (False, True)
    )
    splits = []
    for number in range(seed, seed + size.seeds):
        halves = [table.split(size.train, seed=number) for table in (own, blind)]
        splits.append(_Split(size, config.config.train, family, halves[0], halves[1], number))
    found = {
        arm: [kept.part(f"{arm}, seed {one.seed}", lambda arm=arm, one=one: _scores(arm, one, kept)) for one in splits]
        for arm in ARMS
    }
    numbers, tables, labels = _compared(found, own)
    first = splits[0]
    _, test = first.rows(FLOW, kept)
    fitted, given = first.fitted(FLOW, kept), test.hide(*MISSING)
    each = calibration(fitted, test, ["labels"], given=given, n=size.draws, seed=seed)
    joint = joint_calibration(fitted, test, ["labels"], given=given, n=size.draws, seed=seed)
    numbers |= {
        "coverage68_error_max": float(np.abs(each.coverage[:, each.bands.levels.index(LEVEL)] - LEVEL).max()),
        "coverage_inside_band": each.inside_band,
        "tarp_pvalue": joint.pvalue,
        "tarp_inside_band": joint.inside_band,
        **_detections(fitted, test, first.own[1].parts["true_detected"].value.ravel() == 1),
    }
    halves = _photometric(first)
    spreads = _ignorance(first, halves, kept)
    gaps, tables["Coverage with missing bands and varying depth"] = _patterns(first, halves, kept)
    numbers |= spreads | gaps
    r2 = {arm: np.array([numbers[f"r2_{arm}_{label}"] for label in labels]) for arm in ARMS}
    figures = {
        "labels": plots.methods({"R²": r2}, labels, FLOW, f"mean over seeds ({size.seeds})"),
        "calibration": each.figure(),
        "joint": joint.figure(),
        "main_sequence": drawn_and_measured(fitted, test, ["log_mass", "log_sfr", "redshift"], seed),
        "ignorance": ignorance(own.schema["labels"], spreads, size.sizes),
        "metallicity": drawn_and_measured(fitted, test, ["log_mass", "oh"], seed),
        "traversals": traversals(fitted, given, "image", "image").figure(),
        **maps(fitted, test, seed),
    }
    tables["Coverage and scores of single labels (first seed)"] = each.table()
    tables["Joint posteriors (first seed)"] = joint.table()
    return Results(numbers, tables, figures)


def _without_images(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"augment": (), "stages": ()})


def _scores(arm: str, split: _Split, kept: Kept) -> dict[str, FloatArray]:
    """R² of the labels, their mean negative log densities, and that of all together; (D,), (D,) and a number."""
    train, test = split.rows(arm, kept)
    part = test.parts["labels"]
    truth = np.where(part.measured, part.value, np.nan)
    spread = np.nanvar(truth, axis=0)
    if arm == "image_knn":
        mean = _neighbours(train, test, split.size.neighbours)
        return {"r2": 1 - np.nanmean((mean - truth) ** 2, axis=0) / spread}
    fitted = split.fitted(arm, kept)
    given = test.hide(*(name for name in MISSING if name in test.schema))
    answer = fitted.summarise(given, ["labels"], statistics=("mean",), n=split.size.draws, seed=split.seed)
    alone = np.where(part.measured, fitted.cell_log_prob(test, ["labels"], given=given)["labels"], np.nan)
    return {
        "r2": 1 - np.nanmean((answer.statistics["labels"]["mean"] - truth) ** 2, axis=0) / spread,
        "nlpd": -np.nanmean(alone, axis=0),
        "joint": np.array(-np.mean(fitted.log_prob(test, ["labels"], given=given).value)),
        "apart": np.array(-np.mean(np.nansum(alone, axis=1))),
    }


def _neighbours(train: Observations, test: Observations, count: int) -> FloatArray:
    """Mean of each label over the training rows that look most alike, of those which have it."""
    scaler = StandardScaler().fit(_filled(train))
    x, other = (np.asarray(scaler.transform(_filled(rows))) for rows in (train, test))
    part = train.parts["labels"]
    found = np.empty((len(test), part.value.shape[1]))
    for column in range(part.value.shape[1]):
        there = part.measured[:, column]
        near = KNeighborsRegressor(min(count, int(there.sum())))
        found[:, column] = near.fit(x[there], part.value[there, column]).predict(other)
    return found


def _filled(rows: Observations) -> FloatArray:
    part = rows.parts["embedding"]
    return np.where(part.measured, part.value, 0.0)


def _compared(
    found: Mapping[str, Sequence[Mapping[str, FloatArray]]], table: Observations
) -> tuple[dict[str, float | int | bool | None], dict[str, Table], list[str]]:
    """Numbers and tables of all arms: means over seeds, with their spread."""
    labels = list(table.schema["labels"].cell_names())
    numbers: dict[str, float | int | bool | None] = {"galaxies": len(table)}
    rows: dict[str, list[list[str]]] = {"r2": [], "nlpd": []}
    for arm, several in found.items():
        for score, lines in rows.items():
            if score not in several[0]:
                continue
            each = np.array([one[score] for one in several])
            spread = each.std(axis=0, ddof=1) if len(each) > 1 else np.full(len(labels), np.nan)
            more = [f" ± {one:.3f}" if np.isfinite(one) else "" for one in spread]
            lines.append([arm, *(f"{one:.3f}{text}" for one, text in zip(each.mean(axis=0), more, strict=True))])
            for label, value in zip(labels, each.mean(axis=0), strict=True):
                numbers[f"{score}_{arm}_{label}"] = float(value)
        if "joint" in several[0]:
            numbers[f"nlpd_{arm}"] = float(np.mean([one["joint"] for one in several]))
            numbers[f"nlpd_apart_{arm}"] = float(np.mean([one["apart"] for one in several]))
    titles = {"r2": "R² of the labels", "nlpd": "Mean negative log density of single labels, nats"}
    tables = {titles[score]: Table(rows=lines, names=["arm", *labels]) for score, lines in rows.items()}
    together = [[arm, numbers[f"nlpd_{arm}"], numbers[f"nlpd_apart_{arm}"]] for arm, *_ in rows["nlpd"]]
    tables["Mean negative log density of all labels of a galaxy, nats"] = Table(
        rows=together, names=["arm", "together", "apart"]
    )
    return numbers, tables, labels


def _detections(fitted: Fitted, test: Observations, truth: BoolArray) -> dict[str, float]:
    """How well it is foreseen which galaxies have lines, by the rule on their true fluxes, (N,)."""
    given = test.hide(*MISSING)
    answer = fitted.summarise(given, ["detected"], statistics=("mean",), n=400)
    said = answer.statistics["detected"]["mean"].ravel()
    return {
        "detected_auc": float(roc_auc_score(truth, said)),
        "detected_accuracy": float(np.mean((said > 0.5) == truth)),
        "detected_base_rate": float(max(truth.mean(), 1 - truth.mean())),
    }


def _photometric(split: _Split) -> tuple[Observations, Observations]:
    """Galaxies without images, for training and test."""
    table = sdss_galaxies(split.size.photometric, seed=split.seed + 1_000_000, workers=split.size.workers)
    return table.select("photometry", *MISSING).split(split.size.train, seed=split.seed)


def _ignorance(split: _Split, halves: tuple[Observations, Observations], kept: Kept) -> dict[str, float]:
    """Aleatoric and epistemic spread of ensembles on photometry, of more and more training rows."""
    (train, test), size, numbers = halves, split.size, {}
    family, config = split.on_photometry()
    for rows in size.sizes:
        some = train[:rows].renumbered()
        fitted = kept.model(f"{rows} rows", lambda some=some: fit(family, some, config, members=size.members))
        found = uncertainty(fitted, test, ["labels"], given=test.hide(*MISSING), n=size.draws, seed=split.seed)
        for kind, spread in found.spread().items():
            numbers |= {f"{kind}_{name}_{rows}": float(one) for name, one in zip(found.cells, spread, strict=True)}
    return numbers


def _patterns(
    split: _Split, halves: tuple[Observations, Observations], kept: Kept
) -> tuple[dict[str, float | int | bool | None], Table]:
    """Coverage of the labels by pattern of missing bands, up to two of them, of one flow that saw such rows."""
    size, rng = split.size, np.random.default_rng(split.seed)
    train, test = (_shallower(half, size.shallower, rng) for half in halves)
    family, config = split.on_photometry()
    some = train.hide_cells({"photometry": rng.random(train.parts["photometry"].value.shape) < size.gaps})
    fitted = kept.model("with gaps", lambda: fit(family, some.renumbered(), config))
    bands, test = test.schema["photometry"].cell_names(), test[: size.scored]
    rows, levels = list[list[Any]](), Bands().levels
    for missing in (pattern for count in range(3) for pattern in combinations(range(len(bands)), count)):
        hidden = np.isin(np.arange(len(bands)), missing)
        words = ", ".join(bands[band] for band in missing) or "none"
        given = test.hide(*MISSING).hide_cells({"photometry": np.tile(hidden, (len(test), 1))})

        def scores(given: Observations = given) -> dict[str, FloatArray]:
            found = calibration(fitted, test, ["labels"], given=given, n=size.draws, seed=split.seed)
            contraction = found.scores["contraction"]
            inside, pvalue = np.array(float(found.inside_band)), np.array(found.pvalue)
            return {"coverage": found.coverage, "inside": inside, "pvalue": pvalue, "contraction": contraction}

        one = kept.part(f"without {words}", scores)
        worst = np.abs(one["coverage"] - levels).max(axis=0)
        rows.append([words, len(test), *worst, float(one["pvalue"]), bool(one["inside"]), one["contraction"].mean()])
    shown = [f"off at {level:.0%}" for level in levels]
    names = ["missing", "rows", *shown, "p", "inside", "mean contraction"]
    inside, off = names.index("inside"), names.index(shown[levels.index(LEVEL)])
    numbers = {
        "patterns": len(rows),
        "patterns_inside_band": sum(row[inside] for row in rows),
        "coverage68_error_max_patterns": max(row[off] for row in rows),
    }
    return numbers, Table(rows=rows, names=names)


def _shallower(table: Observations, most: float, rng: np.random.Generator) -> Observations:
    """The same photometry of shorter exposures, with the noise that they would have, and say to have."""
    part = table.parts["photometry"]
    factor = 10 ** (most * rng.random((len(table), 1)))
    assert part.sigma is not None
    sigma = part.sigma * factor
    value = part.value + np.sqrt(sigma**2 - part.sigma**2) * rng.standard_normal(sigma.shape)
    value = np.where(part.measured, value, part.value)
    return replace(table, parts={**table.parts, "photometry": replace(part, value=value, sigma=sigma)})
