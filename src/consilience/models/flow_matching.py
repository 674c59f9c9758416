r"""FlowMatching: one network that answers every conditional, gaps included.

Every cell of every modality is a token of a transformer. A cell is known up to noise of some level s: a measurement
with error bar σ is at level σ, an exact one at the lowest, and what is asked for begins at the highest. The network
gives the mean D of the truth of every cell given all that is known (:mod:`consilience.blocks.transport`), and is
trained on rows with cells of its own choice at levels of its own choice:

.. math::
    L = E \sum_\text{hidden} \frac{\bigl(z - r y - (1 - r) D(y, s)\bigr)^2}{(1 - r)^2 b^2 + (1 - r)\,\sigma^2},
    \qquad y = z + \sqrt{s^2 - \sigma^2}\,\epsilon, \quad r = \sigma^2 / s^2,

where b is the spread of the best linear denoiser, to which the network adds what it leaves.

In each row some cells are given, some hidden and scored, and some taken away: whole modalities, single cells, or all.
Half of the rows give their cells at a level above their own, so that error bars are understood that no row has.
So one network answers every conditional and every marginal. Cells that were never seen are not tokens, and neither
condition nor score.

Draws are of all cells that are not seen, together; densities are of the cells that are scored, with the other unseen
ones taken away. Both are the same distribution only as far as the network has learned it.

References:
    | All-in-one simulation-based inference (Gloeckler et al., 2024)
    | Flow matching for scalable simulation-based inference (Wildberger et al., 2023)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from consilience.blocks.attention import CellTransformer
from consilience.blocks.linear_denoising import LinearDenoiser
from consilience.blocks.noise import Noise
from consilience.blocks.transport import HIGHEST, LOWEST, drawn, path_of, raised
from consilience.data.masking import Policy
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Density, Group, PerObject, Term, known_method
from consilience.models.latent import flat

__all__ = ["FlowMatching"]

MOST = 128  # tokens
EXACT = 16  # cells of a joint density whose trace is exact
PROBES = 4  # of an estimated one
WAVES = (1.0, 2.0, 4.0, 8.0)  # radians per unit of what the network is given of a cell
ROWS = 4096  # rows of tokens at once
KEEP = 0.999  # share of the averaged weights that a step keeps, in the long run


class FlowMatching(AbstractFamily):
    """Configuration of a transformer that denoises any cells given any others.

    Example:
        >>> FlowMatching(width=32).path
        'denoising'
    """

    family: Literal["FlowMatching"] = "FlowMatching"
    width: int = Field(default=64, ge=4)  # of a token
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    path: Literal["denoising", "flow"] = "denoising"  # what the network is trained to say
    steps: int = Field(default=40, ge=2)  # of Heun's rule for a draw

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


@dataclass(frozen=True, slots=True)
class _Cells:
    """All cells of a batch side by side, in standard deviations of each: (B, D)."""

    value: Tensor
    level: Tensor  # of a measurement, at least the lowest
    seen: Tensor


class _Module(AbstractModel):
    capabilities: frozenset[str] = frozenset({"density", "generate"})
    offset: Tensor  # mean and spread of every cell, (D,)
    spread: Tensor
    averaged: Tensor  # running mean of the network's weights, as one vector
    taken: Tensor  # steps so far
    owners: Tensor  # modality of every cell, (D,)

    def __init__(self, config: FlowMatching, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema, self.blocks = config, schema, {}
        self.path = path_of(config.path)
        sizes = [spec.size for spec in schema.modalities]
        ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
        self.places = {
            spec.name: slice(end - spec.size, end) for spec, end in zip(schema.modalities, ends, strict=True)
        }
        count = sum(sizes)
        self.network = CellTransformer(
            count, 6 + 2 * len(WAVES), width=config.width, layers=config.layers, heads=config.heads
        )
        with torch.no_grad():
            self.network.reads[:, 5:] = 0  # surprise and waves are learned where they help: at first all is smooth
        self.linear = LinearDenoiser(count)
        for name, value in {"offset": torch.zeros(count), "spread": torch.ones(count)}.items():
            self.register_buffer(name, value)
        self.register_buffer("averaged", nn.utils.parameters_to_vector(self.network.parameters()).detach().clone())
        self.register_buffer("taken", torch.zeros(()))
        owners = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
        self.register_buffer("owners", owners, persistent=False)

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """Squared error of the denoised cells that are hidden, of rows that have any."""
        known, every = self._cells(context), self._cells(target)
        hide, drop = self._chosen(every.value)
        hidden = every.seen & (hide | ~known.seen) & ~drop
        given = known.seen & ~hide & ~drop
        own, shown = every.level, given | hidden
        level = own.maximum(torch.where(hidden, self.path.draw(len(own), own), self._blur(len(own), own)))
        y = every.value + (level.square() - own.square()).clamp_min(0).sqrt() * torch.randn_like(level)
        # validation is of the averaged weights
        mean, unit = self._denoised(y, level, shown, None if torch.is_grad_enabled() else self._averaged())
        left = torch.where(own > LOWEST, 1 - (own / level).square(), 1.0)  # 1 - r
        error = every.value - (1 - left) * y - left * mean
        size = left * (left * unit.square() + torch.where(own > LOWEST, own.square(), 0.0))
        loss = torch.where(hidden, error.square() / size.clamp_min(1e-12), 0.0)
        return {
            f"velocity/{name}": PerObject(loss[:, place].sum(-1), hidden[:, place].any(-1))
            for name, place in self.places.items()
        }

    @torch.no_grad()
    def condition(self, context: Observations) -> "_Conditional":
        """p(every cell | the seen ones)."""
        return _Conditional(self, self._cells(context))

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Take mean and spread of every cell, and the covariance of their truths."""
        cells = self._cells(target)  # with an offset of 0 and a spread of 1
        value, seen = cells.value, cells.seen
        count = seen.sum(0).clamp_min(1)
        mean = torch.where(seen, value, 0.0).sum(0) / count
        variance = torch.where(seen, (value - mean).square(), 0.0).sum(0) / count
        self.offset.copy_(mean)
        self.spread.copy_(torch.where(variance > 1e-12, variance.sqrt(), 1.0))
        cells = self._cells(target)
        self.linear.start(cells.value, torch.where(cells.level > LOWEST, cells.level.square(), 0.0), cells.seen)

    @torch.no_grad()
    def closed_form_step(
        self, context: Observations, target: Observations, scale: float, weights: Mapping[str, float], rate: float
    ) -> None:
        """Average the weights of the network, over few steps at first."""
        self.taken += 1
        keep = min(KEEP, (1 + float(self.taken)) / (10 + float(self.taken)))
        self.averaged.lerp_(nn.utils.parameters_to_vector(self.network.parameters()), 1 - keep)

    def groups(self) -> tuple[Group, ...]:
        return (Group("network", dict(self.named_parameters()), decays=True, clip=1.0),)

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return bool(producible) and producible <= set(self.places)

    def denoised(self, y: Tensor, level: Tensor, shown: Tensor) -> Tensor:
        """D(y, s) of cells (…, B, D) at levels (B, D), of those that are shown, by the averaged weights."""
        return self._denoised(y, level, shown, self._averaged())[0]

    def _averaged(self) -> dict[str, Tensor]:
        weights, at = {}, 0
        for name, parameter in self.network.named_parameters():
            weights[name] = self.averaged[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        return weights

    def _denoised(
        self, y: Tensor, level: Tensor, shown: Tensor, weights: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """D(y, s) and the unit b of what the network adds."""
        linear = self.linear(y, level, shown)
        begun, unit = self.path.parts(y, level, linear)
        told = y / (1 + level.square()).sqrt()
        waves = [wave(turn * told) for turn in WAVES for wave in (torch.sin, torch.cos)]
        heights = (level.log() / 4, level.square() / (1 + level.square()), linear.spread.clamp_min(LOWEST).log() / 4)
        features = torch.stack(
            [told, linear.mean, *(one.expand_as(y) for one in heights), linear.surprise.asinh(), *waves], -1
        ).flatten(0, -3)
        weights = dict(self.network.named_parameters()) if weights is None else weights
        told_of = (features, shown.expand_as(y).flatten(0, -2))
        found = torch.func.functional_call(self.network, weights, told_of).view_as(y)
        return begun + unit * found, unit

    def _cells(self, rows: Observations) -> _Cells:
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
        return _Cells(torch.where(seen, value, 0.0), torch.where(seen, level, HIGHEST), seen)

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


@dataclass(frozen=True, slots=True)
class _Conditional:
    """p(cells | seen cells) of B objects."""

    model: _Module
    given: _Cells

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws of the truth of all cells together, of which the targets' are returned."""
        known_method(method)
        model = self.model
        real = torch.as_tensor(noise.ids != "", device=self.given.seen.device)  # the others fill a tile up
        given = _Cells(self.given.value[real], self.given.level[real], self.given.seen[real])
        noise = replace(noise, ids=noise.ids[noise.ids != ""])
        begun = torch.where(given.seen, given.value, HIGHEST * noise.normal("cells", n, given.value.shape[1:]))
        # of an exact value nothing is left to draw
        walks = bool((given.seen & (given.level > LOWEST)).any())
        shown = torch.ones_like(given.seen)
        each = max(1, ROWS // len(shown))

        def mean(y: Tensor, level: Tensor) -> Tensor:
            return torch.cat([model.denoised(some, level, shown) for some in y.split(each)])

        def fresh(number: int) -> Tensor | None:
            return noise.normal(f"cells/{number}", n, given.value.shape[1:]) if walks else None

        found = drawn(mean, begun, given.level, steps=model.config.steps, fresh=fresh)
        found = torch.where(given.seen & (given.level <= LOWEST), given.value, found)
        found = model.offset + model.spread * found
        every = found.new_zeros(n, len(real), found.shape[-1])
        every[:, real] = found
        return {name: every[..., model.places[name]] for name in targets}

    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the measurements of the targets at their error bars, (B,)."""
        known_method(method)
        cells, scored = self._scored(values, targets)
        exact = int(scored.any(0).sum()) <= EXACT
        probes = None if exact else noise.normal("probes", PROBES, (cells.value.shape[1],)).sign()
        if probes is None:
            return Density(self._raised(cells, scored, self.given, None), "exact")
        each = torch.stack([self._raised(cells, scored, self.given, one[None]) for one in probes])
        return Density(each.mean(0), "estimate", each.std(0) / len(probes) ** 0.5)

    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Density of each measurement of the targets alone, (B, D) per target."""
        known_method(method)
        cells, scored = self._scored(values, targets)
        found = torch.zeros_like(cells.value)
        for column in scored.any(0).nonzero()[:, 0].tolist():
            alone = torch.zeros_like(scored)
            alone[:, column] = scored[:, column]
            found[:, column] = self._raised(cells, alone, self.given, None)
        return {name: found[:, self.model.places[name]] for name in targets}

    def _scored(self, values: Observations, targets: tuple[str, ...]) -> tuple[_Cells, Tensor]:
        cells = self.model._cells(values)  # noqa: SLF001 - its own conditional
        return cells, cells.seen & self._asked(targets)

    def _asked(self, targets: tuple[str, ...]) -> Tensor:
        """Cells of the targets, (D,)."""
        asked = torch.zeros_like(self.given.seen[0])
        for name in targets:
            asked[self.model.places[name]] = True
        return asked

    def _raised(self, cells: _Cells, scored: Tensor, given: _Cells, probes: Tensor | None) -> Tensor:
        """Log density in model units of the cells that are scored, given those that are given and not scored."""
        y = torch.where(scored, cells.value, given.value)
        level = torch.where(scored, cells.level, given.level)
        shown = scored | given.seen

        def mean(y: Tensor, level: Tensor) -> Tensor:
            return self.model.denoised(y, level, shown)

        found = raised(mean, y, level, scored, self.model.config.steps, probes)
        return found - torch.where(scored, self.model.spread.log(), 0.0).sum(-1)
