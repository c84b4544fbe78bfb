"""Whole steps of one sample in Triton, forward and backward; see :mod:`ctm_fast.ops.ntm.device`.

Weights of read heads (R, N) and of write heads (V, N) lie apart; their gradients (H, N) together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ctm_fast.ops.device import line, put_line
from ctm_fast.ops.ntm.device import add_line, address, address_backward, put_tile, read, read_backward, tile
from ctm_fast.ops.ntm.device_write import head_at, kept, spread_matches, spread_reads, write, write_backward


@triton.jit
def row_at(read_rows, write_rows, head, readers, slots):
    """Where the weights of a head begin."""
    return tl.where(head < readers, read_rows + head * slots, write_rows + (head - readers) * slots)


@triton.jit
def address_heads(
    plane, vector, read_at, write_at, read_next, write_next, first, last, readers, writers, n, s, width, slots, shift,
    SHARED: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr, STRENGTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Store the weights of the heads from ``first`` on, where every thread finds them."""
    for h in range(first, last):
        source = readers + writers - 1 if SHARED else h
        previous = row_at(read_at, write_at, source, readers, slots)
        weights = address(
            plane, head_at(vector, h, readers, width, shift), previous, n, s, width, slots, shift, COSINE, EPS, KEY,
            STRENGTH, BLOCK_W,
        )  # fmt: skip
        put_line(row_at(read_next, write_next, h, readers, slots), weights, n, slots)
    tl.debug_barrier()


@triton.jit
def read_heads(plane, weights, reads, readers, n, width, slots, BLOCK_W: tl.constexpr):
    """Store what all read heads read."""
    for r in range(readers):
        read(plane, line(weights + r * slots, n, slots), reads + r * width, n, width, slots, BLOCK_W)


@triton.jit
def phase_of(phase, memory, after, readers, heads, ORDER: tl.constexpr):
    """In a phase: the memory addressed, by which heads, how many read it, and whether it is the one after.

    In the order "write_read" write heads address the memory before, then read heads the one after; in the
    others all heads address the one before.
    """
    late = phase == 1
    if ORDER == "write_read":
        plane, first, last = (
            tl.where(late, after, memory),
            tl.where(late, 0, readers),
            tl.where(late, readers, heads),
        )
        reading = tl.where(late, readers, 0)
    else:
        plane, first, last, reading = memory, 0, heads, readers
    return plane, first, last, reading, late


