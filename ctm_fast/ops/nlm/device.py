"""One neuron's layers, forward and backward, for the Triton kernels of ``ops.nlm``.

Letters: R rows (samples, or samples of all ticks), D neurons, M memory length, H hidden width. Storage may have
16 bits; products and sums are in float32, or float64 where the history is. A linear model is one hidden unit
whose two halves are the outputs.

Weights are packed neuron by neuron with the two halves of a layer's outputs interleaved: a neuron's weights are
one stretch of memory, and what is gated meets its gate in one thread::

    [M][H][a | g]  w1     [H][a | g]  b1     [H][a | g]  w2     [a | g]  b2     t1  t2     up to a whole line

Tuples stand for what belongs together: ``seen`` is the neuron's history, its rows, which of them exist, and the
row and memory strides; ``drop`` is the rows' dropout keys, D, the threshold and the scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ctm_fast.ops.device import GOLDEN, kept, row_key


@triton.jit
def wide(x):
    """``x`` in the precision of sums."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.constexpr_function
def second_at(memory: int, hidden: int) -> int:
    """Where w2 begins in a neuron's packed weights."""
    return (memory + 1) * 2 * hidden


@triton.constexpr_function
def divisors_at(memory: int, hidden: int, deep: bool) -> int:
    """Where t1 and t2 lie in a neuron's packed weights."""
    return (memory + 1) * 2 * hidden + (2 * hidden + 2 if deep else 0)


@triton.constexpr_function
def packed_size(memory: int, hidden: int, deep: bool) -> int:
    """Elements of a neuron's packed weights."""
    return ((memory + 1) * 2 * hidden + (2 * hidden + 2 if deep else 0) + 2 + 31) // 32 * 32


@triton.jit
def first_place(c, HIDDEN: tl.constexpr):
    """The step of memory (M stands for the bias) and the output of w1 that a packed column holds."""
    unit = c % (2 * HIDDEN)
    return c // (2 * HIDDEN), unit % 2 * HIDDEN + unit // 2


@triton.jit
def row_keys(seed, rows, d):
    """Keys of the rows' dropout masks, moved on to neuron ``d``."""
    return row_key(seed, rows) + (d * GOLDEN).to(tl.uint32)


@triton.jit
def keep(drop, slots):
    """Dropout masks (R, slots); slot m is an input, M + h a hidden activation."""
    keys, neurons, threshold, scale = drop
    return kept(
        (slots.to(tl.int64) * neurons * GOLDEN).to(tl.uint32)[None, :] + keys[:, None], threshold, scale
    )


@triton.jit
def inputs(seen, drop, m0, MEMORY: tl.constexpr, DROP: tl.constexpr, BLOCK_M: tl.constexpr):
    """What the rows see from step ``m0`` of memory on, (R, M), dropout applied."""
    x, r, inside, stride_r, stride_m = seen
    m = m0 + tl.arange(0, BLOCK_M)
    at = x + r[:, None] * stride_r + m.to(tl.int64)[None, :] * stride_m
    found = wide(tl.load(at, mask=inside[:, None] & (m < MEMORY)[None, :], other=0.0))
    return found * keep(drop, m) if DROP else found


@triton.jit
def first_weights(
    w, m0, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr
):
    """w1 (M, 2H) from step ``m0`` of memory and hidden unit ``h0`` on."""
    m, c = m0 + tl.arange(0, BLOCK_K), 2 * h0 + tl.arange(0, 2 * BLOCK_H)
    inside = (m < MEMORY)[:, None] & (c < 2 * HIDDEN)[None, :]
    return wide(tl.load(w + m[:, None] * (2 * HIDDEN) + c[None, :], mask=inside, other=0.0))


@triton.jit
def second_weights(w, half, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr):
    """A half (H) of w2 from hidden unit ``h0`` on."""
    h = h0 + tl.arange(0, BLOCK_H)
    return wide(tl.load(w + second_at(MEMORY, HIDDEN) + 2 * h + half, mask=h < HIDDEN, other=0.0))


