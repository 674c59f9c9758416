r"""FlowMatching: one network that answers every conditional, gaps included.

Every cell of every modality is a token of a transformer. A cell is known up to noise of some level s: a measurement
with error bar σ is at level σ, an exact one at the lowest, and what is asked for begins at the highest. The network
gives the mean D of the truth of every cell given all that is known (:mod:`consilience.blocks.transport`), and is
trained on rows with cells of its own choice at levels of its own choice:

.. math::
    L = E \sum_\text{hidden} \frac{\bigl(z - r y - (1 - r) D(y, s)\bigr)^2}{(1 - r)^2 b^2 + (1 - r)\,\sigma^2},
    \qquad y = z + \sqrt{s^2 - \sigma^2}\,\epsilon, \quad r = \sigma^2 / s^2,

where b is the spread of the best linear denoiser, to which the network adds what it leaves. For every other row the
same network gives the density of the cells that are hidden, one after the other
(:mod:`consilience.blocks.cell_densities`), and L is its negative logarithm.

In each row some cells are given, some hidden and scored, and some taken away: whole modalities, single cells, or all.
Half of the rows give their cells at a level above their own, so that error bars are understood that no row has.
So one network answers every conditional and every marginal. Cells that were never seen are not tokens, and neither
condition nor score.

References:
    | All-in-one simulation-based inference (Gloeckler et al., 2024)
    | Flow matching for scalable simulation-based inference (Wildberger et al., 2023)
    | Amortized probabilistic conditioning (Chang et al., 2025)
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from consilience.blocks.cell_network import CellNetwork, averaged_copy, told
from consilience.blocks.linear_denoising import LinearDenoiser
from consilience.blocks.transport import HIGHEST, LOWEST, path_of
from consilience.data.masking import Policy
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Group, PerObject, Term
from consilience.models.flow_conditional import Cells, FlowConditional
from consilience.models.latent import flat

__all__ = ["FlowMatching"]

MOST = 128  # tokens
KEEP = 0.999  # share of the averaged weights that a step keeps, in the long run


class FlowMatching(AbstractFamily):
    """Configuration of a transformer that draws any cells given any others.

    Example:
        >>> FlowMatching(width=32).path
        'denoising'
    """

    family: Literal["FlowMatching"] = "FlowMatching"
    width: int = Field(default=64, ge=4)  # of a token
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    components: int = Field(default=8, ge=1)  # of the mixture that a cell's density is, method "fast"
    path: Literal["denoising", "flow"] = "denoising"  # what the network is trained to say for method "ode"
    steps: int = Field(default=40, ge=2)  # of method "ode"

    @property
    def default_policy(self) -> Policy | None:
        return None  # which cells are hidden is part of the objective

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        if self.width % self.heads:
            raise SchemaError(f"Expected a width that {self.heads} heads divide; got {self.width}. Change one of them.")
        for spec in schema.modalities:
            if spec.kind not in ("real", "positive") or spec.time:
                raise SchemaError(
                    f"Expected modalities of real or positive numbers; got '{spec.name}', {spec.kind}"
                    f"{' over time' if spec.time else ''}. FlowMatching does not draw these yet: leave it out."
                )
        cells = sum(spec.size for spec in schema.modalities)
        if cells > MOST:
            raise SchemaError(
                f"Expected at most {MOST} cells in all, each of which is a token; got {cells}. FlowMatching does not "
                "read long spectra and images yet: leave them out, or give their latents from another model."
            )
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema)


class _Module(AbstractModel):
    capabilities: frozenset[str] = frozenset({"density", "generate"})
    offset: Tensor  # mean and spread of every cell, (D,)
    spread: Tensor
    taken: Tensor  # steps so far
    owners: Tensor  # modality of every cell, (D,)

    def __init__(self, config: FlowMatching, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema, self.blocks = config, schema, {}
        self.path, self.steps = path_of(config.path), config.steps
        sizes = [spec.size for spec in schema.modalities]
        ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        self.places = {
            spec.name: slice(end - spec.size, end) for spec, end in zip(schema.modalities, ends, strict=True)
        }
        count = sum(sizes)
        self.network = CellNetwork(
            count, width=config.width, layers=config.layers, heads=config.heads, components=config.components
        )
        self.averaged = averaged_copy(self.network)  # a running mean of its weights
        self.linear = LinearDenoiser(count)
        for name, value in {"offset": torch.zeros(count), "spread": torch.ones(count)}.items():
            self.register_buffer(name, value)
        self.register_buffer("taken", torch.zeros(()))
        owners = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
        self.register_buffer("owners", owners, persistent=False)

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """Of every other row the density of cells that are hidden, of the rest the squared error of their means."""
        known, every = self.cells(context), self.cells(target)
        hide, drop = self._chosen(every.value)
        hidden = every.seen & (hide | ~known.seen) & ~drop
        given = known.seen & ~hide & ~drop
        scored = torch.zeros_like(hidden)
        scored[::2] = hidden[::2]
        moved = hidden & ~scored
        own = every.level
        noise = torch.where(moved, self.path.draw(len(own), own), self._blur(len(own), own))
        level = torch.where(scored, own, own.maximum(noise))
        y = every.value + (level.square() - own.square()).clamp_min(0).sqrt() * torch.randn_like(level)
        # validation is of the averaged weights
        network = self.network if torch.is_grad_enabled() else self.averaged
        linear = self.linear(y, level, given | moved)
        read = network.read(y, level, given | moved, linear)
        begun, unit = self.path.parts(y, level, linear)
        left = torch.where(own > LOWEST, 1 - (own / level).square(), 1.0)  # 1 - r
        error = every.value - (1 - left) * y - left * (begun + unit * network.number(read))
        size = left * (left * unit.square() + torch.where(own > LOWEST, own.square(), 0.0))
        loss = torch.where(moved, error.square() / size.clamp_min(1e-12), 0.0)
        some = Cells(y[::2], level[::2], given[::2])
        density = torch.zeros_like(loss)
        density[::2] = -self._density(network, some, scored[::2], read[::2])
        return {
            f"{kind}/{name}": PerObject(found[:, place].sum(-1), use[:, place].any(-1))
            for kind, found, use in (("velocity", loss, moved), ("nll", density, scored))
            for name, place in self.places.items()
        }

    @torch.no_grad()
    def condition(self, context: Observations) -> FlowConditional:
        """p(every cell | the seen ones)."""
        return FlowConditional(self, self.cells(context))

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Take mean and spread of every cell, and the covariance of their truths."""
        cells = self.cells(target)  # with an offset of 0 and a spread of 1
        value, seen = cells.value, cells.seen
        count = seen.sum(0).clamp_min(1)
        mean = torch.where(seen, value, 0.0).sum(0) / count
        variance = torch.where(seen, (value - mean).square(), 0.0).sum(0) / count
        self.offset.copy_(mean)
        self.spread.copy_(torch.where(variance > 1e-12, variance.sqrt(), 1.0))
        cells = self.cells(target)
        self.linear.start(cells.value, torch.where(cells.level > LOWEST, cells.level.square(), 0.0), cells.seen)

    @torch.no_grad()
    def closed_form_step(
        self, context: Observations, target: Observations, scale: float, weights: Mapping[str, float], rate: float
    ) -> None:
        """Average the weights of the network, over few steps at first."""
        self.taken += 1
        keep = min(KEEP, (1 + float(self.taken)) / (10 + float(self.taken)))
        averaged = dict(self.averaged.named_buffers())
        for name, parameter in self.network.named_parameters():
            averaged[name].lerp_(parameter, 1 - keep)

    def groups(self) -> tuple[Group, ...]:
        return (Group("network", dict(self.named_parameters()), decays=True, clip=1.0),)

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return bool(producible) and producible <= set(self.places)

    def denoised(self, y: Tensor, level: Tensor, shown: Tensor) -> Tensor:
        """D(y, s) of cells (…, B, D) at levels (B, D), of those that are shown, by the averaged weights."""
        linear = self.linear(y, level, shown)
        begun, unit = self.path.parts(y, level, linear)
        return begun + unit * self.averaged.number(self.averaged.read(y, level, shown, linear))

    def read(self, cells: Cells) -> Tensor:
        """What the averaged weights read for every cell of those that are seen, (…, B, D, W)."""
        return self.averaged.read(*cells, self.linear(*cells))

    def density(self, cells: Cells, scored: Tensor, read: Tensor) -> Tensor:
        """Log densities of measurements that are scored, each given the seen ones and those scored before it, (B, D).

        Arguments:
            cells: All of them; seen are those that are given.
            scored: Which are scored, none of them given.
            read: What the averaged weights read.
        """
        return self._density(self.averaged, cells, scored, read)

    def _density(self, network: CellNetwork, cells: Cells, scored: Tensor, read: Tensor) -> Tensor:
        chain = self.linear.chain(cells.level, cells.seen, scored)
        left = torch.where(cells.seen | scored, cells.value - self.linear.middle, 0.0)
        mean = (self.linear.middle + chain.means(left)).to(read.dtype)
        said = told(cells.value, cells.level)
        found = network.densities(read, said, scored, mean, chain.spread.to(read.dtype))
        return torch.where(scored, found.log_prob(cells.value, cells.level), 0.0)

    def cells(self, rows: Observations) -> Cells:
        """All cells of a batch side by side, in standard deviations of each."""
        parts = [flat(rows.parts[name]) for name in self.places]
        for name, part in zip(self.places, parts, strict=True):
            if bool((part.seen & ~part.measured).any()):
                raise DataError(
                    f"Expected measured cells of '{name}'; got limits. FlowMatching does not read limits yet: hide "
                    "them, or fit SharedGPLVM or Regression."
                )
        seen = torch.cat([part.seen for part in parts], -1)
        value = (torch.cat([part.value for part in parts], -1) - self.offset) / self.spread
        sigma = [torch.zeros_like(part.value) if part.sigma is None else part.sigma for part in parts]
        level = (torch.cat(sigma, -1) / self.spread).clamp(LOWEST, 0.5 * HIGHEST)
        return Cells(torch.where(seen, value, 0.0), torch.where(seen, level, HIGHEST), seen)

    def _blur(self, rows: int, like: Tensor) -> Tensor:
        """Levels at which rows give what they give, (rows, 1), from torch's generator: 0 of half of them."""
        drawn = (1.2 * torch.randn(rows, 1, dtype=like.dtype, device=like.device) - 2.5).exp()
        return torch.where(torch.rand(rows, 1, dtype=like.dtype, device=like.device) < 0.5, drawn, 0.0)

    def _chosen(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cells to hide and cells to take away, (B, D), from torch's generator.

        A row hides one modality, each of them or each cell at random, or all; half of the rows lose further cells.
        """
        rows, count = like.shape
        kinds = len(self.places)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, dtype=like.dtype, device=like.device)

        one = (uniform(rows, 1) * kinds).long() == torch.arange(kinds, device=like.device)
        whole = (uniform(rows, kinds) < 0.5)[:, self.owners]
        single = uniform(rows, count) < uniform(rows, 1)
        kind = uniform(rows, 1)
        hide = torch.where(kind < 0.3, one[:, self.owners], torch.where(kind < 0.5, whole, single))
        hide = hide | (kind > 0.85)
        share = (uniform(rows, 1) - 0.5).clamp_min(0.0)
        drop = (uniform(rows, count) < share) | ((uniform(rows, kinds) < share)[:, self.owners])
        return hide, drop
