"""Ahead-of-time compilation of the Triton kernels, without a GPU: registers, shared memory and spills.

``python -m ctm_fast.testing.compilation [sm ...]`` prints one line of JSON per kernel and architecture; it must not
run under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ctm_fast.testing.kernels import Kernel

ARCHITECTURES = (80, 90)


class Resources(NamedTuple):
    """What one compiled kernel needs."""

    op: str
    kernel: str
    sizes: str
    dtype: str
    architecture: int
    registers: int
    """Per thread."""
    shared: int
    """Bytes per block."""
    spills: int
    """Bytes per thread that did not fit into registers, stored and loaded."""


def words() -> list[str]:
    """The ops that have Triton kernels, and "loop", the tick loop of the models."""
    from ctm_fast.backend import TRITON_OPS

    return [*dict.fromkeys(op.partition("_")[0] for op in TRITON_OPS), "loop"]


def module_of(word: str) -> str:
    """The module that holds the kernels of a word."""
    return "ctm_fast.loop.device" if word == "loop" else f"ctm_fast.ops.{word}.triton"


def kernels_of(word: str) -> tuple[Kernel, ...]:
    """What the op's module in ``ctm_fast.testing`` lists."""
    found: tuple[Kernel, ...] = importlib.import_module(f"ctm_fast.testing.{word}").KERNELS
    return found


def measured(word: str, kernel: Kernel, architectures: tuple[int, ...]) -> Iterator[Resources]:
    """Compile ``kernel`` for every architecture and dtype."""
    function = getattr(importlib.import_module(module_of(word)), kernel.name)
    sizes = " ".join(f"{key}={value}" for key, value in kernel.sizes.items())
    for architecture in architectures:
        for dtype in kernel.dtypes:
            found = _compile(function, kernel, dtype, architecture)
            yield Resources(word, kernel.name, sizes, dtype, architecture, *found)


def _compile(function: Any, kernel: Kernel, dtype: str, architecture: int) -> tuple[int, int, int]:
    """(registers, bytes of shared memory, bytes of spills)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    runtime = [name for name in function.arg_names if name not in kernel.sizes]
    signature = dict(zip(runtime, kernel.types(dtype), strict=True))
    signature |= dict.fromkeys(kernel.sizes, "constexpr")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if signature[name].startswith("*")
    }  # as memory from torch's allocators is
    source = ASTSource(function, signature, constexprs=kernel.sizes, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=kernel.options)
    registers, spills = _assembled(compiled.asm["ptx"])
    return registers, compiled.metadata.shared, spills


def _assembled(ptx: str) -> tuple[int, int]:
    """Registers and bytes of spills that the assembler reports."""
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", "--gpu-name", target, source, "-o", source.with_suffix(".cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return int(registers), sum(map(int, spills))


def _measured_at(place: tuple[str, int, tuple[int, ...]]) -> list[Resources]:
    """:func:`measured` of a word's kernel by number: what another process can be told."""
    word, number, architectures = place
    return [*measured(word, kernels_of(word)[number], architectures)]


def main(arguments: list[str]) -> None:
    """Compile every kernel that the package lists, as many at once as there are cores, and print what each needs."""
    chosen = tuple(map(int, arguments)) or ARCHITECTURES
    places = [(word, i, chosen) for word in words() for i in range(len(kernels_of(word)))]
    with ProcessPoolExecutor() as pool:
        for found in pool.map(_measured_at, places):
            sys.stdout.writelines(json.dumps(x._asdict()) + "\n" for x in found)


if __name__ == "__main__":
    main(sys.argv[1:])
