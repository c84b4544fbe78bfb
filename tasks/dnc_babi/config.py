"""Configuration and presets of the bAbI experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from tasks.config import require_positive
from tasks.dnc.config import DncConfig
from tasks.dnc_babi.data import NAMED_BY_SENSE, NAMES
from tasks.errors import require

ALL = tuple(range(1, len(NAMES) + 1))


@dataclass(frozen=True, kw_only=True)
class BabiConfig(DncConfig):
    """Model and data of one bAbI run."""

    collection: Literal["en", "en-10k"] = "en"
    """1,000 or 10,000 training questions per task."""
    questions: tuple[int, ...] = ALL
    """bAbI's tasks to learn together, of 1 to 20."""
    validation: float = 0.1
    """Share of the training stories that is held out for choosing the best checkpoint."""
    longest: int | None = None
    """Leave training stories of more words out."""
    word_dropout: float = 0.0
    """Chance of hiding a word of a training story from the network."""
    renaming: bool = False
    """Exchange people with people and places with places at random, in every training story anew."""
    curriculum: bool = False
    """Train on stories cut after their first question, then after the second, and so on."""
    curriculum_goal: float = 0.9
    """Share of questions answered right at which one more is added."""
    curriculum_every: int = 50
    """Steps between two decisions."""
    words: tyro.conf.Suppress[tuple[str, ...] | None] = None
    """The vocabulary of the data that were trained on, which a run keeps in its checkpoints; None before that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.slots >= 2, "slots", "be at least 2: one holds no two facts apart", self.slots)
        known = self.questions and set(self.questions) <= set(ALL)
        require(bool(known), "questions", "be some of 1 to 20", self.questions)
        once = len(set(self.questions)) == len(self.questions)
        require(once, "questions", "name every task once", self.questions)
        require(0 < self.validation < 1, "validation", "lie in (0, 1)", self.validation)
        require(self.longest is None or self.longest >= 1, "longest", "be at least 1 or None", self.longest)
        require_positive(self, "curriculum_every")
        require(0 < self.curriculum_goal <= 1, "curriculum_goal", "lie in (0, 1]", self.curriculum_goal)
        require(0 <= self.word_dropout < 1, "word_dropout", "lie in [0, 1)", self.word_dropout)
        sensible = not (self.renaming and NAMED_BY_SENSE in self.questions)
        rule = f"be off with task {NAMED_BY_SENSE}, whose places follow from what people want"
        require(sensible, "renaming", rule, self.renaming)
