r"""Scatter as a function of the latents: distributional regression inside a latent variable model."""

import math

import torch
from torch import Tensor, nn

from consilience.blocks.likelihood_base import FLOOR, AbstractLikelihood, known_variance
from consilience.blocks.noise import Noise
from consilience.blocks.quadrature import FEW, average, log_average, nodes
from consilience.data.observations import Modality

__all__ = ["Heteroscedastic"]

STEEP = 30.0  # largest logarithm of a variance, which must not overflow


class Heteroscedastic(AbstractLikelihood):
    r"""Cells whose scatter is a second function and whose shape is learned: :math:`x = f + e^{g/2} \eta + s \epsilon`.

    :math:`\eta` of each cell is a mixture of three Gaussians with mean 0 and variance 1, convolved exactly with the
    error bar :math:`s` and with the uncertainty of f: skewed and heavy-tailed scatter, intrinsic and not measured.
    E is averaged over Gauss-Hermite nodes of f and g, the predictive density over nodes of g.

    References:
        | Variational heteroscedastic Gaussian process regression (Lázaro-Gredilla & Titsias, 2011)
        | Chained Gaussian processes (Saul et al., 2016) | https://arxiv.org/abs/1604.05263
        | Extreme deconvolution (Bovy, Hogg & Roweis, 2011), for mixtures under error bars
    """

    functions = 2

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.log_weight = nn.Parameter(torch.zeros(cells, 3))
        self.shift = nn.Parameter(torch.tensor([-0.7, 0.0, 0.7]).repeat(cells, 1))
        self.log_width = nn.Parameter(torch.zeros(cells, 3))

    def shape(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and variances of the components of η, each (D, 3)."""
        weight = self.log_weight.softmax(-1)
        mean = self.shift - (weight * self.shift).sum(-1, keepdim=True)
        variance = (2 * self.log_width).exp()
        total = (weight * (variance + mean.square())).sum(-1, keepdim=True)
        return weight, mean / total.sqrt(), variance / total

    def _log_prob(self, part: Modality, f: Tensor, variance: Tensor, g: Tensor) -> Tensor:
        """log p(x | g) for a Gaussian f of this variance, over leading axes of f and g."""
        weight, shift, width = self.shape()
        scatter = g.clamp(-STEEP, STEEP).exp()[..., None]
        tau = scatter * width + (FLOOR + known_variance(part) + variance)[..., None]
        away = (part.value - f)[..., None] - scatter.sqrt() * shift
        return torch.logsumexp(weight.log() - 0.5 * (torch.log(2 * math.pi * tau) + away.square() / tau), -1)

    def expected(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        (mean, log_mean), (variance, log_variance) = self._split(mean), self._split(variance)
        f, g = nodes(mean, variance, FEW)[:, None], nodes(log_mean, log_variance, FEW)
        value = average(average(self._log_prob(part, f, torch.zeros_like(f), g)))
        return torch.where(part.seen, value, 0.0)

    def precision(self, part: Modality, mean: Tensor, h: Tensor) -> Tensor:
        # a = e^g / τ bounds the curvature along g up to outliers, also where it is convex (above the scatter that the
        # residuals show, or under large error bars): steps of g stay of order one
        scatter = self._split(mean)[1].clamp(-STEEP, STEEP).exp()
        bound = torch.where(part.seen, 0.5 * scatter / (scatter + FLOOR + known_variance(part)), 0.0)
        return torch.maximum(super().precision(part, mean, h), torch.stack([0 * bound, bound], -1).flatten(-2))

    def log_predictive(self, part: Modality, mean: Tensor, variance: Tensor) -> Tensor:
        (mean, log_mean), (variance, log_variance) = self._split(mean), self._split(variance)
        value = self._log_prob(part, mean, variance, nodes(log_mean, log_variance))
        return torch.where(part.seen, log_average(value), 0.0)

    def draw(self, mean: Tensor, variance: Tensor, noise: Noise, name: str) -> Tensor:
        normal = noise.normal(f"function/{name}", len(mean), mean.shape[2:])
        f, g = self._split(mean + variance.sqrt() * normal)
        weight, shift, width = self.shape()
        chosen = noise.uniform(f"component/{name}", len(mean), (self.cells,))[..., None] > weight.cumsum(-1)[:, :-1]
        number = chosen.sum(-1, keepdim=True)
        shift, width = (array.expand(*f.shape, 3).gather(-1, number)[..., 0] for array in (shift, width))
        eta = shift + width.sqrt() * noise.normal(f"value/{name}", len(mean), (self.cells,))
        return f + (0.5 * g.clamp(-STEEP, STEEP)).exp() * eta

    def start(self, offset: Tensor, noise: Tensor) -> Tensor:
        constant = offset.clone().view(self.cells, 2)
        # factor analysis may leave a cell no noise at all, which a first step of g could not leave
        constant[:, 1] = noise.view(self.cells, 2)[:, 0].clamp_min(0.05).log()
        return constant.flatten()

    def pseudo(self, part: Modality) -> tuple[Tensor, Tensor]:
        # one value says next to nothing of the scatter around it
        value, known = part.value, known_variance(part)
        silent = torch.full_like(known, 1e6)
        return torch.stack([value, 0 * value], -1).flatten(-2), torch.stack([known, silent], -1).flatten(-2)

    def _split(self, array: Tensor) -> tuple[Tensor, Tensor]:
        """Those of f and those of g, each (…, D)."""
        f, g = array.unflatten(-1, (self.cells, 2)).unbind(-1)
        return f, g
