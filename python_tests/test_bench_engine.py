"""Latencies of the engine: quantiles, deadlines, baselines that were exported, the command and its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench import (
    compiling,
    engine,
    engine_latency,
    engine_render,
    engine_run,
    exporting,
    machine,
    models,
    render,
    report,
    results,
    timing,
)
from bench.row import OWN, REFERENCE, STRONG, agreed, measure
from bench.timing import Effort

EFFORT = Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0)
SMALL = {"iterations": 3, "d_model": 16, "memory_length": 4, "memory_hidden_dims": 2}
BASE = models.Config(
    "tiny", "cifar10_ctm", ("tiny",), 2, models.CIFAR10.loss, (6, 2, 2),
    {**SMALL, "d_input": 16, "n_synch_out": 4, "n_synch_action": 3, "synapse_depth": 2},
)  # fmt: skip
POLE = models.Config(
    "pole", "cartpole_ctm_2", ("rl",), 2, models.CARTPOLE.loss, (), {**SMALL, "iterations": 2}
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(machine, "rates", lambda: {"sgemm": 1e9, "copy": 1e9})
    monkeypatch.setattr(engine, "AIMED", ((BASE, engine.NO_TARGETS), (POLE, engine.NO_TARGETS)))
    monkeypatch.setattr(engine_run, "AIMED", engine.AIMED)
    monkeypatch.setattr(engine_run, "FULL", EFFORT)
    monkeypatch.setattr(compiling, "tried", lambda module, *_: {"failed": f"not compiled: {module}"})
    monkeypatch.setattr(
        timing.gc, "collect", lambda: 0
    )  # over everything that the suite imported, many times
    compiling._first.cache_clear()
    yield
    compiling._first.cache_clear()


@pytest.mark.parametrize("config", [BASE, POLE], ids=lambda c: c.title)
def test_rows_measure_what_was_exported_too(config, tiny):
    (row,) = (row for row in engine.rows() if row.config == f"{config.title} B1")
    found = measure(
        row, 0, EFFORT, None, lambda case: {"exported": case.exported.provider(case.exported.module)}
    )
    assert set(found["ratios"]) == {REFERENCE, STRONG, "exported"}
    assert found["errors"][OWN] < 1e-4 and found["errors"]["exported"] < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the exporters
@pytest.mark.parametrize("name", exporting.LOADERS)
@pytest.mark.parametrize("config", [BASE, POLE], ids=lambda c: c.title)
def test_exported_models_agree(config, name, tmp_path):
    if name == exporting.ONNX:
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    case = engine.case(config, 1)
    file = str(tmp_path / f"model.{exporting.SUFFIXES[name]}")
    with torch.no_grad():
        exporting.EXPORTERS[name](case.exported._replace(module=case.exported.module.eval()), file)
    provider = case.exported.provider(exporting.LOADERS[name](file))
    assert agreed(name, case.providers[REFERENCE].check(), provider.check()) < 1e-4


def test_what_was_exported_is_kept(tmp_path, monkeypatch):
    tried = []

    def outcome(module, arguments, limit):
        tried.append(arguments)
        return {"failed": "not compiled in 120 s"} if arguments[0] == exporting.AOT else {"seconds": 3.0}

    monkeypatch.setattr(compiling, "tried", outcome)
    (row,) = (row for row in engine.rows() if row.config == "cifar10 B1")
    first, second = (exporting.outcomes(row, 0, tmp_path / "new") for _ in range(2))
    assert first == second and len(tried) == 2
    assert first[exporting.AOT] == {"failed": "not compiled in 120 s"}
    assert first[exporting.ONNX]["file"].endswith("engine-cifar10-b1-0.onnx")


@pytest.mark.parametrize(("calls", "has"), [(9_999, False), (10_000, True)])
def test_the_last_quantile_needs_calls(calls, has):
    found = engine_latency.microseconds(np.linspace(0, 1e-3, calls))
    assert ("p99.9" in found) == has
    assert found["p50"] == pytest.approx(500) and found["max"] == pytest.approx(1000)


class Clock:
    """Time that passes when somebody sleeps, looks, or computes."""

    def __init__(self, computing, oversleeping):
        self.time, self.computing, self.oversleeping = 0.0, iter(computing), iter(oversleeping)

    def now(self):
        self.time += 1e-5
        return self.time

    def sleep(self, seconds):
        self.time += seconds + next(self.oversleeping)

    def run(self):
        self.time += next(self.computing)


def test_deadlines():
    # In time; computes too long, so that two periods pass by and the next begins late; in time; wakes late.
    clock = Clock([0.004, 0.034, 0.004, 0.006, 0.004], [0.0, 0.0, 0.0, 0.007, 0.0])
    found = engine_latency.paced(clock.run, 100, 0.07, clock.now, clock.sleep)
    assert {key: found[key] for key in ("calls", "misses", "late", "skipped")} == {
        "calls": 5, "misses": 2, "late": 1, "skipped": 2,
    }  # fmt: skip
    assert found["compute"]["max"] == pytest.approx(34_000, abs=100)
    assert found["response"]["p50"] == pytest.approx(8_000, abs=100)
    assert found["wake"]["p50"] < 100


def test_a_real_loop_is_on_time():
    calls = []
    found = engine_latency.paced(lambda: calls.append(1), 200, 0.05)
    assert found["calls"] == len(calls) <= 10
    assert found["calls"] + found["skipped"] == 10


def test_fewer_calls_of_slow_models(monkeypatch):
    monkeypatch.setattr(engine_latency, "typical", lambda run: 0.05)
    assert engine_latency.calls_within(lambda: None, 20.0, 10_000) == 200
    assert engine_latency.calls_within(lambda: None, 1.0, 10_000) == 100
    assert engine_latency.calls_within(lambda: None, 1.0, 7) == 7


def test_command_writes_rows_and_latencies_and_report_draws_them(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting.outcomes, "__defaults__", (tmp_path / "exports",))
    path = tmp_path / "here.json"
    options = ["--calls", "5", "--paced", "pole", "--paced-seconds", "0.02", "--out", str(path)]
    for more in ([], ["--no-rows"]):
        assert engine_run.main([*options, *more]) == 0
    found = results.read(path)
    assert {row["name"] for row in found["rows"]} == {
        f"engine/{c} B{n}" for c in ("tiny", "pole") for n in (1, 16)
    }
    assert [x["name"] for x in found["latency"]] == ["engine/tiny B1", "engine/pole B1"]
    assert "paced" not in found["latency"][0] and found["latency"][1]["paced"][0]["rate"] == 10
    assert all(0 < x["narrow"]["int8"]["difference"] < 0.1 for x in found["latency"])
    assert "engine/pole B1: p50" in capsys.readouterr().out
    text = engine_render.markdown(found)
    assert len({line.count("|") for line in text.split("\n\n")[0].splitlines()}) == 1
    assert "| pole B1 |" in text and "not compiled: bench.exporting" in text and "| 10 Hz |" in text
    assert "engine/tiny B1" in render.markdown(found)
    readme = tmp_path / "README.md"
    names = (report.TABLE, report.GPU_TABLE, report.ENGINE_TABLE)
    readme.write_text("\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names))
    assert report.main([str(path), "--readme", str(readme), "--figure", str(tmp_path / "figure.png")]) == 0
    assert text in readme.read_text()


def test_prepare_only_compiles(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting.outcomes, "__defaults__", (tmp_path,))
    assert engine_run.main(["tiny", "--prepare"]) == 0
    assert "engine/tiny B1" in capsys.readouterr().out
    assert len([json.loads(x.read_text())["failed"] for x in tmp_path.glob("*.json")]) == 2


@pytest.mark.parametrize("options", [["nobody"], ["--calls", "0"], ["--paced", "nobody"]])
def test_bad_arguments(options, capsys):
    with pytest.raises(SystemExit):
        engine_run.main(options)
    assert "names must be titles or words of models" in capsys.readouterr().err
