"""Curricula: a level of difficulty that rises while training goes well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from tasks.logs import Meter


def levels_up_to(last: int, start: int, step: int) -> list[int]:
    """Levels from ``start`` on by ``step``, and ``last`` however far that is from the one before."""
    return [*range(start, last, step), last]


class Curriculum:
    """The level that training batches are made for; it rises on the training metrics and never falls.

    Every ``every`` steps the means of the training metrics over just these steps are compared with the goals.
    Where all of them are reached the next level begins, and the means start afresh either way.

    Args:
        levels: the levels in order, such as ``range(2, 21, 2)``.
        every: steps between two decisions, the only time at which the device is waited for.
        at_least: goals from below by metric, such as ``{"accuracy": 0.99}``.
        at_most: goals from above by metric, such as ``{"loss": 0.01}``.

    Raises:
        ValueError: no level, no step between decisions or no goal.
    """

    def __init__(
        self,
        levels: Sequence[int],
        *,
        every: int,
        at_least: Mapping[str, float],
        at_most: Mapping[str, float] | None = None,
    ) -> None:
        self.levels, self.every = levels, every
        self.at_least, self.at_most = dict(at_least), dict(at_most or {})
        for name, got in (("levels", len(levels)), ("every", every), ("goals", len(self._goals))):
            if got < 1:
                raise ValueError(f"Curriculum: {name} must be at least 1, got {got}")
        self.index = 0
        self.meter = Meter()

    @property
    def _goals(self) -> set[str]:
        return self.at_least.keys() | self.at_most.keys()

    @property
    def level(self) -> int:
        """The level now."""
        return self.levels[self.index]

    @property
    def finished(self) -> bool:
        """Whether the last level has begun."""
        return self.index == len(self.levels) - 1

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in the metrics of one training step, as the loop's meters do."""
        if not self.finished:
            self.meter.add({name: metrics[name] for name in self._goals})

    def update(self, step: int) -> None:
        """Decide after ``step`` steps whether the next level begins; all processes decide alike."""
        if self.finished or step % self.every:
            return
        if PartialState().num_processes > 1:
            self.meter.gather()
        means = {name: mean.mean().item() for name, mean in self.meter.take().items()}
        if all(means[name] >= goal for name, goal in self.at_least.items()) and all(
            means[name] <= goal for name, goal in self.at_most.items()
        ):
            self.index += 1

    def state_dict(self) -> dict[str, Any]:
        """Level and means so far: what an exact resume needs."""
        return {"index": self.index, "meter": self.meter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from :meth:`state_dict`."""
        self.index = state["index"]
        self.meter.load_state_dict(state["meter"], device)
