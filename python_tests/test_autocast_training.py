"""CTMs under autocast: neuron-level models stay in fused kernels, and training ends where float32 ends."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from foreign_cases import pair, tensors

from ctm_fast.loop import run
from tasks.parity.config import PRESETS
from tasks.parity.task import Parity
from tasks.train import Trainer

SMALL = replace(
    PRESETS["quick"],
    parity_sequence_length=6,
    held_out=0.0,
    iterations=8,
    memory_length=6,
    d_model=64,
    d_input=32,
    heads=4,
    n_test_batches=2,
    training_iterations=600,
    lr=2e-3,
    warmup_steps=100,
    track_every=600,
    save_every=600,
    cpu=True,
)


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Lets a process make an Accelerator of another precision, which it refuses otherwise."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize(("name", "step"), [("base", "nlm_tick"), ("sort", "nlm_tick"), ("rl", "nlm_rows")])
def test_neuron_level_models_stay_fused_in_float32(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, fast, inputs = pair(name)
    fast(*inputs)
    calls: list[torch.Tensor] = []
    own = getattr(run, step)

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(own(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(run, step, note)
    with torch.autocast("cpu", torch.bfloat16):
        found, truth = tensors(fast(*inputs)), tensors(original(*inputs))
    assert len(calls) == fast.iterations and all(z.dtype == torch.float32 for z in calls)
    assert [y.dtype for y in found.values()] == [y.dtype for y in truth.values()]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "other_precision")
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_parity_is_learnt(mixed_precision: str, tmp_path: Path) -> None:
    task = Parity(replace(SMALL, mixed_precision=mixed_precision))
    assert Trainer(task, tmp_path / "run").fit()
    with (tmp_path / "run" / "test.csv").open() as lines:
        *_, last = csv.DictReader(lines)
    assert float(last["accuracy_most_certain"]) > 0.97
