"""Simulated galaxies in images and spectra: what each model makes of them, and what its latents know of the stars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field

from consilience import plots
from consilience.analysis.contributions import contributions
from consilience.analysis.information import block_information
from consilience.analysis.reading import blocks_of, read
from consilience.blocks.encoders import Kind
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, validated
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.models.regression import Regression
from consilience.models.vae import VAE
from consilience.predict.fitted import Fitted
from consilience.simulators.galaxies import galaxies
from consilience.studies.kept import Kept
from consilience.studies.runner import Results, StudyConfig
from consilience.train.config import TrainConfig
from consilience.train.weights import Weight
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "run"]

READ = ("image", "spectrum")
MODELS = (
    "trees", "regression_image", "regression_spectrum", "regression_both", "vae_image", "vae_spectrum", "dmvae",
    "dmvae_club",
)  # fmt: skip
PAIRS = (  # the first should be above the second
    ("regression_both", "regression_image"),
    ("regression_both", "regression_spectrum"),
    ("dmvae", "vae_image"),
    ("dmvae", "vae_spectrum"),
    ("dmvae_club", "dmvae"),
)
SCORES = ("mse", "excess", "cross_mse", "cross_excess", "cross_one_mse")
RESAMPLED = 1000  # bootstraps of test rows
DRAWS = 8  # whose mean is compared with what the model saw
CHUNK = 32  # rows of which draws are held
COMPONENTS = 40  # principal components of each modality that the trees read


class Settings(Frozen):
    """Size of the survey, of its images and spectra, and what is measured."""

    galaxies: int = Field(ge=60)
    pixels: int = Field(ge=8)
    bins: int = Field(ge=16)
    train: float = Field(gt=0, lt=1)  # share of the galaxies, with those by which training stops
    seeds: int = Field(ge=1)  # of split and training
    crossed: int = Field(ge=2)  # test rows of which one modality is drawn from the other
    draws: int = Field(ge=2)  # whose mean is compared there
    workers: int = Field(default=1, ge=1)  # processes that simulate
    club: dict[str, Weight]  # weights of the terms with CLUB


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Fit every model of every seed to the same survey and compare what they reconstruct, cross-predict and know.

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
    survey = galaxies(size.galaxies, seed=seed, bins=size.bins, pixels=size.pixels, workers=size.workers)
    kept = Kept(out, family, config.config.train, size)
    found: dict[str, list[Mapping[str, FloatArray]]] = {name: [] for name in MODELS}
    for number in range(seed, seed + size.seeds):
        split = _Split(size, config.config.train, family, *survey.split(size.train, seed=number), seed, number)
        for name in MODELS:
            found[name].append(kept.part(split.label(name), lambda name=name, split=split: _scores(name, split, kept)))
    first = _Split(size, config.config.train, family, *survey.split(size.train, seed=seed), seed, seed)
    return _results(found, first, kept)


@dataclass(frozen=True, slots=True)
class _Split:
    """The survey split by one seed, and how models are made and trained."""

    size: Settings
    config: TrainConfig
    family: DisentangledVAE
    train: Observations
    test: Observations
    simulation: int
    seed: int

    def label(self, name: str) -> str:
        return f"{name}, simulation {self.simulation}, seed {self.seed}"

    def model(self, name: str, kept: Kept) -> Fitted:
        """The model of this name, trained or as it was kept."""
        family, reads = self._family(name)
        config = self.config.model_copy(update={"seed": self.seed})
        if name == "dmvae_club":
            config = config.model_copy(update={"weights": {**config.weights, **self.size.club}})
        return kept.model(self.label(name), lambda: fit(family, self.train.select(*reads).renumbered(), config))

    def _family(self, name: str) -> tuple[AbstractFamily, tuple[str, ...]]:
        """Its configuration, and the modalities it is trained on."""
        own = self.family
        kind, _, which = name.partition("_")
        reads = READ if which == "both" or kind == "dmvae" else (which,)
        hidden, channels = own.hidden, own.channels
        if kind == "regression":
            networks: dict[str, Kind] = {m: own.networks[m] for m in reads if m in own.networks}
            return Regression(target="labels", networks=networks, hidden=hidden, channels=channels), (*reads, "labels")
        if kind == "vae":
            both, network = own.shared + own.private.get(which, 0), own.networks.get(which, "dense")
            return VAE(latent_dim=both, network=network, hidden=hidden, channels=channels), reads
        return own.model_copy(update={"club": which == "club"}), reads


def _scores(name: str, split: _Split, kept: Kept) -> dict[str, FloatArray]:
    """Squared errors of the labels (N, 6), and what is left of the variance of images and spectra."""
    truth = split.test.parts["labels"].value
    found = {"variance": truth.var(axis=0)}
    if name == "trees":
        return found | {"squares": (_trees(split) - truth) ** 2}
    fitted = split.model(name, kept)
    rows = split.test.select(*fitted.schema.names)
    if isinstance(fitted.family, Regression):
        answer = fitted.summarise(rows.hide("labels"), ["labels"], statistics=("mean",), n=DRAWS, seed=split.seed)
        return found | {"squares": (answer.statistics["labels"]["mean"] - truth) ** 2}
    x, other = (
        np.hstack([block.mean for block in blocks_of(fitted, table.select(*fitted.schema.names)).values()])
        for table in (split.train, split.test)
    )
    y = split.train.parts["labels"].value
    said = np.hstack([read(x, y[:, [cell]], other, seed=split.seed) for cell in range(y.shape[1])])
    found["squares"] = (said - truth) ** 2
    for target in fitted.schema.names:
        scale = _Stretch.of(split.train, target)
        left = {"": scale.left(fitted, rows, rows, target, DRAWS, split.seed)}
        if len(fitted.schema.names) > 1:
            some = rows[: split.size.crossed]
            given = some.hide(target)
            left["cross_"] = scale.left(fitted, some, given, target, split.size.draws, split.seed)
            left["cross_one_"] = scale.left(fitted, some, given, target, 1, split.seed)
        for which, (mse, excess) in left.items():
            found |= {f"{which}mse_{target}": np.array(mse), f"{which}excess_{target}": np.array(excess)}
    return found


@dataclass(frozen=True, slots=True)
class _Stretch:
    r"""The scale on which pixels are compared, :math:`T(x) = \operatorname{asinh}(x / a)`, and the means there.

    Arguments:
        unit: a, three times the median error bar: T is linear where there is little but noise.
        mean: Mean of T(x) of the training rows, of each cell.
    """

    unit: float
    mean: FloatArray

    @classmethod
    def of(cls, rows: Observations, name: str) -> "_Stretch":
        """Of a modality's training rows."""
        part = rows.parts[name]
        assert part.sigma is not None, "a survey's"
        unit = 3 * float(np.median(part.sigma[part.seen]))
        count = part.seen.sum(axis=0)
        total = np.where(part.seen, np.arcsinh(np.where(part.seen, part.value, 0.0) / unit), 0.0).sum(axis=0)
        return cls(unit, total / np.maximum(count, 1))

    def left(
        self, fitted: Fitted, rows: Observations, given: Observations, target: str, draws: int, seed: int
    ) -> tuple[float, float]:
        """Squared error of the mean of draws over that of the training rows' mean; the same beyond the error bars.

        The latter is what is left where both lose the variance of the noise, which no model can foresee.
        """
        part, error, whole, noise = rows.parts[target], 0.0, 0.0, 0.0
        assert part.sigma is not None, "a survey's"
        for start in range(0, len(rows), CHUNK):
            some = slice(start, start + CHUNK)
            drawn = fitted.sample(given[some], [target], n=draws, seed=seed).values[target]
            truth = np.arcsinh(part.value[some] / self.unit)
            mean = np.arcsinh(drawn / self.unit).mean(axis=0)
            error += float(np.square(truth - mean)[part.seen[some]].sum())
            whole += float(np.square(truth - self.mean)[part.seen[some]].sum())
            slope = 1 / np.hypot(part.value[some], self.unit)
            noise += float(np.square(part.sigma[some] * slope)[part.seen[some]].sum())
        return error / whole, (error - noise) / (whole - noise)


