"""What an engine's fronts compute, from their recipe in plain NumPy of any precision."""

import math

import numpy as np


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def normalised(x, axis, eps):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + x.dtype.type(eps))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


ERF = np.vectorize(math.erf, otypes=[float])
POINTWISE = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (0.5 + 0.5 * ERF(x / math.sqrt(2))).astype(x.dtype),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
}


def attend(x, heads):
    """Self-attention among rows (N, L, 3 d)."""
    query, key, value = (y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3) for y in np.split(x, 3, -1))
    y = softmax(query @ key.transpose(0, 1, 3, 2)) @ value
    return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


def through(front, prefix, arrays, x, dtype):
    """Samples (N, ...) behind a front, (N, rows, width)."""
    kept = None
    x = x if front.stages[0].kind == "embed" else x.astype(dtype)
    for i, s in enumerate(front.stages):
        x = x.reshape(len(x), s.rows, s.inputs)
        weight, bias = (arrays.get(f"{prefix}{i}.{name}") for name in ("weight", "bias"))
        if s.kind == "embed":
            x = weight[x].sum(2)
        elif s.kind == "linear":
            x = x @ weight.T + bias
        elif s.kind == "add":
            x = x + weight
        elif s.kind == "norm":
            x = normalised(x, -1, s.eps) * weight + bias
        elif s.kind == "glu":
            x = x[..., : s.width] * sigmoid(x[..., s.width :])
        elif s.kind == "turn":
            x = x.transpose(0, 2, 1)
        elif s.kind == "attend":
            x = attend(x, s.number)
        elif s.kind == "keep":
            kept = x
        else:
            x = x + kept if s.kind == "residual" else POINTWISE[s.kind](x)
    return x


def behind(recipe, arrays, inputs, dtype):
    """What the recurrent part reads of raw inputs: tokens (K, B, L, d) and given inputs (G, B, F)."""
    found = []
    for (prefix, front), x in zip(recipe.fronts.items(), inputs[:2], strict=True):
        if inputs.raw and front is not None:
            y = through(front, prefix, arrays, x.reshape(-1, *x.shape[2:]), dtype)
            x = y.reshape(*x.shape[:2], *(y.shape[1:] if prefix == "tokens_front" else (-1,)))
        found.append(x)
    return found
