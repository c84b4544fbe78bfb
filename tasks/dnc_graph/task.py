"""Batches, loss and score of the graph experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.curriculum import Curriculum
from tasks.dnc import pictures
from tasks.dnc_graph import questions
from tasks.dnc_graph.config import PRESETS, GraphConfig
from tasks.dnc_graph.encoding import DIGITS, INPUTS, TRIPLE
from tasks.dnc_graph.lessons import HARDER, LESSONS, Lesson
from tasks.dnc_graph.questions import SPARE_STEPS, Routes
from tasks.dnc_graph.walking import walk
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator

GOALS = {
    "traversal": "accuracy_all",
    "inference": "accuracy_all",
    "shortest_path": "accuracy_within_one",
}


class DncGraph(Task[GraphConfig]):
    """Answer questions about random graphs given as lists of triples."""

    name = "dnc_graph"
    config_class = GraphConfig
    presets = PRESETS
    score = "accuracy_all"
    curves = ("loss", "accuracy", "accuracy_all", "accuracy_within_one")

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """The lessons of this run, the easiest first."""
        return LESSONS[self.config.question][: self.config.lessons]

    def make_curriculum(self) -> Curriculum | None:
        c = self.config
        if not c.curriculum:
            return None
        goal = {GOALS[c.question]: c.curriculum_goal}
        return Curriculum(range(1, len(self.lessons) + 1), every=c.curriculum_every, at_least=goal)

    def build_model(self) -> nn.Module:
        return self.config.build_model(INPUTS, TRIPLE)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        number = self.curriculum.level if self.curriculum else len(self.lessons)
        if number > 1 and torch.rand((), generator=generator) < self.config.earlier:
            number = int(torch.randint(1, number, (), generator=generator))
        return self._make(self.lessons[number - 1], self.config.batch_size, generator)

    def _make(self, lesson: Lesson, batch: int, generator: torch.Generator) -> Batch:
        if self.config.question == "shortest_path":
            return questions.shortest_path(batch, lesson, self.config.guidance, generator)
        make = questions.traversal if self.config.question == "traversal" else questions.inference
        return make(batch, lesson, generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Fresh graphs of the last lesson."""
        return self._fixed(self.lessons[-1])

    def beyond_batches(self) -> Mapping[str, Iterator[Batch]]:
        """Fresh graphs of every lesson, and larger ones with longer paths than any."""
        lessons = {f"lesson_{number}": lesson for number, lesson in enumerate(self.lessons, 1)}
        lessons["larger"] = HARDER[self.config.question]
        return {name: self._fixed(lesson) for name, lesson in lessons.items()}

    def _fixed(self, lesson: Lesson) -> Iterator[Batch]:
        for index in range(self.config.n_test_batches):
            yield self._make(lesson, self.config.batch_size_test, batch_generator(EVALUATION_SEED, index))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the nine digits, mean over answers; right and wrong of the most probable triples."""
        if self.config.question == "shortest_path":
            return self._walk_loss(model, Routes(*batch))
        inputs, targets, mask = batch
        logits = model(inputs).output.view(*mask.shape, DIGITS, 10)
        losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
        losses = losses.view(*mask.shape, DIGITS).sum(2) * mask
        right = (logits.argmax(3) == targets).all(2) * mask
        return losses.sum() / mask.sum(), {
            "accuracy": right.sum(0) / mask.sum(0),
            "accuracy_all": (right == mask).all(0).float(),
        }

    def _walk_loss(self, model: nn.Module, routes: Routes) -> tuple[Tensor, dict[str, Tensor]]:
        steps = routes.guided.shape[1]
        found = walk(model, routes, steps)
        shortest = routes.togo.gather(1, routes.source[:, None]).squeeze(1)
        wrong = (found.asked & ~found.right).sum(0)
        in_time = found.arrived & (found.asked.sum(0) <= shortest + SPARE_STEPS)
        return found.losses.sum() / found.asked.sum(), {
            "accuracy": (found.asked & found.right).sum(0) / found.asked.sum(0),
            "accuracy_all": (found.arrived & (wrong == 0)).float(),
            "accuracy_within_one": (in_time & (wrong <= SPARE_STEPS)).float(),
        }

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        inputs = self._make(self.lessons[-1], 1, batch_generator(EVALUATION_SEED, 0))[0]
        return pictures.draw(model, inputs, folder)
