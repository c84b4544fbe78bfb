"""Random numbers and padding that the generators share."""

from __future__ import annotations

import torch
from torch import Tensor

UNASKED = -1


def uniform(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Integers of the closed range [``low``, ``high``], int64, of the given shape."""
    return torch.randint(low, high + 1, shape, generator=generator)


def within(lengths: Tensor, steps: int) -> Tensor:
    """Which of ``steps`` places lie within sequences of ``lengths`` (...,): bool (..., steps)."""
    return torch.arange(steps) < lengths[..., None]
