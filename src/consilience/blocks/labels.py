r"""Densities of labels of which any may be missing: each alone, and all together.

Of D labels y with flags e, 1 where a label is there, and of two contexts h and g of what was observed:

.. math::
    \text{mean}\quad & \mu_d(h), \text{ by least squares} \\
    \text{alone}\quad & p(y_d \mid x) = N(u_d)\, \tau_d'(y_d - \mu_d), \quad u_d = \tau_d(y_d - \mu_d;\, g) \\
    \text{together}\quad & p(y_e \mid x) = \prod_k p\bigl(y_k - \mu_k - m_k(c_k) \bigm| c_k\bigr), \quad
    c_k = (g, \mu, y_{<k}, e_{<k})

with blocks k of labels, a coupling flow for each (a block of one label has a monotone function, as it has alone), and a
shift m_k, by least squares too; of D = 1 label, what it is alone is all there is. What is missing is left out of
its density, which stays normalised, and stands at its mean, with its flag, in the contexts that follow. No block knows
of flags in later ones: if blocks go from what all objects have to what few have, gaps that depend on the labels do not
bias what comes before.

New objects scatter more about their means than those which taught them: densities are of what is left divided by a
width for each label, 1 until ``settle`` has learned them, alone and together, from rows that were held out.

The flows' gradients end at c, and that of τ at μ. Where labels are tight functions of each other these gradients are so
poorly scaled that networks which share them learn the means ten times more slowly than by squares.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consilience.blocks.flows import CouplingFlow, Marginals, Univariate, normal_log_prob
from consilience.blocks.networks import Perceptron, SharedPerceptron

__all__ = ["LabelDensity"]

PSEUDO = 10.0  # rows that say a width is 1, with half a nat for a factor of e, beside those held out
ITERATIONS = 60


class LabelDensity(nn.Module):
    """p(y | x) of D labels, from contexts h and g of H numbers each.

    Arguments:
        order: Columns of the labels in each block; all of them once.
        size: H.
        layers: Of each block's flow.
        hidden: Width of the networks.
        univariate: Functions of the flows.

    Example:
        >>> density = LabelDensity([[2, 0], [1]], 4, layers=2, hidden=8, univariate="affine")
        >>> y, h, there = torch.randn(5, 3), torch.randn(5, 4), torch.ones(5, 3, dtype=torch.bool)
        >>> density.log_prob(y, there, h, h).shape, density.alone(y, h, h).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    widths: Tensor  # of labels alone and together, (2, D)

    def __init__(
        self, order: Sequence[Sequence[int]], size: int, *, layers: int, hidden: int, univariate: Univariate
    ) -> None:
        super().__init__()
        total = sum(map(len, order))
        self.order = [list(block) for block in order] if total > 1 else []
        self.register_buffer("widths", torch.ones(2, total))
        self.mean = Perceptron(size, hidden, total)
        self.marginals = Marginals(total, size, 0, hidden=hidden)
        self.shifts, self.flows, known = nn.ModuleList(), nn.ModuleList(), 0
        for block in self.order:
            context = (size + total, 2 * known)
            self.shifts.append(SharedPerceptron(*context, hidden, len(block)))
            self.flows.append(
                CouplingFlow(len(block), *context, layers=layers, hidden=hidden, univariate=univariate)
                if len(block) > 1
                else Marginals(1, *context, hidden=hidden)
            )
            known += len(block)

    def losses(self, y: Tensor, seen: Tensor, h: Tensor, g: Tensor) -> dict[str, Tensor]:
        """What is minimised, each (B,): "mean", half the squares; "alone" and "nll", negative log densities.

        Of a single label these densities are one, "nll".

        Arguments:
            y: Labels (B, D), finite.
            seen: Which of them are there, (B, D).
            h: Shape (B, H).
            g: Shape (B, H).
        """
        mean = self.mean(h)
        left = torch.where(seen, y - mean, 0.0)
        alone = torch.where(seen, self._alone(left.detach(), g, self.widths), 0.0).sum(-1)
        if not self.order:
            return {"mean": 0.5 * left.square().sum(-1), "nll": -alone}
        together, squares = self._together(y, seen, mean.detach(), g.detach(), self.widths)
        return {"mean": 0.5 * left.square().sum(-1) + squares, "alone": -alone, "nll": -together}

    def log_prob(self, y: Tensor, seen: Tensor, h: Tensor, g: Tensor) -> Tensor:
        """Joint log density of the labels that are seen, (B,); of a single one as it is alone."""
        mean = self.mean(h)
        together, _ = self._together(y, seen, mean, g, self.widths)
        alone = torch.where(seen, self._alone(y - mean, g, self.widths), 0.0).sum(-1)
        return torch.where(seen.sum(-1) == 1, alone, together)

    def alone(self, y: Tensor, h: Tensor, g: Tensor) -> Tensor:
        """Log density of each label, (B, D), of objects that have it."""
        return self._alone(y - self.mean(h), g, self.widths)

    @torch.no_grad()
    def settle(self, y: Tensor, seen: Tensor, h: Tensor, g: Tensor) -> None:
        """Widths by which the densities of these rows, which taught nothing, are largest; arguments as of losses.

        None is below 1: new rows scatter less than those of the training by chance alone.
        """
        mean = self.mean(h)
        left, logs = torch.where(seen, y - mean, 0.0), torch.zeros_like(self.widths).requires_grad_()
        optimiser = torch.optim.LBFGS([logs], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            with torch.enable_grad():
                widths = logs.exp()
                alone = torch.where(seen, self._alone(left, g, widths), 0.0).sum()
                together, _ = self._together(y, seen, mean, g, widths)
                loss = (0.5 * PSEUDO * logs.square().sum() - alone - together.sum()) / len(y)
                (logs.grad,) = torch.autograd.grad(loss, [logs])
            return loss.detach()

        optimiser.step(closure)
        if bool(logs.isfinite().all()):
            self.widths.copy_(logs.clamp_min(0).exp())

    def drawn(self, normal: Tensor, h: Tensor, g: Tensor) -> Tensor:
        """Labels (n, B, D) of standard normals of that shape, of objects that have them all."""
        mean, y, there = self.mean(h), torch.empty_like(normal), torch.ones_like(normal, dtype=torch.bool)
        if not self.order:
            return mean + self.widths[0] * self.marginals.inverse(normal, (g, normal[..., :0]), there)
        shared, own = torch.cat([g, mean], -1), normal[..., :0]
        for columns, shift, flow in zip(self.order, self.shifts, self.flows, strict=True):
            c = shared, own
            left: Tensor = flow.inverse(normal[..., columns], c, there[..., columns])  # type: ignore[operator]
            some = mean[..., columns] + shift(*c) + self.widths[1, columns] * left
            y[..., columns] = some
            own = torch.cat([own, some, torch.ones_like(some)], -1)
        return y

    def _alone(self, left: Tensor, g: Tensor, widths: Tensor) -> Tensor:
        u, slope = self.marginals(left / widths[0], (g, g[..., :0]))
        return normal_log_prob(u) + slope - widths[0].log()

    def _together(
        self, y: Tensor, seen: Tensor, mean: Tensor, g: Tensor, widths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The joint log density, and half the squares of what shifts leave, (B,)."""
        shared, own, total, squares = torch.cat([g, mean], -1), y[:, :0], y.new_zeros(len(y)), y.new_zeros(len(y))
        for columns, shift, flow in zip(self.order, self.shifts, self.flows, strict=True):
            c, there, expected = (shared, own), seen[:, columns], mean[:, columns]
            some = torch.where(there, y[:, columns], expected)
            left, width = torch.where(there, some - expected - shift(*c), 0.0), widths[1, columns]
            found: Tensor = flow.log_prob(left.detach() / width, c, there)  # type: ignore[operator]
            total = total + found - torch.where(there, width.log(), 0.0).sum(-1)
            squares = squares + 0.5 * left.square().sum(-1)
            own = torch.cat([own, some, there.to(own)], -1)
        return total, squares
