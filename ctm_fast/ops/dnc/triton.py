"""Triton kernels of ``ops.dnc_link`` with dense links, in float32 and float64.

Letters: B samples, N slots, R read heads. A program owns a block of one sample's slots and goes through its rows
and its columns of the links: every sum has one owner and a fixed order. The new links are computed where they
are needed, in the backward too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctm_fast.ops.device import line, put_line
from ctm_fast.ops.triton import block, device_of

MOST_SLOTS = 32  # in a block
HEAD_BYTES = 16  # of every slot's weights at once
REGISTERS = 255  # a thread may have all: what the assembler chooses by itself it may spill


@triton.jit
def lines(rows, h, i, heads, count):
    """Elements ``i`` of the rows ``h`` (R, N), zeros beyond them."""
    inside = (h < heads)[:, None] & (i < count)[None, :]
    return tl.load(rows + h[:, None] * count + i[None, :], mask=inside, other=0.0)


@triton.jit
def put_lines(rows, values, h, i, heads, count):
    """Store elements ``i`` of the rows ``h`` (R, N)."""
    inside = (h < heads)[:, None] & (i < count)[None, :]
    tl.store(rows + h[:, None] * count + i[None, :], values, mask=inside)


@triton.jit
def links_after(link, write, precedence, i, j, slots):
    """New links from slots ``j`` to slots ``i``."""
    old = lines(link, i, j, slots, slots)
    later, earlier = line(write, i, slots)[:, None], line(write, j, slots)[None, :]
    new = (1 - later - earlier) * old + later * line(precedence, j, slots)[None, :]
    return tl.where(i[:, None] == j[None, :], 0.0, new)


@triton.jit
def links_gradient(dlink, dforward, dbackward, read, i, j, heads, slots):
    """Gradients of the new links from slots ``j`` to slots ``i``."""
    d = lines(dlink, i, j, slots, slots)
    for h in range(heads):
        row = h * slots
        d += line(dforward + row, i, slots)[:, None] * line(read + row, j, slots)[None, :]
        d += line(read + row, i, slots)[:, None] * line(dbackward + row, j, slots)[None, :]
    return tl.where(i[:, None] == j[None, :], 0.0, d)


@triton.jit
def along_rows(links, rows):
    """Sums of links (I, J) with rows (R, J): (R, I)."""
    return tl.sum(links[None, :, :] * rows[:, None, :], 2)


@triton.jit
def along_columns(links, rows):
    """Sums of links (I, J) with rows (R, I): (R, J)."""
    return tl.sum(links[None, :, :] * rows[:, :, None], 1)


@triton.jit
def inner(x, y, slots, BLOCK: tl.constexpr):
    """The inner product of two vectors over all slots."""
    total = tl.zeros((BLOCK,), x.dtype.element_ty)
    for first in range(0, slots, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += line(x, i, slots) * line(y, i, slots)
    return tl.sum(total, 0)


@triton.jit
def written(write, slots, BLOCK: tl.constexpr):
    """The sum of the write weights."""
    total = tl.zeros((BLOCK,), write.dtype.element_ty)
    for first in range(0, slots, BLOCK):
        total += line(write, first + tl.arange(0, BLOCK), slots)
    return tl.sum(total, 0)


@triton.jit
def link_forward_kernel(
    link, precedence, write, read, after, precedence_after, forward, backward,
    heads, slots, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A block of slots of one sample: its rows of the links, its precedence and its weights."""
    sample = tl.program_id(0).to(tl.int64)
    of_links, of_slots, of_heads = sample * slots * slots, sample * slots, sample * heads * slots
    link, after, precedence, write = (
        link + of_links,
        after + of_links,
        precedence + of_slots,
        write + of_slots,
    )
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    last = (1 - written(write, slots, BLOCK)) * line(precedence, own, slots) + line(write, own, slots)
    put_line(precedence_after + of_slots, last, own, slots)
    for first in range(0, slots, BLOCK):
        other = first + tl.arange(0, BLOCK)
        put_lines(after, links_after(link, write, precedence, own, other, slots), own, other, slots, slots)
    for first_head in range(0, heads, HEADS):
        h = first_head + tl.arange(0, HEADS)
        ahead = tl.zeros((HEADS, BLOCK), link.dtype.element_ty)
        behind = tl.zeros((HEADS, BLOCK), link.dtype.element_ty)
        for first in range(0, slots, BLOCK):
            other = first + tl.arange(0, BLOCK)
            found = lines(read + of_heads, h, other, heads, slots)
            ahead += along_rows(links_after(link, write, precedence, own, other, slots), found)
            behind += along_columns(links_after(link, write, precedence, other, own, slots), found)
        put_lines(forward + of_heads, ahead, h, own, heads, slots)
        put_lines(backward + of_heads, behind, h, own, heads, slots)


