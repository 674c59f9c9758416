"""What families of latent trajectories share: sites of cells, and the conditional through q(z)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.noise import Noise
from consilience.blocks.products import product
from consilience.blocks.trajectories import AbstractTrajectories, Sites, Trajectories, update_trajectories
from consilience.data.observations import Modality, Observations
from consilience.errors import RequestError
from consilience.models.base import Density

__all__ = ["BinCells", "BlockTrajectory", "TrajectoryConditional", "optimal_sites"]

SCORED = 128  # latent draws behind an estimated density


@dataclass(frozen=True, slots=True)
class BinCells:
    """The cells of one modality by bin, (B T, D), and how its functions read the latents."""

    likelihood: AbstractLikelihood
    part: Modality
    weight: Tensor  # C with zero columns for latents of other modalities, (D, L)
    offset: Tensor  # d, (D,)
    rows: int  # B

    @property
    def conjugate(self) -> bool:
        """Whether the sites do not depend on q."""
        return self.likelihood.conjugate(self.part)

    def moments(self, q: AbstractTrajectories) -> tuple[Tensor, Tensor]:
        """Mean and variance of f, each (B T, D)."""
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).flatten(1)
        mean = product(q.mean.flatten(0, 1), self.weight) + self.offset
        return mean, product(q.covariance.flatten(0, 1).flatten(1), outer).clamp_min(1e-10)

    def sites(self, mean: Tensor, variance: Tensor) -> Sites:
        """Where a natural-gradient step of rate 1 leads from these moments of f, each (B T, D)."""
        _, g, h = self.likelihood.slopes(self.part, mean, variance)
        w = self.likelihood.precision(self.part, mean, h)
        return self._on_latents(w * (mean - self.offset) + g, w)

    def first_sites(self) -> Sites:
        """Those of Gaussian look-alikes of the cells; the exact ones of conjugate cells."""
        if self.conjugate:
            at = self.offset.expand(self.part.value.shape)
            return self.sites(at, torch.zeros_like(at))
        value, known = self.likelihood.pseudo(self.part)
        if isinstance(self.likelihood, Gaussian):  # some cells are limits
            known = known + self.likelihood.learned()
        w = torch.where(self.part.seen, 1 / known, 0.0)
        return self._on_latents(w * (value - self.offset), w)

    def log_prob(self, f: Tensor) -> Tensor:
        """log p(x | f) of each object's seen cells for f (B T, D), shape (B,)."""
        return self.likelihood.log_predictive(self.part, f, torch.zeros_like(f)).view(self.rows, -1).sum(-1)

    def _on_latents(self, shift: Tensor, precision: Tensor) -> Sites:
        """Sites of z from sites of f - d, both (B T, D)."""
        latents = self.weight.shape[1]
        outer = (self.weight[:, :, None] * self.weight[:, None, :]).flatten(1)
        along, across = product(shift, self.weight.mT), product(precision, outer.mT)
        return Sites(along.view(self.rows, -1, latents), across.view(self.rows, -1, latents, latents))


@torch.no_grad()
def optimal_sites(cells: Sequence[BinCells], infer: Callable[[Sites], AbstractTrajectories], *, steps: int) -> Sites:
    """Sites of every trial: exact ones of conjugate cells, those at the optimum of the bound where any is not.

    Natural-gradient steps: their number is fixed, rate and acceptance are per trial, none changes another's answer.

    Arguments:
        cells: The modalities.
        infer: Gives q of sites.
        steps: Number of proposals per trial; one that lowers the bound is refused and the next is shorter.
    """
    here = _product([one.first_sites() for one in cells])
    if all(one.conjugate for one in cells):
        return here

    def bound(sites: Sites) -> tuple[Tensor, Sites]:
        """The bound (B,), and the sites to which a step of rate 1 leads."""
        q = infer(sites)
        value, aims = -q.divergence().sum(-1), []
        for one in cells:
            mean, variance = one.moments(q)
            value = value + one.likelihood.expected(one.part, mean, variance).view(len(value), -1).sum(-1)
            aims.append(one.sites(mean, variance))
        return value, _product(aims)

    value, aim = bound(here)
    rate = torch.ones_like(value)
    slack = 3 * torch.finfo(value.dtype).eps ** 0.5
    for _ in range(steps):
        there = here.towards(aim, rate)
        proposed, next_aim = bound(there)
        better = torch.isfinite(proposed) & (proposed > value - slack)
        here, aim = there.where(better, here), next_aim.where(better, aim)
        value = torch.where(better, proposed, value)
        rate = torch.where(better, (2 * rate).clamp_max(1), rate / 4)
    return here


