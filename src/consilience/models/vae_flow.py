r"""Joint posteriors of labels by a conditional flow, from what autoencoders make of images and from other modalities.

.. math::
    p(y \mid x) = \prod_k p\bigl(y_k - \mu_k(h) - m_k(c_k) \bigm| c_k\bigr), \quad c_k = (g, \mu, y_{<k}), \quad
    h, g = \mathrm{trunk}\Bigl(\sum_m e_m(x^{(m)}) + \sum_i e_i(\bar z_i, \sigma_i)\Bigr)

Each modality's network e_m reads its seen cells, weighed by their error bars, as in :class:`Regression`. An image is
read by the encoder of a VAE first, and what counts is the mean and the standard deviation of its latents. h and g have
networks of their own: h is for the means of labels, by least squares, g for the rest of their density. Labels come in
blocks y_k, each given those before it, with a coupling flow for what the means leave; single labels have densities of
their own as well (``blocks/labels.py``). What was not seen adds nothing, labels that a row lacks are left out of its
density.

Training has two phases: the autoencoders, by their bounds (``self``, ``kl``); then, of features that are computed once,
the labels (``mean``, ``alone``, ``nll``). With ``tuned`` all of it goes on together.

A label that exists only where it could be detected is p(y | x, detected): a binary modality ``detected``, predicted
beside it, says how probable that is.

References:
    From images to physics: probabilistic inference of galaxy parameters and emission lines via VAE-normalizing flows
    (arXiv 2511.12737)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from consilience.blocks.encoders import Kind
from consilience.blocks.flows import Univariate
from consilience.blocks.fusion import AbstractExperts
from consilience.blocks.labels import LabelDensity
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.networks import Perceptron
from consilience.blocks.noise import Noise
from consilience.data.masking import HidePatterns, Policy
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import RequestError, SchemaError
from consilience.models.base import (
    AbstractFamily,
    AbstractModel,
    Conditional,
    Density,
    Group,
    HasDecoders,
    LatentPosterior,
    PerObject,
    Phase,
    Term,
    known_method,
    slot,
)
from consilience.models.disentangled_vae import QUICK
from consilience.models.latent import flat
from consilience.models.readers import Readers
from consilience.models.vae import VAE

__all__ = ["VAEFlow"]

LABELS = ("mean", "alone", "nll")  # terms of labels
ROWS = 256  # that encoders read at once when features are computed for a table
FEATURES = "what an autoencoder says"  # axis of what stands in for an image
TUNED = 0.2  # of the steps of the other phases


class VAEFlow(AbstractFamily):
    """Configuration of a joint density of labels given everything else.

    Example:
        >>> VAEFlow(blocks=[["log_mass", "redshift"], ["oh"]]).layers
        12
    """

    family: Literal["VAEFlow"] = "VAEFlow"
    target: str = "labels"  # real or positive numbers, the joint density of which is learned
    blocks: tuple[tuple[str, ...], ...] = ()  # names of its cells, each block given those before; one of all when empty
    detected: str | None = None  # a binary modality that is predicted beside
    images: tuple[str, ...] = ()  # modalities that an autoencoder reads first
    latent_dim: int = Field(default=32, ge=1)  # of each autoencoder
    networks: dict[str, Kind] = {}  # of what is read: dense by default, linear, conv
    hidden: int = Field(default=256, ge=1)  # width of dense layers, and size of h
    channels: int = Field(default=16, ge=1)  # after the first convolution
    layers: int = Field(default=12, ge=1)  # of each block's flow
    univariate: Univariate = "affine"  # functions of the flow: affine, spline
    tuned: bool = False  # a third phase, in which what labels say moves the autoencoders too

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    @property
    def phases(self) -> tuple[Phase, ...]:
        if not self.images:
            return (Phase(name="flow"),)
        flows = {f"{term}/{name}": 0.0 for name in (self.target, self.detected) for term in LABELS if name}
        first = Phase(name="images", groups=("images", "noise"), weights=flows)
        both = (first, Phase(name="flow", groups=("flow",), prepared=True))
        return (*both, Phase(name="tune", share=TUNED)) if self.tuned else both

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (self.target, *self.networks, *self.images, *([self.detected] if self.detected else [])):
            schema[name]
        self._check(schema)
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema, total, seed)

    def _check(self, schema: Schema) -> None:
        target, produced = schema[self.target], {self.target, self.detected}
        if target.kind not in ("real", "positive"):
            raise SchemaError(f"Expected real or positive numbers in '{self.target}' for a flow; got {target.kind}.")
        if self.detected and schema[self.detected].kind != "binary":
            raise SchemaError(f"Expected a binary modality '{self.detected}'; got {schema[self.detected].kind}.")
        if twice := sorted(produced & {*self.networks, *self.images}, key=str):
            raise SchemaError(f"Expected networks and images among what is read; got {twice[0]!r}. Drop it.")
        if not set(schema.names) - produced:
            raise SchemaError(f"Expected a modality besides '{self.target}'; got none. Add one to the table.")
        named = [cell for block in self.blocks for cell in block]
        if self.blocks and sorted(named) != sorted(target.cell_names()):
            raise SchemaError(
                f"Expected every cell of '{self.target}', {target.cell_names()}, in one of the blocks; got {named}."
            )


class _Reads(Protocol):
    """The part of an autoencoder that features need: what it says of its latents."""

    def experts(self, context: Observations) -> tuple[AbstractExperts, Tensor]: ...


class _Module(AbstractModel):
    def __init__(self, config: VAEFlow, schema: Schema, total: int, seed: int) -> None:
        super().__init__()
        self.config, self.schema = config, schema
        self.capabilities = frozenset({"density", "latent"} if config.images else {"density"})
        produced = {config.target, config.detected}
        images = dict[str, nn.Module]()
        for name in config.images:
            network = config.networks.get(name, "dense")
            vae = VAE(latent_dim=config.latent_dim, network=network, hidden=config.hidden, channels=config.channels)
            images[slot(name)] = vae.build(schema.select([name]), total, seed)
        self.images = nn.ModuleDict(images)
        self.blocks = {
            name: self._autoencoder(name).blocks["shared"].model_copy(update={"name": name}) for name in config.images
        }
        read = [spec for spec in schema.modalities if spec.name not in {*produced, *config.images}]
        # of the labels' means, and of the rest of their density
        self.trunk, self.shape_trunk = _Trunk(config, read), _Trunk(config, read)
        cells = schema[config.target].cell_names()
        self.labels = LabelDensity(
            [[cells.index(cell) for cell in block] for block in config.blocks or (tuple(cells),)],
            config.hidden,
            layers=config.layers,
            hidden=config.hidden,
            univariate=config.univariate,
        )
        if config.detected:
            spec = schema[config.detected]
            self.likelihood = build_likelihood(None, spec)
            self.head = Perceptron(config.hidden, config.hidden, spec.size)

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll of the labels that rows have and of detections; bounds of images, unless they are features already."""
        found: dict[str, Term] = {}
        for name in self.config.images:
            if not self._is_prepared(context, name):
                bound = self._autoencoder(name).terms(context.select(name), target.select(name))
                found |= {f"self/{name}": bound[f"nll/{name}"], f"kl/{name}": bound["kl/shared"]}
        h, g = self.features(context)
        name, cells = self.config.target, flat(target.parts[self.config.target])
        for term, value in self.labels.losses(cells.value, cells.seen, h, g).items():
            found[f"{term}/{name}"] = PerObject(value, cells.seen.any(-1))
        if name := self.config.detected:
            cells, f = flat(target.parts[name]), self.head(g)
            value = -self.likelihood.expected(cells, f, torch.zeros_like(f)).sum(-1)
            found[f"nll/{name}"] = PerObject(value, cells.seen.any(-1))
        return found

    @torch.no_grad()
    def condition(self, context: Observations) -> "_JointPosterior":
        """p(labels, detections | everything else)."""
        return _JointPosterior(self, context)

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Autoencoders begin as such; predictions at the labels' mean.

        Raises:
            SchemaError: limits or error bars of labels, for which a flow has no place.
        """
        name = self.config.target
        part = target.parts[name]
        if bool((part.state > State.MEASURED).any()):
            raise SchemaError(f"Expected no limits in '{name}' for a flow; got some. Leave them unseen.")
        if part.sigma is not None and bool(part.sigma[part.seen].any()):
            raise SchemaError(
                f"Expected no error bars of '{name}' for a flow, which draws labels as the table has them, errors "
                "included; got some. Leave them out of the schema, or fit Regression, which takes them into account."
            )
        for image in self.config.images:
            self._autoencoder(image).start(target.select(image))

    @torch.no_grad()
    def prepare(self, rows: Observations) -> Observations:
        """The same rows with features in place of images."""
        specs, parts = {}, dict(rows.parts)
        for name in self.config.images:
            if self._is_prepared(rows, name):
                continue
            alone = rows.select(name)
            pieces = [self._digest(alone[first : first + ROWS], name) for first in range(0, len(rows), ROWS)]
            value = torch.cat(pieces)
            seen = rows.parts[name].seen.flatten(1).any(-1, keepdim=True).expand_as(value)
            parts[name] = Modality(value, torch.where(seen, int(State.MEASURED), int(State.UNSEEN)).to(torch.int8))
            specs[name] = ModalitySpec(name=name, shape=(2 * self.config.latent_dim,), axis=FEATURES)
        modalities = tuple(specs.get(spec.name, spec) for spec in rows.schema.modalities)
        return replace(rows, schema=rows.schema.model_copy(update={"modalities": modalities}), parts=parts)

    @torch.no_grad()
    def settle(self, rows: Observations) -> None:
        """Autoencoders as such; labels learn how much wider new objects scatter than those of the training did."""
        for name in self.config.images:
            self._autoencoder(name).settle(rows.select(name))
        pieces = [self.features(rows[first : first + ROWS]) for first in range(0, len(rows), ROWS)]
        h, g = (torch.cat(part) for part in zip(*pieces, strict=True))
        cells = flat(rows.parts[self.config.target])
        self.labels.settle(cells.value, cells.seen, h, g)

    def population(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self._autoencoder(name).population()["shared"] for name in self.config.images}

    def groups(self) -> tuple[Group, ...]:
        noise, images, flow = dict[str, nn.Parameter](), dict[str, nn.Parameter](), dict[str, nn.Parameter]()
        for name, parameter in self.named_parameters():
            kind = noise if ".likelihoods." in name else images if name.startswith("images.") else flow
            kind[name] = parameter
        both = (Group("images", images, decays=True), Group("noise", noise, QUICK)) if images else ()
        return *both, Group("flow", flow, decays=True)

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        produced = {self.config.target, self.config.detected}
        # labels and detections are independent given what is read: either may be known when the other is asked for
        return bool(producible) and producible <= produced and not readable & producible

    def features(self, context: Observations) -> tuple[Tensor, Tensor]:
        """Of each object h, for the labels' means, and g, for the rest of their density, (B, hidden)."""
        digests = {}
        for name in self.config.images:
            if self._is_prepared(context, name):
                digests[name] = context.parts[name].value
            else:
                with torch.set_grad_enabled(self.config.tuned and torch.is_grad_enabled()):
                    digests[name] = self._digest(context, name)
        return self.trunk(context, digests), self.shape_trunk(context, digests)

    def latents(self, context: Observations) -> dict[str, LatentPosterior]:
        """What the autoencoders say of their latents."""
        found = {}
        for name in self.config.images:
            alone = self._autoencoder(name).condition(context.select(name))
            found[name] = alone.latent()["shared"]  # type: ignore[attr-defined]
        return found

    def pictured(self, context: Observations, name: str, latents: Mapping[str, Tensor]) -> Conditional:
        """The conditional of an image whose latents are set, where they are among these."""
        alone = self._autoencoder(name).condition(context.select(name))
        assert isinstance(alone, HasDecoders)
        return alone.at({"shared": latents[name]} if name in latents else {})

    def _digest(self, context: Observations, name: str) -> Tensor:
        """Means and standard deviations of the latents of one image, (B, 2Q)."""
        experts, seen = cast(_Reads, self._autoencoder(name)).experts(context.select(name))
        q = experts.product(seen)
        return torch.cat([q.mean, q.std], -1)

    def _is_prepared(self, rows: Observations, name: str) -> bool:
        return rows.schema[name].axis == FEATURES

    def _autoencoder(self, name: str) -> AbstractModel:
        return self.images[slot(name)]  # type: ignore[return-value]


