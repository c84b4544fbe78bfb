"""Counter-based dropout: the masks' statistics, and the same bits in kernels and in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctm_fast import _C
from ctm_fast.ops.dropout import keep_mask, row_keys
from ctm_fast.ops.native import CODES, draw_seed, drop_args
from ctm_fast.testing import padded

SEEDS = (0, 1, -1, 2**63 - 1, -(2**63))


def mask(
    p: float, seed: int, rows: int, width: int, first_row: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    keys = row_keys(seed, torch.arange(first_row, first_row + rows))[:, None]
    return keep_mask(p, keys, torch.arange(width), dtype)


def kernel(p: float, seed: int, x: Tensor, first_row: int = 0, threads: int = 1) -> Tensor:
    x, y = padded(x), padded(torch.full_like(x, torch.nan))
    drop = (p, seed % 2**64, first_row)
    _C.dropout(
        CODES[x.dtype], tuple(x.shape), drop, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), threads
    )
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0], ids=str)
def test_kernel_draws_the_mask_of_the_reference(
    p: float, seed: int, dtype: torch.dtype, simd_level: str
) -> None:
    ones = torch.ones(7, 83, dtype=dtype)
    assert torch.equal(kernel(p, seed, ones, 5), mask(p, seed, 7, 83, 5, dtype))


def test_naive_mask() -> None:
    """The hash in Python integers, without wrapping tensors."""

    def key(seed: int, row: int) -> int:
        x = (seed + (row + 1) * 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return (x ^ (x >> 31)) >> 32

    def kept(k: int, index: int) -> bool:
        x = (index * 0x9E3779B1 + k) % 2**32
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return (x ^ (x >> 16)) >= round(0.3 * 2**32)

    for seed in SEEDS:
        expected = [[kept(key(seed % 2**64, row), i) for i in range(9)] for row in range(40, 44)]
        assert torch.equal(mask(0.3, seed, 4, 9, 40) > 0, torch.tensor(expected))


def test_masks_do_not_depend_on_the_split_or_the_threads(simd_level: str) -> None:
    x = torch.randn(300, 65)
    whole = kernel(0.3, 9, x)
    assert torch.equal(torch.cat((kernel(0.3, 9, x[:100]), kernel(0.3, 9, x[100:], 100))), whole)
    for threads in (1, 2, 3):
        assert torch.equal(kernel(0.3, 9, x, threads=threads), whole)


def test_a_dropped_infinity_is_nan_as_in_pytorch(simd_level: str) -> None:
    kept = mask(0.5, 1, 2, 33) > 0
    y = kernel(0.5, 1, torch.full((2, 33), torch.inf))
    assert torch.equal(y.isinf(), kept) and torch.equal(y.isnan(), ~kept)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9], ids=str)
def test_share_kept(p: float) -> None:
    m = mask(p, 3, 500, 400)
    assert m.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    deviation = math.sqrt(p / (1 - p) / m.numel())
    assert abs(m.mean().item() - 1) < 4 * deviation
    assert (m.mean(0) - 1).abs().max() < 5 * deviation * math.sqrt(400)
    assert (m.mean(1) - 1).abs().max() < 5 * deviation * math.sqrt(500)


def test_masks_of_elements_rows_and_seeds_are_independent() -> None:
    first, second = ((mask(0.5, seed, 600, 601) - 1) for seed in (3, 4))
    pairs = {
        "neighbours": (first[:, 1:], first[:, :-1]),
        "rows": (first[1:], first[:-1]),
        "diagonals": (first[1:, 1:], first[:-1, :-1]),
        "seeds": (first, second),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean().item()) < 4 / math.sqrt(a.numel()), name


def test_seeds_follow_torch() -> None:
    torch.manual_seed(5)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(5)
    assert torch.equal(draw_seed(), first)
    assert not torch.equal(first, second)
    assert drop_args(0.1, torch.tensor([-2]), 7) == (0.1, 2**64 - 2, 7)
    assert drop_args(0.0, first) == drop_args(0.1, None) == (0.0, 0, 0)
