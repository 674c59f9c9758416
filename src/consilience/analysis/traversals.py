r"""What single latents mean: what a model makes of the average object when one of them is moved.

With latents of spread s_q over the objects, around the mean object z̄, of q in turn

.. math:: x_{qk} = E\bigl[x \mid \bar z + a_k s_q e_q\bigr], \qquad a_k \in [-\text{reach}, \text{reach}]

and the change that latent q makes is the root of the mean square of x_qk - x_q at a = 0 over cells and k. Latents that
encode nothing change nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from consilience.analysis.base import AbstractResult
from consilience.data.observations import Observations
from consilience.errors import RequestError
from consilience.typing import FloatArray, IntArray

if TYPE_CHECKING:
    from astropy.table import Table

    from consilience.plots.style import Figure
    from consilience.predict.fitted import Fitted

__all__ = ["Traversals", "traversals"]

SHOWN = 6  # latents in the figure, those of the largest change
DRAWS = 32  # averaged, where the decoder is not exact about its mean


@dataclass(frozen=True)
class Traversals(AbstractResult):
    """Of Q latents, in the order of the block, at K positions: ``decoded`` (Q, K, *event) in the target's unit.

    ``positions`` (K,) are in units of ``spread`` (Q,), the standard deviation of posterior means over the objects;
    ``change`` (Q,) is in the target's unit; ``order`` (Q,) has the latent of the largest change first. ``axis`` holds
    where the cells of a one-dimensional target are, in ``axis_unit``.
    """

    name: ClassVar[str] = "traversals"

    block: str
    target: str
    unit: str
    positions: FloatArray
    spread: FloatArray
    decoded: FloatArray
    change: FloatArray
    order: IntArray
    axis: FloatArray
    axis_name: str
    axis_unit: str

    def table(self) -> "Table":
        """One row per latent, the most telling first."""
        from astropy.table import Table

        return Table(
            {"latent": self.order, "spread": self.spread[self.order], f"change [{self.unit}]": self.change[self.order]}
        )

    def figure(self) -> "Figure":
        """The latents that change most, one per row, over their positions."""
        from consilience import plots

        shown = self.order[:SHOWN]
        rows = [f"latent {latent}" for latent in shown]
        columns = [f"{position:+.1f} sd" for position in self.positions]
        decoded = self.decoded[shown]
        if decoded.ndim > 4:  # several bands: the middle one
            decoded = decoded[:, :, decoded.shape[2] // 2]
        title = f"{self.target} over latents of {self.block}"
        if decoded.ndim == 4:
            return plots.image_grid(decoded, rows, columns, self.unit, title)
        lines = decoded.reshape(*decoded.shape[:2], -1)
        words = plots.Labels(self.axis_name, self.target, title, self.axis_unit, self.unit)
        return plots.curve_families(lines, self.axis, rows, columns, words)


def traversals(
    fitted: "Fitted", obs: Observations, block: str, target: str, *, steps: int = 7, reach: float = 2.0, seed: int = 0
) -> Traversals:
    """What each latent of a block does to a target.

    Arguments:
        fitted: A model with latents that can be set.
        obs: Objects whose posterior means say how far each latent ranges.
        block: Name of the latents.
        target: Modality that is decoded.
        steps: Positions of each latent, an odd number.
        reach: Largest position, in standard deviations.
        seed: Of what latents leave open.

    Raises:
        CapabilityError: a model without latents, or one whose latents cannot be set.
        RequestError: an unknown block or target, steps that are even or fewer than 3, or a reach that is not positive.

    Example:
        >>> import consilience as cs
        >>> table = cs.simulators.gaussian(60, seed=0).select("x", "y")
        >>> fit = cs.fit(cs.SharedGPLVM(latent_dim=2, inducing=8), table, cs.TrainConfig(max_steps=5))
        >>> traversals(fit, table, "shared", "x", steps=3).decoded.shape[:2]
        (2, 3)
    """
    if steps < 3 or steps % 2 == 0 or not reach > 0:
        raise RequestError(f"Expected an odd number of steps, at least 3, and reach > 0; got {steps} and {reach}.")
    spec = fitted.schema[target]
    latent = fitted.latent(obs)
    if block not in latent.mean:
        raise RequestError(f"Expected a block of latents among {list(latent.mean)}; got {block!r}. Name one of them.")
    mean = latent.mean[block]
    if mean.ndim != 2:
        raise RequestError(f"Expected a block of latents (N, Q); got shape {mean.shape}. Traverse another block.")
    size = mean.shape[1]
    centre, spread = mean.mean(axis=0), mean.std(axis=0)
    positions = np.linspace(-reach, reach, steps)
    moved = np.tile(centre, (size, steps, 1))
    moved[np.arange(size), :, np.arange(size)] += spread[:, None] * positions
    blank = {one.name: np.full((size * steps, *one.shape), np.nan) for one in fitted.schema.modalities}
    draws = fitted.decode(
        Observations.from_arrays(fitted.schema, blank), {block: moved.reshape(-1, size)}, [target], n=DRAWS, seed=seed
    )
    decoded = draws.values[target].mean(axis=0).reshape(size, steps, *spec.shape)
    difference = decoded - decoded[:, steps // 2, None]
    change = np.sqrt(np.mean(difference**2, axis=tuple(range(1, difference.ndim))))
    grid, order = spec.grid if len(spec.shape) == 1 else None, np.argsort(-change)
    axis = grid.centres() if grid else np.arange(float(max(spec.shape[-1:], default=1)))
    words = (grid.name, grid.unit) if grid else (spec.axis or "cell", "")
    return Traversals(block, target, spec.unit, positions, spread, decoded, change, order, axis, *words)
