"""Parts of bounds of several modalities: posteriors with a draw of each, their divergences, and misfits of decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consilience.blocks.information import Parts, kl_parts
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.posteriors import DiagonalLatent, GaussianLatent
from consilience.data.observations import Observations
from consilience.models.base import Batch, PerObject, Term
from consilience.models.latent import flat

__all__ = ["Reading", "Said", "View", "divergence", "misfits"]


@dataclass(frozen=True, slots=True)
class View:
    """One modality: the latents it reads, its decoder and its likelihood."""

    columns: Tensor
    decoder: nn.Module
    likelihood: AbstractLikelihood

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f at rows of its latents (R, Q_m), which has no variance of its own."""
        f = self.decoder(z)
        return f, torch.zeros_like(f)


@dataclass(frozen=True, slots=True)
class Said:
    """Posteriors of latents, one draw of each, and their divergences from N(0, I) by latent, each (…, B, Q)."""

    q: DiagonalLatent | GaussianLatent
    z: Tensor
    nats: Tensor

    @classmethod
    def of(cls, q: DiagonalLatent | GaussianLatent) -> "Said":
        """Drawn from torch's generator."""
        return cls(q, q.draw(torch.randn(q.mean.shape).to(q.mean)), q.divergence())

    def __getitem__(self, number: int) -> "Said":
        """Of several, one."""
        return Said(self.q[number], self.z[number], self.nats[number])


@dataclass(frozen=True, slots=True)
class Reading:
    """Latents (M, B, Q) from which the modalities are reconstructed, and the rows in which that counts (M, B)."""

    kind: str
    z: Tensor
    counts: Tensor


def divergence(name: str, said: Said, place: slice, times: Tensor, objects: int | None) -> dict[str, Term]:
    """KL of one block from the prior, as often as it counts for each object (B,); nothing of an empty block.

    Arguments:
        name: Of the term.
        said: Of all latents, (B, Q).
        place: Where the block stands.
        times: How many bounds of each object have it.
        objects: Size of the training table, to give the KL's three parts; None for their sum.
    """
    if place.start == place.stop:
        return {}
    if objects is None:
        value = said.nats[:, place].sum(-1) * times
        return {f"kl/{name}": PerObject(value, torch.ones_like(times, dtype=torch.bool))}
    rows = times > 0
    if not bool(rows.any()):
        return {f"kl/{part}_{name}": Batch(said.z.new_zeros(())) for part in Parts._fields}
    mean, std, z = (array[rows][:, place] for array in (said.q.mean, said.q.std, said.z))
    parts = kl_parts(z, DiagonalLatent(mean, std), objects)
    return {f"kl/{part}_{name}": Batch(value * times.mean()) for part, value in parts._asdict().items()}


def misfits(
    views: Mapping[str, View], context: Observations, readings: Sequence[Reading], *, lots: bool
) -> dict[str, Term]:
    """-E log p of the cells of every modality in each of its bounds.

    By lots each row of a modality is decoded in one of its K bounds, drawn from torch's generator, where it counts K
    times. In expectation that is the sum of all, and so is its gradient, for one pass of the decoders instead of K.

    Arguments:
        views: What the modalities make of latents.
        context: Their cells.
        readings: The bounds.
        lots: Whether to draw one bound for each row.
    """
    counts = torch.stack([one.counts for one in readings])  # (K, M, B)
    z = torch.stack([one.z for one in readings])
    weight = counts.to(z)
    if lots:
        order = counts.cumsum(0)
        # one random number for the batch, whose rows are evenly spaced from it: bounds get the same share of them
        u = (torch.rand(len(views), 1) + torch.arange(z.shape[2]) / z.shape[2]).to(z) % 1
        drawn = (counts & (order == (u * order[-1]).floor() + 1)).to(z)
        z, weight = (drawn[..., None] * z).sum(0, keepdim=True), order[-1] * drawn
    values = []
    for number, (name, view) in enumerate(views.items()):
        f = view.decoder(z[:, number].flatten(0, 1).index_select(-1, view.columns.to(z.device)))
        each = f.unflatten(0, z.shape[::2][:2])
        values.append(view.likelihood.expected(flat(context.parts[name]), each, torch.zeros_like(each)).sum(-1))
    misfit = -weight * torch.stack(values, 1)
    everyone = torch.ones_like(counts[0, 0])
    return {
        f"{one.kind}/{name}": PerObject(value, everyone)
        for one, by_name in zip(readings, misfit, strict=True)
        for name, value in zip(views, by_name, strict=True)
    }
