"""Configuration and presets of the graph experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from tasks.config import require_positive
from tasks.dnc.config import DncConfig, paper_settings
from tasks.dnc_graph.lessons import LESSONS
from tasks.errors import require

Question = Literal["traversal", "shortest_path", "inference"]


@dataclass(frozen=True, kw_only=True)
class GraphConfig(DncConfig):
    """Model, question and curriculum of one graph run."""

    question: Annotated[Question, tyro.conf.arg(name="task")] = "traversal"
    """What is asked about a graph."""
    lessons: int | None = None
    """Lessons of the curriculum that are used, the easiest first; None uses all."""
    curriculum: bool = True
    """Start with the first lesson; without, only the last lesson is trained on."""
    curriculum_goal: float = 0.9
    """Share of graphs answered as the question demands at which the next lesson begins."""
    curriculum_every: int = 200
    """Steps between two decisions."""
    earlier: float = 0.1
    """Share of training batches from earlier lessons."""
    guidance: float = 0.8
    """DAGGER's beta: how often a training walk takes the optimal edge instead of the answer's (shortest path)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.question in LESSONS, "task", f"be one of {', '.join(LESSONS)}", self.question)
        require_positive(self, "curriculum_every")
        known, used = len(LESSONS[self.question]), self.lessons
        require(used is None or 1 <= used <= known, "lessons", f"be None or lie in [1, {known}]", used)
        triples = math.ceil(LESSONS[self.question][(used or known) - 1].triples)
        must = f"be at least {triples}, one for each triple of a mean graph of the last lesson"
        require(self.slots >= triples, "slots", must, self.slots)
        require(0 < self.curriculum_goal <= 1, "curriculum_goal", "lie in (0, 1]", self.curriculum_goal)
        require(0 <= self.earlier < 1, "earlier", "lie in [0, 1)", self.earlier)
        require(0 <= self.guidance <= 1, "guidance", "lie in [0, 1]", self.guidance)


def _paper(question: Question, **settings: Any) -> GraphConfig:
    long: dict[str, Any] = {"training_iterations": 1_000_000, "track_every": 10_000, "save_every": 10_000}
    model = paper_settings(f"dnc_{question}")
    return GraphConfig(question=question, batch_size_test=32, **model, **long, **settings)


PRESETS: dict[str, GraphConfig] = {
    "quick": GraphConfig(
        lessons=2,
        controller_size=64,
        slots=32,
        width=32,
        read_heads=2,
        batch_size=16,
        batch_size_test=64,
        n_test_batches=4,
        lr=1e-3,
        warmup_steps=100,
        gradient_clipping=10.0,
        training_iterations=5000,
        track_every=500,
        save_every=500,
        log_every=50,
        threads=1,
    ),
    "paper": _paper("traversal", batch_size=2, lr=1e-5),
    "paper_shortest_path": _paper("shortest_path", batch_size=1, lr=3e-6, curriculum_goal=0.8, earlier=0.0),
    "paper_inference": _paper("inference", batch_size=32, lr=1e-5),
}
