"""Simulated galaxies in images and spectra: what each model makes of them, and what its latents know of the stars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.table import Table

from consilience import plots
from consilience.analysis.contributions import Contributions, contributions
from consilience.analysis.discs import discs
from consilience.analysis.information import block_information
from consilience.analysis.reading import blocks_of, read
from consilience.analysis.scores import r_squared
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, validated
from consilience.errors import SchemaError
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.predict.fitted import Fitted
from consilience.simulators.galaxies import galaxies
from consilience.studies.galaxy_discs import run_discs
from consilience.studies.galaxy_fits import READ, Settings, Split, scores
from consilience.studies.galaxy_sweeps import run_sweep
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, StudyConfig
from consilience.typing import FloatArray

__all__ = ["run"]

MODELS = (
    "trees", "regression_image", "regression_spectrum", "regression_both", "vae_image", "vae_spectrum", "dmvae",
    "dmvae_club", "dmvae_club_physics",
)  # fmt: skip
PAIRS = (  # the first should be above the second
    ("regression_both", "regression_image"),
    ("regression_both", "regression_spectrum"),
    ("dmvae", "vae_image"),
    ("dmvae", "vae_spectrum"),
    ("dmvae_club", "dmvae"),
    ("dmvae_club_physics", "dmvae_club"),
)
SCORES = ("mse", "excess", "cross_mse", "cross_excess", "cross_one_mse")
RESAMPLED = 1000  # bootstraps of test rows
INVISIBLE = ("e_cos2", "e_sin2")  # of which nothing but the image tells


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Run one experiment: every model on one survey, or one model in many ways, or discs alone.

    Arguments:
        config: A DisentangledVAE, from which the other models take their networks; training and :class:`Settings`.
        data: Not used.
        seed: Of the simulation and of the first split and training.
        quick: Tiny sizes; already in ``config``.
        out: Where the scores of every fit are kept, so that a study which was stopped goes on.
    """
    size = validated(Settings, config.study, where="[study]")
    family = config.config.family
    if not isinstance(family, DisentangledVAE):
        raise SchemaError(f"Expected a DisentangledVAE for galaxies; got {type(family).__name__}.")
    single = size.experiment == "discs"
    looks = {"components": "single", "image_snr": size.image_snr} if single else {}
    sizes = {"bins": size.bins, "pixels": size.pixels, "workers": size.workers}
    survey = galaxies(size.galaxies, seed=seed, **sizes, **looks)
    kept = Kept(out, family, config.config.train, size)
    splits = [
        Split(size, config.config.train, family, *survey.split(size.train, seed=number), seed, number)
        for number in range(seed, seed + size.seeds)
    ]
    if size.experiment == "models":
        return _models(splits, kept)
    return run_discs(splits, kept) if single else run_sweep(splits, kept)


def _models(splits: Sequence[Split], kept: Kept) -> Results:
    """Fit every model of every seed to the same survey and compare what they reconstruct, cross-predict and know."""
    found: dict[str, list[Mapping[str, FloatArray]]] = {name: [] for name in MODELS}
    for split in splits:
        for name in MODELS:
            found[name].append(kept.part(split.label(name), lambda name=name, split=split: scores(name, split, kept)))
    return _results(found, splits[0], kept)


