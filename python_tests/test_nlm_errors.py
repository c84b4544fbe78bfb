"""What ops.nlm and its loop form refuse, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import nlm_pack, nlm_tick
from ctm_fast.testing import OpCase
from ctm_fast.testing.nlm import nlm_inputs

DEEP = OpCase("nlm", "deep", (3, 5, 4, 2))
B, D, M = 3, 5, 4


def draw() -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights, start (D, M) and pre-activations (B, D)."""
    return list(DEEP.inputs().values())[1:], torch.zeros(D, M), torch.ones(B, D)


WRONG = {
    "history-list": ("history", [[0.0]], TypeError, "history must be a torch.Tensor, got list"),
    "history-integer": (
        "history",
        torch.zeros(3, 5, 4, dtype=torch.int64),
        TypeError,
        "history must be a floating",
    ),
    "history-rank": (
        "history",
        torch.zeros(3, 5),
        ValueError,
        r"history must have shape \(B, D, M\), got \(3, 5\)",
    ),
    "history-memory": ("history", torch.zeros(3, 5, 3), ValueError, r"= \(3, 5, 4\), got \(3, 5, 3\)"),
    "history-neurons": ("history", torch.zeros(3, 6, 4), ValueError, r"= \(3, 5, 4\), got \(3, 6, 4\)"),
    "history-dtype": (
        "history",
        torch.zeros(3, 5, 4).double(),
        TypeError,
        "w1 must be torch.float64, got torch.float32",
    ),
    "history-meta": (
        "history",
        torch.zeros(3, 5, 4, device="meta"),
        ValueError,
        "device of history, meta, got cpu",
    ),
    "w1-dtype": (
        "w1",
        torch.zeros(4, 4, 5).double(),
        TypeError,
        "w1 must be torch.float32, got torch.float64",
    ),
    "w1-None": ("w1", None, TypeError, "w1 must be a torch.Tensor, got NoneType"),
    "w1-rank": ("w1", torch.zeros(4, 4), ValueError, r"w1 must have shape \(M, 2H, D\), got \(4, 4\)"),
    "w1-odd": (
        "w1",
        torch.zeros(4, 3, 5),
        ValueError,
        r"even, positive number of outputs .* got \(4, 3, 5\)",
    ),
    "w1-no-outputs": ("w1", torch.zeros(4, 0, 5), ValueError, "even, positive number of outputs"),
    "b1-shape": (
        "b1",
        torch.zeros(5, 4),
        ValueError,
        r"b1 must have shape \(1, D, 2H\) = \(1, 5, 4\), got \(5, 4\)",
    ),
    "b1-dtype": (
        "b1",
        torch.zeros(1, 5, 4).double(),
        TypeError,
        "b1 must be torch.float32, got torch.float64",
    ),
    "b1-meta": (
        "b1",
        torch.zeros(1, 5, 4, device="meta"),
        ValueError,
        "b1 must be on the device of w1, cpu, got meta",
    ),
    "t1-scalar": ("t1", torch.ones(()), ValueError, r"t1 must have shape \(1\) = \(1,\), got \(\)"),
    "t1-float": ("t1", 1.0, TypeError, "t1 must be a torch.Tensor, got float"),
    "w2-None": ("w2", None, ValueError, "w2, b2, t2 must be given together or not at all, got b2, t2 alone"),
    "w2-shape": ("w2", torch.zeros(3, 2, 5), ValueError, r"w2 must have shape \(H, 2, D\) = \(2, 2, 5\)"),
    "b2-integer": (
        "b2",
        torch.zeros(1, 5, 2).int(),
        TypeError,
        "b2 must be a floating-point tensor, got torch.int32",
    ),
    "t2-shape": ("t2", torch.ones(2), ValueError, r"t2 must have shape \(1\) = \(1,\), got \(2,\)"),
    "dropout-above-one": ("dropout", 1.1, ValueError, r"dropout must be in \[0, 1\], got 1.1"),
    "dropout-negative": ("dropout", -0.1, ValueError, r"dropout must be in \[0, 1\], got -0.1"),
    "dropout-nan": ("dropout", math.nan, ValueError, r"dropout must be in \[0, 1\], got nan"),
    "dropout-text": ("dropout", "half", TypeError, "dropout must be a number, got str"),
    "seed-float": (
        "seed",
        1.5,
        TypeError,
        "seed must be an int or an int64 tensor with one element, got float",
    ),
    "seed-many": (
        "seed",
        torch.zeros(2, dtype=torch.int64),
        TypeError,
        r"one element, got torch.int64 of shape \(2,\)",
    ),
    "seed-dtype": ("seed", torch.zeros(1), TypeError, r"one element, got torch.float32 of shape \(1,\)"),
    "seed-bool": ("seed", True, TypeError, "one element, got bool"),
    "seed-meta": (
        "seed",
        torch.zeros(1, dtype=torch.int64, device="meta"),
        ValueError,
        "seed must hold numbers, got a meta tensor",
    ),
    "dropout-bool": ("dropout", True, TypeError, "dropout must be a number, got bool"),
    "seed-large": ("seed", 2**63, ValueError, "seed must fit 64 signed bits, got 9223372036854775808"),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("name", "value", "error", "text"), WRONG.values(), ids=WRONG.keys())
