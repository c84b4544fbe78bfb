"""Sorting real numbers by index (arXiv 1603.08983, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tasks.adaptive.config import PAPER, QUICK, AdaptiveConfig, require_range
from tasks.adaptive.sequences import UNASKED, uniform, within
from tasks.adaptive.task import AdaptiveTask, Sample
from tasks.config import require_positive
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class SortConfig(AdaptiveConfig):
    """Model and data of one run."""

    shortest: int = 2
    """Fewest numbers of a sequence."""
    longest: int = 15
    """Most numbers of a sequence; the level of the curriculum."""
    indices: int = 15
    """Classes of the output, one for every place that a number can have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "indices")
        require_range(self, "shortest", "longest", 1, self.indices)


def unsorted(lengths: Tensor, generator: torch.Generator) -> Batch:
    """Sequences of standard normal numbers, then the indices that put them in ascending order.

    Args:
        lengths: numbers per sequence, int64 (B,), at least 1.
        generator: source of numbers.

    Returns:
        a batch with I = 2 (a number, and 1 beside the last one), A = 1; the first half of each sequence's
        steps reads the numbers, the second half answers over zeros; the difficulty is the length.
    """
    longest, batch = int(lengths.max()), len(lengths)
    held = within(lengths, longest)
    numbers = torch.randn(batch, longest, generator=generator)
    order = numbers.where(held, torch.inf).argsort(1)
    steps = torch.arange(2 * longest)[:, None]
    inputs = torch.zeros(2 * longest, batch, 2)
    inputs[:longest, :, 0] = (numbers * held).T
    inputs[..., 1] = (steps == lengths - 1).float()
    rank = steps - lengths
    mask = rank < lengths
    targets = order.T.gather(0, rank.clamp(0, longest - 1)).where(mask & (rank >= 0), UNASKED)
    return inputs, targets[..., None], mask, lengths.expand_as(mask)


_PAPER = SortConfig(**PAPER, cell="lstm", hidden_size=512, batch_size=16, time_penalty=0.001)
PRESETS: dict[str, SortConfig] = {
    "quick": replace(
        _PAPER,
        **QUICK,
        longest=5,
        hidden_size=128,
        batch_size=64,
        max_steps=10,
        training_iterations=5_000,
    ),
    "paper": _PAPER,
}


class AdaptiveSort(AdaptiveTask[SortConfig]):
    """Sort numbers by index, after as much computation as it takes."""

    name = "act_sort"
    config_class = SortConfig
    presets = PRESETS
    difficulty = "numbers of the sequence"
    input_size = 2

    @property
    def classes(self) -> int:
        return self.config.indices

    def levels(self) -> range:
        return range(self.config.shortest, self.config.longest + 1)

    def sample(self, size: int, level: int, generator: torch.Generator) -> Batch:
        return self._draw(size, self.config.shortest, level, generator)

    def beyond(self) -> Mapping[str, Sample]:
        c = self.config
        if c.longest == c.indices:
            return {}
        return {"longer": lambda size, g: self._draw(size, c.longest + 1, c.indices, g)}

    def _draw(self, size: int, shortest: int, longest: int, generator: torch.Generator) -> Batch:
        return unsorted(uniform(shortest, longest, (size,), generator), generator)
