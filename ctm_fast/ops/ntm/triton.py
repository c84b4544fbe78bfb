"""Triton kernels of the ``ntm`` ops in float32 and float64; letters as in :mod:`ctm_fast.ops.ntm.device`.

One program owns a sample's memory and runs all its steps, so that no sum depends on which program runs first.
The backward runs forward again and keeps each step's memory and weights until it has gone back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctm_fast.ops.device import line, put_line
from ctm_fast.ops.ntm.arguments import MOST_SLOTS
from ctm_fast.ops.ntm.device import address, read
from ctm_fast.ops.ntm.device_step import address_heads_backward, back, collect, forth, read_heads_backward
from ctm_fast.ops.ntm.device_write import write, write_backward
from ctm_fast.ops.ntm.layout import ADDS, EPS_PLACEMENTS, ORDERS
from ctm_fast.ops.triton import block, device_of

Four = tuple[Tensor, Tensor, Tensor, Tensor]

FORWARD, BACKWARD = 1 << 13, 1 << 12  # bytes of the memory that a kernel holds in registers at once
SLOTS_OF_A_WARP = 64
REGISTERS = 255  # a thread may have all: what the assembler chooses by itself it may spill


@triton.jit
def step_forward_kernel(
    memory, interface, read_before, write_before, reads, after, read_after, write_after,
    steps, batch, readers, writers, width, slots, shift, stride_t, stride_b,
    ORDER: tl.constexpr, SHARED: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr,
    ADD: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """All steps of one sample; from the second on, the memory lies at ``after``."""
    sample = tl.program_id(0).to(tl.int64)
    n, s = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_S)
    of_plane, of_read, of_write = sample * width * slots, sample * readers * slots, sample * writers * slots
    forth(
        memory + of_plane, after + of_plane, interface + sample * stride_b, reads + sample * readers * width,
        read_before + of_read, write_before + of_write, read_after + of_read, write_after + of_write, steps, batch,
        readers, writers, n, s, width, slots, shift, stride_t, 0, True, ORDER, SHARED, COSINE, EPS, KEY, ADD, STRENGTH,
        BLOCK_W,
    )  # fmt: skip


@triton.jit
def step_backward_kernel(
    memory, interface, read_before, write_before, dreads, dread, dwrite, planes, read_after, write_after, carry,
    factors, dplane, dinterface, dread_before, dwrite_before,
    steps, batch, readers, writers, width, slots, shift, stride_t, stride_b, size,
    TRACE: tl.constexpr, ORDER: tl.constexpr, SHARED: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr,
    KEY: tl.constexpr, ADD: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """All steps of one sample forth, then back; the planes are (T, B, W, N), ``carry`` (2, B, H, N)."""
    sample = tl.program_id(0).to(tl.int64)
    n, s = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_S)
    of_plane, of_read, of_write = sample * width * slots, sample * readers * slots, sample * writers * slots
    vector, heads = interface + sample * stride_b, readers + writers
    forth(
        memory + of_plane, planes + of_plane, vector, dreads, read_before + of_read, write_before + of_write,
        read_after + of_read, write_after + of_write, steps, batch, readers, writers, n, s, width, slots, shift,
        stride_t, size, False, ORDER, SHARED, COSINE, EPS, KEY, ADD, STRENGTH, BLOCK_W,
    )  # fmt: skip
    back(
        memory + of_plane, planes + of_plane, vector, dinterface, dreads, read_before + of_read,
        write_before + of_write, read_after + of_read, write_after + of_write, dplane + of_plane,
        carry + sample * heads * slots, factors + sample * heads * (2 * slots + 1), dread + of_read, dwrite + of_write,
        dread_before + of_read, dwrite_before + of_write, sample, steps, batch, readers, writers, n, s, width, slots,
        shift, stride_t, size, TRACE, ORDER, SHARED, COSINE, EPS, KEY, ADD, STRENGTH, BLOCK_W,
    )  # fmt: skip


@triton.jit
def address_forward_kernel(
    memory, values, previous, weights, heads, width, slots, shift, COSINE: tl.constexpr, EPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One head of one sample, from activated values."""
    sample = tl.program_id(0).to(tl.int64)
    head = sample * heads + tl.program_id(1)
    n, s = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_S)
    found = address(
        memory + sample * width * slots, values + head * (width + shift + 3), previous + head * slots, n, s, width,
        slots, shift, COSINE, EPS, "linear", "given", BLOCK_W,
    )  # fmt: skip
    put_line(weights + head * slots, found, n, slots)


