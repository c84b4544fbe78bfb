"""Whether torch.compile gets a row's baseline ready in time, tried in a process that can be stopped.

``python -m bench.compiling ROW SEED THREADS`` is that process; what it compiled stays in the cache on disk,
so that the measuring process compiles the same again quickly.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.row import Row

LIMIT_SECONDS = 120


def outcome(row: Row, seed: int) -> dict[str, Any]:
    """{"seconds": compile time}, or {"failed": why}: over the limit, or no working compiler."""
    command = [sys.executable, "-m", "bench.compiling", row.name, str(seed), str(torch.get_num_threads())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, error = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: inductor's workers go with it
            return {"failed": f"not compiled in {LIMIT_SECONDS} s"}
    if process.returncode:
        last = (error.strip() or f"exit status {process.returncode}").splitlines()[-1]
        return {"failed": f"not compiled: {last}"}
    return json.loads(out.splitlines()[-1])


def main(arguments: Sequence[str]) -> int:
    """Compile one row's baseline and print the seconds as JSON."""
    from bench.table import find_rows

    name, seed, threads = arguments
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    (row,) = find_rows([name])
    provider = row.build().compiled()
    start = time.perf_counter()
    provider.check()
    first = time.perf_counter() - start
    start = time.perf_counter()
    provider.check()
    print(json.dumps({"seconds": round(first - (time.perf_counter() - start), 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
