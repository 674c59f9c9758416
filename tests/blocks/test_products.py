import numpy as np
import pytest
import torch

from consilience.blocks.products import WIDTH, fill_up, product

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [1, 2, 3, 5, 6, 7, 11, 21, 60])
def test_a_row_has_the_same_bits_wherever_it_stands(dtype, inner):
    generator = torch.Generator().manual_seed(inner)
    rng = np.random.default_rng(inner)
    for rows in (64, 192):
        a = torch.randn(rows, inner, generator=generator, dtype=dtype)
        for outer in (*range(1, 20), 33, 81):
            b = torch.randn(outer, inner, generator=generator, dtype=dtype)
            whole, order = product(a, b), torch.as_tensor(rng.permutation(rows))
            assert torch.equal(product(a[order], b), whole[order]), (rows, outer)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_too(dtype):
    generator = torch.Generator().manual_seed(0)
    order = torch.as_tensor(np.random.default_rng(0).permutation(64))
    for inner, outer in ((6, 5), (7, 9), (21, 11), (5, 3)):
        b = torch.randn(outer, inner, generator=generator, dtype=dtype)
        a, slope = (torch.randn(64, n, generator=generator, dtype=dtype) for n in (inner, outer))
        found = [torch.autograd.grad(product(x, b), x, g)[0] for x, g in moved(a, slope, order)]
        assert torch.equal(found[0][order], found[1])


def moved(a, slope, order):
    return [(a.clone().requires_grad_(), slope), (a[order].clone().requires_grad_(), slope[order])]


def test_it_is_the_matrix_product_in_any_layout_and_batch():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    b = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(product(a, b), a @ b.mT)
    torch.testing.assert_close(product(a[0].mT.contiguous().mT, b), a[0] @ b.mT)
    stack = torch.randn(6, 3, 7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(product(a[0], stack), a[0] @ stack.mT)


def test_filling_up_adds_zeros_only_where_they_are_needed():
    a = torch.ones(2, WIDTH + 1)
    assert fill_up(a).shape == (2, 2 * WIDTH)
    assert fill_up(a).sum() == a.sum()
    whole = torch.ones(2, WIDTH)
    assert fill_up(whole) is whole
