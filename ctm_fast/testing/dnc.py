"""Inputs and cases of ``ops.dnc_allocation``, ``ops.dnc_link`` and ``ops.dnc_sequence``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import DncLayout, DncState
from ctm_fast.testing.contract import OPS, Inputs, Op, OpCase
from ctm_fast.testing.kernels import Kernel

Tensors = tuple[Tensor, ...]


def allocation_inputs(batch: int, slots: int, *, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Arguments of ``ops.dnc_allocation``."""
    return {"usage": torch.rand(batch, slots, generator=generator).to(dtype)}


def link_inputs(
    batch: int, slots: int, heads: int, links: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.dnc_link``; ``links`` 0 is the dense op."""

    def weighting(*shape: int) -> Tensor:
        return torch.softmax(2 * torch.randn(shape, generator=generator), -1)

    found = {
        "link": weighting(batch, slots, slots) * (1 - torch.eye(slots)),
        "precedence": 0.9 * weighting(batch, slots),
        "write_weights": 0.8 * weighting(batch, slots),
        "read_weights": weighting(batch, heads, slots),
    }
    if links:
        kept = found["link"].topk(links).indices.sort(-1).values
        found["link"] = found["link"].gather(2, kept)
    typed = {name: x.to(dtype) for name, x in found.items()}
    return {**typed, "link_slots": kept} if links else typed


def sequence_inputs(
    steps: int,
    batch: int,
    slots: int,
    width: int,
    heads: int,
    links: int,
    *,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Inputs:
    """Arguments of ``ops.dnc_sequence``, the state part by part; ``links`` 0 is the dense op."""
    size = DncLayout(heads, width).size
    memory = torch.randn(batch, slots, width, generator=generator)
    interface = torch.randn(steps, batch, size, generator=generator)
    usage = torch.rand(batch, slots, generator=generator)
    state = link_inputs(batch, slots, heads, links, dtype=dtype, generator=generator)
    return {
        "memory": memory.to(dtype),
        "interface": interface.to(dtype),
        "usage": usage.to(dtype),
        **state,
    }


def _run_link(*tensors: Tensor, backend: str | None = None) -> Tensors:
    return tuple(ops.dnc_link(*tensors, backend=backend)[:4])  # type: ignore[arg-type, return-value]


def _run_sequence(
    memory: Tensor, interface: Tensor, *state: Tensor, layout: DncLayout, backend: str | None = None
) -> Tensors:
    found = ops.dnc_sequence(memory, interface, DncState(*state), layout=layout, backend=backend)
    return (found.reads, found.memory, *found.state[:5])  # type: ignore[return-value]


def _allocation_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*inputs.values(), options.get("eps", 1e-6))


def _link_arguments(inputs: Inputs, _options: Mapping[str, Any]) -> tuple[Any, ...]:
    link, columns = inputs["link"], inputs.get("link_slots")
    given = list(inputs.values())[:4]
    return (*given, torch.empty(*link.shape[:2], 0, dtype=torch.int64) if columns is None else columns)


def _sequence_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    layout: DncLayout = options["layout"]
    state = _link_arguments(
        {k: v for k, v in inputs.items() if k not in ("memory", "interface", "usage")}, {}
    )
    flags = (layout.eps, layout.usage_eps, layout.strength == "oneplus", layout.detach_writes)
    return (inputs["memory"], inputs["interface"], inputs["usage"], *state, *flags)


_STATE = ("usage", "link", "precedence", "write_weights", "read_weights")
OPS["dnc_allocation"] = Op(
    ops.dnc_allocation, allocation_inputs, ("allocation",), _allocation_arguments, bounded=("usage",)
)
OPS["dnc_link"] = Op(_run_link, link_inputs, ("link", "precedence", "forward", "backward"), _link_arguments)
OPS["dnc_sequence"] = Op(
    _run_sequence, sequence_inputs, ("reads", "memory", *_STATE), _sequence_arguments, saved=(2, 5, 6)
)


def _sequence(name: str, *sizes: int, **options: Any) -> OpCase:
    layout = DncLayout(sizes[4], sizes[3], sparse=sizes[5] or None, **options)
    return OpCase("dnc_sequence", name, sizes, {"layout": layout})


CASES = (
    OpCase("dnc_allocation", "odd", (5, 37)),
    OpCase("dnc_allocation", "many-slots", (2, 300), {"eps": 1e-3}),
    OpCase("dnc_allocation", "one-slot", (3, 1)),
    OpCase("dnc_allocation", "no-batch", (0, 5)),
    OpCase("dnc_link", "odd", (3, 37, 3, 0)),
    OpCase("dnc_link", "whole-vectors", (2, 32, 4, 0)),
    OpCase("dnc_link", "sparse", (3, 37, 3, 8)),
    OpCase("dnc_link", "one-slot", (3, 1, 1, 0)),
    OpCase("dnc_link", "no-batch", (0, 5, 2, 0)),
    _sequence("dense", 3, 3, 19, 5, 2, 0),
    _sequence("sparse", 3, 3, 19, 5, 2, 4),
    _sequence("one-step-whole-vectors", 1, 2, 32, 16, 4, 0),
    _sequence("batch-1-softplus", 5, 1, 17, 3, 3, 0, strength="softplus"),
    _sequence("one-slot", 2, 2, 1, 3, 1, 0),
    _sequence("no-batch", 2, 0, 5, 3, 1, 0),
)

SMALL = (
    OpCase("dnc_allocation", "odd", (2, 5)),
    OpCase("dnc_link", "dense", (2, 4, 2, 0)),
    OpCase("dnc_link", "sparse", (2, 5, 2, 3)),
    _sequence("dense", 2, 2, 4, 3, 2, 0),
    _sequence("sparse", 2, 2, 5, 3, 2, 3),
)

INTERPRETED = (
    OpCase("dnc_link", "odd", (2, 37, 3, 0)),
    OpCase("dnc_link", "many-heads", (1, 5, 6, 0)),
    OpCase("dnc_link", "one-slot", (3, 1, 1, 0)),
    OpCase("dnc_link", "no-batch", (0, 5, 2, 0)),
)
"""Cases for Triton's interpreter, which takes milliseconds for every program of a kernel."""

KERNELS = tuple(
    Kernel(name, " ".join("s" * count), "i32 i32", dtypes=(dtype,), registers=255, BLOCK=32, HEADS=heads)
    for name, count in (("link_forward_kernel", 8), ("link_backward_kernel", 12))
    for dtype, heads in (("float32", 4), ("float64", 2))
)
