"""Coordinates of moving points: what changes most slowly among all smooth functions of where they are."""

import scipy.linalg
import torch
from torch import Tensor

__all__ = ["slow_coordinates"]

LANDMARKS = 150  # points whose neighbourhoods the functions are made of
NEAREST = 4  # landmarks that are near a point, about
RIDGE = 1e-3  # of the mean variance of a neighbourhood, so that places few trials visit do not stand for a coordinate
CANDIDATES = 12  # slowest functions among which coordinates are chosen
NEW = 0.5  # of the variance of a function that those before must leave unexplained, for it to be a coordinate
COMPARED = 1500  # points by which that is judged


def slow_coordinates(x: Tensor, known: Tensor, count: int, *, lag: int) -> Tensor:
    r"""The slowest functions of moving points, none of which those before explain, (B, T, count).

    Functions :math:`g = \sum_k a_k \phi_k(x)` of Gaussian neighbourhoods of landmarks, with the largest autocorrelation
    :math:`E\,g(x_t)\,g(x_{t + \tau}) / (E\,g^2 + \lambda |a|^2)`. Of a stationary Gaussian process seen through a
    curve they are its Hermite polynomials in order: the first is the process itself. A function that a local average
    over the coordinates before it explains, such as the others of these, is passed over, unless too few are left.
    Points that do not move have coordinates of zero.

    Arguments:
        x: Points, shape (B, T, D).
        known: Which of them count, (B, T); the coordinates of others are zero.
        count: Number of coordinates, each of zero mean and unit variance.
        lag: τ, in steps of time.

    References:
        | Slow feature analysis: unsupervised learning of invariances (Wiskott & Sejnowski, 2002)
        | A variational approach to modeling slow processes in stochastic dynamical systems (Noe & Nuske, 2013)
        | Parsimonious representation of nonlinear dynamical systems through manifold learning (Dsilva et al., 2018)
    """
    points = x[known].double().cpu()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    landmarks = points[order[: max(NEAREST + 1, min(LANDMARKS, len(points) // 4))]]
    far = torch.cdist(points, landmarks).square()
    width = far.kthvalue(NEAREST, dim=1).values.median().clamp_min(1e-12)
    inside = torch.softmax(-0.5 * far / width, -1)
    inside = inside - inside.mean(0)
    wide = torch.zeros(*known.shape, inside.shape[1], dtype=inside.dtype)
    wide[known.cpu()] = inside
    pairs = (known[:, :-lag] & known[:, lag:]).cpu()
    early, late = wide[:, :-lag][pairs], wide[:, lag:][pairs]
    both = early.mT @ late
    size = early.mT @ early + late.mT @ late
    size = size + (RIDGE * size.diagonal().mean()).clamp_min(1e-12) * torch.eye(len(size)).to(size)
    _, vectors = scipy.linalg.eigh((both + both.mT).numpy(), size.numpy())
    slowest = torch.from_numpy(vectors[:, ::-1][:, : max(CANDIDATES, 3 * count)].copy())
    functions = inside @ slowest
    functions = functions / functions.std(0).clamp_min(1e-12)
    some = functions[order[:COMPARED]]
    chosen = [0]
    for k in range(1, functions.shape[1]):
        if len(chosen) < count and _left(some[:, chosen], some[:, k]) > NEW:
            chosen.append(k)
    rest = [k for k in range(functions.shape[1]) if k not in chosen]
    found = functions[:, [*chosen, *rest][:count]]
    found = found * torch.where(found.pow(3).mean(0) < 0, -1.0, 1.0)  # their sign is arbitrary
    z = torch.zeros(*known.shape, count).to(x)
    z[known] = found.to(x)
    return z


def _left(known: Tensor, new: Tensor) -> float:
    """Share of the variance of a function that averages over other points of like coordinates leave."""
    far = torch.cdist(known, known).square()
    near = far.kthvalue(min(20, len(far)), dim=1).values.median().clamp_min(1e-12)
    weight = torch.exp(-0.5 * far / near)
    weight.fill_diagonal_(0.0)
    guess = weight @ new / weight.sum(1).clamp_min(1e-12)
    return float((new - guess).square().mean() / new.square().mean())
