"""What a model of spectra must beat: the mean spectrum and principal components, both aware of masks and errors."""

from dataclasses import dataclass

import numpy as np
import torch

from consilience.blocks.factors import fit_factors
from consilience.data.observations import Observations
from consilience.typing import BoolArray, FloatArray

__all__ = ["SpectralPrediction", "mean_spectrum", "principal_components"]

COMPONENTS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class SpectralPrediction:
    """Gaussian prediction of every pixel, without measurement error: mean and variance, each (N, D)."""

    mean: FloatArray
    variance: FloatArray


def mean_spectrum(train: Observations, given: Observations, *, rounds: int = 50) -> SpectralPrediction:
    r"""The training mean with the intrinsic variance of each pixel, :math:`x_{nd} \sim N(\mu_d, v_d + s_{nd}^2)`.

    Both by maximum likelihood (Fisher scoring of v); the same for every spectrum.
    """
    value, known, seen = _arrays(train)
    count = np.maximum(seen.sum(axis=0), 1)
    mean = (seen * value).sum(axis=0) / count
    variance = np.maximum((seen * (value - mean) ** 2).sum(axis=0) / count, 1e-8)
    for _ in range(rounds):
        weight = seen / (variance + known)
        mean = (weight * value).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-12)
        strength = weight**2
        excess = (strength * ((value - mean) ** 2 - known)).sum(axis=0)
        variance = np.maximum(excess / np.maximum(strength.sum(axis=0), 1e-12), 1e-8)
    shape = given.parts["spectrum"].value.shape
    return SpectralPrediction(np.broadcast_to(mean, shape), np.broadcast_to(variance, shape))


def principal_components(train: Observations, given: Observations, *, seed: int = 0) -> SpectralPrediction:
    r"""Probabilistic principal components with known errors and a noise per pixel, gaps left as gaps.

    :math:`x_n \sim N(b + Wz_n, \mathrm{diag}(\psi + s_n^2))`; the number of components is that which best predicts
    a fifth of the pixels of a fifth of the training spectra, fitted without those.
    """
    value, known, seen = _arrays(train)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(value))
    inner, outer = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    hide = rng.random(seen[outer].shape) < 0.2
    scores = {}
    for count in COMPONENTS:
        found = _predict(
            (value[inner], known[inner], seen[inner]), (value[outer], known[outer], seen[outer] & ~hide), count
        )
        variance = found.variance + known[outer]
        density = -0.5 * (np.log(variance) + (value[outer] - found.mean) ** 2 / variance)
        scores[count] = float(density[hide & seen[outer]].mean())
    best = max(scores, key=lambda count: scores[count])
    return _predict((value, known, seen), _arrays(given), best)


def _predict(
    train: tuple[FloatArray, FloatArray, BoolArray], given: tuple[FloatArray, FloatArray, BoolArray], count: int
) -> SpectralPrediction:
    # One scale for all pixels: the prior of the loadings is on a unit scale.
    scale = float(np.std(train[0][train[2]]))
    fitted = fit_factors(*_tensors(train, scale), factors=count)
    mean, precision = fitted(*_tensors(given, scale))
    w = fitted.loadings
    covariance = torch.linalg.inv(precision)
    variance = torch.einsum("dq,nqr,dr->nd", w, covariance, w) + fitted.log_noise.exp()
    return SpectralPrediction(
        scale * (mean @ w.mT + fitted.offset).detach().numpy(), scale**2 * variance.detach().numpy()
    )


def _tensors(arrays: tuple[FloatArray, FloatArray, BoolArray], scale: float) -> tuple[torch.Tensor, ...]:
    value, known, seen = arrays
    return torch.as_tensor(value / scale), torch.as_tensor(known / scale**2), torch.as_tensor(seen)


def _arrays(obs: Observations) -> tuple[FloatArray, FloatArray, BoolArray]:
    part = obs.parts["spectrum"]
    sigma = np.zeros(part.value.shape) if part.sigma is None else np.nan_to_num(part.sigma)
    return np.nan_to_num(part.value), sigma**2, part.seen
