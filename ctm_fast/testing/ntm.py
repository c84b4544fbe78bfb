"""Inputs and cases of the ``ntm`` ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.ops.ntm.layout import EPS_PLACEMENTS
from ctm_fast.testing.contract import OPS, Inputs, Op, OpCase
from ctm_fast.testing.kernels import Kernel


class _Draw:
    """Random tensors of one dtype: normal, uniform in [0, 1), and distributions over the last dimension."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        self.dtype, self.generator = dtype, generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.dtype)

    def distribution(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).softmax(-1).to(self.dtype)


def address_inputs(
    batch: int,
    slots: int,
    width: int,
    heads: int,
    shift: int,
    *,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Inputs:
    """Arguments of ``ops.ntm_address``; ``heads`` 0 is one head without a dimension."""
    draw, of = _Draw(dtype, generator), (batch, heads) if heads else (batch,)
    return {
        "memory": draw.normal(batch, slots, width),
        "key": draw.normal(*of, width),
        "beta": draw.uniform(*of) * 4,
        "gate": draw.uniform(*of),
        "shift": draw.distribution(*of, shift),
        "gamma": 1 + draw.uniform(*of) * 2,
        "previous": draw.distribution(*of, slots),
    }


def read_inputs(
    batch: int, slots: int, width: int, heads: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.ntm_read``; ``heads`` as above."""
    draw, of = _Draw(dtype, generator), (batch, heads) if heads else (batch,)
    return {"memory": draw.normal(batch, slots, width), "weights": draw.distribution(*of, slots)}


def write_inputs(
    batch: int, slots: int, width: int, heads: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.ntm_write``; ``heads`` as above."""
    found = read_inputs(batch, slots, width, heads, dtype=dtype, generator=generator)
    draw, of = _Draw(dtype, generator), (batch, heads) if heads else (batch,)
    return {**found, "erase": draw.uniform(*of, width), "add": draw.normal(*of, width)}


def step_inputs(
    batch: int, slots: int, steps: int, *heads: int, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.ntm_step`` (``steps`` 0) or ``ops.ntm_sequence`` for R, V, W and S in ``heads``."""
    read, write, width, shift = heads
    draw, layout = _Draw(dtype, generator), NtmLayout(read, write, width, shift)
    return {
        "memory": draw.normal(batch, slots, layout.width),
        "interface": draw.normal(*([steps] if steps else []), batch, layout.size),
        "read_weights": draw.distribution(batch, layout.read_heads, slots),
        "write_weights": draw.distribution(batch, layout.write_heads, slots),
    }


def _address_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    memory, *values, previous = (x if x.dim() > 2 else x.unsqueeze(-1) for x in inputs.values())
    placement = EPS_PLACEMENTS.index(options.get("eps_placement", "root"))
    return (
        memory,
        torch.cat(values, 2),
        previous,
        inputs["shift"].shape[-1],
        placement,
        options.get("eps", 1e-6),
    )


def _step_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    layout: NtmLayout = options["layout"]
    trace = (False,) if inputs["interface"].dim() == 3 else ()
    return (*inputs.values(), layout.encoded, layout.eps, *trace)


def _all(inputs: Inputs, _: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(inputs.values())


_STEP = ("reads", "memory", "read_weights", "write_weights")
OPS["ntm_address"] = Op(ops.ntm_address, address_inputs, ("weights",), _address_arguments)
OPS["ntm_read"] = Op(ops.ntm_read, read_inputs, ("reads",), _all)
OPS["ntm_write"] = Op(ops.ntm_write, write_inputs, ("memory",), _all)
OPS["ntm_step"] = Op(ops.ntm_step, step_inputs, _STEP, _step_arguments)
OPS["ntm_sequence"] = Op(ops.ntm_sequence, step_inputs, _STEP, _step_arguments)


def step_case(name: str, batch: int, slots: int, layout: NtmLayout, steps: int = 0) -> OpCase:
    """A step, or with ``steps`` a sequence, of this layout."""
    heads = (layout.read_heads, layout.write_heads, layout.width, layout.shift)
    op = "ntm_sequence" if steps else "ntm_step"
    return OpCase(op, name, (batch, slots, steps, *heads), {"layout": layout})


ONE = NtmLayout(1, 1, 6)
SEVERAL = NtmLayout(2, 3, 5, order="read_write", key="tanh", add="tanh", strength="oneplus")
SHARED = NtmLayout(2, 1, 5, order="previous_read", add="sigmoid", shared_weights=True, eps_placement="norm")

CASES = (
    *(
        OpCase("ntm_address", placement, (2, 37, 5, 2, 3), {"eps": 0.01, "eps_placement": placement})
        for placement in EPS_PLACEMENTS
    ),
    OpCase("ntm_address", "one-head", (3, 32, 20, 0, 3)),
    OpCase("ntm_address", "wide-shift", (2, 9, 3, 1, 13)),
    OpCase("ntm_address", "one-slot", (2, 1, 4, 2, 3)),
    OpCase("ntm_address", "width-1-shift-1", (3, 19, 1, 1, 1)),
    OpCase("ntm_address", "no-batch", (0, 7, 4, 2, 3)),
    OpCase("ntm_read", "several", (3, 37, 5, 2)),
    OpCase("ntm_read", "one-head", (2, 64, 20, 0)),
    OpCase("ntm_read", "one-of-all", (1, 1, 1, 1)),
    OpCase("ntm_write", "several", (3, 37, 5, 3)),
    OpCase("ntm_write", "one-head", (2, 64, 20, 0)),
    OpCase("ntm_write", "one-of-all", (1, 1, 1, 1)),
    step_case("one-of-each", 2, 33, ONE),
    step_case("several", 1, 20, SEVERAL),
    step_case("shared", 3, 16, SHARED),
    step_case("no-batch", 0, 8, ONE),
    step_case("one-of-each", 2, 18, ONE, steps=5),
    step_case("several", 1, 12, SEVERAL, steps=3),
    step_case("shared", 2, 7, SHARED, steps=3),
)

_TINY = NtmLayout(2, 2, 3)

SMALL = (
    *(
        OpCase("ntm_address", placement, (2, 5, 3, 2, 3), {"eps_placement": placement})
        for placement in EPS_PLACEMENTS
    ),
    OpCase("ntm_read", "several", (2, 5, 3, 2)),
    OpCase("ntm_write", "several", (2, 5, 3, 2)),
    step_case("write-read", 2, 5, _TINY),
    step_case("read-write", 2, 5, replace(_TINY, order="read_write", key="tanh", add="tanh")),
    step_case(
        "previous-read", 2, 5, replace(_TINY, order="previous_read", add="sigmoid", shared_weights=True)
    ),
    step_case("sequence", 2, 5, _TINY, steps=3),
)

EXTREME = (
    OpCase("ntm_address", "several", (3, 37, 2, 2, 3)),
    OpCase("ntm_read", "several", (3, 37, 5, 2)),
    OpCase("ntm_write", "several", (3, 37, 5, 3)),
    step_case("one-of-each", 2, 33, NtmLayout(1, 1, 2)),
)

INTERPRETED = (
    OpCase("ntm_address", "several", (1, 5, 3, 2, 3)),
    OpCase("ntm_address", "wide-shift", (2, 9, 35, 0, 13)),
    OpCase("ntm_address", "no-batch", (0, 7, 4, 2, 3)),
    OpCase("ntm_read", "several", (2, 37, 5, 2)),
    OpCase("ntm_write", "several", (2, 37, 5, 3)),
    step_case("one-of-each", 1, 33, ONE),
    step_case("no-batch", 0, 8, ONE),
    step_case("several", 1, 7, replace(SEVERAL, read_heads=1, write_heads=2)),
    step_case("write-read", 1, 4, NtmLayout(1, 1, 3), steps=2),
    step_case("shared", 1, 5, replace(SHARED, read_heads=1), steps=2),
)
"""Cases for Triton's interpreter, which takes milliseconds for every program of a kernel."""


def _step_kernels(
    rows: int, columns: int, warps: int, dtype: str, order: str, *ones: str
) -> tuple[Kernel, ...]:
    """Whole steps for memories of up to ``rows`` slots, ``columns`` columns at once, half of them on the way back.

    ``ones`` are the sizes known to be 1, which Triton compiles apart.
    """
    variant = {
        "SHARED": False,
        "COSINE": "root",
        "EPS": 1e-6,
        "KEY": "tanh",
        "ADD": "tanh",
        "STRENGTH": "softplus",
    }
    given: dict[str, Any] = {"dtypes": (dtype,), "warps": warps, "registers": 255, "ORDER": order, **variant}
    given |= dict.fromkeys(ones, 1)
    pointers, sizes = " ".join("s" * 8), " ".join(["i32"] * (9 - len(ones)))
    back: dict[str, Any] = {"TRACE": order == "write_read", "BLOCK_W": max(columns // 2, 1)}
    memory: dict[str, Any] = {"BLOCK_N": rows, "BLOCK_S": 4}
    return (
        Kernel("step_forward_kernel", pointers, sizes, **given, **memory, BLOCK_W=columns),
        Kernel("step_backward_kernel", f"{pointers} {pointers}", f"{sizes} i64", **given, **memory, **back),
    )


def _single_kernels(rows: int, columns: int, dtype: str) -> tuple[Kernel, ...]:
    """The single ops in the same sizes."""
    given: dict[str, Any] = {"dtypes": (dtype,), "registers": 255, "BLOCK_N": rows}
    forth, back = given | {"BLOCK_W": columns}, given | {"BLOCK_W": columns // 2}
    cosine: dict[str, Any] = {"COSINE": "root", "EPS": 1e-6, "BLOCK_S": 4}
    sizes = "i32 i32 i32"
    return (
        Kernel("address_forward_kernel", "s s s s", f"{sizes} i32", **forth, **cosine),
        Kernel("address_backward_kernel", "s s s s s s s s", f"{sizes} i32", **back, **cosine),
        Kernel("read_forward_kernel", "s s s", sizes, **forth),
        Kernel("read_backward_kernel", "s s s s s", sizes, **back),
        Kernel("write_forward_kernel", "s s s s s", sizes, **forth),
        Kernel("write_backward_kernel", "s s s s s s s s", sizes, **back),
    )


KERNELS = (
    *_step_kernels(128, 16, 4, "float32", "write_read"),
    *_step_kernels(128, 8, 4, "float64", "write_read"),
    *_step_kernels(128, 16, 4, "float32", "read_write", "steps", "readers", "writers"),
    *_step_kernels(1024, 2, 8, "float32", "write_read"),
    *_single_kernels(128, 16, "float32"),
    *_single_kernels(128, 8, "float64"),
)
"""Up to 128 slots of any width of at least 16, and the most slots: more columns are more rounds of a loop."""
