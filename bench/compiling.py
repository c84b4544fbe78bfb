"""Whether torch.compile gets a row's baseline ready in time, tried in a process that can be stopped.

``python -m bench.compiling ROW SEED THREADS`` is that process; what it compiled stays in the cache on disk,
so that the measuring process compiles the same again quickly. Without arguments it compiles next to nothing:
what torch.compile does once per machine, trying instruction sets and compiling its headers, is no row's time.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.row import Row, seed_all

LIMIT_SECONDS = 120
FIRST_LIMIT_SECONDS = 300


def outcome(row: Row, seed: int) -> dict[str, Any]:
    """{"seconds": compile time}, or {"failed": why}: over the limit, or no working compiler."""
    first = _first()
    arguments = (row.name, seed, torch.get_num_threads())
    return first if "failed" in first else tried("bench.compiling", arguments, LIMIT_SECONDS)


@functools.cache
def _first() -> dict[str, Any]:
    """The outcome of the work that is done once per machine."""
    return tried("bench.compiling", (), FIRST_LIMIT_SECONDS)


def tried(module: str, arguments: Sequence[object], limit: float) -> dict[str, Any]:
    """What ``python -m module arguments`` prints as JSON, or {"failed": why}; stopped after ``limit`` seconds."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            out, error = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the C++ compilers that it started go with it
            return {"failed": f"not compiled in {limit} s"}
    if process.returncode:
        last = (error.strip() or f"exit status {process.returncode}").splitlines()[-1]
        return {"failed": f"not compiled: {last}"}
    return json.loads(out.splitlines()[-1])


def main(arguments: Sequence[str]) -> int:
    """Compile one row's baseline, or without arguments next to nothing, and print the seconds as JSON."""
    run = _baseline(*arguments) if arguments else _next_to_nothing
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    start = time.perf_counter()
    run()
    print(json.dumps({"seconds": round(first - (time.perf_counter() - start), 2)}))
    return 0


def _baseline(name: str, seed: str, threads: str) -> Callable[[], None]:
    """What :func:`bench.row.measure` does with a row's baseline: train and eval mode compile apart."""
    from bench.table import find_rows

    torch.set_num_threads(int(threads))
    seed_all(int(seed))
    (row,) = find_rows([name])
    provider = row.build().compiled()

    def run() -> None:
        provider.check()
        provider.run()

    return run


def _next_to_nothing() -> None:
    torch.compile(torch.sin)(torch.ones(64, requires_grad=True)).sum().backward()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
