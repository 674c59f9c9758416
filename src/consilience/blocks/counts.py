"""Likelihoods of counts with log-rate f and exposure e."""

import math
from abc import ABC, abstractmethod

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from consilience.blocks.likelihood_base import AbstractLikelihood, inside
from consilience.blocks.noise import Noise
from consilience.blocks.quadrature import average, log_average, nodes
from consilience.data.observations import Modality
from consilience.typing import FloatArray

__all__ = ["NegativeBinomial", "Poisson", "poisson_quantile"]

HIGHEST = 1e9  # largest rate that is drawn from
SUMMED = 30.0  # rates up to which a quantile is found by adding up probabilities


class _Counts(AbstractLikelihood, ABC):
    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    @abstractmethod
    def _log_prob(self, part: Modality, log_rate: Tensor) -> Tensor:
        """log p(x | rate · exposure) of each cell."""

    @abstractmethod
    def _quantile(self, u: FloatArray, rate: FloatArray) -> FloatArray: ...

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        value = self._log_prob(part, nodes(mean, variance) + _log_exposure(part))
        return torch.where(part.seen, log_average(value), 0.0)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        f = mean + variance.sqrt() * noise.normal(f"function/{name}", len(mean), mean.shape[2:])
        u = noise.uniform(f"value/{name}", len(mean), mean.shape[2:])
        rate = f.exp().clamp_max(HIGHEST).double().cpu().numpy()
        return torch.as_tensor(self._quantile(inside(u).double().cpu().numpy(), rate)).to(f)

    def expectation(self, f: Tensor) -> Tensor:
        return f.exp()

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        # log of the smoothed rate, whose variance is about 1 / count
        rate = (part.value + 0.5) / _log_exposure(part).exp()
        return torch.where(part.seen, rate.log(), 0.0), 1 / (part.value + 0.5)


class Poisson(_Counts):
    r"""Counts: :math:`E = x(\mu + \log e) - e\,e^{\mu + v/2} - \log x!`, in closed form."""

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        log_e = _log_exposure(part)
        value = part.value * (mean + log_e) - torch.exp(mean + log_e + 0.5 * variance) - torch.lgamma(part.value + 1)
        return torch.where(part.seen, value, 0.0)

    @torch.no_grad()
    def slopes(self, part: Modality, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_e, seen = _log_exposure(part), part.seen
        rate = torch.where(seen, torch.exp(mean + log_e + 0.5 * variance), 0.0)
        value = torch.where(seen, part.value * (mean + log_e) - torch.lgamma(part.value + 1), 0.0) - rate
        return value, torch.where(seen, part.value, 0.0) - rate, -0.5 * rate

    def _log_prob(self, part: Modality, log_rate: Tensor) -> Tensor:
        return part.value * log_rate - log_rate.exp() - torch.lgamma(part.value + 1)

    def _quantile(self, u: FloatArray, rate: FloatArray) -> FloatArray:
        return poisson_quantile(u, rate)


class NegativeBinomial(_Counts):
    r"""Counts more scattered than Poisson's: mean :math:`\lambda = e\,e^f`, variance :math:`\lambda + \lambda^2/r`.

    .. math:: \log p = \log\binom{x + r - 1}{x} + x \log\frac{\lambda}{\lambda + r} + r \log\frac{r}{\lambda + r}

    with r > 0 learned per cell. Expectations are by quadrature.
    """

    def __init__(self, cells: int) -> None:
        super().__init__(cells)
        self.log_dispersion = nn.Parameter(torch.full((cells,), math.log(10.0)))

    def dispersion(self) -> Tensor:
        """r of each cell, shape (D,); infinite for Poisson counts."""
        return self.log_dispersion.exp()

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        value = self._log_prob(part, nodes(mean, variance) + _log_exposure(part))
        return torch.where(part.seen, average(value), 0.0)

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        value, known = super().pseudo(part)
        return value, known + 1 / self.dispersion().detach()

    def _log_prob(self, part: Modality, log_rate: Tensor) -> Tensor:
        r, x = self.dispersion(), part.value
        whole = torch.logaddexp(log_rate, self.log_dispersion)
        choices = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        return choices + x * (log_rate - whole) + r * (self.log_dispersion - whole)

    def _quantile(self, u: FloatArray, rate: FloatArray) -> FloatArray:
        r = self.dispersion().detach().double().cpu().numpy()
        return scipy.stats.nbinom.ppf(u, np.broadcast_to(r, rate.shape), r / (rate + r))


def poisson_quantile(u: FloatArray, rate: FloatArray) -> FloatArray:
    """The least count at which Poisson's distribution function reaches u, by adding up probabilities where few are.

    Arguments:
        u: In (0, 1), of any shape.
        rate: The same shape.

    Example:
        >>> poisson_quantile(np.array([0.3, 0.5, 0.99]), np.array([1.0, 1.0, 1.0])).tolist()
        [0.0, 1.0, 4.0]
    """
    found = np.zeros(u.shape)
    many = rate > SUMMED
    found[many] = scipy.stats.poisson.ppf(u[many], rate[many])
    place = np.flatnonzero(~many)
    left, mean = u.ravel()[place], rate.ravel()[place]
    chance = np.exp(-mean)
    count, flat = 0, found.reshape(-1)
    while len(place):
        left = left - chance
        done = ~(left > 0)  # also where the rate is not a number
        flat[place[done]] = count
        keep = ~done
        place, left, mean = place[keep], left[keep], mean[keep]
        count += 1
        chance = chance[keep] * mean / count
    return found


def _log_exposure(part: Modality) -> Tensor:
    return torch.zeros_like(part.value) if part.exposure is None else part.exposure.log()
