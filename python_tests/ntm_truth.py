"""The memory of the Neural Turing Machine in NumPy, one sample and one head at a time, from the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctm_fast.ops import NtmLayout

Array = NDArray[np.float64]
TINY = float(np.finfo(np.float64).tiny)


def cosine(k: Array, m: Array, eps: float, placement: str) -> float:
    """Similarity of a key (W) and a slot (W)."""
    if placement == "operands":
        return cosine(k + eps, m + eps, 1e-8, "clamp")
    a, b, d = float(k @ k), float(m @ m), float(k @ m)
    return {
        "root": lambda: d / (np.sqrt(a + eps) * np.sqrt(b + eps)),
        "root_product": lambda: d / (np.sqrt(a + eps) * np.sqrt(b + eps) + eps),
        "norm": lambda: d / ((np.sqrt(a) + eps) * (np.sqrt(b) + eps)),
        "product": lambda: d / (np.sqrt(a) * np.sqrt(b) + eps),
        "clamp": lambda: d / (max(np.sqrt(a), eps) * max(np.sqrt(b), eps)),
    }[placement]()


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def address(
    memory: Array, key: Array, beta: float, gate: float, shift: Array, gamma: float, previous: Array, eps: float,
    placement: str,
) -> Array:  # fmt: skip
    """Weighting (N) of one head over the memory (N, W)."""
    slots, width = len(memory), len(shift)
    content = softmax(np.array([beta * cosine(key, row, eps, placement) for row in memory]))
    gated = gate * content + (1 - gate) * previous
    shifted = np.zeros(slots)
    for n in range(slots):
        for s in range(width):
            shifted[n] += shift[s] * gated[(n - (s - width // 2)) % slots]
    return softmax(gamma * np.log(np.maximum(shifted, TINY)))


def write(memory: Array, heads: list[tuple[Array, Array, Array]]) -> Array:
    """The memory after the (weights, erase, add) of all heads."""
    keep, added = np.ones_like(memory), np.zeros_like(memory)
    for weights, erase, add in heads:
        keep *= 1 - np.outer(weights, erase)
        added += np.outer(weights, add)
    return memory * keep + added


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {"linear": lambda x: x, "tanh": np.tanh, "sigmoid": sigmoid}


def heads_of(vector: Array, layout: NtmLayout) -> list[dict[str, Any]]:
    """The activated parts of a raw interface vector, head by head."""
    found, rest = [], list(vector)

    def take(count: int) -> Array:
        return np.array([rest.pop(0) for _ in range(count)])

    for head in range(layout.heads):
        parts: dict[str, Any] = {"key": ACTIVATIONS[layout.key](take(layout.width))}
        parts["beta"] = np.log1p(np.exp(take(1)[0])) + (layout.strength == "oneplus")
        parts["gate"] = sigmoid(take(1)[0])
        parts["shift"] = softmax(take(layout.shift))
        parts["gamma"] = 1 + np.log1p(np.exp(take(1)[0]))
        if head >= layout.read_heads:
            parts["erase"] = sigmoid(take(layout.width))
            parts["add"] = ACTIVATIONS[layout.add](take(layout.width))
        found.append(parts)
    assert not rest
    return found


def step(
    memory: Array, vector: Array, read: list[Array], written: list[Array], layout: NtmLayout
) -> tuple[Array, Array, list[Array], list[Array]]:
    """Reads (R, W), memory (N, W) and the weights of all heads after one step of one sample."""
    heads, before = heads_of(vector, layout), [*read, *written]
    if layout.shared_weights:
        before = [written[-1]] * layout.heads

    def weights_of(which: range, memory: Array) -> list[Array]:
        order = ("key", "beta", "gate", "shift", "gamma")
        return [
            address(memory, *(heads[h][k] for k in order), before[h], layout.eps, layout.eps_placement)
            for h in which
        ]

    def after(weights: list[Array]) -> Array:
        writers = heads[layout.read_heads :]
        return write(memory, [(w, h["erase"], h["add"]) for w, h in zip(weights, writers, strict=True)])

    readers, writers = range(layout.read_heads), range(layout.read_heads, layout.heads)
    if layout.order == "write_read":
        new_written = weights_of(writers, memory)
        memory = after(new_written)
        new_read = weights_of(readers, memory)
        return np.stack([w @ memory for w in new_read]), memory, new_read, new_written
    new_read, new_written = weights_of(readers, memory), weights_of(writers, memory)
    reading = read if layout.order == "previous_read" else new_read
    return np.stack([w @ memory for w in reading]), after(new_written), new_read, new_written
