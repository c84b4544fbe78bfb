"""Functions for the Triton kernels of several ops: rows in memory, activations, the softmax of a vector."""

from __future__ import annotations

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B1)


@triton.jit
def row_key(seed, row):
    """Keys of rows' dropout masks as ``ops.dropout.row_keys``."""
    x = (row + 1).to(tl.uint64) * 0x9E3779B97F4A7C15 + tl.load(seed).to(tl.uint64)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return ((x ^ (x >> 31)) >> 32).to(tl.uint32)


@triton.jit
def kept(x, threshold, scale):
    """Dropout masks as ``ops.dropout.keep_mask``: ``scale`` where kept; ``x`` is an element's number and its key."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return tl.where((x ^ (x >> 16)) >= threshold.to(tl.uint32), scale, 0.0)


@triton.jit
def root(x):
    """Square root, rounded to nearest."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def line(row, i, count):
    """Elements ``i`` of a row of ``count``, zeros behind it."""
    return tl.load(row + i, mask=i < count, other=0.0)


@triton.jit
def put_line(row, value, i, count):
    """Store elements ``i`` of a row of ``count``."""
    tl.store(row + i, value, mask=i < count)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without a power beyond 1."""
    power = tl.exp(-tl.abs(x))
    return tl.where(x < 0, power, 1.0) / (1 + power)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), precise also where it is small."""
    power = tl.exp(-tl.abs(x))
    total = 1 + power
    rounded = total - 1  # what the total holds of the power: the logarithm is scaled by what it lost
    small = tl.where(rounded == 0, power, tl.log(total) * power / tl.where(rounded == 0, 1.0, rounded))
    return small + tl.where(x > 0, x, 0.0)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """``x`` after the activation "linear", "tanh" or "sigmoid"."""
    y = x
    if KIND == "sigmoid":
        y = sigmoid(x)
    if KIND == "tanh":
        power = tl.exp(-2 * tl.abs(x))
        size = (1 - power) / (1 + power)
        y = tl.where(x < 0, -size, size)
    return y


@triton.jit
def activation_slope(y, KIND: tl.constexpr):
    """The derivative of :func:`activated` from its value."""
    slope = tl.zeros_like(y) + 1
    if KIND == "sigmoid":
        slope = y * (1 - y)
    if KIND == "tanh":
        slope = 1 - y * y
    return slope


@triton.jit
def softmax(x, inside):
    """Softmax of a vector over the elements ``inside``, zero elsewhere."""
    x = tl.where(inside, x, float("-inf"))
    powers = tl.where(inside, tl.exp(x - tl.max(x, 0)), 0.0)
    return powers / tl.sum(powers, 0)


@triton.jit
def softmax_backward(y, dy):
    """The gradient of what ``y`` is the softmax of."""
    return y * (dy - tl.sum(y * dy, 0))


@triton.jit
def scale_gradient(y, dx, x):
    """The gradient of s, where ``y`` is the softmax of s x and ``dx`` the gradient of s x.

    It sums to zero, so that x may be taken from its mean: less cancels.
    """
    return tl.sum(dx * (x - tl.sum(y * x, 0)), 0)