def _trees(split: _Split) -> FloatArray:
    """Labels of the test rows by boosted trees of principal components of both modalities, (N, 6)."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingRegressor

    inputs: list[tuple[FloatArray, FloatArray]] = []
    for name in READ:
        scale = _Stretch.of(split.train, name)
        both = []
        for rows in (split.train, split.test):
            part = rows.parts[name]
            safe = np.where(part.seen, np.arcsinh(np.where(part.seen, part.value, 0.0) / scale.unit), scale.mean)
            both.append((safe - scale.mean).reshape(len(rows), -1).astype(np.float32))
        pca = PCA(min(COMPONENTS, *both[0].shape), random_state=split.seed).fit(both[0])
        inputs.append((pca.transform(both[0]), pca.transform(both[1])))
    x, other = (np.hstack(some) for some in zip(*inputs, strict=True))
    trees = HistGradientBoostingRegressor(early_stopping=True, random_state=split.seed)  # type: ignore[arg-type]
    y = split.train.parts["labels"].value
    return np.stack([trees.fit(x, y[:, cell]).predict(other) for cell in range(y.shape[1])], axis=1)


def _results(found: Mapping[str, Sequence[Mapping[str, FloatArray]]], split: _Split, kept: Kept) -> Results:
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
        "What every two blocks share": shared.table(),
    }
    figures = {
        "labels": plots.methods({"R²": r2}, labels, "dmvae_club", f"mean over seeds ({split.size.seeds})"),
        "shares": shares.figure(),
        "information": shared.figure(),
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
