"""Repeat copy: repeat a sequence as often as asked, then say the end (arXiv 1410.5401, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.curriculum import Curriculum
from tasks.errors import require
from tasks.ntm import data, scores
from tasks.ntm.config import COLLIER, PAPER, QUICK, VectorConfig, model_fields, require_range
from tasks.ntm.scores import Metrics
from tasks.ntm.task import Difficulty, VectorTask
from tasks.task import Batch

SILENT = -20.0
"""Logit of a bit that is not asked for, where the target is 0."""

CUT_SHARE = 0.1
"""Training batches that are told more copies than they are shown, where the settings ask for it."""


@dataclass(frozen=True, kw_only=True)
class RepeatCopyConfig(VectorConfig):
    """A repeat-copy run."""

    shortest: int = 1
    """Vectors of the shortest sequence."""
    longest: int = 10
    """Vectors of the longest sequence."""
    fewest: int = 1
    """Least copies asked for."""
    most: int = 10
    """Most copies asked for; the count that the model is told is normalised over 1 to this."""
    curriculum_start: tuple[int, int] = (3, 2)
    """Longest sequence and most copies that a curriculum starts with; both go to their last values by ones."""
    curriculum_end_goal: float = 0.8
    """Share of sequences whose end is said in time at which sequences grow."""
    end_weight: float = 1.0
    """Weight of the end in the loss, bits only; small, and the controller does not count before it copies."""
    most_told: int | None = None
    """Copies that some training batches are told, from ``most`` + 1 to this; their answers are cut off."""
    beyond: tuple[tuple[int, int], ...] = ((10, 15), (10, 20), (20, 10))
    """Pairs of length and copies that evaluate also tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "shortest", "longest")
        require_range(self, "fewest", "most")
        require(self.end_weight > 0, "end_weight", "be positive", self.end_weight)
        least = min(self.curriculum_start)
        require(least >= 1, "curriculum_start", "be at least 1", self.curriculum_start)
        goal = self.curriculum_end_goal
        require(0 <= goal <= 1, "curriculum_end_goal", "lie in [0, 1]", goal)
        more = self.most_told is None or self.most_told > self.most
        require(more, "most_told", f"be None or above most={self.most}", self.most_told)
        fits = all(min(pair) >= 1 for pair in self.beyond)
        require(fits, "beyond", "hold lengths and copies from 1 on", self.beyond)
        longest = max(self.longest, self.curriculum_start[0], *(length for length, _ in self.beyond))
        self.require_slots(longest, "vector of the longest sequence")


PRESETS = {
    "quick": RepeatCopyConfig(
        **QUICK,
        controller="ff",
        training_iterations=12_000,
        longest=5,
        most=5,
        most_told=10,
        beyond=((5, 8), (5, 10), (10, 5)),
        curriculum=True,
        curriculum_start=(5, 1),
        curriculum_goal=0.96,
        curriculum_every=50,
        end_weight=0.3,
    ),
    "published": RepeatCopyConfig(
        **model_fields("ntm_repeat_copy_split"),
        alphabet="symbols",
        bits=97,
        curriculum=True,
        curriculum_goal=0.98,
        label_smoothing=0.05,
        entropy_weight=0.005,
        lr=1e-3,
        weight_decay=1e-5,
        batch_size=16,
        training_iterations=20_000,
    ),
    "paper_ff": RepeatCopyConfig(**model_fields("ntm_repeat_copy_ff"), **PAPER, lr=1e-4),
    "paper_lstm": RepeatCopyConfig(**model_fields("ntm_repeat_copy_lstm"), **PAPER, lr=1e-4),
    "collier": RepeatCopyConfig(**model_fields("ntm_repeat_copy_lstm"), **COLLIER),
}


class RepeatCopy(VectorTask[RepeatCopyConfig]):
    """Repeat a sequence of random vectors as often as asked, then say the end."""

    name = "ntm_repeat_copy"
    config_class = RepeatCopyConfig
    presets = PRESETS
    curves = (*VectorTask.curves, "accuracy_end")

    @property
    def _end_channels(self) -> int:
        """One channel for the end; the published symbols have two beyond the alphabet, as the input has."""
        return 2 if self.config.alphabet == "symbols" else 1

    @property
    def sizes(self) -> tuple[int, int]:
        return self.config.bits + 2, self.config.bits + self._end_channels

    def make_curriculum(self) -> Curriculum | None:
        c = self.config
        length, copies = c.curriculum_start
        last = max(abs(c.longest - length), abs(c.most - copies))
        return self.rising(range(last + 1), accuracy_end=c.curriculum_end_goal)

    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        c = self.config
        longest, most = c.longest, c.most
        if level is not None:
            longest, most = (
                start + max(-level, min(level, last - start))
                for start, last in zip(c.curriculum_start, (longest, most), strict=True)
            )
        return data.between(c.shortest, longest, generator), data.between(c.fewest, most, generator)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """A batch of training; where it is told more copies than it is shown, copying on is learnt but not the end."""
        c = self.config
        if c.most_told is None or torch.rand((), generator=generator) >= CUT_SHARE:
            return super().batch(step, generator)
        length, repeats = self.draw_difficulty(generator, self.curriculum.level if self.curriculum else None)
        told = data.between(c.most + 1, c.most_told, generator)
        vectors = self.vectors(length, c.batch_size, generator)
        return data.repeat_copy(vectors, repeats, c.most, self._end_channels, told=told)

    def hardest(self) -> Difficulty:
        return self.config.longest, self.config.most

    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        length, repeats = difficulty
        vectors = self.vectors(length, batch, generator)
        return data.repeat_copy(vectors, repeats, self.config.most, self._end_channels)

    def beyond(self) -> Mapping[str, Difficulty]:
        return {f"length_{length}_copies_{copies}": (length, copies) for length, copies in self.config.beyond}

    def answer_loss(self, logits: Tensor, targets: Tensor, *others: Tensor) -> tuple[Tensor, Metrics]:
        """``accuracy`` is of the vectors alone, ``accuracy_end`` of the end, ``accuracy_sequence`` of both."""
        end = self.config.bits
        if self.config.alphabet == "symbols":
            loss, metrics = super().answer_loss(logits, targets)
            right = logits[:-1].argmax(-1) == targets[:-1].argmax(-1)
            said = logits.argmax(-1) == end
        else:
            silent = torch.full_like(logits[-1:, :, :end], SILENT)  # beside the end no vector is asked for
            last = torch.cat((silent, logits[-1:, :, end:]), 2)
            logits = torch.cat((logits[:-1], last))
            weights = logits.new_ones(end + 1)
            weights[end] = self.config.end_weight
            loss, metrics = scores.bits(logits, targets, weights)
            right = ((logits > 0) == (targets > 0.5))[:-1, :, :end].transpose(1, 2).flatten(0, 1)
            said = logits[..., end] > 0
        in_time = (said == (targets[..., end] > 0.5)).all(0)
        return loss, {**metrics, "accuracy": right.float().mean(0), "accuracy_end": in_time.float()}
