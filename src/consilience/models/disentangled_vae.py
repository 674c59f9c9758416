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
most: a shared factor that two modalities each keep for themselves is independent of what is left to the shared block.

Images may have a physics decoder (``blocks/physics.py``): parameters of a disc, a block that every encoder reads and
the image's decoder uses. What the image says of them learns from the disc alone, by a bound of its own (``physics``,
``kl/physics_m``), and all else takes them as given; what others say of them learns in the bound "cross".

References:
    | Private-shared disentangled multimodal VAE for learning of latent representations (Lee & Pavlovic, 2021)
    | CLUB: a contrastive log-ratio upper bound of mutual information (Cheng et al., 2020)
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from consilience.blocks.disc_fit import DiscFit
from consilience.blocks.encoders import Architecture, FactorEncoder, Form, Kind
from consilience.blocks.fusion import (
    AbstractExperts,
    DiagonalExperts,
    FullExperts,
    Fusion,
    one_set,
    sets_of_experts,
    some_others,
)
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.physics import Disc, PhysicsDecoder, Profile
from consilience.blocks.posteriors import DiagonalLatent, GaussianLatent, MixtureLatent
from consilience.data.masking import HidePatterns, Policy
from consilience.data.observations import Observations
from consilience.data.scaling import Scaler
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Group, PerObject, Term, slot
from consilience.models.bounds import Reading, Said, View, divergence, misfits
from consilience.models.discs import disc_start, refined_discs, settle_discs
from consilience.models.latent import LatentConditional, flat
from consilience.models.layout import Layout
from consilience.models.network_start import network_start, placed
from consilience.models.separation import Separation

__all__ = ["DisentangledVAE"]

Likelihood = Literal["gaussian", "student", "poisson", "negative-binomial", "bernoulli", "categorical"]
Bound = Literal["joint", "self", "cross"]
QUICK = 10.0  # of the learning rate: a step of Adam moves the logarithm of a noise by no more than its rate
PSEUDO = 10  # rows of N(0, 1) beside those at hand when the population is learned
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
    quiet: float = Field(default=-5.0, le=0)  # log precision of what encoders say of private latents at first
    bounds: tuple[Bound, ...] = Field(default=("joint", "self", "cross"), min_length=1)  # that are maximised together
    club: bool = False  # keep every two blocks apart: terms mi and fit
    physics: dict[str, Profile] = {}  # images that a disc explains, and a network what it leaves
    parts: bool = False  # every kl as three terms: index (information), total (correlation), each (dimension's KL)

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (*self.private, *self.likelihoods, *self.networks, *self.physics):
            schema[name]
        for name in self.physics:
            self._check_physics(schema[name])
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

    def _check_physics(self, spec: ModalitySpec) -> None:
        likelihood = self.likelihoods.get(spec.name, "gaussian")
        image = spec.kind == "real" and spec.scaling != "log" and len(spec.shape) in (2, 3)
        if not image or likelihood != "gaussian":
            raise SchemaError(
                f"Expected a real image (H, W) or (C, H, W) and Gaussian noise for the physics of "
                f"'{spec.name}'; got kind {spec.kind!r}, scale {spec.scaling!r}, shape {spec.shape} and {likelihood!r}."
            )
        if "self" not in self.bounds or self.posterior == "full" or self.fusion != "product":
            raise SchemaError(
                f"Expected the bound 'self', the diagonal posterior and fusion 'product' for physics; got "
                f"{list(self.bounds)}, {self.posterior!r} and {self.fusion!r}. Change them, or drop physics."
            )