def _results(found: Mapping[str, Sequence[Mapping[str, FloatArray]]], split: Split, kept: Kept) -> Results:
    labels = [cell.name for cell in split.train.schema["labels"].cells]
    numbers: dict[str, float | int | bool | None] = {"seeds": split.size.seeds, "galaxies": split.size.galaxies}
    rows, r2 = [], {}
    for name, several in found.items():
        each = np.array([1 - part["squares"].mean(axis=0) / part["variance"] for part in several])
        r2[name] = each.mean(axis=0)
        numbers |= {f"r2_{name}_{label}": float(value) for label, value in zip(labels, r2[name], strict=True)}
        spread = [f" ± {one:.3f}" for one in each.std(axis=0, ddof=1)] if len(each) > 1 else [""] * len(labels)
        rows.append([name, *(f"{mean:.3f}{more}" for mean, more in zip(r2[name], spread, strict=True))])
        for score in several[0]:
            if score not in ("squares", "variance"):
                kind, target = score.rsplit("_", 1)
                numbers[f"{kind}_{target}_{name}"] = float(np.mean([part[score] for part in several]))
    gains = [[better, than, *_gain(found[better], found[than])] for better, than in PAIRS]
    for better, than, *intervals in gains:
        for label, (_, low, _) in zip(labels, intervals, strict=True):
            numbers[f"gain_low_{better}_{than}_{label}"] = float(low)
    text = [[b, t, *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in some)] for b, t, *some in gains]
    pixels = [
        [name, *(numbers.get(f"{score}_{target}_{name}") for score in SCORES for target in READ)]
        for name in found
        if f"mse_{READ[0]}_{name}" in numbers or f"mse_{READ[1]}_{name}" in numbers
    ]
    best = split.model("dmvae_club", kept)
    shares = contributions(best, split.train, split.test, ["labels"], seed=split.seed)
    shared = block_information(best, split.train, split.test, seed=split.seed)
    numbers["spearman_shapley_shap"] = shares.spearman()
    train, test = _with_shapes(split.train), _with_shapes(split.test)
    unseen = contributions(best, train, test, ["shape"], seed=split.seed)
    numbers |= _invisible(unseen, best, (train, test), split.seed)
    drawn = discs(split.model("dmvae_club_physics", kept), split.test, "image", seed=split.seed)
    numbers["physics_share"] = drawn.share
    tables = {
        f"R² of the labels, mean and standard deviation (seeds: {split.size.seeds})": Table(
            rows=rows, names=["model", *labels]
        ),
        "Gain of R² over another model, with its 95 % interval over test rows and seeds": Table(
            rows=text, names=["model", "over", *labels]
        ),
        "What is left of the variance of pixels and bins (mse), and of that beyond their noise (excess)": Table(
            rows=[["" if cell is None else cell for cell in row] for row in pixels],
            names=["model", *(f"{score}, {target}" for score in SCORES for target in READ)],
            dtype=[str, *[object] * (len(SCORES) * len(READ))],
        ),
        "R² of every subset of blocks (CLUB, first seed)": shares.table(),
        "Shares of every block": shares.shares(),
        "R² of the ellipticity of every subset of blocks": unseen.table(),
        "What every two blocks share": shared.table(),
    }
    figures = {
        "labels": plots.methods({"R²": r2}, labels, "dmvae_club", f"mean over seeds ({split.size.seeds})"),
        "shares": shares.figure(),
        "information": shared.figure(),
        "discs": drawn.figure(),
    }
    return Results(numbers, tables, figures)


def _gain(better: Sequence[Mapping[str, FloatArray]], than: Sequence[Mapping[str, FloatArray]]) -> FloatArray:
    """Mean difference of R² on the same rows, and its 95 % bootstrap interval over rows and seeds, (6, 3)."""
    rng = np.random.default_rng(0)
    each = [(b["squares"] - a["squares"]) / a["variance"] for a, b in zip(better, than, strict=True)]
    again = []
    for _ in range(RESAMPLED):
        chosen = [each[seed] for seed in rng.integers(len(each), size=len(each))]
        again.append(np.mean([one[rng.integers(len(one), size=len(one))].mean(axis=0) for one in chosen], axis=0))
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    return np.stack([np.mean([one.mean(axis=0) for one in each], axis=0), low, high], axis=1)


def _with_shapes(rows: Observations) -> Observations:
    """Images and spectra with the true ellipticity of the disc, which nothing but the image shows."""
    structure = rows.schema["true_structure"]
    which = [[cell.name for cell in structure.cells].index(name) for name in INVISIBLE]
    cells = tuple(structure.cells[column] for column in which)
    schema = rows.schema.model_copy(update={"modalities": (ModalitySpec(name="shape", cells=cells),)})
    values = {"shape": rows.parts["true_structure"].value[:, which]}
    return rows.select(*READ).join(Observations.from_arrays(schema, values, ids=rows.ids))


def _invisible(shares: Contributions, fitted: Fitted, rows: Sequence[Observations], seed: int) -> dict[str, float]:
    """How much ellipticity is credited to the spectrum, which does not show it: R² that should be zero.

    From the spectrum's private block, the largest R² and Shapley value; and the largest that a network reads from all
    blocks when the image is hidden.
    """
    block = shares.blocks.index("private_spectrum")
    x, other = (np.hstack([one.mean for one in blocks_of(fitted, table, hide=["image"]).values()]) for table in rows)
    y, truth = (table.parts["shape"].value for table in rows)
    return {
        "r2_invisible_private_spectrum": float(shares.r2[1 << block].max()),
        "shapley_invisible_private_spectrum": float(np.abs(shares.shapley[block]).max()),
        "r2_invisible_all_blocks": float(shares.r2[-1].min()),
        "r2_invisible_without_image": float(r_squared(truth, read(x, y, other, seed=seed)).max()),
    }
