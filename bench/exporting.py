"""Baselines that run a model outside of PyTorch's eager mode: AOTInductor, and ONNX Runtime where it is installed.

What they run is exported once, in a process that is stopped after 120 s, into ``outputs/bench-exports``; later runs
load it from there. ``python -m bench.exporting PROVIDER ROW SEED FILE`` is that process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ctm_fast
from bench import compiling, machine
from bench.row import Case, Json, Provider, Row, seed_all

AOT, ONNX = "AOTInductor", "ONNX Runtime"
FOLDER = Path("outputs") / "bench-exports"
SUFFIXES = {AOT: "pt2", ONNX: "onnx"}

Run = Callable[..., Sequence[Tensor]]


class Exportable(NamedTuple):
    """What is exported of a row's model.

    Attributes:
        module: a whole forward or a tick, tensors to a flat sequence of tensors.
        arguments: example tensors.
        provider: the row's work around a function that does what ``module`` does.
    """

    module: nn.Module
    arguments: tuple[Tensor, ...]
    provider: Callable[[Run], Provider]


def outcomes(row: Row, seed: int, folder: Path = FOLDER) -> dict[str, Json]:
    """{"seconds", "file"} or {"failed": why} of every provider, from earlier runs where there was one."""
    found = {}
    for name, suffix in SUFFIXES.items():
        file = folder / f"{machine.slug(row.name)}-{seed}.{suffix}"
        record = file.with_name(f"{file.name}.json")
        if not record.exists():
            folder.mkdir(parents=True, exist_ok=True)
            tried = compiling.tried("bench.exporting", (name, row.name, seed, file), compiling.LIMIT_SECONDS)
            record.write_text(json.dumps(tried if "failed" in tried else {**tried, "file": str(file)}))
        found[name] = json.loads(record.read_text())
    return found


def providers(case: Case, exports: dict[str, Json]) -> dict[str, Provider]:
    """Those whose export went well, loaded."""
    assert case.exported is not None
    ready = {name: x["file"] for name, x in exports.items() if "file" in x}
    return {name: case.exported.provider(LOADERS[name](file)) for name, file in ready.items()}


def _aot_export(what: Exportable, file: str) -> None:
    exported = torch.export.export(what.module, what.arguments)
    torch._inductor.aoti_compile_and_package(exported, package_path=file)


def _aot_load(file: str) -> Run:
    return torch._inductor.aoti_load_package(file)


def _onnx_export(what: Exportable, file: str) -> None:
    exported = torch.export.export(what.module, what.arguments)
    for node in list(exported.graph.nodes):
        # Of another size than one this does nothing in PyTorch, and is an error in ONNX.
        if node.target is torch.ops.aten.squeeze.dim and node.args[0].meta["val"].shape[node.args[1]] != 1:
            node.replace_all_uses_with(node.args[0])
            exported.graph.erase_node(node)
    exported.graph_module.recompile()
    torch.onnx.export(exported, (), file, dynamo=True, external_data=False, verbose=False)


def _onnx_load(file: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(names, (np.ascontiguousarray(x.numpy()) for x in tensors), strict=True))
        return [torch.from_numpy(x) for x in session.run(None, given)]

    return run


EXPORTERS = {AOT: _aot_export, ONNX: _onnx_export}
LOADERS = {AOT: _aot_load, ONNX: _onnx_load}


def main(arguments: Sequence[str]) -> int:
    """Export one row's model for one provider and print the seconds as JSON."""
    from bench.table import find_rows

    name, row_name, seed, file = arguments
    torch.set_num_threads(1)
    seed_all(int(seed))
    (row,) = find_rows([row_name])
    what: Any = row.build().exported
    start = time.perf_counter()
    with torch.no_grad(), ctm_fast.use_backend("reference"):
        EXPORTERS[name](what._replace(module=what.module.eval()), file)
    LOADERS[name](file)(*what.arguments)
    print(json.dumps({"seconds": round(time.perf_counter() - start, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
