"""What stands for CUDA graphs on the CPU: the recorded calls, run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ctm_fast import cuda_graphs


class Again:
    """A graph that calls again what it recorded, and writes the results where the first ones are."""

    replays = 0

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.gradients = run, torch.is_grad_enabled()
        self.found = run()

    def replay(self) -> None:
        Again.replays += 1
        with torch.inference_mode(False), torch.set_grad_enabled(self.gradients):
            found = self.run()
        with torch.inference_mode(False), torch.no_grad():
            for old, new in zip(self.found, found, strict=True):
                if old is not None:
                    old.copy_(new)


def recorder(_: torch.device) -> Callable[[Callable[[], Any]], tuple[Again, Any]]:
    def record(run: Callable[[], Any]) -> tuple[Again, Any]:
        graph = Again(run)
        return graph, graph.found

    return record


def warm_up(run: Callable[[], object], _: torch.device, times: int) -> None:
    for _ in range(times):
        run()


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``ctm_fast.capture`` take models on the CPU."""
    monkeypatch.setattr(cuda_graphs, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_graphs, "recorder", recorder)
    monkeypatch.setattr(cuda_graphs, "warm_up", warm_up)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
