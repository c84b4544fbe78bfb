"""Counter-based dropout masks in plain torch: the same bits as the kernels draw.

An element is kept where a 32-bit hash of (its index in the row, the key of its row) reaches p * 2**32, so a
backward pass draws the mask again instead of keeping it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
_LIBRARY.define("row_keys(Tensor seed, Tensor rows) -> Tensor")


def _signed(constant: int, bits: int) -> int:
    """The signed number that is ``constant`` modulo 2**bits."""
    return constant - (1 << bits) if constant >= 1 << (bits - 1) else constant


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _row_keys(seed: Tensor, rows: Tensor) -> Tensor:
    x = (rows + 1) * _signed(0x9E3779B97F4A7C15, 64) + seed.reshape(())
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB, 64)
    return _shift(x ^ _shift(x, 31), 32)


# An op of its own: the products wrap around 64 bits, undefined in the C++ that torch.compile would write.
_LIBRARY.impl("row_keys", _row_keys, "CompositeExplicitAutograd")
torch.library.register_fake("ctm_fast::row_keys", lambda _, rows: torch.empty_like(rows))


def row_keys(seed: int | Tensor, rows: Tensor) -> Tensor:
    """Keys (...) of int64 row numbers (...): the upper half of a splitmix64 step.

    ``seed`` counts modulo 2**64; a tensor is int64 with one element.
    """
    if not isinstance(seed, Tensor):
        seed = torch.full((1,), _signed(seed % (1 << 64), 64), device=rows.device)
    keys: Tensor = torch.ops.ctm_fast.row_keys(seed, rows)
    return keys


def keep_mask(p: float, keys: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (1 - p) where kept and 0 elsewhere; broadcastable int64 ``keys`` and ``indices`` below 2**32."""
    x = (indices * _signed(0x9E3779B1, 32) + keys) & _LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * _signed(0x846CA68B, 32)) & _LOW
    x = x ^ (x >> 16)
    threshold = min(int(p * 4294967296.0 + 0.5), _LOW)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    return (x >= threshold) * torch.full((), scale, dtype=torch.float32, device=x.device).to(dtype)
