"""A map of the objects as the model places them: its latents in two dimensions, coloured by what is known of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from consilience.analysis.base import AbstractResult
from consilience.analysis.reading import varies
from consilience.data.observations import Observations
from consilience.errors import CapabilityError, DataError, RequestError
from consilience.typing import FloatArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["LatentMap", "latents"]

Method = Literal["pca", "tsne", "umap"]
LEAST = 10  # rows
PERPLEXITY = 30.0  # of t-SNE, less where rows are few


@dataclass(frozen=True)
class LatentMap(AbstractResult):
    """Positions of N objects on a map, (N, 2), and the values of one cell by which they are coloured, (N,)."""

    name: ClassVar[str] = "latents"

    method: str
    block: str
    ids: StringArray
    position: FloatArray
    colour: FloatArray
    cell: str
    unit: str

    def table(self) -> "Table":
        """One row per object."""
        from astropy.table import Table

        columns = {"id": self.ids, "x": self.position[:, 0], "y": self.position[:, 1]}
        return Table(columns | ({self.cell: self.colour} if self.cell else {}))

    def figure(self) -> "Figure":
        """The map."""
        from consilience import plots

        axis = {"pca": "component", "tsne": "t-SNE", "umap": "UMAP"}[self.method]
        words = plots.Labels(f"{axis} 1", f"{axis} 2", f"latents {self.block}")
        return plots.latent_map(self.position, self.colour, words, plots.with_unit(self.cell, self.unit))


def latents(
    fitted: "Fitted",
    obs: Observations,
    block: str | None = None,
    *,
    colour: str | None = None,
    method: Method = "tsne",
    seed: int = 0,
) -> LatentMap:
    """Posterior means of a latent block on a map of two dimensions.

    Of t-SNE and UMAP only who is near whom can be read: distances between groups, their sizes and densities mean
    nothing. Principal components keep distances as far as two of them can. Each latent counts in its own unit, the
    prior's.

    Arguments:
        fitted: A model with latents.
        obs: Rows, ten at least, and what they show.
        block: Latents; by default the first block.
        colour: Name of a cell of ``obs`` (or of a modality with one cell); by default the first named one.
        method: "tsne", "pca", or "umap" (extra ``consilience[maps]``).
        seed: Of the map.

    Raises:
        CapabilityError: a model without latents.
        DataError: fewer than ten rows, or latents that do not vary.
        RequestError: an unknown block, cell or method, or umap-learn is not installed.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(60, seed=0).select("x", "y")
        >>> fit = cs.fit(cs.SharedGPLVM(latent_dim=3, inducing=8), table, cs.TrainConfig(max_steps=5))
        >>> latents(fit, table, method="pca").position.shape
        (60, 2)

    References:
        | Visualizing data using t-SNE (van der Maaten & Hinton, 2008)
        | UMAP: uniform manifold approximation and projection (McInnes, Healy & Melville, 2018)
    """
    if "latent" not in fitted.capabilities:
        raise CapabilityError(f"Expected a model with latents; got {type(fitted.family).__name__}. Use domain.")
    if method not in get_args(Method):
        raise RequestError(f"Expected a method among {list(get_args(Method))}; got {method!r}.")
    if len(obs) < LEAST:
        raise DataError(f"Expected {LEAST} rows at least; got {len(obs)}. Give more.")
    found = fitted.latent(obs).mean
    block = next(iter(found)) if block is None else block
    if block not in found:
        raise RequestError(f"Expected a block of latents among {list(found)}; got {block!r}. Name one of them.")
    mean = found[block].reshape(len(obs), -1)
    mean = mean[:, varies(mean)]
    if mean.shape[1] == 0:
        raise DataError(f"Expected latents that vary; got none in '{block}'. Name another block.")
    cell, unit, values = _coloured(obs, colour)
    return LatentMap(method, block, obs.ids, _placed(mean, method, seed), values, cell, unit)


def _placed(mean: FloatArray, method: str, seed: int) -> FloatArray:
    if method == "umap":
        try:
            from umap import UMAP  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RequestError('Expected umap-learn; got none. Say pip install "consilience[maps]".') from error
        return np.asarray(UMAP(random_state=seed).fit_transform(mean), dtype=float)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(mean) - 1) / 3)
        start = "pca" if min(mean.shape) > 1 else "random"
        return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(mean).astype(float)
    centred = mean - mean.mean(axis=0)
    u, size, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(mean), 2))
    plane[:, : min(2, len(size))] = (u * size)[:, :2]
    return plane


def _coloured(obs: Observations, colour: str | None) -> tuple[str, str, FloatArray]:
    """Name, unit and values of the cell, NaN where it is not measured."""
    cells = {}
    for spec in obs.schema.modalities:
        if spec.cells or spec.size == 1:
            for number, (name, unit) in enumerate(zip(spec.cell_names(), spec.cell_units(), strict=True)):
                cells.setdefault(name, (spec.name, number, unit))
    if colour is not None and colour not in cells:
        raise RequestError(f"Expected a cell among {list(cells)}; got {colour!r}. Name one of them.")
    if not cells:
        return "", "", np.full(len(obs), np.nan)
    cell = next(iter(cells)) if colour is None else colour
    name, number, unit = cells[cell]
    part = obs.parts[name]
    value = np.where(part.measured, part.value, np.nan).reshape(len(obs), -1)
    return cell, unit, value[:, number]
