"""What an experiment says about itself; everything else is the shared loop's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from tasks.config import TrainConfig
from tasks.curriculum import Curriculum
from tasks.logs import Meter

Config = TypeVar("Config", bound=TrainConfig)
Batch = tuple[Tensor, ...]
EVALUATION_SEED = 2**32  # above every seed of a configuration


class Task(ABC, Generic[Config]):
    """One experiment: data, model, loss, score, pictures. See :mod:`tasks` for the contract."""

    name: ClassVar[str]
    config_class: ClassVar[type[TrainConfig]]
    presets: ClassVar[Mapping[str, TrainConfig]]
    score: ClassVar[str]
    curves: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config, data_dir: Path | None = None) -> None:
        self.config = config
        self.data_dir = data_dir
        self.curriculum = self.make_curriculum()

    def make_curriculum(self) -> Curriculum | None:
        """The curriculum whose level :meth:`batch` reads from ``self.curriculum``; None for none."""
        return None

    def settings(self) -> dict[str, Any]:
        """What a checkpoint keeps of a run: all of its configuration."""
        return asdict(self.config)

    def check_data(self, settings: Mapping[str, Any]) -> None:
        """Raise ``UserError`` unless the data are those of a run that kept these ``settings``."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A fresh model, drawn from the global generators; lazy parameters are allowed."""

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """Training batch of ``step`` on the CPU, inputs first; everything random comes from ``generator``.

        Beside its arguments it may depend on the level of the curriculum.
        """

    @abstractmethod
    def evaluation_batches(self) -> Iterable[Batch]:
        """The fixed evaluation set."""

    def beyond_batches(self) -> Mapping[str, Iterable[Batch]]:
        """Fixed sets that are harder than training, by name; only the command ``evaluate`` runs them."""
        return {}

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and metrics, each (B, ...) with one row per sample."""

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
        """Means of the loss and of all metrics over the evaluation set, shared out over the processes."""
        return self.means(model, accelerator, self.evaluation_batches())

    def evaluate_beyond(self, model: nn.Module, accelerator: Accelerator) -> dict[str, Tensor]:
        """The same for every set of :meth:`beyond_batches`, as ``set/metric``."""
        return {
            f"{name}/{metric}": mean
            for name, batches in self.beyond_batches().items()
            for metric, mean in self.means(model, accelerator, batches).items()
        }

    @torch.no_grad()
    def means(
        self, model: nn.Module, accelerator: Accelerator, batches: Iterable[Batch]
    ) -> dict[str, Tensor]:
        """Means of the loss and of all metrics over ``batches``, shared out over the processes."""
        was_training = model.training
        model.eval()
        meter = Meter()
        for index, batch in enumerate(batches):
            if index % accelerator.num_processes == accelerator.process_index:
                loss, metrics = self.loss(model, send_to_device(batch, accelerator.device))
                meter.add({"loss": loss, **metrics})
        model.train(was_training)
        meter.gather()
        return meter.take()

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        """Draw the experiment's pictures of a trained model into ``folder``; returns their files."""
        return []


def batch_generator(seed: int, step: int, process: int = 0) -> torch.Generator:
    """Generator of one training batch, a pure function of its arguments: data has no position to restore."""
    entropy = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
