r"""Gaussian-process variational autoencoder of several modalities over time: shared and private dynamics.

.. math::
    z_k \sim GP(0, \rho_k k_{\ell_k}), \qquad
    f^{(m)}_t = C^{(m)} z_t + d^{(m)} \ \text{or}\ g_m(z_t), \qquad
    x^{(m)}_{td} \mid f \sim p_m\bigl(x \mid f^{(m)}_{td},\ s_{td}\bigr)

Every modality reads the shared latents and its own private ones, linearly or through a network g. Latents are inferred
in Fourier coordinates (``blocks/fourier.py``) from sites, Gaussian factors of the latents of each bin that multiply:

- linear Gaussian cells have exact sites; if there are no others q is the posterior and the bound the evidence;
- those of linear counts and flags are moved to the optimum of the bound by natural-gradient steps, per trial;
- those of cells with a deep decoder are read from them by an encoder, trained with it; those of shared latents are
  taught by other modalities, may have two modes, and give way where others disagree (``models/taught.py``).

.. math::
    \log p(x) \ge \sum_{m,t,d\ \mathrm{seen}} E_{q(z_t)} \log p(x^{(m)}_{td} \mid f) - KL(q(z) \| p(z))

References:
    | Multi-modal Gaussian process variational autoencoders (Gondur et al., 2024) | https://arxiv.org/abs/2310.03111
    | Gaussian-process factor analysis for low-dimensional single-trial analysis (Yu et al., 2009)
    | Conjugate-computation variational inference (Khan & Lin, 2017)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from consilience.blocks.fourier import AbstractTrajectoryPrior, FourierPrior, Scales, TimePrior
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import build_likelihood
from consilience.blocks.networks import ModesEncoder, SiteEncoder, WaveDecoder
from consilience.blocks.trajectories import AbstractTrajectories, Sites
from consilience.data.masking import Policy
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Group, PerObject, Term, slot
from consilience.models.bins import AbstractBins, DeepBins, LinearBins, by_trial, multiplied, trajectory_sites
from consilience.models.common_start import Look, common_start
from consilience.models.deep_start import deep_start
from consilience.models.taught import TaughtSites, heard
from consilience.models.trajectory import TrajectoryConditional

__all__ = ["GPVAE"]

Likelihood = Literal["gaussian", "poisson", "negative-binomial", "bernoulli"]
# other groups of parameters are called as their module
KINDS = {"weights": "loadings", "offsets": "loadings", "prior.position": "lengths", "prior.stretch": "variances"}
# networks want smaller steps than loadings and noise; length scales wait for them, or would follow their first attempts
SLOWER = {"decoders": 0.2, "encoders": 0.2, "pupils": 0.6, "lengths": 0.1, "variances": 0.5}
MODES = 2  # of the sites of taught latents
STARTING = 4000  # bins that the start looks at, about
SETTLED = 20_000  # bins by which encoders are tempered, about
TEMPERS = [2 ** (-k / 4) for k in range(40)]  # of the precisions of taught sites, one of which is chosen
EXPONENTS = [1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.0]  # of the weights of their modes
CENTRAL_MASS = 0.6827  # of a Gaussian, within a standard deviation


class GPVAE(AbstractFamily):
    """Configuration of decoders of latent trajectories; time is the first event axis of every modality.

    Example:
        >>> GPVAE(shared=2, private={"spikes": 1}).length
        10.0
    """

    family: Literal["GPVAE"] = "GPVAE"
    shared: NonNegativeInt = 1  # latents that every modality reads
    private: dict[str, NonNegativeInt] = {}  # further latents that only this modality reads
    kernel: Literal["rbf", "matern12", "matern32", "matern52", "periodic", "white"] = "rbf"  # white: no dynamics
    period: int | None = Field(default=None, ge=2)  # bins, of the periodic kernel
    length: float = Field(default=10.0, gt=0)  # length scale at first, in bins
    shortest: float | None = Field(default=None, gt=0)  # least length scale, in bins; a third of ``length`` by default
    longest: float | None = Field(default=None, gt=0)  # greatest length scale; twice ``length`` by default
    variance: float = Field(default=1.0, gt=0)  # prior variance of every latent at first; learned
    coordinates: Literal["fourier", "time"] = "fourier"  # of inference; one coordinate per bin in time
    prune: float = Field(default=1e-6, ge=0, lt=1)  # share of the largest variance below which a frequency is left out
    posterior: Literal["structured", "diagonal"] = "structured"  # diagonal: independent Fourier coordinates
    likelihoods: dict[str, Likelihood] = {}  # by the kind of each modality
    decoders: dict[str, Literal["linear", "deep"]] = {}  # linear by default
    hidden: int = Field(default=128, ge=1)  # width of the networks of deep decoders and of their encoders
    window: int = Field(default=1, ge=1)  # bins that an encoder reads together, odd
    inference_steps: int = Field(default=6, ge=1)  # natural-gradient steps of sites that move

    @property
    def default_policy(self) -> Policy | None:
        return None  # sites add: a bin or a modality that is missing takes nothing from the others

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (*self.private, *self.likelihoods, *self.decoders):
            schema[name]
        if self.window % 2 == 0:
            raise SchemaError(f"Expected an odd window, with as many bins before as after; got {self.window}.")
        if self.shared + sum(self.private.values()) == 0:
            raise SchemaError("Expected at least one latent; got shared = 0 and none private. Raise shared.")
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema)


class _Module(AbstractModel):
    capabilities: frozenset[str] = frozenset({"density", "latent", "generate", "limits"})
    temper: Tensor  # factors of precisions, and powers of the weights of modes, of taught sites, (modalities, 2)

    def __init__(self, config: GPVAE, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema = config, schema
        self.bins = _bins(schema)
        self.size = config.shared + sum(config.private.values())
        self.blocks = {}
        if config.shared:
            self.blocks["shared"] = ModalitySpec(name="shared", shape=(self.bins, config.shared))
        # linear modalities know the shared latents before a network does, and teach it
        self.taught = config.shared if any(config.decoders.get(n) != "deep" for n in schema.names) else 0
        columns: dict[str, Tensor] = {}
        weights, offsets, likelihoods, decoders, encoders, pupils = {}, {}, {}, {}, {}, {}
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
            cells, own = bin_spec.size, len(columns[spec.name])
            if config.decoders.get(spec.name, "linear") == "deep":
                decoders[key] = WaveDecoder(own, config.hidden, config.hidden, cells)
                if self.taught:
                    pupils[key] = ModesEncoder(cells, self.taught, config.hidden, modes=MODES, window=config.window)
                if own > self.taught or not self.taught:
                    encoders[key] = SiteEncoder(cells, own - self.taught, config.hidden, window=config.window)
            else:
                weights[key] = nn.Parameter(torch.zeros(cells, own))
                offsets[key] = nn.Parameter(torch.zeros(cells))
        self.columns: Mapping[str, Tensor] = columns
        self.weights, self.offsets = nn.ParameterDict(weights), nn.ParameterDict(offsets)
        self.likelihoods = nn.ModuleDict(likelihoods)
        self.decoders = nn.ModuleDict(decoders)
        self.encoders, self.pupils = nn.ModuleDict(encoders), nn.ModuleDict(pupils)
        self.register_buffer("temper", torch.ones(len(schema.names), 2))
        scales: Scales = {
            "length": torch.full((self.size,), config.length),
            "shortest": config.length / 3 if config.shortest is None else config.shortest,
            "longest": 2 * config.length if config.longest is None else config.longest,
            "variance": torch.full((self.size,), config.variance),
        }
        kernels = [config.kernel] * self.size
        self.prior: AbstractTrajectoryPrior = (
            TimePrior(kernels, self.bins, **scales)
            if config.coordinates == "time"
            else FourierPrior(kernels, self.bins, prune=config.prune, period=config.period, **scales)
        )

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll/m, kl/shared, kl/private_m of what the context shows; fit/m of encoders that other modalities teach."""
        # at the optimum of the bound its slope along the sites is zero: those without an encoder are constants
        cells = {name: self.cells(name, part) for name, part in context.parts.items()}
        sites = dict(zip(cells, self._sites(list(cells.values())), strict=True))
        whole = multiplied(list(sites.values()))
        q = self._posterior(whole)
        rows = len(context)
        found: dict[str, Term] = {}
        everyone = torch.ones(rows, dtype=torch.bool, device=q.mean.device)
        known = {name: one.part.seen.view(rows, -1).any(-1) for name, one in cells.items()}
        for name, one in cells.items():
            found[f"nll/{name}"] = PerObject(-one.expected(q), everyone)
            if isinstance(one, DeepBins) and one.taught is not None:
                with torch.no_grad():
                    others = self._posterior(whole - sites[name])
                    says = heard(others, self.prior.marginals(), one.taught.columns)
                elsewhere = torch.stack([seen for other, seen in known.items() if other != name]).any(0)
                applies = known[name] & elsewhere
                lesson = one.taught.lesson(says, self._posterior)
                found[f"fit/{name}"] = PerObject(torch.where(applies, lesson, 0.0), applies)
        learned = self.prior.expected_log(q)
        divergence = q.divergence() + learned.detach() - learned
        for block, some in self.block_columns().items():
            found[f"kl/{block}"] = PerObject(divergence[:, some].sum(-1), everyone)
        return found

    @torch.no_grad()
    def condition(self, context: Observations) -> TrajectoryConditional:
        """The posterior of the trajectories given any subset of cells."""
        cells = [self.cells(name, part) for name, part in context.parts.items()]
        exact = all(one.exact for one in cells) and self.config.posterior == "structured"
        q = self._posterior(multiplied(self._sites(cells)))
        return TrajectoryConditional(q, exact, self.cells, self.block_columns(), self.config.inference_steps, context)

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """What the bins of the modalities have in common, whose time it does not read, then what is left of each.

        Without a linear modality networks begin with slow functions of the cells.
        """
        some = target[slice(None, None, max(1, len(target) * self.bins // STARTING))]
        cells = {name: self.cells(name, part) for name, part in some.parts.items()}
        sizes = {name: len(columns) for name, columns in self.columns.items()}
        looks = {name: Look.of(one.likelihood, one.part) for name, one in cells.items()}
        linear = {name for name, one in cells.items() if isinstance(one, LinearBins)}
        for name, found in common_start(looks, sizes, self.config.shared, linear=linear).items():
            key = slot(name)
            offset = cells[name].likelihood.start(found.offset, found.noise)
            if key in self.decoders:
                self.decoders[key].begin(offset, found.noise.sqrt())  # type: ignore[operator]
            else:
                self.weights[key].copy_(found.loadings)
                self.offsets[key].copy_(offset)
        if not self.taught:
            scale, lag = self.prior.variance.sqrt(), min(max(1, round(self.config.length / 2)), self.bins - 1)
            deep = {name: one for name, one in cells.items() if isinstance(one, DeepBins)}
            if self.config.shared:
                deep_start(list(deep.values()), scale[: self.config.shared], lag=lag)
            else:
                for name, one in deep.items():
                    deep_start([one], scale[self.columns[name]], lag=lag)

    @torch.no_grad()
    def settle(self, rows: Observations) -> None:
        """Measure by how much taught sites are too sure of trials that did not train their encoders."""
        self.temper.fill_(1.0)
        some = rows[slice(None, None, max(1, len(rows) * self.bins // SETTLED))]
        for number, name in enumerate(some.parts):
            cells = {key: self.cells(key, part) for key, part in some.parts.items()}  # what came before is tempered
            one = cells[name]
            if isinstance(one, DeepBins) and one.taught is not None:
                rest = [other for key, other in cells.items() if key != name]
                others = self._posterior(multiplied(self._sites(rest)))
                says = heard(others, self.prior.marginals(), one.taught.columns)
                sites = one.taught
                exponent = min(EXPONENTS, key=lambda power: sites.tempered(1.0, power).doubt(says))
                covered = 0.0
                for factor in TEMPERS:  # the first that covers enough, or else the one that covers most
                    told = replace(one, encoder=None, taught=sites.tempered(factor, exponent))
                    share = sites.covered(says, self._posterior(*self._sites([told])))
                    if share > covered:
                        covered = share
                        self.temper[number] = torch.tensor([factor, exponent])
                    if covered >= CENTRAL_MASS:
                        break

    def groups(self) -> tuple[Group, ...]:
        named = dict(self.named_parameters())
        parameters: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in named.items():
            module = name.split(".")[0]
            parameters.setdefault(KINDS.get(name, KINDS.get(module, module)), {})[name] = parameter
        slower = SLOWER if len(self.decoders) else {}
        return tuple(Group(kind, some, slower.get(kind, 1.0)) for kind, some in parameters.items())

    def population(self) -> dict[str, tuple[Tensor, Tensor]]:
        sizes = [spec.shape[1] for spec in self.blocks.values()]
        parts = self.prior.root().square().sum(-1).sqrt().mT.split(sizes, -1)
        return {block: (torch.zeros_like(std), std) for block, std in zip(self.blocks, parts, strict=True)}

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return readable | producible <= set(self.schema.names) and bool(producible)

    def cells(self, name: str, part: Modality) -> AbstractBins:
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
        key, rows = slot(name), shape[0]
        if key in self.decoders:
            columns = self.columns[name].to(part.value.device)
            return DeepBins(
                likelihood,
                by_bin,
                rows,
                self.decoders[key],  # type: ignore[arg-type]
                self.encoders[key] if key in self.encoders else None,  # type: ignore[arg-type]
                self._taught(name, by_bin, rows) if self.taught else None,
                columns,
                self.size,
            )
        return LinearBins(likelihood, by_bin, rows, self._weight(name), self.offsets[key])

    def _taught(self, name: str, part: Modality, rows: int) -> TaughtSites:
        pupil: ModesEncoder = self.pupils[slot(name)]  # type: ignore[assignment]
        mean, precision, log_weight = pupil(*by_trial(part, rows))
        columns = self.columns[name][: self.taught].to(mean.device)
        before = self.prior.marginals().detach()[:, columns]
        found = TaughtSites(mean, precision, log_weight, before, columns, self.size)
        return found.tempered(*self.temper[self.schema.names.index(name)])

    def _sites(self, cells: Sequence[AbstractBins]) -> list[Sites]:
        return trajectory_sites(cells, self._posterior, steps=self.config.inference_steps, hasty=self.training)

    def _posterior(self, sites: Sites) -> AbstractTrajectories:
        return self.prior.posterior(sites, diagonal=self.config.posterior == "diagonal")

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
