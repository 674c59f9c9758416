r"""Stationary Gaussian processes over equally spaced bins, in the real Fourier coordinates of a circle.

A latent of T bins is a stretch of a periodic one of T' > T bins,

.. math:: z_t = \sum_f \Phi_{tf} v_f, \qquad v \sim N(0, I), \qquad \Phi_{tf} = B_{tf} \sqrt{\rho\, S(\omega_f)},

with B the orthonormal cosines and sines of the circle and S the discrete Fourier transform of the kernel over all
lags; at the circle's frequencies it is the transform of the kernel wrapped around the circle. Wrapping couples the two
ends of a trial unless the circle is longer than it by several length scales of the slowest latent. Frequencies whose
prior variance is negligible even at the shortest length scale allowed are left out.

References:
    Fast variational estimation of latent trajectories in the Fourier domain (Keeley et al., 2020); Multi-modal Gaussian
    process variational autoencoders (Gondur et al., 2024).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from consilience.blocks.local import LocalRoot, LocalTrajectories, infer_local
from consilience.blocks.products import fill_up, product
from consilience.blocks.trajectories import AbstractTrajectories, Sites, Trajectories, infer_trajectories
from consilience.data.schema import nearest
from consilience.errors import SchemaError

__all__ = ["SPECTRA", "AbstractTrajectoryPrior", "FourierPrior", "Scales", "Spectrum", "TimePrior", "fourier_basis"]


def fourier_basis(bins: int, circle: int) -> tuple[Tensor, Tensor]:
    """Basis B (T, T') and angular frequencies (T',) per bin, float64; the columns are orthonormal on the whole circle.

    Ordered by frequency: the constant, then cosine and sine of each, and the alternating one if T' is even.

    Example:
        >>> basis, _ = fourier_basis(6, 6)
        >>> bool(torch.allclose(basis @ basis.mT, torch.eye(6, dtype=torch.float64)))
        True
    """
    wave = torch.arange(1, circle).double()
    number = torch.div(wave + 1, 2, rounding_mode="floor")
    time = torch.arange(bins).double()[:, None]
    # the phase modulo 2π in whole numbers: exact for any length
    phase = 2 * math.pi * torch.remainder(time * number, circle) / circle
    columns = math.sqrt(2 / circle) * torch.where(wave % 2 == 1, phase.cos(), phase.sin())
    if circle % 2 == 0:
        columns[:, -1] /= math.sqrt(2)
    basis = torch.cat([torch.full((bins, 1), circle**-0.5, dtype=torch.float64), columns], dim=1)
    return basis, torch.cat([torch.zeros(1).double(), 2 * math.pi * number / circle])


@dataclass(frozen=True, slots=True)
class Spectrum:
    r"""A kernel of unit variance on the integers, by its discrete Fourier transform.

    Arguments:
        density: :math:`S(\omega) = \sum_\tau k(|\tau|/\ell) \cos \omega\tau` over all lags, from ω (F,) and ℓ (L, 1).
        margin: Length scales after which the kernel is below 1e-3: by so many the circle is longer than a trial.
        reach: Length scales after which the bumps of ``blocks/local.py`` are negligible.
    """

    density: Callable[[Tensor, Tensor], Tensor]
    margin: float
    reach: float


def _rbf(omega: Tensor, length: Tensor) -> Tensor:
    aliases = omega + 2 * math.pi * torch.arange(-2, 3).to(omega)[:, None, None]
    return math.sqrt(2 * math.pi) * length * torch.exp(-0.5 * (aliases * length).square()).sum(0)


def _matern(omega: Tensor, length: Tensor, order: int) -> Tensor:
    r"""Matern kernels of smoothness order + ½: a polynomial of aτ times :math:`e^{-a\tau}`, a = √(2 order + 1) / ℓ.

    With p(a) = sinh a / (cosh a - cos ω) the transform of :math:`e^{-a|\tau|}`, those of :math:`|\tau|^k e^{-a|\tau|}`
    are (-1)^k times its derivatives.
    """
    rate = math.sqrt(2 * order + 1) / length
    c, s, u = torch.cosh(rate), torch.sinh(rate), omega.cos()
    d = 2 * torch.sinh(rate / 2).square() + 2 * (omega / 2).sin().square()  # cosh a - cos ω without cancellation
    found = s / d
    if order > 0:
        found = found + rate * (u * c - 1) / d.square()
    if order > 1:
        found = found + rate.square() / 3 * s * (u * (c + u) - 2) / d**3
    return found.clamp_min(0)


def _periodic(omega: Tensor, length: Tensor, period: int, circle: int) -> Tensor:
    r""":math:`\exp(-2 \sin^2(\pi \tau / p) / w^2)` with :math:`w = 2 \pi \ell / p`, which is an RBF at short lags.

    Its transform over a circle of whole periods: zero but at multiples of the period's frequency.
    """
    lag = torch.arange(circle).to(omega)
    angle = math.pi * torch.remainder(lag, period) / period
    kernel = torch.exp(-2 * (angle.sin() * period / (2 * math.pi * length)).square())
    return (kernel @ torch.cos(lag[:, None] * omega)).clamp_min(0)


def _white(omega: Tensor, length: Tensor) -> Tensor:
    return torch.ones_like(omega * length)


SPECTRA = {
    "rbf": Spectrum(_rbf, 4.0, 3.3),
    "matern12": Spectrum(partial(_matern, order=0), 7.0, 6.0),
    "matern32": Spectrum(partial(_matern, order=1), 5.5, 5.0),
    "matern52": Spectrum(partial(_matern, order=2), 5.0, 4.5),
    "white": Spectrum(_white, 0.0, 0.0),
}
PERIODIC = "periodic"  # its transform depends on the circle
KERNELS = {  # of r = lag / length scale
    "rbf": lambda r: torch.exp(-0.5 * r.square()),
    "matern12": lambda r: torch.exp(-r),
    "matern32": lambda r: (1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r),
    "matern52": lambda r: (1 + 5**0.5 * r + 5 / 3 * r.square()) * torch.exp(-(5**0.5) * r),
}
FREEDOM = 4.0
LONG = 4  # windows of local coordinates in a trial from which on they are used
SMALLEST = 16  # bins of such a window
JITTER = 1e-6  # of the prior variance, on the diagonal of a smooth kernel's matrix in time


class Scales(TypedDict):
    """Length scales and variances of processes; see :class:`AbstractTrajectoryPrior`."""

    length: Tensor
    shortest: float
    longest: float
    variance: Tensor


def _needed(spectrum: Tensor, prune: float) -> Tensor:
    """Which frequencies (F,) some latent has variance at that is not negligible, from variances (L, F)."""
    return (spectrum >= prune * spectrum.amax(-1, keepdim=True)).any(0)


class AbstractTrajectoryPrior(nn.Module, ABC):
    r"""L independent stationary processes of T bins, z = Φ v with v standard normal, of learned ℓ and ρ.

    Arguments:
        length: Length scales at first, in bins, shape (L,).
        shortest: Least length scale that may be learned.
        longest: Greatest one.
        variance: Prior variances ρ at first, shape (L,); learned within a factor of ``FREEDOM``, as decoders may always
            stretch a latent.

    Raises:
        SchemaError: length scales out of order.
    """

    middle: Tensor  # log ρ at first, shape (L,)

    def __init__(self, length: Tensor, *, shortest: float, longest: float, variance: Tensor) -> None:
        super().__init__()
        if not (0 < shortest < longest and bool(((shortest < length) & (length < longest)).all())):
            raise SchemaError(
                f"Expected 0 < shortest < length scales < longest, in bins; got {shortest:g}, {length.tolist()}, "
                f"{longest:g}."
            )
        self.shortest, self.longest = shortest, longest
        self.position = nn.Parameter(torch.logit(torch.log(length / shortest) / math.log(longest / shortest)))
        self.register_buffer("middle", variance.log())
        self.stretch = nn.Parameter(torch.zeros_like(variance))

    @property
    def length(self) -> Tensor:
        """Length scales in bins, between their bounds, shape (L,)."""
        return self.shortest * (self.longest / self.shortest) ** torch.sigmoid(self.position)

    @property
    def variance(self) -> Tensor:
        """Prior variances ρ, shape (L,)."""
        return (self.middle + math.log(FREEDOM) * torch.tanh(self.stretch)).exp()

    def posterior(self, sites: Sites, *, diagonal: bool = False) -> AbstractTrajectories:
        """q(z) of every trial from sites; see :func:`infer_trajectories`. Gradients flow to the sites alone."""
        return infer_trajectories(self.root().detach(), sites, diagonal=diagonal)

    @abstractmethod
    def expected_log(self, q: AbstractTrajectories) -> Tensor:
        r"""What ℓ and ρ learn from q as it is: :math:`E_q \log p(z)` up to a constant, shape (B, L).

        Only its gradient means anything. Where q is at the optimum of the bound, this is the bound's own (the M step of
        expectation maximisation); where an encoder gave q, it is free of the noise of drawn latents in likelihoods.
        """

    def marginals(self) -> Tensor:
        """Prior variances of the latents of each bin, (T, L)."""
        return self.root().square().sum(-1).mT

    @abstractmethod
    def root(self) -> Tensor:
        """Φ, whose product with its transpose is the covariance of each latent, shape (L, T, F)."""


class FourierPrior(AbstractTrajectoryPrior):
    r"""Processes in the Fourier coordinates of a circle, of which few are kept where they are smooth.

    Arguments:
        kernels: One of ``SPECTRA`` per latent, or ``"periodic"``.
        bins: T, of the longest trial.
        length: Length scales at first, in bins, shape (L,).
        shortest: Least length scale that may be learned; decides which frequencies are kept.
        longest: Greatest one; decides how much longer than a trial the circle is.
        variance: Prior variances ρ at first, shape (L,).
        prune: Frequencies are left out whose variance is below this part of the largest, for good where it is at the
            shortest length scale.
        period: Bins after which a periodic latent returns; the circle is then a whole number of them.

    Raises:
        SchemaError: an unknown kernel, length scales out of order, or no period for a periodic kernel.
    """

    basis: Tensor  # B, shape (T, F), float64
    omega: Tensor  # shape (F,), float64

    def __init__(
        self,
        kernels: Sequence[str],
        bins: int,
        *,
        prune: float = 1e-6,
        period: int | None = None,
        **scales: Unpack[Scales],
    ) -> None:
        super().__init__(**scales)
        _check(kernels, period)
        margin = max(SPECTRA[name].margin if name in SPECTRA else 0.0 for name in kernels)
        circle = bins + math.ceil(margin * self.longest)
        if PERIODIC in kernels:
            circle += -circle % (period or 1)
        own = partial(_periodic, period=period or 1, circle=circle)
        self.functions = [SPECTRA[name].density if name in SPECTRA else own for name in kernels]
        basis, omega = fourier_basis(bins, circle)
        self.prune = prune
        self.kernels, self.local = tuple(kernels), PERIODIC not in kernels
        kept = _needed(self._densities(omega, torch.full((len(kernels), 1), self.shortest).double()), prune)
        self.register_buffer("basis", basis[:, kept])
        self.register_buffer("omega", omega[kept])

    def spectrum(self, omega: Tensor) -> Tensor:
        """Prior variances of Fourier coordinates ρ S(ω_f), shape (L, F), float64."""
        return self.variance.double()[:, None] * self._densities(omega, self.length.double()[:, None])

    def root(self) -> Tensor:
        """Φ, shape (L, T, F).

        F counts the frequencies that some latent needs at its present length scale, filled up with zeros to a size
        at which the bits of one trial's posterior do not depend on the trials beside it.
        """
        spectrum = self.spectrum(self.omega)
        kept = _needed(spectrum.detach(), self.prune)
        root = self.basis[:, kept] * spectrum[:, kept].clamp_min(1e-300).sqrt()[:, None]
        return fill_up(root).to(self.position.dtype)

    def expected_log(self, q: AbstractTrajectories) -> Tensor:
        # ½ log S (E v² - 1) of every frequency has the slope of - ½ (log S + E u² / S), u = √S v
        if isinstance(q, LocalTrajectories):
            excess, omega = q.excess()
            weight = torch.full_like(omega, 1 / (len(omega) - 1))
            weight[[0, -1]] /= 2
        else:
            assert isinstance(q, Trajectories), "q is from dense coordinates"
            square = q.coordinates.mean.square() + q.factor.square().sum(-1)
            excess, omega, weight = square.unflatten(-1, (len(self.kernels), -1)) - 1, self.omega, 1.0
        spectrum = self.spectrum(omega)
        kept = _needed(spectrum.detach(), self.prune)
        value = 0.5 * weight * spectrum.clamp_min(1e-300).log()
        return (excess.detach()[..., : int(kept.sum())] * value[:, kept]).sum(-1).to(q.mean)

    @property
    def long(self) -> bool:
        """Whether trials are so long that local coordinates are the faster ones; periodic latents have none."""
        return self.local and len(self.basis) >= LONG * self._window()

    def posterior(self, sites: Sites, *, diagonal: bool = False) -> AbstractTrajectories:
        if self.long and not diagonal:
            root = self.local_root()
            return infer_local(LocalRoot(root.table.detach(), root.bins), sites)
        return super().posterior(sites, diagonal=diagonal)

    def marginals(self) -> Tensor:
        return self.local_root().variance().to(self.position.dtype) if self.long else super().marginals()

    def local_root(self) -> LocalRoot:
        """The same processes, but for frequencies that are pruned and for tails of the bumps that are cut off."""
        width = self._window()
        circle = 4 * width
        omega = 2 * math.pi * torch.arange(circle // 2 + 1).to(self.omega) / circle
        spectrum = self.spectrum(omega)
        kept = int(_needed(spectrum.detach(), self.prune).nonzero().max()) + 1
        points = min(math.ceil((2 * kept - 1) / 4), width)
        place = torch.arange(2 * points).to(omega) * (width / points) - width / 2
        lag = torch.arange(width).to(omega)[:, None] - place
        both = torch.full_like(omega, 2.0)
        both[0] = both[-1] = 1.0
        waves = torch.cos(lag[..., None] * omega[:kept]) * both[:kept]
        bumps = waves @ spectrum[:, :kept].sqrt().mT / math.sqrt(4 * points * circle)
        return LocalRoot(bumps.movedim(-1, 0), len(self.basis))

    def _window(self) -> int:
        """Bins between the centres of two blocks of local coordinates, even."""
        reach = torch.tensor([SPECTRA[name].reach for name in self.kernels]).to(self.length)
        return max(SMALLEST, 2 * math.ceil(float((reach * self.length.detach()).max())))

    def _densities(self, omega: Tensor, length: Tensor) -> Tensor:
        rows = [function(omega, length[k : k + 1]) for k, function in enumerate(self.functions)]
        return torch.cat(rows).expand(-1, len(omega))


class TimePrior(AbstractTrajectoryPrior):
    r"""The same processes in time: Φ is the Cholesky factor of the dense covariance, one coordinate per bin.

    Arguments:
        kernels: One of ``KERNELS`` per latent.
        bins: T.
        scales: As for :class:`AbstractTrajectoryPrior`.

    Raises:
        SchemaError: an unknown kernel, or length scales out of order.
    """

    lag: Tensor  # shape (T, T), float64

    def __init__(self, kernels: Sequence[str], bins: int, **scales: Unpack[Scales]) -> None:
        super().__init__(**scales)
        for name in kernels:
            if name not in KERNELS:
                raise SchemaError(f"Expected a kernel among {sorted(KERNELS)} in time; got {name!r}. Use Fourier's.")
        self.kernels = tuple(kernels)
        time = torch.arange(bins).double()
        self.register_buffer("lag", (time[:, None] - time).abs())

    def root(self) -> Tensor:
        length = self.length.double()
        kernel = torch.stack([KERNELS[name](self.lag / length[k]) for k, name in enumerate(self.kernels)])
        factor = torch.linalg.cholesky(kernel + JITTER * torch.eye(len(self.lag)).to(kernel))
        return fill_up(self.variance.double().sqrt()[:, None, None] * factor).to(self.position.dtype)

    def expected_log(self, q: AbstractTrajectories) -> Tensor:
        assert isinstance(q, Trajectories), "q is from dense coordinates"
        latents, bins = len(self.kernels), len(self.lag)
        root = self.root().double()[..., :bins]
        # of - log |Φ| - ½ tr(A E[v vᵀ] Aᵀ) with A = Φ⁻¹ Φ₀ at A = I
        change = torch.linalg.solve_triangular(root, root.detach(), upper=False)
        rows = q.factor.detach().double().unflatten(1, (latents, -1))[:, :, :bins]
        mean = q.coordinates.mean.detach().double().unflatten(1, (latents, -1))[:, :, :bins]
        second = product(rows, rows) + mean[..., :, None] * mean[..., None, :]
        size = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-size - (change * second).sum((-2, -1))).to(self.position.dtype)


def _check(kernels: Sequence[str], period: int | None) -> None:
    known = {*SPECTRA, PERIODIC}
    for name in kernels:
        if name not in known:
            raise SchemaError(f"Expected a kernel among {sorted(known)}; got {name!r}.{nearest(name, known)}")
    if PERIODIC in kernels and (period is None or period < 2):
        raise SchemaError(f"Expected a period of at least 2 bins for the periodic kernel; got {period}.")
