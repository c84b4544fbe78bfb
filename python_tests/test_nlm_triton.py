"""ops.nlm on Triton's interpreter: what test_triton.py and the loops of test_nlm_tick.py leave out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from op_checks import assert_extremes_hold, assert_spreads_as_the_reference
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops.nlm import blocks
from ctm_fast.testing import OPS, OpCase, cotangents, relative_error

pytest.importorskip("triton")
DEEP, LINEAR = (
    OpCase("nlm", name, sizes) for name, sizes in (("deep", (3, 2, 4, 5)), ("linear", (3, 2, 4, 0)))
)
NUMPY_MAY_WARN = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with it
CASES = pytest.mark.parametrize("case", [DEEP, LINEAR], ids=str)


def assert_equals_reference(case: OpCase, inputs: dict[str, Tensor]) -> None:
    found, expected = (case.evaluate(inputs, backend) for backend in ("triton", "reference"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("p", "seed"), [(1e-10, 0), (0.3, -1), (0.3, 2**63 - 1), (0.999, -(2**63)), (1.0, 5)]
)
@CASES
def test_dropout_draws_the_mask_of_the_reference(case: OpCase, p: float, seed: int, device: str) -> None:
    masked = replace(case, options={"dropout": p, "seed": seed}, device=device)
    inputs = case.inputs(torch.float64)
    found, expected = (masked.run(inputs, backend)["z"] for backend in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "sizes",
    [(2, 1, 100, 3), (2, 1, 5, 130), (2, 1, 33, 65), (17, 1, 16, 16), (300, 1, 2, 1), (2, 1, 0, 3)],
    ids=["long-memory", "wide", "tails", "powers-of-two", "shares-of-rows", "no-memory"],
)
def test_sizes_beyond_one_block(sizes: tuple[int, ...], device: str) -> None:
    options = {"dropout": 0.3, "seed": 7} if max(sizes) < 100 else {}
    case = OpCase("nlm", "sizes", sizes, options, device)
    assert_equals_reference(case, case.inputs(torch.float64))


@NUMPY_MAY_WARN
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@CASES
def test_nan_and_infinity_spread_as_in_the_reference(case: OpCase, value: float, device: str) -> None:
    for name in case.inputs():
        assert_spreads_as_the_reference(case.on(device), "triton", name, value)


@NUMPY_MAY_WARN
@pytest.mark.parametrize("scale", [1e4, 1e-39, 3e18], ids=["1e4", "denormal", "3e18"])
@pytest.mark.parametrize("hidden", [1, 0], ids=["deep", "linear"])
def test_extreme_values(hidden: int, scale: float, device: str) -> None:
    assert_extremes_hold(OpCase("nlm", "extreme", (64, 8, 1, hidden), device=device), "triton", scale)


@pytest.mark.parametrize("history", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("same", [True, False], ids=["16-bit-weights", "float32-weights"])
def test_sixteen_bits_accumulate_in_float32(history: torch.dtype, same: bool, device: str) -> None:
    inputs = DEEP.inputs(history)
    inputs = {k: x if same or k == "history" else x.float() for k, x in inputs.items()}
    single = {k: x.float() for k, x in inputs.items()}
    case = DEEP.on(device)
    found, exact = case.evaluate(inputs, "triton"), case.evaluate(single, "triton")
    assert relative_error(found["z"], exact["z"]) <= torch.finfo(history).eps  # the interpreter truncates
    for name, x in inputs.items():
        gradient = found[f"d {name}"]
        assert gradient.dtype == x.dtype
        assert relative_error(gradient, exact[f"d {name}"]) <= torch.finfo(x.dtype).eps, name


def test_only_wanted_gradients_are_computed() -> None:
    inputs = DEEP.inputs()
    full = DEEP.evaluate(inputs, "triton")
    for name in ("history", "w1", "t2"):
        leaves = {k: x.detach().requires_grad_(k == name) for k, x in inputs.items()}
        z = ops.nlm(*leaves.values(), backend="triton")
        (grad,) = torch.autograd.grad(z, leaves[name], cotangents([z]))
        assert torch.equal(grad, full[f"d {name}"])


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)], ids=str)
@CASES
def test_registered_backward(case: OpCase, wanted: tuple[bool, bool]) -> None:
    arguments = OPS["nlm"].arguments(case.inputs(), {"dropout": 0.3, "seed": 7})
    grad = torch.randn(arguments[0].shape[:2]).t().contiguous().t()
    backward = torch.ops.ctm_fast.nlm_backward_triton
    torch.library.opcheck(
        backward, (grad, *arguments, *wanted), test_utils=("test_schema", "test_faketensor")
    )


def test_blocks_are_powers_of_two_within_the_limits() -> None:
    for kernel, most in blocks.LIMITS.items():
        for rows, memory, hidden in ((1, 1, 1), (64, 25, 64), (10**6, 1000, 1000)):
            for wide in (False, True):
                found = blocks.blocks(kernel, rows, memory, hidden, wide)
                assert all(math.log2(x).is_integer() for x in found.values())
                assert found["BLOCK_R"] <= most.rows and found["num_warps"] <= 8
