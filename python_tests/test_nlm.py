"""ops.nlm: naive loops, the hand-written backward, dropout, bad inputs. The contract is in test_contract.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops.nlm import reference
from ctm_fast.testing import CASES, Inputs, OpCase, cotangents, nlm_inputs

NLM_CASES = [case for case in CASES if case.op == "nlm"]
DEEP, LINEAR = (OpCase("nlm", name, sizes) for name, sizes in (("deep", (3, 5, 4, 2)), ("linear", (3, 5, 4, 0))))


def glu(values: list[float]) -> list[float]:
    half = len(values) // 2
    return [values[i] / (1 + math.exp(-values[half + i])) for i in range(half)]


def naive_layer(x: list[float], w: np.ndarray, b: np.ndarray, t: float, neuron: int) -> list[float]:
    inputs, outputs, _ = w.shape
    return [
        (sum(x[i] * w[i, o, neuron] for i in range(inputs)) + b[0, neuron, o]) / t for o in range(outputs)
    ]


def naive(inputs: Inputs) -> np.ndarray:
    """One sample, one neuron, one output at a time."""
    x, w1, b1, t1, *second = (value.numpy() for value in inputs.values() if value is not None)
    z = np.empty(x.shape[:2])
    for sample in range(x.shape[0]):
        for neuron in range(x.shape[1]):
            values = glu(naive_layer(list(x[sample, neuron]), w1, b1, t1[0], neuron))
            if second:
                w2, b2, t2 = second
                values = glu(naive_layer(values, w2, b2, t2[0], neuron))
            z[sample, neuron] = values[0]
    return z


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("case", [DEEP, LINEAR], ids=str)
def test_equals_naive_loops(case: OpCase, backend: str) -> None:
    inputs = case.inputs(torch.float64)
    np.testing.assert_allclose(case.run(inputs, backend)["z"].numpy(), naive(inputs), rtol=1e-13)


@pytest.mark.parametrize("case", NLM_CASES, ids=str)
def test_hand_written_backward_equals_autograd(case: OpCase) -> None:
    inputs = case.inputs(torch.float64)
    expected = case.evaluate(inputs, "reference")
    (grad,) = cotangents({"z": expected.pop("z")})
    found = reference.nlm_backward(grad, *inputs.values(), **case.options)  # type: ignore[arg-type]
    for value, (name, gradient) in zip(found, expected.items(), strict=False):
        torch.testing.assert_close(value, gradient, rtol=1e-11, atol=1e-12, msg=name)


def test_only_wanted_gradients_are_computed() -> None:
    inputs = DEEP.inputs()
    full = DEEP.evaluate(inputs, "native")
    for name in inputs:
        leaves = {k: x.detach().requires_grad_(k == name) for k, x in inputs.items() if x is not None}
        z = ops.nlm(*leaves.values(), backend="native")
        (grad,) = torch.autograd.grad(z, leaves[name], cotangents({"z": z}))
        assert torch.equal(grad, full[f"d {name}"])
    assert not ops.nlm(*inputs.values(), backend="native").requires_grad  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_history_accumulates_in_float32(weights: torch.dtype) -> None:
    inputs = DEEP.inputs(torch.bfloat16)
    inputs = {k: x.to(weights) if k != "history" and x is not None else x for k, x in inputs.items()}
    single = {k: x.float() for k, x in inputs.items() if x is not None}
    found, exact = DEEP.evaluate(inputs, "native"), DEEP.evaluate(single, "native")
    assert torch.equal(found["z"], exact["z"].bfloat16())
    for name, x in inputs.items():
        assert x is not None
        assert torch.equal(found[f"d {name}"], exact[f"d {name}"].to(x.dtype)), name


# Dropout


@pytest.mark.parametrize("case", NLM_CASES, ids=str)
def test_dropout_draws_the_mask_of_the_reference(case: OpCase, simd_level: str) -> None:
    inputs = case.inputs(torch.float64)
    native, plain = (
        ops.nlm(*inputs.values(), dropout=0.4, seed=-3, backend=b)  # type: ignore[arg-type]
        for b in ("native", "reference")
    )
    torch.testing.assert_close(native, plain, rtol=1e-12, atol=1e-14)


def test_dropout_scales_by_the_kept_share() -> None:
    ones = torch.ones(64, 128, 8)
    w1 = torch.zeros(8, 2, 128)
    w1[:, 0] = 1 / 8
    b1 = torch.zeros(1, 128, 2)
    z = 2 * ops.nlm(ones, w1, b1, torch.ones(1), dropout=0.25, seed=1)  # the gate is a half
    kept = z * 8 * 0.75
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-4)
    assert abs(z.mean().item() - 1) < 4 * math.sqrt(1 / 3 / z.numel() / 8)


def test_dropout_seeds_come_from_torch() -> None:
    inputs = DEEP.inputs()

    def run(**options: Any) -> Tensor:
        return ops.nlm(*inputs.values(), dropout=0.5, **options)  # type: ignore[arg-type]

    torch.manual_seed(3)
    first, second = run(), run()
    torch.manual_seed(3)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)
    assert torch.equal(run(seed=9), run(seed=torch.tensor([9])))
    assert torch.equal(run(seed=torch.tensor(9)), run(seed=9, backend="native"))


def test_no_dropout_draws_no_seed() -> None:
    inputs = DEEP.inputs()
    before = torch.get_rng_state()
    z = ops.nlm(*inputs.values(), dropout=0.0, seed=1)  # type: ignore[arg-type]
    assert torch.equal(z, DEEP.run(inputs)["z"])
    assert torch.equal(torch.get_rng_state(), before)


# Bad inputs: (argument, value, error, text)

WRONG = {
    "history-list": ("history", [[0.0]], TypeError, "history must be a torch.Tensor, got list"),
    "history-integer": ("history", torch.zeros(3, 5, 4, dtype=torch.int64), TypeError, "history must be a floating"),
    "history-rank": ("history", torch.zeros(3, 5), ValueError, r"history must have shape \(B, D, M\), got \(3, 5\)"),
    "history-memory": ("history", torch.zeros(3, 5, 3), ValueError, r"= \(3, 5, 4\), got \(3, 5, 3\)"),
    "history-neurons": ("history", torch.zeros(3, 6, 4), ValueError, r"= \(3, 5, 4\), got \(3, 6, 4\)"),
    "history-dtype": ("history", torch.zeros(3, 5, 4).double(), TypeError, "w1 must be torch.float64, got torch.float32"),
    "history-meta": ("history", torch.zeros(3, 5, 4, device="meta"), ValueError, "device of history, meta, got cpu"),
    "w1-None": ("w1", None, TypeError, "w1 must be a torch.Tensor, got NoneType"),
    "w1-rank": ("w1", torch.zeros(4, 4), ValueError, r"w1 must have shape \(M, 2H, D\), got \(4, 4\)"),
    "w1-odd": ("w1", torch.zeros(4, 3, 5), ValueError, r"even, positive number of outputs .* got \(4, 3, 5\)"),
    "w1-no-outputs": ("w1", torch.zeros(4, 0, 5), ValueError, "even, positive number of outputs"),
    "b1-shape": ("b1", torch.zeros(5, 4), ValueError, r"b1 must have shape \(1, D, 2H\) = \(1, 5, 4\), got \(5, 4\)"),
    "b1-dtype": ("b1", torch.zeros(1, 5, 4).double(), TypeError, "b1 must be torch.float32, got torch.float64"),
    "b1-meta": ("b1", torch.zeros(1, 5, 4, device="meta"), ValueError, "b1 must be on the device of w1, cpu, got meta"),
    "t1-scalar": ("t1", torch.ones(()), ValueError, r"t1 must have shape \(1\) = \(1,\), got \(\)"),
    "t1-float": ("t1", 1.0, TypeError, "t1 must be a torch.Tensor, got float"),
    "w2-None": ("w2", None, ValueError, "w2, b2, t2 must be given together or not at all, got b2, t2 alone"),
    "w2-shape": ("w2", torch.zeros(3, 2, 5), ValueError, r"w2 must have shape \(H, 2, D\) = \(2, 2, 5\)"),
    "b2-integer": ("b2", torch.zeros(1, 5, 2).int(), TypeError, "b2 must be a floating-point tensor, got torch.int32"),
    "t2-shape": ("t2", torch.ones(2), ValueError, r"t2 must have shape \(1\) = \(1,\), got \(2,\)"),
    "dropout-one": ("dropout", 1.0, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
    "dropout-negative": ("dropout", -0.1, ValueError, r"dropout must be in \[0, 1\), got -0.1"),
    "dropout-nan": ("dropout", math.nan, ValueError, r"dropout must be in \[0, 1\), got nan"),
    "dropout-text": ("dropout", "half", TypeError, "dropout must be a number, got str"),
    "seed-float": ("seed", 1.5, TypeError, "seed must be an int or an int64 tensor with one element, got float"),
    "seed-many": ("seed", torch.zeros(2, dtype=torch.int64), TypeError, r"one element, got torch.int64 of shape \(2,\)"),
    "seed-dtype": ("seed", torch.zeros(1), TypeError, r"one element, got torch.float32 of shape \(1,\)"),
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
    with pytest.raises(ValueError, match="nlm: w1 must have 2 outputs where there is no second layer, got 10"):
        ops.nlm(history, w1, b1, t1)  # type: ignore[arg-type]