def _product(experts: Sequence[Sites]) -> Sites:
    total = experts[0]
    for one in experts[1:]:
        total = total + one
    return total


@dataclass(frozen=True)
class TrajectoryConditional:
    """The conditional of everything given the seen cells, through q(z).

    Arguments:
        q: Posterior of the latents.
        exact: Whether it is the posterior itself.
        cells: Gives the cells of a modality by bin.
        columns: Latents of each block.
        steps: Natural-gradient steps behind a density.
    """

    q: Trajectories
    exact: bool
    cells: Callable[[str, Modality], BinCells]
    columns: Mapping[str, Tensor]
    steps: int
    context: Observations

    def latent(self, method: str = "default") -> dict[str, "BlockTrajectory"]:
        """Marginal posterior of each block, (B, T, L)."""
        _check(method)
        mean, half = self.q.mean, self.q.half()
        return {block: BlockTrajectory(mean[:, :, some], half[:, :, some]) for block, some in self.columns.items()}

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws without measurement error, (n, B, *event) per target."""
        _check(method)
        v = self.q.coordinates.draw(noise.normal("latent", n, self.q.coordinates.mean.shape[1:]))
        z = self.q.latents(v)
        found = {}
        for name in targets:
            part = self.context.parts[name]
            one = self.cells(name, part)
            f = product(z, one.weight) + one.offset
            value = one.likelihood.draw(f, torch.zeros_like(f), noise, name)
            found[name] = value.view(n, *part.value.shape)
        return found

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        r"""Joint density of the seen target cells, :math:`\log \int p(x \mid z)\, q(z)\, \mathrm dz`.

        In closed form where all of them are conjugate, else by importance sampling from what they make of q.
        """
        _check(method)
        scored = [self.cells(name, values.parts[name]) for name in targets]
        sites = optimal_sites(scored, lambda sites: update_trajectories(self.q, sites), steps=self.steps)
        updated = update_trajectories(self.q, sites)
        if all(one.conjugate for one in scored):
            value = self._at(scored, updated.origin) + updated.log_normaliser()
            return Density(value, "exact") if self.exact else Density(value, "estimate", torch.zeros_like(value))
        normal = noise.normal("density", SCORED, updated.coordinates.mean.shape[1:])
        w = updated.coordinates.draw(normal)
        before = 0.5 * (normal.square() - w.square()).sum(-1)
        ratio = before + updated.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        total = ratio + torch.stack([self._at(scored, z) for z in updated.latents(w)])
        value = torch.logsumexp(total, 0) - math.log(SCORED)
        return Density(value, "estimate", torch.exp(total - value).std(0) / math.sqrt(SCORED))

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Marginal log density of each seen target cell, (B, *event)."""
        _check(method)
        found = {}
        for name in targets:
            one = self.cells(name, values.parts[name])
            score = one.likelihood.log_predictive(one.part, *one.moments(self.q))
            found[name] = score.view(values.parts[name].value.shape)
        return found

    def _at(self, scored: Sequence[BinCells], z: Tensor) -> Tensor:
        """log p(x | z) of every object at latents z (B, T, L), shape (B,)."""
        rows = z.flatten(0, 1)
        return torch.stack([one.log_prob(product(rows, one.weight) + one.offset) for one in scored]).sum(0)


@dataclass(frozen=True, slots=True)
class BlockTrajectory:
    """Posterior of one block of latents over time.

    Arguments:
        mean: Shape (B, T, L).
        half: A, shape (B, T, L, K); the covariance of two latents is the product of their rows.
    """

    mean: Tensor
    half: Tensor

    @property
    def std(self) -> Tensor:
        """Marginal standard deviations, (B, T, L)."""
        return self.half.square().sum(-1).sqrt()

    def draw(self, normal: Tensor) -> Tensor:
        """Draws (S, B, T, L) from standard normals of that shape, of which the first K are used if K is less."""
        wide = self.half.flatten(1, 2).mT  # (B, K, T L); its R has the same product with its transpose
        r = torch.linalg.qr(wide, mode="r")[1]
        white = normal.flatten(2)[..., : r.shape[1]].permute(1, 0, 2)
        return self.mean + (white @ r).permute(1, 0, 2).reshape(normal.shape)


def _check(method: str) -> None:
    if method != "default":
        raise RequestError(f"Expected method among ['default']; got {method!r}.")
