"""Curricula: when a level begins, and that a resumed run is where it would have been."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from tasks import checkpointing, pictures
from tasks.config import TrainConfig
from tasks.curriculum import Curriculum
from tasks.errors import UserError
from tasks.pictures import training_curves
from tasks.setup import make_accelerator
from tasks.task import Batch, Task, batch_generator
from tasks.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ToyConfig(TrainConfig):
    goal: float = 0.5


class Toy(Task[ToyConfig]):
    """Halve an input whose scale is the level; the metric ``near`` reaches the goal after some steps."""

    name = "toy"
    config_class = ToyConfig
    presets = {"quick": ToyConfig()}  # noqa: RUF012
    score = "near"

    def make_curriculum(self) -> Curriculum:
        return Curriculum(range(1, 6), every=4, at_least={"near": self.config.goal})

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        assert self.curriculum is not None
        level = torch.full((self.config.batch_size, 1), float(self.curriculum.level))
        return level * torch.rand(self.config.batch_size, 1, generator=generator), level

    def evaluation_batches(self) -> Iterator[Batch]:
        yield torch.ones(2, 1), torch.full((2, 1), 5.0)

    def beyond_batches(self) -> dict[str, list[Batch]]:
        return {"larger": [(torch.full((2, 1), 8.0), torch.full((2, 1), 8.0))]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        values, level = batch
        error = model(values) - values / 2
        return error.square().mean(), {
            "near": (error.abs() < 0.3 * level)[:, 0].float(),
            "scale": level[:, 0],
        }


CONFIG = ToyConfig(
    training_iterations=60, batch_size=8, lr=0.1, warmup_steps=0, scheduler_type="none", log_every=5,
    track_every=10, save_every=7, threads=1, cpu=True,
)  # fmt: skip


def fed(curriculum: Curriculum, values: list[float], metric: str = "accuracy") -> list[int]:
    """The level after every step whose metric is the next of `values`."""
    levels = []
    for step, value in enumerate(values, 1):
        curriculum.add({metric: torch.tensor([value, value]), "unused": torch.zeros(2)})
        curriculum.update(step)
        levels.append(curriculum.level)
    return levels


def train(config: ToyConfig, folder: Path, resume: bool = False) -> Trainer:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(Toy(config), folder, resume)
    trainer.fit()
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "train.csv").read_text().splitlines()))


def test_level_rises_on_the_mean_since_the_last_decision() -> None:
    curriculum = Curriculum([2, 4, 6], every=2, at_least={"accuracy": 0.9})
    assert fed(curriculum, [1.0, 0.7, 0.8, 1.0, 0.0, 1.0, 1.0, 1.0]) == [2, 2, 2, 4, 4, 4, 4, 6]
    assert curriculum.finished


def test_level_neither_falls_nor_passes_the_last() -> None:
    curriculum = Curriculum(range(1, 3), every=1, at_least={"accuracy": 0.5})
    assert fed(curriculum, [1.0, 1.0, 0.0, 1.0]) == [2, 2, 2, 2]


def test_all_goals_must_be_reached() -> None:
    curriculum = Curriculum(range(3), every=1, at_least={"accuracy": 0.9}, at_most={"loss": 0.1})
    for step, (accuracy, loss, level) in enumerate([(1.0, 0.2, 0), (0.8, 0.05, 0), (0.95, 0.05, 1)], 1):
        curriculum.add({"accuracy": torch.tensor([accuracy]), "loss": torch.tensor(loss)})
        curriculum.update(step)
        assert curriculum.level == level


def test_state_continues_within_a_window() -> None:
    one, two = (Curriculum(range(3), every=4, at_least={"accuracy": 0.5}) for _ in range(2))
    fed(one, [1.0] * 4 + [0.0, 1.0])
    two.load_state_dict(one.state_dict(), CPU)
    for curriculum in (one, two):
        for step, value in ((7, 0.0), (8, 1.0)):
            curriculum.add({"accuracy": torch.tensor([value])})
            curriculum.update(step)
    assert one.level == two.level == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "levels must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"at_least": {}}, "goals must be at least 1, got 0"),
    ],
    ids=["levels", "every", "goals"],
)
def test_impossible_curriculum_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Curriculum: {message}"):
        Curriculum(**{"levels": [1], "every": 1, "at_least": {"accuracy": 1.0}} | changes)


def test_training_moves_through_the_levels_and_logs_them(tmp_path: Path) -> None:
    trainer = train(CONFIG, tmp_path)
    levels = [float(row["level"]) for row in rows(tmp_path)]
    assert levels == sorted(levels)
    assert levels[0] < levels[-1] == 5 == trainer.task.curriculum.level
    assert [float(row["scale"]) for row in rows(tmp_path)][-1] == 5


def test_batches_are_of_the_level_at_their_step_with_and_without_workers(tmp_path: Path) -> None:
    """Workers prepare batches before the level they belong to is known."""
    train(CONFIG, tmp_path / "none")
    train(replace(CONFIG, num_workers=2), tmp_path / "two")
    assert rows(tmp_path / "none") == rows(tmp_path / "two")


@pytest.mark.parametrize("killed_at", [9, 14, 20], ids=lambda n: f"killed_at_{n}")
def test_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    train(CONFIG, tmp_path / "whole")
    update = Trainer._update

    def dying(self: Trainer, batch: Any) -> None:
        if self.step == killed_at:
            raise MemoryError("killed")
        update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", dying)
        with pytest.raises(MemoryError):
            train(CONFIG, tmp_path / "resumed")
    train(CONFIG, tmp_path / "resumed", resume=True)
    assert rows(tmp_path / "whole") == rows(tmp_path / "resumed")
    whole, resumed = (checkpointing.load(tmp_path / name) for name in ("whole", "resumed"))
    assert whole["curriculum_state_dict"] == resumed["curriculum_state_dict"]
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, resumed["model_state_dict"][name])


def test_resume_needs_the_curriculum(tmp_path: Path) -> None:
    train(CONFIG, tmp_path)
    state = checkpointing.load(tmp_path)
    del state["curriculum_state_dict"]
    checkpointing.save(state, tmp_path / checkpointing.LAST)
    with pytest.raises(UserError, match=r"resume: checkpoint must hold .'curriculum_state_dict'., got"):
        Trainer(Toy(CONFIG), tmp_path, resume=True)


def test_harder_sets_are_scored_by_name() -> None:
    task, accelerator = Toy(CONFIG), make_accelerator(CONFIG)
    scores = task.evaluate_beyond(task.build_model(), accelerator)
    assert scores.keys() == {"larger/loss", "larger/near", "larger/scale"}
    assert scores["larger/scale"].item() == 8


def test_training_curves_show_what_was_logged(tmp_path: Path) -> None:
    train(CONFIG, tmp_path)
    [path] = training_curves(tmp_path, ("near", "absent"), tmp_path / "training.png")
    assert np.ptp(imread(path)) > 0.5
    assert training_curves(tmp_path / "elsewhere", ("near",), tmp_path / "none.png") == []
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(("points", "marker"), [(1, "o"), (30, "None")], ids=["short", "long"])
def test_points_of_a_short_training_curve_show(
    points: int, marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single point has no line."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure) or path)
    rows = "".join(f"{step},0.5\n" for step in range(points))
    (tmp_path / "train.csv").write_text(f"iteration,near\n{rows}")
    training_curves(tmp_path, ("near",), tmp_path / "training.png")
    assert [line.get_marker() for line in figures[0].axes[0].lines] == [marker]


def test_batch_depends_on_step_and_level_only() -> None:
    task = Toy(CONFIG)
    first = task.batch(3, batch_generator(0, 3))[0]
    task.curriculum.index = 2
    torch.testing.assert_close(task.batch(3, batch_generator(0, 3))[0], 3 * first)
