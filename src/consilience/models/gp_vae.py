r"""Gaussian-process factor analysis of several modalities over time: shared and private dynamics.

.. math::
    z_k \sim GP(0, \rho_k k_{\ell_k}), \qquad f^{(m)}_t = C^{(m)} z_{t} + d^{(m)}, \qquad
    x^{(m)}_{td} \mid f \sim p_m\bigl(x \mid f^{(m)}_{td},\ s_{td}\bigr)

Every modality reads the shared latents and its own private ones. Latents are inferred in Fourier coordinates
(``blocks/fourier.py``). Gaussian observations have exact sites, so that q is the posterior and the bound the evidence;
the sites of counts and flags are moved to the optimum of the bound by natural-gradient steps, per trial.

.. math::
    \log p(x) \ge \sum_{m,t,d\ \mathrm{seen}} E_{q(z_t)} \log p(x^{(m)}_{td} \mid f) - KL(q(z) \| p(z))

References:
    | Multi-modal Gaussian process variational autoencoders (Gondur et al., 2024) | https://arxiv.org/abs/2310.03111
    | Gaussian-process factor analysis for low-dimensional single-trial analysis (Yu et al., 2009)
    | Conjugate-computation variational inference (Khan & Lin, 2017)
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from consilience.blocks.fourier import FourierPrior
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.trajectories import Sites, Trajectories, infer_trajectories
from consilience.data.masking import Policy
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Group, PerObject, Term, slot
from consilience.models.starts import linear_start
from consilience.models.trajectory import BinCells, TrajectoryConditional, optimal_sites

__all__ = ["GPVAE"]

STARTING = 4000  # bins that the start looks at, about


class GPVAE(AbstractFamily):
    """Configuration of linear decoders of latent trajectories; time is the first event axis of every modality.

    Example:
        >>> GPVAE(shared=2, private={"spikes": 1}).length
        10.0
    """

    family: Literal["GPVAE"] = "GPVAE"
    shared: NonNegativeInt = 1  # latents that every modality reads
    private: dict[str, NonNegativeInt] = {}  # further latents that only this modality reads
    kernel: Literal["rbf", "matern12", "matern32", "matern52", "white"] = "rbf"  # white: no dynamics
    length: float = Field(default=10.0, gt=0)  # length scale at first, in bins
    shortest: float | None = Field(default=None, gt=0)  # least length scale, in bins; a third of ``length`` by default
    longest: float | None = Field(default=None, gt=0)  # greatest length scale; twice ``length`` by default
    posterior: Literal["structured", "diagonal"] = "structured"  # diagonal: independent Fourier coordinates
    likelihoods: dict[str, Literal["gaussian", "poisson", "bernoulli"]] = {}  # by the kind of each modality
    inference_steps: int = Field(default=6, ge=1)  # natural-gradient steps of counts and flags

    @property
    def default_policy(self) -> Policy | None:
        return None  # sites of cells add: no network has to learn what missing ones mean

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (*self.private, *self.likelihoods):
            schema[name]
        if self.shared + sum(self.private.values()) == 0:
            raise SchemaError("Expected at least one latent; got shared = 0 and none private. Raise shared.")
        return _Module(self, schema)


class _Module(AbstractModel):
    capabilities: ClassVar[frozenset[str]] = frozenset({"density", "latent", "generate", "limits"})

    def __init__(self, config: GPVAE, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema = config, schema
        self.bins = _bins(schema)
        self.size = config.shared + sum(config.private.values())
        self.blocks = {}
        if config.shared:
            self.blocks["shared"] = ModalitySpec(name="shared", shape=(self.bins, config.shared))
        columns: dict[str, Tensor] = {}
        weights, offsets, likelihoods = {}, {}, {}
        begin = config.shared
        for spec in schema.modalities:
            own = config.private.get(spec.name, 0)
            if own:
                self.blocks[f"private_{spec.name}"] = ModalitySpec(name=f"private_{spec.name}", shape=(self.bins, own))
            columns[spec.name] = torch.tensor([*range(config.shared), *range(begin, begin + own)], dtype=torch.long)
            begin += own
            bin_spec = ModalitySpec(name=spec.name, shape=spec.shape[1:] or (1,), kind=spec.kind)
            key = slot(spec.name)
            likelihoods[key] = build_likelihood(config.likelihoods.get(spec.name), bin_spec)
            weights[key] = nn.Parameter(torch.zeros(bin_spec.size, len(columns[spec.name])))
            offsets[key] = nn.Parameter(torch.zeros(bin_spec.size))
        self.columns: Mapping[str, Tensor] = columns
        self.weights, self.offsets = nn.ParameterDict(weights), nn.ParameterDict(offsets)
        self.likelihoods = nn.ModuleDict(likelihoods)
        self.prior = FourierPrior(
            [config.kernel] * self.size,
            self.bins,
            torch.full((self.size,), config.length),
            shortest=config.length / 3 if config.shortest is None else config.shortest,
            longest=2 * config.length if config.longest is None else config.longest,
            variance=torch.ones(self.size),
        )

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll/m, kl/shared, kl/private_m of what the context shows."""
        # at the optimum of the bound its slope along the sites is zero: they are constants of the gradient
        q = self._posterior(self._sites(context))
        rows = len(context)
        everyone = torch.ones(rows, dtype=torch.bool, device=q.mean.device)
        found: dict[str, Term] = {}
        for name, part in context.parts.items():
            one = self.cells(name, part)
            expected = one.likelihood.expected(one.part, *one.moments(q))
            found[f"nll/{name}"] = PerObject(-expected.view(rows, -1).sum(-1), everyone)
        divergence = q.divergence()
        for block, some in self.block_columns().items():
            found[f"kl/{block}"] = PerObject(divergence[:, some].sum(-1), everyone)
        return found

    @torch.no_grad()
    def condition(self, context: Observations) -> TrajectoryConditional:
        """The posterior of the trajectories given any subset of cells."""
        conjugate = all(self.cells(name, part).conjugate for name, part in context.parts.items())
        exact = conjugate and self.config.posterior == "structured"
        q = self._posterior(self._sites(context))
        return TrajectoryConditional(q, exact, self.cells, self.block_columns(), self.config.inference_steps, context)

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Factor analysis of the bins of all trials, whose time it does not read."""
        some = target[slice(None, None, max(1, len(target) * self.bins // STARTING))]
        cells = {name: self.cells(name, part) for name, part in some.parts.items()}
        values, known = zip(*(one.likelihood.pseudo(one.part) for one in cells.values()), strict=True)
        seen = torch.cat([one.part.seen for one in cells.values()], -1)
        ends = np.cumsum([0, *(value.shape[1] for value in values)]).tolist()
        where = {name: slice(*pair) for name, pair in zip(cells, pairwise(ends), strict=True)}
        loadings, offset, noise = linear_start(
            torch.cat(values, -1), torch.cat(known, -1), seen, where, self.columns, shared=self.config.shared
        )
        for name, one in cells.items():
            c = where[name]
            self.weights[slot(name)].copy_(loadings[c][:, self.columns[name]])
            self.offsets[slot(name)].copy_(one.likelihood.start(offset[c], noise[c]))

    def groups(self) -> tuple[Group, ...]:
        named = dict(self.named_parameters())
        kinds = {"weights": "decoders", "offsets": "decoders", "likelihoods": "likelihoods", "prior": "prior"}
        parameters: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in named.items():
            parameters.setdefault(kinds[name.split(".")[0]], {})[name] = parameter
        return tuple(Group(kind, some) for kind, some in parameters.items())

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return readable | producible <= set(self.schema.names) and bool(producible)

    def cells(self, name: str, part: Modality) -> BinCells:
        """The cells of a modality by bin.

        Raises:
            DataError: limits that the likelihood cannot use.
        """
        shape = part.value.shape
        by_bin = part.map(lambda a: a.reshape(shape[0] * shape[1], -1) if a.shape == shape else a)
        likelihood: AbstractLikelihood = self.likelihoods[slot(name)]  # type: ignore[assignment]
        if not likelihood.takes_limits and bool((part.state > State.MEASURED).any()):
            raise DataError(
                f"Expected no limits in '{name}' under the {type(likelihood).__name__} likelihood; got some."
            )
        return BinCells(likelihood, by_bin, self._weight(name), self.offsets[slot(name)], shape[0])

    def _sites(self, context: Observations) -> Sites:
        cells = [self.cells(name, part) for name, part in context.parts.items()]
        return optimal_sites(cells, self._posterior, steps=self.config.inference_steps)

    def _posterior(self, sites: Sites) -> Trajectories:
        return infer_trajectories(self.prior.root(), sites, diagonal=self.config.posterior == "diagonal")

    def _weight(self, name: str) -> Tensor:
        weight = self.weights[slot(name)]
        whole = torch.zeros(len(weight), self.size, dtype=weight.dtype, device=weight.device)
        return whole.index_copy(1, self.columns[name].to(weight.device), weight)

    def block_columns(self) -> dict[str, Tensor]:
        """Latents of each block."""
        found, offset = {}, 0
        for block, spec in self.blocks.items():
            found[block] = torch.arange(offset, offset + spec.shape[1])
            offset += spec.shape[1]
        return found


def _bins(schema: Schema) -> int:
    """The number of time bins, common to all modalities."""
    for spec in schema.modalities:
        if not spec.shape:
            raise SchemaError(f"Expected time as the first event axis of '{spec.name}'; got a single number.")
        if spec.shape[0] != schema.modalities[0].shape[0]:
            raise SchemaError(
                f"Expected {schema.modalities[0].shape[0]} bins in '{spec.name}' as in "
                f"'{schema.modalities[0].name}'; got {spec.shape[0]}. Rebin, or pad and give the extent of each trial."
            )
        if spec.kind == "category":
            raise SchemaError(f"Expected numbers, counts or flags over time; got classes in '{spec.name}'.")
    return schema.modalities[0].shape[0]
