"""Data, loss and score of the bAbI experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from tasks.curriculum import Curriculum
from tasks.dnc import pictures
from tasks.dnc_babi.config import BabiConfig
from tasks.dnc_babi.data import (
    Encoded,
    Stories,
    Story,
    chain,
    encode,
    make_batch,
    make_vocabulary,
    prefix,
    read_task,
    rename,
    word_groups,
)
from tasks.dnc_babi.presets import PRESETS
from tasks.errors import require
from tasks.task import Batch, Task

SPLIT_SEED = 0
LARGEST_ERROR = 0.05
REPLACING = 1
"""The task whose answers stay right where stories are told in a row: later places replace earlier ones."""
LINKS = 4
SHOWN = 5
"""Words that an error names."""


class DncBabi(Task[BabiConfig]):
    """Read stories word by word and answer their questions."""

    name = "dnc_babi"
    config_class = BabiConfig
    presets = PRESETS
    score = "accuracy"
    curves = ("loss", "accuracy")

    @cached_property
    def _read(self) -> dict[tuple[int, str], list[Story]]:
        tasks, collection = self.config.questions, self.config.collection
        return {
            (task, split): read_task(self.data_dir, collection, task, split)
            for task in tasks
            for split in ("train", "test")
        }

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Word numbers, from the training and the test files of the tasks of this run."""
        return make_vocabulary([story for stories in self._read.values() for story in stories])

    @cached_property
    def _split(self) -> tuple[list[Encoded], list[Encoded]]:
        """Training and validation stories; every task gives the same share to both."""
        generator = torch.Generator().manual_seed(SPLIT_SEED)
        longest = self.config.longest or max(map(len, (s.words for s in self._all("train"))))
        trained, held_out = [], []
        for task in self.config.questions:
            stories = self._read[task, "train"]
            size = max(1, round(len(stories) * self.config.validation))
            order = torch.randperm(len(stories), generator=generator).tolist()
            held_out += [encode(stories[i], self.vocabulary) for i in order[:size]]
            kept = [stories[i] for i in order[size:] if len(stories[i].words) <= longest]
            trained += [encode(story, self.vocabulary) for story in kept]
        require(bool(trained), "longest", "leave a story to train on", self.config.longest)
        return trained, held_out

    def _all(self, split: str) -> list[Story]:
        return [story for (_, name), stories in self._read.items() for story in stories if name == split]

    def make_curriculum(self) -> Curriculum | None:
        c = self.config
        if not c.curriculum:
            return None
        most = max(int(story.questions[-1]) + 1 for story in self._split[0])
        goal = {"accuracy": c.curriculum_goal}
        return Curriculum(range(1, most + 1), every=c.curriculum_every, at_least=goal)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"words": tuple(self.vocabulary)}

    def check_data(self, settings: Mapping[str, Any]) -> None:
        """The vocabulary must be that of the run: every word has its number in the model."""
        words = settings.get("words")
        differing = sorted(self.vocabulary.keys() ^ words) if words else []
        shown = f"{len(differing)} others or missing: {', '.join(differing[:SHOWN])}"
        require(not differing, "data_dir", "hold the words that the checkpoint was trained on", shown, "babi")

    def build_model(self) -> nn.Module:
        self.check_data(vars(self.config))
        words = len(self.vocabulary)
        return self.config.build_model(words, words)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        trained = self._split[0]
        chosen = torch.randint(len(trained), (self.config.batch_size,), generator=generator)
        told = [trained[i] for i in chosen.tolist()]
        if self.curriculum:
            told = [prefix(story, self.curriculum.level) for story in told]
        if self.config.renaming:
            told = [rename(story, self._new_names(generator)) for story in told]
        stories = make_batch(told, len(self.vocabulary))
        if self.config.word_dropout:
            shown = torch.rand(stories.inputs.shape[:2], generator=generator) >= self.config.word_dropout
            shown.view(-1)[stories.dashes] = True
            stories = stories._replace(inputs=stories.inputs * shown[..., None])
        return stories

    @cached_property
    def _groups(self) -> list[Tensor]:
        return word_groups(self.vocabulary)

    def _new_names(self, generator: torch.Generator) -> Tensor:
        names = torch.arange(len(self.vocabulary))
        for group in self._groups:
            names[group] = group[torch.randperm(len(group), generator=generator)]
        return names

    def evaluation_batches(self) -> Iterator[Batch]:
        yield from self._batches(self._split[1])

    def beyond_batches(self) -> Mapping[str, Iterator[Batch]]:
        """The test file of every task and, of task 1, several test stories told in a row."""
        tests = {f"test_qa{task}": self._read[task, "test"] for task in self.config.questions}
        rows = chain(tests.get(f"test_qa{REPLACING}", []), LINKS)
        if rows:
            tests[f"test_qa{REPLACING}_in_rows_of_{LINKS}"] = rows
        return {
            name: self._batches([encode(story, self.vocabulary) for story in stories])
            for name, stories in tests.items()
        }

    def _batches(self, stories: list[Encoded]) -> Iterator[Batch]:
        """All stories once, those of similar length together."""
        ordered = sorted(stories, key=lambda story: len(story.words))
        size = self.config.batch_size_test
        for start in range(0, len(ordered), size):
            yield make_batch(ordered[start : start + size], len(self.vocabulary))

    def evaluate_beyond(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
        """The figures of every test file, their mean error and the number of tasks failed (over 5 %)."""
        figures = super().evaluate_beyond(model, accelerator)
        errors = torch.stack([1 - figures[f"test_qa{task}/accuracy"] for task in self.config.questions])
        failed = (errors > LARGEST_ERROR).double().sum()
        return {**figures, "test/mean_error": errors.mean(), "test/failed_tasks": failed}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the answers' words; a question counts as right if all of its words are."""
        inputs, dashes, answers, questions, askers = batch
        logits = model(inputs).output.flatten(0, 1)[dashes]
        right = (logits.argmax(1) == answers).float()
        all_right = torch.ones(len(askers), device=right.device).scatter_reduce(0, questions, right, "amin")
        return F.cross_entropy(logits, answers), {"accuracy": all_right}

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        story = self._read[self.config.questions[0], "test"][0]
        batch = Stories(*make_batch([encode(story, self.vocabulary)], len(self.vocabulary)))
        return pictures.draw(model, batch.inputs, folder, words=story.words)
