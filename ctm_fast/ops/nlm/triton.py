"""Triton kernels of ``ops.nlm``: a program is one neuron and a block of rows.

Letters as in :mod:`ctm_fast.ops.nlm.device`, where the layers and the packed weights are. No hidden
activation reaches memory: the backward computes them again. A program owns what it writes, and sums over
programs have a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctm_fast.ops.native import NO_DROPOUT, compute_dtype
from ctm_fast.ops.nlm.blocks import blocks
from ctm_fast.ops.nlm.device import (
    block_gradients,
    divisors_at,
    first_place,
    hidden,
    hidden_gradients,
    keep,
    output_gradients,
    outputs,
    packed_size,
    rows_of,
    second_at,
    through_first_layer,
)
from ctm_fast.ops.triton import Drop, device_of, masks

APART = tl.constexpr(256)  # rows whose weight gradients are summed before they join the rest
PROGRAMS = 2048  # that the weight gradients are shared out to where there are rows enough
TILE = 64  # columns of packed weights that a program packs or unpacks, for half as many neurons

Shape = tuple[int, int, int, int, bool]  # rows, D, M, H, deep


@triton.jit
def pack_kernel(
    w1, b1, t1, w2, b2, t2, packed, neurons,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weights neuron by neuron: some packed columns of some neurons."""
    c, size = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], packed_size(MEMORY, HIDDEN, DEEP)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    there = d < neurons
    m, out = first_place(c, HIDDEN)
    last, k = divisors_at(MEMORY, HIDDEN, DEEP), c - second_at(MEMORY, HIDDEN)
    found = tl.load(b1 + d * (2 * HIDDEN) + out, mask=there & (m == MEMORY), other=0.0)
    at = w1 + (m * 2 * HIDDEN + out).to(tl.int64) * neurons + d
    found = tl.load(at, mask=there & (m < MEMORY), other=found)
    found = tl.load(t1 + 0 * (c + d), mask=there & (c == last), other=found)
    if DEEP:
        inside = there & (k >= 0) & (k < 2 * HIDDEN)
        found = tl.load(w2 + k.to(tl.int64) * neurons + d, mask=inside, other=found)
        inside = there & (k >= 2 * HIDDEN) & (k < 2 * HIDDEN + 2)
        found = tl.load(b2 + 2 * d + k - 2 * HIDDEN, mask=inside, other=found)
        found = tl.load(t2 + 0 * (c + d), mask=there & (c == last + 1), other=found)
    tl.store(packed + d * size + c, found, mask=there & (c < size))


