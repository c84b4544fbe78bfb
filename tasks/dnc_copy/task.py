"""Data, loss and score of the copy experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctm_fast.models import DNC
from tasks.curriculum import Curriculum, levels_up_to
from tasks.dnc import pictures
from tasks.dnc_copy.config import PRESETS, CopyConfig
from tasks.ntm import data, scores
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator

BEYOND_BATCHES = 4
SHOWN = 10


class DncCopy(Task[CopyConfig]):
    """Repeat a sequence of random vectors after it has ended."""

    name = "dnc_copy"
    config_class = CopyConfig
    presets = PRESETS
    score = "accuracy"
    curves = ("loss", "bits_per_sequence", "accuracy")

    def make_curriculum(self) -> Curriculum | None:
        c = self.config
        if c.curriculum_start is None:
            return None
        levels = levels_up_to(c.longest, c.curriculum_start, c.curriculum_step)
        return Curriculum(levels, every=c.curriculum_every, at_least={"accuracy": c.curriculum_goal})

    def build_model(self) -> nn.Module:
        return self.config.build_model(self.config.bits + 1, self.config.bits)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        longest = self.curriculum.level if self.curriculum else self.config.longest
        return self._draw(self.config.shortest, longest, self.config.batch_size, generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        """One batch of every length."""
        for length in range(self.config.shortest, self.config.longest + 1):
            generator = batch_generator(EVALUATION_SEED, length)
            yield self._draw(length, length, self.config.batch_size_test, generator)

    def beyond_batches(self) -> Mapping[str, Iterator[Batch]]:
        return {
            f"length_{length}": self._fixed(length) for length in (self.config.longest, *self.config.beyond)
        }

    def evaluate_beyond(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
        """With more slots if the settings say so: they are no parameters, a trained network can be given more."""
        assert isinstance(model, DNC)
        before = model.slots
        model.slots = self.config.slots_beyond or before
        try:
            return super().evaluate_beyond(model, accelerator)
        finally:
            model.slots = before

    def _fixed(self, length: int) -> Iterator[Batch]:
        for index in range(BEYOND_BATCHES):
            generator = batch_generator(EVALUATION_SEED, index, length)
            yield self._draw(length, length, self.config.batch_size_test, generator)

    def _draw(self, shortest: int, longest: int, batch: int, generator: torch.Generator) -> Batch:
        length = data.between(shortest, longest, generator)
        return data.copy_bits(data.random_bits((length, batch, self.config.bits), generator), False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = batch
        return scores.bits(model(inputs).output[-len(targets) :], targets)

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        length = min(SHOWN, self.config.longest)
        inputs, _ = self._draw(length, length, 1, batch_generator(EVALUATION_SEED, 0, length))
        return pictures.draw(model, inputs, folder, shown=torch.sigmoid)
