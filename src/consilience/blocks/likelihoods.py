"""Likelihoods of values, counts, flags and classes, and the choice of one by name."""

import math
from abc import ABC

import scipy.stats
import torch
from torch import Tensor, nn

from consilience.blocks.counts import NegativeBinomial, Poisson
from consilience.blocks.likelihood_base import FLOOR, AbstractLikelihood, inside, known_variance
from consilience.blocks.noise import Noise
from consilience.blocks.quadrature import average, log_average, nodes
from consilience.blocks.scatter import Heteroscedastic
from consilience.data.observations import Modality, State
from consilience.data.schema import ModalitySpec
from consilience.errors import SchemaError

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "StudentT",
    "build_likelihood",
]

LEAST_NOISE = 1e-4  # smallest learned variance at which training starts


class _Noisy(AbstractLikelihood, ABC):
    """Additive noise: learned variance per cell plus the known error bar."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.full((cells,), math.log(0.1)))

    def learned(self) -> Tensor:
        """Learned variance σ_d² of each cell, shape (D,)."""
        return self.log_noise.exp() + FLOOR

    def expectation(self, f: Tensor) -> Tensor:
        return f

    def total(self, part: Modality) -> Tensor:
        """Learned plus known variance σ_d² + s_nd², shape (B, D), or (D,) without error bars."""
        learned = self.learned()
        return learned if part.sigma is None else learned + part.sigma.square()

    def start(self, offset: Tensor, noise: Tensor) -> Tensor:
        self.log_noise.copy_(noise.clamp_min(LEAST_NOISE).log())
        return offset

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        # a bound is a poor value: let it count as one with the modality's own spread
        return part.value, known_variance(part) + (part.state > State.MEASURED).to(part.value.dtype)


class Gaussian(_Noisy):
    r"""Gaussian cells with limits.

    Measured: :math:`E = -\tfrac12[\log 2\pi\tau + ((x-\mu)^2 + v)/\tau]` with :math:`\tau = \sigma_d^2 + s_{nd}^2`.
    Limits: :math:`\log \Phi(\pm(\mathrm{bound} - f)/\sqrt\tau)`, + for an upper bound (BELOW).
    """

    takes_limits = True

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        tau, measured = self.total(part), part.measured
        value = -0.5 * (torch.log(2 * math.pi * tau) + ((part.value - mean).square() + variance) / tau)
        if bool(measured.all()):
            return value
        value = torch.where(measured, value, 0.0)
        if not _has_limits(part):
            return value
        f = nodes(mean, variance)
        log_cdf = torch.special.log_ndtr(_sign(part) * (part.value - f) / tau.sqrt())
        return torch.where(part.state > State.MEASURED, average(log_cdf), value)

    def conjugate(self, part: Modality) -> bool:
        return not _has_limits(part)

    def slopes(self, part: Modality, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if _has_limits(part):
            return super().slopes(part, mean, variance)
        with torch.no_grad():
            w = torch.where(part.measured, 1 / self.total(part), 0.0)
            return self.expected(part, mean, variance), w * (part.value - mean), -0.5 * w

    @torch.no_grad()
    def learn(self, part: Modality, mean: Tensor, variance: Tensor, rate: float) -> None:
        # stationary where Σ r²/τ² = Σ 1/τ; as a factor, the step keeps the variance positive in any small batch
        weight = torch.where(part.measured, 1 / self.total(part), 0.0)
        residual = (part.value - mean).square() + variance
        total = weight.sum(0)
        factor = torch.where(total > 0, (weight.square() * residual).sum(0) / total.clamp_min(1e-30), 1.0)
        self.log_noise.add_(torch.log1p(rate * (factor - 1))).clamp_(min=math.log(FLOOR))

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        spread = self.total(part) + variance
        value = -0.5 * (torch.log(2 * math.pi * spread) + (part.value - mean).square() / spread)
        value = torch.where(part.measured, value, 0.0)
        if not _has_limits(part):
            return value
        limit = torch.special.log_ndtr(_sign(part) * (part.value - mean) / spread.sqrt())
        return torch.where(part.state > State.MEASURED, limit, value)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        spread = (variance + self.learned()).sqrt()
        return mean + spread * noise.normal(f"value/{name}", len(mean), mean.shape[2:])


class StudentT(_Noisy):
    r"""Heavy-tailed cells: :math:`x = f + \sqrt{\sigma_d^2 + s_{nd}^2}\; t_\nu`, with ν > 2 learned per cell."""

    def __init__(self, cells: int) -> None:
        super().__init__(cells)
        self.log_freedom = nn.Parameter(torch.full((cells,), math.log(8.0)))

    def freedom(self) -> Tensor:
        """Degrees of freedom ν > 2 of each cell, shape (D,)."""
        return 2 + self.log_freedom.exp()

    def _log_prob(self, part: Modality, f: Tensor) -> Tensor:
        nu, tau = self.freedom(), self.total(part)
        constant = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu) - 0.5 * torch.log(nu * math.pi)
        r = (part.value - f).square() / tau
        return constant - 0.5 * torch.log(tau) - 0.5 * (nu + 1) * torch.log1p(r / nu)

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.where(part.seen, average(self._log_prob(part, nodes(mean, variance))), 0.0)

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        return torch.where(part.seen, log_average(self._log_prob(part, nodes(mean, variance))), 0.0)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        f = mean + variance.sqrt() * noise.normal(f"function/{name}", len(mean), mean.shape[2:])
        u = noise.uniform(f"value/{name}", len(mean), mean.shape[2:])
        t = scipy.stats.t.ppf(inside(u).double().cpu().numpy(), self.freedom().detach().double().cpu().numpy())
        return f + self.learned().sqrt() * torch.as_tensor(t).to(f)


class Bernoulli(AbstractLikelihood):
    r"""Binary cells with log-odds f: :math:`p(x = 1 \mid f) = 1 / (1 + e^{-f})`."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        value = nn.functional.logsigmoid((2 * part.value - 1) * nodes(mean, variance))
        return torch.where(part.seen, average(value), 0.0)

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        value = nn.functional.logsigmoid((2 * part.value - 1) * nodes(mean, variance))
        return torch.where(part.seen, log_average(value), 0.0)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        f = mean + variance.sqrt() * noise.normal(f"function/{name}", len(mean), mean.shape[2:])
        return (noise.uniform(f"value/{name}", len(mean), mean.shape[2:]) < torch.sigmoid(f)).to(f)

    def expectation(self, f: Tensor) -> Tensor:
        return torch.sigmoid(f)

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        return torch.where(part.seen, 4 * part.value - 2, 0.0), torch.full_like(part.value, 4.0)


