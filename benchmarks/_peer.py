"""GPyTorch's Bayesian GPLVM for the same bound: what ours is raced against."""

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy
from torch import Tensor, nn

from consilience.blocks.gp import JITTER, SparseGP
from consilience.blocks.kernels import RBF
from consilience.blocks.likelihoods import Gaussian

__all__ = ["PeerGPLVM", "PeerLatents", "copy_decoder"]


class PeerGPLVM(gpytorch.models.ApproximateGP):
    """GPyTorch's sparse GPs of D outputs: shared kernel and inducing inputs, q(u) by Cholesky factors."""

    def __init__(self, inducing: Tensor, outputs: int) -> None:
        size = torch.Size([outputs])
        distribution = CholeskyVariationalDistribution(len(inducing), batch_shape=size)
        # Inducing inputs without a batch dimension: one K_uu and one factorisation for all outputs.
        super().__init__(VariationalStrategy(self, inducing, distribution, learn_inducing_locations=True))
        self.constant = nn.Parameter(torch.zeros(outputs, 1))
        self.kernel = ScaleKernel(RBFKernel(ard_num_dims=inducing.shape[1]))
        self.log_noise = nn.Parameter(torch.full((outputs, 1), -1.0))

    def forward(self, z: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.constant.expand(-1, z.shape[-2]), self.kernel(z))

    def objective(self, z: Tensor, value: Tensor, seen: Tensor, total: int, known: Tensor | float = 0.0) -> Tensor:
        """Negative bound per object without the latents' part; value, seen and known variance of shape (B, D)."""
        f = self(z)
        noise = self.log_noise.exp() + (known.mT if isinstance(known, Tensor) else known)
        square = (value.mT - f.mean).square() + f.variance
        expected = -0.5 * (torch.log(2 * torch.pi * noise) + square / noise)
        likelihood = torch.where(seen.mT, expected, 0.0).sum() / len(z)
        return self.variational_strategy.kl_divergence().sum() / total - likelihood


class PeerLatents(nn.Module):
    """q(z_n) of every object: means and standard deviations, each (N, Q)."""

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(mean.clone()), nn.Parameter(log_scale.clone())

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A draw (B, Q) and the KL to N(0, I), mean over the batch."""
        mean, log_scale = self.mean[index], self.log_scale[index]
        z = mean + log_scale.exp() * torch.randn_like(mean)
        divergence = 0.5 * ((2 * log_scale).exp() + mean.square() - 1) - log_scale
        return z, divergence.sum(-1).mean()


def copy_decoder(gp: SparseGP, likelihood: Gaussian, peer: PeerGPLVM) -> None:
    """Give the peer our kernel, constants, noise and q(u); its inducing inputs are given at its construction."""
    assert isinstance(gp.kernel, RBF)
    peer.kernel.outputscale = gp.kernel.log_variance.exp()
    peer.kernel.base_kernel.lengthscale = gp.kernel.log_lengthscale.exp()
    peer.constant.copy_(gp.constant[:, None])
    peer.log_noise.copy_(likelihood.learned().log()[:, None])
    strategy = peer.variational_strategy
    strategy.jitter_val = JITTER * float(gp.kernel.diagonal(gp.inducing).mean())
    strategy.variational_params_initialized.fill_(1)
    distribution = strategy._variational_distribution
    distribution.variational_mean.copy_(gp.q.mean)
    distribution.chol_variational_covar.copy_(torch.linalg.cholesky(torch.linalg.inv(gp.q.natural_precision)))
