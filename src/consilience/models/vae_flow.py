r"""Joint posteriors of labels by a conditional flow, from what autoencoders make of images and from other modalities.

.. math::
    p(y \mid x) = \prod_k p\bigl(y_k - \mu_k(h, y_{<k}) \bigm| h, y_{<k}\bigr), \qquad
    h = g\Bigl(\sum_m e_m(x^{(m)}) + \sum_i e_i(\bar z_i, \sigma_i)\Bigr)

Each modality's network e_m reads its seen cells, weighed by their error bars, as in :class:`Regression`. An image is
read by the encoder of a VAE first, and what counts is the mean and the standard deviation of its latents. Labels come
in blocks y_k, each given those before it: a network predicts their mean, a coupling flow (``blocks/flows.py``) the
residual. What was not seen adds nothing to h, labels that a row lacks are left out of its density.

Training has two phases: the autoencoders, by their bounds (``self``, ``kl``); then, of features that are computed once,
the flow (``nll``). With ``tuned`` all of it goes on together.

A label that exists only where it could be detected is p(y | x, detected): a binary modality ``detected``, predicted
beside it, says how probable that is.

References:
    From images to physics: probabilistic inference of galaxy parameters and emission lines via VAE-normalizing flows
    (arXiv 2511.12737)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from consilience.blocks.encoders import Kind
from consilience.blocks.flows import CouplingFlow, Univariate
from consilience.blocks.fusion import AbstractExperts
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.networks import Perceptron
from consilience.blocks.noise import Noise
from consilience.data.masking import HidePatterns, Policy
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import SchemaError
from consilience.models.base import (
    AbstractFamily,
    AbstractModel,
    Density,
    Group,
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

ROWS = 256  # that encoders read at once when features are computed for a table
THINNED = 0.25  # share of the rows that teach the density of some of their labels alone
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
    tuned: bool = False  # a third phase, in which the flow's gradient moves the autoencoders too

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    @property
    def phases(self) -> tuple[Phase, ...]:
        if not self.images:
            return (Phase(name="flow"),)
        flows = {f"nll/{name}": 0.0 for name in (self.target, self.detected) if name}
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
        images, digests = dict[str, nn.Module](), dict[str, nn.Module]()
        for name in config.images:
            network = config.networks.get(name, "dense")
            vae = VAE(latent_dim=config.latent_dim, network=network, hidden=config.hidden, channels=config.channels)
            images[slot(name)] = vae.build(schema.select([name]), total, seed)
            digests[slot(name)] = Perceptron(2 * config.latent_dim, config.hidden, config.hidden)
        self.images, self.digests = nn.ModuleDict(images), nn.ModuleDict(digests)
        read = [spec for spec in schema.modalities if spec.name not in {*produced, *config.images}]
        self.readers = Readers(read, config.networks, config.hidden, config.channels)
        self.blocks = {
            name: self._autoencoder(name).blocks["shared"].model_copy(update={"name": name}) for name in config.images
        }
        self.trunk = Perceptron(config.hidden, config.hidden, config.hidden)
        cells = schema[config.target].cell_names()
        chain = config.blocks or (tuple(cells),)
        self.order = [[cells.index(cell) for cell in block] for block in chain]
        known, branches = 0, []
        for block in chain:
            branches.append(_Branch(len(block), config.hidden + 2 * known, config))
            known += len(block)
        self.branches = nn.ModuleList(branches)
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
        h, name = self.features(context), self.config.target
        cells = flat(target.parts[name])
        seen = cells.seen
        if self.training and torch.is_grad_enabled():
            some = torch.rand(len(seen), 1) < THINNED
            seen = seen & ~(some & (torch.rand(seen.shape) < 0.5)).to(seen.device)
        found[f"nll/{name}"] = PerObject(-self.density(cells.value, h, seen), seen.any(-1))
        if name := self.config.detected:
            cells, f = flat(target.parts[name]), self.head(h)
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
        for name in self.config.images:
            self._autoencoder(name).settle(rows.select(name))

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

    def features(self, context: Observations) -> Tensor:
        """h of each object, (B, hidden)."""
        total = self.readers(context)
        for name in self.config.images:
            part = context.parts[name]
            if self._is_prepared(context, name):
                value = part.value
            else:
                with torch.set_grad_enabled(self.config.tuned and torch.is_grad_enabled()):
                    value = self._digest(context, name)
            read = self.digests[slot(name)](value)
            total = total + torch.where(part.seen.flatten(1).any(-1, keepdim=True), read, 0.0)
        return nn.functional.silu(self.trunk(nn.functional.silu(total)))

    def density(self, y: Tensor, h: Tensor, seen: Tensor) -> Tensor:
        """log p of the cells of y (B, D) that are seen, given h (B, hidden): (B,)."""
        y, total = torch.where(seen, y, 0.0), y.new_zeros(len(y))
        for columns, branch in zip(self.order, self.branches, strict=True):
            total = total + branch.log_prob(y[:, columns], h, seen[:, columns])  # type: ignore[operator]
            h = torch.cat([h, y[:, columns], seen[:, columns].to(h)], -1)
        return total

    def drawn(self, u: Tensor, h: Tensor) -> Tensor:
        """Labels (n, B, D) of standard normals of that shape."""
        h, found = h.expand(len(u), -1, -1), torch.empty_like(u)
        for columns, branch in zip(self.order, self.branches, strict=True):
            y = branch.drawn(u[..., columns], h)  # type: ignore[operator]
            found[..., columns] = y
            h = torch.cat([h, y, torch.ones_like(y)], -1)
        return found

    def latents(self, context: Observations) -> dict[str, LatentPosterior]:
        """What the autoencoders say of their latents."""
        found = {}
        for name in self.config.images:
            alone = self._autoencoder(name).condition(context.select(name))
            found[name] = alone.latent()["shared"]  # type: ignore[attr-defined]
        return found

    def _digest(self, context: Observations, name: str) -> Tensor:
        """Means and standard deviations of the latents of one image, (B, 2Q)."""
        experts, seen = cast(_Reads, self._autoencoder(name)).experts(context.select(name))
        q = experts.product(seen)
        return torch.cat([q.mean, q.std], -1)

    def _is_prepared(self, rows: Observations, name: str) -> bool:
        return rows.schema[name].axis == FEATURES

    def _autoencoder(self, name: str) -> AbstractModel:
        return self.images[slot(name)]  # type: ignore[return-value]


class _Branch(nn.Module):
    """p(y | c) of one block of D labels: a mean and the flow of the residual."""

    def __init__(self, cells: int, context: int, config: VAEFlow) -> None:
        super().__init__()
        self.mean = Perceptron(context, config.hidden, cells)
        self.flow = CouplingFlow(
            cells, context, layers=config.layers, hidden=config.hidden, univariate=config.univariate
        )

    def log_prob(self, y: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """Of the cells that are seen, (B,)."""
        return self.flow.log_prob(torch.where(seen, y - self.mean(context), 0.0), context, seen)

    def drawn(self, u: Tensor, context: Tensor) -> Tensor:
        """Labels of standard normals, (n, B, D)."""
        return self.mean(context) + self.flow.inverse(u, context)


@dataclass(frozen=True)
class _JointPosterior:
    """p(labels, detections | x) of a batch."""

    model: _Module
    context: Observations

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws (n, B, D)."""
        known_method(method)
        h, found = self.model.features(self.context), {}
        for name in targets:
            if name == self.model.config.target:
                size = self.model.schema[name].size
                found[name] = self.model.drawn(noise.normal(name, n, (size,)), h)
            else:
                f = self.model.head(h).expand(n, -1, -1)
                found[name] = self.model.likelihood.draw(f, torch.zeros_like(f), noise, name)
        return found

    @torch.no_grad()
    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the seen cells; labels and detections are independent given x."""
        known_method(method)
        h = self.model.features(self.context)
        total = h.new_zeros(len(h))
        for name in targets:
            cells = flat(values.parts[name])
            if name == self.model.config.target:
                total = total + self.model.density(cells.value, h, cells.seen)
            else:
                total = total + self._detections(cells, h).sum(-1)
        return Density(total, "exact")

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Log density of each seen cell, as the flow gives it for that cell alone, (B, D)."""
        known_method(method)
        h, found = self.model.features(self.context), {}
        for name in targets:
            cells = flat(values.parts[name])
            if name == self.model.config.target:
                one = torch.eye(cells.value.shape[-1], dtype=torch.bool, device=h.device)
                each = [self.model.density(cells.value, h, cells.seen & only) for only in one]
                found[name] = torch.stack(each, -1)
            else:
                found[name] = self._detections(cells, h)
        return found

    @torch.no_grad()
    def latent(self, method: str = "default") -> Mapping[str, LatentPosterior]:
        """The posterior of each image's latents, given that image."""
        known_method(method)
        return self.model.latents(self.context)

    def _detections(self, cells: Modality, h: Tensor) -> Tensor:
        f = self.model.head(h)
        return self.model.likelihood.log_predictive(cells, f, torch.zeros_like(f))
