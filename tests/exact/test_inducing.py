"""Mixed functions against the dense linear algebra of all of them at once; common precisions against separate ones."""

import numpy as np
import pytest
import torch

from consilience.blocks.gp import SparseGP
from consilience.blocks.inducing import CommonInducing, Features, SeparateInducing
from consilience.blocks.kernels import RBF, build_kernel
from consilience.errors import DataError


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mixed_gp(outputs=7, functions=3, size=5):
    gp = SparseGP(RBF(2), 2 * normal(0, size, 2), outputs, functions=functions).double()
    with torch.no_grad():
        # nearly the same columns: functions that explain the same cells
        gp.basis.copy_(normal(1, outputs, 1) + 0.3 * normal(2, outputs, functions))
        gp.constant.copy_(normal(3, outputs))
    return gp


def cells(rows, outputs, seed=10):
    """Values and precisions of cells, a third of them unseen."""
    seen = torch.rand(rows, outputs, generator=generator(seed)) > 0.35
    precision = torch.where(seen, 0.5 + 5 * torch.rand(rows, outputs, generator=generator(seed + 1)).double(), 0.0)
    return normal(seed + 2, rows, outputs), precision


def step(gp, z, value, precision, *, scale, rate):
    with torch.no_grad():
        features = gp.features(z)
        gradient = precision * (value - gp.mean_at(features))
        gp.natural_step(features, gradient, precision, scale=scale, rate=rate)


def bound(gp, z, value, precision, scale):
    with torch.no_grad():
        mean, variance = gp.moments(gp.features(z))
        return scale * (-0.5 * precision * ((value - mean).square() + variance)).sum() - gp.divergence().sum()


