"""What stands for ``torch.cuda`` in the tests of the GPU benchmark: everything runs on the CPU, its clock is given."""

from __future__ import annotations

import argparse
import itertools
from types import SimpleNamespace

from graph_stand_in import recorder, warm_up
from test_bench_rows import CONFIGS

import ctm_fast
from bench import gpu, gpu_run, models, nlm, table
from bench.gpu import Gpu
from bench.row import Row, Targets
from bench.timing import Effort
from ctm_fast import cuda_graphs

EFFORT = Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0)
SIZE = nlm.Size(D=16, M=3, H=2, B=2)
TARGETS = Targets(reference=2, compiled=1.5, graph=2, floor=0.5, peak=1 / 8)


class Event:
    def __init__(self, cuda, enable_timing):
        assert enable_timing
        self.cuda, self.time = cuda, None

    def record(self):
        self.time = next(self.cuda.ticks)

    def synchronize(self):
        assert self.time is not None

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


class FakeCuda:
    """An event is recorded every second; memory grows by what :meth:`allocate` says."""

    def __init__(self):
        self.ticks = itertools.count()
        self.allocated, self.peak = 0, 0
        self.called = []

    def Event(self, enable_timing=False):  # noqa: N802 (torch's name)
        return Event(self, enable_timing)

    def synchronize(self):
        self.called.append("synchronize")

    def empty_cache(self):
        self.called.append("empty")

    def allocate(self, count):
        self.allocated += count
        self.peak = max(self.peak, self.allocated)

    def memory_allocated(self):
        return self.allocated

    def memory_reserved(self):
        return self.allocated

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def max_memory_allocated(self):
        return self.peak

    def current_device(self):
        return 0

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake H1", total_memory=10**11, multi_processor_count=7)


def fake_gpu():
    """A :class:`Gpu` on the CPU whose events lie a second apart and whose wall clock moves by two."""
    return Gpu("cpu", FakeCuda(), itertools.count(step=2).__next__)


def tick_row(**options):
    return Row("nlm-tick", "tiny", ("nlm",), lambda: nlm.tick_case(SIZE), TARGETS, **options)


def model_row(training, config=CONFIGS[0], **options):
    kind = "train" if training else "infer"
    return Row(kind, "tiny", (), lambda: models.case(config, config.batch, training), TARGETS, **options)


def options(**changed):
    found = {
        "machine": None,
        "out": None,
        "quick": False,
        "seed": 3,
        "budget": None,
        "no_compile": True,
        "resume": False,
    }
    return argparse.Namespace(**{**found, **changed})


def little_work(monkeypatch):
    """Let rows take no time, and nothing be captured."""
    monkeypatch.setattr(gpu.Gpu, "rates", lambda self: {"sgemm": 1e9, "copy": 1e9})
    monkeypatch.setattr(gpu, "FLUSH_BYTES", 64)
    monkeypatch.setattr(cuda_graphs, "recorder", recorder)
    monkeypatch.setattr(cuda_graphs, "warm_up", warm_up)
    monkeypatch.setattr(nlm, "TICKS", 4)
    monkeypatch.setattr(gpu_run, "FULL", EFFORT)
    monkeypatch.setattr(gpu_run, "QUICK", EFFORT)
    monkeypatch.setattr(ctm_fast, "capture", None, raising=False)


def tiny_rows(monkeypatch):
    """Two rows of a GPU that take no time, which the command line finds."""
    rows = [tick_row(quick=True), model_row(False, graphs=True)]
    monkeypatch.setattr(table, "gpu_rows", lambda: rows)
    return rows
