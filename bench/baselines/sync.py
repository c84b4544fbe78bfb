"""Strong eager synchronisation: static pair indices, and beta without a batch dimension.

Letters: T ticks, B batch, D neurons, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Recurrence:
    """One synchronisation of a running model, fed one tick at a time; activations are (D, B).

    Args:
        left, right: neuron indices (P).
        decay: raw decays (P), already clamped.
    """

    def __init__(self, left: Tensor, right: Tensor, decay: Tensor) -> None:
        self.both = torch.cat((left, right))
        self.r = torch.exp(-decay).unsqueeze(1)
        self.alpha: Tensor | None = None
        self.beta = torch.ones_like(self.r)

    def add(self, z: Tensor) -> Tensor:
        """Add a tick's post-activations; the synchronisation (P, B) so far."""
        left, right = z.index_select(0, self.both).chunk(2)
        pairs = left * right
        if self.alpha is None:
            self.alpha = pairs
        else:
            self.alpha, self.beta = self.r * self.alpha + pairs, self.r * self.beta + 1
        return self.alpha / torch.sqrt(self.beta)


def all_ticks(z: Tensor, left: Tensor, right: Tensor, decay: Tensor) -> Tensor:
    """Synchronisation (T, B, P) of the post-activations (T, B, D) of all ticks."""
    recurrence = Recurrence(left, right, decay)
    ticks = z.transpose(1, 2)
    if recurrence.both.numel() >= z.shape[2]:
        ticks = ticks.contiguous()  # one copy, and every pair reads a row in one piece
    return torch.stack([recurrence.add(tick) for tick in ticks]).transpose(1, 2)