def test_mixed_functions_reach_the_joint_optimum():
    gp, z, scale = mixed_gp(), normal(20, 40, 2), 2.5
    value, precision = cells(40, 7)
    for _ in range(400):
        step(gp, z, value, precision, scale=scale, rate=1.0)
    with torch.no_grad():
        a, w = gp.features(z).a, gp.basis
        # joint precision of all K M inducing values: I + s Σ_nd w_nd (W_d ⊗ A_n)(W_d ⊗ A_n)ᵀ
        rows = torch.einsum("dk,nm->ndkm", w, a).flatten(2).flatten(0, 1)
        weight = scale * precision.flatten()
        joint = torch.eye(15, dtype=torch.float64) + rows.mT @ (weight[:, None] * rows)
        mean = torch.linalg.solve(joint, rows.mT @ (weight * (value - gp.constant).flatten()))
        torch.testing.assert_close(gp.q.mean.flatten(), mean, rtol=1e-6, atol=1e-8)
        # a factorised posterior has the diagonal blocks of the joint precision
        for k in range(3):
            block = joint[5 * k : 5 * k + 5, 5 * k : 5 * k + 5]
            torch.testing.assert_close(gp.q.natural_precision[k], block, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_no_step_of_mixed_functions_lowers_the_bound(rate):
    gp, z = mixed_gp(), normal(21, 40, 2)
    value, precision = cells(40, 7)
    found = [bound(gp, z, value, precision, 1.0)]
    for _ in range(30):
        step(gp, z, value, precision, scale=1.0, rate=rate)
        found.append(bound(gp, z, value, precision, 1.0))
    assert (torch.stack(found).diff() > -1e-9).all()
    assert found[-1] > found[0] + 1


def test_functions_that_mix_nothing_are_separate_outputs():
    inducing, z = 2 * normal(30, 6, 2), normal(31, 25, 2)
    mixed, plain = SparseGP(RBF(2), inducing, 4, functions=4).double(), SparseGP(RBF(2), inducing, 4).double()
    value, precision = cells(25, 4)
    for rate in (1.0, 0.4):
        for gp in (mixed, plain):
            step(gp, z, value, precision, scale=3.0, rate=rate)
    features = plain.features(z)
    for one, other in zip(mixed.moments(features), plain.moments(features), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(mixed.divergence(), plain.divergence())


def test_moments_of_mixed_functions():
    gp, z = mixed_gp(functions=2), normal(40, 9, 2)
    value, precision = cells(9, 7)
    step(gp, z, value, precision, scale=1.0, rate=1.0)
    with torch.no_grad():
        features = gp.features(z)
        mean, variance = gp.moments(features)
        for d in range(7):
            f, spread = gp.constant[d], 0.0
            for k in range(2):
                s = torch.linalg.inv(gp.q.natural_precision[k])
                f = f + gp.basis[d, k] * (features.a @ gp.q.mean[k])
                quadratic = torch.einsum("nm,ml,nl->n", features.a, s, features.a)
                spread = spread + gp.basis[d, k] ** 2 * (features.rest + quadratic)
            torch.testing.assert_close(mean[:, d], f)
            torch.testing.assert_close(variance[:, d], spread)


def test_slopes_of_mixed_means():
    gp, z = mixed_gp(), normal(50, 4, 2)
    value, precision = cells(4, 7)
    step(gp, z, value, precision, scale=1.0, rate=1.0)
    dense = torch.func.jacrev(lambda at: gp.mean_at(gp.features(at)))(z).detach()  # (B, D, B, Q)
    rows = torch.arange(4)
    with torch.no_grad():
        found, _ = gp.slopes(z, torch.zeros(4, 5, dtype=torch.float64), gp.root())
    torch.testing.assert_close(found, dense[rows, :, rows].mT, rtol=1e-6, atol=1e-8)


def test_a_common_precision_is_that_of_every_output():
    z = [normal(60 + k, 20, 2) for k in range(3)]
    weight = torch.tensor([0.5, 2.0, 9.0, 1.0], dtype=torch.float64)
    inducing = 2 * normal(64, 6, 2)
    common = SparseGP(build_kernel("rbf", 2), inducing, 4, common=True).double()
    plain = SparseGP(build_kernel("rbf", 2), inducing, 4).double()
    for k, rate in enumerate((1.0, 0.3, 0.5)):
        seen = torch.rand(20, 1, generator=generator(70 + k)) > 0.3  # whole rows
        value = normal(80 + k, 20, 4)
        for gp in (common, plain):
            step(gp, z[k], value, torch.where(seen, weight, 0.0), scale=5.0, rate=rate)
    features = plain.features(z[0])
    for one, other in zip(common.moments(features), plain.moments(features), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(common.divergence(), plain.divergence())


def test_a_batch_that_sees_nothing_leads_back_to_the_prior():
    q = CommonInducing(2, 3).double()
    a, ones = Features(normal(90, 5, 3), normal(93, 5)), torch.ones(5, 2, dtype=torch.float64)
    q.step(a, normal(91, 5, 2), 4 * ones, scale=1.0, rate=1.0)
    assert (q.divergence() > 0.1).all()
    q.step(a, 0 * ones, 0 * ones, scale=1.0, rate=1.0)
    torch.testing.assert_close(q.divergence(), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def cloud(rows=5, latent=2):
    """Means and Cholesky factors of Gaussians, and a Gauss-Hermite rule for averages over them."""
    factor = 0.3 * torch.tril(normal(101, rows, latent, latent)) + 0.2 * torch.eye(latent, dtype=torch.float64)
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    x = torch.tensor(np.stack(np.meshgrid(node, node), -1).reshape(-1, 2))
    w = torch.tensor(np.outer(weight, weight).ravel() / (2 * np.pi))
    return normal(100, rows, latent), factor, x, w


def test_means_of_the_features_over_a_gaussian():
    gp = SparseGP(RBF(2), 2 * normal(102, 6, 2), 3).double()
    with torch.no_grad():
        gp.kernel.log_lengthscale.copy_(torch.tensor([0.2, -0.3]))
        gp.kernel.log_variance.fill_(0.4)
        mean, factor, x, w = cloud()
        found = gp.expected_features(mean, factor)
        z = mean + (factor @ x[:, None, :, None])[..., 0]  # (S, B, Q)
        every = gp.features(z.flatten(0, 1))
        a, rest = every.a.unflatten(0, z.shape[:2]), every.rest.unflatten(0, z.shape[:2])
        torch.testing.assert_close(found.a, torch.einsum("s,sbm->bm", w, a), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.second, torch.einsum("s,sbm,sbk->bmk", w, a, a), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.rest, w @ rest, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["dense", "packed", "common"])
def test_moments_and_steps_over_a_gaussian(form):
    outputs = {"dense": 3, "packed": 70, "common": 4}[form]
    gp = SparseGP(RBF(2), 2 * normal(103, 6, 2), outputs, common=form == "common").double()
    mean, factor, x, w = cloud()
    weight = 2.0 + torch.rand(outputs, generator=generator(104), dtype=torch.float64)
    value = normal(105, 5, outputs)
    with torch.no_grad():
        features = gp.expected_features(mean, factor)
        gradient = weight * (value - gp.mean_at(features))
        gp.natural_step(features, gradient, weight.expand(5, -1), scale=2.0, rate=1.0)
        # the optimum: Λ = I + s w Σ E[A Aᵀ], θ = s w Σ E[A] y
        for d in range(outputs):
            precision = torch.eye(6, dtype=torch.float64) + 2 * weight[d] * features.second.sum(0)
            right = torch.linalg.solve(precision, 2 * weight[d] * features.a.mT @ value[:, d])
            torch.testing.assert_close(gp.q.mean[d], right)
        # E over z of the square and of the variance are those of the moments
        z = mean + (factor @ x[:, None, :, None])[..., 0]
        at, spread = gp.moments(gp.features(z.flatten(0, 1)))
        at, spread = at.unflatten(0, z.shape[:2]), spread.unflatten(0, z.shape[:2])
        found, variance = gp.moments(features)
        torch.testing.assert_close(found, torch.einsum("s,sbd->bd", w, at), rtol=1e-6, atol=1e-8)
        total = torch.einsum("s,sbd->bd", w, spread + at.square()) - found.square()
        torch.testing.assert_close(variance, total, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spoil", [(2, 1, 3.0), (2, 1, 0.0)], ids=["error bar", "gap"])
def test_a_common_precision_refuses_cells_that_differ(spoil):
    row, column, value = spoil
    precision = torch.full((5, 3), 2.0)
    precision[row, column] = value
    features = Features(torch.ones(5, 4), torch.zeros(5))
    with pytest.raises(DataError, match="one_mask"):
        CommonInducing(3, 4).step(features, torch.zeros(5, 3), precision, scale=1.0, rate=1.0)


def test_a_common_precision_stores_one_matrix():
    def size(q):
        return sum(buffer.numel() for buffer in q.state_dict().values())

    assert size(CommonInducing(100, 20)) == 20**2 + 100 * 21
    assert size(SeparateInducing(100, 20)) > 20 * size(CommonInducing(100, 20)) / 4
