r"""Shared stochastic Gaussian-process latent variable model: one latent, one set of sparse GPs per modality.

.. math::
    z_n \sim N(0, I_Q), \qquad f^{(v)}_d \sim GP(c_d, k_v), \qquad
    x^{(v)}_{nd} \mid z_n \sim p_v\bigl(x \mid f^{(v)}_d(z_n),\ s_{nd}\bigr)

.. math::
    \frac{1}{N}\log p(X) \ge \frac{1}{B}\sum_{n \in \mathrm{batch}} \Bigl[ \sum_{d\ \mathrm{seen}}
    E_{q(z_n) q(f_d)} \log p(x_{nd} \mid f_d) - KL(q(z_n) \| N(0, I)) \Bigr] - \frac{1}{N}\sum_d KL(q(u_d) \| p(u_d))

References:
    | Shared stochastic GPLVMs for quasar spectra (Lalchand & Eilers, 2025) | https://arxiv.org/abs/2502.19824
    | Generalised GPLVM with stochastic variational inference (Lalchand et al., 2022)
    | Bayesian Gaussian process latent variable model (Titsias & Lawrence, 2010)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from consilience.blocks.factors import FactorPosterior
from consilience.blocks.gp import SparseGP
from consilience.blocks.inducing import Features
from consilience.blocks.kernels import build_kernel
from consilience.blocks.laplace import View, gauss_newton
from consilience.blocks.likelihood_base import AbstractLikelihood
from consilience.blocks.likelihoods import Gaussian, StudentT, build_likelihood
from consilience.blocks.posteriors import (
    AmortisedPosterior,
    GaussianLatent,
    LocalPosterior,
    PopulationPrior,
    from_precision,
)
from consilience.blocks.residuals import correlated_cells
from consilience.data.masking import HideModalities, Policy
from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema
from consilience.errors import DataError, SchemaError
from consilience.models.base import AbstractFamily, AbstractModel, Global, Group, PerObject, Phase, Term, slot
from consilience.models.latent import LatentConditional, flat
from consilience.models.starts import fit_start

__all__ = ["SharedGPLVM"]

LikelihoodName = Literal["gaussian", "student", "heteroscedastic", "poisson", "bernoulli", "categorical"]
FLAT = 1e-4  # precision of a prior that only keeps maximum likelihood solvable
LEAST = 1e-2  # smallest weight of kl/inducing in a closed-form step, whose optimum without a prior does not exist
REFIT = 0.5  # of the steps with gradients
SETTLED = 500  # rows on which the misfit is measured


class SharedGPLVM(AbstractFamily):
    """Configuration of the shared GPLVM.

    Example:
        >>> SharedGPLVM(latent_dim=2, inducing=20).posterior
        'encoder'
    """

    family: Literal["SharedGPLVM"] = "SharedGPLVM"
    latent_dim: int = Field(default=10, ge=1)  # shared latent dimensions
    private: dict[str, NonNegativeInt] = {}  # further latent dimensions that only this modality reads
    inducing: int = Field(default=120, ge=1)  # inducing inputs M of every decoder
    functions: dict[str, PositiveInt] = {}  # GPs that this modality's outputs mix; by default each output is its own
    one_mask: tuple[str, ...] = ()  # modalities with cells seen all together and no error bars: much faster decoders
    posterior: Literal["encoder", "gaussian", "diagonal", "map", "point"] = "encoder"  # of the training latents
    closed: tuple[str, ...] = ()  # gaussian modalities whose mean over q(z) in training is exact, not of one draw
    kernel: str = "rbf"  # expression of kernels, see build_kernel
    likelihoods: dict[str, LikelihoodName] = {}  # by the kind of each modality where it is not named
    hidden: int = Field(default=64, ge=1)  # width of the encoder's correction
    inference_steps: int = Field(default=4, ge=0)  # Gauss-Newton steps per new object; 0 trusts the encoder alone

    @property
    def phases(self) -> tuple[Phase, ...]:
        # The latents of training (the encoder's, or per-object ones that lag behind) are not those that new objects
        # get: decoders fitted to the former would be asked about the latter, hence q(u) is refitted there
        return Phase(name="train"), Phase(name="refit", share=REFIT, gradient=False)

    @property
    def default_policy(self) -> Policy | None:
        # the encoder must have met every subset it will be asked about; per-object latents read the target
        return HideModalities(probability=0.15) if self.posterior == "encoder" else None

    def build(self, schema: Schema, total: int, seed: int) -> AbstractModel:
        for name in (*self.private, *self.likelihoods, *self.functions, *self.one_mask, *self.closed):
            schema[name]
        with torch.random.fork_rng(devices=[]):  # the encoder's layers draw from torch's global generator
            torch.manual_seed(seed)
            return _Module(self, schema, total)


class _Module(AbstractModel):
    shared_misfit: Tensor  # c of blocks/residuals.py for each modality with a grid, else 1, shape (modalities,)
    capabilities: frozenset[str] = frozenset({"density", "latent", "generate", "limits"})

    def __init__(self, config: SharedGPLVM, schema: Schema, total: int) -> None:
        super().__init__()
        self.config, self.schema, self.total = config, schema, total
        self.size = config.latent_dim + sum(config.private.values())
        self.blocks = {"shared": ModalitySpec(name="shared", shape=(config.latent_dim,))}
        columns: dict[str, Tensor] = {}
        decoders, likelihoods = {}, {}
        offset = config.latent_dim
        for spec in schema.modalities:
            own = config.private.get(spec.name, 0)
            if own:
                self.blocks[f"private_{spec.name}"] = ModalitySpec(name=f"private_{spec.name}", shape=(own,))
            columns[spec.name] = torch.tensor([*range(config.latent_dim), *range(offset, offset + own)])
            offset += own
            likelihood = build_likelihood(config.likelihoods.get(spec.name), spec)
            common = spec.name in config.one_mask
            if common and (spec.name in config.functions or not isinstance(likelihood, Gaussian)):
                other = "functions" if spec.name in config.functions else type(likelihood).__name__
                raise SchemaError(
                    f"Expected '{spec.name}' of one_mask to be gaussian and not in functions; got {other}. "
                    "Leave it out of one_mask."
                )
            dim = len(columns[spec.name])
            exact = isinstance(likelihood, Gaussian) and config.kernel == "rbf" and spec.name not in config.functions
            if spec.name in config.closed and not exact:
                raise SchemaError(
                    f"Expected '{spec.name}' of closed with the rbf kernel, gaussian and not in functions; got "
                    f"{config.kernel} and {type(likelihood).__name__}. Leave it out of closed."
                )
            inducing = torch.randn(config.inducing, dim)
            key, outputs = slot(spec.name), spec.size * likelihood.functions
            decoders[key] = SparseGP(
                build_kernel(config.kernel, dim),
                inducing,
                outputs,
                functions=config.functions.get(spec.name),
                common=common,
            )
            likelihoods[key] = likelihood
        self.columns: Mapping[str, Tensor] = columns
        self.decoders, self.likelihoods = nn.ModuleDict(decoders), nn.ModuleDict(likelihoods)
        cells = sum(decoder.constant.numel() for decoder in decoders.values())
        empty = torch.zeros(cells, self.size)
        amortised = config.posterior == "encoder"
        factors = FactorPosterior(empty, torch.zeros(cells), torch.ones(cells), trainable=amortised)
        self.encoder = AmortisedPosterior(factors, config.hidden) if amortised else None
        self.factors = None if amortised else factors
        self.prior = PopulationPrior(self.size)
        self.register_buffer("shared_misfit", torch.ones(len(schema.names)))
        self.locals: LocalPosterior | None = None
        if not amortised:
            form = {"gaussian": "full", "diagonal": "diagonal", "map": "point", "point": "point"}[config.posterior]
            start = GaussianLatent(torch.zeros(total, self.size), torch.eye(self.size).repeat(total, 1, 1))
            self.locals = LocalPosterior(start, form)  # type: ignore[arg-type]

    def terms(self, context: Observations, target: Observations) -> dict[str, Term]:
        """nll/m, kl/shared, kl/private_m, kl/inducing.

        The encoder is scored on what it saw (the bound of the context), so that its posterior of an incomplete row
        is that row's own; per-object latents read and score the target.
        """
        read, posterior = self._training_posterior(context, target)
        z = posterior.draw(torch.randn(1, *posterior.mean.shape).to(posterior.mean))[0]
        everyone = torch.ones(len(z), dtype=torch.bool, device=z.device)
        found: dict[str, Term] = {}
        for name, part in read.parts.items():
            cells = flat(part)
            mean, variance = self._decoder(name).moments(self._features(name, posterior, z))
            expected = self._likelihood(name).expected(cells, mean, variance).sum(-1)
            found[f"nll/{name}"] = PerObject(-expected, everyone)
        if self.config.posterior != "point":
            # the encoder knows the standard prior; the population's is learned when it has come to rest
            divergence = posterior.divergence() if self.training else self.prior.divergence(posterior)
            for block, columns in self._block_columns().items():
                found[f"kl/{block}"] = PerObject(divergence[:, columns].sum(-1), everyone)
        inducing = torch.stack([self._decoder(name).divergence().sum() for name in self.schema.names]).sum()
        found["kl/inducing"] = Global(inducing / self.total)
        return found

    @torch.no_grad()
    def closed_form_step(
        self, context: Observations, target: Observations, scale: float, weights: Mapping[str, float], rate: float
    ) -> None:
        """Natural-gradient step of every q(u); with weights a on nll and β on kl/inducing its scale is a/β.

        In evaluation mode the population prior and the likelihoods take their closed-form steps too.
        """
        read, posterior = self._training_posterior(context, target)
        # points have no spread, and a prior learned from them would shrink for ever; an encoder knows but its own
        if not self.training and not self._points and self.config.inference_steps > 0:
            self.prior.learn(posterior, self._block_columns().values(), rate)
        z = posterior.draw(torch.randn(1, *posterior.mean.shape).to(posterior.mean))[0]
        for name, part in read.parts.items():
            weight = weights.get(f"nll/{name}", 1.0)
            if weight == 0:
                continue
            gp, features = self._decoder(name), self._features(name, posterior, z)
            cells, likelihood = flat(part), self._likelihood(name)
            if self.training and likelihood.conjugate(cells):
                mean = gp.mean_at(features)
                variance = torch.zeros_like(mean)
            else:
                mean, variance = gp.moments(features)
            if not self.training:
                likelihood.learn(cells, mean, variance, rate)
            _, g, h = likelihood.slopes(cells, mean, variance)
            relative = scale * weight / max(weights.get("kl/inducing", 1.0), LEAST)
            gp.natural_step(features, g, likelihood.precision(cells, mean, h), scale=relative, rate=rate)

    @torch.no_grad()
    def start(self, target: Observations) -> None:
        """Factor analysis of the table, then inducing inputs among its latents and one step of every q(u)."""
        for name, part in target.parts.items():
            self._likelihood(name).refuse_limits(name, part)
            if name in self.config.closed and bool((part.state > State.MEASURED).any()):
                raise DataError(f"Expected no limits in '{name}' of closed; got some. Leave it out of closed.")
            if name in self.config.one_mask:
                _check_one_mask(name, part)
        fit_start(self, target, shared=self.config.latent_dim)

    @torch.no_grad()
    def settle(self, rows: Observations) -> None:
        """Measure how many neighbouring cells of a grid share their misfit: inference must not count them all."""
        some = rows[slice(None, None, max(1, len(rows) // SETTLED))]
        z = self.condition(some).posterior.mean
        for number, (name, view) in enumerate(self.views(some).items()):
            likelihood = view.likelihood
            if self.schema[name].grid is None or not isinstance(likelihood, Gaussian | StudentT):
                continue
            mean, _ = view.gp.moments(view.gp.features(z[:, view.columns]))
            learned = likelihood.learned()
            known = likelihood.total(view.part) - learned
            cells = correlated_cells(view.part.value - mean, view.part.measured, learned, known)
            self.shared_misfit[number] = cells

    def refresh(self) -> None:
        for name in self.schema.names:
            self._decoder(name).refresh()

    def condition(self, context: Observations) -> LatentConditional:
        """The posterior of the latents of any subset of cells, refined by Gauss-Newton steps per row.

        The method "encoder" of its verbs leaves the refinement out.
        """
        start = self._start_posterior(context)
        encoded = None if self.encoder is None else start
        return LatentConditional(
            self.views(context), encoded, lambda: self._infer(start, context), self._block_columns()
        )

    @torch.no_grad()
    def _infer(self, start: GaussianLatent, context: Observations) -> GaussianLatent:
        if self.config.inference_steps == 0:
            return start
        precision = self.prior.precision()
        if self.config.posterior == "point":
            precision = FLAT * precision
        views = [self._cautious(number, view) for number, view in enumerate(self.views(context).values())]
        began = self._uninformed(start.mean, views)
        steps = self.config.inference_steps
        mean, curvature = gauss_newton(began, views, steps=steps, mean=self.prior.mean, precision=precision)
        if not self._points:
            return from_precision(mean, curvature)
        # with nothing seen there is no point to estimate: the posterior is the prior
        nothing = ~torch.stack([view.part.seen.any(-1) for view in views]).any(0)
        return GaussianLatent(mean, nothing[:, None, None] * self.prior.factor)

    @property
    def _points(self) -> bool:
        return self.config.posterior in ("point", "map")

    def _uninformed(self, mean: Tensor, views: Sequence[View]) -> Tensor:
        """The start with a private latent at the prior's mean where nothing of its modality is seen."""
        found = mean.clone()
        for view in views:
            own = view.columns[self.config.latent_dim :]
            found[:, own] = torch.where(view.part.seen.any(-1, keepdim=True), mean[:, own], self.prior.mean[own])
        return found

    def _cautious(self, number: int, view: View) -> View:
        """The view with the learned variance raised to c σ_d², as far as neighbouring cells share their misfit."""
        excess = float(self.shared_misfit[number]) - 1
        if excess == 0 or not isinstance(view.likelihood, Gaussian | StudentT):
            return view
        extra = excess * view.likelihood.learned()
        known = torch.zeros_like(view.part.value) if view.part.sigma is None else view.part.sigma.square()
        return replace(view, part=replace(view.part, sigma=(known + extra).sqrt()))

    def groups(self) -> tuple[Group, ...]:
        named = dict(self.named_parameters())
        kinds = {"decoders": "decoders", "likelihoods": "likelihoods", "encoder": "encoder", "locals": "locals"}
        # a stale row of a local posterior gets a gradient once per epoch, hence the larger rate
        factors = {"locals": 3.0}
        return tuple(
            Group(kind, {n: p for n, p in named.items() if n.split(".")[0] == root}, factors.get(kind, 1.0))
            for root, kind in kinds.items()
            if any(n.split(".")[0] == root for n in named)
        )

    def answers(self, readable: frozenset[str], producible: frozenset[str]) -> bool:
        return readable | producible <= set(self.schema.names) and bool(producible)

    def relevance(self) -> Tensor:
        """How strongly the decoders vary along each latent dimension, shape (Q,), the largest being 1."""
        total = torch.zeros(self.size)
        for name in self.schema.names:
            gp = self._decoder(name)
            total[self.columns[name]] += gp.kernel.relevance().detach().cpu() ** 2 * gp.constant.numel()
        return (total / total.max()).sqrt()

    def views(self, obs: Observations) -> dict[str, View]:
        """Decoder, likelihood and flat cells of every modality of a batch."""
        return {
            name: View(self._decoder(name), self._likelihood(name), flat(part), self.columns[name])
            for name, part in obs.parts.items()
        }

    def pseudo(self, obs: Observations) -> tuple[Tensor, Tensor, Tensor]:
        """Gaussian look-alikes of all cells side by side: value, known variance and seen, each (B, D_total)."""
        values, variances, seen = [], [], []
        for name in self.schema.names:
            part, likelihood = flat(obs.parts[name]), self._likelihood(name)
            value, variance = likelihood.pseudo(part)
            values.append(value)
            variances.append(variance)
            seen.append(part.seen.repeat_interleave(likelihood.functions, -1))
        return torch.cat(values, -1), torch.cat(variances, -1), torch.cat(seen, -1)

    def _training_posterior(self, context: Observations, target: Observations) -> tuple[Observations, GaussianLatent]:
        """What the latents read, and their posterior: in evaluation mode the one that inference gives."""
        if not self.training:
            found = self._infer(self._start_posterior(target), target)
            return target, GaussianLatent(found.mean, None) if self._points else found
        if self.encoder is not None:
            return context, self.encoder(*self.pseudo(context))
        assert self.locals is not None
        return target, self.locals(target.index)

    def _features(self, name: str, posterior: GaussianLatent, z: Tensor) -> Features:
        """Features at a draw z of the posterior, or their means over it."""
        gp, columns = self._decoder(name), self.columns[name]
        if name in self.config.closed and posterior.factor is not None:
            return gp.expected_features(posterior.mean[:, columns], posterior.factor[:, columns])
        return gp.features(z[:, columns])

    def _start_posterior(self, context: Observations) -> GaussianLatent:
        if self.encoder is not None:
            with torch.no_grad():
                return self.encoder(*self.pseudo(context))
        assert self.factors is not None
        return from_precision(*self.factors(*self.pseudo(context)))

    def population(self) -> dict[str, tuple[Tensor, Tensor]]:
        mean, std = self.prior.mean, self.prior.factor.square().sum(-1).sqrt()
        return {block: (mean[columns], std[columns]) for block, columns in self._block_columns().items()}

    def _block_columns(self) -> dict[str, Tensor]:
        found, offset = {}, 0
        for block, spec in self.blocks.items():
            found[block] = torch.arange(offset, offset + spec.size)
            offset += spec.size
        return found

    def _decoder(self, name: str) -> SparseGP:
        return self.decoders[slot(name)]  # type: ignore[return-value]

    def _likelihood(self, name: str) -> AbstractLikelihood:
        return self.likelihoods[slot(name)]  # type: ignore[return-value]


def _check_one_mask(name: str, part: Modality) -> None:
    seen = part.seen.flatten(1)
    mixed = (seen.any(1) & ~seen.all(1)).nonzero()
    if part.sigma is not None or len(mixed):
        found = "error bars" if part.sigma is not None else f"gaps in row {int(mixed[0])} of the training rows"
        raise DataError(
            f"Expected '{name}' of one_mask to be seen whole or not at all, without error bars; got {found}. "
            "Leave it out of one_mask."
        )