@triton.jit
def address_backward_kernel(
    memory, values, previous, dweights, dmemory, dvalues, dprevious, factors, heads, width, slots, shift,
    COSINE: tl.constexpr, EPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """All heads of one sample; adds to ``dmemory`` and ``dprevious``."""
    sample = tl.program_id(0).to(tl.int64)
    n, s = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_S)
    plane, of_values = memory + sample * width * slots, sample * heads * (width + shift + 3)
    of_rows, factors = sample * heads * slots, factors + sample * heads * (2 * slots + 1)
    vector, dvector, before = values + of_values, dvalues + of_values, previous + of_rows
    address_heads_backward(
        plane, vector, dvector, before, before, dweights + of_rows, dprevious + of_rows, factors, 0, heads, heads, 0,
        n, s, width, slots, shift, False, COSINE, EPS, "linear", "given", BLOCK_W,
    )  # fmt: skip
    collect(
        plane, dmemory + sample * width * slots, vector, dvector, factors, 0, heads, before, before, 0, before,
        before, heads, 0, 0, n, width, slots, shift, "linear", COSINE, EPS, "linear", BLOCK_W,
    )  # fmt: skip


@triton.jit
def read_forward_kernel(
    memory, weights, reads, heads, width, slots, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """One head of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    head = sample * heads + tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    x = line(weights + head * slots, n, slots)
    read(memory + sample * width * slots, x, reads + head * width, n, width, slots, BLOCK_W)


@triton.jit
def read_backward_kernel(
    memory, weights, dreads, dmemory, dweights, heads, width, slots, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """All heads of one sample; adds to ``dmemory`` and ``dweights``."""
    sample = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    plane, of_rows, dreads = (
        memory + sample * width * slots,
        sample * heads * slots,
        dreads + sample * heads * width,
    )
    reading = weights + of_rows
    read_heads_backward(plane, dreads, dweights + of_rows, heads, n, width, slots, BLOCK_W)
    collect(
        plane, dmemory + sample * width * slots, reading, reading, reading, 0, 0, reading, dreads, heads, reading,
        reading, heads, 0, 0, n, width, slots, 1, "linear", "root", 0.0, "linear", BLOCK_W,
    )  # fmt: skip


@triton.jit
def write_forward_kernel(
    memory, weights, erase, add, after, heads, width, slots, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """All heads of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    n, of_vectors, of_plane = tl.arange(0, BLOCK_N), sample * heads * width, sample * width * slots
    write(
        memory + of_plane, after + of_plane, weights + sample * heads * slots, erase + of_vectors, add + of_vectors,
        heads, width, n, width, slots, "linear", "linear", BLOCK_W,
    )  # fmt: skip


@triton.jit
def write_backward_kernel(
    memory, weights, erase, add, dmemory, dweights, derase, dadd, heads, width, slots, BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """All heads of one sample; ``dmemory`` holds the gradient of the memory after and is left as that before."""
    sample = tl.program_id(0).to(tl.int64)
    n, of_vectors, of_plane = tl.arange(0, BLOCK_N), sample * heads * width, sample * width * slots
    plane, dplane, writing = memory + of_plane, dmemory + of_plane, weights + sample * heads * slots
    erase, add, derase, dadd = erase + of_vectors, add + of_vectors, derase + of_vectors, dadd + of_vectors
    for v in range(heads):
        found = write_backward(
            plane, dplane, writing, erase, add, derase, dadd, v, heads, width, n, width, slots, "linear", "linear",
            BLOCK_W,
        )  # fmt: skip
        put_line(dweights + (sample * heads + v) * slots, found, n, slots)
    collect(
        plane, dplane, writing, writing, writing, 0, 0, writing, writing, 0, writing, erase, 0, heads, width, n,
        width, slots, 1, "linear", "root", 0.0, "linear", BLOCK_W,
    )  # fmt: skip


def _planes(memory: Tensor) -> Tensor:
    """The memory (B, N, W) as the kernels take it: (B, W, N), dense."""
    return memory.transpose(1, 2).contiguous()


def _gradient_planes(gradient: Tensor | None, memory: Tensor) -> Tensor:
    """A gradient of the memory to work on: a copy, of zeros where there is none."""
    batch, slots, width = memory.shape
    if gradient is None:
        return memory.new_zeros(batch, width, slots)
    return gradient.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _blocks(memory: Tensor, size: int) -> dict[str, int]:
    """Compile-time sizes and the number of warps, from sizes alone; ``size`` bytes of memory are held at once."""
    _, slots, width = memory.shape
    rows = block(slots, 32, MOST_SLOTS)
    warps = block(rows // SLOTS_OF_A_WARP, 4, 8)
    columns = max(size // memory.element_size() // rows, 1)
    return {"BLOCK_N": rows, "BLOCK_W": block(width, 1, columns), "num_warps": warps, "maxnreg": REGISTERS}


def _offsets(shift: int) -> int:
    """The power of two that holds S offsets."""
    return triton.next_power_of_2(shift)


def _variant(layout: Sequence[int], eps: float) -> dict[str, Any]:
    """Compile-time names of the variant that an ``NtmLayout`` encodes."""
    _, _, shift, order, placement, key, add, one_plus, shared = layout
    return {
        "ORDER": ORDERS[order], "SHARED": bool(shared), "COSINE": EPS_PLACEMENTS[placement], "EPS": eps,
        "KEY": ADDS[key], "ADD": ADDS[add], "STRENGTH": "oneplus" if one_plus else "softplus",
        "BLOCK_S": _offsets(shift),
    }  # fmt: skip


def ntm_step_forward(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    trace: bool = False,
) -> Four:  # fmt: skip
    """Reads, memory, read and write weights after one step (B, I), or after T > 0 steps (T, B, I).

    With ``trace`` the weights are those of all steps.
    """
    steps, (batch, slots, width) = interface.shape[:-2], memory.shape
    count, (readers, writers, shift) = steps[0] if steps else 1, layout[:3]
    reads, after = memory.new_empty(*steps, batch, readers, width), memory.new_empty(batch, width, slots)
    read, write = (memory.new_empty(*steps, batch, heads, slots) for heads in (readers, writers))
    interface = interface.contiguous()
    if batch:
        with device_of(memory):
            step_forward_kernel[batch,](
                _planes(memory), interface, read_weights.contiguous(), write_weights.contiguous(), reads, after, read,
                write, count, batch, readers, writers, width, slots, shift, batch * interface.shape[-1],
                interface.shape[-1], **_variant(layout, eps), **_blocks(memory, FORWARD),
            )  # fmt: skip
    if steps and not trace:
        read, write = read[-1].clone(), write[-1].clone()
    return reads, after.transpose(1, 2), read, write


def ntm_step_backward(
    dreads: Tensor | None, dafter: Tensor | None, dread: Tensor | None, dwrite: Tensor | None, memory: Tensor,
    interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    trace: bool = False,
) -> Four:  # fmt: skip
    """Gradients of memory, interface, read and write weights."""
    steps, (batch, slots, width) = interface.shape[:-2], memory.shape
    count, (readers, writers, shift) = steps[0] if steps else 1, layout[:3]
    interface, before = interface.contiguous(), (read_weights.contiguous(), write_weights.contiguous())
    of = steps if trace else ()
    shapes = ((*steps, batch, readers, width), (*of, batch, readers, slots), (*of, batch, writers, slots))
    grads = [_dense(g, memory, shape) for g, shape in zip((dreads, dread, dwrite), shapes, strict=True)]
    dplane, dinterface = _gradient_planes(dafter, memory), torch.empty_like(interface)
    found = [torch.empty_like(x) for x in before]
    planes = memory.new_empty(count, batch, width, slots)
    rows = [memory.new_empty(count, *x.shape) for x in before]
    carry = memory.new_empty(2, batch, readers + writers, slots)
    factors = memory.new_empty(batch, readers + writers, 2 * slots + 1)
    if batch:
        with device_of(memory):
            step_backward_kernel[batch,](
                _planes(memory), interface, *before, *grads, planes, *rows, carry, factors, dplane, dinterface, *found,
                count, batch, readers, writers, width, slots, shift, batch * interface.shape[-1],
                interface.shape[-1], planes.stride(0), TRACE=trace, **_variant(layout, eps),
                **_blocks(memory, BACKWARD),
            )  # fmt: skip
    return dplane.transpose(1, 2), dinterface, *found  # type: ignore[return-value]


def _dense(gradient: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_zeros(shape) if gradient is None else gradient.contiguous()


ntm_sequence_forward, ntm_sequence_backward = ntm_step_forward, ntm_step_backward


def ntm_address_forward(
    memory: Tensor, values: Tensor, previous: Tensor, shift: int, eps_placement: int, eps: float
) -> Tensor:
    """Weights (B, H, N) from activated values (B, H, W + S + 3), in the order of an interface vector."""
    batch, heads, slots = previous.shape
    weights = memory.new_empty(batch, heads, slots)
    if batch * heads:
        with device_of(memory):
            address_forward_kernel[batch, heads](
                _planes(memory), values.contiguous(), previous.contiguous(), weights, heads, memory.shape[2], slots,
                shift, COSINE=EPS_PLACEMENTS[eps_placement], EPS=eps, BLOCK_S=_offsets(shift),
                **_blocks(memory, FORWARD),
            )  # fmt: skip
    return weights


def ntm_address_backward(
    grad: Tensor, memory: Tensor, values: Tensor, previous: Tensor, shift: int, eps_placement: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of memory, values and previous weights."""
    values, previous = values.contiguous(), previous.contiguous()
    batch, heads, slots = previous.shape
    dplane, dvalues, dprevious = (
        _gradient_planes(None, memory),
        torch.empty_like(values),
        torch.zeros_like(previous),
    )
    factors = memory.new_empty(batch, heads, 2 * slots + 1)
    if batch * heads:
        with device_of(memory):
            address_backward_kernel[batch,](
                _planes(memory), values, previous, grad.contiguous(), dplane, dvalues, dprevious, factors, heads,
                memory.shape[2], slots, shift, COSINE=EPS_PLACEMENTS[eps_placement], EPS=eps, BLOCK_S=_offsets(shift),
                **_blocks(memory, BACKWARD),
            )  # fmt: skip
    return dplane.transpose(1, 2), dvalues, dprevious


def ntm_read_forward(memory: Tensor, weights: Tensor) -> Tensor:
    """Reads (B, H, W)."""
    batch, slots, width = memory.shape
    heads = weights.shape[1]
    reads = memory.new_empty(batch, heads, width)
    if batch * heads:
        with device_of(memory):
            read_forward_kernel[batch, heads](
                _planes(memory), weights.contiguous(), reads, heads, width, slots, **_blocks(memory, FORWARD)
            )
    return reads


def ntm_read_backward(grad: Tensor, memory: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of memory and weights."""
    weights = weights.contiguous()
    batch, heads, slots = weights.shape
    dplane, dweights = _gradient_planes(None, memory), torch.zeros_like(weights)
    if batch * heads:
        with device_of(memory):
            read_backward_kernel[batch,](
                _planes(memory), weights, grad.contiguous(), dplane, dweights, heads, memory.shape[2], slots,
                **_blocks(memory, BACKWARD),
            )  # fmt: skip
    return dplane.transpose(1, 2), dweights


def ntm_write_forward(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """The memory after all heads wrote."""
    given, (batch, slots, width) = [x.contiguous() for x in (weights, erase, add)], memory.shape
    after = memory.new_empty(batch, width, slots)
    if batch:
        with device_of(memory):
            write_forward_kernel[batch,](
                _planes(memory), *given, after, weights.shape[1], width, slots, **_blocks(memory, FORWARD)
            )
    return after.transpose(1, 2)


def ntm_write_backward(grad: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Four:
    """Gradients of memory, weights, erase and add."""
    given, (batch, slots, width) = [x.contiguous() for x in (weights, erase, add)], memory.shape
    dplane, found = _gradient_planes(grad, memory), [torch.empty_like(x) for x in given]
    if batch:
        with device_of(memory):
            write_backward_kernel[batch,](
                _planes(memory),
                *given,
                dplane,
                *found,
                weights.shape[1],
                width,
                slots,
                **_blocks(memory, BACKWARD),
            )
    return dplane.transpose(1, 2), *found  # type: ignore[return-value]
