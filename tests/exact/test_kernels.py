"""Kernels against double loops over scalars, their gradients against finite differences."""

import math

import pytest
import torch

from consilience.blocks.kernels import RBF, Linear, Matern, Periodic, Product, Sum, build_kernel
from consilience.errors import SchemaError

Q = 3
SCALES = [0.7, 1.3, 2.1]
PERIODS = [1.9, 3.0, 4.4]


def scaled(a, b):
    return sum(((x - y) / s) ** 2 for x, y, s in zip(a, b, SCALES, strict=True))


def periodic(a, b):
    angles = [math.pi * (x - y) / p for x, y, p in zip(a, b, PERIODS, strict=True)]
    return 1.7 * math.exp(-2 * sum((math.sin(t) / s) ** 2 for t, s in zip(angles, SCALES, strict=True)))


def matern(a, b, nu):
    r = math.sqrt(scaled(a, b))
    s = math.sqrt(2 * nu) * r
    return 1.7 * {0.5: 1.0, 1.5: 1 + s, 2.5: 1 + s + s * s / 3}[nu] * math.exp(-s)


SCALARS = {
    "rbf": lambda a, b: 1.7 * math.exp(-0.5 * scaled(a, b)),
    "linear": lambda a, b: sum(s * x * y for s, x, y in zip(SCALES, a, b, strict=True)),
    "matern12": lambda a, b: matern(a, b, 0.5),
    "matern32": lambda a, b: matern(a, b, 1.5),
    "matern52": lambda a, b: matern(a, b, 2.5),
    "periodic": periodic,
}


def leaf(name):
    made = {
        "rbf": lambda: RBF(Q, variance=1.7),
        "linear": lambda: Linear(Q),
        "matern12": lambda: Matern(Q, 0.5, variance=1.7),
        "matern32": lambda: Matern(Q, 1.5, variance=1.7),
        "matern52": lambda: Matern(Q, 2.5, variance=1.7),
        "periodic": lambda: Periodic(Q, variance=1.7),
    }[name]().double()
    with torch.no_grad():
        (made.log_variance if name == "linear" else made.log_lengthscale).copy_(torch.tensor(SCALES).log())
        if name == "periodic":
            made.log_period.copy_(torch.tensor(PERIODS).log())
    return made


KERNELS = {
    **{name: (lambda name=name: leaf(name), SCALARS[name]) for name in SCALARS},
    "sum": (
        lambda: Sum(leaf("linear"), leaf("rbf")),
        lambda a, b: SCALARS["linear"](a, b) + SCALARS["rbf"](a, b),
    ),
    "product": (
        lambda: Product(leaf("matern32"), leaf("periodic")),
        lambda a, b: SCALARS["matern32"](a, b) * SCALARS["periodic"](a, b),
    ),
}


@pytest.fixture(params=KERNELS)
def pair(request):
    make, scalar = KERNELS[request.param]
    return make(), scalar


def points(rows, seed):
    return torch.randn(rows, Q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gram_equals_a_double_loop(pair):
    kernel, scalar = pair
    a, b = points(4, 0), points(5, 1)
    b[2] = a[3]  # a distance of exactly zero
    expected = [[scalar(x, y) for y in b.tolist()] for x in a.tolist()]
    # the squared distance is an expansion, so its root carries sqrt(eps) at zero
    torch.testing.assert_close(kernel(a, b), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_diagonal_is_the_grams(pair):
    kernel, scalar = pair
    a = points(6, 2)
    expected = torch.tensor([scalar(x, x) for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(kernel.diagonal(a), expected, rtol=1e-6, atol=1e-9)


def test_gram_is_symmetric_and_positive_definite(pair):
    kernel, _ = pair
    a = points(12, 3)
    gram = kernel(a, a)
    torch.testing.assert_close(gram, gram.mT, rtol=1e-6, atol=1e-7)
    assert torch.linalg.eigvalsh(gram).min() > -1e-6


def test_gradients_equal_finite_differences(pair):
    kernel, _ = pair
    a, b = points(3, 4), points(4, 5)
    weight = points(4, 6)[:, :1].expand(4, 3).mT
    a.requires_grad_()
    (weight * kernel(a, b)).sum().backward()
    step = 1e-6
    for tensor in (a, *kernel.parameters()):
        flat = tensor.data.view(-1)
        for index in range(flat.numel()):
            at = float(flat[index])
            ends = []
            for sign in (1, -1):
                flat[index] = at + sign * step
                ends.append(float((weight * kernel(a, b)).sum().detach()))
            flat[index] = at
            assert tensor.grad is not None
            assert float(tensor.grad.view(-1)[index]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_expressions_bind_products_first():
    kernel = build_kernel("linear + rbf*matern12", Q)
    assert isinstance(kernel, Sum)
    assert [type(part).__name__ for part in kernel.kernels] == ["Linear", "Product"]
    a = points(3, 7).float()
    apart = build_kernel("linear", Q)(a, a) + build_kernel("rbf", Q)(a, a) * build_kernel("matern12", Q)(a, a)
    torch.testing.assert_close(kernel(a, a), apart)


@pytest.mark.parametrize("expression", ["rbv", "rbf+", "rbf**linear", ""])
def test_an_unknown_kernel_is_refused(expression):
    with pytest.raises(SchemaError, match="Expected kernels among"):
        build_kernel(expression, Q)


def test_relevance_orders_dimensions():
    for name in ("rbf", "matern52", "periodic"):
        relevance = leaf(name).relevance()
        assert relevance[0] > relevance[1] > relevance[2]
    assert (leaf("linear").relevance().diff() > 0).all()
    both = KERNELS["sum"][0]()
    expected = (leaf("linear").relevance() ** 2 + leaf("rbf").relevance() ** 2).sqrt()
    torch.testing.assert_close(both.relevance(), expected)
