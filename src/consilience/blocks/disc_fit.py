r"""The posterior of one disc's parameters, by Levenberg-Marquardt steps on its image in linear flux.

.. math:: x_c \mid u \sim N\bigl(P_c(u), \tau_c^2\bigr), \qquad \tau_c^2 = s_c^2 + (\epsilon P_c)^2 + \sigma^2

with s the error bar that the pixel had before its modality was stretched, ε P what galaxies are but discs, a share of
the disc's light, and σ a constant; limits count by their probability. With J the slopes of P, g and w those of the
density of cells, and N(m, Λ⁻¹) what is known without the image,

.. math:: H = J^\top \mathrm{diag}(w)\, J + \Lambda, \qquad
          (H + \lambda\, \mathrm{diag}\, H)\, \delta = J^\top g - \Lambda (u - m), \qquad
          q(u) = N(\hat u, \mathrm{diag}\, H^{-1})

and λ falls with every step that raises the density of the posterior, and rises with every one that does not.

References:
    | An algorithm for least-squares estimation of nonlinear parameters (Marquardt, 1963)
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from consilience.blocks.descent import descend
from consilience.blocks.likelihoods import Gaussian
from consilience.blocks.physics import Disc
from consilience.blocks.posteriors import DiagonalLatent
from consilience.data.observations import Modality, State

__all__ = ["DiscFit"]

MISFIT = 0.02  # ε and σ, until they are learned
STEPS, ROWS, BUNCH = 20, 64, 16  # at most so many steps, of so many rows at once, filled up to bunches
FIRST, LAST = 1e-2, 1e6  # λ, and where a row is given up
ROUNDS, LEARNED, RATE = 3, 60, 0.2  # of learning
# of the posterior's widths: nearer to the mode every step is right, and its gain is lost in rounding; it is reached
NEAR, THERE = 0.05, 1e-4


class DiscFit(nn.Module):
    """What is left of images by their discs, and the discs that leave least.

    ε and σ are not learned by gradients of the model's bound, but by :meth:`learn`.
    """

    log_misfit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = Gaussian(1)
        del self.likelihood.log_noise
        self.likelihood.register_buffer("log_noise", torch.tensor([2 * math.log(MISFIT)]))  # typical pixels squared
        self.register_buffer("log_misfit", torch.tensor(math.log(MISFIT)))

    @torch.no_grad()
    def learn(self, disc: Disc, part: Modality, q: DiagonalLatent, prior: DiagonalLatent) -> None:
        """ε and σ, by turns with the posteriors of some rows, from where an encoder puts them."""
        for _ in range(ROUNDS):
            q = self.refined(disc, part, q, prior)
            f = disc.flux(q.mean).flatten(1) / disc.pixel
            numbers = {name: value.clone().requires_grad_() for name, value in self.named_buffers()}

            def loss(f: Tensor = f, numbers: dict[str, Tensor] = numbers) -> Tensor:
                return -torch.func.functional_call(self, numbers, (disc, part, f)).mean()

            with torch.enable_grad():
                descend(list(numbers.values()), loss, steps=LEARNED, rate=RATE)
            for name, buffer in self.named_buffers():
                buffer.copy_(numbers[name].detach())

    def forward(self, disc: Disc, part: Modality, f: Tensor) -> Tensor:
        """log p(x | f) of flat cells that are given in model units, at discs f in those of a typical pixel, (R, D)."""
        return self.likelihood.expected(self._linear(disc, part, f), f, torch.zeros_like(f))

    @torch.no_grad()
    def refined(self, disc: Disc, part: Modality, q: DiagonalLatent, prior: DiagonalLatent) -> DiagonalLatent:
        """The posterior from where an encoder puts it, (R, P).

        Arguments:
            disc: What is fitted.
            part: Flat cells in model units.
            q: Where it begins.
            prior: What is known without the image.
        """
        said = []
        for start in range(0, len(q.mean), ROWS):
            some = slice(start, start + ROWS)
            before = DiagonalLatent(prior.mean[some], prior.std[some])
            said.append(self._refined(disc, part[some], q.mean[some], before))
        return DiagonalLatent(*(torch.cat(moments) for moments in zip(*said, strict=True)))

    def _refined(self, disc: Disc, part: Modality, u: Tensor, prior: DiagonalLatent) -> tuple[Tensor, Tensor]:
        u, std = u.clone(), prior.std.clone()
        damping = torch.full_like(u[:, 0], FIRST)
        left = torch.arange(len(u), device=u.device)  # rows that still move
        for _ in range(STEPS):
            # by the bunch: the last elements of an array are not computed as the others are, nor lone transforms
            rows = torch.cat([left, left[:1].expand(-len(left) % BUNCH)])
            known = DiagonalLatent(prior.mean[rows], prior.std[rows])
            found = self._step(disc, part[rows], u[rows], known, damping[rows])
            moved, gain, away, width = (array[: len(left)] for array in found)
            far = (away.abs() / width).max(-1).values
            better = (gain > 0) | (far < NEAR)
            u[left] = torch.where(better[:, None], moved, u[left])
            std[left] = width
            damping[left] = torch.where(better, damping[left] / 5, damping[left] * 8)
            left = left[(far >= THERE) & (damping[left] <= LAST)]
            if not len(left):
                break
        return u, std

    def _step(
        self, disc: Disc, part: Modality, u: Tensor, prior: DiagonalLatent, damping: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a step leads, what it gains, and the way to the mode and the posterior's widths where it begins.

        That way is the undamped step: a damped one is short wherever λ is large, also far from the mode.
        """
        precision = prior.std.square().reciprocal()
        f, j = (array.flatten(-3) / disc.pixel for array in disc.slopes(u))
        cells = self._linear(disc, part, f)
        before, g, h = self.likelihood.slopes(cells, f, torch.zeros_like(f))
        w = self.likelihood.precision(cells, f, h)
        # sums along rows have the same bits wherever a row stands; products of stacked matrices have not
        normal = torch.stack([(column[:, None] * w[:, None] * j).sum(-1) for column in j.unbind(1)], 1)
        slope = (j * g[:, None]).sum(-1) - precision * (u - prior.mean)
        curvature = (normal + torch.diag_embed(precision)).double()
        damped = curvature + torch.diag_embed(damping.double()[:, None] * curvature.diagonal(dim1=-2, dim2=-1))
        covariance, slope = torch.linalg.inv(curvature), slope.double()[:, None]
        step, away = ((inverse * slope).sum(-1).to(u) for inverse in (torch.linalg.inv(damped), covariance))
        moved = u + step
        after = self.likelihood.expected(cells, disc.flux(moved).flatten(1) / disc.pixel, torch.zeros_like(f))
        known = (moved - prior.mean).square() - (u - prior.mean).square()
        gain = (after - before).sum(-1) - 0.5 * (precision * known).sum(-1)
        return moved, gain, away, covariance.diagonal(dim1=-2, dim2=-1).sqrt().to(u)

    def _linear(self, disc: Disc, part: Modality, f: Tensor) -> Modality:
        """Cells in units of the flux of a typical pixel, with the error bars of discs f."""
        sigma = self.log_misfit.exp() * f.abs()
        value = disc.linear(part.value)
        if part.sigma is not None:
            slope = disc.unit * (torch.hypot(value, disc.stretch) if disc.asinh else 1.0) / disc.pixel
            sigma = torch.hypot(part.sigma * slope, sigma)
        return replace(part, value=torch.where(part.state > State.UNSEEN, value / disc.pixel, 0.0), sigma=sigma)
