"""Checks of constructor arguments, inputs and states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ctm_fast.ops import checks

Kept = TypeVar("Kept")


class ArgumentError(ValueError, AssertionError):
    """A constructor argument is not valid.

    A ``ValueError`` like everywhere in this package, and also the ``AssertionError`` that callers of the
    published constructors catch.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`ArgumentError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(message)


def require_positive(**sizes: int) -> None:
    """Raise ``TypeError`` unless every size is an integer, :class:`ArgumentError` unless at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, Integral):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        require(size >= 1, f"{name} must be at least 1, got {size}")


def require_number(**values: float) -> None:
    """Raise ``TypeError`` unless every value is a number, :class:`ArgumentError` unless finite."""
    for name, value in values.items():
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        require(math.isfinite(value), f"{name} must be finite, got {value}")


def require_bound(name: str, bound: float | None) -> None:
    """Raise ``TypeError`` unless ``bound`` is None or a number, :class:`ArgumentError` unless positive."""
    if bound is None:
        return
    if not isinstance(bound, int | float):
        raise TypeError(f"{name} must be a number or None, got {type(bound).__name__}")
    require(bound > 0, f"{name} must be positive or None, got {bound}")


def check_inputs(model: str, x: object, size: int, like: Tensor) -> Tensor:
    """``x`` if it is (T, B, I), T at least 1, of the dtype of ``like`` outside autocast; else an error."""
    found = checks.floating(model, "x", x)
    if found.dim() != 3 or found.shape[0] < 1 or found.shape[2] != size:
        raise ValueError(f"{model}: x must have shape (T, B, {size}), got {tuple(found.shape)}")
    check_precision(model, found, like)
    return found


def check_precision(model: str, x: Tensor, like: Tensor) -> None:
    """Raise ``TypeError`` unless ``x`` has the dtype of the parameters, or autocast is on."""
    if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{model}: x must be {like.dtype} as the parameters, got {x.dtype}")


def check_state(model: str, state: object, kind: type) -> None:
    """Raise ``TypeError`` unless ``state`` is of this kind."""
    if not isinstance(state, kind):
        raise TypeError(f"{model}: state must be of type {kind.__name__}, got {type(state).__name__}")


def check_memory(model: str, memory: Tensor, batch: int, width: int) -> None:
    """Raise ``ValueError`` unless a state's memory is (B, N, W) of this batch and width."""
    found = checks.floating(model, "state's memory", memory)
    checks.rank(model, "state's memory", found, "B, N, W")
    if len(found) != batch:
        raise ValueError(f"{model}: state must be of batch {batch}, got {len(found)}")
    checks.shape(model, "state's memory", found, (batch, found.shape[1], width), "B, N, W")


def check_part(model: str, name: str, value: object, shape: Sequence[int], letters: str) -> None:
    """Raise unless a part of a state is a floating-point tensor of this shape."""
    name = f"state's {name}"
    checks.shape(model, name, checks.floating(model, name, value), shape, letters)


def check_layers(model: str, parts: Sequence[Tensor], count: int, shape: Sequence[int]) -> None:
    """Raise unless a state's recurrent part consists of ``count`` tensors (L, B, C) of this shape."""
    if len(parts) != count:
        raise ValueError(f"{model}: state's controller must be {count} tensors, got {len(parts)}")
    for part in parts:
        check_part(model, "controller", part, shape, "L, B, C")


def in_precision(state: Kept, like: Tensor) -> Kept:
    """A state, tuples of tensors, in the dtype of ``like``: autocast leaves parts of one in 16 bits."""
    found: Any = state
    if isinstance(state, Tensor) and state.is_floating_point():
        found = state.to(like.dtype)
    elif isinstance(state, tuple):
        parts = [in_precision(part, like) for part in state]
        found = type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return cast(Kept, found)
