"""How well a classifier tells two sets of draws from each other: .5 if they are of one density, 1 if they are apart.

The test of sbi: a network of two hidden layers, ten units per dimension each, that a tenth of its rows stops (sbibm's,
which is trained until it fits, takes two minutes a galaxy), five folds, coordinates standardised by the first set.
Draws that are repeated stay in one fold: a sampler may give the same draw twice, and a classifier that has met it would
know where it belongs.

References:
    Lopez-Paz & Oquab 2017, Revisiting classifier two-sample tests; Lueckmann et al. 2021, Benchmarking simulation-based
    inference
"""

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from consilience.typing import FloatArray

__all__ = ["c2st"]


def c2st(first: FloatArray, second: FloatArray, *, seed: int = 0, folds: int = 5) -> float:
    """Share of draws (S, D) and (T, D), with S and T alike, that a classifier puts right on folds it has not seen.

    Arguments:
        first: Draws of one density.
        second: Draws of the other.
        seed: Of folds and networks.
        folds: Of cross-validation.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> c2st(rng.normal(size=(50, 1)), 9 + rng.normal(size=(50, 1)))
        1.0
    """
    x = (np.concatenate([first, second]) - first.mean(axis=0)) / first.std(axis=0)
    which = np.repeat([0, 1], [len(first), len(second)])
    _, draw = np.unique(x, axis=0, return_inverse=True)
    size = (10 * x.shape[1],) * 2
    network = MLPClassifier(size, max_iter=1000, early_stopping=True, n_iter_no_change=50, random_state=seed)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(network, x, which, groups=draw, cv=split).mean())
