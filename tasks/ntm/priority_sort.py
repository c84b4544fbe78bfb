"""Priority sort: the vectors of highest priority, in order (arXiv 1410.5401, section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tasks.config import require_positive
from tasks.errors import require
from tasks.ntm import data
from tasks.ntm.config import PAPER, QUICK, NtmConfig, model_fields
from tasks.ntm.task import Difficulty, SequenceTask
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class PrioritySortConfig(NtmConfig):
    """A run of priority sort."""

    bits: int = 8
    """Bits of a vector."""
    given: int = 20
    """Vectors given."""
    kept: int = 16
    """Vectors of highest priority that are asked for."""
    beyond: tuple[tuple[int, int], ...] = ((25, 20), (30, 24))
    """Pairs of vectors given and asked for that evaluate also tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "bits")
        for given, kept in ((self.given, self.kept), *self.beyond):
            require(1 <= kept <= given, "kept", f"lie between 1 and given={given}", kept)
        most = max(given for given, _ in ((self.given, 0), *self.beyond))
        self.require_slots(most, "vector given")


PRESETS = {
    "quick": PrioritySortConfig(**QUICK, training_iterations=10_000),
    "paper_ff": PrioritySortConfig(**model_fields("ntm_sort_ff"), **PAPER, lr=3e-5),
    "paper_lstm": PrioritySortConfig(**model_fields("ntm_sort_lstm"), **PAPER, lr=3e-5),
}


class PrioritySort(SequenceTask[PrioritySortConfig]):
    """Give back the vectors of highest priority, in order."""

    name = "ntm_sort"
    config_class = PrioritySortConfig
    presets = PRESETS

    @property
    def sizes(self) -> tuple[int, int]:
        return self.config.bits + 2, self.config.bits

    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        return self.hardest()

    def hardest(self) -> Difficulty:
        return self.config.given, self.config.kept

    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        given, kept = difficulty
        vectors = data.random_bits((given, batch, self.config.bits), generator)
        return data.priority_sort(vectors, kept, generator)

    def beyond(self) -> Mapping[str, Difficulty]:
        return {f"given_{given}_kept_{kept}": (given, kept) for given, kept in self.config.beyond}
