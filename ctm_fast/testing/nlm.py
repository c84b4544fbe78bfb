"""Inputs and cases of ``ops.nlm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops.nlm.blocks import blocks
from ctm_fast.testing.contract import OPS, Inputs, Op, OpCase
from ctm_fast.testing.kernels import FLOATS, SUMS, Kernel


def nlm_inputs(
    batch: int, neurons: int, memory: int, hidden: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.nlm`` at the published initialisation's scale; ``hidden`` 0 is a linear model."""

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    width = hidden or 1
    found: Inputs = {
        "history": random(batch, neurons, memory),
        "w1": random(memory, 2 * width, neurons, scale=(memory + 2 * width) ** -0.5),
        "b1": random(1, neurons, 2 * width, scale=0.1),
        "t1": torch.tensor([1.25], dtype=dtype),
    }
    if hidden:
        found["w2"] = random(hidden, 2, neurons, scale=(hidden + 2) ** -0.5)
        found["b2"] = random(1, neurons, 2, scale=0.1)
        found["t2"] = torch.tensor([0.75], dtype=dtype)
    return found


def _arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    seed = options.get("seed")
    weights = [*inputs.values(), *[None] * (7 - len(inputs))]
    return (*weights, options.get("dropout", 0.0), None if seed is None else torch.tensor([seed]))


OPS["nlm"] = Op(ops.nlm, nlm_inputs, ("z",), _arguments, ((True, True), (False, False)))

_DROPOUT = {"dropout": 0.3, "seed": 7}

CASES = (
    OpCase("nlm", "deep", (5, 37, 6, 4)),
    OpCase("nlm", "deep-dropout", (5, 37, 6, 4), _DROPOUT),
    OpCase("nlm", "deep-whole-vectors", (8, 64, 8, 16)),
    OpCase("nlm", "deep-batch-1", (1, 33, 25, 16)),
    OpCase("nlm", "deep-one-neuron", (3, 1, 5, 3)),
    OpCase("nlm", "deep-memory-1-hidden-1", (7, 19, 1, 1)),
    OpCase("nlm", "deep-many-rows", (129, 17, 3, 2)),
    OpCase("nlm", "linear", (5, 37, 6, 0)),
    OpCase("nlm", "linear-dropout", (6, 20, 9, 0), _DROPOUT),
    OpCase("nlm", "linear-one-of-all", (1, 1, 1, 0)),
    OpCase("nlm", "no-batch", (0, 9, 4, 2)),
    OpCase("nlm", "no-neurons", (3, 0, 4, 2)),
)

SMALL = (
    OpCase("nlm", "deep", (2, 3, 4, 2)),
    OpCase("nlm", "deep-dropout", (2, 3, 4, 2), _DROPOUT),
    OpCase("nlm", "linear", (2, 3, 4, 0)),
)

# One step of memory: no sum cancels; large inputs saturate the gates and the result stays well-conditioned.
EXTREME = (
    OpCase("nlm", "deep", (64, 37, 1, 1)),
    OpCase("nlm", "linear", (64, 37, 1, 0)),
)

INTERPRETED = (
    OpCase("nlm", "deep", (5, 3, 6, 4)),
    OpCase("nlm", "deep-dropout", (3, 2, 9, 20), _DROPOUT),
    OpCase("nlm", "two-blocks", (65, 1, 17, 3)),
    OpCase("nlm", "linear", (5, 4, 6, 0)),
    OpCase("nlm", "no-batch", (0, 9, 4, 2)),
    OpCase("nlm", "no-neurons", (3, 0, 4, 2)),
)
"""Cases for Triton's interpreter, which takes milliseconds for every program of a kernel."""

_PRESETS = {
    "cifar10": (15, 64),
    "imagenet": (25, 64),
    "mazes": (25, 32),
    "parity": (25, 16),
    "linear": (25, 1),
}
_POINTERS = {"forward_kernel": "f f i64 f", "input_kernel": "f f i64 f f", "weight_kernel": "f f i64 f s"}
_MORE = {"forward_kernel": "", "input_kernel": " i32 i32 i32 i32 i32", "weight_kernel": " i32 i32 i32"}


def _over_rows(
    name: str, memory: int, hidden: int, dtypes: tuple[str, ...] = SUMS, **sizes: Any
) -> list[Kernel]:
    """A kernel on the loop form's history, whose rows are innermost, by 64 samples or more."""
    found = []
    for dtype in dtypes:
        chosen = blocks(name, 64, memory, hidden, dtype == "float64")
        warps = chosen.pop("num_warps")
        scalars = "i32 i32 i32 i64 fp32 i32 i32" + _MORE[name]
        shape = {"MEMORY": memory, "HIDDEN": hidden, "DEEP": hidden > 1, "DROP": False, "stride_r": 1}
        if name == "input_kernel":
            shape["ADD"] = True
        found.append(
            Kernel(name, _POINTERS[name], scalars, dtypes=(dtype,), warps=warps, **(shape | chosen | sizes))
        )
    return found


KERNELS = (
    *(x for sizes in _PRESETS.values() for name in _POINTERS for x in _over_rows(name, *sizes, FLOATS)),
    *(x for name in _POINTERS for x in _over_rows(name, 25, 64, ("float32",), DROP=True)),
    *(x for name in _POINTERS for x in _over_rows(name, 100, 128, ("float32",))),
    Kernel("pack_kernel", "f f f f f f f", "i32", MEMORY=25, HIDDEN=64, DEEP=True, BLOCK_C=64, BLOCK_D=32),
    Kernel(
        "unpack_kernel", "f s f f f f fp64", "i32", MEMORY=25, HIDDEN=64, DEEP=True, BLOCK_C=64, BLOCK_D=32
    ),
)
