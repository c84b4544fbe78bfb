"""What every call of the CUDA kernels needs: the extension module, the device and the stream."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor


@functools.cache
def extension() -> Any:
    """The module ``ctm_fast._cuda``, or None where it was not built."""
    try:
        return importlib.import_module("ctm_fast._cuda")
    except ImportError:
        return None


def place(like: Tensor) -> tuple[int, int]:
    """Index of a tensor's device and the handle of the stream that is current there."""
    if not like.is_cuda:
        return 0, 0
    return like.device.index, torch.cuda.current_stream(like.device).cuda_stream
