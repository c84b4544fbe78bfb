"""Sequences of +1 and -1 and their running parities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPLIT_SEED = 0


def sequences(codes: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Values and targets of integer patterns.

    Args:
        codes: int64 (B,) in [0, 2^length); bit i set means that value i is -1.
        length: S, at most 63.

    Returns:
        values (B, S), float32, +1 or -1; targets (B, S), int64: the parity of the number of -1 up to each
        position.
    """
    return with_targets((codes[:, None] >> torch.arange(length)) & 1)


def random_sequences(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``batch`` independent uniform sequences in the form of :func:`sequences`; any length."""
    return with_targets(torch.randint(2, (batch, length), generator=generator))


def with_targets(negative: Tensor) -> tuple[Tensor, Tensor]:
    """Values and targets (B, S) of int64 0/1 flags (B, S), 1 for a value of -1."""
    return 1.0 - 2.0 * negative, negative.cumsum(1) % 2


def split_patterns(length: int, held_out: float) -> tuple[Tensor, Tensor]:
    """All 2^length codes in fixed random order: trained ones, then ceil(held_out * 2^length) held-out."""
    order = torch.randperm(2**length, generator=torch.Generator().manual_seed(SPLIT_SEED))
    size = math.ceil(held_out * len(order))
    return order[size:], order[:size]


def positions(predictions: Tensor) -> Tensor:
    """Logits per position: (B, 2 S, T) to (B, S, 2, T)."""
    batch, outputs, ticks = predictions.shape
    return predictions.view(batch, outputs // 2, 2, ticks)
