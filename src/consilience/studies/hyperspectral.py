"""A hyperspectral cube from its colour image and its mean spectrum: what each latent block holds of it.

Whole blocks of the scene are held out. The cubes of patches there are predicted from the posterior means of every
subset of latent blocks, and from as many principal components of what the model saw. Shared latents are read from both
modalities, so those beside ``private_rgb`` know of the spectrum, which components of the colour image do not. Data:
Samson, a scene of soil, trees and water, or any cube that :func:`consilience.io.cubes.read_cube` reads; without data
the simulator's.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from astropy.table import Table
from pydantic import Field
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from consilience import plots
from consilience.config import Config
from consilience.data.observations import Observations
from consilience.data.schema import Frozen, validated
from consilience.errors import SchemaError
from consilience.io.cubes import patches, read_cube
from consilience.models.disentangled_vae import DisentangledVAE
from consilience.simulators.hyperspectral import hyperspectral
from consilience.studies.runner import Results, StudyConfig
from consilience.typing import FloatArray
from consilience.workflow.fit import fit

__all__ = ["Settings", "run"]

INPUTS = ("rgb", "spectrum")
TARGETS = ("cube", "abundances")  # the second where the scene has them
SHOWN = ("all", "shared", "pca_both")  # in pictures
PENALTIES = tuple(10.0**power for power in range(-4, 5))  # of ridge regression
WIDTHS, DECAY = (64, 64), 1e-2  # of the network that learns what is left, and its penalty


class Settings(Frozen):
    """Where the scene is, how it is cut, and how latents are read."""

    file: str  # of the folder of data
    array: str | None = None  # the cube, where the file holds several
    wavelength: tuple[float, float] | None = None  # nm, first and last band, where the file does not say
    maps: tuple[str, ...] = ()  # further arrays; "abundances" are read from latents too
    objects: int = Field(ge=25)  # patches to simulate where there are no data
    size: int = Field(ge=2)  # pixels of a patch's side
    stride: int = Field(ge=1)  # pixels from one patch to the next
    blocks: int = Field(ge=2)  # along each side of the scene
    train: float = Field(gt=0, lt=1)  # share of the blocks
    splits: int = Field(ge=1)
    components: int = Field(ge=2)  # principal components of a target that are predicted
    epochs: int = Field(ge=1)  # of the networks that read


@dataclass(frozen=True, slots=True)
class _Split:
    """What one split gives, by what was read: latents or components."""

    latents: Mapping[str, int]  # how many
    relative: Mapping[str, Mapping[str, float]]  # MSE relative to the mean predictor, first by target
    mean_mse: float  # of the mean predictor, of the cube
    used: Mapping[str, int]  # latents that the data decide, by block
    test: Observations
    cubes: Mapping[str, FloatArray]  # (N, bands, p, p), by what is shown


def run(config: StudyConfig, data: Path | None, *, seed: int, quick: bool, out: Path) -> Results:
    """Fit on some blocks of the scene and predict the cubes of the others; so for each split.

    Arguments:
        config: Model, training and :class:`Settings`.
        data: Folder with the file of the settings; None to simulate.
        seed: Of the simulation, and of the first split and training; the next split has the next seed.
        quick: Tiny sizes; already in ``config``.
        out: Not used.

    Raises:
        SchemaError: a model without shared and private blocks.
        DataError: no such file, or it is not a cube.
    """
    size = validated(Settings, config.study, where="[study]")
    family = config.config.family
    if not isinstance(family, DisentangledVAE) or not family.shared or not all(map(family.private.get, INPUTS)):
        raise SchemaError(
            f"Expected a DisentangledVAE with shared latents and private ones of {list(INPUTS)} for hyperspectral; got "
            f"{family!r}. Set them in [model]."
        )
    if data is None:
        table = hyperspectral(size.objects, seed=seed, size=size.size)
    else:
        scene = read_cube(data / size.file, array=size.array, wavelength=size.wavelength, maps=size.maps)
        table = patches(scene, size=size.size, stride=size.stride, blocks=size.blocks)
    found = [_split(config.config, size, table, seed + k) for k in range(size.splits)]
    numbers, rows = _numbers(found)
    columns = ["read from", "latents", "MSE, cube", "sd, cube", "R², abundances", "sd, abundances"][: len(rows[0])]
    title = f"MSE relative to the mean predictor on held-out blocks: mean and sd of {size.splits} splits"
    return Results(
        {"patches": len(table), "splits": size.splits, **numbers},
        {title: Table(rows=rows, names=columns)},
        _figures(found),
    )


def _split(config: Config, size: Settings, table: Observations, seed: int) -> _Split:
    train, test = table.split(size.train, seed=seed, by="group")
    fitted = fit(config.family, train.select(*INPUTS), config.train.model_copy(update={"seed": seed}))
    latent = [fitted.latent(rows.select(*INPUTS)) for rows in (train, test)]
    blocks = sorted(latent[0].mean)  # private ones first
    read: dict[str, list[FloatArray]] = {}
    for count in range(len(blocks), 0, -1):
        for some in combinations(blocks, count):
            name = "all" if count == len(blocks) else "_".join(some)
            read[name] = [np.hstack([one.mean[block] for block in some]) for one in latent]
    sizes = {block: latent[0].mean[block].shape[1] for block in blocks}
    for name in INPUTS:
        read[f"pca_{name}"] = _components(train, test, [name], sizes["shared"] + sizes[f"private_{name}"])
    read["pca_both"] = _components(train, test, INPUTS, sum(sizes.values()))
    relative: dict[str, dict[str, float]] = {}
    mean_mse, cubes = {}, {}
    for target in (one for one in TARGETS if one in table.schema):
        y, truth = (rows.parts[target].value.reshape(len(rows), -1) for rows in (train, test))
        principal = PCA(min(size.components, *y.shape), random_state=seed).fit(y)
        mean_mse[target] = float(np.mean((truth - y.mean(0)) ** 2))
        relative[target] = {}
        for name, (x, other) in read.items():
            guess = principal.inverse_transform(_predicted(x, principal.transform(y), other, size.epochs, seed))
            relative[target][name] = float(np.mean((truth - guess) ** 2)) / mean_mse[target]
            if target == "cube" and name in SHOWN:
                cubes[name] = guess.reshape(test.parts["cube"].value.shape)
    latents = {name: x.shape[1] for name, (x, _) in read.items()}
    return _Split(latents, relative, mean_mse["cube"], latent[1].used(), test, cubes)


def _components(train: Observations, test: Observations, names: Sequence[str], count: int) -> list[FloatArray]:
    """Principal components of standardised cells of these modalities, of both tables; no more than there are cells."""
    cells = [np.hstack([rows.parts[name].value.reshape(len(rows), -1) for name in names]) for rows in (train, test)]
    scaler = StandardScaler().fit(cells[0])
    scaled = [np.asarray(scaler.transform(one)) for one in cells]
    principal = PCA(min(count, *scaled[0].shape), svd_solver="full").fit(scaled[0])
    return [np.asarray(principal.transform(one)) for one in scaled]


def _predicted(x: FloatArray, y: FloatArray, other: FloatArray, epochs: int, seed: int) -> FloatArray:
    """Ridge regression of y (N, K) on x (N, Q), and a network on what it leaves, at other rows (M, Q): (M, K)."""
    scaler = StandardScaler().fit(x)
    x, other = (np.asarray(scaler.transform(one)) for one in (x, other))
    line = RidgeCV(alphas=PENALTIES).fit(x, y)
    rest = y - line.predict(x)
    unit = max(float(rest.std()), 1e-300)
    network = MLPRegressor(
        hidden_layer_sizes=WIDTHS,
        alpha=DECAY,
        batch_size=min(128, len(x)),  # pyright: ignore[reportArgumentType]
        learning_rate_init=3e-3,
        max_iter=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(x, rest / unit)
    return line.predict(other) + unit * np.asarray(network.predict(other))


def _numbers(found: Sequence[_Split]) -> tuple[dict[str, float], list[list[object]]]:
    """Means and standard deviations over splits: flat numbers, and a row for each of what was read."""
    mse = {name: [one.relative["cube"][name] for one in found] for name in found[0].latents}
    mse["all_minus_pca_both"] = list(np.subtract(mse["all"], mse["pca_both"]))
    numbers = {"mse_mean": float(np.mean([one.mean_mse for one in found]))}
    for name, values in mse.items():
        numbers |= {f"mse_{name}": float(np.mean(values)), f"mse_{name}_sd": _spread(values)}
    for name in found[0].latents if "abundances" in found[0].relative else ():
        values = [1 - one.relative["abundances"][name] for one in found]
        numbers |= {f"r2_abundance_{name}": float(np.mean(values)), f"r2_abundance_{name}_sd": _spread(values)}
    for block in found[0].used:
        numbers[f"used_{block}"] = float(np.mean([one.used[block] for one in found]))
    keys = ("mse_{}", "mse_{}_sd", "r2_abundance_{}", "r2_abundance_{}_sd")[: 2 * len(found[0].relative)]
    latents = found[0].latents.items()
    return numbers, [[_label(name), count, *(numbers[key.format(name)] for key in keys)] for name, count in latents]


def _spread(values: Sequence[float]) -> float:
    """Standard deviation of the splits; none of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _label(name: str) -> str:
    if name.startswith("pca_"):
        return f"PCA of {name.removeprefix('pca_')}"
    return name.replace("_private", " + private").replace("_shared", " + shared")