@triton.jit
def advance(
    memory, after, vector, reads, read_at, write_at, read_next, write_next, readers, writers, n, s, width, slots,
    shift, READS: tl.constexpr, ORDER: tl.constexpr, SHARED: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr,
    KEY: tl.constexpr, ADD: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One step: weights, the memory ``after``, which may be ``memory``, and the reads if READS."""
    erase = head_at(vector, readers, readers, width, shift) + width + shift + 3
    apart = 3 * width + shift + 3
    used = read_at if ORDER == "previous_read" else read_next
    for phase in range(2 if ORDER == "write_read" else 1):
        plane, first, last, reading, late = phase_of(phase, memory, after, readers, readers + writers, ORDER)
        address_heads(
            plane, vector, read_at, write_at, read_next, write_next, first, last, readers, writers, n, s, width, slots,
            shift, SHARED, COSINE, EPS, KEY, STRENGTH, BLOCK_W,
        )  # fmt: skip
        if READS:
            read_heads(plane, used, reads, reading, n, width, slots, BLOCK_W)
        if not late:
            write(
                memory, after, write_next, erase, erase + width, writers, apart, n, width, slots, "sigmoid", ADD,
                BLOCK_W,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def address_heads_backward(
    plane, vector, dvector, read_at, write_at, dweights, dprevious, factors, first, last, readers, writers, n, s,
    width, slots, shift, SHARED: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr,
    STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradients of addressing by the heads from ``first`` on, as far as they need no gradient of the memory."""
    for h in range(first, last):
        source = readers + writers - 1 if SHARED else h
        address_backward(
            plane, head_at(vector, h, readers, width, shift), row_at(read_at, write_at, source, readers, slots),
            line(dweights + h * slots, n, slots), head_at(dvector, h, readers, width, shift),
            dprevious + source * slots, factors + h * (2 * slots + 1), n, s, width, slots, shift, COSINE, EPS, KEY,
            STRENGTH, BLOCK_W,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def collect(
    plane, dplane, vector, dvector, factors, first, last, reading, dreads, reads, writing, erase, readers, writers,
    apart, n, width, slots, shift, ERASE: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """``dplane`` becomes the gradient of the memory that heads were matched with, read and wrote."""
    dtype: tl.constexpr = plane.dtype.element_ty
    for column in range(0, width, BLOCK_W):
        w = column + tl.arange(0, BLOCK_W)
        d = tile(dplane, w, n, width, slots)
        d *= kept(writing, erase, -1, writers, apart, w, n, width, slots, ERASE, dtype)
        d += spread_reads(reading, dreads, reads, w, n, width, slots, dtype)
        d += spread_matches(
            tile(plane, w, n, width, slots), vector, dvector, factors, first, last, readers, w, n, width, slots, shift,
            COSINE, EPS, KEY,
        )  # fmt: skip
        put_tile(dplane, d, w, n, width, slots)
    tl.debug_barrier()


@triton.jit
def read_heads_backward(plane, dreads, dweights, readers, n, width, slots, BLOCK_W: tl.constexpr):
    """Add to the gradients of the weights that read."""
    for r in range(readers):
        found = read_backward(plane, dreads + r * width, n, width, slots, BLOCK_W)
        add_line(dweights + r * slots, found, n, slots)


@triton.jit
def write_heads_backward(
    plane, dplane, vector, dvector, writing, dweights, readers, writers, n, width, slots, shift, ADD: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradients of all erase and add vectors; adds to those of the weights that wrote."""
    skipped = readers * (width + shift + 3) + width + shift + 3
    erase, derase = vector + skipped, dvector + skipped
    for v in range(writers):
        found = write_backward(
            plane, dplane, writing, erase, erase + width, derase, derase + width, v, writers, 3 * width + shift + 3, n,
            width, slots, "sigmoid", ADD, BLOCK_W,
        )  # fmt: skip
        add_line(dweights + (readers + v) * slots, found, n, slots)


@triton.jit
def recede(
    memory, after, vector, dvector, dreads, read_at, write_at, read_next, write_next, dplane, dweights, dprevious,
    factors, readers, writers, n, s, width, slots, shift, ORDER: tl.constexpr, SHARED: tl.constexpr,
    COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr, ADD: tl.constexpr, STRENGTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One step back: gradients after it become those before it; ``dprevious`` holds zeros."""
    apart = 3 * width + shift + 3
    erase = head_at(vector, readers, readers, width, shift) + width + shift + 3
    used = read_at if ORDER == "previous_read" else read_next
    dused = dprevious if ORDER == "previous_read" else dweights
    phases: tl.constexpr = 2 if ORDER == "write_read" else 1
    for k in range(phases):
        plane, first, last, reading, late = phase_of(
            phases - 1 - k, memory, after, readers, readers + writers, ORDER
        )
        writing = tl.where(late, 0, writers)
        write_heads_backward(
            memory,
            dplane,
            vector,
            dvector,
            write_next,
            dweights,
            readers,
            writing,
            n,
            width,
            slots,
            shift,
            ADD,
            BLOCK_W,
        )
        read_heads_backward(plane, dreads, dused, reading, n, width, slots, BLOCK_W)
        address_heads_backward(
            plane, vector, dvector, read_at, write_at, dweights, dprevious, factors, first, last, readers, writers, n,
            s, width, slots, shift, SHARED, COSINE, EPS, KEY, STRENGTH, BLOCK_W,
        )  # fmt: skip
        collect(
            plane, dplane, vector, dvector, factors, first, last, used, dreads, reading, write_next, erase, readers,
            writing, apart, n, width, slots, shift, "sigmoid", COSINE, EPS, KEY, BLOCK_W,
        )  # fmt: skip


@triton.jit
def forth(
    memory, after, vector, reads, read_at, write_at, read_next, write_next, steps, batch, readers, writers, n, s, width,
    slots, shift, stride_t, size, READS: tl.constexpr, ORDER: tl.constexpr, SHARED: tl.constexpr, COSINE: tl.constexpr,
    EPS: tl.constexpr, KEY: tl.constexpr, ADD: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """All steps; the memories after them lie ``size`` elements apart, or with 0 in the same place."""
    for _ in range(steps):
        advance(
            memory, after, vector, reads, read_at, write_at, read_next, write_next, readers, writers, n, s, width,
            slots, shift, READS, ORDER, SHARED, COSINE, EPS, KEY, ADD, STRENGTH, BLOCK_W,
        )  # fmt: skip
        memory, read_at, write_at = after, read_next, write_next
        after += size
        vector += stride_t
        reads += batch * readers * width
        read_next += batch * readers * slots
        write_next += batch * writers * slots


@triton.jit
def back(
    memory, planes, vector, dinterface, dreads, read_before, write_before, read_after, write_after, dplane, dweights,
    factors, dread, dwrite, dread_before, dwrite_before, sample, steps, batch, readers, writers, n, s, width, slots,
    shift, stride_t, size, TRACE: tl.constexpr, ORDER: tl.constexpr, SHARED: tl.constexpr, COSINE: tl.constexpr,
    EPS: tl.constexpr, KEY: tl.constexpr, ADD: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """All steps back, from what :func:`forth` left; two sets of weights' gradients lie from ``dweights`` on."""
    heads, last = readers + writers, tl.cast(steps, tl.int64) - 1
    rows_of_read, rows_of_write = batch * readers * slots, batch * writers * slots
    dprevious = dweights + batch * heads * slots
    put_rows(dweights, dread, dwrite, last if TRACE else 0, batch, readers, writers, n, slots, False)
    for k in range(steps):
        t = last - k
        for h in range(heads):
            put_line(dprevious + h * slots, tl.zeros(n.shape, dplane.dtype.element_ty), n, slots)
        tl.debug_barrier()
        row, read_next, write_next = (
            t * batch + sample,
            read_after + t * rows_of_read,
            write_after + t * rows_of_write,
        )
        recede(
            tl.where(t > 0, planes + (t - 1) * size, memory), planes + t * size, vector + t * stride_t,
            dinterface + row * (heads * (width + shift + 3) + 2 * writers * width), dreads + row * readers * width,
            tl.where(t > 0, read_next - rows_of_read, read_before),
            tl.where(t > 0, write_next - rows_of_write, write_before), read_next, write_next, dplane, dweights,
            dprevious, factors, readers, writers, n, s, width, slots, shift, ORDER, SHARED, COSINE, EPS, KEY, ADD,
            STRENGTH, BLOCK_W,
        )  # fmt: skip
        dweights, dprevious = dprevious, dweights
        if TRACE and t > 0:
            put_rows(dweights, dread, dwrite, t - 1, batch, readers, writers, n, slots, True)
    for h in range(heads):
        target = row_at(dread_before, dwrite_before, h, readers, slots)
        put_line(target, line(dweights + h * slots, n, slots), n, slots)


@triton.jit
def put_rows(rows, read, write, t, batch, readers, writers, n, slots, ADDS: tl.constexpr):
    """Store, or add, the rows of read and write heads of step ``t`` to those of all heads."""
    read, write = read + t * batch * readers * slots, write + t * batch * writers * slots
    for h in range(readers + writers):
        row = line(row_at(read, write, h, readers, slots), n, slots)
        if ADDS:
            add_line(rows + h * slots, row, n, slots)
        else:
            put_line(rows + h * slots, row, n, slots)
