r"""What does a physics decoder say of the objects on images? Flux, size, shape and place of discs, with error bars.

The share of the images' variance that discs explain, beyond the error bars :math:`s`, is

.. math:: 1 - \frac{\sum_c (x_c - P_c)^2 / s_c^2 - C}{\sum_c (x_c - \bar x_c)^2 / s_c^2 - C}

over the C seen pixels of all rows, with P the disc at the mean of its posterior and :math:`\bar x` the mean image;
without error bars s is 1 and C does not count.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from consilience.analysis.base import AbstractResult
from consilience.analysis.reading import blocks_of
from consilience.blocks.physics import Disc
from consilience.data.observations import Modality, Observations
from consilience.errors import RequestError
from consilience.models.base import HasDiscs
from consilience.typing import FloatArray, StringArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Discs", "discs"]

SHOWN = 4  # rows in the figure
ROWS = 64  # of which discs are drawn at once
LEVELS = (0.16, 0.84)


@dataclass(frozen=True)
class Discs(AbstractResult):
    """Parameters of every disc: the median of its posterior and the 16 and 84 % quantiles, each (N, K).

    Arguments:
        ids: Names of the rows.
        quantities: Names and units of the K parameters.
        median: Of the position angle the mean direction; it has period 180.
        low: 16 %; of the position angle it may be below 0.
        high: 84 %; of the position angle it may be above 180.
        share: Of the images' variance beyond their noise, explained by discs.
        shown: Some images, their discs and the residuals in error bars, middle band, (S, 3, H, W).
        unit: Of images.
    """

    name: ClassVar[str] = "discs"

    ids: StringArray
    quantities: tuple[tuple[str, str], ...]
    median: FloatArray
    low: FloatArray
    high: FloatArray
    share: float
    shown: FloatArray
    unit: str

    def table(self) -> "Table":
        """One row per object: id, and every parameter with its 16 and 84 % quantiles."""
        from astropy.table import Column, Table

        columns = [Column(self.ids, "id")]
        for number, (name, unit) in enumerate(self.quantities):
            for suffix, values in (("", self.median), ("_16", self.low), ("_84", self.high)):
                columns.append(Column(values[:, number], name + suffix, unit=unit or None))
        return Table(columns)

    def figure(self) -> "Figure":
        """Some images beside their discs and what is left in error bars."""
        from consilience import plots

        labels = [str(one) for one in self.ids[: len(self.shown)]]
        title = f"{100 * self.share:.0f} % of the variance beyond noise is explained by discs"
        return plots.compared_images(self.shown, labels, self.unit, title)


def discs(fitted: "Fitted", obs: Observations, name: str, *, n: int = 200, seed: int = 0) -> Discs:
    """Read the parameters of the discs on a modality's images from the posterior of ``physics_NAME``.

    Radii, centres and seeing are in pixels, fluxes are sums over pixels, and the position angle is in degrees from
    columns towards rows; it means little where the axis ratio is near 1. The first member of an ensemble is asked.

    Arguments:
        fitted: A model with a physics decoder of that modality.
        obs: Rows; of those without an image discs are guessed from what else was seen.
        name: The modality.
        n: Draws behind the quantiles.
        seed: Of the draws.

    Raises:
        CapabilityError: a model without latents.
        RequestError: a model without discs there, or n < 2.
    """
    model = fitted.members[0]
    if not isinstance(model, HasDiscs) or (disc := model.discs_of().get(name)) is None:
        raise RequestError(f"Expected a physics decoder of '{name}'; got none. Fit one with physics={{'{name}': …}}.")
    if n < 2:
        raise RequestError(f"Expected n >= 2 draws; got {n}.")
    block = blocks_of(fitted, obs)[f"physics_{name}"]
    rng = np.random.default_rng(seed)
    draws = block.mean + block.std * rng.standard_normal((n, *block.mean.shape))
    names, values = _read(disc, draws)
    turned = names.index("position_angle")
    middle = np.median(values, axis=0)
    # an angle of period 180 degrees has a mean direction, about which it scatters
    mean = np.angle(np.exp(2j * np.deg2rad(values[..., turned])).mean(axis=0), deg=True) / 2 % 180
    values[..., turned] = mean + (values[..., turned] - mean + 90) % 180 - 90
    middle[:, turned] = mean
    low, high = np.quantile(values, LEVELS, axis=0)
    spec = fitted.schema[name]
    part, images = obs.parts[name], _images(disc, block.mean)
    units = {"position_angle": "deg", **dict.fromkeys(("half_light_radius", "column", "row", "seeing"), "pix")}
    quantities = tuple((one, spec.unit if one.startswith("flux") else units.get(one, "")) for one in names)
    shape = (-1, disc.bands, *disc.sides)
    share, left = _explained(part, images.reshape(part.value.shape))
    seen = np.where(part.seen, part.value, np.nan)
    shown = np.stack([array.reshape(shape)[:SHOWN, disc.bands // 2] for array in (seen, images, left)], axis=1)
    return Discs(obs.ids, quantities, middle, low, high, share, shown, spec.unit)


def _read(disc: Disc, u: FloatArray) -> tuple[list[str], FloatArray]:
    """Names and values of physical parameters at u (…, P), with the position angle."""
    with torch.no_grad():
        said = disc.physical(torch.as_tensor(u).to(disc.location))
    found = {name: value.double().cpu().numpy() for name, value in said.items()}
    angle = np.rad2deg(0.5 * np.arctan2(found.pop("e_sin2"), found.pop("e_cos2"))) % 180
    found = {"position_angle": angle, **found}
    order = [name for name in said if name in found]
    order.insert(order.index("axis_ratio") + 1, "position_angle")
    return order, np.stack([found[name] for name in order], axis=-1)


def _images(disc: Disc, u: FloatArray) -> FloatArray:
    """Discs in linear flux, (N, C, H, W)."""
    with torch.no_grad():
        rows = torch.as_tensor(u).to(disc.location).split(ROWS)
        return np.concatenate([disc.flux(some).double().cpu().numpy() for some in rows])


def _explained(part: Modality, images: FloatArray) -> tuple[float, FloatArray]:
    """The share of variance that images explain, and residuals in error bars, NaN where unseen."""
    seen, sigma = part.measured, np.ones(part.value.shape)
    if part.sigma is not None:
        sigma = np.where(seen & np.isfinite(part.sigma) & (part.sigma > 0), part.sigma, np.inf)
    value = np.where(seen, part.value, 0.0)
    count = seen.sum(axis=0)
    mean = value.sum(axis=0) / np.maximum(count, 1)
    noise = 0 if part.sigma is None else int((seen & np.isfinite(sigma)).sum())
    residual = np.where(seen, (value - images) / sigma, np.nan)
    whole = np.where(seen, (value - mean) / sigma, 0.0)
    return 1 - float((np.nansum(residual**2) - noise) / (np.sum(whole**2) - noise)), residual
