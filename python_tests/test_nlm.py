"""ops.nlm: naive loops, the hand-written backward, dropout. The rest is in test_contract.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops.nlm import autograd, reference
from ctm_fast.testing import CASES, Inputs, OpCase, cotangents

NLM_CASES = [case for case in CASES if case.op == "nlm"]
DEEP, LINEAR = (
    OpCase("nlm", name, sizes) for name, sizes in (("deep", (3, 5, 4, 2)), ("linear", (3, 5, 4, 0)))
)


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
    x, w1, b1, t1, *second = (value.numpy() for value in inputs.values())
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
    (grad,) = cotangents([expected.pop("z")])
    found = reference.nlm_backward(grad, *inputs.values(), **case.options)
    for value, (name, gradient) in zip(found, expected.items(), strict=False):
        torch.testing.assert_close(value, gradient, rtol=1e-11, atol=1e-12, msg=name)


def test_only_wanted_gradients_are_computed() -> None:
    inputs = DEEP.inputs()
    full = DEEP.evaluate(inputs, "native")
    for name in inputs:
        leaves = {k: x.detach().requires_grad_(k == name) for k, x in inputs.items()}
        z = ops.nlm(*leaves.values(), backend="native")
        (grad,) = torch.autograd.grad(z, leaves[name], cotangents([z]))
        assert torch.equal(grad, full[f"d {name}"])
    assert not ops.nlm(*inputs.values(), backend="native").requires_grad


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_history_accumulates_in_float32(weights: torch.dtype) -> None:
    inputs = DEEP.inputs(torch.bfloat16)
    inputs = {k: x.to(weights) if k != "history" else x for k, x in inputs.items()}
    single = {k: x.float() for k, x in inputs.items()}
    found, exact = DEEP.evaluate(inputs, "native"), DEEP.evaluate(single, "native")
    assert torch.equal(found["z"], exact["z"].bfloat16())
    for name, x in inputs.items():
        assert torch.equal(found[f"d {name}"], exact[f"d {name}"].to(x.dtype)), name


# Dropout


@pytest.mark.parametrize("case", NLM_CASES, ids=str)
def test_dropout_draws_the_mask_of_the_reference(case: OpCase, simd_level: str) -> None:
    inputs = case.inputs(torch.float64)
    native, plain = (
        ops.nlm(*inputs.values(), dropout=0.4, seed=-3, backend=b) for b in ("native", "reference")
    )
    torch.testing.assert_close(native, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 5, 4, 2), (2, 37, 3, 0), (1, 147, 5, 9), (2, 64, 1, 1)], ids=str)
def test_few_rows_on_unpacked_weights_give_the_bits_of_packed_ones(
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    dropout: float,
    simd_level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sizes[0] <= autograd.DIRECT_ROWS
    inputs = OpCase("nlm", "few-rows", sizes).inputs(dtype)
    found = ops.nlm(*inputs.values(), dropout=dropout, seed=7)
    monkeypatch.setattr(autograd, "DIRECT_ROWS", 0)
    assert torch.equal(found, ops.nlm(*inputs.values(), dropout=dropout, seed=7))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("case", [DEEP, LINEAR], ids=str)
def test_dropout_of_everything_leaves_the_last_bias(case: OpCase, backend: str) -> None:
    inputs = {name: x.requires_grad_() for name, x in case.inputs(torch.float64).items()}
    bias, t = (inputs[name] for name in (("b2", "t2") if "w2" in inputs else ("b1", "t1")))
    z = ops.nlm(*inputs.values(), dropout=1.0, backend=backend)
    expected = torch.nn.functional.glu(bias / t, -1).squeeze(-1).expand(z.shape)
    torch.testing.assert_close(z, expected, rtol=1e-14, atol=0)
    (z * z).sum().backward()
    reached = {name for name, x in inputs.items() if x.grad is not None and x.grad.any()}
    assert reached == ({"b2", "t2"} if "w2" in inputs else {"b1", "t1"})


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
        return ops.nlm(*inputs.values(), dropout=0.5, **options)

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
    z = ops.nlm(*inputs.values(), dropout=0.0, seed=1)
    assert torch.equal(z, DEEP.run(inputs)["z"])
    assert torch.equal(torch.get_rng_state(), before)
