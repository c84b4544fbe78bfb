"""Bytes kept for backward: live memory at the end of a forward minus at its start, whoever holds it.

The C library is asked for its live allocations, so what an autograd context, a history buffer or a cache
holds counts as much as what the saved-tensor hooks see. Where torch allocates past the C library, torch's own
profiler is asked instead; it sees tensors only.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    ]  # fmt: skip


@functools.cache
def _mallinfo2() -> Any:
    """The C library's ``mallinfo2``; None where it is missing or torch's tensors do not show up in it."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    function.restype = _Mallinfo2
    before = _allocated(function)
    probe = torch.empty(2**20, dtype=torch.uint8)
    return function if _allocated(function) - before >= probe.nbytes else None


def _allocated(function: Any) -> int:
    info = function()
    return info.uordblks + info.hblkhd


def live_bytes(forward: Callable[[], object]) -> int:
    """Growth of live memory over ``forward()``, its result still alive. Run a twin of it once before."""
    gc.collect()
    function = _mallinfo2()
    if function is None:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = forward()
            gc.collect()
        events = profiler.key_averages()
        del result
        return sum(event.self_cpu_memory_usage for event in events)
    before = _allocated(function)
    result = forward()
    gc.collect()
    grown = _allocated(function) - before
    del result
    return grown


def hook_bytes(forward: Callable[[], object], excluded: Callable[[Tensor], bool] = lambda _: False) -> int:
    """Bytes of the distinct storages that autograd saves through hooks; ``excluded`` tensors are left out."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        if not excluded(x):
            storage = x.untyped_storage()
            storages[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def storages_of(tensors: Iterable[Tensor]) -> Callable[[Tensor], bool]:
    """Whether a tensor shares its storage with one of ``tensors``."""
    addresses = {x.untyped_storage().data_ptr() for x in tensors}
    return lambda x: x.untyped_storage().data_ptr() in addresses
