r"""Bounds of the information between two random vectors, from samples: vCLUB above, InfoNCE below; parts of a KL.

References:
    | CLUB: a contrastive log-ratio upper bound of mutual information (Cheng et al., 2020)
    | Representation learning with contrastive predictive coding (van den Oord et al., 2018)
    | Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from consilience.blocks.networks import Perceptron
from consilience.blocks.posteriors import DiagonalLatent

__all__ = ["ConditionalGaussian", "Critic", "Parts", "info_nce", "kl_parts", "vclub"]

WIDEST = 6.0  # largest absolute log variance


class ConditionalGaussian(nn.Module):
    r""":math:`q_\theta(y \mid x) = N(\mu_\theta(x), \mathrm{diag}\,\sigma_\theta^2(x))`.

    Arguments:
        given: Size of x.
        size: Size of y.
        hidden: Width of two layers.

    Example:
        >>> q = ConditionalGaussian(2, 3, 8)
        >>> q.log_prob(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, given: int, size: int, hidden: int) -> None:
        super().__init__()
        self.network = Perceptron(given, hidden, hidden, 2 * size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, size)."""
        mean, log_variance = self.network(x).chunk(2, -1)
        return mean, WIDEST * torch.tanh(log_variance / WIDEST)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Log density of each row, (B,)."""
        mean, log_variance = self(x)
        return -0.5 * ((y - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(-1)


def vclub(q: ConditionalGaussian, y: Tensor, x: Tensor) -> Tensor:
    r"""vCLUB of rows of y (B, Q) and x (B, P): no gradient reaches q.

    .. math:: \hat I = \frac1B \sum_i \log q_\theta(y_i \mid x_i) - \frac1{B^2} \sum_{ij} \log q_\theta(y_j \mid x_i)

    It is at least the mutual information only where :math:`q_\theta` is near p(y | x). For a Gaussian pair of
    correlation ρ and the true conditional it is ρ²/(1 − ρ²), not the information −½ log(1 − ρ²).
    """
    frozen = {name: parameter.detach() for name, parameter in q.named_parameters()}
    mean, log_variance = torch.func.functional_call(q, frozen, (x,))
    # the average over all pairs needs but the mean and the variance of y
    others = (y.mean(0) - mean).square() + y.var(0, correction=0)
    return (0.5 * (others - (y - mean).square()) * (-log_variance).exp()).sum(-1).mean()


class Critic(nn.Module):
    """A score of pairs (x, y): scalar products of what two networks make of them.

    Arguments:
        left: Size of x.
        right: Size of y.
        hidden: Width of the layers and of the products.
    """

    def __init__(self, left: int, right: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = Perceptron(left, hidden, hidden), Perceptron(right, hidden, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of all pairs, (B, B)."""
        return self.left(x) @ self.right(y).mT


def info_nce(scores: Tensor) -> Tensor:
    r"""InfoNCE of the scores (B, B) of all pairs: a lower bound of the information on average, at most log B.

    .. math:: \frac1B \sum_i \log \frac{e^{s_{ii}}}{\frac1B \sum_j e^{s_{ij}}}

    Example:
        >>> round(float(info_nce(100 * torch.eye(8))), 3) == round(math.log(8), 3)
        True
    """
    return (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(len(scores))


class Parts(NamedTuple):
    """What the mean of KL(q(z | n) ‖ N(0, I)) over objects n is the sum of, nats."""

    index: Tensor  # I(z; n), what z tells of which object it is
    total: Tensor  # total correlation of q(z)
    each: Tensor  # KL of each dimension's q(z_d) from N(0, 1), added up


def kl_parts(z: Tensor, q: DiagonalLatent, objects: int) -> Parts:
    r"""Information about the index, total correlation and dimension-wise KL of draws z (B, Q) of q(z | n).

    .. math::
        E_n KL(q(z \mid n) \| p(z)) = I(z; n) + KL\Bigl(q(z) \Big\| \prod_d q(z_d)\Bigr) +
        \sum_d KL(q(z_d) \| p(z_d))

    The density of all N objects, :math:`q(z) = \frac1N \sum_n q(z \mid n)`, is estimated from a batch in which each z
    meets its own object, of weight 1 / N, and others, which stand for the rest with weight (1 − 1/N) / (B − 1) each.
    That is exact where the batch is the table.

    Arguments:
        z: One draw of each object of the batch, (B, Q).
        q: Their posteriors.
        objects: N >= B.

    Example:
        >>> q = DiagonalLatent(torch.zeros(3, 2), torch.ones(3, 2))
        >>> [round(float(part), 6) for part in kl_parts(torch.zeros(3, 2), q, 3)]
        [0.0, 0.0, 0.0]
    """
    batch = len(z)
    away = (z[:, None] - q.mean) / q.std
    log_each = -0.5 * (away.square() + math.log(2 * math.pi)) - q.std.log()  # of z_i under q(. | j), (B, B, Q)
    rest = math.log((1 - 1 / objects) / (batch - 1)) if batch > 1 else -math.inf
    weight = torch.full((batch, batch), rest).fill_diagonal_(-math.log(objects) if batch > 1 else 0.0).to(z)
    own = log_each.diagonal().sum(0)
    mixed = (log_each.sum(-1) + weight).logsumexp(1)
    apart = (log_each + weight[..., None]).logsumexp(1)
    prior = -0.5 * (z.square() + math.log(2 * math.pi))
    return Parts((own - mixed).mean(), (mixed - apart.sum(-1)).mean(), (apart - prior).sum(-1).mean())
