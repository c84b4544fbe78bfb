"""The ntm ops where naive code divides by zero, underflows or overflows: finite wherever the mathematics is."""

from __future__ import annotations

from dataclasses import replace

import ntm_truth as truth
import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.ops.ntm.layout import EPS_PLACEMENTS
from ctm_fast.testing import Inputs, OpCase
from ctm_fast.testing.ntm import ONE, SEVERAL, SHARED

F64 = torch.float64
BACKENDS = pytest.mark.parametrize("backend", ["reference", "native"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
PLACEMENTS = pytest.mark.parametrize("placement", EPS_PLACEMENTS)


def address_case(slots: int = 21, eps_placement: str = "root", shift: int = 3) -> OpCase:
    return OpCase("ntm_address", "trap", (2, slots, 5, 2, shift), {"eps_placement": eps_placement})


def equal_and_finite(case: OpCase, inputs: Inputs, backend: str, scale: float = 1e4) -> dict[str, Tensor]:
    """Outputs and gradients, finite and those of the float64 reference up to ``scale`` units in the last place."""
    found = case.evaluate(inputs, backend)
    truth64 = case.evaluate({k: x.double() for k, x in inputs.items()}, "reference")
    for name, y in found.items():
        assert y.isfinite().all(), name
        bound = scale * torch.finfo(y.dtype).eps
        torch.testing.assert_close(
            y.double(), truth64[name], rtol=bound, atol=bound * max(1.0, truth64[name].abs().max().item())
        )
    return found


@DTYPES
@PLACEMENTS
@pytest.mark.parametrize("zero", ["memory", "key", "both"])
@BACKENDS
def test_zero_slots_and_keys(zero: str, placement: str, dtype: torch.dtype, backend: str) -> None:
    case = address_case(eps_placement=placement)
    inputs = case.inputs(dtype)
    for name in ("memory", "key"):
        if zero in (name, "both"):
            inputs[name] = torch.zeros_like(inputs[name])
    # with eps on the operands, gradients are differences of terms around 1 / eps
    equal_and_finite(case, inputs, backend, scale=1e8 if placement == "operands" else 1e4)


@DTYPES
@PLACEMENTS
@pytest.mark.parametrize("zero", [("memory",), ("key",), ("memory", "key")], ids="-".join)
@BACKENDS
def test_zero_slots_and_keys_with_tiny_eps(
    zero: tuple[str, ...], placement: str, dtype: torch.dtype, backend: str
) -> None:
    """The gradients are of the order 1 / sqrt(eps) or 1 / eps, yet finite."""
    case = OpCase("ntm_address", "trap", (2, 21, 5, 2, 3), {"eps_placement": placement, "eps": 1e-12})
    inputs = case.inputs(dtype)
    inputs |= {name: torch.zeros_like(inputs[name]) for name in zero}
    assert all(y.isfinite().all() for y in case.evaluate(inputs, backend).values())


@DTYPES
@PLACEMENTS
@BACKENDS
def test_some_zero_slots(placement: str, dtype: torch.dtype, backend: str) -> None:
    case = address_case(eps_placement=placement)
    inputs = case.inputs(dtype)
    inputs["memory"][:, ::3] = 0
    equal_and_finite(case, inputs, backend)


@DTYPES
@pytest.mark.parametrize("value", [0.0, 1e-6, 1.0], ids=str)
@BACKENDS
def test_identical_slots_get_identical_content(value: float, dtype: torch.dtype, backend: str) -> None:
    case = address_case()
    inputs = case.inputs(dtype)
    inputs["memory"] = torch.full_like(inputs["memory"], value)
    inputs["gate"] = torch.ones_like(inputs["gate"])
    found = equal_and_finite(case, inputs, backend)
    torch.testing.assert_close(found["weights"], torch.full_like(found["weights"], 1 / 21))


@pytest.mark.parametrize("beta", [0.0, 1e3, 1e5], ids=str)
@BACKENDS
def test_strength_without_bound(beta: float, backend: str) -> None:
    case = address_case()
    inputs = case.inputs(F64)
    inputs["beta"] = torch.full_like(inputs["beta"], beta)
    equal_and_finite(case, inputs, backend, scale=1e9)
    single = {name: x.float() for name, x in inputs.items()}
    assert all(y.isfinite().all() for y in case.evaluate(single, backend).values())


@DTYPES
@pytest.mark.parametrize("gamma", [1.0, 50.0, 1e3], ids=str)
@BACKENDS
def test_sharpening_of_one_hot_weights(gamma: float, dtype: torch.dtype, backend: str) -> None:
    """Nothing but zeros and a one: powers underflow, and log has no gradient at zero."""
    case = address_case()
    inputs = case.inputs(dtype)
    one_hot = torch.zeros_like(inputs["previous"])
    one_hot[..., 3] = 1
    inputs |= {"previous": one_hot, "gate": torch.zeros_like(inputs["gate"])}
    inputs["shift"] = torch.tensor([0.0, 0.0, 1.0], dtype=dtype).expand(2, 2, 3).clone()
    inputs["gamma"] = torch.full_like(inputs["gamma"], gamma)
    weights = case.run(inputs, backend)["weights"]
    torch.testing.assert_close(weights, one_hot.roll(1, -1))
    assert all(y.isfinite().all() for y in case.evaluate(inputs, backend).values())


@DTYPES
@pytest.mark.parametrize("gamma", [1.0, 50.0], ids=str)
@BACKENDS
def test_sharpening_of_small_weights(gamma: float, dtype: torch.dtype, backend: str) -> None:
    """The plain power of all weights underflows to 0 / 0; the largest must win."""
    case = address_case()
    inputs = case.inputs(dtype)
    small = torch.full_like(inputs["previous"], 1e-30)
    small[..., 7] = 2e-30
    inputs |= {"previous": small, "gate": torch.zeros_like(inputs["gate"])}
    inputs["shift"] = torch.tensor([0.0, 1.0, 0.0], dtype=dtype).expand(2, 2, 3).clone()
    inputs["gamma"] = torch.full_like(inputs["gamma"], gamma)
    weights = case.run(inputs, backend)["weights"]
    expected = torch.ones(21, dtype=F64)
    expected[7] = 2.0**gamma
    torch.testing.assert_close(
        weights.double(), (expected / expected.sum()).expand(2, 2, 21), rtol=1e-4, atol=1e-9
    )
    assert all(y.isfinite().all() for y in case.evaluate(inputs, backend).values())


@BACKENDS
def test_gradient_of_gamma_ignores_what_is_zero(backend: str) -> None:
    """d w^gamma / d gamma = w^gamma log w, which is 0 at w = 0."""
    memory, weights = torch.zeros(1, 4, 2, dtype=F64), torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=F64)
    gamma = torch.full((1,), 2.0, dtype=F64, requires_grad=True)
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)
    key = torch.ones(1, 2, dtype=F64)
    found = ops.ntm_address(memory, key, zero, zero, one, gamma, weights, backend=backend)
    (grad,) = torch.autograd.grad(found[0, 0], gamma)
    torch.testing.assert_close(grad, torch.zeros(1, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 3])
