"""Dynamic N-grams: predict bits that depend on the last five (arXiv 1410.5401, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.errors import require
from tasks.ntm import data, pictures, scores
from tasks.ntm.config import PAPER, QUICK, NtmConfig, model_fields
from tasks.ntm.scores import Metrics
from tasks.ntm.task import Difficulty, SequenceTask
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class NgramsConfig(NtmConfig):
    """A run of dynamic N-grams."""

    length: int = 200
    """Bits of a sequence; those after the first five are predicted."""
    beyond: tuple[int, ...] = (400,)
    """Lengths that evaluate also tries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = data.CONTEXT + 1
        require(self.length >= least, "length", f"be at least {least}", self.length)
        shortest = min(self.beyond, default=least)
        require(shortest >= least, "beyond", f"hold lengths from {least} on", self.beyond)
        self.require_slots(2**data.CONTEXT, "context of five bits")


PRESETS = {
    "quick": NgramsConfig(**QUICK, training_iterations=5_000),
    "paper_ff": NgramsConfig(**model_fields("ntm_ngrams_ff"), **PAPER, lr=3e-5),
    "paper_lstm": NgramsConfig(**model_fields("ntm_ngrams_lstm"), **PAPER, lr=3e-5),
}


class Ngrams(SequenceTask[NgramsConfig]):
    """Predict bits that depend on the last five."""

    name = "ntm_ngrams"
    config_class = NgramsConfig
    presets = PRESETS
    score = "share_of_optimum"
    curves = ("loss", "bits_per_sequence", "share_of_optimum")

    @property
    def sizes(self) -> tuple[int, int]:
        return 1, 1

    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        return self.hardest()

    def hardest(self) -> Difficulty:
        return (self.config.length,)

    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        (length,) = difficulty
        return data.ngrams(length, batch, generator)

    def beyond(self) -> Mapping[str, Difficulty]:
        return {f"length_{length}": (length,) for length in self.config.beyond}

    def answer_loss(self, logits: Tensor, targets: Tensor, *others: Tensor) -> tuple[Tensor, Metrics]:
        """Beside the usual metrics, what the best predictor (A, B, 1) of ``others`` pays for the same bits."""
        (best,) = others
        loss, metrics = scores.bits(logits, targets)
        optimum = scores.in_bits(F.binary_cross_entropy(best, targets, reduction="none").sum((0, 2)))
        share = optimum / metrics["bits_per_sequence"]
        return loss, {**metrics, "bits_optimum": optimum, "share_of_optimum": share}

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        files = super().analyse(model, folder)
        return files + pictures.draw_predictions(model, next(iter(self.evaluation_batches())), folder)