@triton.jit
def unpack_kernel(
    packed, grad, w1, b1, w2, b2, sums, neurons,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The transpose of packing; ``sums`` (programs, 2) are of gradients times weights, for those of t1 and t2."""
    c, size = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None], packed_size(MEMORY, HIDDEN, DEEP)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    there = (d < neurons) & (c < divisors_at(MEMORY, HIDDEN, DEEP))
    found = tl.load(grad + d * size + c, mask=there, other=0.0)
    product = found.to(tl.float64) * tl.load(packed + d * size + c, mask=there, other=0.0).to(tl.float64)
    m, out = first_place(c, HIDDEN)
    tl.store(w1 + (m * 2 * HIDDEN + out).to(tl.int64) * neurons + d, found, mask=there & (m < MEMORY))
    tl.store(b1 + d * (2 * HIDDEN) + out, found, mask=there & (m == MEMORY))
    k = c - second_at(MEMORY, HIDDEN)
    if DEEP:
        tl.store(w2 + k.to(tl.int64) * neurons + d, found, mask=there & (k >= 0) & (k < 2 * HIDDEN))
        tl.store(b2 + 2 * d + k - 2 * HIDDEN, found, mask=there & (k >= 2 * HIDDEN))
    index = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums + 2 * index, tl.sum(tl.where(k < 0, product, 0.0)))
    tl.store(sums + 2 * index + 1, tl.sum(tl.where(k < 0, 0.0, product)))


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    x, packed, seed, z, rows, neurons, first_row, threshold, scale, stride_r, stride_d, stride_m,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Post-activations z (R, D)."""
    d = (tl.program_id(0) % neurons).to(tl.int64)
    seen, drop, w = rows_of(
        tl.program_id(0) // neurons * BLOCK_R, x, packed, seed, rows, neurons, d, first_row, threshold, scale,
        stride_r, stride_d, stride_m, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R,
    )  # fmt: skip
    oa, og, _, _ = outputs(seen, drop, w, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
    tl.store(z + seen[1] * neurons + d, oa * tl.sigmoid(og), mask=seen[2])


@triton.jit(do_not_specialize=["threshold"])
def input_kernel(
    x, packed, seed, dz, dx, rows, neurons, first_row, threshold, scale, stride_r, stride_d, stride_m,
    dz_r, dz_d, dx_r, dx_d, dx_m, ADD: tl.constexpr,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs, written to ``dx`` or added to it."""
    d = (tl.program_id(0) % neurons).to(tl.int64)
    seen, drop, w = rows_of(
        tl.program_id(0) // neurons * BLOCK_R, x, packed, seed, rows, neurons, d, first_row, threshold, scale,
        stride_r, stride_d, stride_m, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R,
    )  # fmt: skip
    _, r, inside, _, _ = seen
    oa, og, a, g = outputs(seen, drop, w, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
    da, dg = output_gradients(seen, w, (dz + d * dz_d, dz_r), oa, og, MEMORY, HIDDEN, DEEP)
    if HIDDEN <= BLOCK_H:
        first, second = hidden_gradients(
            drop, inside, w, a, g, da, dg, 0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_H
        )
    for m0 in tl.range(0, MEMORY, BLOCK_M, num_stages=1):
        m = m0 + tl.arange(0, BLOCK_M)
        total = tl.zeros((BLOCK_R, BLOCK_M), a.dtype)
        if HIDDEN <= BLOCK_H:
            total = through_first_layer(
                total, first, second, w, m0, 0, MEMORY, HIDDEN, BLOCK_R, BLOCK_M, BLOCK_H
            )
        else:
            for h0 in tl.range(0, HIDDEN, BLOCK_H, num_stages=1):
                a, g = hidden(seen, drop, w, h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
                first, second = hidden_gradients(
                    drop, inside, w, a, g, da, dg, h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_H
                )
                total = through_first_layer(
                    total, first, second, w, m0, h0, MEMORY, HIDDEN, BLOCK_R, BLOCK_M, BLOCK_H
                )
        if DROP:
            total *= keep(drop, m)
        at = dx + d * dx_d + r[:, None] * dx_r + m.to(tl.int64)[None, :] * dx_m
        there = inside[:, None] & (m < MEMORY)[None, :]
        if ADD:
            total += tl.load(at, mask=there, other=0.0)
        tl.store(at, total, mask=there)


@triton.jit
def store_gradients(
    to, dw1, db1, dw2, da, dg, m0, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Stores a neuron's gradients in the order of its packed weights; those of t1 and t2 are left zero."""
    m, c = m0 + tl.arange(0, BLOCK_M), 2 * h0 + tl.arange(0, 2 * BLOCK_H)
    inside = c < 2 * HIDDEN
    tl.store(to + m[:, None] * (2 * HIDDEN) + c[None, :], dw1, mask=(m < MEMORY)[:, None] & inside[None, :])
    if m0 == 0:
        tl.store(to + MEMORY * 2 * HIDDEN + c, db1, mask=inside)
        if DEEP:
            tl.store(to + second_at(MEMORY, HIDDEN) + c, dw2, mask=inside)
        if h0 == 0:
            if DEEP:
                tl.store(to + second_at(MEMORY, HIDDEN) + 2 * HIDDEN, da)
                tl.store(to + second_at(MEMORY, HIDDEN) + 2 * HIDDEN + 1, dg)
            rest = divisors_at(MEMORY, HIDDEN, DEEP) + tl.arange(0, 64)
            tl.store(to + rest, tl.zeros_like(rest), mask=rest < packed_size(MEMORY, HIDDEN, DEEP))


@triton.jit(do_not_specialize=["threshold"])
def weight_kernel(
    x, packed, seed, dz, partial, rows, neurons, first_row, threshold, scale, stride_r, stride_d, stride_m,
    dz_r, dz_d, share,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients of one neuron's packed weights by ``share`` rows, a block of w1; ``partial`` (shares, D, size)."""
    d = (tl.program_id(0) % neurons).to(tl.int64)
    m0 = tl.program_id(1) * BLOCK_M
    h0 = tl.program_id(2) * BLOCK_H
    index = tl.program_id(0) // neurons
    kind: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    dw1 = tl.zeros((BLOCK_M, 2 * BLOCK_H), kind)
    db1, dw2 = tl.zeros((2 * BLOCK_H,), kind), tl.zeros((2 * BLOCK_H,), kind)
    db2a, db2g = tl.sum(tl.zeros((1,), kind)), tl.sum(tl.zeros((1,), kind))
    end = tl.minimum(rows, (index + 1) * share)
    for begin in tl.range(index * share, end, APART, num_stages=1):
        part = tl.zeros((BLOCK_M, 2 * BLOCK_H), kind)
        for row in tl.range(begin, tl.minimum(end, begin + APART), BLOCK_R, num_stages=1):
            seen, drop, w = rows_of(
                row, x, packed, seed, rows, neurons, d, first_row, threshold, scale,
                stride_r, stride_d, stride_m, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R,
            )  # fmt: skip
            part, b1, w2, b2a, b2g = block_gradients(
                seen, drop, w, (dz + d * dz_d, dz_r), part, m0, h0, MEMORY, HIDDEN, DEEP, DROP,
                BLOCK_R, BLOCK_K, BLOCK_M, BLOCK_H,
            )  # fmt: skip
            db1 += b1
            dw2 += w2
            db2a += b2a
            db2g += b2g
        dw1 += part
    to = partial + (index.to(tl.int64) * neurons + d) * packed_size(MEMORY, HIDDEN, DEEP)
    store_gradients(to, dw1, db1, dw2, db2a, db2g, m0, h0, MEMORY, HIDDEN, DEEP, BLOCK_M, BLOCK_H)


def _sizes(kernel: str, shape: Shape, x: Tensor, dropped: bool) -> dict[str, Any]:
    """Compile-time sizes and warps of a kernel over rows of ``x``."""
    rows, _, memory, hidden, deep = shape
    found = blocks(kernel, rows, memory, hidden, x.dtype == torch.float64)
    return {"MEMORY": memory, "HIDDEN": hidden, "DEEP": deep, "DROP": dropped} | found


def drop_args(p: float, seed: Tensor | None, first_row: int = 0) -> Drop:
    """(probability, seed, number of row 0) as the launchers here take it."""
    return NO_DROPOUT if p == 0.0 or seed is None else (p, seed, first_row)


def buffer(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor (..., rows, B, D) of which a neuron's rows are one stretch of memory."""
    *leading, rows, batch, neurons = shape
    return like.new_empty(*leading, neurons, rows, batch).movedim(-3, -1)


def pack(
    w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None, t2: Tensor | None
) -> Tensor:
    """Packed weights (D, columns) of the weights' dtype."""
    memory, outputs, neurons = w1.shape
    shape = (0, neurons, memory, outputs // 2, w2 is not None)
    packed = w1.new_empty(neurons, packed_size(*shape[2:]))
    held = [x.contiguous() if x is not None else None for x in (w1, b1, t1, w2, b2, t2)]
    if packed.numel():
        with device_of(w1):
            pack_kernel[_tiles(packed)](*held, packed, neurons, **_tile(shape))
    return packed


def _tiles(packed: Tensor) -> tuple[int, int]:
    neurons, columns = packed.shape
    return triton.cdiv(columns, TILE), triton.cdiv(neurons, TILE // 2)


def _tile(shape: Shape) -> dict[str, Any]:
    return dict(zip(("MEMORY", "HIDDEN", "DEEP"), shape[2:], strict=True), BLOCK_C=TILE, BLOCK_D=TILE // 2)


def unpack(
    packed: Tensor, grad: Tensor, w1: Tensor, t1: Tensor, w2: Tensor | None, t2: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of (w1, b1, t1, w2, b2, t2) from that of ``packed``; the last three are empty if linear."""
    memory, outputs, neurons = w1.shape
    found = [w1.new_zeros(x) for x in ((memory, outputs, neurons), (1, neurons, outputs))]
    found += [
        w1.new_zeros(x) for x in (((outputs // 2, 2, neurons), (1, neurons, 2)) if w2 is not None else (0, 0))
    ]
    sums = packed.new_zeros(*_tiles(packed), 2, dtype=torch.float64)
    if packed.numel():
        shape = (0, neurons, memory, outputs // 2, w2 is not None)
        with device_of(w1):
            unpack_kernel[_tiles(packed)](packed, grad.contiguous(), *found, sums, neurons, **_tile(shape))
    first, second = sums.sum((0, 1)).neg().split(1)
    dt2 = (second / t2).to(w1.dtype) if t2 is not None else w1.new_empty(0)
    return found[0], found[1], (first / t1).to(w1.dtype), found[2], found[3], dt2


def run_forward(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], z: Tensor
) -> None:
    """Writes the post-activations of ``shape[0]`` rows of ``x`` (row, neuron, memory strides) to ``z`` (rows, D)."""
    rows, neurons = shape[:2]
    if not z.numel():
        return
    *drawn, dropped = masks(drop, x.device)
    sizes = _sizes("forward_kernel", shape, x, dropped)
    with device_of(x):
        forward_kernel[neurons * triton.cdiv(rows, sizes["BLOCK_R"]),](
            x, packed, drawn[0], z, rows, neurons, *drawn[1:], *strides, **sizes
        )


def input_gradient(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], dz: Tensor, dx: Tensor,
    dx_strides: tuple[int, ...], add: bool,
) -> None:  # fmt: skip
    """Writes the gradients of ``x`` to ``dx``, or adds them to it."""
    rows, neurons = shape[:2]
    if not dz.numel():
        return
    *drawn, dropped = masks(drop, x.device)
    sizes = _sizes("input_kernel", shape, x, dropped)
    with device_of(x):
        input_kernel[neurons * triton.cdiv(rows, sizes["BLOCK_R"]),](
            x, packed, drawn[0], dz, dx, rows, neurons, *drawn[1:], *strides, *dz.stride(), *dx_strides, ADD=add,
            **sizes,
        )  # fmt: skip


def weight_gradient(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], dz: Tensor
) -> Tensor:
    """The gradient (D, columns) of the packed weights, in the precision of sums."""
    rows, neurons, memory, hidden, _ = shape
    dtype = compute_dtype(x.dtype)
    if not dz.numel():
        return packed.new_zeros(packed.shape, dtype=dtype)
    *drawn, dropped = masks(drop, x.device)
    sizes = _sizes("weight_kernel", shape, x, dropped)
    share = triton.cdiv(triton.cdiv(rows, triton.cdiv(PROGRAMS, neurons)), APART.value) * APART.value
    shares = triton.cdiv(rows, share)
    partial = packed.new_empty(shares, *packed.shape, dtype=dtype)
    grid = (
        neurons * shares,
        max(triton.cdiv(memory, sizes["BLOCK_M"]), 1),
        triton.cdiv(hidden, sizes["BLOCK_H"]),
    )
    with device_of(x):
        weight_kernel[grid](
            x, packed, drawn[0], dz, partial, rows, neurons, *drawn[1:], *strides, *dz.stride(), share,
            **sizes,
        )  # fmt: skip
    return partial.sum(0) if shares > 1 else partial[0]


def run_backward(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], dz: Tensor,
    dx: Tensor | None, dx_strides: tuple[int, ...], dpacked: Tensor | None,
) -> None:  # fmt: skip
    """Adds to ``dx`` (at ``dx_strides``) and to ``dpacked`` where they are given."""
    if dx is not None:
        input_gradient(shape, drop, packed, x, strides, dz, dx, dx_strides, add=True)
    if dpacked is not None:
        dpacked += weight_gradient(shape, drop, packed, x, strides, dz)


def forward_by(
    run: Callable[..., None], history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None,
    b2: Tensor | None, t2: Tensor | None, dropout: float, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """The forward of a whole op by a function like :func:`run_forward`."""
    z = history.new_empty(history.shape[:2])
    shape = (*history.shape, w1.shape[1] // 2, w2 is not None)
    packed = pack(w1, b1, t1, w2, b2, t2)
    run(shape, drop_args(dropout, seed), packed, history, history.stride(), z)
    return z


def nlm_forward(*arguments: Any) -> Tensor:
    """The registered forward: history, weights, dropout and seed; shapes as those of the public op."""
    return forward_by(run_forward, *arguments)


def nlm_backward(
    grad: Tensor, history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None,
    t2: Tensor | None, dropout: float, seed: Tensor | None, want_history: bool, want_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The registered backward: gradients of the history and of the weights, empty where they are not wanted."""
    shape = (*history.shape, w1.shape[1] // 2, w2 is not None)
    drop, packed = drop_args(dropout, seed), pack(w1, b1, t1, w2, b2, t2)
    at = shape, drop, packed, history, history.stride(), grad
    dx = history.new_empty(history.shape if want_history else 0)
    if want_history:
        input_gradient(*at, dx, dx.stride(), add=False)
    none = tuple(w1.new_empty(0) for _ in range(6))  # outputs of a registered op must not alias
    return (dx, *(unpack(packed, weight_gradient(*at), w1, t1, w2, t2) if want_weights else none))