@BACKENDS
def test_only_weights_break_the_symmetry_of_equal_slots(steps: int, backend: str) -> None:
    """Equal slots and equal weights stay equal, with equal gradients; other weights separate them."""
    memory = torch.full((1, 18, ONE.width), 1e-6, dtype=F64)
    interface = torch.randn(steps, 1, ONE.size, dtype=F64)
    even = torch.full((1, 1, 18), 1 / 18, dtype=F64)
    uneven = torch.randn(1, 1, 18, dtype=F64).softmax(-1)

    def gradient(weights: Tensor) -> Tensor:
        leaf = memory.clone().requires_grad_()
        found = ops.ntm_sequence(leaf, interface, weights, weights, layout=ONE, backend=backend)
        (grad,) = torch.autograd.grad(found.reads.square().sum() + found.memory.square().sum(), leaf)
        assert grad.isfinite().all()
        return grad[0]

    same, apart = gradient(even), gradient(uneven)
    torch.testing.assert_close(same, same[:1].expand_as(same))
    assert (apart - apart[:1]).norm() > 1e-3 * apart.norm()


@pytest.mark.parametrize("layout", [ONE, SEVERAL, SHARED], ids=["one", "several", "shared"])
@DTYPES
@BACKENDS
def test_zero_memory_over_steps(layout: NtmLayout, dtype: torch.dtype, backend: str) -> None:
    """The usual start, and interface vectors that saturate every activation."""
    memory, one_hot = (
        torch.zeros(2, 9, layout.width, dtype=dtype),
        torch.zeros(2, layout.heads, 9, dtype=dtype),
    )
    one_hot[..., 0] = 1
    interface = (torch.randn(6, 2, layout.size) * 30).to(dtype)
    leaves = [x.requires_grad_() for x in (memory, interface, *one_hot.tensor_split([layout.read_heads], 1))]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    found = ops.ntm_sequence(*leaves, layout=layout, backend=backend)
    grads = torch.autograd.grad([y.sum() for y in found], leaves, materialize_grads=True)
    assert all(y.isfinite().all() for y in (*found, *grads))


