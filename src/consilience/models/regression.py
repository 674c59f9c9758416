r"""Regression: what one modality is, given any of the others, by networks of their cells.

.. math::
    p(y \mid x) = p\Bigl(y \Bigm| g\bigl(\textstyle\sum_m \mathrm{seen}_m\, e_m(x^{(m)})\bigr)\Bigr)

Each modality's network e_m reads its seen cells as an encoder of :class:`DisentangledVAE` does; what was not seen adds
nothing. The baseline of every model of the joint distribution: it answers one question.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from consilience.blocks.encoders import Kind
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.networks import Perceptron
from consilience.blocks.noise import Noise
from consilience.data.masking import HidePatterns, Policy
from consilience.data.observations import Observations
from consilience.data.schema import Schema
from consilience.errors import SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Density, Group, PerObject, Term, known_method
from consilience.models.common_start import Look
from consilience.models.disentangled_vae import QUICK
from consilience.models.latent import flat
from consilience.models.readers import Readers

__all__ = ["Regression"]

Likelihood = Literal[
    "gaussian", "heteroscedastic", "student", "poisson", "negative-binomial", "bernoulli", "categorical"
]


class Regression(AbstractFamily):
    """Configuration of a regression of one modality on all others.

    Example:
        >>> Regression(target="labels").hidden
        128
    """

    family: Literal["Regression"] = "Regression"
    target: str = "labels"  # the modality that is predicted
    networks: dict[str, Kind] = {}  # of each other modality: dense by default, linear, conv
    hidden: int = Field(default=128, ge=1)  # width of dense layers
    channels: int = Field(default=16, ge=1)  # after the first convolution
    likelihood: Likelihood | None = None  # of the target: by its kind, heteroscedastic for real and positive numbers

    @property
    def default_policy(self) -> Policy | None:
        return HidePatterns()

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (self.target, *self.networks):
            schema[name]
        if self.target in self.networks:
            raise SchemaError(f"Expected networks of what is read; got one of the target '{self.target}'. Drop it.")
        if len(schema.names) < 2:
            raise SchemaError(f"Expected a modality besides '{self.target}'; got none. Add one to the table.")
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema)


class _Module(AbstractModel):
    capabilities: frozenset[str] = frozenset({"density", "limits"})

    def __init__(self, config: Regression, schema: Schema) -> None:
        super().__init__()
        self.config, self.blocks = config, {}
        read = [spec for spec in schema.modalities if spec.name != config.target]
        self.readers = Readers(read, config.networks, config.hidden, config.channels)
        spec = schema[config.target]
        # what is left to scatter depends on what was seen
        default = "heteroscedastic" if spec.kind in ("real", "positive") else None
        self.likelihood = build_likelihood(config.likelihood or default, spec)
        self.head = Perceptron(config.hidden, config.hidden, spec.size * self.likelihood.functions)

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll of the target, of rows that have some of it."""
        name = self.config.target
        cells = flat(target.parts[name])
        f = self.functions(context)
        value = -self.likelihood.expected(cells, f, torch.zeros_like(f)).sum(-1)
        return {f"nll/{name}": PerObject(value, cells.seen.any(-1))}

    @torch.no_grad()
    def condition(self, context: Observations) -> "_Prediction":
        """p(target | the other modalities)."""
        return _Prediction(self.config.target, self.likelihood, self.functions(context))

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Begin at the mean and the scatter of the target."""
        part = flat(target.parts[self.config.target])
        self.likelihood.refuse_limits(self.config.target, part)
        found = Look.of(self.likelihood, part).alone(0)
        self.head.begin(self.likelihood.start(found.offset, found.noise))

    def groups(self) -> tuple[Group, ...]:
        every = dict(self.named_parameters())
        noise = {name: every.pop(name) for name in list(every) if name.startswith("likelihood.")}
        return Group("networks", every, decays=True), *([Group("likelihood", noise, QUICK)] if noise else [])

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return producible == {self.config.target} and readable <= set(self.readers.inputs)

    def functions(self, context: Observations) -> Tensor:
        """Functions of the target's cells, (B, D · functions)."""
        return self.head(nn.functional.silu(self.readers(context)))


@dataclass(frozen=True)
class _Prediction:
    """p(target | x) through functions of its cells, (B, D · functions), that have no variance of their own."""

    target: str
    likelihood: AbstractLikelihood
    f: Tensor

    @torch.no_grad()
    def sample(self, targets: tuple[str, ...], noise: Noise, n: int, method: str = "default") -> dict[str, Tensor]:
        """Draws without measurement error, (n, B, D)."""
        known_method(method)
        f = self.f.expand(n, -1, -1)
        return {self.target: self.likelihood.draw(f, torch.zeros_like(f), noise, self.target)}

    def log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> Density:
        """Joint density of the seen cells, which are independent given x."""
        return Density(self.cell_log_prob(values, targets, noise, method)[self.target].sum(-1), "exact")

    @torch.no_grad()
    def cell_log_prob(
        self, values: Observations, targets: tuple[str, ...], noise: Noise, method: str = "default"
    ) -> dict[str, Tensor]:
        """Log density of each seen cell, (B, D)."""
        known_method(method)
        cells = flat(values.parts[self.target])
        return {self.target: self.likelihood.log_predictive(cells, self.f, torch.zeros_like(self.f))}
