"""The memory of the Neural Turing Machine in plain torch: the meaning of the ``ntm`` ops, any dtype and device.

Letters: B batch, N slots, W width of a slot, H heads, R read heads, V write heads, S offsets, T steps. Weightings
are (B, H, N). Every formula keeps its value and its gradient finite at zero slots, zero keys and zero weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops.ntm.layout import NtmLayout

CLAMP_AFTER_OPERANDS = 1e-8

Step = tuple[Tensor, Tensor, Tensor, Tensor]


def similarity(key: Tensor, memory: Tensor, eps: float, placement: str) -> Tensor:
    """Cosine of keys (B, H, W) with slots (B, N, W): (B, H, N)."""
    if placement == "operands":
        key, memory, eps, placement = key + eps, memory + eps, CLAMP_AFTER_OPERANDS, "clamp"
    dots = key @ memory.transpose(1, 2)
    if placement.startswith("root"):
        norms = [torch.sqrt(x.square().sum(-1) + eps) for x in (key, memory)]
    else:
        norms = [torch.linalg.vector_norm(x, dim=-1) for x in (key, memory)]
    if placement == "norm":
        norms = [x + eps for x in norms]
    elif placement == "clamp":
        norms = [x.clamp(min=eps) for x in norms]
    product = norms[0].unsqueeze(2) * norms[1].unsqueeze(1)
    return dots / (product + eps if placement in ("product", "root_product") else product)


def shifted(weights: Tensor, shift: Tensor) -> Tensor:
    """Circular convolution of weightings (B, H, N) with distributions (B, H, S) over -(S // 2) to S // 2."""
    half = shift.shape[-1] // 2
    rolled = torch.stack([weights.roll(offset, -1) for offset in range(-half, half + 1)], -2)
    return (shift.unsqueeze(-1) * rolled).sum(-2)


def sharpened(weights: Tensor, gamma: Tensor) -> Tensor:
    """The power ``weights ** gamma``, normalised, in the log domain: no power underflows to 0 / 0."""
    floor = torch.finfo(weights.dtype).tiny
    return torch.softmax(gamma.unsqueeze(-1) * weights.clamp(min=floor).log(), -1)


def address(
    memory: Tensor,  # (B, N, W)
    key: Tensor,  # (B, H, W)
    beta: Tensor,  # (B, H)
    gate: Tensor,  # (B, H)
    shift: Tensor,  # (B, H, S)
    gamma: Tensor,  # (B, H)
    previous: Tensor,  # (B, H, N)
    *,
    eps: float,
    placement: str,
) -> Tensor:  # (B, H, N)
    """Content, interpolation, shift and sharpening (arXiv 1410.5401, equations 5 to 9)."""
    content = torch.softmax(beta.unsqueeze(-1) * similarity(key, memory, eps, placement), -1)
    gate = gate.unsqueeze(-1)
    return sharpened(shifted(gate * content + (1 - gate) * previous, shift), gamma)


def read(memory: Tensor, weights: Tensor) -> Tensor:
    """Reads (B, H, W) of the memory (B, N, W)."""
    return weights @ memory


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """The memory (B, N, W) after all heads' erases (B, H, W), which multiply, and adds, which sum."""
    added = weights.transpose(1, 2) @ add
    for head in range(weights.shape[1]):
        memory = memory * (1 - weights[:, head].unsqueeze(2) * erase[:, head].unsqueeze(1))
    return memory + added


def step(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (B, I)
    read_weights: Tensor,  # (B, R, N)
    write_weights: Tensor,  # (B, V, N)
    layout: NtmLayout,
) -> Step:
    """One step of all heads: reads (B, R, W), the new memory, and the new read and write weights."""
    heads, reading = layout.split(interface), layout.read_heads
    previous = torch.cat((read_weights, write_weights), 1)
    if layout.shared_weights:
        previous = write_weights[:, -1:].expand(previous.shape)

    def addressed(memory: Tensor, chosen: slice) -> Tensor:
        arguments = (part[:, chosen] for part in (*heads[:5], previous))
        return address(memory, *arguments, eps=layout.eps, placement=layout.eps_placement)

    if layout.order == "write_read":
        writes = addressed(memory, slice(reading, None))
        memory = write(memory, writes, heads.erase, heads.add)
        new = addressed(memory, slice(reading))
        return read(memory, new), memory, new, writes
    new, writes = addressed(memory, slice(None)).tensor_split([reading], 1)
    reads = read(memory, read_weights if layout.order == "previous_read" else new)
    return reads, write(memory, writes, heads.erase, heads.add), new, writes


def sequence(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: NtmLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps: reads (T, B, R, W), the last memory (B, N, W), and weights before and after every step, read heads
    first (1 + T, B, H, N).
    """
    reads = [memory.new_empty(0, memory.shape[0], layout.read_heads, memory.shape[2])]
    weights = [torch.cat((read_weights, write_weights), 1)]
    for raw in interface:
        found, memory, read_weights, write_weights = step(memory, raw, read_weights, write_weights, layout)
        reads.append(found.unsqueeze(0))
        weights.append(torch.cat((read_weights, write_weights), 1))
    return torch.cat(reads), memory, torch.stack(weights)