@BACKENDS
def test_shift_keeps_the_sum(backend: str) -> None:
    inputs = address_case(slots=128, shift=5).inputs()
    inputs["gamma"] = torch.ones_like(inputs["gamma"])
    found = ops.ntm_address(*inputs.values(), backend=backend)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2), rtol=1e-6, atol=0)


@BACKENDS
def test_shift_is_accumulated_in_float32_beside_bfloat16(backend: str) -> None:
    inputs = address_case().inputs(torch.bfloat16)
    found = ops.ntm_address(*inputs.values(), backend=backend)
    exact = ops.ntm_address(*(x.float() for x in inputs.values()), backend=backend)
    assert torch.equal(found, exact.bfloat16())


@BACKENDS
def test_erasing_everything_by_two_heads(backend: str) -> None:
    """The product of what the heads keep is zero, and its gradient must not divide by it."""
    memory = torch.randn(1, 5, 3, dtype=F64, requires_grad=True)
    weights = torch.ones(1, 2, 5, dtype=F64, requires_grad=True)
    erase = torch.ones(1, 2, 3, dtype=F64, requires_grad=True)
    found = ops.ntm_write(memory, weights, erase, torch.zeros_like(erase), backend=backend)
    grads = torch.autograd.grad(found.sum(), (memory, weights, erase))
    assert torch.equal(found, torch.zeros_like(found))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("slots", [1, 15, 16, 17, 33], ids=lambda n: f"N{n}")
@BACKENDS
def test_any_number_of_slots(slots: int, backend: str, simd_level: str) -> None:
    layout = replace(SEVERAL, shift=5)
    arguments = [
        torch.randn(1, slots, layout.width, dtype=F64), torch.randn(1, layout.size, dtype=F64),
        torch.randn(1, layout.read_heads, slots, dtype=F64).softmax(-1),
        torch.randn(1, layout.write_heads, slots, dtype=F64).softmax(-1),
    ]  # fmt: skip
    found = ops.ntm_step(*arguments, layout=layout, backend=backend)
    memory, interface, read, written = (x[0].numpy() for x in arguments)
    reads, after, *_ = truth.step(memory, interface, list(read), list(written), layout)
    np.testing.assert_allclose(found.reads[0].numpy(), reads, rtol=1e-10)
    np.testing.assert_allclose(found.memory[0].numpy(), after, rtol=1e-10)
