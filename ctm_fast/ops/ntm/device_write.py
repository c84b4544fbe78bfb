"""Writing of one sample in Triton, and the gradient of its memory; see :mod:`ctm_fast.ops.ntm.device`.

The write heads' vectors lie ``apart`` elements from each other's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ctm_fast.ops.device import activated, activation_slope, line, put_line
from ctm_fast.ops.ntm.device import put_tile, shifted_operand, tile


@triton.jit
def kept(
    weights, erase, skip, writers, apart, w, n, width, slots, ERASE: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """What the write heads leave of columns ``w`` of the slots, head ``skip`` left out.

    Multiplied, for a division by what that head leaves could be one by zero.
    """
    factor = tl.full((w.shape[0], n.shape[0]), 1, dtype)
    for v in range(writers):
        erased = activated(line(erase + v * apart, w, width), ERASE)[:, None]
        left = 1 - line(weights + v * slots, n, slots)[None, :] * erased
        factor *= tl.where(v == skip, 1.0, left)
    return factor


@triton.jit
def write(
    plane, after, weights, erase, add, writers, apart, n, width, slots, ERASE: tl.constexpr, ADD: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Store the memory after all heads wrote, which may lie where it was."""
    dtype: tl.constexpr = plane.dtype.element_ty
    for first in range(0, width, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        m = tile(plane, w, n, width, slots)
        m *= kept(weights, erase, -1, writers, apart, w, n, width, slots, ERASE, dtype)
        added = tl.zeros_like(m)
        for v in range(writers):
            values = activated(line(add + v * apart, w, width), ADD)
            added += line(weights + v * slots, n, slots)[None, :] * values[:, None]
        put_tile(after, m + added, w, n, width, slots)


@triton.jit
def write_backward(
    plane, dafter, weights, erase, add, derase, dadd, head, writers, apart, n, width, slots, ERASE: tl.constexpr,
    ADD: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Store the gradients of one head's erase and add vectors; the gradient of its weights."""
    dtype: tl.constexpr = plane.dtype.element_ty
    own = line(weights + head * slots, n, slots)
    dweights = tl.zeros_like(own)
    for first in range(0, width, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        d = tile(dafter, w, n, width, slots)
        others = kept(weights, erase, head, writers, apart, w, n, width, slots, ERASE, dtype)
        lost = d * tile(plane, w, n, width, slots) * others
        erased = activated(line(erase + head * apart, w, width), ERASE)
        added = activated(line(add + head * apart, w, width), ADD)
        dweights += tl.sum(d * added[:, None] - lost * erased[:, None], 0)
        derased = -tl.sum(lost * own[None, :], 1) * activation_slope(erased, ERASE)
        dadded = tl.sum(d * own[None, :], 1) * activation_slope(added, ADD)
        put_line(derase + head * apart, derased, w, width)
        put_line(dadd + head * apart, dadded, w, width)
    return dweights


@triton.jit
def head_at(vector, head, readers, width, shift):
    """Where a head's part of an interface vector begins."""
    return vector + head * (width + shift + 3) + tl.maximum(head - readers, 0) * 2 * width


@triton.jit
def spread_reads(weights, dreads, readers, w, n, width, slots, dtype: tl.constexpr):
    """Gradients of columns ``w`` of the slots that were read with these weights."""
    found = tl.zeros((w.shape[0], n.shape[0]), dtype)
    for r in range(readers):
        found += line(weights + r * slots, n, slots)[None, :] * line(dreads + r * width, w, width)[:, None]
    return found


@triton.jit
def spread_matches(
    m, vector, dvector, factors, first, last, readers, w, n, width, slots, shift, COSINE: tl.constexpr,
    EPS: tl.constexpr, KEY: tl.constexpr,
):  # fmt: skip
    """Gradients of columns ``w`` of the slots ``m`` that the heads from ``first`` on were matched with.

    Stores those of the heads' keys; ``factors`` are what addressing left.
    """
    m = shifted_operand(m, (w < width)[:, None] & (n < slots)[None, :], COSINE, EPS)
    found, own = tl.zeros_like(m), tl.zeros(n.shape, m.dtype)
    for h in range(first, last):
        of_head = factors + h * (2 * slots + 1)
        dots = line(of_head, n, slots)[None, :]
        own += line(of_head + slots, n, slots)
        value = activated(line(head_at(vector, h, readers, width, shift), w, width), KEY)
        key = shifted_operand(value, w < width, COSINE, EPS)
        dkey = (tl.sum(dots * m, 1) + tl.load(of_head + 2 * slots) * key) * activation_slope(value, KEY)
        put_line(head_at(dvector, h, readers, width, shift), dkey, w, width)
        found += dots * key[:, None]
    return found + own[None, :] * m
