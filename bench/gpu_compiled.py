"""torch.compile beside ctm_fast on a GPU, each in a process that can be stopped.

``python -m bench.gpu_compiled ROW SEED MODE`` is that process. All compile at once, which takes processor cores; then
they are timed one after the other, which takes the GPU: a process prints its compile time, waits for a line, and
prints the rest of the result.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.gpu import Gpu, exact_products
from bench.gpu_row import add_forms, build, captured, headline, sampled, times
from bench.row import COMPILED, REFERENCE, Json, Provider, Row, agreed
from bench.timing import Effort

MODES = ("default", "reduce-overhead")
LIMIT_SECONDS = 120
TIMING_SECONDS = 60
SPENT = "not measured: the budget is spent"
EFFORT = Effort(least=3, most=9, seconds=1.5, sample_seconds=0.02)


def name_of(mode: str) -> str:
    """How results call torch.compile of this mode."""
    return f"{COMPILED} {mode}"


class _Process:
    """One row and mode; its errors go to its own end of a pipe, read with the results."""

    def __init__(self, row: Row, seed: int, mode: str) -> None:
        self.row, self.mode = row, mode
        command = [sys.executable, "-m", "bench.gpu_compiled", row.name, str(seed), mode]
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            process_group=0, env=environment,
        )  # fmt: skip

    def next(self) -> Json:
        """The next result that it prints; {"failed": why} where it ends before."""
        assert self.process.stdout is not None
        last = ""
        for line in self.process.stdout:
            if line.startswith("{"):
                found: Json = json.loads(line)
                return found
            last = line.strip() or last
        return {"failed": f"not measured: {last or f'exit status {self.process.wait()}'}"}

    def go(self) -> None:
        """Let it time; of one that has ended since, :meth:`next` tells."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Give its pipes back, once nobody reads."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def outcomes(
    rows: Sequence[Row], seed: int, limit: float, left: Callable[[], float]
) -> Iterator[tuple[Row, str, Json]]:
    """(row, mode, result) of every row and mode.

    Args:
        rows: what to measure.
        seed: of the inputs and weights.
        limit: seconds after which those not compiled are stopped.
        left: seconds until those not timed are stopped too.
    """
    start = time.monotonic()
    processes = [_Process(row, seed, mode) for row in rows for mode in MODES]
    pool = concurrent.futures.ThreadPoolExecutor(max(len(processes), 1))
    try:
        first = [(process, pool.submit(process.next)) for process in processes]
        late = f"not compiled in {limit:.0f} s"
        ready = [(p, _within(f, p, start + limit - time.monotonic(), late)) for p, f in first]
        for process, found in ready:
            if "failed" not in found:
                found |= _timing(process, pool, left())
            process.kill()
            yield process.row, process.mode, found
    finally:
        for process in processes:
            process.kill()
        pool.shutdown()
        for process in processes:
            process.close()


def _timing(process: _Process, pool: concurrent.futures.Executor, left: float) -> Json:
    """Lets a process that has compiled time, as long as the budget lasts."""
    if left <= 0:
        return {"failed": SPENT}
    process.go()
    late = SPENT if left < TIMING_SECONDS else f"not timed in {TIMING_SECONDS} s"
    return _within(pool.submit(process.next), process, min(left, TIMING_SECONDS), late)


def _within(future: concurrent.futures.Future[Json], process: _Process, seconds: float, late: str) -> Json:
    try:
        return future.result(timeout=max(seconds, 0.0))
    except concurrent.futures.TimeoutError:
        process.kill()
        return {"failed": late}


def merge(result: Json, mode: str, found: Json) -> None:
    """Put what a process found into the row's result."""
    result.setdefault("compile", {})[mode] = {k: found[k] for k in ("seconds", "failed") if k in found}
    if "ratio" in found:
        result["ratios"][name_of(mode)] = found["ratio"]
        result["seconds"][name_of(mode)] = found["hot"]
        result["errors"][name_of(mode)] = found["error"]


def main(arguments: Sequence[str], gpu: Gpu | None = None) -> int:
    """Compile, print the seconds, wait for a line, time; the exit status is 1 where none came."""
    from bench.table import find_rows

    name, seed, mode = arguments
    gpu = gpu or Gpu()
    exact_products()
    (row,) = find_rows([name], device="cuda")
    case = build(row, int(seed), gpu)
    compiled = stepped(case.compiled(mode=None if mode == "default" else mode))

    def both() -> None:
        compiled.check()
        compiled.run()

    seconds = [gpu.seconds(both)[1] for _ in range(2)]
    print(json.dumps({"seconds": round(seconds[0] - seconds[1], 2)}), flush=True)
    gpu.cuda.empty_cache()
    if not sys.stdin.readline():
        return 1
    print(json.dumps(_timed(row, case, compiled, mode, gpu)), flush=True)
    return 0


def _timed(row: Row, case: Any, compiled: Provider, mode: str, gpu: Gpu) -> Json:
    """Ratio to what stands for ctm_fast in this row, seconds per tick, error."""
    expected = [x.clone() for x in case.providers[REFERENCE].check()]
    error = agreed(name_of(mode), expected, compiled.check())
    add_forms(case, captured(case), {})
    own = headline(case)
    case.providers[own].check()
    samples = sampled({own: case.providers[own], COMPILED: compiled}, row, EFFORT, gpu)
    found = times(samples, 0, own, case.ticks)
    assert found is not None
    return {"ratio": found["ratios"][COMPILED], "hot": found["seconds"][COMPILED], "error": error}


def stepped(provider: Provider) -> Provider:
    """Each call is a step of its own: mode "reduce-overhead" may overwrite the results of the one before."""

    def begun(run: Any) -> Any:
        def step() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return run()

        return step

    return Provider(begun(provider.run), begun(provider.check), provider.forward)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
