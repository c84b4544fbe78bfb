"""Inputs and cases of ``ops.sync``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops.native import compute_dtype
from ctm_fast.testing.contract import OPS, Inputs, Op, OpCase
from ctm_fast.testing.kernels import Kernel


def sync_inputs(
    ticks: int, batch: int, neurons: int, pairs: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.sync``: random pairs, so some repeat and some join a neuron with itself."""
    state = compute_dtype(dtype)

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    left, right = torch.randint(0, neurons, (2, pairs), generator=generator)
    left[: pairs // 4] = right[: pairs // 4]
    return {
        "activations": random(ticks, batch, neurons),
        "left": left,
        "right": right,
        "decay": random(pairs).abs(),
        "alpha": random(batch, pairs, dtype=state),
        "beta": random(pairs, dtype=state).abs(),
    }


def _arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*inputs.values(), options.get("last", False))


OPS["sync"] = Op(ops.sync, sync_inputs, ("synchronisation", "alpha", "beta"), _arguments)

CASES = (
    OpCase("sync", "all-ticks", (6, 5, 37, 23)),
    OpCase("sync", "last-tick", (6, 5, 37, 23), {"last": True}),
    OpCase("sync", "one-tick", (1, 3, 16, 40)),
    OpCase("sync", "batch-1-long", (40, 1, 33, 17)),
    OpCase("sync", "many-samples", (3, 67, 12, 65)),
    OpCase("sync", "many-samples-last-tick", (3, 67, 12, 65), {"last": True}),
    OpCase("sync", "few-of-many-neurons", (4, 20, 300, 9)),
    OpCase("sync", "one-neuron", (4, 2, 1, 3)),
    OpCase("sync", "no-pairs", (3, 2, 5, 0)),
    OpCase("sync", "no-batch", (3, 0, 5, 4)),
)

SMALL = (
    OpCase("sync", "all-ticks", (3, 2, 4, 5)),
    OpCase("sync", "last-tick", (3, 2, 4, 5), {"last": True}),
)

EXTREME = (
    OpCase("sync", "all-ticks", (6, 5, 37, 23)),
    OpCase("sync", "last-tick", (6, 5, 37, 23), {"last": True}),
)

INTERPRETED = (
    OpCase("sync", "all-ticks", (4, 3, 37, 23)),
    OpCase("sync", "last-tick", (4, 2, 37, 23), {"last": True}),
    OpCase("sync", "two-blocks", (2, 1, 130, 259)),
    OpCase("sync", "batch-1-long", (20, 1, 5, 7)),
    OpCase("sync", "one-neuron", (3, 2, 1, 3)),
    OpCase("sync", "no-pairs", (3, 2, 5, 0)),
    OpCase("sync", "no-batch", (3, 0, 5, 4)),
)
"""Cases for Triton's interpreter, which takes milliseconds for every program of a kernel."""

KERNELS = (
    Kernel("forward_kernel", "f i32 i32 f f f f f f", "i32 i32 i32 i32 i32 i32", LAST=False, BLOCK=256),
    Kernel("forward_kernel", "f i32 i32 f f f f f f", "i32 i32 i32 i32 i32 i32", LAST=True, BLOCK=32),
    Kernel("betas_kernel", "f f f", "i32 i32", BLOCK=256),
    Kernel(
        "backward_kernel", "f i32 i32 f f f f f f f f f f", "i32 i32 i32 i32 i32 i32", LAST=False, BLOCK=256
    ),
    Kernel(
        "backward_kernel", "f i32 i32 f f f f f f f f f f", "i32 i32 i32 i32 i32 i32", LAST=True, BLOCK=32
    ),
    Kernel("gather_kernel", "f f f i32 i32 i32", "i32 i32 i32 i32 i32 i32", ADD=True, BLOCK=128),
)
