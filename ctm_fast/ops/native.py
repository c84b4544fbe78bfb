"""What every call of the native kernels needs: dtype codes, thread count, dropout arguments."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from ctm_fast.backend import SIMD_LEVELS, native_reason

try:
    from ctm_fast import _C
except ImportError:
    _C = None  # type: ignore[assignment]  # no native op is chosen
    warnings.warn(f"ctm_fast runs on plain PyTorch, many times slower: {native_reason()}", stacklevel=2)

_cap = os.environ.get("CTM_FAST_SIMD")
if _cap and _cap not in SIMD_LEVELS:
    warnings.warn(f"CTM_FAST_SIMD must be one of {SIMD_LEVELS}, got {_cap!r}, which is ignored", stacklevel=2)

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
NO_DROPOUT = (0.0, 0, 0)

Drop = tuple[float, int, int]


def kernels() -> Any:
    """The extension module; only called where the native backend was chosen."""
    return _C


def threads() -> int:
    """Threads of a native call: as many as torch uses."""
    return torch.get_num_threads()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which activations of ``dtype`` are accumulated."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def drop_args(p: float, seed: Tensor | None, first_row: int = 0) -> Drop:
    """(probability, 64-bit seed, index of row 0) as the kernels take it."""
    if p == 0.0 or seed is None:
        return NO_DROPOUT
    return (p, int(seed.item()) & 0xFFFFFFFFFFFFFFFF, first_row)


def draw_seed(device: torch.device | None = None) -> Tensor:
    """A seed for counter-based dropout, int64, shape (1,), from torch's default generator of ``device``.

    On a GPU it never passes through the host, so that every replay of a CUDA graph draws another.
    """
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device or "cpu")


HUGE_BYTES = 1 << 21  # size of a huge page; smaller buffers gain nothing


def empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor with the dtype of ``like``, on huge pages where it is large."""
    out = like.new_empty(shape)
    if out.nbytes >= HUGE_BYTES and out.device.type == "cpu":
        kernels().advise_huge(out.data_ptr(), out.nbytes)
    return out


def zeros(like: Tensor, *shape: int) -> Tensor:
    """:func:`empty`, filled with zeros."""
    return empty(like, *shape).zero_()
