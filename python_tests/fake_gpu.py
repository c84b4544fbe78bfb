"""What stands for ``torch.cuda`` in the tests of the GPU benchmark: everything runs on the CPU, its clock is given."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from bench.gpu import Gpu


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
