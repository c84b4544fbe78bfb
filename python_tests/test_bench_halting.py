"""Benchmark rows of adaptive computation time at tiny sizes: every provider runs, and all agree."""

from __future__ import annotations

import pytest
import torch

from bench import halting, machine
from bench.baselines import halting as plain
from bench.row import REFERENCE, STRONG, Row, measure
from bench.timing import Effort
from ctm_fast.models import AdaptiveLSTM, AdaptiveRNN

EFFORT = Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("config", [halting.PARITY, halting.LOGIC], ids=lambda c: c.preset)
@pytest.mark.parametrize("forward", [halting.own, halting.timestep])
def test_rows_measure(
    forward: halting.Forward, config: halting.Config, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "rates", lambda: {"sgemm": 1e9, "copy": 1e9})
    tiny = config._replace(batch=3)
    row = Row("kind", "config", (), lambda: halting.case(tiny, training, forward, hidden_size=8))
    result = measure(row, 0, EFFORT)
    assert set(result["ratios"]) == {REFERENCE, STRONG}
    assert bool(result["kept"]) == training


@pytest.mark.parametrize("cls", [AdaptiveRNN, AdaptiveLSTM])
@pytest.mark.parametrize("run", [plain.usual, plain.strong])
def test_baselines_compute_the_model(cls: type[plain.Model], run: halting.Forward) -> None:
    model = cls(3, 2, 5, halting_bias=-1.0, max_steps=6).double()
    x = torch.randn(4, 7, 3).double()
    results = []
    for output, ponder in (run(model, x), halting.own(model, x)):
        loss = (output * torch.cos(torch.arange(output.numel())).view(output.shape)).sum() + ponder.sum()
        results.append([output, ponder, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*results)


def test_products_of_finished_samples_are_not_counted() -> None:
    torch.manual_seed(0)
    some = halting.Problem(halting.PARITY._replace(batch=7), False)
    shares = [
        halting.Problem(halting.PARITY._replace(batch=n), False, halting_bias=9.0).needed() for n in (1, 7)
    ]
    assert shares == [1.0, 1.0]  # all halt after one substep
    ponder = halting.own(some.model, some.inputs)[1]
    steps = ponder.ceil() - 1
    assert steps.mean() / steps.max() <= some.needed() < 1.0
