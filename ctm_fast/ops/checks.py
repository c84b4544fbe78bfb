"""Argument checks of the public ops: once, at the boundary, before any pointer is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tensor(op: str, name: str, value: object) -> Tensor:
    """``value`` as a tensor, or ``TypeError``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def floating(op: str, name: str, value: object) -> Tensor:
    """``value`` as a floating-point tensor, or ``TypeError``."""
    result = tensor(op, name, value)
    if not result.is_floating_point():
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {result.dtype}")
    return result


def rank(op: str, name: str, value: Tensor, letters: str) -> None:
    """Raise ``ValueError`` unless ``value`` has one dimension per comma-separated letter of ``letters``."""
    if value.dim() != letters.count(",") + 1:
        raise ValueError(f"{op}: {name} must have shape ({letters}), got {tuple(value.shape)}")


def shape(op: str, name: str, value: Tensor, expected: Sequence[int], letters: str) -> None:
    """Raise ``ValueError`` unless ``value`` has exactly this shape."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {name} must have shape ({letters}) = {tuple(expected)}, got {tuple(value.shape)}"
        )


def like(
    op: str, name: str, value: Tensor, other_name: str, other: Tensor, dtypes: Sequence[torch.dtype]
) -> None:
    """``ValueError`` unless on the device of ``other``, ``TypeError`` unless of one of ``dtypes``."""
    if value.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}, got {value.device}"
        )
    if value.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {names}, got {value.dtype}")


def compute_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes that weights and states may have beside activations of ``dtype``."""
    if dtype in (torch.bfloat16, torch.float16):
        return (torch.float32, dtype)
    return (dtype,)
