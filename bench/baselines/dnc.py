"""Strong eager memory of the Differentiable Neural Computer: activations of all steps at once, slot norms
computed once per memory, fused products.

Letters: T steps, B batch, N slots, W width, R read heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops import DncInterface, DncLayout, DncState

Found = tuple[Tensor, Tensor, DncState]


def allocation(usage: Tensor, eps: float) -> Tensor:
    """``ops.dnc_allocation`` of usage (B, N)."""
    ascending, order = usage.sort(dim=-1, stable=True)
    ascending = eps + (1 - eps) * ascending
    products = torch.cumprod(ascending, -1)
    free = torch.cat((1 - ascending[:, :1], (1 - ascending[:, 1:]) * products[:, :-1]), 1)
    return torch.zeros_like(usage).scatter(1, order, free)


def off_diagonal(like: Tensor) -> Tensor:
    """1 everywhere but on the diagonal (N, N), for memories (B, N, W) or links (B, N, N) like this."""
    return 1 - torch.eye(like.shape[1], dtype=like.dtype, device=like.device)


def links(link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """``ops.dnc_link`` of dense links (B, N, N), ``kept`` of :func:`off_diagonal`: link, precedence, forward and
    backward weightings.
    """
    later, earlier = write.unsqueeze(2), write.unsqueeze(1)
    link = torch.baddbmm((1 - later - earlier) * link, later, precedence.unsqueeze(1)) * kept
    precedence = torch.addcmul(write, 1 - write.sum(1, keepdim=True), precedence)
    return link, precedence, torch.bmm(read, link.mT), torch.bmm(read, link)


class Steps:
    """Dense steps of a layout, fed one at a time.

    Args:
        layout: heads and eps.
        memory: (B, N, W) to start from.
        state: to start from.
    """

    def __init__(self, layout: DncLayout, memory: Tensor, state: DncState) -> None:
        self.layout, self.memory, self.state = layout, memory, state
        self.norms = self._norms(memory)
        self.off_diagonal = off_diagonal(memory)

    def _norms(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) + self.layout.eps).sqrt()

    def _content(self, keys: Tensor, strengths: Tensor) -> Tensor:
        scale = (strengths / self._norms(keys)).unsqueeze(2)
        return torch.softmax(torch.bmm(keys * scale, self.memory.mT) / self.norms.unsqueeze(1), -1)

    def add(self, parts: DncInterface) -> Tensor:
        """One step from its activated parts: the reads (B, R, W)."""
        old, heads = self.state, self.layout.read_heads
        kept = (1 - parts.free_gates.unsqueeze(2) * old.read_weights).prod(1)
        usage = torch.addcmul(old.usage + old.write_weights, old.usage, old.write_weights, value=-1) * kept
        similar = self._content(parts.write_key.unsqueeze(1), parts.write_strength.unsqueeze(1)).squeeze(1)
        chosen = torch.lerp(
            similar, allocation(usage, self.layout.usage_eps), parts.allocation_gate.unsqueeze(1)
        )
        write = parts.write_gate.unsqueeze(1) * chosen
        later = write.unsqueeze(2)
        erased = self.memory * (1 - later * parts.erase.unsqueeze(1))
        self.memory = torch.baddbmm(erased, later, parts.write_vector.unsqueeze(1))
        self.norms = self._norms(self.memory)

        linked = links(old.link, old.precedence, write, old.read_weights, self.off_diagonal)
        link, precedence, forward, backward = linked
        followed = torch.stack((backward, self._content(parts.read_keys, parts.read_strengths), forward), 2)
        read = (parts.read_modes.unsqueeze(2) @ followed).view(-1, heads, write.shape[1])
        self.state = DncState(usage, link, precedence, write, read)
        return torch.bmm(read, self.memory)


def sequence(memory: Tensor, interface: Tensor, state: DncState, layout: DncLayout) -> Found:
    """Reads (T, B, R, W), memory and state after all steps of the interface (T, B, I)."""
    steps = Steps(layout, memory, state)
    parts = [x.unbind(0) for x in layout.split(interface)]
    reads = torch.stack([steps.add(DncInterface(*x)) for x in zip(*parts, strict=True)])
    return reads, steps.memory, steps.state
