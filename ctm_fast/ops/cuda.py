"""What every call of the CUDA kernels needs: the extension module, the device and the stream."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("ctm_fast")

Limits = tuple[int, int, int]
OLDEST = 8  # major compute capability that the kernels are compiled for


@functools.cache
def extension() -> Any:
    """The module ``ctm_fast._cuda``, or None where it was not built."""
    try:
        return importlib.import_module("ctm_fast._cuda")
    except ImportError:
        return None


def limits(device: torch.device | int) -> Limits | None:
    """Multiprocessors, bytes of shared memory of a block and major compute capability of a GPU.

    None where the module cannot run there, which is logged once: it was not built, its driver is too old, or the
    GPU is.
    """
    index = device if isinstance(device, int) else device.index or 0
    return None if extension() is None else _limits(index)


@functools.cache
def _limits(index: int) -> Limits | None:
    try:
        found: Limits = tuple(extension().tick_limits(index))
    except RuntimeError as error:
        logger.warning("ctm_fast: the CUDA kernels are not used: %s", error)
        return None
    if found[2] < OLDEST:
        logger.warning(
            "ctm_fast: the CUDA kernels are not used: GPU %d is older than compute capability 8.0", index
        )
        return None
    return found


def place(like: Tensor) -> tuple[int, int]:
    """Index of a tensor's device and the handle of the stream that is current there."""
    if not like.is_cuda:
        return 0, 0
    return like.device.index, torch.cuda.current_stream(like.device).cuda_stream
