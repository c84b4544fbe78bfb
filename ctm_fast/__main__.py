"""``python -m ctm_fast [--json]``: what is installed, what the kernels chose, and which op runs where."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

import ctm_fast
from ctm_fast import backend

_OPENMP = re.compile(r"/lib(gomp|omp|iomp5)[-.][^/]*$")


def _optional(name: str) -> tuple[Any, str]:
    """The module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        return None, str(error)


def openmp_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes loaded in this process; empty where /proc is missing (outside Linux)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split()[-1] for line in maps.read_text().splitlines()}
    return sorted({os.path.realpath(path) for path in paths if _OPENMP.search(path)})


def _build(core: Any, reason: str) -> dict[str, str]:
    return dict(core.build_info()) if core else {"none": reason}


def _simd(core: Any) -> dict[str, Any]:
    if core is None:
        return {"level": "none", "levels": [], "reason": "no extension"}
    level, levels, cap = core.simd_level(), core.simd_levels(), os.environ.get("CTM_FAST_SIMD")
    if not cap:
        reason = "the highest level compiled in that this processor has"
    elif cap in levels:
        reason = f"CTM_FAST_SIMD={cap} allows no higher"
    else:
        reason = f"CTM_FAST_SIMD={cap} is no level of this processor and is ignored"
    return {"level": level, "levels": levels, "reason": reason}


def _threads(torch: Any) -> dict[str, Any]:
    if torch is None:
        return {"count": os.cpu_count() or 1, "reason": "processors of this machine (no torch)"}
    return {"count": torch.get_num_threads(), "reason": "torch.get_num_threads()"}


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _cuda() -> dict[str, Any]:
    module, reason = _optional("ctm_fast._cuda")
    if module is None:
        return {"built": False, "reason": f"built without CUDA (CTM_FAST_CUDA=on needs nvcc): {reason}"}
    return {
        "built": True,
        "reason": module.no_device_reason(),
        "runtime": _cuda_version(module.runtime_version()),
        "driver": _cuda_version(module.driver_version()),
        "architectures": module.architectures(),
        "devices": [
            {"name": device.name, "capability": list(device.capability), "reason": device.reason}
            for device in module.devices()
        ],
    }


def gather() -> dict[str, Any]:
    """Everything the report shows, as JSON types. Works without torch and without the extension."""
    torch, no_torch = _optional("torch")
    core, no_core = _optional("ctm_fast._C")
    return {
        "versions": {
            "ctm_fast": ctm_fast.__version__,
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "torch": torch.__version__ if torch else f"none: {no_torch}",
        },
        "machine": platform.platform(),
        "build": _build(core, no_core),
        "simd": _simd(core),
        "threads": _threads(torch),
        "openmp": openmp_runtimes(),
        "cuda": _cuda(),
        "ops": [row._asdict() for row in backend.table()],
    }


def _openmp_line(runtimes: Sequence[str]) -> str:
    listed = ", ".join(runtimes) or "none found"
    if len(runtimes) < 2:
        return listed
    return f"{listed} ({len(runtimes)} are loaded: same results, but each keeps threads of its own)"


def _cuda_line(cuda: dict[str, Any]) -> str:
    if not cuda["built"]:
        return str(cuda["reason"])
    compiled = f"runtime {cuda['runtime']}, driver {cuda['driver']}, for {', '.join(cuda['architectures'])}"
    devices = [f"{d['name']}{': ' + d['reason'] if d['reason'] else ''}" for d in cuda["devices"]]
    return f"{compiled}; {'; '.join(devices) or cuda['reason']}"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [("op", "device", "backend", "runs", "reason")]
    cells += [(r["op"], r["device"], r["backend"], "yes" if r["runs"] else "no", r["reason"]) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in cells]
    return [" ".join(row).rstrip() for row in padded]


def render(report: dict[str, Any]) -> str:
    """The report of :func:`gather` as text."""
    simd, threads = report["simd"], report["threads"]
    available = f"; available: {', '.join(simd['levels'])}" if simd["levels"] else ""
    lines = {
        **report["versions"],
        "machine": report["machine"],
        "build": ", ".join(f"{key} {value}" for key, value in report["build"].items()),
        "SIMD": f"{simd['level']} ({simd['reason']}{available})",
        "threads": f"{threads['count']} ({threads['reason']})",
        "OpenMP": _openmp_line(report["openmp"]),
        "CUDA": _cuda_line(report["cuda"]),
    }
    return "\n".join([*(f"{name:9} {value}" for name, value in lines.items()), "", *_table(report["ops"])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ctm_fast", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    report = gather()
    as_json = parser.parse_args(arguments).json
    try:
        print(json.dumps(report, indent=2) if as_json else render(report), flush=True)
    except BrokenPipeError:  # the reader has seen enough; the interpreter flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
