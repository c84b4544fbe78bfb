"""A step of the Neural Turing Machine's memory from a raw interface vector, in plain PyTorch.

:func:`usual` is written as most code writes it, head after head. :func:`strong` is the same mathematics written
well: all heads together, norms of the slots once per memory, the shift as one product over a circular window,
erase and add as batched products. Both write before they read, with tanh keys and adds.

Letters: B batch, N slots, W width, R read heads, V write heads, H all heads, I interface.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.baselines.ntm_model import EPS, Head, address
from ctm_fast.ops import NtmLayout

State = tuple[Tensor, Tensor, Tensor]  # memory (B, N, W), read weights (B, R, N), write weights (B, V, N)
Step = Callable[[Tensor, State, NtmLayout], tuple[Tensor, State]]


def layout(read_heads: int = 1, write_heads: int = 1, width: int = 20) -> NtmLayout:
    """The layout that both baselines compute."""
    return NtmLayout(read_heads, write_heads, width, 3, key="tanh", add="tanh")


def usual(interface: Tensor, state: State, heads: NtmLayout) -> tuple[Tensor, State]:
    """Reads (B, R, W) and the state after one step, one head after the other."""
    memory, reading, writing = state
    width, readers = heads.width, heads.read_heads
    sizes = [width + 6] * readers + [3 * width + 6] * heads.write_heads
    parts = [
        Head(*x.split([width, 1, 1, 3, 1, x.shape[1] - width - 6], 1)) for x in interface.split(sizes, 1)
    ]
    kept, added, new_writing = torch.ones_like(memory), torch.zeros_like(memory), []
    for part, previous in zip(parts[readers:], writing.unbind(1), strict=True):
        weights = address(memory, part, previous)
        erase, add = part.rest.chunk(2, 1)
        kept = kept * (1 - weights.unsqueeze(2) * torch.sigmoid(erase).unsqueeze(1))
        added = added + weights.unsqueeze(2) * torch.tanh(add).unsqueeze(1)
        new_writing.append(weights)
    memory = memory * kept + added
    new_reading, reads = [], []
    for part, previous in zip(parts[:readers], reading.unbind(1), strict=True):
        weights = address(memory, part, previous)
        reads.append(torch.bmm(weights.unsqueeze(1), memory).squeeze(1))
        new_reading.append(weights)
    return torch.stack(reads, 1), (memory, torch.stack(new_reading, 1), torch.stack(new_writing, 1))


def strong(interface: Tensor, state: State, heads: NtmLayout) -> tuple[Tensor, State]:
    """Reads (B, R, W) and the state after one step, all heads together."""
    memory, reading, writing = state
    width, readers = heads.width, heads.read_heads
    size = width + 6
    first = interface[:, : readers * size].unflatten(1, (readers, size))
    second = interface[:, readers * size :].unflatten(1, (heads.write_heads, size + 2 * width))
    erase, add = second[..., size:].split(width, 2)
    weights = _weights(memory, second[..., :size], writing, width)
    memory = strong_write(memory, weights, torch.sigmoid(erase), torch.tanh(add))
    read = _weights(memory, first, reading, width)
    return torch.bmm(read, memory), (memory, read, weights)


def _weights(memory: Tensor, values: Tensor, previous: Tensor, width: int) -> Tensor:
    """(B, H, N) of heads with raw values (B, H, W + 6)."""
    key, beta, gate, shift, gamma = values.split((width, 1, 1, 3, 1), 2)
    strengths = F.softplus(beta.squeeze(2)), torch.sigmoid(gate.squeeze(2))
    sharpening = 1 + F.softplus(gamma.squeeze(2))
    return strong_address(memory, torch.tanh(key), *strengths, torch.softmax(shift, 2), sharpening, previous)


def strong_address(
    memory: Tensor, key: Tensor, beta: Tensor, gate: Tensor, shift: Tensor, gamma: Tensor, previous: Tensor
) -> Tensor:
    """``ops.ntm_address`` of all heads: key (B, H, W), shift (B, H, 3), previous (B, H, N), the others (B, H)."""
    scale = (beta * torch.rsqrt(key.square().sum(2) + EPS)).unsqueeze(2)
    lengths = torch.rsqrt(memory.square().sum(2) + EPS).unsqueeze(1)
    content = torch.softmax(torch.bmm(key * scale, memory.transpose(1, 2)) * lengths, 2)
    gated = torch.lerp(previous, content, gate.unsqueeze(2))
    circle = F.pad(gated, (1, 1), mode="circular").unfold(2, 3, 1)
    shifted = (circle * shift.flip(2).unsqueeze(2)).sum(3)
    return torch.softmax(gamma.unsqueeze(2) * shifted.log(), 2)


def strong_write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """``ops.ntm_write`` of all heads: weights (B, V, N), erase and add (B, V, W)."""
    columns = weights.transpose(1, 2)
    if weights.shape[1] == 1:
        kept = torch.addcmul(memory, memory * columns, erase, value=-1)
    else:
        kept = memory * (1 - columns.unsqueeze(2) * erase.transpose(1, 2).unsqueeze(1)).prod(3)
    return torch.baddbmm(kept, columns, add)


def run(step: Step, interface: Tensor, state: State, heads: NtmLayout) -> list[Tensor]:
    """All steps (T, B, I): reads (T, B, R, W) and the last state."""
    reads = []
    for raw in interface:
        found, state = step(raw, state, heads)
        reads.append(found)
    return [torch.stack(reads), *state]
