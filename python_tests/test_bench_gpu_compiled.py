"""The processes of the GPU benchmark that compile: what they print, when they are stopped, where results go."""

from __future__ import annotations

import io
import itertools
import json

import pytest
import torch
from fake_gpu import EFFORT, fake_gpu, little_work, options, tick_row, tiny_rows

from bench import gpu_compiled, gpu_render, gpu_row, gpu_run, results
from bench.row import Provider, inferred


@pytest.fixture(autouse=True)
def _little_work(monkeypatch):
    little_work(monkeypatch)


@pytest.fixture
def tiny(monkeypatch):
    return tiny_rows(monkeypatch)


def compiled_in_a_process(row, monkeypatch, capsys, mode="reduce-overhead"):
    """What the process prints for a row, run in this one with an eager stand-in for the compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    assert gpu_compiled.main([row.name, "0", mode], fake_gpu()) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_process_compiles_then_times(tiny, tmp_path, capsys, monkeypatch):
    first, second = compiled_in_a_process(tiny[0], monkeypatch, capsys)
    assert first == {"seconds": 0.0}
    assert second["ratio"]["median"] == 1.0
    row = gpu_row.measure(tiny[0], 0, EFFORT, fake_gpu())
    for mode in gpu_compiled.MODES:
        gpu_compiled.merge(row, mode, {**first, **second})
    assert "1.5x compiled MISSED" in gpu_render.targets(row)
    assert row["compile"] == {mode: {"seconds": 0.0} for mode in gpu_compiled.MODES}


def stand_in_processes(monkeypatch, code):
    """Start this code, with the number of the process, instead of what compiles."""
    popen, numbers = gpu_compiled.subprocess.Popen, itertools.count()
    monkeypatch.setattr(
        gpu_compiled.subprocess,
        "Popen",
        lambda arguments, **given: popen([arguments[0], "-c", code, str(next(numbers))], **given),
    )


PRINTS = "import sys, time; print('noise'); print('{\"seconds\": 2.5}', flush=True); assert input() == 'go'; "


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (PRINTS + "print('{\"hot\": 1}')", {"seconds": 2.5, "hot": 1}),
        (PRINTS + "raise SystemExit('lost')", {"seconds": 2.5, "failed": "not measured: lost"}),
        ("raise SystemExit('no compiler')", {"failed": "not measured: no compiler"}),
        ("import time; time.sleep(60)", {"failed": "not compiled in 1 s"}),
    ],
    ids=["compiled", "failed later", "failed", "too slow"],
)
def test_processes_that_compile(monkeypatch, code, expected):
    stand_in_processes(monkeypatch, code)
    limit = 1.0 if "sleep" in code else 30.0
    found = list(gpu_compiled.outcomes([tick_row()], 0, limit, lambda: 30.0))
    assert [(mode, result) for _, mode, result in found] == [(mode, expected) for mode in gpu_compiled.MODES]


def test_a_spent_budget_stops_timing(monkeypatch):
    """What has compiled is timed while the clock allows it, and stopped in the middle where it does not."""
    stand_in_processes(
        monkeypatch, PRINTS + "print('{\"hot\": 1}') if sys.argv[1] == '0' else time.sleep(60)"
    )
    clock = iter([30.0, 0.5, 0.0, -3.0])
    rows = [tick_row(), tick_row()]
    found = list(gpu_compiled.outcomes(rows, 0, 30.0, lambda: next(clock)))
    spent = {"seconds": 2.5, "failed": "not measured: the budget is spent"}
    assert [result for _, _, result in found] == [{"seconds": 2.5, "hot": 1}, spent, spent, spent]


def test_compiled_rows_are_merged_and_written(tiny, tmp_path, monkeypatch):
    rows = [tick_row(compiles=True), tiny[1]]
    ratio = {"median": 3.0, "low": 2.0, "high": 4.0, "pairs": 3}
    outcome = {"seconds": 9.0, "ratio": ratio, "hot": 0.75, "error": 1e-7}
    monkeypatch.setattr(
        gpu_compiled,
        "outcomes",
        lambda wanted, *_: ((row, m, outcome) for row in wanted for m in gpu_compiled.MODES),
    )
    path = tmp_path / "gpu.json"
    assert gpu_run.run(rows, options(out=path, no_compile=False), fake_gpu()) == 0
    (first, second) = results.read(path)["rows"]
    assert first["ratios"]["torch.compile default"] == ratio
    assert "compile" not in second
    assert "1.5x compiled met" in gpu_render.targets(first)


def test_each_call_of_a_compiled_model_is_a_step(monkeypatch):
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    provider = gpu_compiled.stepped(Provider(lambda: 1, inferred(list).check))
    provider.run()
    provider.check()
    assert len(begun) == 2