@triton.jit
def hidden(
    seen, drop, w, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Both halves (R, H) of the hidden units from ``h0`` on."""
    c = 2 * h0 + tl.arange(0, 2 * BLOCK_H)
    bias = wide(tl.load(w + MEMORY * 2 * HIDDEN + c, mask=c < 2 * HIDDEN, other=0.0))
    u = tl.broadcast_to(bias[None, :], (BLOCK_R, 2 * BLOCK_H))
    for m0 in tl.range(0, MEMORY, BLOCK_K, num_stages=1):
        x = inputs(seen, drop, m0, MEMORY, DROP, BLOCK_K)
        weights = first_weights(w, m0, h0, MEMORY, HIDDEN, BLOCK_K, BLOCK_H)
        u = tl.dot(x, weights, u, input_precision="ieee", out_dtype=u.dtype)
    u *= 1 / wide(tl.load(w + divisors_at(MEMORY, HIDDEN, DEEP)))
    return tl.split(tl.reshape(u, (BLOCK_R, BLOCK_H, 2)))


@triton.jit
def activations(
    drop, a, g, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DROP: tl.constexpr, BLOCK_H: tl.constexpr
):
    """What the second layer takes in (R, H)."""
    h = h0 + tl.arange(0, BLOCK_H)
    v = a * tl.sigmoid(g)
    if DROP:
        v *= keep(drop, MEMORY + h)
    return tl.where((h < HIDDEN)[None, :], v, 0.0) if HIDDEN % BLOCK_H else v


@triton.jit
def part_of_outputs(
    drop, w, a, g, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """What these hidden units add to both outputs (R)."""
    if DEEP:
        v = activations(drop, a, g, h0, MEMORY, HIDDEN, DROP, BLOCK_H)
        a = v * second_weights(w, 0, h0, MEMORY, HIDDEN, BLOCK_H)[None, :]
        g = v * second_weights(w, 1, h0, MEMORY, HIDDEN, BLOCK_H)[None, :]
    else:
        first = (tl.arange(0, BLOCK_H) == 0)[None, :]
        a, g = tl.where(first, a, 0.0), tl.where(first, g, 0.0)
    return tl.sum(a, 1), tl.sum(g, 1)


@triton.jit
def outputs(
    seen, drop, w, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Both outputs (R) of the neuron, and both halves (R, H) of its first hidden units."""
    a, g = hidden(seen, drop, w, 0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
    oa, og = part_of_outputs(drop, w, a, g, 0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_H)
    for h0 in tl.range(BLOCK_H, HIDDEN, BLOCK_H, num_stages=1):
        more = hidden(seen, drop, w, h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
        part = part_of_outputs(drop, w, more[0], more[1], h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_H)
        oa += part[0]
        og += part[1]
    if DEEP:
        bias, t = w + second_at(MEMORY, HIDDEN) + 2 * HIDDEN, w + divisors_at(MEMORY, HIDDEN, DEEP) + 1
        scale = 1 / wide(tl.load(t))
        oa, og = (oa + wide(tl.load(bias))) * scale, (og + wide(tl.load(bias + 1))) * scale
    return oa, og, a, g


@triton.jit
def output_gradients(seen, w, dz, oa, og, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr):
    """Gradients (R) of both outputs, divided by t2; zero for rows that do not exist, whatever the weights."""
    _, r, inside, _, _ = seen
    at, stride_r = dz
    grad = wide(tl.load(at + r * stride_r, mask=inside, other=0.0))
    if DEEP:
        grad *= 1 / wide(tl.load(w + divisors_at(MEMORY, HIDDEN, DEEP) + 1))
    gate = tl.sigmoid(og)
    return tl.where(inside, grad * gate, 0.0), tl.where(inside, grad * oa * gate * (1 - gate), 0.0)


@triton.jit
def hidden_gradients(
    drop, inside, w, a, g, da, dg, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr,
    DROP: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients (R, H) of both halves of the hidden units from ``h0`` on, divided by t1; zero as above."""
    h = h0 + tl.arange(0, BLOCK_H)
    if DEEP:
        grad = da[:, None] * second_weights(w, 0, h0, MEMORY, HIDDEN, BLOCK_H)[None, :]
        grad += dg[:, None] * second_weights(w, 1, h0, MEMORY, HIDDEN, BLOCK_H)[None, :]
        if DROP:
            grad *= keep(drop, MEMORY + h)
        gate = tl.sigmoid(g)
        first, second = grad * gate, grad * a * gate * (1 - gate)
    else:
        first, second = tl.broadcast_to(da[:, None], a.shape), tl.broadcast_to(dg[:, None], a.shape)
    scale = 1 / wide(tl.load(w + divisors_at(MEMORY, HIDDEN, DEEP)))
    real = inside[:, None] & (h < HIDDEN)[None, :]
    return tl.where(real, first * scale, 0.0), tl.where(real, second * scale, 0.0)


@triton.jit
def weights_of(
    w, m0, first, STEP: tl.constexpr, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_M: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Every ``STEP``-th output of w1 from ``first`` on, transposed: (COUNT, M)."""
    m, c = m0 + tl.arange(0, BLOCK_M), first + STEP * tl.arange(0, COUNT)
    inside = (c < 2 * HIDDEN)[:, None] & (m < MEMORY)[None, :]
    return wide(tl.load(w + c[:, None] + m[None, :] * (2 * HIDDEN), mask=inside, other=0.0))


@triton.jit
def through_first_layer(
    total, first, second, w, m0, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Adds to ``total`` (R, M) what the gradients of both halves give the inputs."""
    if BLOCK_H < 32:
        du = tl.reshape(tl.join(first, second), (BLOCK_R, 2 * BLOCK_H))
        weights = weights_of(w, m0, 2 * h0, 1, MEMORY, HIDDEN, BLOCK_M, 2 * BLOCK_H)
        total = tl.dot(du, weights, total, input_precision="ieee", out_dtype=total.dtype)
    else:  # four short products: the registers would not hold the operands of one
        first = tl.split(tl.reshape(first, (BLOCK_R, BLOCK_H // 2, 2)))
        second = tl.split(tl.reshape(second, (BLOCK_R, BLOCK_H // 2, 2)))
        for i in tl.static_range(2):
            weights = weights_of(w, m0, 2 * h0 + 2 * i, 4, MEMORY, HIDDEN, BLOCK_M, BLOCK_H // 2)
            total = tl.dot(first[i], weights, total, input_precision="ieee", out_dtype=total.dtype)
            weights = weights_of(w, m0, 2 * h0 + 2 * i + 1, 4, MEMORY, HIDDEN, BLOCK_M, BLOCK_H // 2)
            total = tl.dot(second[i], weights, total, input_precision="ieee", out_dtype=total.dtype)
    return total


@triton.jit
def rows_of(
    first, x, packed, seed, rows, neurons, d, first_row, threshold, scale, stride_r, stride_d, stride_m,
    MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr, DROP: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The rows of neuron ``d`` from ``first`` on: what they see, their dropout, and the neuron's weights."""
    r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
    keys = row_keys(seed, first_row + r, d) if DROP else r
    seen = (x + d * stride_d, r, r < rows, stride_r, stride_m)
    return seen, (keys, neurons, threshold, scale), packed + d * packed_size(MEMORY, HIDDEN, DEEP)


@triton.jit
def block_gradients(
    seen, drop, w, dz, total, m0, h0, MEMORY: tl.constexpr, HIDDEN: tl.constexpr, DEEP: tl.constexpr,
    DROP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients of w1 (M, 2H), added to ``total``, of b1 and w2 (2H), and of both b2 by a block of rows."""
    inside = seen[2]
    oa, og, a, g = outputs(seen, drop, w, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
    da, dg = output_gradients(seen, w, dz, oa, og, MEMORY, HIDDEN, DEEP)
    if HIDDEN > BLOCK_H:
        a, g = hidden(seen, drop, w, h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_R, BLOCK_K, BLOCK_H)
    first, second = hidden_gradients(drop, inside, w, a, g, da, dg, h0, MEMORY, HIDDEN, DEEP, DROP, BLOCK_H)
    du = tl.reshape(tl.join(first, second), (BLOCK_R, 2 * BLOCK_H))
    x = inputs(seen, drop, m0, MEMORY, DROP, BLOCK_M)
    total = tl.dot(tl.trans(x), du, total, input_precision="ieee", out_dtype=total.dtype)
    v = tl.where(inside[:, None], activations(drop, a, g, h0, MEMORY, HIDDEN, DROP, BLOCK_H), 0.0)
    first, second = tl.sum(v * da[:, None], 0), tl.sum(v * dg[:, None], 0)
    return (
        total,
        tl.sum(du, 0),
        tl.reshape(tl.join(first, second), (2 * BLOCK_H,)),
        tl.sum(da, 0),
        tl.sum(dg, 0),
    )