def test_bad_input(name: str, value: object, error: type[Exception], text: str, backend: str | None) -> None:
    arguments: dict[str, Any] = {**DEEP.inputs(), "dropout": 0.1, name: value}
    with pytest.raises(error, match=f"^nlm: .*{text}"):
        ops.nlm(**arguments, backend=backend)


def test_linear_models_have_two_outputs() -> None:
    inputs = nlm_inputs(2, 3, 4, 5, dtype=torch.float32, generator=torch.Generator())
    history, w1, b1, t1 = list(inputs.values())[:4]
    with pytest.raises(
        ValueError, match="nlm: w1 must have 2 outputs where there is no second layer, got 10"
    ):
        ops.nlm(history, w1, b1, t1)


def test_pack_refuses_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    weights, _, _ = draw()
    with pytest.raises(ValueError, match=r"nlm_pack: b1 must have .* = \(1, 5, 4\), got \(5, 4\)"):
        nlm_pack(weights[0], weights[1][0], *weights[2:])
    with pytest.raises(ValueError, match=r"nlm: backend must be None or one of .*, got 'fast'"):
        nlm_pack(*weights, backend="fast")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here: Triton kernels run on the GPU"):
        nlm_pack(*weights, backend="triton")
    half = [w.detach().bfloat16() for w in weights]
    with pytest.raises(RuntimeError, match=r"nlm_pack: backend 'native' cannot run here: .* and float64"):
        nlm_pack(*half, backend="native")
    assert nlm_pack(*half).backend == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=r"nlm_pack: backend 'triton' cannot run here: .* and float64"):
        nlm_pack(*half, backend="triton")


WRONG_HISTORY = {
    "start-list": ({"start": [0.0]}, TypeError, "start must be a torch.Tensor, got list"),
    "start-shape": (
        {"start": torch.zeros(M, D)},
        ValueError,
        r"start must have .* = \(5, 4\), got",
    ),
    "start-dtype": (
        {"start": torch.zeros(D, M).double()},
        TypeError,
        "start must be .*, got torch.float64",
    ),
    "start-meta": (
        {"start": torch.zeros(D, M, device="meta")},
        ValueError,
        "start must be on the device of w1, cpu",
    ),
    "start-sparse": ({"start": torch.zeros(D, M).to_sparse()}, TypeError, "start must be a dense tensor"),
    "batch-negative": ({"batch": -1}, ValueError, r"batch must be at least 0 and below \d+, got -1"),
    "batch-bool": ({"batch": True}, TypeError, "batch must be an int, got bool"),
    "no-ticks": ({"ticks": 0}, ValueError, r"ticks must be at least 1 and below \d+, got 0"),
    "ticks-huge": ({"ticks": 2**40}, ValueError, r"ticks must be .* below 2147483648, got 1099511627776"),
    "ticks-float": ({"ticks": 2.0}, TypeError, "ticks must be an int, got float"),
    "dropout-above-one": ({"dropout": 1.1}, ValueError, r"dropout must be in \[0, 1\], got 1.1"),
    "seed-unused": ({"seed": "x"}, TypeError, "seed must be an int or an int64 tensor .*, got str"),
    "seed-text": (
        {"dropout": 0.1, "seed": "x"},
        TypeError,
        "seed must be an int or an int64 tensor .*, got str",
    ),
}


