"""The Triton kernels of the tick loop: the synapses' pointwise halves, one query's attention, one tick's pairs.

Letters: R rows (samples), w width of a stage, h heads, d width of a head, L tokens, P action pairs, D neurons.
Sums are in the dtype of the tensors, float32 or float64. No program adds where another does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ctm_fast.ops.device import GOLDEN, kept, line, put_line, root, row_key, sigmoid


@triton.jit
def keep(key, i, threshold, scale):
    """Dropout mask of a row's elements ``i``."""
    return kept((i.to(tl.int64) * GOLDEN).to(tl.uint32) + key, threshold, scale)


@triton.jit(do_not_specialize=["threshold"])
def dropout_kernel(x, seed, y, first_row, threshold, scale, width, x_row, y_row, BLOCK: tl.constexpr):
    """A row of ``x`` under its mask."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = line(x + row * x_row, i, width)
    put_line(y + row * y_row, value * keep(row_key(seed, first_row + row), i, threshold, scale), i, width)


@triton.jit
def normalise(x, inside, width, EPS: tl.constexpr):
    """LayerNorm before weight and bias, and the factor it scaled by."""
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    variance = tl.sum(centred * centred, 0) / width + EPS
    scale = 1 / root(variance)
    return centred * scale, scale


@triton.jit
def normalise_backward(hat, scale, grad, width):
    """The gradient of what ``hat`` is the normalisation of."""
    return (grad - tl.sum(grad, 0) / width - hat * (tl.sum(grad * hat, 0) / width)) * scale


@triton.jit
def hidden(x, i, width, KIND: tl.constexpr):
    """What a stage normalises first: the linear map's output or, for "glu", its gated half, the value and the gate."""
    a = line(x, i, width)
    gate = a
    value = a
    if KIND == "glu":
        gate = sigmoid(tl.load(x + width + i, mask=i < width, other=0.0))
        value = a * gate
    return value, a, gate