def _figures(found: Sequence[_Split]) -> dict[str, plots.Figure]:
    """Scores of what was read; of the last split, in each held-out block the patch of most contrast."""
    last = found[-1]
    scores = {
        _label(name): np.array([np.mean([one.relative[target][name] for one in found]) for target in last.relative])
        for name in last.latents
    }
    truth, group, grid = last.test.parts["cube"].value, last.test.group, last.test.schema["spectrum"].grid
    assert group is not None, "patches lie in blocks"
    contrast = truth.var((2, 3)).sum(1)
    rows = [max(np.flatnonzero(group == block), key=contrast.__getitem__) for block in np.unique(group)][:6]
    x, unit = (np.arange(truth.shape[1]), "band") if grid is None else (grid.centres(), grid.unit)
    band, middle = int(truth.var((0, 2, 3)).argmax()), truth.shape[-1] // 2
    names = [f"{last.test.ids[row]}" for row in rows]
    panels = []
    for row, name in zip(rows[:3], names[:3], strict=True):
        labels = plots.Labels("wavelength", "brightness", f"pixel amid patch {name}", unit)
        pixel = {"spectrum": truth[row, :, middle, middle]}, {"spectrum": last.cubes["all"][row, :, middle, middle]}
        panels.append(plots.Trend(x, *pixel, labels))
    images = {_label(name): cube[rows, band] for name, cube in {"true": truth, **last.cubes}.items()}
    return {
        "subsets": plots.methods({"relative MSE": scores}, list(last.relative), "all"),
        "spectra": plots.trends(panels, ("true", "from all blocks")),
        "patches": plots.strips(images, names, f"held-out patches at {x[band]:.0f} {unit}"),
    }
