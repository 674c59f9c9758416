r"""The linear-Gaussian model, whose conditionals are known in closed form, and a curved relative with known factors.

The first is the exact truth that every latent family with linear decoders must meet; the second tells whether shared
and private factors are told apart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from consilience.data.observations import Modality, Observations, State
from consilience.data.schema import ModalitySpec, Schema, nearest
from consilience.errors import RequestError
from consilience.typing import FloatArray

__all__ = ["LinearGaussian", "factors", "gaussian", "linear_gaussian"]

SIZES: Mapping[str, int] = MappingProxyType({"x": 6, "y": 3})


@dataclass(frozen=True, slots=True)
class LinearGaussian:
    r"""The joint Gaussian of M modalities that share one latent vector.

    .. math:: z \sim N(0, I_Q), \quad y^{(m)} = W_m z + b_m + \psi_m ⊙ ε, \quad x^{(m)} = y^{(m)} + s ⊙ e

    y is the noiseless quantity with the model's intrinsic scatter, x the measurement of it with known error bars s.

    Arguments:
        loadings: W_m by modality, shape (D_m, Q).
        offset: b_m by modality, shape (D_m,).
        noise: psi_m > 0 by modality, the standard deviation of the intrinsic scatter, shape (D_m,).

    Raises:
        RequestError: shapes that do not fit, or a noise that is not positive.

    References:
        Bishop, Pattern Recognition and Machine Learning, 2006, sections 2.3 and 12.2.

    Example:
        >>> model = linear_gaussian(seed=0, latent_dim=1, sizes={"x": 3, "y": 2})
        >>> table = model.simulate(5, seed=1, missing=0.3)
        >>> mean, covariance = model.posterior(table.hide("y"), ["y"])
        >>> mean.shape, covariance.shape
        ((5, 2), (5, 2, 2))
    """

    loadings: Mapping[str, FloatArray]
    offset: Mapping[str, FloatArray]
    noise: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        dims = {np.shape(loading)[1:] for loading in self.loadings.values()}
        if len(dims) != 1 or len(next(iter(dims))) != 1:
            raise RequestError(f"Expected loadings (D_m, Q) with one Q; got {dims}. Give one matrix per modality.")
        for field, vectors in (("offset", self.offset), ("noise", self.noise)):
            shapes = {name: np.shape(vector) for name, vector in vectors.items()}
            expected = {name: (len(loading),) for name, loading in self.loadings.items()}
            if shapes != expected:
                raise RequestError(f"Expected {field} with shapes {expected}; got {shapes}. Give one number per cell.")
        if any(np.min(psi) <= 0 for psi in self.noise.values()):
            raise RequestError("Expected a positive noise in every cell; got zero or less. Raise it.")

    @property
    def latent_dim(self) -> int:
        """Q, the dimension of z."""
        return next(iter(self.loadings.values())).shape[1]

    @property
    def schema(self) -> Schema:
        """One dimensionless modality per loading matrix."""
        return Schema(modalities=tuple(ModalitySpec(name=m, shape=(len(w),)) for m, w in self.loadings.items()))

    def simulate(
        self, n: int, *, seed: int, missing: float = 0.0, sigma: float = 0.0, truth: bool = False
    ) -> Observations:
        r"""Draw a table of n objects from the model.

        Arguments:
            n: Objects.
            seed: Seed of the generator.
            missing: Probability that a cell is unseen, independently of everything.
            sigma: Median of the error bars s, drawn per cell as log-normal with 0.3 in log s; 0 for a table without.
            truth: Add the complete modalities ``true_NAME`` (y, without s) and ``true_latent`` (z).

        Raises:
            RequestError: a probability outside [0, 1) or a negative sigma.
        """
        if not 0 <= missing < 1 or sigma < 0:
            raise RequestError(f"Expected 0 <= missing < 1 and sigma >= 0; got {missing} and {sigma}. Change them.")
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((n, self.latent_dim))
        values: dict[str, FloatArray] = {}
        errors: dict[str, FloatArray] = {}
        true: dict[str, FloatArray] = {}
        for name, w in self.loadings.items():
            y = z @ w.T + self.offset[name] + self.noise[name] * rng.standard_normal((n, len(w)))
            s = sigma * np.exp(0.3 * rng.standard_normal(y.shape))
            x = y + s * rng.standard_normal(y.shape)
            values[name] = np.where(rng.random(y.shape) < missing, np.nan, x)
            true[f"true_{name}"] = y
            if sigma > 0:
                errors[name] = s
        schema = self.schema
        if truth:
            true["true_latent"] = z
            added = tuple(ModalitySpec(name=name, shape=y.shape[1:]) for name, y in true.items())
            schema, values = Schema(modalities=schema.modalities + added), values | true
        return Observations.from_arrays(schema, values, sigma=errors)

    def latent(self, obs: Observations) -> tuple[FloatArray, FloatArray]:
        r"""The Gaussian p(z | seen cells): mean (N, Q) and covariance (N, Q, Q).

        .. math:: Σ = (I + Wᵀ P W)^{-1}, \quad μ = Σ Wᵀ P (x - b), \quad P = diag(seen / (ψ² + s²))

        Raises:
            RequestError: limits among the seen cells; they have no closed form.
        """
        residual, precision, _ = self._cells(obs)
        w = self._stacked(self.loadings)
        information = np.eye(self.latent_dim) + np.einsum("dq,nd,dr->nqr", w, precision, w, optimize=True)
        covariance = np.linalg.inv(information)
        mean = np.einsum("nqr,nr->nq", covariance, (precision * residual) @ w)
        return mean, 0.5 * (covariance + covariance.transpose(0, 2, 1))

    def posterior(
        self, context: Observations, targets: Iterable[str], *, observed: Observations | None = None
    ) -> tuple[FloatArray, FloatArray]:
        r"""The Gaussian p(y_targets | seen cells of the context), over any cells given any others.

        With μ, Σ of z as in :meth:`latent` and k = ψ²/(ψ² + s²) in seen cells, 0 in others,

        .. math:: E[y] = (1-k)(Wμ + b) + k x, \quad
                  Cov[y] = (1-k) W Σ Wᵀ (1-k) + diag((1-k) ψ²)

        Arguments:
            context: What is seen; a target's own seen cells count too, so hide what is to be predicted.
            targets: Modalities, whose D cells are concatenated in this order.
            observed: The same rows with their error bars: the answer is then for a new measurement y + s e of the
                cells with these s (a NaN counts as 0).

        Returns:
            mean, shape (N, D), and covariance, shape (N, D, D).

        Raises:
            RequestError: an unknown target, or limits among the seen cells.
        """
        names = list(targets)
        for name in names:
            if name not in self.loadings:
                raise RequestError(
                    f"Expected a target among {list(self.loadings)}; got {name!r}.{nearest(name, self.loadings)}"
                )
        residual, precision, _ = self._cells(context)
        mu, sigma = self.latent(context)
        columns = np.concatenate([self._columns(name) for name in names])
        w, b = self._stacked(self.loadings)[columns], self._stacked(self.offset)[columns]
        psi2 = self._stacked(self.noise)[columns] ** 2
        k = precision[:, columns] * psi2
        mean = (1 - k) * (mu @ w.T) + k * residual[:, columns] + b
        factor = (1 - k)[:, :, None] * w
        covariance = factor @ sigma @ factor.transpose(0, 2, 1)
        variance = (1 - k) * psi2
        if observed is not None:
            variance = variance + np.concatenate([_variance(observed.parts[name]) for name in names], axis=1)
        diagonal = np.arange(len(columns))
        covariance[:, diagonal, diagonal] += variance
        return mean, covariance

    def log_prob(self, obs: Observations) -> FloatArray:
        r"""The log marginal density of the seen cells of each row, shape (N,); 0 where nothing is seen.

        .. math:: -½ [ rᵀ P r - (Wᵀ P r)ᵀ Σ (Wᵀ P r) + \log|I + Wᵀ P W| + Σ_d \log 2π(ψ² + s²) ]

        Raises:
            RequestError: limits among the seen cells.
        """
        residual, precision, variance = self._cells(obs)
        w = self._stacked(self.loadings)
        projected = (precision * residual) @ w
        mean, covariance = self.latent(obs)
        quadratic = (precision * residual**2).sum(axis=1) - (projected * mean).sum(axis=1)
        determinant = np.where(precision > 0, np.log(2 * np.pi * variance), 0.0).sum(axis=1)
        return -0.5 * (quadratic + determinant - np.linalg.slogdet(covariance)[1])

    def _cells(self, obs: Observations) -> tuple[FloatArray, FloatArray, FloatArray]:
        residual, precision, variance = [], [], []
        for name, w in self.loadings.items():
            total = np.broadcast_to(np.square(self.noise[name]), (len(obs), len(w)))
            if name not in obs.schema:
                residual.append(np.zeros(total.shape))
                precision.append(np.zeros(total.shape))
                variance.append(total)
                continue
            part = obs.parts[name]
            if (part.seen & ~part.measured).any():
                at = int(np.argwhere(part.state > State.MEASURED)[0][0])
                raise RequestError(f"Expected measured cells in '{name}'; got a limit in row {at}. Hide it.")
            total = total + _variance(part)
            residual.append(np.where(part.seen, part.value - self.offset[name], 0.0))
            precision.append(np.where(part.seen, 1.0 / total, 0.0))
            variance.append(total)
        return np.hstack(residual), np.hstack(precision), np.hstack(variance)

    def _stacked(self, field: Mapping[str, FloatArray]) -> FloatArray:
        return np.concatenate([np.asarray(field[name], dtype=np.float64) for name in self.loadings])

    def _columns(self, name: str) -> np.ndarray:
        start = 0
        for other, w in self.loadings.items():
            if other == name:
                break
            start += len(w)
        return start + np.arange(len(self.loadings[name]))


def linear_gaussian(*, seed: int, latent_dim: int = 2, sizes: Mapping[str, int] = SIZES) -> LinearGaussian:
    """A random linear-Gaussian model: W ~ N(0, 1/Q), b ~ N(0, 1), psi uniform in 0.2 … 0.5.

    Arguments:
        seed: Seed of the generator.
        latent_dim: Q.
        sizes: Number of cells D_m by modality.

    Raises:
        RequestError: no modality, or a size or Q below 1.

    Example:
        >>> linear_gaussian(seed=0).loadings["x"].shape
        (6, 2)
    """
    if latent_dim < 1 or not sizes or min(sizes.values()) < 1:
        raise RequestError(f"Expected latent_dim and sizes of at least 1; got {latent_dim} and {dict(sizes)}.")
    rng = np.random.default_rng(seed)
    loadings, offset, noise = {}, {}, {}
    for name, size in sizes.items():
        loadings[name] = rng.standard_normal((size, latent_dim)) / np.sqrt(latent_dim)
        offset[name] = rng.standard_normal(size)
        noise[name] = rng.uniform(0.2, 0.5, size)
    return LinearGaussian(loadings, offset, noise)


def gaussian(
    n: int,
    *,
    seed: int,
    latent_dim: int = 2,
    sizes: Mapping[str, int] = SIZES,
    missing: float = 0.2,
    sigma: float = 0.0,
) -> Observations:
    """A table drawn from ``linear_gaussian(seed=seed, latent_dim=latent_dim, sizes=sizes)``.

    Arguments:
        n: Objects.
        seed: Seed of the model; the table uses ``seed + 1``. Split one table to get training and test rows.
        latent_dim: Q.
        sizes: Number of cells by modality.
        missing: Probability that a cell is unseen.
        sigma: Median of the known error bars; 0 for none.

    Raises:
        RequestError: as :func:`linear_gaussian` and :meth:`LinearGaussian.simulate`.

    Example:
        >>> gaussian(4, seed=0).schema.names
        ('x', 'y')
    """
    model = linear_gaussian(seed=seed, latent_dim=latent_dim, sizes=sizes)
    return model.simulate(n, seed=seed + 1, missing=missing, sigma=sigma)


def factors(
    n: int,
    *,
    seed: int,
    modalities: int = 2,
    sizes: tuple[int, int, int] = (2, 2, 50),
    noise: float = 0.1,
    sigma: float = 0.0,
    missing: float = 0.0,
) -> Observations:
    r"""Modalities x1, x2, … of known shared factors s and private ones p_m, through random curved maps.

    .. math:: x^{(m)} = A_m \tanh(B_m (s, p_m) + b_m) + \psi ε + \sigma_n ⊙ e, \qquad s, p_m \sim N(0, I)

    B_m and b_m are standard normal with as many rows as cells; A_m normal of variance 1 / cells.

    Arguments:
        n: Objects.
        seed: Seed of the maps; the table uses ``seed + 1``. Split one table to get training and test rows.
        modalities: M.
        sizes: Numbers of shared factors, of private ones of each modality, and of cells of each.
        noise: ψ.
        sigma: Median of the known error bars, log-normal with 0.3 in the logarithm; 0 for none.
        missing: Probability that a cell is unseen.

    Returns:
        The modalities, then the complete truth: ``true_shared``, and ``true_private_NAME`` of each.

    Raises:
        RequestError: fewer than one modality or cell, a negative number of factors or noise, or missing outside [0, 1).

    Example:
        >>> factors(4, seed=0).schema.names
        ('x1', 'x2', 'true_shared', 'true_private_x1', 'true_private_x2')
    """
    shared, private, cells = sizes
    if modalities < 1 or cells < 1 or min(shared, private) < 0 or shared + private < 1:
        raise RequestError(f"Expected a modality, a cell and a factor at least; got {modalities} and sizes {sizes}.")
    if min(noise, sigma) < 0 or not 0 <= missing < 1:
        raise RequestError(
            f"Expected noise >= 0, sigma >= 0 and 0 <= missing < 1; got {noise}, {sigma} and {missing}. Change them."
        )
    maps, rng = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    s = rng.standard_normal((n, shared))
    values: dict[str, FloatArray] = {}
    errors: dict[str, FloatArray] = {}
    true: dict[str, FloatArray] = {"true_shared": s} if shared else {}
    for name in (f"x{number + 1}" for number in range(modalities)):
        p = rng.standard_normal((n, private))
        weight, bias = maps.standard_normal((cells, shared + private)), maps.standard_normal(cells)
        out = maps.standard_normal((cells, cells)) / np.sqrt(cells)
        y = np.tanh(np.hstack([s, p]) @ weight.T + bias) @ out.T + noise * rng.standard_normal((n, cells))
        bars = sigma * np.exp(0.3 * rng.standard_normal(y.shape))
        x = y + bars * rng.standard_normal(y.shape)
        values[name] = np.where(rng.random(y.shape) < missing, np.nan, x)
        if sigma > 0:
            errors[name] = bars
        if private:
            true[f"true_private_{name}"] = p
    specs = [ModalitySpec(name=name, shape=x.shape[1:]) for name, x in (values | true).items()]
    return Observations.from_arrays(Schema(modalities=tuple(specs)), values | true, sigma=errors)


def _variance(part: Modality) -> FloatArray:
    if part.sigma is None:
        return np.zeros(part.value.shape)
    return np.nan_to_num(np.square(part.sigma), nan=0.0)
