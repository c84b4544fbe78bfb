"""The CUDA kernels compiled as C++ over an emulated runtime, so that they run on the CPU."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pybind11

SOURCE = Path(__file__).parent.parent / "csrc" / "cuda" / "emulation"
BUILD = Path(__file__).parent.parent / "build" / "emulation"
A100, H200 = (108, 163 << 10, 8), (132, 227 << 10, 9)
SMALL = (3, 100 << 10, 8)  # multiprocessors, bytes of shared memory of a block, major compute capability


@functools.cache
def build() -> Any:
    """The module, compiled where its sources are newer, by one process at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(BUILD / "lock"):
        _compile()
    (path,) = BUILD.glob("_cuda_emulation*.so")
    spec = importlib.util.spec_from_file_location("_cuda_emulation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile() -> None:
    configure = [
        "-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={_ninja()}",
    ]  # fmt: skip
    for arguments in (configure, ["--build", str(BUILD)]):
        command = [sys.executable, "-m", "cmake", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the emulation does not build:\n{done.stdout}{done.stderr}")


def _ninja() -> Path:
    import ninja

    return Path(ninja.BIN_DIR) / "ninja"
