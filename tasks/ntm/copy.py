"""Copy: repeat a sequence of random vectors after it has ended (arXiv 1410.5401, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tasks.config import require_positive
from tasks.curriculum import Curriculum, levels_up_to
from tasks.errors import require
from tasks.ntm import data
from tasks.ntm.config import COLLIER, PAPER, QUICK, VectorConfig, model_fields, require_range
from tasks.ntm.task import Difficulty, VectorTask
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class CopyConfig(VectorConfig):
    """A copy run."""

    start_marker: bool = False
    """Mark the start of the sequence too; bits only."""
    shortest: int = 1
    """Vectors of the shortest sequence."""
    longest: int = 20
    """Vectors of the longest sequence."""
    curriculum_start: int = 2
    """Longest sequence that a curriculum starts with."""
    curriculum_step: int = 2
    """Vectors by which it grows."""
    beyond: tuple[int, ...] = (50, 100)
    """Lengths that evaluate also tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "shortest", "longest")
        require_range(self, "curriculum_start", "longest")
        require_positive(self, "curriculum_step")
        require(min(self.beyond, default=1) >= 1, "beyond", "hold lengths from 1 on", self.beyond)
        self.require_slots(max(self.longest, *self.beyond, 1), "vector of the longest sequence")


PRESETS = {
    "quick": CopyConfig(**QUICK, training_iterations=3_000),
    "published": CopyConfig(
        **model_fields("ntm_copy_split"),
        alphabet="symbols",
        bits=97,
        curriculum=True,
        beyond=(),
        label_smoothing=0.1,
        entropy_weight=0.01,
        lr=1e-3,
        weight_decay=1e-5,
        training_iterations=50_000,
    ),
    "paper_ff": CopyConfig(**model_fields("ntm_copy_ff"), **PAPER, lr=1e-4),
    "paper_lstm": CopyConfig(**model_fields("ntm_copy_lstm"), **PAPER, lr=1e-4),
    "collier": CopyConfig(**model_fields("ntm_copy_collier"), **COLLIER, start_marker=True),
}


class Copy(VectorTask[CopyConfig]):
    """Repeat a sequence of random vectors after it has ended."""

    name = "ntm_copy"
    config_class = CopyConfig
    presets = PRESETS

    @property
    def sizes(self) -> tuple[int, int]:
        c = self.config
        return (c.bits if c.alphabet == "symbols" else c.bits + 1 + c.start_marker), c.bits

    def make_curriculum(self) -> Curriculum | None:
        c = self.config
        return self.rising(levels_up_to(c.longest, c.curriculum_start, c.curriculum_step))

    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        longest = self.config.longest if level is None else level
        return (data.between(min(self.config.shortest, longest), longest, generator),)

    def hardest(self) -> Difficulty:
        return (self.config.longest,)

    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        (length,) = difficulty
        vectors = self.vectors(length, batch, generator)
        if self.config.alphabet == "symbols":
            return data.copy_symbols(vectors)
        return data.copy_bits(vectors, self.config.start_marker)

    def beyond(self) -> Mapping[str, Difficulty]:
        return {f"length_{length}": (length,) for length in self.config.beyond}
