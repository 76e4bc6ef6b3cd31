"""Symmetric products of small integers: exact but for the last rounding, by whichever kernel."""

import pytest
import torch
from conftest import needs_gpu
from erlangen import _C
from erlangen._build import INFO
from oracles import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(1, 1), (7, 5), (130, 40), (64, 264), (264, 520), (1032, 264)])
def test_symmetric_products_of_small_integers_are_rounded_once(n, k, dtype, device):
    x = torch.randint(-1, 2, (n, k)).to(device, dtype)
    count = _C.symmetric_kernel_count()
    product = _C.symmetric_product(x)
    assert torch.equal(product, (x.double() @ x.double().T).to(dtype))
    aligned = k % 8 == 0 and n < 1024  # above, it depends on the device
    if x.is_cuda and dtype.itemsize == 2 and aligned:
        assert _C.symmetric_kernel_count() == count + 1


def small_integers(rows, columns, dtype):
    """With rows as the iteration's matrices have them: each at a multiple of 16 bytes."""
    padded = torch.randint(-1, 2, (rows, -(-columns // 8) * 8))
    return padded.to("cuda", dtype)[:, :columns]


def circulant(n, dtype):
    """Symmetric ones commute."""
    half = torch.randint(-1, 2, (n // 2 + 1,))
    row = torch.cat([half, half[1 : (n + 1) // 2].flip(0)])
    padded = torch.zeros(n, -(-n // 8) * 8, dtype=torch.long)
    padded[:, :n] = row[(torch.arange(n) - torch.arange(n).unsqueeze(1)) % n]
    return padded.to("cuda", dtype)[:, :n]


def check_kernel(x, y, beta):
    """Each product once, rounded once, by a kernel of ours where there is one for the device."""
    n, dtype = x.shape[0], x.dtype
    c = circulant(n, dtype)
    count = _C.symmetric_kernel_count()
    product = _C.symmetric_product(x, y, c, beta)
    ours = bool(INFO["cuda"]) and (n < 1024 or torch.cuda.get_device_capability()[0] != 10)
    assert _C.symmetric_kernel_count() - count == ours
    assert torch.equal(product, (x.double() @ y.double().T + beta * c.double()).to(dtype))


# Tails of n and k; wide tiles on Hopper; sums in parts, of small tiles and of large ones.
@needs_gpu
@pytest.mark.parametrize("beta", [0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n, k", [(200, 8200), (264, 300), (2048, 72), (264, 8200), (1000, 8200)])
def test_kernels_for_gram_matrices(n, k, dtype, beta):
    x = small_integers(n, k, dtype)
    check_kernel(x, x, beta)


@needs_gpu
@pytest.mark.parametrize("beta", [0.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [129, 264, 301, 1000, 2048])
def test_kernels_for_matrices_that_commute(n, dtype, beta):
    check_kernel(circulant(n, dtype), circulant(n, dtype), beta)
