"""The Triton kernels: the contract of every op in Triton's interpreter, and compilation without a GPU."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.testing import INTERPRETED, OPS, OpCase, breaches, leaf
from ctm_fast.testing.compilation import ARCHITECTURES, kernels_of, module_of, words

pytest.importorskip("triton")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FIRST = tuple({case.op: case for case in reversed(INTERPRETED)}.values())
ids = str


def everywhere(cases: Sequence[OpCase]) -> list[Any]:
    """The cases in Triton's interpreter, and on a GPU."""
    return [*cases] + [pytest.param(case.on("cuda"), marks=pytest.mark.needs_gpu) for case in cases]


@pytest.fixture(scope="module")
def resources() -> list[dict[str, Any]]:
    """Registers, shared memory and spills of every kernel, compiled in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "ctm_fast.testing.compilation"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_every_architecture_without_spills(resources: list[dict[str, Any]]) -> None:
    for found in resources:
        print(found)  # noqa: T201 (shown by pytest -s)
        assert found["spills"] == 0, found
    assert {found["architecture"] for found in resources} == set(ARCHITECTURES)


@pytest.mark.parametrize("word", words())
def test_every_kernel_is_listed(word: str) -> None:
    spec = importlib.util.find_spec(module_of(word))
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    written = {x.name for x in tree.body if isinstance(x, ast.FunctionDef) and x.name.endswith("_kernel")}
    assert written == {kernel.name for kernel in kernels_of(word)}


def test_every_op_is_interpreted() -> None:
    interpreted = {case.op for case in INTERPRETED}
    for op in backends.TRITON_OPS:
        assert any(name == op or name.startswith(f"{op}_") for name in interpreted), op


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("case", everywhere(INTERPRETED), ids=ids)
def test_error_is_at_most_twice_plain_pytorch(case: OpCase, dtype: torch.dtype) -> None:
    triton, plain = (functools.partial(case.evaluate, backend=name) for name in ("triton", "reference"))
    assert breaches(case.inputs, triton, plain, dtype, draws=2) == {}


@pytest.mark.parametrize("case", everywhere(INTERPRETED), ids=ids)
def test_dtypes_and_shapes_are_those_of_the_reference(case: OpCase) -> None:
    for dtype in DTYPES:
        triton, plain = (case.evaluate(case.inputs(dtype), name) for name in ("triton", "reference"))
        assert {k: (v.dtype, v.shape) for k, v in triton.items()} == {
            k: (v.dtype, v.shape) for k, v in plain.items()
        }


def spread(x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


@pytest.mark.parametrize("case", everywhere(FIRST), ids=ids)
def test_any_strides_give_the_same_bits(case: OpCase) -> None:
    dense = case.inputs()
    strided = {name: spread(x) for name, x in dense.items()}
    found, expected = case.evaluate(strided, "triton"), case.evaluate(dense, "triton")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", everywhere(FIRST), ids=ids)
def test_registered_ops(case: OpCase) -> None:
    inputs = case.inputs()
    op = OPS[case.op]
    forward = getattr(torch.ops.ctm_fast, f"{case.op}_forward_triton")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, op.arguments(case.placed(inputs), case.options), test_utils=tests)


@pytest.mark.parametrize("case", everywhere(FIRST), ids=ids)
def test_create_graph_names_the_reference(case: OpCase) -> None:
    inputs = {k: leaf(x) for k, x in case.inputs().items()}
    first = next(iter(inputs.values()))
    with pytest.raises(RuntimeError, match=f"{case.op}: create_graph=True needs .* backend='reference'"):
        torch.autograd.grad(next(iter(case.run(inputs, "triton").values())).sum(), first, create_graph=True)


def test_why_triton_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "on the CPU only in the interpreter" in (backends.why_not("sync", "triton", "cpu") or "")
    assert backends.why_not("sync", "triton", "cuda") is None
    assert "take float32" in (backends.why_not("sync", "triton", "cuda", "complex64") or "")
    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    assert "pip install '.[triton]'" in (backends.why_not("sync", "triton", "cuda") or "")