@triton.jit
def link_backward_kernel(
    dlink, dprecedence, dforward, dbackward, link, precedence, write, read, dbefore, dlast, dwrite, dread,
    heads, slots, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """A block of slots of one sample: gradients of its rows of the links and of all that belongs to its slots."""
    sample = tl.program_id(0).to(tl.int64)
    of_links, of_slots, of_heads = sample * slots * slots, sample * slots, sample * heads * slots
    link, dlink, dbefore = link + of_links, dlink + of_links, dbefore + of_links
    precedence, write, dprecedence = precedence + of_slots, write + of_slots, dprecedence + of_slots
    dforward, dbackward, read = dforward + of_heads, dbackward + of_heads, read + of_heads
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w, dafter = line(write, own, slots), line(dprecedence, own, slots)
    dw = dafter - inner(dprecedence, precedence, slots, BLOCK)
    dp = (1 - written(write, slots, BLOCK)) * dafter
    for first in range(0, slots, BLOCK):
        other = first + tl.arange(0, BLOCK)
        there = line(write, other, slots)
        d = links_gradient(dlink, dforward, dbackward, read, own, other, heads, slots)
        put_lines(dbefore, d * (1 - w[:, None] - there[None, :]), own, other, slots, slots)
        old = lines(link, own, other, slots, slots)
        dw += tl.sum(d * (line(precedence, other, slots)[None, :] - old), 1)
        d = links_gradient(dlink, dforward, dbackward, read, other, own, heads, slots)
        dw -= tl.sum(d * lines(link, other, own, slots, slots), 0)
        dp += tl.sum(d * there[:, None], 0)
    put_line(dwrite + of_slots, dw, own, slots)
    put_line(dlast + of_slots, dp, own, slots)
    for first_head in range(0, heads, HEADS):
        h = first_head + tl.arange(0, HEADS)
        found = tl.zeros((HEADS, BLOCK), link.dtype.element_ty)
        for first in range(0, slots, BLOCK):
            other = first + tl.arange(0, BLOCK)
            ahead, behind = lines(dforward, h, other, heads, slots), lines(dbackward, h, other, heads, slots)
            found += along_rows(links_after(link, write, precedence, own, other, slots), behind)
            found += along_columns(links_after(link, write, precedence, other, own, slots), ahead)
        put_lines(dread + of_heads, found, h, own, heads, slots)


def _blocks(read: Tensor) -> dict[str, int]:
    """Compile-time sizes, from sizes alone."""
    heads = block(read.shape[1], 1, HEAD_BYTES // read.element_size())
    return {"BLOCK": block(read.shape[2], 16, MOST_SLOTS), "HEADS": heads, "maxnreg": REGISTERS}


def dnc_link_forward(
    link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The registered forward, for no ``columns``: link, precedence, forward and backward weights."""
    given = [x.contiguous() for x in (link, precedence, write, read)]
    found = [torch.empty_like(given[i]) for i in (0, 1, 3, 3)]
    batch, heads, slots = read.shape
    sizes = _blocks(read)
    if batch * slots:
        with device_of(link):
            link_forward_kernel[batch, triton.cdiv(slots, sizes["BLOCK"])](
                *given, *found, heads, slots, **sizes
            )
    return *found, torch.empty_like(columns)  # type: ignore[return-value]


def dnc_link_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The registered backward: gradients of link, precedence, write and read weights."""
    given = [x.contiguous() for x in tensors[:8]]
    found = [torch.empty_like(x) for x in given[4:]]
    batch, heads, slots = given[7].shape
    sizes = _blocks(given[7])
    if batch * slots:
        with device_of(given[0]):
            link_backward_kernel[batch, triton.cdiv(slots, sizes["BLOCK"])](
                *given, *found, heads, slots, **sizes
            )
    return tuple(found)
