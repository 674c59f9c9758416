r"""Fusion of what several experts say of one latent vector, every object with its own set of experts.

An expert is a Gaussian factor :math:`\exp(\eta^\top z - \tfrac12 z^\top \Lambda z)` of each object, zero where it saw
nothing. A product of experts is the Gaussian of shift :math:`P_0 a + \sum_i \eta_i` and precision
:math:`P_0 + \sum_i \Lambda_i`, with the prior's mean a = 0 and :math:`P_0 = I` unless others are given; in the plain
form :math:`P_0 = 0` where there is an expert. A mixture of products averages the products of several sets of experts.

References:
    | Multimodal generative models for scalable weakly-supervised learning (Wu & Goodman, 2018)
    | Variational mixture-of-experts autoencoders (Shi et al., 2019)
    | Generalized multimodal ELBO (Sutter et al., 2021)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import product as tuples
from typing import Literal

import torch
from torch import Tensor

from consilience.blocks.posteriors import DiagonalLatent, GaussianLatent, from_precision

__all__ = ["AbstractExperts", "DiagonalExperts", "Fusion", "FullExperts", "sets_of_experts", "some_others"]

Fusion = Literal["product", "mixture", "mixture-of-products"]
LEAST = 1e-6  # precision of a plain product whose experts say nothing


@dataclass(frozen=True)
class AbstractExperts(ABC):
    """Factors of M experts over all Q latents of B objects.

    Arguments:
        shift: η, shape (M, B, Q).
        precision: Λ, of shape (M, B, Q) where it is diagonal, or (M, B, Q, Q).
        plain: Leave the prior out of products of one or more experts.
        prior_mean: Of the prior of each latent, (B, Q), where it is not N(0, 1).
        prior_precision: The same.
    """

    shift: Tensor
    precision: Tensor
    plain: bool = False
    prior_mean: Tensor | float = 0.0
    prior_precision: Tensor | float = 1.0

    @abstractmethod
    def product(self, chosen: Tensor) -> DiagonalLatent | GaussianLatent:
        """The product of the chosen experts (…, M, B) of each object and the prior, (…, B, Q)."""

    @abstractmethod
    def each(self) -> DiagonalLatent | GaussianLatent:
        """The product of every expert alone and the prior, (M, B, Q)."""

    def _sums(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and precision of the chosen ones."""
        weight = chosen.to(self.shift.dtype)
        axes = self.precision.ndim - 2
        shift = (weight[..., None] * self.shift).sum(-3)
        return shift, (weight.view(*weight.shape, *[1] * axes) * self.precision).sum(-2 - axes)

    def _prior(self, diagonal: Tensor) -> Tensor:
        """What the prior adds to the diagonal of a precision, (…, B, Q)."""
        prior = torch.ones_like(diagonal) * self.prior_precision
        return torch.where(diagonal > 0, LEAST, prior) if self.plain else prior


@dataclass(frozen=True)
class DiagonalExperts(AbstractExperts):
    """Experts to whom latents are independent.

    Example:
        >>> experts = DiagonalExperts(torch.ones(2, 1, 1), torch.ones(2, 1, 1))
        >>> q = experts.product(torch.tensor([[True], [True]]))
        >>> round(float(q.mean), 3), round(float(q.std) ** 2, 3)
        (0.667, 0.333)
    """

    def product(self, chosen: Tensor) -> DiagonalLatent:
        return self._posterior(*self._sums(chosen))

    def each(self) -> DiagonalLatent:
        return self._posterior(self.shift, self.precision)

    def _posterior(self, shift: Tensor, precision: Tensor) -> DiagonalLatent:
        prior = self._prior(precision)
        total = prior + precision
        return DiagonalLatent((shift + prior * self.prior_mean) / total, total.rsqrt())


@dataclass(frozen=True)
class FullExperts(AbstractExperts):
    """Experts with matrices Λ: with linear decoders and Gaussian cells they can be exact."""

    def product(self, chosen: Tensor) -> GaussianLatent:
        return self._posterior(*self._sums(chosen))

    def each(self) -> GaussianLatent:
        return self._posterior(self.shift, self.precision)

    def _posterior(self, shift: Tensor, precision: Tensor) -> GaussianLatent:
        prior = self._prior(precision.diagonal(dim1=-2, dim2=-1))
        total, shift = torch.diag_embed(prior) + precision, shift + prior * self.prior_mean
        mean = torch.linalg.solve(total.double(), shift.double()[..., None])[..., 0]
        return from_precision(mean.to(shift), total)


def sets_of_experts(fusion: Fusion, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The sets that a fusion averages: which experts are in each (K, M, B), and the weights of the sets (K, B).

    A product has one set, of all that saw something; a mixture one for each of them; a mixture of products all subsets
    of these but the empty one. An object of which nobody saw anything has the empty set.

    Arguments:
        fusion: The kind.
        seen: Which experts saw something, (M, B).

    Example:
        >>> members, weight = sets_of_experts("mixture", torch.tensor([[True], [True], [False]]))
        >>> weight[:, 0].tolist()
        [0.5, 0.5, 0.0]
    """
    if fusion == "product":
        return seen[None], seen.new_ones(1, seen.shape[1], dtype=torch.get_default_dtype())
    count = len(seen)
    subsets = [c for c in tuples((False, True), repeat=count) if any(c) and (fusion != "mixture" or sum(c) == 1)]
    members = torch.tensor(sorted(subsets, reverse=True), device=seen.device)[..., None] & seen[None]
    # a set counts where its experts all saw something
    whole = members.sum(1) == torch.tensor([sum(c) for c in sorted(subsets, reverse=True)], device=seen.device)[:, None]
    weight = whole.to(torch.get_default_dtype())
    weight[0] += ~seen.any(0)
    return members, weight / weight.sum(0)


def some_others(seen: Tensor) -> Tensor:
    """For every expert a random set of the others that saw something, (M, M, B), empty only where there is no other.

    One of the others is surely in it, each further one with probability one half; from torch's generator.

    Arguments:
        seen: Which experts saw something, (M, B).

    Example:
        >>> some_others(torch.tensor([[True], [False]]))[..., 0].tolist()
        [[False, False], [True, False]]
    """
    count = len(seen)
    others = seen & ~torch.eye(count, dtype=torch.bool, device=seen.device)[..., None]
    if count <= 2:
        return others
    first = torch.where(others, torch.rand(others.shape).to(seen.device), -1.0).argmax(1, keepdim=True)
    kept = torch.rand(others.shape).to(seen.device) < 0.5
    return kept.scatter(1, first, value=True) & others


def one_set(fusion: Fusion, seen: Tensor) -> Tensor:
    """For each object one of the sets that the fusion averages, drawn by its weight, (M, B)."""
    members, weight = sets_of_experts(fusion, seen)
    edges = weight.cumsum(0)[:-1]
    which = (torch.rand(seen.shape[1]).to(edges) >= edges).sum(0)
    return members[which, :, torch.arange(seen.shape[1], device=seen.device)].mT