class Categorical(AbstractLikelihood):
    r"""One of C classes with softmax of C functions per cell.

    :math:`E \ge \mu_x - \log \sum_c e^{\mu_c + v_c/2}` (Jensen), still a lower bound of the evidence; the predictive
    probability is averaged over fixed quasi-random draws of the functions.

    References:
        Efficient bounds for the softmax function (Bouchard, 2007).
    """

    def __init__(self, cells: int, classes: int) -> None:
        super().__init__()
        self.cells, self.functions = cells, classes
        uniform = torch.quasirandom.SobolEngine(min(classes, 1000), scramble=True, seed=0).draw(64).double()
        self.register_buffer("nodes", torch.special.ndtri(inside(uniform)).float(), persistent=False)

    def _split(self, array: Tensor) -> Tensor:
        return array.unflatten(-1, (self.cells, self.functions))

    def _chosen(self, part: Modality, array: Tensor) -> Tensor:
        return array.gather(-1, part.value.long()[..., None].expand(*array.shape[:-1], 1))[..., 0]

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        mean, variance = self._split(mean), self._split(variance)
        value = self._chosen(part, mean) - torch.logsumexp(mean + 0.5 * variance, -1)
        return torch.where(part.seen, value, 0.0)

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        mean, deviation = self._split(mean), self._split(variance).sqrt()
        f = mean + deviation * self.get_buffer("nodes")[:, None, None, :].to(mean)
        value = self._chosen(part, f.log_softmax(-1))
        return torch.where(part.seen, torch.logsumexp(value, 0) - math.log(len(f)), 0.0)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        f = mean + variance.sqrt() * noise.normal(f"function/{name}", len(mean), mean.shape[2:])
        cumulative = self._split(f).softmax(-1).cumsum(-1)
        u = noise.uniform(f"value/{name}", len(mean), (self.cells,))
        return (u[..., None] > cumulative[..., :-1]).sum(-1).to(f)

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        hot = nn.functional.one_hot(part.value.long(), self.functions).to(part.value.dtype)
        flat = torch.where(part.seen[..., None], 4 * hot - 2, 0.0).flatten(-2)
        return flat, torch.full_like(flat, 4.0)


def build_likelihood(name: str | None, spec: ModalitySpec) -> AbstractLikelihood:
    """The likelihood of a modality by name, or the one its kind calls for.

    Raises:
        SchemaError: an unknown name, or a likelihood that does not fit the kind of the modality.
    """
    default = {"count": "poisson", "binary": "bernoulli", "category": "categorical"}.get(spec.kind, "gaussian")
    kinds = {"gaussian": ("gaussian", "heteroscedastic", "student"), "poisson": ("negative-binomial", "poisson")}
    fits = kinds.get(default, (default,))
    name = name or default
    if name not in fits:
        raise SchemaError(
            f"Expected a likelihood among {list(fits)} for the {spec.kind} '{spec.name}'; got {name!r}."
        )
    if name == "categorical":
        return Categorical(spec.size, spec.classes)
    makers = {"gaussian": Gaussian, "heteroscedastic": Heteroscedastic, "student": StudentT}
    makers |= {"poisson": Poisson, "negative-binomial": NegativeBinomial, "bernoulli": Bernoulli}
    return makers[name](spec.size)


def _has_limits(part: Modality) -> bool:
    return bool((part.state > State.MEASURED).any())


def _sign(part: Modality) -> Tensor:
    return torch.where(part.state == State.ABOVE, -1.0, 1.0).to(part.value.dtype)