@pytest.mark.parametrize(("changed", "error", "text"), WRONG_HISTORY.values(), ids=WRONG_HISTORY.keys())
def test_bad_history(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    weights, start, _ = draw()
    arguments: dict[str, Any] = {"start": start, "batch": B, "ticks": 2} | changed
    with pytest.raises(error, match=f"^nlm_tick: {text}"):
        nlm_pack(*weights).history(**arguments)


WRONG_WRITE = {
    "tick-negative": (-1, torch.zeros(B, D), IndexError, r"t must be in \[0, 2\), got -1"),
    "tick-large": (2, torch.zeros(B, D), IndexError, r"t must be in \[0, 2\), got 2"),
    "integers": (0, torch.zeros(B, D).int(), TypeError, "pre_activation must be a floating-point tensor"),
    "batch": (0, torch.zeros(B + 1, D), ValueError, r"pre_activation must have .* = \(3, 5\), got \(4, 5\)"),
    "tick-bool": (True, torch.zeros(B, D), TypeError, "t must be an int, got bool"),
    "sparse": (0, torch.zeros(B, D).to_sparse(), TypeError, "pre_activation must be a dense tensor"),
    "dtype": (
        0,
        torch.zeros(B, D).double(),
        TypeError,
        "pre_activation must be .*, got torch.float64",
    ),
    "meta": (
        0,
        torch.zeros(B, D, device="meta"),
        ValueError,
        "pre_activation must be on .*, cpu, got",
    ),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("t", "value", "error", "text"), WRONG_WRITE.values(), ids=WRONG_WRITE.keys())
def test_bad_write(t: int, value: Tensor, error: type[Exception], text: str, backend: str) -> None:
    weights, start, _ = draw()
    history = nlm_pack(*weights, backend=backend).history(start, B, 2)
    with pytest.raises(error, match=f"^nlm_tick: {text}"):
        history[t] = value


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_ticks_out_of_order(backend: str) -> None:
    weights, start, first = draw()
    packed, other = (nlm_pack(*weights, backend=backend) for _ in range(2))
    history = packed.history(start, B, 3)
    with pytest.raises(ValueError, match=r"nlm_tick: history\[0\] must be written before tick 0 is computed"):
        nlm_tick(packed, history, 0)
    history[1] = first
    with pytest.raises(ValueError, match="nlm_tick: ticks must be computed in order, got 1 before 0"):
        nlm_tick(packed, history, 1)
    with pytest.raises(ValueError, match=r"nlm_tick: history must come from packed.history\(\)"):
        nlm_tick(other, history, 1)
    with pytest.raises(IndexError, match=r"nlm_tick: t must be in \[0, 3\), got 3"):
        nlm_tick(packed, history, 3)


@pytest.mark.parametrize(
    ("position", "text"), [(0, "packed must be an NlmPack"), (1, "history must be an NlmHistory")]
)
def test_tick_of_something_else(position: int, text: str) -> None:
    weights, start, _ = draw()
    packed = nlm_pack(*weights)
    arguments: list[Any] = [packed, packed.history(start, B, 1)]
    arguments[position] = None
    with pytest.raises(TypeError, match=f"^nlm_tick: {text}, got NoneType"):
        nlm_tick(*arguments, 0)


def test_a_computed_tick_keeps_its_numbers() -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    history = packed.history(start, B, 1)
    history[0] = first * 0
    history[0] = first * torch.nan
    z = nlm_tick(packed, history, 0)
    history[0] = first * torch.nan
    assert torch.equal(nlm_tick(packed, history, 0).isnan(), z.isnan())
    with pytest.raises(ValueError, match=r"nlm_tick: history\[0\] must be written once, got other values"):
        history[0] = first


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bits_are_refused(dtype: torch.dtype) -> None:
    weights, _, _ = draw()
    with pytest.raises(TypeError, match=r"^nlm: history must have 16 to 64 bits per element, got"):
        ops.nlm(torch.zeros(B, D, weights[0].shape[0]).to(dtype), *weights)
