"""Counter-based dropout masks in plain torch: the same bits as the kernels draw.

An element is kept where a 32-bit hash of (its index in the row, the key of its row) reaches p * 2**32, so a
backward pass draws the mask again instead of keeping it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_POSITIVE = 0x7FFFFFFFFFFFFFFF


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def row_keys(seed: int | Tensor, rows: Tensor) -> Tensor:
    """Keys (...) of int64 row numbers (...): the upper half of a splitmix64 step. A tensor seed has one element."""
    start = seed.reshape(()) if isinstance(seed, Tensor) else _signed(seed & 0xFFFFFFFFFFFFFFFF)
    # The mask changes nothing; it keeps torch.compile from folding the product into an index beyond 64 bits.
    x = ((rows + 1) & _POSITIVE) * _signed(0x9E3779B97F4A7C15) + start
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return _shift(x ^ _shift(x, 31), 32)


def keep_mask(p: float, keys: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (1 - p) where kept and 0 elsewhere, for broadcastable int64 ``keys`` and ``indices``."""
    x = (indices * 0x9E3779B1 + keys) & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    x = x ^ (x >> 16)
    threshold = min(int(p * 4294967296.0 + 0.5), _LOW)
    scale = torch.tensor(1.0 / (1.0 - p) if p < 1.0 else 0.0, dtype=torch.float32, device=x.device).to(dtype)
    return (x >= threshold) * scale
