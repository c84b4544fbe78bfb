"""Bad arguments of the ntm ops and of NtmLayout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.testing import OPS, OpCase
from ctm_fast.testing.ntm import ONE, step_case

ADDRESS = OpCase("ntm_address", "several", (2, 7, 5, 3, 3))
SINGLE = OpCase("ntm_address", "one-head", (2, 7, 5, 0, 3))
WRITE = OpCase("ntm_write", "several", (2, 7, 5, 3))
READ = OpCase("ntm_read", "several", (2, 7, 5, 3))
STEP = step_case("one", 2, 7, ONE)
SEQUENCE = step_case("one", 2, 7, ONE, steps=4)

Z = torch.zeros
WRONG: dict[str, tuple[OpCase, str, Any, type[Exception], str]] = {
    "memory-list": (READ, "memory", [0.0], TypeError, "memory must be a torch.Tensor, got list"),
    "memory-integer": (READ, "memory", Z(2, 7, 5).int(), TypeError, "memory must be a floating-point tensor"),
    "memory-rank": (WRITE, "memory", Z(7, 5), ValueError, r"memory must have shape \(B, N, W\), got \(7, 5\)"),
    "memory-no-slot": (READ, "memory", Z(2, 0, 5), ValueError, r"memory must have at least one slot .* \(2, 0, 5\)"),
    "memory-no-width": (STEP, "memory", Z(2, 7, 0), ValueError, r"memory must have at least one slot"),
    "memory-width": (STEP, "memory", Z(2, 7, 5), ValueError, r"memory must have .* width W = 6, got \(2, 7, 5\)"),
    "memory-dtype": (READ, "memory", Z(2, 7, 5).double(), TypeError, "weights must be torch.float64, got"),
    "memory-meta": (READ, "memory", Z(2, 7, 5, device="meta"), ValueError, "weights must be on the .* meta, got cpu"),
    "memory-slots": (READ, "memory", Z(2, 8, 5), ValueError, r"weights must have .* \(2, 3, 8\), got \(2, 3, 7\)"),
    "key-None": (ADDRESS, "key", None, TypeError, "key must be a torch.Tensor, got NoneType"),
    "key-rank": (ADDRESS, "key", Z(2), ValueError, r"key must have shape \(B, H, W\), got \(2,\)"),
    "key-width": (ADDRESS, "key", Z(2, 3, 4), ValueError, r"key must have .* = \(2, 3, 5\), got \(2, 3, 4\)"),
    "key-dtype": (ADDRESS, "key", Z(2, 3, 5).double(), TypeError, "key must be torch.float32 or .*, got torch.float64"),
    "beta-heads": (ADDRESS, "beta", Z(2, 2), ValueError, r"beta must have shape \(B, H\) = \(2, 3\), got \(2, 2\)"),
    "beta-scalar": (SINGLE, "beta", 1.0, TypeError, "beta must be a torch.Tensor, got float"),
    "gate-rank": (SINGLE, "gate", Z(2, 1), ValueError, r"gate must have shape \(B\) = \(2,\), got \(2, 1\)"),
    "shift-even": (ADDRESS, "shift", Z(2, 3, 4), ValueError, r"shift must have an odd number S .*, got \(2, 3, 4\)"),
    "shift-none": (ADDRESS, "shift", Z(2, 3, 0), ValueError, r"shift must have an odd number S of offsets"),
    "shift-rank": (SINGLE, "shift", Z(2, 1, 3), ValueError, r"shift must have shape \(B, S\), got \(2, 1, 3\)"),
    "gamma-integer": (ADDRESS, "gamma", Z(2, 3).int(), TypeError, "gamma must be a floating-point tensor"),
    "previous-slots": (SINGLE, "previous", Z(2, 8), ValueError, r"previous must have .* = \(2, 7\), got \(2, 8\)"),
    "weights-rank": (READ, "weights", Z(7), ValueError, r"weights must have shape \(B, H, N\), got \(7,\)"),
    "erase-heads": (WRITE, "erase", Z(2, 5), ValueError, r"erase must have shape \(B, H, W\) = \(2, 3, 5\)"),
    "add-width": (WRITE, "add", Z(2, 3, 7), ValueError, r"add must have .* = \(2, 3, 5\), got \(2, 3, 7\)"),
    "interface-size": (STEP, "interface", Z(2, 9), ValueError, r"interface must have shape \(B, I\) = \(2, 36\)"),
    "interface-steps": (STEP, "interface", Z(4, 2, 36), ValueError, r"interface must have shape \(B, I\) ="),
    "interface-no-steps": (SEQUENCE, "interface", Z(2, 36), ValueError, r"interface must have shape \(T, B, I\), got"),
    "interface-batch": (SEQUENCE, "interface", Z(4, 3, 36), ValueError, r"interface must have .* = \(4, 2, 36\), got"),
    "read-weights": (STEP, "read_weights", Z(2, 7), ValueError, r"read_weights must have .* \(2, 1, 7\), got \(2, 7\)"),
    "write-weights": (STEP, "write_weights", Z(2, 2, 7), ValueError, r"write_weights must have .* = \(2, 1, 7\)"),
}  # fmt: skip


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("case", "name", "value", "error", "text"), WRONG.values(), ids=WRONG.keys())
def test_bad_input(
    case: OpCase, name: str, value: object, error: type[Exception], text: str, backend: str | None
) -> None:
    arguments: dict[str, Any] = {**case.inputs(), name: value}
    with pytest.raises(error, match=f"^{case.op}: {text}"):
        OPS[case.op].run(**arguments, **case.options, backend=backend)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
        ({"eps": -1.0}, ValueError, "eps must be positive and finite, got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps must be positive and finite, got nan"),
        (
            {"eps": 1e-19, "eps_placement": "norm"},
            ValueError,
            "eps must be at least 1e-18 where placed as 'norm'",
        ),
        ({"eps": 1e-20, "eps_placement": "clamp"}, ValueError, "eps must be at least 1e-18 .*, got 1e-20"),
        ({"eps": "small"}, TypeError, "eps must be a number, got str"),
        ({"eps_placement": "inside"}, ValueError, r"eps_placement must be one of \('root', .*, got 'inside'"),
    ],
    ids=["zero", "negative", "nan", "norm", "clamp", "string", "placement"],
)
def test_bad_eps(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^ntm_address: {text}"):
        ops.ntm_address(*ADDRESS.inputs().values(), **options)
    with pytest.raises(error, match=f"^NtmLayout: {text}"):
        NtmLayout(1, 1, 5, **options)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"read_heads": 0}, ValueError, "read_heads must be at least 1, got 0"),
        ({"write_heads": 1.0}, TypeError, "write_heads must be an int, got float"),
        ({"width": True}, TypeError, "width must be an int, got bool"),
        ({"shift": 2}, ValueError, "shift must be odd, got 2"),
        ({"shift": -1}, ValueError, "shift must be at least 1, got -1"),
        ({"order": "read"}, ValueError, r"order must be one of \('write_read', .*, got 'read'"),
        ({"key": "sigmoid"}, ValueError, r"key must be one of \('linear', 'tanh'\), got 'sigmoid'"),
        ({"add": None}, ValueError, "add must be one of .*, got None"),
        ({"strength": "exp"}, ValueError, "strength must be one of .*, got 'exp'"),
        ({"shared_weights": 1}, TypeError, "shared_weights must be a bool, got int"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_layout(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^NtmLayout: {text}"):
        NtmLayout(**{"read_heads": 1, "write_heads": 1, "width": 5, **options})


def test_layout_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"^ntm_step: layout must be an NtmLayout, got dict"):
        ops.ntm_step(*STEP.inputs().values(), layout={"read_heads": 1})  # type: ignore[arg-type]


def test_split_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"^NtmLayout.split: interface must have .* I = 36, got \(2, 35\)"):
        ONE.split(torch.zeros(2, 35))


@pytest.mark.parametrize("placement", ["norm", "clamp"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_smallest_eps_serves_zeros(placement: str, backend: str) -> None:
    arguments = {**ADDRESS.inputs(), "memory": Z(2, 7, 5), "key": Z(2, 3, 5)}
    found = ops.ntm_address(**arguments, eps=1e-18, eps_placement=placement, backend=backend)
    assert found.isfinite().all()
