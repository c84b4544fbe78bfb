"""What every Triton twin needs: registration of a second set of kernels, block sizes, the current device.

Triton is imported with the first kernel that is called, never with the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Drop = tuple[float, Any, int]  # probability, seed, number of the first row
SUFFIX = "_triton"  # of the registered ops that call Triton kernels


def register(
    library: torch.library.Library, word: str, names: Sequence[str], fakes: Sequence[Callable[..., Any]]
) -> None:
    """Register the functions ``names`` of ``ctm_fast.ops.<word>.triton`` as ops of the same name and a suffix."""
    for name, fake in zip(names, fakes, strict=True):
        library.impl(name + SUFFIX, function(word, name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"ctm_fast::{name}{SUFFIX}", fake)


def function(word: str, name: str, kernels: str = "triton") -> Callable[..., Any]:
    """The function ``name`` of ``ctm_fast.ops.<word>.<kernels>``, imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"ctm_fast.ops.{word}.{kernels}"), name)(*arguments)

    return call


def op(name: str, backend: str) -> Any:
    """The registered op ``name`` of the backend "native" or "triton"."""
    return getattr(torch.ops.ctm_fast, name + SUFFIX if backend == "triton" else name)


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of ``tensor`` the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def block(size: int, least: int, most: int) -> int:
    """The power of two that holds ``size``, at least ``least`` and at most ``most``, both powers of two."""
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def masks(drop: Drop, device: torch.device) -> tuple[Tensor | None, int, int, float, bool]:
    """Seed, number of row 0, threshold, scale and whether anything is dropped, as the kernels take them.

    ``drop`` is (probability, seed, number of row 0), the seed an int64 tensor with one element.
    """
    p, seed, first_row = drop
    if p == 0.0:
        return None, 0, 0, 1.0, False
    threshold = min(int(p * 4294967296.0 + 0.5), 0xFFFFFFFF)
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    return seed.to(device, non_blocking=True), first_row, threshold, scale, True
