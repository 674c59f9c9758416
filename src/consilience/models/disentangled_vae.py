r"""Disentangled multimodal variational autoencoder: shared latents s and latents p_m private to each modality.

.. math::
    s, p_m \sim N(0, I), \qquad x^{(m)} \mid s, p_m \sim p_m\bigl(x \mid g_m(s, p_m)\bigr), \qquad
    q(s, p \mid x) = q(s \mid x) \prod_m q(p_m \mid x^{(m)})

An encoder of each modality gives factors of s and of its own p_m; those of s are fused (``blocks/fusion.py``), so that
any modality may be missing. The objective is the sum of three kinds of bounds, in each of which p_m is read from x^(m)
itself: "joint", with s from all modalities; "self", with s from the modality that is reconstructed; and "cross", with s
from a random set of the others.

.. math::
    \sum_{c} \Bigl[ -E_{q_c(s)\, q(p_m \mid x^{(m)})} \log p(x^{(m)} \mid s, p_m) + KL(q_c(s) \| p(s)) +
    KL(q(p_m \mid x^{(m)}) \| p(p_m)) \Bigr]

CLUB keeps the blocks apart: vCLUB of draws of every pair of blocks is a term of its own (``mi``), whose conditional,
such as :math:`q_\theta(p_m \mid s)`, learns by maximum likelihood from detached draws (``fit``). Private blocks need it
most: a shared factor that each of two modalities keeps for itself is independent of what is left to the shared block.

References:
    | Private-shared disentangled multimodal VAE for learning of latent representations (Lee & Pavlovic, 2021)
    | CLUB: a contrastive log-ratio upper bound of mutual information (Cheng et al., 2020)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from consilience.blocks.encoders import Architecture, FactorEncoder, Form, Kind
from consilience.blocks.fusion import (
    AbstractExperts,
    DiagonalExperts,
    FullExperts,
    Fusion,
    sets_of_experts,
    some_others,
)
from consilience.blocks.information import ConditionalGaussian, Parts, kl_parts, vclub
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.posteriors import DiagonalLatent, GaussianLatent, MixtureLatent
from consilience.data.masking import HidePatterns, Policy
from consilience.data.observations import Observations
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Batch, Group, PerObject, Term, slot
from consilience.models.latent import LatentConditional, flat
from consilience.models.network_start import network_start, placed

__all__ = ["DisentangledVAE"]

Likelihood = Literal["gaussian", "student", "poisson", "negative-binomial", "bernoulli", "categorical"]
Bound = Literal["joint", "self", "cross"]
QUICK = 10.0  # of the learning rate: a step of Adam moves the logarithm of a noise by no more than its rate
LEAST = 0.05  # share of a latent's variance that cells must decide for it to be heard, as in ``Latent.used``


class DisentangledVAE(AbstractFamily):
    """Configuration of shared and private latents read and drawn by networks.

    Example:
        >>> DisentangledVAE(shared=2, private={"spectrum": 3}).fusion
        'product'
    """

    family: Literal["DisentangledVAE"] = "DisentangledVAE"
    shared: NonNegativeInt = 8  # latents that every modality reads
    private: dict[str, NonNegativeInt] = {}  # further latents that only this modality reads
    networks: dict[str, Kind] = {}  # of each modality's encoder and decoder: dense by default, linear, conv
    hidden: int = Field(default=128, ge=1)  # width of dense layers
    channels: int = Field(default=16, ge=1)  # after the first convolution
    likelihoods: dict[str, Likelihood] = {}  # by the kind of each modality
    fusion: Fusion = "product"  # of what the modalities say of the shared latents
    experts: Form = "likelihood"  # what they say: factors, posteriors, or factors to be multiplied without the prior
    posterior: Literal["diagonal", "full"] = "diagonal"  # full: experts know how latents depend on each other
    bounds: tuple[Bound, ...] = Field(default=("joint", "self", "cross"), min_length=1)  # that are maximised together
    club: bool = False  # keep every two blocks apart: terms mi and fit
    parts: bool = False  # every kl as three terms: index (information), total (correlation), each (dimension's KL)

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (*self.private, *self.likelihoods, *self.networks):
            schema[name]
        if self.shared + sum(self.private.values()) == 0:
            raise SchemaError("Expected at least one latent; got shared = 0 and none private. Raise shared.")
        for spec in schema.modalities:
            if self.shared + self.private.get(spec.name, 0) == 0:
                raise SchemaError(f"Expected latents that '{spec.name}' reads; got none. Raise shared or private.")
        if self.posterior == "full" and (self.fusion != "product" or self.experts != "likelihood"):
            raise SchemaError(
                f"Expected fusion 'product' of experts 'likelihood' with the full posterior; got {self.fusion!r} of "
                f"{self.experts!r}. Say posterior='diagonal'."
            )
        if self.parts and self.posterior == "full":
            raise SchemaError("Expected the diagonal posterior for parts; got full. Say posterior='diagonal'.")
        if self.club and (bool(self.shared) + sum(size > 0 for size in self.private.values()) < 2):
            raise SchemaError("Expected two blocks of latents at least for club; got one. Drop club.")
        if self.club and "joint" not in self.bounds:
            raise SchemaError(f"Expected the bound 'joint' for club; got {list(self.bounds)}. Add it.")
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema, total)


@dataclass(frozen=True, slots=True)
class _View:
    """One modality: the latents it reads, its decoder and its likelihood."""

    columns: Tensor
    decoder: nn.Module
    likelihood: AbstractLikelihood

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f at rows of its latents (R, Q_m), which has no variance of its own."""
        f = self.decoder(z)
        return f, torch.zeros_like(f)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Latents of a batch from which a modality is reconstructed, and the rows where that counts."""

    kind: str
    z: Tensor
    counts: Tensor


class _Module(AbstractModel):
    capabilities: ClassVar[frozenset[str]] = frozenset({"density", "latent", "generate", "limits"})
    heard: Tensor  # 1 for latents that encoders say anything of, else 0, (Q,)

    def __init__(self, config: DisentangledVAE, schema: Schema, objects: int) -> None:
        super().__init__()
        self.config, self.schema, self.objects = config, schema, objects
        shared = config.shared
        self.size = shared + sum(config.private.values())
        self.blocks = {"shared": ModalitySpec(name="shared", shape=(shared,))} if shared else {}
        columns: dict[str, Tensor] = {}
        encoders, decoders, likelihoods = {}, {}, {}
        begin = shared
        for spec in schema.modalities:
            own, key = config.private.get(spec.name, 0), slot(spec.name)
            if own:
                block = f"private_{spec.name}"
                self.blocks[block] = ModalitySpec(name=block, shape=(own,))
            columns[spec.name] = torch.tensor([*range(shared), *range(begin, begin + own)], dtype=torch.long)
            begin += own
            likelihood = build_likelihood(config.likelihoods.get(spec.name), spec)
            kind, full = config.networks.get(spec.name, "dense"), config.posterior == "full"
            nets = Architecture(kind, spec.shape, likelihood.functions, config.hidden, config.channels)
            encoders[key] = FactorEncoder(
                nets, shared + own, form=config.experts, full=full, quiet=0 if full else own
            )
            decoders[key] = nets.decoder(shared + own)
            likelihoods[key] = likelihood
        self.columns: Mapping[str, Tensor] = columns
        self.encoders, self.decoders = nn.ModuleDict(encoders), nn.ModuleDict(decoders)
        self.likelihoods = nn.ModuleDict(likelihoods)
        self.register_buffer("heard", torch.ones(self.size))
        every = combinations(self.blocks, 2) if config.club else ()
        self.pairs = {f"{one}_{other}": (one, other) for one, other in every}
        self.club = nn.ModuleDict(
            {
                slot(pair): ConditionalGaussian(self.blocks[one].size, self.blocks[other].size, config.hidden)
                for pair, (one, other) in self.pairs.items()
            }
        )

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll, self and cross of every modality; kl of the blocks, and of each self and cross bound; mi and fit.

        All of what the context shows, so that they are bounds of the density of an incomplete row.
        """
        experts, seen = self.experts(context)
        shared, everyone = torch.arange(self.config.shared), torch.ones_like(seen[0])
        columns = self.block_columns()
        found: dict[str, Term] = {}
        readings: dict[str, list[_Reading]] = {name: [] for name in context.parts}
        if "joint" in self.config.bounds:
            whole = experts.product(seen)
            q = experts.product(_one_set(self.config.fusion, seen)) if self.config.fusion != "product" else whole
            z = _drawn(whole) if q is whole else torch.cat([_drawn(q)[:, shared], _drawn(whole)[:, len(shared) :]], -1)
            for name in context.parts:
                readings[name].append(_Reading("nll", z, everyone))
            found |= self._divergence("shared", q, z, shared, everyone.to(z))
            found |= self._apart(z, seen)
        for number, name in enumerate(context.parts):
            own = torch.zeros_like(seen)
            own[number] = seen[number]
            single = experts.product(own)
            z = _drawn(single)
            bounds = everyone.to(z) * ("joint" in self.config.bounds)  # in which its private latents are drawn
            if "self" in self.config.bounds:
                readings[name].append(_Reading("self", z, everyone))
                bounds = bounds + 1
                found |= self._divergence(f"self_{name}", single, z, shared, everyone.to(z))
            if "cross" in self.config.bounds and len(shared) and len(seen) > 1:
                others = some_others(number, seen)
                there = seen[number] & others.any(0)
                q = experts.product(others)
                z = torch.cat([_drawn(q)[:, shared], _drawn(single)[:, len(shared) :]], -1)
                readings[name].append(_Reading("cross", z, there))
                bounds = bounds + there
                found |= self._divergence(f"cross_{name}", q, z, shared, there.to(z))
            if f"private_{name}" in columns:
                found |= self._divergence(f"private_{name}", single, z, columns[f"private_{name}"], bounds)
        for name, view in self.views().items():
            cells, several = flat(context.parts[name]), readings[name]
            f = view.decoder(torch.cat([one.z[:, view.columns.to(one.z.device)] for one in several]))
            for one, some in zip(several, f.chunk(len(several)), strict=True):
                value = view.likelihood.expected(cells, some, torch.zeros_like(some)).sum(-1)
                found[f"{one.kind}/{name}"] = PerObject(-torch.where(one.counts, value, 0.0), everyone)
        return found

    def _divergence(
        self, name: str, q: DiagonalLatent | GaussianLatent, z: Tensor, columns: Tensor, times: Tensor
    ) -> dict[str, Term]:
        """KL of some latents from the prior, as often as it counts for each object (B,), or its three parts."""
        if not len(columns):
            return {}
        if not self.config.parts:
            value = q.divergence()[:, columns].sum(-1) * times
            return {f"kl/{name}": PerObject(value, torch.ones_like(times, dtype=torch.bool))}
        rows = times > 0
        some = q.block(columns)
        assert isinstance(some, DiagonalLatent)
        if not bool(rows.any()):
            return {f"kl/{part}_{name}": Batch(z.new_zeros(())) for part in Parts._fields}
        parts = kl_parts(z[rows][:, columns], DiagonalLatent(some.mean[rows], some.std[rows]), self.objects)
        return {f"kl/{part}_{name}": Batch(value * times.mean()) for part, value in parts._asdict().items()}

    def _apart(self, z: Tensor, seen: Tensor) -> dict[str, Term]:
        """vCLUB of draws of every pair of blocks, of the rows in which both were seen, and what fits it."""
        found: dict[str, Term] = {}
        columns, rows = self.block_columns(), dict(zip(self.schema.names, seen, strict=True))
        for pair, (one, other) in self.pairs.items():
            x, y = (z[:, columns[block].to(z.device)] for block in (one, other))
            both = torch.stack([rows.get(block.removeprefix("private_"), seen.any(0)) for block in (one, other)]).all(0)
            q: ConditionalGaussian = self.club[slot(pair)]  # type: ignore[assignment]
            value = vclub(q, y[both], x[both]) if bool(both.any()) else z.new_zeros(())
            found[f"mi/{pair}"] = Batch(value)
            found[f"fit/{pair}"] = PerObject(-q.log_prob(y.detach(), x.detach()), both)
        return found

    @torch.no_grad()
    def condition(self, context: Observations) -> LatentConditional:
        """The posterior of the latents of any subset of cells, by one pass of the encoders."""
        return LatentConditional(self.views(), None, lambda: self._posterior(context), self.block_columns())

    @torch.no_grad()
    def _posterior(self, context: Observations) -> DiagonalLatent | GaussianLatent | MixtureLatent:
        experts, seen = self.experts(context)
        if self.config.posterior == "diagonal":
            experts = replace(experts, shift=experts.shift * self.heard, precision=experts.precision * self.heard)
        if self.config.fusion == "product":
            return experts.product(seen)
        members, weight = sets_of_experts(self.config.fusion, seen)
        shared, whole = self.config.shared, experts.product(seen)
        each = [experts.product(chosen) for chosen in members]
        means, stds = (
            torch.stack([torch.cat([a[:, :shared], b[:, shared:]], -1) for a in some])
            for some, b in (([q.mean for q in each], whole.mean), ([q.std for q in each], whole.std))
        )
        return MixtureLatent(weight.to(means), means, stds)

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Networks begin at the means; in small tables near a factor analysis (``network_start``)."""
        for name, part in target.parts.items():
            self._likelihood(name).refuse_limits(name, part)
        network_start(self, target, shared=self.config.shared)

    @torch.no_grad()
    def settle(self, rows: Observations) -> None:
        """Silence latents of which encoders know next to nothing: their means are small, but tell a probe all."""
        self.heard.fill_(1.0)
        if self.config.posterior == "diagonal":
            q = self._posterior(rows)
            between, within = q.mean.var(0, correction=0), q.std.square().mean(0)
            self.heard.copy_(between >= LEAST * (between + within))

    def groups(self) -> tuple[Group, ...]:
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            found.setdefault(name.split(".")[0], {})[name] = parameter
        return tuple(Group(kind, some, QUICK if kind == "likelihoods" else 1.0) for kind, some in found.items())

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return readable | producible <= set(self.schema.names) and bool(producible)

    def experts(self, context: Observations) -> tuple[AbstractExperts, Tensor]:
        """What every modality says of all latents, and which of them saw anything, (M, B)."""
        shifts, precisions, seen = [], [], []
        for name, part in context.parts.items():
            cells, columns = flat(part), self.columns[name].to(part.value.device)
            value, known = self._likelihood(name).pseudo(cells)
            wide = cells.seen.repeat_interleave(self._likelihood(name).functions, -1)
            shift, precision = self.encoders[slot(name)](value, known, wide)
            shifts.append(placed(shift, columns, self.size))
            precisions.append(placed(precision, columns, self.size))
            seen.append(cells.seen.any(-1))
        kind = FullExperts if self.config.posterior == "full" else DiagonalExperts
        plain = self.config.experts == "plain"
        return kind(torch.stack(shifts), torch.stack(precisions), plain), torch.stack(seen)

    def views(self) -> dict[str, _View]:
        """What every modality makes of the latents."""
        return {
            name: _View(columns, self.decoders[slot(name)], self._likelihood(name))
            for name, columns in self.columns.items()
        }

    def block_columns(self) -> dict[str, Tensor]:
        """Latents of each block."""
        found, begin = {}, 0
        for block, spec in self.blocks.items():
            found[block] = torch.arange(begin, begin + spec.size)
            begin += spec.size
        return found

    def _likelihood(self, name: str) -> AbstractLikelihood:
        return self.likelihoods[slot(name)]  # type: ignore[return-value]


def _drawn(q: DiagonalLatent | GaussianLatent) -> Tensor:
    """One draw (B, Q), from torch's generator."""
    return q.draw(torch.randn(1, *q.mean.shape).to(q.mean))[0]


def _one_set(fusion: Fusion, seen: Tensor) -> Tensor:
    """For each object one of the sets that the fusion averages, drawn by its weight, (M, B)."""
    members, weight = sets_of_experts(fusion, seen)
    edges = weight.cumsum(0)[:-1]
    which = (torch.rand(seen.shape[1]).to(edges) >= edges).sum(0)
    return members[which, :, torch.arange(seen.shape[1], device=seen.device)].mT
