"""Argument checks of the public ops: once, at the boundary, before any pointer is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_dense(value: Tensor) -> bool:
    """Whether ``value`` has strides and memory to read: neither sparse nor nested nor of a vendor's layout."""
    return value.layout is torch.strided and not value.is_nested


def tensor(op: str, name: str, value: object) -> Tensor:
    """``value`` as a dense tensor, or ``TypeError``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if not is_dense(value):
        kind = "nested" if value.is_nested else value.layout
        raise TypeError(f"{op}: {name} must be a dense tensor, got a {kind} one")
    return value


def values(op: str, name: str, value: Tensor) -> None:
    """Raise ``ValueError`` for a meta tensor, where the op decides on numbers."""
    if value.is_meta:
        raise ValueError(f"{op}: {name} must hold numbers, got a meta tensor")


def indices(op: str, name: str, index: Tensor, size: int) -> None:
    """Raise ``IndexError`` unless every element of ``index`` is in [0, size)."""
    values(op, name, index)
    if not index.numel():
        return
    low, high = (int(x) for x in index.aminmax())
    if low < 0 or high >= size:
        raise IndexError(f"{op}: {name} must be in [0, {size}), got values from {low} to {high}")


def integer(op: str, name: str, value: object, lowest: int, end: int | None = None) -> None:
    """``TypeError`` unless ``value`` is an int, ``ValueError`` unless it is at least ``lowest`` and below ``end``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if value < lowest or (end is not None and value >= end):
        limit = "" if end is None else f" and below {end}"
        raise ValueError(f"{op}: {name} must be at least {lowest}{limit}, got {value}")


def number(op: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is an int or a float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")


def flag(op: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__}")


def floating(op: str, name: str, value: object) -> Tensor:
    """``value`` as a floating-point tensor of 16 bits or more, or ``TypeError``."""
    result = tensor(op, name, value)
    if not result.is_floating_point():
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {result.dtype}")
    if result.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must have 16 to 64 bits per element, got {result.dtype}")
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


def computed_alike(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes that tensors may have beside one of ``dtype`` where all are computed in float32, or in float64."""
    if dtype == torch.float64:
        return (torch.float64,)
    return (torch.float32, torch.bfloat16, torch.float16)


def compute_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes that weights and states may have beside activations of ``dtype``."""
    if dtype in (torch.bfloat16, torch.float16):
        return (torch.float32, dtype)
    return (dtype,)