class _Module(AbstractModel):
    capabilities: frozenset[str] = frozenset({"density", "latent", "generate", "limits"})
    heard: Tensor  # 1 for latents that encoders say anything of, else 0, (Q,)
    origin: Tensor  # mean of each latent in the population, (Q,)
    spread: Tensor  # its standard deviation there, (Q,)

    def __init__(self, config: DisentangledVAE, schema: Schema, objects: int) -> None:
        super().__init__()
        self.config, self.schema, self.objects = config, schema, objects
        self.layout = Layout.of(schema, shared=config.shared, private=config.private, physics=config.physics)
        self.blocks, self.size, self.common = self.layout.blocks, self.layout.size, self.layout.common
        self.places = self.layout.places()
        self.read = {name: self.layout.read(name) for name in schema.names}
        self.used = {name: self.layout.used(name) for name in schema.names}
        encoders, decoders, likelihoods, discs, fits = {}, {}, {}, {}, {}
        for spec in schema.modalities:
            own, key, full = config.private.get(spec.name, 0), slot(spec.name), config.posterior == "full"
            likelihood = build_likelihood(config.likelihoods.get(spec.name), spec)
            kind, latents = config.networks.get(spec.name, "dense"), config.shared + own
            nets = Architecture(kind, spec.shape, likelihood.functions, config.hidden, config.channels)
            encoders[key] = FactorEncoder(
                nets, self.common + own, form=config.experts, full=full, private=0 if full else own, quiet=config.quiet
            )
            if profile := config.physics.get(spec.name):
                decoders[key] = PhysicsDecoder(latents, nets, profile, asinh=spec.scaling == "asinh")
                discs[key] = build_likelihood(config.likelihoods.get(spec.name), spec)
                fits[key] = DiscFit()
            else:
                decoders[key] = nets.decoder(latents)
            likelihoods[key] = likelihood
        self.encoders, self.decoders = nn.ModuleDict(encoders), nn.ModuleDict(decoders)
        self.likelihoods, self.discs, self.fits = nn.ModuleDict(likelihoods), nn.ModuleDict(discs), nn.ModuleDict(fits)
        self.register_buffer("heard", torch.ones(self.size))
        self.register_buffer("origin", torch.zeros(self.size))
        self.register_buffer("spread", torch.ones(self.size))
        # what is shared may tell of a disc, and one disc of another
        pairs = [pair for pair in combinations(self.blocks, 2) if pair[1].startswith("private_")]
        of_discs = frozenset(f"physics_{name}" for name in config.physics)
        self.club = Separation(self.blocks, pairs if config.club else [], fixed=of_discs, hidden=config.hidden)

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll, self, cross and physics of modalities; kl of the blocks, and of each self and cross bound; mi and fit.

        All of what the context shows, so that they are bounds of the density of an incomplete row.
        """
        experts, seen = self.experts(context)
        everyone, places, names = torch.ones_like(seen[0]), self.places, self.schema.names
        often, shared = everyone.to(experts.shift), places.get("shared", slice(0, 0))
        objects = self.objects if self.config.parts else None
        found: dict[str, Term] = {}
        readings: list[Reading] = []
        alone = Said.of(experts.each())
        if "joint" in self.config.bounds:
            said = self._joint(experts, seen)
            readings.append(Reading("nll", self._with_discs(said.z, said.z).expand_as(alone.z), torch.ones_like(seen)))
            found |= divergence("shared", said, shared, often, objects)
            by_name = dict(zip(names, seen, strict=True))
            rows = {block: by_name.get(block.partition("_")[2], seen.any(0)) for block in self.blocks}
            found |= self.club.terms(said.z, places, rows)
        if "self" in self.config.bounds:
            readings.append(Reading("self", self._with_discs(alone.z, alone.z), torch.ones_like(seen)))
        if crosses := "cross" in self.config.bounds and self.common > 0 and len(seen) > 1:
            others = some_others(seen)
            guess = Said.of(experts.product(others))
            there = seen & others.any(1)
            readings.append(Reading("cross", self._joined(guess.z, alone.z), there))
        counts = torch.stack([one.counts for one in readings]).to(often).sum(0)  # bounds with private latents
        for number, name in enumerate(names):
            own, disc = alone[number], f"physics_{name}"
            if "self" in self.config.bounds:
                found |= divergence(f"self_{name}", own, shared, often, objects)
            if disc in places:
                found |= self._disc(name, own.q, own.z, context)
            if crosses:
                times = there[number].to(often)
                found |= divergence(f"cross_{name}", guess[number], shared, times, objects)
                if disc in places:
                    found |= divergence(f"cross_{disc}", guess[number], places[disc], times, objects)
            if f"private_{name}" in places:
                found |= divergence(f"private_{name}", own, places[f"private_{name}"], counts[number], objects)
        return found | misfits(self.views(), context, readings, lots=self.training and torch.is_grad_enabled())

    def _joint(self, experts: AbstractExperts, seen: Tensor) -> Said:
        """The posterior given all modalities: of a mixture's sets one for each object."""
        whole = Said.of(self.heeded(experts, seen).product(seen))
        if self.config.fusion == "product":
            return whole
        one = Said.of(experts.product(one_set(self.config.fusion, seen)))
        return replace(one, z=self._joined(one.z, whole.z))

    def _joined(self, common: Tensor, own: Tensor) -> Tensor:
        """Latents that every encoder reads from one draw, private ones from another."""
        return torch.cat([common[..., : self.common], own[..., self.common :]], -1)

    def completed(self, z: Tensor, q: DiagonalLatent | GaussianLatent) -> Tensor:
        """Draws with what q says of discs, which they do not move."""
        return self._with_discs(z, Said.of(q).z)

    def kept(self, rows: Observations) -> Tensor:
        """The bounds of discs, which networks that are brought near something else must not forget."""
        value = torch.zeros(())
        for name in self.config.physics:
            alone = rows.select(name)
            experts, seen = self.experts(alone)
            own = Said.of(experts.product(seen))
            terms = self._disc(name, own.q, own.z, alone).values()
            value = value + torch.stack([term.value.mean() for term in terms]).sum()
        return value

    def _with_discs(self, z: Tensor, other: Tensor) -> Tensor:
        """Draws with the parameters of discs from others, which nothing but the discs moves."""
        if not self.config.physics:
            return z
        shared = self.config.shared
        return torch.cat([z[..., :shared], other[..., shared : self.common].detach(), z[..., self.common :]], -1)

    def _disc(self, name: str, q: DiagonalLatent | GaussianLatent, z: Tensor, context: Observations) -> dict[str, Term]:
        """The bound of a modality that is nothing but its disc."""
        columns, likelihood = self.layout.some(f"physics_{name}").to(z.device), self.discs[slot(name)]
        f = self.discs_of()[name](z[:, columns])
        value = likelihood.expected(flat(context.parts[name]), f, torch.zeros_like(f)).sum(-1)  # type: ignore[operator]
        values = {f"physics/{name}": -value, f"kl/physics_{name}": q.divergence()[:, columns].sum(-1)}
        everyone = torch.ones(len(z), dtype=torch.bool, device=z.device)
        return {term: PerObject(value, everyone) for term, value in values.items()}

    def discs_of(self) -> Mapping[str, Disc]:
        """The disc of every image that has one."""
        return {name: self.decoders[slot(name)].disc for name in self.config.physics}  # type: ignore[misc]

    @torch.no_grad()
    def condition(self, context: Observations) -> LatentConditional:
        """The posterior of the latents of any subset of cells, by one pass of the encoders; discs then step uphill."""
        columns, (experts, seen) = self.layout.columns(), self.experts(context)
        experts = self.heeded(experts, seen)
        q = self.posterior(experts, seen)
        if not self.config.physics:
            return LatentConditional(self.views(), None, lambda: q, columns)
        return LatentConditional(self.views(), q, lambda: refined_discs(self, q, experts, seen, context), columns)

    @torch.no_grad()
    def posterior(self, experts: AbstractExperts, seen: Tensor) -> DiagonalLatent | GaussianLatent | MixtureLatent:
        if self.config.posterior == "diagonal":
            read = self._read_in(seen)
            experts = replace(
                experts,
                shift=experts.shift * self.heard,
                precision=experts.precision * self.heard,
                prior_mean=torch.where(read, 0.0, self.origin),
                prior_precision=torch.where(read, 1.0, self.spread**-2),
            )
        if self.config.fusion == "product":
            return experts.product(seen)
        members, weight = sets_of_experts(self.config.fusion, seen)
        whole = experts.product(seen)
        each = [experts.product(chosen) for chosen in members]
        means, stds = (
            torch.stack([self._joined(a, b) for a in some])
            for some, b in (([q.mean for q in each], whole.mean), ([q.std for q in each], whole.std))
        )
        return MixtureLatent(weight.to(means), means, stds)

    def in_units(self, scaler: Scaler) -> None:
        for name, disc in self.discs_of().items():
            disc.in_units(scaler.transforms[name])

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Networks begin at the means; in small tables near a factor analysis (``network_start``); discs first."""
        for name, part in target.parts.items():
            self._likelihood(name).refuse_limits(name, part)
        disc_start(self, target)
        network_start(self, target, shared=self.config.shared)

    @torch.no_grad()
    def settle(self, rows: Observations) -> None:
        """Silence latents of which encoders know next to nothing, and learn how the others are spread.

        Means of the former are small, yet tell a probe all. Where divergences count for less than once, the latter are
        not N(0, 1) in the population: what no encoder reads in a row is drawn from the moments that they have there.
        """
        self.heard.fill_(1.0)
        if self.config.posterior == "diagonal":
            experts, seen = self.experts(rows)
            q, read = self.posterior(self.heeded(experts, seen), seen), self._read_in(seen)
            between, within = q.mean.var(0, correction=0), q.std.square().mean(0)
            self.heard.copy_(between >= LEAST * (between + within))
            counts = read.to(q.mean) * self.heard
            counts[:, self.layout.some(*(f"physics_{name}" for name in self.config.physics))] = 0.0
            total = counts.sum(0) + PSEUDO
            self.origin.copy_((counts * q.mean).sum(0) / total)
            second = (counts * (q.std.square() + (q.mean - self.origin).square())).sum(0)
            self.spread.copy_(((second + PSEUDO) / total).sqrt())
        settle_discs(self, rows)

    def _read_in(self, seen: Tensor) -> Tensor:
        """Which latents of each row any encoder reads, (B, Q); those of discs, which have a population, always."""
        by_name, found = dict(zip(self.schema.names, seen, strict=True)), []
        for block, spec in self.blocks.items():
            kind, _, name = block.partition("_")
            rows = {"private": by_name.get(name), "shared": seen.any(0)}.get(kind)
            found.append((torch.ones_like(seen[0]) if rows is None else rows)[:, None].expand(-1, spec.size))
        return torch.cat(found, -1)

    def population(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {block: (self.origin[place], self.spread[place]) for block, place in self.places.items()}

    def groups(self) -> tuple[Group, ...]:
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            found.setdefault(name.split(".")[0], {})[name] = parameter
        quick = ("likelihoods", "discs")
        return tuple(
            Group(kind, some, QUICK if kind in quick else 1.0, decays=kind in ("encoders", "decoders"))
            for kind, some in found.items()
        )

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return readable | producible <= set(self.schema.names) and bool(producible)

    def experts(self, context: Observations) -> tuple[AbstractExperts, Tensor]:
        """What every modality says of all latents, and which of them saw anything, (M, B)."""
        shifts, precisions, seen = [], [], []
        for name, part in context.parts.items():
            cells, columns = flat(part), self.read[name].to(part.value.device)
            value, known = self._likelihood(name).pseudo(cells)
            wide = cells.seen.repeat_interleave(self._likelihood(name).functions, -1)
            shift, precision = self.encoders[slot(name)](value, known, wide)
            shifts.append(placed(shift, columns, self.size))
            precisions.append(placed(precision, columns, self.size))
            seen.append(cells.seen.any(-1))
        kind = FullExperts if self.config.posterior == "full" else DiagonalExperts
        return kind(torch.stack(shifts), torch.stack(precisions), self.config.experts == "plain"), torch.stack(seen)

    def heeded(self, experts: AbstractExperts, seen: Tensor) -> AbstractExperts:
        """Experts who say nothing of the disc of an image that is seen, but for its own."""
        for name in self.config.physics:
            number, said = self.schema.names.index(name), torch.ones_like(experts.shift)
            said[:, :, self.layout.some(f"physics_{name}")] = (~seen[number]).to(said)[:, None]
            said[number] = 1.0
            experts = replace(experts, shift=experts.shift * said, precision=experts.precision * said)
        return experts

    def views(self) -> dict[str, View]:
        """What every modality makes of the latents."""
        return {
            name: View(self.used[name], self.decoders[slot(name)], self._likelihood(name))
            for name in self.schema.names
        }

    def _likelihood(self, name: str) -> AbstractLikelihood:
        return self.likelihoods[slot(name)]  # type: ignore[return-value]
