"""Addressing, reading and writing of one sample in Triton: what the kernels of the ``ntm`` ops are made of.

Letters: N slots, W width, S offsets, H heads. One program holds vectors over all slots and goes through the
memory by blocks of columns, which lie in rows of N: a ``plane`` (W, N). A head is an interface vector's part:
key W, beta, gate, shift S, gamma, and of a write head erase W, add W. Heads are read heads first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ctm_fast.ops.device import (
    activated,
    line,
    put_line,
    scale_gradient,
    sigmoid,
    softmax,
    softmax_backward,
    softplus,
)

AFTER_OPERANDS = tl.constexpr(1e-8)  # the eps of "clamp" after eps was added to the operands


@triton.jit
def add_line(row, value, i, count):
    """Add to elements that any thread wrote, and any thread may read next."""
    tl.debug_barrier()
    value += line(row, i, count)
    tl.debug_barrier()
    put_line(row, value, i, count)
    tl.debug_barrier()


@triton.jit
def tile(plane, w, n, width, slots):
    """Columns ``w`` of the slots ``n``, zeros beyond the memory."""
    inside = (w < width)[:, None] & (n < slots)[None, :]
    return tl.load(plane + w[:, None] * slots + n[None, :], mask=inside, other=0.0)


@triton.jit
def put_tile(plane, value, w, n, width, slots):
    """Store columns ``w`` of the slots ``n``, which other threads may have loaded before."""
    tl.debug_barrier()
    inside = (w < width)[:, None] & (n < slots)[None, :]
    tl.store(plane + w[:, None] * slots + n[None, :], value, mask=inside)


@triton.jit
def shifted_operand(x, inside, COSINE: tl.constexpr, EPS: tl.constexpr):
    """An operand of the cosine: "operands" adds eps to its elements."""
    return tl.where(inside, x + EPS, 0.0) if COSINE == "operands" else x


@triton.jit
def lengths(squares, COSINE: tl.constexpr, EPS: tl.constexpr):
    """Lengths from sums of squares, and their derivatives by an element divided by that element: 0 at zero."""
    length = tl.sqrt(squares)
    if COSINE == "root" or COSINE == "root_product":
        length = tl.sqrt(squares + EPS)
    slope = tl.where(length == 0, 0.0, 1 / tl.where(length == 0, 1.0, length))
    if COSINE == "norm":
        length = length + EPS
    if COSINE == "clamp" or COSINE == "operands":
        least = tl.zeros_like(length) + (AFTER_OPERANDS if COSINE == "operands" else EPS)
        slope = tl.where(length < least, 0.0, slope)
        length = tl.where(length < least, least, length)
    return length, slope


@triton.jit
def match(
    plane, head, n, width, slots, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """Cosines of a head's key with all slots, the products they were divided by, and the lengths and slopes."""
    kind = plane.dtype.element_ty
    dots, squares = tl.zeros(n.shape, kind), tl.zeros(n.shape, kind)
    of_key = tl.zeros((BLOCK_W,), kind)
    for first in range(0, width, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        inside = (w < width)[:, None] & (n < slots)[None, :]
        m = shifted_operand(tile(plane, w, n, width, slots), inside, COSINE, EPS)
        key = shifted_operand(activated(line(head, w, width), KEY), w < width, COSINE, EPS)
        dots += tl.sum(m * key[:, None], 0)
        squares += tl.sum(m * m, 0)
        of_key += key * key
    length, slope = lengths(squares, COSINE, EPS)
    key_length, key_slope = lengths(tl.sum(of_key, 0), COSINE, EPS)
    product = key_length * length
    if COSINE == "product" or COSINE == "root_product":
        product = product + EPS
    return dots / product, product, length, slope, key_length, key_slope


@triton.jit
def strengths(head, width, shift, STRENGTH: tl.constexpr):
    """Beta, gate and gamma of a head; raw ones unless STRENGTH is "given"."""
    beta, gate = tl.load(head + width), tl.load(head + width + 1)
    gamma = tl.load(head + width + 2 + shift)
    if STRENGTH != "given":
        beta = softplus(beta) + (1 if STRENGTH == "oneplus" else 0)
        gate = sigmoid(gate)
        gamma = softplus(gamma) + 1
    return beta, gate, gamma


@triton.jit
def offsets(head, s, width, shift, STRENGTH: tl.constexpr):
    """The head's distribution over its S offsets."""
    found = line(head + width + 2, s, shift)
    return softmax(found, s < shift) if STRENGTH != "given" else found


@triton.jit
def element(x, i, at):
    """Element ``at`` of a vector ``x`` whose elements are numbered ``i``."""
    return tl.sum(tl.where(i == at, x, 0.0), 0)


@triton.jit
def around(x, n, by, slots, shift):
    """``x`` at slots ``by`` further on the circle, by less than S."""
    return tl.gather(x, (n + by + slots * shift) % slots, 0)


@triton.jit
def focus(cosine, previous, beta, gate, gamma, distribution, n, s, slots, shift):
    """Content, interpolation, shift and sharpening: what each of them gives, and the weights."""
    inside = n < slots
    content = softmax(beta * cosine, inside)
    gated = tl.where(inside, gate * content + (1 - gate) * previous, 0.0)
    shifted = tl.zeros_like(gated)
    for i in range(shift):
        shifted += element(distribution, s, i) * around(gated, n, shift // 2 - i, slots, shift)
    floor = smallest(shifted)
    logs = tl.log(tl.where(shifted < floor, floor, shifted))
    return content, gated, shifted, logs, softmax(gamma * logs, inside)


@triton.jit
def smallest(x):
    """The smallest normal number, in the shape of ``x``."""
    return tl.full(
        x.shape, 2.2250738585072014e-308 if x.dtype == tl.float64 else 1.1754943508222875e-38, x.dtype
    )


@triton.jit
def focus_backward(
    dweights, weights, content, gated, shifted, logs, previous, gate, gamma, distribution, n, s, slots, shift
):  # fmt: skip
    """Gradients of beta times cosine, of the previous weights, of gate, gamma and distribution."""
    inside = n < slots
    dscaled = softmax_backward(weights, dweights)
    dgamma = scale_gradient(weights, dscaled, logs)
    passes = inside & (shifted >= smallest(shifted))
    dshifted = tl.where(passes, gamma * dscaled / tl.where(passes, shifted, 1.0), 0.0)
    dgated, doffsets = tl.zeros_like(dshifted), tl.zeros_like(distribution)
    for i in range(shift):
        by = shift // 2 - i
        own = tl.sum(dshifted * around(gated, n, by, slots, shift), 0)
        doffsets = tl.where(s == i, own, doffsets)
        dgated += element(distribution, s, i) * around(dshifted, n, -by, slots, shift)
    dgated = tl.where(inside, dgated, 0.0)
    dgate = tl.sum(dgated * (content - previous), 0)
    d = softmax_backward(content, gate * dgated)
    return d, (1 - gate) * dgated, dgate, dgamma, doffsets


@triton.jit
def put_strengths(
    head, dhead, dbeta, dgate, dgamma, doffsets, distribution, gate, s, width, shift, STRENGTH: tl.constexpr
):  # fmt: skip
    """Store the gradients of a head's strengths and offsets, through their activations."""
    if STRENGTH != "given":
        dbeta = dbeta * sigmoid(tl.load(head + width))
        dgate = dgate * gate * (1 - gate)
        dgamma = dgamma * sigmoid(tl.load(head + width + 2 + shift))
        doffsets = softmax_backward(distribution, doffsets)
    tl.store(dhead + width, dbeta)
    tl.store(dhead + width + 1, dgate)
    put_line(dhead + width + 2, doffsets, s, shift)
    tl.store(dhead + width + 2 + shift, dgamma)


@triton.jit
def address(
    plane, head, previous, n, s, width, slots, shift, COSINE: tl.constexpr, EPS: tl.constexpr, KEY: tl.constexpr,
    STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The weights of a head that goes on from the weights at ``previous``."""
    cosine, _, _, _, _, _ = match(plane, head, n, width, slots, COSINE, EPS, KEY, BLOCK_W)
    beta, gate, gamma = strengths(head, width, shift, STRENGTH)
    distribution = offsets(head, s, width, shift, STRENGTH)
    before = line(previous, n, slots)
    _, _, _, _, weights = focus(cosine, before, beta, gate, gamma, distribution, n, s, slots, shift)
    return weights


@triton.jit
def address_backward(
    plane, head, previous, dweights, dhead, dprevious, factors, n, s, width, slots, shift, COSINE: tl.constexpr,
    EPS: tl.constexpr, KEY: tl.constexpr, STRENGTH: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Runs the addressing again; adds to ``dprevious`` and stores the gradients of the head's strengths.

    ``factors`` (2 N + 1) are left for :func:`collect`: of the key in the slots' gradients, of the slots in
    their own, and of the key in its own.
    """
    cosine, product, length, slope, key_length, key_slope = match(
        plane, head, n, width, slots, COSINE, EPS, KEY, BLOCK_W
    )
    beta, gate, gamma = strengths(head, width, shift, STRENGTH)
    distribution = offsets(head, s, width, shift, STRENGTH)
    before = line(previous, n, slots)
    content, gated, shifted, logs, weights = focus(
        cosine, before, beta, gate, gamma, distribution, n, s, slots, shift
    )
    d, dbefore, dgate, dgamma, doffsets = focus_backward(
        dweights,
        weights,
        content,
        gated,
        shifted,
        logs,
        before,
        gate,
        gamma,
        distribution,
        n,
        s,
        slots,
        shift,
    )
    add_line(dprevious, dbefore, n, slots)
    dbeta = scale_gradient(content, d, cosine)
    put_strengths(head, dhead, dbeta, dgate, dgamma, doffsets, distribution, gate, s, width, shift, STRENGTH)
    dots = tl.where(n < slots, beta * d / product, 0.0)
    dproduct = dots * cosine
    put_line(factors, dots, n, slots)
    put_line(factors + slots, -dproduct * key_length * slope, n, slots)
    tl.store(factors + 2 * slots, -tl.sum(dproduct * length, 0) * key_slope)


@triton.jit
def read(plane, weights, reads, n, width, slots, BLOCK_W: tl.constexpr):
    """Store what a head with these weights reads."""
    for first in range(0, width, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        found = tl.sum(tile(plane, w, n, width, slots) * weights[None, :], 1)
        put_line(reads, found, w, width)


@triton.jit
def read_backward(plane, dreads, n, width, slots, BLOCK_W: tl.constexpr):
    """The gradient of the weights that read."""
    found = tl.zeros(n.shape, plane.dtype.element_ty)
    for first in range(0, width, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        found += tl.sum(tile(plane, w, n, width, slots) * line(dreads, w, width)[:, None], 0)
    return found
