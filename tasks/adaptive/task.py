"""What the four experiments of adaptive computation time share: model, loss, metrics, curriculum, pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctm_fast import models
from tasks.adaptive import pictures
from tasks.adaptive.config import AdaptiveConfig
from tasks.adaptive.sequences import UNASKED
from tasks.curriculum import Curriculum
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator

Config = TypeVar("Config", bound=AdaptiveConfig)
Sample = Callable[[int, torch.Generator], Batch]


class AdaptiveTask(Task[Config]):
    """One experiment of adaptive computation time; batches are as :mod:`tasks.adaptive` describes them.

    A subclass gives ``input_size``, ``levels``, ``sample`` and, where the model can read harder inputs than
    it is trained on, ``beyond``.
    """

    score = "accuracy_sequence"
    curves = ("loss", "sequence_error", "ponder")
    answers: ClassVar[int] = 1
    difficulty: ClassVar[str]

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Width I of an input."""

    @property
    def classes(self) -> int:
        """Classes C of an answer; two need one output."""
        return 2

    @property
    def digit_classes(self) -> int:
        """Classes of the answers whose probabilities the model mixes over its steps; 0: it mixes logits."""
        return 0

    @abstractmethod
    def levels(self) -> Sequence[int]:
        """Levels of the curriculum; the last is full difficulty."""

    @abstractmethod
    def sample(self, size: int, level: int, generator: torch.Generator) -> Batch:
        """``size`` sequences as they are trained on at ``level``."""

    def beyond(self) -> Mapping[str, Sample]:
        """What draws sequences that are harder than all trained ones, by name."""
        return {}

    def counted(self, targets: Tensor) -> Tensor:
        """Which answers (T, B, A) the metric ``answer_error`` is a share of."""
        return targets != UNASKED

    def make_curriculum(self) -> Curriculum | None:
        goal, every = self.config.curriculum_goal, self.config.curriculum_every
        if goal is None:
            return None
        return Curriculum(self.levels(), every=every, at_least={self.score: goal})

    def build_model(self) -> nn.Module:
        c = self.config
        kind = models.AdaptiveRNN if c.cell == "rnn" else models.AdaptiveLSTM
        model = kind(
            self.input_size,
            self.answers * (1 if self.classes == 2 else self.classes),
            c.hidden_size,
            epsilon=c.epsilon,
            max_steps=c.max_steps,
            ponder=c.reduction,
            adaptive=c.adaptive,
            halting_bias=c.halting_bias,
            digit_classes=self.digit_classes,
        )
        with torch.no_grad():
            model.cell.weight_ih.mul_(c.input_scale)
            model.cell.bias_ih.mul_(c.input_scale)
        return model

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        level = self.curriculum.level if self.curriculum else self.levels()[-1]
        return self.sample(self.config.batch_size, level, generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        return self._fixed(lambda size, generator: self.sample(size, self.levels()[-1], generator))

    def beyond_batches(self) -> Mapping[str, Iterator[Batch]]:
        return {name: self._fixed(sample) for name, sample in self.beyond().items()}

    def _fixed(self, sample: Sample) -> Iterator[Batch]:
        for index in range(self.config.n_test_batches):
            yield sample(self.config.batch_size_test, batch_generator(EVALUATION_SEED, index))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found, targets = self.answer(model, batch), batch[1]
        counted, inputs = self.counted(targets), batch[2].sum(0)
        losses = F.cross_entropy(found.logits.movedim(-1, 1), targets, ignore_index=UNASKED, reduction="none")
        answers = (
            len(targets[0]) if self.config.reduction == "sum" else (targets != UNASKED).sum().clamp(min=1)
        )
        task_loss, wrong = losses.sum() / answers, found.wrong.sum((0, 2))
        return task_loss + self.config.time_penalty * found.cost, {
            "task_loss": task_loss,
            "accuracy_sequence": (wrong == 0).float(),
            "sequence_error": (wrong > 0).float(),
            "answer_error": (found.wrong & counted).sum((0, 2)) / counted.sum((0, 2)).clamp(min=1),
            "ponder": found.ponder.sum(0) / inputs,
            "steps": found.steps.sum(0) / inputs,
        }

    def answer(self, model: nn.Module, batch: Batch) -> Answer:
        """Run ``model`` and compare what it says with the targets."""
        inputs, targets, mask, _ = batch
        out = model(inputs, mask)
        logits = out.output.unflatten(-1, (self.answers, -1))
        if self.classes == 2:
            logits = F.pad(logits, (1, 0))  # the logit z of the second class, beside 0
        wrong = (logits.argmax(-1) != targets) & (targets != UNASKED)
        return Answer(logits, wrong, out.ponder, out.steps, out.cost)

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        return pictures.draw(self, model, folder)


class Answer(NamedTuple):
    """Logits (T, B, A, C), wrong answers (T, B, A) bool, ponder N + R (T, B), steps N (T, B) and the cost of
    pondering, a scalar.
    """

    logits: Tensor
    wrong: Tensor
    ponder: Tensor
    steps: Tensor
    cost: Tensor
