"""Where a model begins: what its modalities have in common, by object or by bin, then what is left of each."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consilience.blocks.factors import FLOOR, canonical_scores, fit_factors, fit_loadings
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.data.observations import Modality

__all__ = ["Look", "Start", "common_start"]

COMPONENTS = 20  # principal components of a modality with a deep decoder that are compared with the others


@dataclass(frozen=True, slots=True)
class Start:
    """Linear fit of one modality's look-alikes.

    Arguments:
        loadings: Of the latents that it reads, shared ones first, shape (D, L); zero with a deep decoder.
        offset: Shape (D,).
        noise: Residual variances, shape (D,).
    """

    loadings: Tensor
    offset: Tensor
    noise: Tensor


@torch.no_grad()
def common_start(
    looks: Mapping[str, "Look"], sizes: Mapping[str, int], shared: int, *, linear: Collection[str]
) -> dict[str, Start]:
    """Linear fits of all modalities to canonical scores of all of them, and to further factors of each.

    A linear modality is compared by the factors of a factor analysis, as many as it reads latents; one with a deep
    decoder by its first principal components, which may be any functions of its latents.

    Arguments:
        looks: The cells of the same objects or bins by modality.
        sizes: Number of latents that each modality reads.
        shared: Number of shared ones.
        linear: Modalities that are fitted; others get no loadings.
    """
    scores = {n: look.factors(sizes[n]) if n in linear else look.components() for n, look in looks.items()}
    common = canonical_scores(list(scores.values()), shared)
    return {
        name: look.start(common, sizes[name]) if name in linear else look.alone(sizes[name])
        for name, look in looks.items()
    }


@dataclass(frozen=True, slots=True)
class Look:
    """Gaussian look-alikes of cells, float64: values, known variances, which count; each (N, D)."""

    value: Tensor
    known: Tensor
    seen: Tensor

    @classmethod
    def of(cls, likelihood: AbstractLikelihood, part: Modality) -> "Look":
        """Of flat cells (N, D)."""
        value, known = likelihood.pseudo(part)
        return cls(value.double(), known.double(), part.seen.repeat_interleave(likelihood.functions, -1))

    def coarse(self, shape: Sequence[int], functions: int, most: int) -> "Look":
        """Means over neighbours along the last one or two event axes, until there are about ``most`` cells.

        Itself where there are no more.
        """
        sides = shape[-2:]
        size = math.ceil((math.prod(shape) * functions / most) ** (1 / max(len(sides), 1)))
        if size <= 1:
            return self

        def added(cells: Tensor) -> Tensor:
            wide = cells.unflatten(-1, (-1, *sides, functions)).movedim(-1, 2).flatten(1, 2)
            whole = torch.nn.functional.pad(wide, [n for side in reversed(sides) for n in (0, -side % size)])
            for axis in range(len(sides)):
                whole = whole.unflatten(2 + axis, (-1, size)).sum(3 + axis)
            return whole.flatten(1)

        weight = torch.where(self.seen, 1 / (1 + self.known), 0.0)
        total, seen = added(weight), added(weight) > 0
        value, known = added(weight * self.value) / total, added(weight.square() * self.known) / total.square()
        return Look(torch.where(seen, value, 0.0), torch.where(seen, known, 1.0), seen)

    def mean(self) -> Tensor:
        weight = torch.where(self.seen, 1 / (1 + self.known), 0.0)
        return (weight * self.value).sum(0) / weight.sum(0).clamp_min(1e-12)

    def factors(self, size: int) -> Tensor:
        """Posterior means of a factor analysis, (N, size)."""
        return fit_factors(self.value, self.known, self.seen, factors=size)(self.value, self.known, self.seen)[0]

    def components(self) -> Tensor:
        """Scores of the first principal components, (N, K)."""
        filled = torch.where(self.seen, self.value - self.mean(), 0.0)
        left, singular, _ = torch.svd_lowrank(filled, q=min(COMPONENTS, *filled.shape), niter=4)
        return left * singular

    def alone(self, size: int) -> Start:
        """No loadings: mean and variance of every cell."""
        offset = self.mean()
        square = torch.where(self.seen, (self.value - offset).square(), 0.0).sum(0)
        noise = (square / self.seen.sum(0).clamp_min(1)).clamp_min(FLOOR)
        return Start(self.value.new_zeros(len(offset), size), offset, noise)

    def start(self, common: Tensor, size: int) -> Start:
        """Loadings of given scores (N, shared), and of ``size`` - shared further factors of what they leave."""
        shared = common.shape[1]
        offset = self.mean()
        noise = self.alone(size).noise
        centred = self.value - offset
        loadings = self.value.new_zeros(len(offset), size)
        for _ in range(3):  # noise and loadings in turns
            weight = torch.where(self.seen, 1 / (noise + self.known), 0.0)
            loadings[:, :shared] = fit_loadings(common, centred, weight)
            residual = centred - common @ loadings[:, :shared].mT
            excess = weight.square() * (residual.square() - self.known)
            noise = (excess.sum(0) / weight.square().sum(0).clamp_min(1e-12)).clamp_min(FLOOR)
        if size > shared:
            private = fit_factors(residual, self.known, self.seen, factors=size - shared)
            loadings[:, shared:], noise = private.loadings, private.log_noise.exp()
        return Start(loadings, offset, noise)
