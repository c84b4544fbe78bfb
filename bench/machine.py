"""The machine of a run: its name, versions, load, and what its own sgemm and copy reach."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ctm_fast
from ctm_fast import _C

GEMM_SIZE = 1024
COPY_BYTES = 64 * 2**20
REPETITIONS = 3


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """``text`` as a file name: lower case, runs of other characters become one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def commit() -> str:
    """The checkout's commit, with "+changes" where tracked files differ from it; "unknown" outside git."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+changes" if changed.strip() else "")


def describe(label: str | None = None) -> dict[str, Any]:
    """What a result must carry to be read later; ``label`` replaces the name made from the processor's."""
    return {
        "label": label or slug(cpu_model()),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "simd": _C.simd_level(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ctm_fast": ctm_fast.__version__,
        },
    }


def load() -> float:
    """One-minute load average."""
    return round(os.getloadavg()[0], 2)


def _best_seconds(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rates() -> dict[str, float]:
    """FLOP/s of a float32 matrix product, bytes/s (read and written) of a copy, on torch's thread count."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    product = torch.empty_like(a)
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "sgemm": 2 * GEMM_SIZE**3 / _best_seconds(lambda: torch.mm(a, b, out=product)),
        "copy": 2 * COPY_BYTES / _best_seconds(lambda: target.copy_(source)),
    }
