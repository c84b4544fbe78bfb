"""Associative recall: name the item that came after the one asked for (arXiv 1410.5401, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tasks.errors import require
from tasks.ntm import data
from tasks.ntm.config import COLLIER, PAPER, QUICK, NtmConfig, model_fields, require_range
from tasks.ntm.task import Difficulty, SequenceTask
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class RecallConfig(NtmConfig):
    """A run of associative recall."""

    bits: int = 6
    """Bits of each of an item's three vectors."""
    fewest: int = 2
    """Items of the shortest list."""
    most: int = 6
    """Items of the longest list."""
    beyond: tuple[int, ...] = (10, 15, 20)
    """Numbers of items that evaluate also tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bits >= 1, "bits", "be at least 1", self.bits)
        require(self.fewest >= 2, "fewest", "be at least 2, for one must come after another", self.fewest)
        require_range(self, "fewest", "most")
        require(min(self.beyond, default=2) >= 2, "beyond", "hold numbers from 2 on", self.beyond)
        self.require_slots(max(self.most, *self.beyond, 0), "item of the longest list")


PRESETS = {
    "quick": RecallConfig(**QUICK, training_iterations=10_000),
    "paper_ff": RecallConfig(**model_fields("ntm_recall_ff"), **PAPER, lr=1e-4),
    "paper_lstm": RecallConfig(**model_fields("ntm_recall_lstm"), **PAPER, lr=1e-4),
    "collier": RecallConfig(**model_fields("ntm_recall_lstm"), **COLLIER),
}


class Recall(SequenceTask[RecallConfig]):
    """Name the item that came after the one asked for."""

    name = "ntm_recall"
    config_class = RecallConfig
    presets = PRESETS

    @property
    def sizes(self) -> tuple[int, int]:
        return self.config.bits + 2, self.config.bits

    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        return (data.between(self.config.fewest, self.config.most, generator),)

    def hardest(self) -> Difficulty:
        return (self.config.most,)

    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        (items,) = difficulty
        return data.recall(items, batch, self.config.bits, generator)

    def beyond(self) -> Mapping[str, Difficulty]:
        return {f"items_{items}": (items,) for items in self.config.beyond}
