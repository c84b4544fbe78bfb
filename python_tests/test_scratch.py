"""Kernels that cannot get their scratch memory raise MemoryError before they touch any argument."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctm_fast import _C
from ctm_fast.ops.native import CODES

ROOM = 1 << 50  # elements beyond any address space
ONE = 8  # an address that only a kernel that went on would read
NO_DROPOUT = (0.0, 0, 0)


def packed(dtype: torch.dtype) -> Tensor:
    """The header of packed weights of the SIMD level in use, and no weights."""
    code, sizes = CODES[dtype], (1, 0, 1, 1, True)
    header = torch.empty(_C.nlm_packed_size(code, sizes), dtype=dtype)
    _C.nlm_pack(code, sizes, ONE, ONE, 1.0, ONE, ONE, 1.0, header.data_ptr(), 1)
    return header


def nlm_forward(threads: int) -> None:
    weights = packed(torch.float32)
    _C.nlm_forward(0, (1, 64, ROOM, 1, True), NO_DROPOUT, weights.data_ptr(), ONE, (1, 1, 1), ONE, 1, threads)


def nlm_direct(threads: int) -> None:
    _C.nlm_direct(
        0, (1, 64, ROOM, 1, True), NO_DROPOUT, ONE, ONE, 1.0, ONE, ONE, 1.0, ONE, (1, 1, 1), ONE, 1, threads
    )


def nlm_backward(threads: int) -> None:
    weights = packed(torch.float64)
    _C.nlm_backward(
        1, (1, 64, ROOM, 1, True), NO_DROPOUT, weights.data_ptr(), ONE, (1, 1, 1), ONE, 1, ONE, (1, 1, 1), ONE,
        threads,
    )  # fmt: skip


def nlm_unpack(threads: int) -> None:
    _C.nlm_unpack(0, (1, ROOM, 1, 1, True), ONE, ONE, 1.0, 1.0, ONE, ONE, ONE, ONE, ONE, ONE, threads)


def sync_forward(threads: int) -> None:
    _C.sync_forward(0, (1, 64, ROOM, 1, False), ONE, (1, 1), ONE, ONE, ONE, ONE, ONE, ONE, threads)


def sync_backward(threads: int) -> None:
    _C.sync_backward(
        0, (ROOM, 1, 1, 1, False), ONE, (1, 1), ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, ONE, (1, 1), ONE, ONE, threads
    )  # fmt: skip


def glu_norm(threads: int) -> None:
    _C.glu_norm(0, (64, ROOM), ONE, 1, (ONE, ONE, 1e-5), ONE, 1, threads)


NTM = (1, ROOM, 1, 1, 1, 3)  # B, N, W, R, V, S
NTM_VARIANT = (0, 0, 0, 0, False, False, True, 1e-6)
STRIDED = (ONE, 1, 1, 1)


def ntm_forward(threads: int) -> None:
    pair = (ONE, ONE, 0, 0)
    _C.ntm_forward(0, (1, *NTM), NTM_VARIANT, STRIDED, (ONE, 1, 1), pair, ONE, ONE, pair, threads)


def ntm_backward(threads: int) -> None:
    pair = (ONE, ONE, 0, 0)
    _C.ntm_backward(
        1, (1, *NTM), NTM_VARIANT, STRIDED, (ONE, 1, 1), pair, ONE, STRIDED, pair, ONE, ONE, pair, threads
    )


def ntm_write_backward(threads: int) -> None:
    _C.ntm_write_backward(0, (1, *NTM), STRIDED, ONE, ONE, ONE, STRIDED, ONE, ONE, ONE, ONE, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "call", [nlm_forward, nlm_direct, nlm_backward, nlm_unpack, sync_forward, sync_backward, glu_norm,
             ntm_forward, ntm_backward, ntm_write_backward],
    ids=lambda call: call.__name__,
)  # fmt: skip
def test_too_large_raises_memory_error(call: Callable[[int], None], threads: int, simd_level: str) -> None:
    with pytest.raises(MemoryError):
        call(threads)


@pytest.mark.parametrize("code", [-1, 2, 3])
def test_unknown_storage_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=rf"code must be in \[0, 1\], got {code}"):
        _C.glu_norm(code, (1, 1), ONE, 1, (ONE, ONE, 1e-5), ONE, 1, 1)
    with pytest.raises(ValueError, match=rf"code must be in \[0, 1\], got {code}"):
        _C.nlm_pack(code, (1, 1, 1, 1, True), ONE, ONE, 1.0, ONE, ONE, 1.0, ONE, 1)


def test_bfloat16_is_for_kernels_that_read_it() -> None:
    with pytest.raises(ValueError, match=r"code must be in \[0, 2\], got 3"):
        _C.nlm_direct(
            3, (1, 1, 1, 1, False), NO_DROPOUT, ONE, ONE, 1.0, ONE, ONE, 1.0, ONE, (1, 1, 1), ONE, 1, 1
        )
