"""What the five experiments share: model, batches, loss, score.

A difficulty is a tuple of whole numbers that says which sequences to make, such as (length,) or (length,
repeats).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ctm_fast.models import NTM
from tasks.curriculum import Curriculum
from tasks.ntm import data, pictures, scores
from tasks.ntm.config import NtmConfig, VectorConfig
from tasks.ntm.scores import Metrics
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator

BEYOND_BATCHES = 4
"""Evaluation batches of every difficulty beyond training."""

Config = TypeVar("Config", bound=NtmConfig)
Vectors = TypeVar("Vectors", bound=VectorConfig)
Difficulty = tuple[int, ...]


class SequenceTask(Task[Config]):
    """An experiment of the Neural Turing Machine.

    A subclass gives ``sizes``, ``draw_difficulty``, ``hardest``, ``make`` and ``beyond``; answers are
    independent bits unless it says otherwise.
    """

    score = "accuracy"
    curves: ClassVar[tuple[str, ...]] = ("loss", "bits_per_sequence", "accuracy", "accuracy_sequence")

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Channels of the input and of the output."""

    @abstractmethod
    def draw_difficulty(self, generator: torch.Generator, level: int | None) -> Difficulty:
        """The difficulty of one training batch; ``level`` None is the last level of the curriculum."""

    @abstractmethod
    def hardest(self) -> Difficulty:
        """The hardest difficulty of training."""

    @abstractmethod
    def make(self, difficulty: Difficulty, batch: int, generator: torch.Generator) -> Batch:
        """``batch`` sequences: inputs (T, B, I) and targets (A, B, O) first."""

    @abstractmethod
    def beyond(self) -> Mapping[str, Difficulty]:
        """Difficulties beyond those of training, by name."""

    def build_model(self) -> nn.Module:
        return NTM(*self.sizes, **self.config.model_arguments())

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        level = self.curriculum.level if self.curriculum else None
        return self.make(self.draw_difficulty(generator, level), self.config.batch_size, generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        for index in range(self.config.n_test_batches):
            generator = batch_generator(EVALUATION_SEED, index)
            yield self.make(self.draw_difficulty(generator, None), self.config.batch_size_test, generator)

    def beyond_batches(self) -> Mapping[str, Iterator[Batch]]:
        return {name: self._fixed(difficulty) for name, difficulty in self.beyond().items()}

    def _fixed(self, difficulty: Difficulty) -> Iterator[Batch]:
        for index in range(BEYOND_BATCHES):
            generator = batch_generator(EVALUATION_SEED, index, 1)  # not the sequences of the set above
            yield self.make(difficulty, self.config.batch_size_test, generator)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets, *others = batch
        found = model(inputs)
        return self.answer_loss(found.output[-len(targets) :], targets, *others)

    def answer_loss(self, logits: Tensor, targets: Tensor, *others: Tensor) -> tuple[Tensor, Metrics]:
        """Loss and metrics of the answer (A, B, O); ``others`` are what the batch holds beside."""
        return scores.bits(logits, targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of outputs (..., O)."""
        return logits.sigmoid()

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        """Weightings and memory at the hardest difficulty of training and at the first beyond it."""
        files = []
        shown = {"": self.hardest(), **{f"_{k}": v for k, v in list(self.beyond().items())[:1]}}
        for suffix, difficulty in shown.items():
            batch = self.make(difficulty, 1, batch_generator(EVALUATION_SEED, 0, 2))
            title = f"{self.name}{suffix}".replace("_", " ")
            files += pictures.draw(model, batch, self.probabilities, title, folder, suffix)
        return files


class VectorTask(SequenceTask[Vectors]):
    """Sequences of bits or of symbols, with a curriculum where the configuration asks for one."""

    def rising(self, levels: Sequence[int], **goals: float) -> Curriculum | None:
        """The curriculum over ``levels``, whose accuracy and further metrics must reach their goals."""
        c = self.config
        if not c.curriculum:
            return None
        return Curriculum(levels, every=c.curriculum_every, at_least={"accuracy": c.curriculum_goal, **goals})

    def vectors(self, length: int, batch: int, generator: torch.Generator) -> Tensor:
        """Random vectors or one-hot symbols (L, B, D)."""
        if self.config.alphabet == "symbols":
            return data.random_symbols(length, batch, self.config.bits, generator)
        return data.random_bits((length, batch, self.config.bits), generator)

    def answer_loss(self, logits: Tensor, targets: Tensor, *others: Tensor) -> tuple[Tensor, Metrics]:
        if self.config.alphabet == "symbols":
            return scores.symbols(logits, targets, self.config.label_smoothing)
        return scores.bits(logits, targets)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.config.alphabet == "symbols" else logits.sigmoid()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = batch
        found = model(inputs)
        loss, metrics = self.answer_loss(found.output[-len(targets) :], targets)
        if self.config.entropy_weight:
            memory = found.state.memory
            weights = torch.cat((memory.read_weights, memory.write_weights), 1)
            loss = loss + self.config.entropy_weight * scores.entropy(weights)
        return loss, metrics