class _Trunk(nn.Module):
    """What all of a row says together: silu of layers above the sum of what each modality says, (B, hidden)."""

    def __init__(self, config: VAEFlow, read: Sequence[ModalitySpec]) -> None:
        super().__init__()
        size = config.hidden
        self.readers = Readers(read, config.networks, size, config.channels)
        self.digests = nn.ModuleDict(
            {slot(name): Perceptron(2 * config.latent_dim, size, size) for name in config.images}
        )
        self.above = Perceptron(size, size, size)

    def forward(self, context: Observations, digests: Mapping[str, Tensor]) -> Tensor:
        total = self.readers(context)
        for name, value in digests.items():
            seen = context.parts[name].seen.flatten(1).any(-1, keepdim=True)
            total = total + torch.where(seen, self.digests[slot(name)](value), 0.0)
        return nn.functional.silu(self.above(nn.functional.silu(total)))


@dataclass(frozen=True)
class _JointPosterior:
    """p(labels, detections | x) of a batch."""

    model: _Module
    context: Observations

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws (n, B, D)."""
        known_method(method)
        found = {}
        for name in targets:
            size = (self.model.schema[name].size,)
            if name == self.model.config.target:
                h, g = self.model.features(self.context)
                found[name] = self.model.labels.drawn(noise.normal(name, n, size), h, g)
            else:
                f = self._of_detection().expand(n, -1, -1)
                found[name] = self.model.likelihood.draw(f, torch.zeros_like(f), noise, name)
        return found

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the seen cells; labels and detections are independent given x."""
        known_method(method)
        total = next(self.model.parameters()).new_zeros(len(self.context))
        for name in targets:
            cells = flat(values.parts[name])
            if name == self.model.config.target:
                h, g = self.model.features(self.context)
                total = total + self.model.labels.log_prob(cells.value, cells.seen, h, g)
            else:
                total = total + self._detections(cells).sum(-1)
        return Density(total, "exact")

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Log density of each cell alone, of rows that have it, (B, D)."""
        known_method(method)
        found = {}
        for name in targets:
            cells = flat(values.parts[name])
            if name == self.model.config.target:
                h, g = self.model.features(self.context)
                value = self.model.labels.alone(cells.value, h, g)
                found[name] = torch.where(cells.seen, value, 0.0)
            else:
                found[name] = self._detections(cells)
        return found

    @torch.no_grad()
    def latent(self, method: str = "default") -> Mapping[str, LatentPosterior]:
        """The posterior of each image's latents, given that image."""
        known_method(method)
        return self.model.latents(self.context)

    def at(self, latents: Mapping[str, Tensor]) -> "_Pictures":
        """Images p(x | z) with these latents; the others at their posterior means."""
        return _Pictures({name: self.model.pictured(self.context, name, latents) for name in self.model.config.images})

    def _of_detection(self) -> Tensor:
        _, g = self.model.features(self.context)
        return self.model.head(g)

    def _detections(self, cells: Modality) -> Tensor:
        f = self._of_detection()
        return self.model.likelihood.log_predictive(cells, f, torch.zeros_like(f))


@dataclass(frozen=True)
class _Pictures:
    """Images of a batch, by their autoencoders."""

    parts: Mapping[str, Conditional]

    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws (n, B, D).

        Raises:
            RequestError: a target that is no image.
        """
        if other := sorted({*targets} - {*self.parts}):
            raise RequestError(f"Expected images among {sorted(self.parts)}; got {other[0]!r}. Sample it from images.")
        return {name: self.parts[name].sample((name,), noise, n, method)[name] for name in targets}
