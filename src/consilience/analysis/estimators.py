r"""How much two random vectors know of each other: estimates and bounds from samples, each with where it holds.

- :func:`ksg`, an estimate from distances of neighbours, holds up to about five columns in all;
- :func:`contrastive`, InfoNCE, a lower bound on average, has room below the logarithm of the batch;
- :func:`club`, vCLUB, is above the information where its conditional is right, far above where it is large;
- :func:`gaussian_information` is that of the Gaussian of the same covariance.
"""

import math
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import digamma
from torch import Tensor, nn

from consilience.analysis.base import tiles
from consilience.analysis.reading import varies
from consilience.blocks.information import ConditionalGaussian, Critic, info_nce, vclub
from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["club", "contrastive", "gaussian_information", "ksg"]

HIDDEN = 64  # width of networks
STEPS, RATE = 32, 1e-3  # of Adam between looks at the rows to stop by
ROUNDS, PATIENCE = 100, 10  # most looks, and looks without a better network


def gaussian_information(x: FloatArray, y: FloatArray) -> float:
    r"""Information of two Gaussian vectors in nats, from their sample covariance.

    .. math:: -\tfrac12 \log \frac{|C|}{|C_{xx}|\,|C_{yy}|}

    Of other vectors with this covariance it may be above or below what they share; at least what linear regression
    finds. Chance alone gives about PQ/(2N) nats, which is taken off.

    Arguments:
        x: Shape (N, P), columns that do not vary count nothing.
        y: Shape (N, Q).

    Raises:
        DataError: lengths that differ, not more rows than columns, or values that are not finite.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((4000, 2))
        >>> round(gaussian_information(x[:, :1], 0.6 * x[:, :1] + 0.8 * x[:, 1:]), 1)  # -log(0.8)
        0.2
    """
    if len(x) != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(f"Expected as many rows of both, all finite; got {len(x)} and {len(y)}. Leave others out.")
    x, y = (one[:, varies(one)] for one in (x.reshape(len(x), -1), y.reshape(len(y), -1)))
    count = x.shape[1] + y.shape[1]
    if len(x) <= count + 1:
        raise DataError(f"Expected more rows than the {count} columns; got {len(x)}. Give more rows.")
    if not (x.shape[1] and y.shape[1]):
        return 0.0
    basis = [np.linalg.qr(one - one.mean(axis=0))[0] for one in (x, y)]
    told = np.clip(np.linalg.svd(basis[0].T @ basis[1], compute_uv=False), 0.0, 1 - 1e-12)  # canonical correlations
    return float(-0.5 * np.log1p(-np.square(told)).sum() - x.shape[1] * y.shape[1] / (2 * len(x)))


def ksg(x: FloatArray, y: FloatArray, *, neighbours: int = 3) -> float:
    r"""Mutual information of two random vectors in nats, by the first estimator of Kraskov, Stoegbauer & Grassberger.

    .. math:: \psi(k) + \psi(N) - \bigl\langle \psi(n_x + 1) + \psi(n_y + 1) \bigr\rangle

    where :math:`n_x` (:math:`n_y`) other rows are nearer in x (in y) than the k-th neighbour is in both; distances are
    the largest over columns, each in units of its standard deviation. A column that does not vary counts nothing.

    The estimate is not a bound and may be below zero. Independent vectors give zero on average whatever their size, but
    of dependent ones it finds the less the more columns there are, noise included: .46 of .45, .76 of .89 and .97 of
    1.79 nats for 2 000 Gaussian rows that correlate by .6 in each of 2, 4 and 8 columns. With more than about five
    columns read it as "at least", beside InfoNCE and what a network reads. Time grows with N².

    Arguments:
        x: Shape (N, …), flattened to columns.
        y: Shape (N, …).
        neighbours: k; more lower the variance and raise the bias.

    Raises:
        DataError: lengths that differ, too few rows, or values that are not finite.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((500, 2))
        >>> ksg(x[:, 0], x[:, 1]) < 0.1 < 1.0 < ksg(x[:, 0], x[:, 0] + 0.1 * x[:, 1])
        True

    References:
        Estimating mutual information (Kraskov, Stoegbauer & Grassberger, 2004), eq. 8.
    """
    if len(x) != len(y) or not 1 <= neighbours < len(x):
        raise DataError(f"Expected as many rows of both and more than {neighbours}; got {len(x)} and {len(y)}.")
    columns = []
    for one in (x.reshape(len(x), -1), y.reshape(len(y), -1)):
        if not np.isfinite(one).all():
            raise DataError("Expected finite values; got others. Leave those rows out.")
        some = one[:, varies(one)]
        columns.append(some / some.std(axis=0))
    if not all(one.shape[1] for one in columns):
        return 0.0
    counts = np.empty((2, len(x)))
    for rows in tiles(len(x), 4 * len(x)):
        apart = np.stack([cdist(one[rows], one, "chebyshev") for one in columns])
        nearest = np.partition(apart.max(axis=0), neighbours, axis=1)[:, neighbours]
        counts[:, rows] = (apart < nearest[:, None]).sum(axis=-1)  # with the row itself: n + 1
    counts = np.maximum(counts, 1)  # where the k-th neighbour is the row itself once more
    return float(digamma(neighbours) + digamma(len(x)) - digamma(counts).sum(axis=0).mean())


