"""What a flow-matching model answers of objects of which some cells are given: draws and densities, in two ways.

"fast" takes cell by cell, each from a mixture of Gaussians given what was read of the given cells and the cells before
it (:mod:`consilience.blocks.cell_densities`): one reading for all draws, and densities in closed form. "ode" takes all
cells together along the path from noise (:mod:`consilience.blocks.transport`), many readings for each draw.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from consilience.blocks.cell_network import CellNetwork, told
from consilience.blocks.linear_denoising import LinearDenoiser
from consilience.blocks.noise import Noise
from consilience.blocks.transport import HIGHEST, LOWEST, drawn, raised
from consilience.data.observations import Observations
from consilience.models.base import Density, known_method

__all__ = ["Cells", "FlowConditional"]

EXACT = 16  # cells of a joint density whose trace is exact
PROBES = 4  # of an estimated one
ROWS = 4096  # rows of tokens at once


class Cells(NamedTuple):
    """All cells of a batch side by side, in standard deviations of each: (…, B, D), levels and presence (B, D)."""

    value: Tensor
    level: Tensor  # of a measurement, at least the lowest
    seen: Tensor


class _Model(Protocol):
    """What draws and densities need of a model; its answers are those of averaged weights."""

    linear: LinearDenoiser
    averaged: CellNetwork
    offset: Tensor
    spread: Tensor
    places: dict[str, slice]
    steps: int

    def cells(self, rows: Observations) -> Cells: ...
    def read(self, cells: Cells) -> Tensor: ...
    def denoised(self, y: Tensor, level: Tensor, shown: Tensor) -> Tensor: ...
    def density(self, cells: Cells, scored: Tensor, read: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class FlowConditional:
    """p(cells | seen cells) of B objects."""

    model: _Model
    given: Cells

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws of the truth of all cells together, of which the targets' are returned."""
        known_method(method, "fast", "ode")
        given, size = self.given, self.given.value.shape[1:]
        uniform, normal = noise.uniform("choices", n, size), noise.normal("cells", n, size)
        found = self._carried(given, normal) if method == "ode" else self._in_turn(given, uniform, normal)
        self._draw_measured(found, given, self._asked(targets), uniform, normal)
        # of an exact value nothing is left to draw
        found = torch.where(given.seen & (given.level <= LOWEST), given.value, found)
        found = self.model.offset + self.model.spread * found
        return {name: found[..., self.model.places[name]] for name in targets}

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the measurements of the targets at their error bars, (B,)."""
        known_method(method, "fast", "ode")
        cells, scored = self._scored(values, targets)
        units = torch.where(scored, self.model.spread.log(), 0.0).sum(-1)
        if method != "ode":
            return Density(self._density(cells, scored).sum(-1) - units, "exact")
        if int(scored.any(0).sum()) <= EXACT:
            return Density(self._raised(cells, scored, None) - units, "exact")
        probes = noise.normal("probes", PROBES, (cells.value.shape[1],)).sign()
        each = torch.stack([self._raised(cells, scored, one[None]) for one in probes])
        return Density(each.mean(0) - units, "estimate", each.std(0) / len(probes) ** 0.5)

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Density of each measurement of the targets alone, (B, D) per target."""
        known_method(method, "fast", "ode")
        cells, scored = self._scored(values, targets)
        found = torch.zeros_like(cells.value)
        for column in scored.any(0).nonzero()[:, 0].tolist():
            alone = torch.zeros_like(scored)
            alone[:, column] = scored[:, column]
            one = self._raised(cells, alone, None) if method == "ode" else self._density(cells, alone)[:, column]
            found[:, column] = torch.where(alone[:, column], one - self.model.spread[column].log(), 0.0)
        return {name: found[:, self.model.places[name]] for name in targets}

    def _scored(self, values: Observations, targets: tuple[str, ...]) -> tuple[Cells, Tensor]:
        cells = self.model.cells(values)
        return cells, cells.seen & self._asked(targets)

    def _asked(self, targets: tuple[str, ...]) -> Tensor:
        """Cells of the targets, (D,)."""
        asked = torch.zeros_like(self.given.seen[0])
        for name in targets:
            asked[self.model.places[name]] = True
        return asked

    def _density(self, cells: Cells, scored: Tensor) -> Tensor:
        """Log densities of the cells that are scored, each given the given ones and those before it, (B, D)."""
        y = torch.where(scored, cells.value, self.given.value)
        level = torch.where(scored, cells.level, self.given.level)
        some = Cells(y, level, self.given.seen & ~scored)
        return self.model.density(some, scored, self.model.read(some))

    def _raised(self, cells: Cells, scored: Tensor, probes: Tensor | None) -> Tensor:
        """Log density along the path of the cells that are scored, given those that are given and not scored, (B,)."""
        y = torch.where(scored, cells.value, self.given.value)
        level = torch.where(scored, cells.level, self.given.level)
        shown = scored | self.given.seen

        def mean(y: Tensor, level: Tensor) -> Tensor:
            return self.model.denoised(y, level, shown)

        return raised(mean, y, level, scored, self.model.steps, probes)

    def _carried(self, given: Cells, normal: Tensor) -> Tensor:
        """Draws of the cells that are not seen along the path, among the others, (n, B, D)."""
        begun = torch.where(given.seen, given.value, HIGHEST * normal)
        shown = torch.ones_like(given.seen)

        def mean(y: Tensor, level: Tensor) -> Tensor:
            return torch.cat([self.model.denoised(some, level, shown) for some in y.split(_each(given))])

        return drawn(mean, begun, given.level, steps=self.model.steps)

    def _draw_measured(self, y: Tensor, given: Cells, asked: Tensor, uniform: Tensor, normal: Tensor) -> None:
        """Put draws of the truth of cells that were measured with an error into (n, B, D).

        Each given all others and its own measurement; the others are those that were drawn before it, and the
        measurements of the rest.
        """
        linear, head = self.model.linear, self.model.averaged.densities
        blurred = given.seen & (given.level > LOWEST)
        level = torch.where(given.seen, given.level, LOWEST)
        last = (blurred & asked).any(0).nonzero().flatten().tolist()
        for cell in blurred.any(0).nonzero()[:, 0].tolist() if last else ():
            if cell > last[-1]:
                break
            others = torch.ones_like(given.seen)
            others[:, cell] = False
            chain = linear.chain(level, others, ~others)
            steps = chain.steps(torch.where(others, y - linear.middle, 0.0), others)
            mean = (linear.middle[cell] + chain.mean(cell, steps)).to(y.dtype)
            read = torch.cat([self.model.read(Cells(part, level, others)) for part in y.split(_each(given))])[
                ..., cell, :
            ]
            mixture = head.one(cell, read, torch.zeros_like(read), mean, chain.spread[:, cell].to(y.dtype))
            mixture = mixture.given(given.value[:, cell].expand_as(mean), level[:, cell])
            truth = mixture.draw(uniform[..., cell], normal[..., cell])
            y[..., cell] = torch.where(blurred[:, cell], truth, y[..., cell])
            level = torch.where(blurred & ~others, LOWEST, level)

    def _in_turn(self, given: Cells, uniform: Tensor, normal: Tensor) -> Tensor:
        """Draws of the cells that are not seen one after the other, among the others, (n, B, D)."""
        y = given.value.expand(normal.shape).clone()
        linear, head = self.model.linear, self.model.averaged.densities
        lacking = ~given.seen
        exact = y.new_tensor(LOWEST)
        chain = linear.chain(torch.where(given.seen, given.level, exact), given.seen, lacking)
        begun = chain.steps(torch.where(given.seen, given.value - linear.middle, 0.0), given.seen)
        steps = begun.expand(len(y), *begun.shape).clone()
        read = self.model.read(given)
        before = y.new_zeros(*y.shape[:2], read.shape[-1])
        for cell in lacking.any(0).nonzero()[:, 0].tolist():
            mean = (linear.middle[cell] + chain.mean(cell, steps)).to(y.dtype)
            mixture = head.one(cell, read[:, cell], before, mean, chain.spread[:, cell].to(y.dtype))
            rows = lacking[:, cell]
            value = torch.where(rows, mixture.draw(uniform[..., cell], normal[..., cell]), y[..., cell])
            y[..., cell] = value
            chain.put(cell, steps, value - linear.middle[cell], rows)
            before = before + torch.where(rows[:, None], head.tell(cell, told(value, exact)), 0.0)
        return y


def _each(cells: Cells) -> int:
    """Draws of so many rows at once."""
    return max(1, ROWS // max(len(cells.level), 1))
