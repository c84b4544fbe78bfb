"""The memory of the Differentiable Neural Computer in plain torch: the meaning of ``ctm_fast.ops.dnc_*``.

Any dtype and device, differentiable any number of times. Letters: T steps, B batch, N slots, W width of a
slot, R read heads, K links kept per slot. Equations: Nature 538, 471-476, Methods.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops.dnc.layout import DncInterface, DncLayout, DncState

Links = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]
"""Link, its slots, precedence, forward and backward weightings."""


def content(memory: Tensor, keys: Tensor, strengths: Tensor, eps: float) -> Tensor:
    """Softmax over the slots of strength times cosine: (B, N, W), (B, H, W), (B, H) to (B, H, N)."""
    products = keys @ memory.transpose(1, 2)
    slot_norms, key_norms = ((x.square().sum(-1) + eps).sqrt() for x in (memory, keys))
    cosine = products / (key_norms.unsqueeze(-1) * slot_norms.unsqueeze(1))
    return torch.softmax(strengths.unsqueeze(-1) * cosine, -1)


def allocation(usage: Tensor, eps: float) -> Tensor:
    """Allocation weighting (B, N): the least used slots first; equal ones in the order of the slots."""
    order = usage.detach().argsort(dim=-1, stable=True)
    ascending = eps + (1 - eps) * usage.gather(-1, order)
    below = torch.cumprod(torch.nn.functional.pad(ascending[..., :-1], (1, 0), value=1.0), -1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ascending) * below)


def links(
    link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, slots: Tensor | None = None
) -> Links:
    """Temporal links after a write, and the weightings that follow them from the last reads."""
    if slots is not None:
        return _sparse_links(link, slots, precedence, write, read)
    later, earlier = write.unsqueeze(2), write.unsqueeze(1)
    link = (1 - later - earlier) * link + later * precedence.unsqueeze(1)
    diagonal = torch.eye(write.shape[1], dtype=torch.bool, device=write.device)
    link = link.masked_fill(diagonal, 0.0)
    return link, None, _precedence(precedence, write), read @ link.transpose(1, 2), read @ link


def _sparse_links(link: Tensor, slots: Tensor, precedence: Tensor, write: Tensor, read: Tensor) -> Links:
    """The K largest links of every row; the K largest precedences make new ones."""
    check_slots(slots)
    candidates, columns, repeated = _candidates(link, slots, precedence, write)
    link, slots = _largest(candidates, columns, repeated, slots.shape[2])
    flat = slots.flatten(1).unsqueeze(1).expand(-1, read.shape[1], -1)
    forward = (link.unsqueeze(1) * read.gather(2, flat).unflatten(2, slots.shape[1:])).sum(3)
    backward = torch.zeros_like(read).scatter_add(2, flat, (link.unsqueeze(1) * read.unsqueeze(3)).flatten(2))
    return link, slots, _precedence(precedence, write), forward, backward


def check_slots(slots: Tensor) -> None:
    """Raise ``IndexError`` unless the columns (B, N, K) ascend within [0, N) in every row."""
    if torch.compiler.is_compiling() or not slots.numel():
        return
    rows = slots.shape[1]
    low, high = int(slots[..., 0].min()), int(slots[..., -1].max())
    if low < 0 or high >= rows or bool((slots[..., 1:] <= slots[..., :-1]).any()):
        raise IndexError(
            f"dnc: link_slots must ascend within [0, {rows}) in every row, got rows from {low} to {high}"
        )


def _precedence(precedence: Tensor, write: Tensor) -> Tensor:
    return (1 - write.sum(-1, keepdim=True)) * precedence + write


def _candidates(link: Tensor, slots: Tensor, precedence: Tensor, write: Tensor) -> tuple[Tensor, ...]:
    """The links of every row that may be kept (B, N, 2 K), their columns, and which of them occur twice."""
    _, rows, kept = slots.shape
    by_size = precedence.detach().argsort(dim=-1, descending=True, stable=True)[:, :kept]
    latest = by_size.unsqueeze(1).expand(-1, rows, -1)
    later = write.unsqueeze(2)
    earlier = write.gather(1, slots.flatten(1)).view_as(slots)
    new = later * precedence.gather(1, by_size).unsqueeze(1)
    same = slots.unsqueeze(3) == latest.unsqueeze(2)
    old = (1 - later - earlier) * link + torch.where(same, new.unsqueeze(2), 0.0).sum(3)
    columns = torch.cat((slots, latest), 2)
    own = columns == torch.arange(rows, device=slots.device).unsqueeze(1)
    repeated = torch.cat((torch.zeros_like(slots, dtype=torch.bool), same.any(2)), 2)
    return torch.cat((old, new), 2).masked_fill(own, 0.0), columns, repeated


def _largest(values: Tensor, columns: Tensor, dropped: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The ``kept`` largest values of every row, of equal ones the first columns, in ascending columns."""
    last = columns.max() + 1 if columns.numel() else 0
    order = torch.where(dropped, last, columns).argsort(dim=2, stable=True)
    sizes = values.detach().masked_fill(dropped, -torch.inf).gather(2, order)
    order = order.gather(2, sizes.argsort(dim=2, descending=True, stable=True)[..., :kept])
    order = order.gather(2, columns.gather(2, order).argsort(2))
    return values.gather(2, order), columns.gather(2, order)


def step(
    memory: Tensor,  # (B, N, W)
    parts: DncInterface,
    state: DncState,
    layout: DncLayout,
) -> tuple[Tensor, Tensor, DncState]:
    """One step: reads (B, R, W), memory and state."""
    written = state.write_weights.detach() if layout.detach_writes else state.write_weights
    retention = (1 - parts.free_gates.unsqueeze(2) * state.read_weights).prod(1)
    usage = (state.usage + written - state.usage * written) * retention

    free = allocation(usage, layout.usage_eps)
    similar = content(memory, parts.write_key.unsqueeze(1), parts.write_strength.unsqueeze(1), layout.eps)
    gate = parts.allocation_gate.unsqueeze(1)
    write = parts.write_gate.unsqueeze(1) * (gate * free + (1 - gate) * similar.squeeze(1))
    outer = write.unsqueeze(2)
    memory = memory * (1 - outer * parts.erase.unsqueeze(1)) + outer * parts.write_vector.unsqueeze(1)

    linked = links(state.link, state.precedence, write, state.read_weights, state.link_slots)
    link, slots, precedence, forward, backward = linked
    similar = content(memory, parts.read_keys, parts.read_strengths, layout.eps)
    modes = parts.read_modes.unsqueeze(3)
    read = modes[:, :, 0] * backward + modes[:, :, 1] * similar + modes[:, :, 2] * forward
    return read @ memory, memory, DncState(usage, link, precedence, write, read, slots)


def sequence(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (T, B, I)
    state: DncState,
    layout: DncLayout,
) -> tuple[Tensor, Tensor, list[DncState]]:
    """All steps: reads (T, B, R, W), memory after the last, and the states before and after every step."""
    reads, states = [], [state]
    parts = layout.split(interface)
    for t in range(interface.shape[0]):
        found, memory, after = step(memory, DncInterface(*(x[t] for x in parts)), states[-1], layout)
        reads.append(found)
        states.append(after)
    empty = memory.new_empty(0, memory.shape[0], layout.read_heads, layout.width)
    return torch.stack(reads) if reads else empty, memory, states