@triton.jit
def pointwise_kernel(
    x, weight, bias, skip, outer_weight, outer_bias, y, width, x_row, skip_row, y_row, y_column,
    KIND: tl.constexpr, EPS: tl.constexpr, OUTER_EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row behind a stage's linear map; see ``Stage.kind``."""
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = i < width
    value, _, _ = hidden(x + row * x_row, i, width, KIND)
    hat, _ = normalise(value, inside, width, EPS)
    value = hat * line(weight, i, width) + line(bias, i, width)
    if KIND != "glu":
        value *= sigmoid(value)
    if KIND == "skip":
        hat, _ = normalise(value + line(skip + row * skip_row, i, width), inside, width, OUTER_EPS)
        value = hat * line(outer_weight, i, width) + line(outer_bias, i, width)
    tl.store(y + row * y_row + i.to(tl.int64) * y_column, value, mask=inside)


@triton.jit
def add_line(to, value, i, width):
    """Add to a row that is this program's own."""
    put_line(to, line(to, i, width) + value, i, width)
    tl.debug_barrier()  # another thread may read it next


@triton.jit
def pointwise_backward_kernel(
    x, weight, bias, dy, dx, dweight, dbias, rows, width, x_row, dy_row, dy_column, dx_row,
    KIND: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients behind a "glu" or "silu" stage's linear map of every ``programs``-th row; those of the norm are added
    to a row of this program's own.
    """
    group, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside, own = i < width, group * width
    for row in range(group, rows, tl.num_programs(0)):
        value, a, gate = hidden(x + row * x_row, i, width, KIND)
        hat, scale = normalise(value, inside, width, EPS)
        grad = tl.load(dy + row * dy_row + i.to(tl.int64) * dy_column, mask=inside, other=0.0)
        if KIND == "silu":
            out = hat * line(weight, i, width) + line(bias, i, width)
            on = sigmoid(out)
            grad *= on * (1 + out * (1 - on))
        add_line(dweight + own, grad * hat, i, width)
        add_line(dbias + own, grad, i, width)
        grad = normalise_backward(hat, scale, grad * line(weight, i, width), width)
        to = dx + row * dx_row
        if KIND == "glu":
            put_line(to, grad * gate, i, width)
            put_line(to + width, grad * a * gate * (1 - gate), i, width)
        else:
            put_line(to, grad, i, width)


@triton.jit
def skip_backward_kernel(
    x, weight, bias, skip, outer_weight, dy, dskip, dweight, dbias, rows, width, x_row, skip_row, dy_row, dy_column,
    dskip_row, EPS: tl.constexpr, OUTER_EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of what the outer norm of a "skip" stage takes in, of every ``programs``-th row, and of that norm."""
    group, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside, own = i < width, group * width
    for row in range(group, rows, tl.num_programs(0)):
        hat, _ = normalise(line(x + row * x_row, i, width), inside, width, EPS)
        value = hat * line(weight, i, width) + line(bias, i, width)
        value = value * sigmoid(value) + line(skip + row * skip_row, i, width)
        hat, scale = normalise(value, inside, width, OUTER_EPS)
        grad = tl.load(dy + row * dy_row + i.to(tl.int64) * dy_column, mask=inside, other=0.0)
        add_line(dweight + own, grad * hat, i, width)
        add_line(dbias + own, grad, i, width)
        grad = normalise_backward(hat, scale, grad * line(outer_weight, i, width), width)
        put_line(dskip + row * dskip_row, grad, i, width)


@triton.jit
def tile(matrix, j, l0, width, tokens, BLOCK_L: tl.constexpr):
    """Columns of keys or values (d, L) from token ``l0`` on."""
    tokens_here = l0 + tl.arange(0, BLOCK_L)
    there = (j < width)[:, None] & (tokens_here < tokens)[None, :]
    return tl.load(matrix + j[:, None] * tokens + tokens_here[None, :], mask=there, other=0.0)


@triton.jit
def scores(q, keys, to, j, width, tokens, BLOCK_L: tl.constexpr):
    """Writes the scores of a query; returns the largest and the sum of exp(score - largest)."""
    top = tl.max(q, 0) * 0 - float("inf")
    total = tl.sum(q, 0) * 0
    for l0 in range(0, tokens, BLOCK_L):
        i = l0 + tl.arange(0, BLOCK_L)
        s = tl.sum(q[:, None] * tile(keys, j, l0, width, tokens, BLOCK_L), 0)
        put_line(to, s, i, tokens)
        s = tl.where(i < tokens, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(s - higher), 0)
        top = higher
    tl.debug_barrier()  # another thread may read them
    return top, total


@triton.jit(do_not_specialize=["threshold"])
def attend_kernel(
    q, keys, values, weights, out, seed, first_row, threshold, scale, heads, width, tokens, q_row, out_row,
    DROP: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One sample and head: attention weights (L), after dropout, and what they read (d)."""
    index, j = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_W)
    row, head = index // heads, index % heads
    plane, own = index * width * tokens, weights + index * tokens
    query = line(q + row * q_row + head * width, j, width)
    top, total = scores(query, keys + plane, own, j, width, tokens, BLOCK_L)
    read = tl.zeros_like(query)
    for l0 in range(0, tokens, BLOCK_L):
        i = l0 + tl.arange(0, BLOCK_L)
        w = tl.where(i < tokens, tl.exp(line(own, i, tokens) - top) / total, 0.0)
        if DROP:
            w *= keep(row_key(seed, first_row + row), head * tokens + i, threshold, scale)
        tl.debug_barrier()  # another thread may still read the scores
        put_line(own, w, i, tokens)
        read += tl.sum(w[None, :] * tile(values + plane, j, l0, width, tokens, BLOCK_L), 1)
    put_line(out + row * out_row + head * width, read, j, width)


@triton.jit(do_not_specialize=["threshold"])
def attend_backward_kernel(
    q, keys, values, grad, weights, dropped, dscores, dq, seed, first_row, threshold, scale, heads, width, tokens,
    q_row, grad_row, dq_row, DROP: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One sample and head: weights (L) before and after dropout again, gradients of scores (L) and query (d)."""
    index, j = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_W)
    row, head = index // heads, index % heads
    plane, own = index * width * tokens, index * tokens
    query, g = (
        line(q + row * q_row + head * width, j, width),
        line(grad + row * grad_row + head * width, j, width),
    )
    top, total = scores(query, keys + plane, weights + own, j, width, tokens, BLOCK_L)
    mean = tl.sum(g, 0) * 0
    for l0 in range(0, tokens, BLOCK_L):
        i = l0 + tl.arange(0, BLOCK_L)
        w = tl.where(i < tokens, tl.exp(line(weights + own, i, tokens) - top) / total, 0.0)
        d = tl.sum(g[:, None] * tile(values + plane, j, l0, width, tokens, BLOCK_L), 0)
        if DROP:
            mask = keep(row_key(seed, first_row + row), head * tokens + i, threshold, scale)
            put_line(dropped + own, w * mask, i, tokens)
            d *= mask
        tl.debug_barrier()  # another thread may still read the scores
        put_line(weights + own, w, i, tokens)
        put_line(dscores + own, d, i, tokens)
        mean += tl.sum(w * d, 0)
    tl.debug_barrier()  # another thread may read them
    total_dq = tl.zeros_like(query)
    for l0 in range(0, tokens, BLOCK_L):
        i = l0 + tl.arange(0, BLOCK_L)
        d = line(weights + own, i, tokens) * (line(dscores + own, i, tokens) - mean)
        tl.debug_barrier()  # another thread may still read them
        put_line(dscores + own, d, i, tokens)
        total_dq += tl.sum(d[None, :] * tile(keys + plane, j, l0, width, tokens, BLOCK_L), 1)
    put_line(dq + row * dq_row + head * width, total_dq, j, width)


@triton.jit
def pairs_kernel(z, left, right, rate, root, alpha, s, ticks, batch, neurons, pairs, BLOCK: tl.constexpr):
    """Synchronisation (ticks, B, P) of a sample's block of pairs; moves ``alpha`` on."""
    row = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pairs
    i, j = tl.load(left + p, mask=inside, other=0), tl.load(right + p, mask=inside, other=0)
    r, a = line(rate, p, pairs), line(alpha + row * pairs, p, pairs)
    for t in range(ticks):
        at = z + (t * batch + row) * neurons
        a = r * a + tl.load(at + i, mask=inside, other=0.0) * tl.load(at + j, mask=inside, other=0.0)
        put_line(s + (t * batch + row) * pairs, a * line(root + t * pairs, p, pairs), p, pairs)
    put_line(alpha + row * pairs, a, p, pairs)


@triton.jit
def pairs_backward_kernel(ds, rate, root, galpha, products, pairs, BLOCK: tl.constexpr):
    """One tick: gradients of the pairs' products; moves the gradient of alpha back."""
    row = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = line(galpha + row * pairs, p, pairs) + line(ds + row * pairs, p, pairs) * line(root, p, pairs)
    put_line(products + row * pairs, g, p, pairs)
    put_line(galpha + row * pairs, line(rate, p, pairs) * g, p, pairs)
