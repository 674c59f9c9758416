"""What the studies of galaxies share: settings, splits, models by name, and how a model is scored."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from consilience.analysis.reading import blocks_of, read
from consilience.blocks.encoders import Kind
from consilience.blocks.physics import Profile
from consilience.data.masking import HideModalities
from consilience.data.observations import Observations
from consilience.data.schema import Frozen
from consilience.models.base import AbstractFamily
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.models.regression import Regression
from consilience.models.vae import VAE
from consilience.predict.fitted import Fitted
from consilience.studies.kept import Kept
from consilience.train.config import TrainConfig
from consilience.train.weights import Weight
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["READ", "Settings", "Split", "latent_scores", "scores"]

READ = ("image", "spectrum")
DRAWS = 8  # whose mean is compared with what the model saw
CHUNK = 32  # rows of which draws are held
READERS = 4  # networks that read labels from latents, whose mean counts
COMPONENTS = 40  # principal components of each modality that the trees read


class Settings(Frozen):
    """Which experiment; size of the survey, of its images and spectra, and what is measured."""

    experiment: Literal["models", "grid", "frontier", "rates", "missing", "discs"] = "models"
    galaxies: int = Field(ge=60)
    pixels: int = Field(ge=8)
    bins: int = Field(ge=16)
    train: float = Field(gt=0, lt=1)  # share of the galaxies, with those by which training stops
    seeds: int = Field(ge=1)  # of split and training
    crossed: int = Field(ge=2)  # test rows of which one modality is drawn from the other
    draws: int = Field(ge=2)  # whose mean is compared there
    workers: int = Field(default=1, ge=1)  # processes that simulate
    weights: dict[str, dict[str, Weight]] = {}  # of terms, of models whose names begin so; the longest name wins
    quiet: float = 0.0  # of the DMVAE without CLUB, whose blocks need not be apart
    profile: Profile  # of the physics decoder
    blocks: tuple[int, ...] = ()  # sizes of shared and of private blocks, of the grid
    penalties: tuple[float, ...] = ()  # weights of CLUB, of the frontier; 0 is without
    rates: tuple[float, ...] = ()  # of learning
    image_snr: float | None = None  # of the discs
    least_squares: int = Field(default=0, ge=0)  # test rows whose discs are fitted one by one


@dataclass(frozen=True, slots=True)
class Split:
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
        images = tuple(one for one in self.config.augment if one in reads)
        changed = {"seed": self.seed, "augment": images, "weights": self.weights(name)}
        config = self.config.model_copy(update=changed)
        if name == "regression_both":
            # images are learned by heart sooner than spectra are understood
            masking = HideModalities(probability=0.5, names=("image",))
            config = config.model_copy(update={"masking": masking})
        return kept.model(self.label(name), lambda: fit(family, self.train.select(*reads).renumbered(), config))

    def weights(self, name: str) -> dict[str, Weight]:
        """Of the terms of the model of this name."""
        found = dict(self.config.weights)
        for begins in sorted(self.size.weights, key=len):
            if name.startswith(begins):
                found |= self.size.weights[begins]
        return found

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
        physics = {"image": self.size.profile} if which == "club_physics" else {}
        apart = which.startswith("club")
        quiet = own.quiet if apart else self.size.quiet
        return own.model_copy(update={"club": apart, "physics": physics, "quiet": quiet}), reads


def scores(name: str, split: Split, kept: Kept) -> dict[str, FloatArray]:
    """Squared errors of the labels (N, 6), and what is left of the variance of images and spectra."""
    truth = split.test.parts["labels"].value
    found = {"variance": truth.var(axis=0)}
    if name == "trees":
        return found | {"squares": (_trees(split) - truth) ** 2}
    fitted = split.model(name, kept)
    if isinstance(fitted.family, Regression):
        rows = split.test.select(*fitted.schema.names)
        answer = fitted.summarise(rows.hide("labels"), ["labels"], statistics=("mean",), n=DRAWS, seed=split.seed)
        return found | {"squares": (answer.statistics["labels"]["mean"] - truth) ** 2}
    return found | latent_scores(fitted, split)


def latent_scores(fitted: Fitted, split: Split) -> dict[str, FloatArray]:
    """Squared errors of the labels that a network reads from all latents, and what is left of images and spectra."""
    truth, rows = split.test.parts["labels"].value, split.test.select(*fitted.schema.names)
    found: dict[str, FloatArray] = {}
    x, other = (
        np.hstack([block.mean for block in blocks_of(fitted, table.select(*fitted.schema.names)).values()])
        for table in (split.train, split.test)
    )
    y = split.train.parts["labels"].value
    found["squares"] = (read(x, y, other, seed=split.seed, members=READERS) - truth) ** 2
    for target in fitted.schema.names:
        scale = Stretch.of(split.train, target)
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
class Stretch:
    r"""The scale on which pixels are compared, :math:`T(x) = \operatorname{asinh}(x / a)`, and the means there.

    Arguments:
        unit: a, three times the median error bar: T is linear where there is little but noise.
        mean: Mean of T(x) of the training rows, of each cell.
    """

    unit: float
    mean: FloatArray

    @classmethod
    def of(cls, rows: Observations, name: str) -> "Stretch":
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


def _trees(split: Split) -> FloatArray:
    """Labels of the test rows by boosted trees of principal components of both modalities, (N, 6)."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingRegressor

    inputs: list[tuple[FloatArray, FloatArray]] = []
    for name in READ:
        scale = Stretch.of(split.train, name)
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
