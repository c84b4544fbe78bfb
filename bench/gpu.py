"""A GPU to measure on: events, memory, CUDA graphs, and what its own sgemm and copy reach.

Every use of ``torch.cuda`` goes through :class:`Gpu` or ``ctm_fast.cuda_graphs``: tests run the rest on the CPU.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import machine
from bench.row import Provider, inferred
from ctm_fast import cuda_graphs

GEMM_SIZE = 8192
COPY_BYTES = 2 * 2**30
FLUSH_BYTES = 512 * 2**20  # beyond any second-level cache
COLD_CALLS = 5
MEMORY_SHARE = 0.6  # of the GPU's memory that a reference may keep
WARM_UPS = 3

Run = Callable[[], Any]


class Sample(NamedTuple):
    """Seconds of a call: by events with what it needs in the cache, by events after the cache was overwritten
    (None where that is left out), and by the wall clock.
    """

    hot: float
    cold: float | None
    wall: float


class Gpu:
    """The current CUDA device.

    Args:
        device: where tensors are made.
        cuda: ``torch.cuda``, or what stands for it.
        clock: seconds by the wall clock.
    """

    def __init__(
        self, device: str = "cuda", cuda: Any = torch.cuda, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.cuda, self.clock = device, cuda, clock

    def describe(self, label: str | None = None) -> dict[str, Any]:
        """What ``bench.machine.describe`` gives, with the GPU; its name makes the label."""
        properties = self.cuda.get_device_properties(self.cuda.current_device())
        found = machine.describe(label or machine.slug(properties.name))
        found["gpu"] = properties.name
        found["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        found["multiprocessors"] = properties.multi_processor_count
        found["versions"] |= {"cuda": torch.version.cuda, "triton": _triton_version()}
        return found

    def memory_limit(self) -> float:
        """Bytes that the reference of a row may keep."""
        properties = self.cuda.get_device_properties(self.cuda.current_device())
        return MEMORY_SHARE * float(properties.total_memory)

    def seconds(self, run: Run, calls: int = 1) -> tuple[float, float]:
        """Mean seconds of calls in a row: by events, by the wall clock."""
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        self.cuda.synchronize()
        before = self.clock()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        wall = self.clock() - before
        return start.elapsed_time(end) / 1e3 / calls, wall / calls

    def sampler(self, cold: bool) -> Callable[[Run, int], Sample]:
        """Takes samples; ``cold`` also after the cache was overwritten."""
        flush = torch.empty(FLUSH_BYTES if cold else 0, dtype=torch.uint8, device=self.device)

        def sample(run: Run, calls: int) -> Sample:
            hot, wall = self.seconds(run, calls)
            return Sample(hot, self._cold(run, flush, min(calls, COLD_CALLS)) if cold else None, wall)

        return sample

    def _cold(self, run: Run, flush: Tensor, calls: int) -> float:
        found = []
        for _ in range(calls):
            flush.zero_()
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return statistics.median(found)

    def rates(self) -> dict[str, float]:
        """FLOP/s of a float32 matrix product, bytes/s (read and written) of a copy within the device."""
        a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE, device=self.device)
        product = torch.empty_like(a)
        source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return {
            "sgemm": 2 * GEMM_SIZE**3 / self._best(lambda: torch.mm(a, b, out=product)),
            "copy": 2 * COPY_BYTES / self._best(lambda: target.copy_(source)),
        }

    def _best(self, run: Run) -> float:
        run()
        return min(self.seconds(run)[0] for _ in range(machine.REPETITIONS))

    def live_bytes(self, forward: Run) -> int:
        """Growth of allocated memory over ``forward()``, its result still alive."""
        self._settle()
        before = self.cuda.memory_allocated()
        result = forward()
        gc.collect()
        grown: int = self.cuda.memory_allocated() - before
        del result
        return grown

    def peak_bytes(self, run: Run) -> int:
        """Most memory allocated at once during ``run()``, beyond what was before."""
        self._settle()
        before = self.cuda.memory_allocated()
        self.cuda.reset_peak_memory_stats()
        run()
        self.cuda.synchronize()
        grown: int = self.cuda.max_memory_allocated() - before
        return grown

    def reserved_bytes(self, run: Run) -> int:
        """What the allocator keeps from the GPU's other users after ``run()``, beyond what it kept before."""
        before = self._reserved()
        run()
        return self._reserved() - before

    def _reserved(self) -> int:
        self._settle()
        self.cuda.empty_cache()
        found: int = self.cuda.memory_reserved()
        return found

    def broken(self) -> str:
        """Why CUDA cannot be used any more in this process, as after an illegal access; empty where it can."""
        try:
            self.cuda.synchronize()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
        return ""

    def _settle(self) -> None:
        gc.collect()
        self.cuda.synchronize()

    def graphed(self, run: Run) -> Provider:
        """The kernels of ``run`` as a CUDA graph; ``RuntimeError`` where they cannot be captured."""
        device = torch.device(self.device)
        cuda_graphs.warm_up(run, device, WARM_UPS)
        graph, result = cuda_graphs.recorder(device)(run)

        def replay() -> list[Tensor]:
            graph.replay()
            return result

        return inferred(replay)


def exact_products() -> None:
    """No TF32: products of float32 in float32, as all that is compared here."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)