def contrastive(
    x: FloatArray, y: FloatArray, x_held: FloatArray, y_held: FloatArray, *, batch: int = 256, seed: int = 0
) -> float:
    """InfoNCE on held rows of a critic fitted on others, in nats: a lower bound on average, at most log(batch).

    A tenth of the rows to fit on tells when to stop; if no critic is better there than none, the bound is 0.

    Arguments:
        x: Rows to fit on, (N, Q).
        y: Their partners, (N, P).
        x_held: Rows on which the critic is measured, (M, Q), in whole batches of a random order.
        y_held: Their partners, (M, P).
        batch: Rows among which the critic finds the partner of each; all of fewer.
        seed: Of the critic and the order of rows.

    Raises:
        DataError: fewer than twenty rows to fit on, or two held ones.
    """
    rng = _checked(x, x_held, seed)
    held = rng.permutation(len(x_held))  # rows of a sorted table are alike
    (a, a_held), (b, b_held) = _scaled(x, x_held[held]), _scaled(y, y_held[held])
    with torch.random.fork_rng(devices=[]):  # layers draw from torch's global generator
        torch.manual_seed(seed)
        critic = Critic(a.shape[1], b.shape[1], HIDDEN)

    def loss(rows: Tensor) -> Tensor:
        return -info_nce(critic(a[rows], b[rows]))

    better = _taught(critic, loss, lambda rows: _bound(critic, a[rows], b[rows], batch), (len(x), batch, 0.0), rng)
    return _bound(critic, a_held, b_held, batch) if better else 0.0


def club(
    x: FloatArray, y: FloatArray, x_held: FloatArray, y_held: FloatArray, *, batch: int = 256, seed: int = 0
) -> float:
    r"""vCLUB on held rows of a Gaussian conditional :math:`q(y \mid x)` fitted on others, in nats.

    An upper bound only as far as q is right; a q that is not may make it anything, also too small. What it bounds it is
    far above where y is nearly a function of x: of Gaussians it is :math:`\sum_d \rho_d^2/(1 - \rho_d^2)`.

    Arguments:
        x: Rows to fit on, (N, Q).
        y: Their partners, (N, P), which q predicts.
        x_held: Rows on which it is measured, (M, Q).
        y_held: Their partners, (M, P).
        batch: Rows of each step.
        seed: Of the network and the order of rows.

    Raises:
        DataError: fewer than twenty rows to fit on, or two held ones.
    """
    rng = _checked(x, x_held, seed)
    (a, a_held), (b, b_held) = _scaled(x, x_held), _scaled(y, y_held)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        q = ConditionalGaussian(a.shape[1], b.shape[1], HIDDEN)

    def loss(rows: Tensor) -> Tensor:
        return -q.log_prob(b[rows], a[rows]).mean()

    _taught(q, loss, lambda rows: -float(loss(rows)), (len(x), batch, -math.inf), rng)
    with torch.no_grad():
        return float(vclub(q, b_held, a_held))


def _checked(x: FloatArray, x_held: FloatArray, seed: int) -> np.random.Generator:
    if len(x) < 20 or len(x_held) < 2:
        raise DataError(f"Expected 20 rows to fit on and 2 held ones; got {len(x)} and {len(x_held)}.")
    return np.random.default_rng(seed)


def _taught(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], float],
    sizes: tuple[int, int, float],
    rng: np.random.Generator,
) -> bool:
    """Fit by the loss on nine tenths of the rows; the best by the score on the rest, and whether it beats the least.

    ``sizes`` are the number of rows, those of a batch, and the least score.
    """
    count, batch, best = sizes
    order = torch.from_numpy(rng.permutation(count))
    stop, order = order[: count // 10], order[count // 10 :]
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    state, waited = None, 0
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            rows = order[rng.choice(len(order), min(batch, len(order)), replace=False)]
            optimiser.zero_grad()
            loss(rows).backward()
            optimiser.step()
        with torch.no_grad():
            value, waited = score(stop), waited + 1
        if value > best:
            best, state, waited = value, deepcopy(network.state_dict()), 0
        if waited == PATIENCE:
            break
    if state is not None:
        network.load_state_dict(state)
    return state is not None


@torch.no_grad()
def _bound(critic: Critic, x: Tensor, y: Tensor, batch: int) -> float:
    """InfoNCE, the mean of whole batches of rows."""
    size = min(batch, len(x))
    whole = len(x) // size * size
    pairs = zip(x[:whole].split(size), y[:whole].split(size), strict=True)
    return float(torch.stack([info_nce(critic(a, b)) for a, b in pairs]).mean())


def _scaled(x: FloatArray, other: FloatArray) -> tuple[Tensor, Tensor]:
    """Both in units of the first, what does not vary at zero."""
    centre, unit = x.mean(axis=0), np.where(varies(x), x.std(axis=0), np.inf)
    return torch.from_numpy((x - centre) / unit).float(), torch.from_numpy((other - centre) / unit).float()
