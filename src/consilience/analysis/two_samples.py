"""Are two sets of points of one distribution? A classifier, kernels, the cost of transport, and two moments."""

import numpy as np

from consilience.errors import DataError
from consilience.typing import FloatArray

__all__ = ["c2st", "frechet", "mmd", "sinkhorn"]

PERMUTATIONS = 200
RATE = 1e-2  # of the classifier: with 1e-3 it found .56 of fifty points each that are nine sigma apart
PATIENCE = 20  # epochs without a better score; with 50 it finds as much in twice the time
ENTROPY = 0.05  # of transport, over the median cost
LEAST = 10  # points of each set


def c2st(first: FloatArray, second: FloatArray, *, seed: int = 0, folds: int = 5) -> float:
    """Share of points that a classifier puts right on folds it has not seen: .5 if of one density, 1 if apart.

    The test of sbi: a network of two hidden layers, ten units per dimension each, that a tenth of its rows stops
    (sbibm's, which is trained until it fits, takes minutes), coordinates standardised by the first set. Points that are
    repeated stay in one fold: a sampler may give the same draw twice, and a classifier that has met it would know where
    it belongs.

    Arguments:
        first: Points (S, D).
        second: Points (T, D), about as many.
        seed: Of folds and networks.
        folds: Of cross-validation.

    Raises:
        DataError: other shapes, values that are not finite, fewer than ten points of each, or fewer different ones than
            folds.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> round(c2st(rng.normal(size=(50, 1)), 9 + rng.normal(size=(50, 1))), 2)
        0.98

    References:
        | Revisiting classifier two-sample tests (Lopez-Paz & Oquab, 2017)
        | Benchmarking simulation-based inference (Lueckmann et al., 2021)
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    _check(first, second)
    x = (np.concatenate([first, second]) - first.mean(axis=0)) / np.maximum(first.std(axis=0), 1e-300)
    which = np.repeat([0, 1], [len(first), len(second)])
    _, draw = np.unique(x, axis=0, return_inverse=True)
    if len(np.unique(draw)) < folds:
        raise DataError(f"Expected {folds} different points at least; got {len(np.unique(draw))}. Count them instead.")
    size = (10 * x.shape[1],) * 2
    network = MLPClassifier(
        size,
        learning_rate_init=RATE,
        max_iter=1000,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        random_state=seed,
    )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(network, x, which, groups=draw, cv=split).mean())


def mmd(first: FloatArray, second: FloatArray, *, seed: int = 0) -> tuple[float, float]:
    r"""Squared maximum mean discrepancy, unbiased, and its p-value by permutation.

    .. math:: \overline{k(x, x')} + \overline{k(y, y')} - 2\,\overline{k(x, y)}, \quad
              k(x, y) = e^{-\|x - y\|^2 / 2 h^2}

    with h the median distance of all points; the means are over different points.

    Arguments:
        first: Points (S, D).
        second: Points (T, D).
        seed: Of two hundred permutations.

    Raises:
        DataError: as :func:`c2st`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> value, pvalue = mmd(rng.normal(size=(50, 2)), 1 + rng.normal(size=(60, 2)))
        >>> value > 0.1, pvalue < 0.01
        (True, True)

    References:
        A kernel two-sample test (Gretton et al., 2012)
    """
    from scipy.spatial.distance import pdist, squareform

    _check(first, second)
    squares = pdist(np.concatenate([first, second]), "sqeuclidean")
    kernel = squareform(np.exp(-0.5 * squares / max(float(np.median(squares)), 1e-300)))
    size, count = len(first), len(kernel)

    def discrepancy(some: FloatArray) -> FloatArray:
        """Of the rows of indicators of the first set, (P, N)."""
        other = 1 - some
        own, cross = (np.einsum("pn,pn->p", one @ kernel, two) for one, two in ((some, some), (some, other)))
        rest = np.einsum("pn,pn->p", other @ kernel, other)
        left = count - size
        return own / (size * (size - 1)) + rest / (left * (left - 1)) - 2 * cross / (size * left)

    rng = np.random.default_rng(seed)
    base = (np.arange(count) < size).astype(float)
    found = discrepancy(np.stack([base, *(rng.permutation(base) for _ in range(PERMUTATIONS))]))
    return float(found[0]), float(np.mean(found >= found[0]))


def sinkhorn(first: FloatArray, second: FloatArray) -> float:
    r"""Sinkhorn divergence of two sets of points: the squared distance of transport without its entropic bias.

    .. math:: W_\epsilon(x, y) - \tfrac12 W_\epsilon(x, x) - \tfrac12 W_\epsilon(y, y)

    with the cost :math:`\|x - y\|^2` and ε a twentieth of its median.

    Arguments:
        first: Points (S, D).
        second: Points (T, D).

    Raises:
        DataError: as :func:`c2st`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(300, 1)), 3 + rng.normal(size=(300, 1))
        >>> 8 < sinkhorn(x, y) < 10
        True

    References:
        Interpolating between optimal transport and MMD using Sinkhorn divergences (Feydy et al., 2019)
    """
    import ot

    _check(first, second)
    cost = float(np.median(ot.dist(first, second)))
    if cost <= 0:
        return 0.0
    found = ot.bregman.empirical_sinkhorn_divergence(first, second, ENTROPY * cost, verbose=False, warn=False)
    return max(np.asarray(found, dtype=float).item(), 0.0)


def frechet(first: FloatArray, second: FloatArray) -> float:
    r"""Fréchet distance of the Gaussians with the means and covariances of two sets of points.

    .. math:: |\mu_x - \mu_y|^2 + \operatorname{tr}\bigl(C_x + C_y - 2 (C_x C_y)^{1/2}\bigr)

    Of what a network sees in images it is known as the Fréchet inception distance. It grows with the number of features
    over that of points: compare sets of one size only.

    Arguments:
        first: Points (S, D).
        second: Points (T, D).

    Raises:
        DataError: as :func:`c2st`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(5000, 2))
        >>> round(frechet(x, x + [3, 0]), 6), round(frechet(x, 2 * x), 1)
        (9.0, 2.0)

    References:
        | The Fréchet distance between multivariate normal distributions (Dowson & Landau, 1982)
        | GANs trained by a two time-scale update rule (Heusel et al., 2017)
    """
    _check(first, second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    scaled = [(points - points.mean(axis=0)) / np.sqrt(len(points) - 1) for points in (first, second)]
    # the eigenvalues of C_x C_y are the squared singular values of X Y^T, and so of R_x R_y^T
    factors = [np.asarray(np.linalg.qr(points, mode="r")) for points in scaled]
    shared = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False)
    total = sum(float(np.square(points).sum()) for points in scaled)
    return max(float(shift @ shift) + total - 2 * float(shared.sum()), 0.0)


def _check(first: FloatArray, second: FloatArray) -> None:
    whole = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[1] > 0
    if (
        not whole
        or min(len(first), len(second)) < LEAST
        or not (np.isfinite(first).all() and np.isfinite(second).all())
    ):
        raise DataError(
            f"Expected points (S, D) and (T, D), {LEAST} at least of each, all finite; got {first.shape} and "
            f"{second.shape}. Leave others out, or give more."
        )
