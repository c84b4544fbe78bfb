"""The Triton kernels of the ntm ops where naive code divides by zero, underflows or overflows, and their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.ops.ntm.arguments import MOST_SLOTS
from ctm_fast.ops.ntm.layout import ADDS, EPS_PLACEMENTS, KEYS, ORDERS
from ctm_fast.testing import Inputs, OpCase, leaf
from ctm_fast.testing.ntm import step_case

pytest.importorskip("triton")
F64 = torch.float64
TINY = NtmLayout(1, 1, 2)


def equal_and_finite(case: OpCase, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs and gradients in float64, finite and those of the reference."""
    found, truth = (case.evaluate(inputs, name) for name in ("triton", "reference"))
    for name, y in found.items():
        assert y.isfinite().all(), name
        torch.testing.assert_close(
            y, truth[name], rtol=1e-9, atol=1e-9 * max(1.0, truth[name].abs().max().item())
        )
    return found


def address_case(placement: str = "root", shift: int = 3) -> OpCase:
    return OpCase("ntm_address", "trap", (1, 5, 2, 0, shift), {"eps_placement": placement, "eps": 1e-4})


@pytest.mark.parametrize("zero", ["some slots", "memory and key"])
@pytest.mark.parametrize("placement", EPS_PLACEMENTS)
def test_zero_slots_and_keys(placement: str, zero: str, device: str) -> None:
    case = address_case(placement).on(device)
    inputs = case.inputs(F64)
    if zero == "some slots":
        inputs["memory"][:, ::3] = 0
    else:
        inputs |= {name: torch.zeros_like(inputs[name]) for name in ("memory", "key")}
    equal_and_finite(case, inputs)


@pytest.mark.parametrize(("name", "value"), [("beta", 0.0), ("beta", 1e5), ("gamma", 1e3), ("gate", 1.0)])
def test_extreme_strengths(name: str, value: float, device: str) -> None:
    case = address_case().on(device)
    inputs = case.inputs(F64)
    inputs[name] = torch.full_like(inputs[name], value)
    equal_and_finite(case, inputs)


@pytest.mark.parametrize("gamma", [1.0, 50.0])
def test_sharpening_of_one_hot_weights(gamma: float, device: str) -> None:
    case = address_case().on(device)
    inputs = case.inputs(F64)
    one_hot = torch.eye(5, dtype=F64)[3:4]
    inputs |= {
        "previous": one_hot,
        "gate": torch.zeros(1, dtype=F64),
        "gamma": torch.full((1,), gamma, dtype=F64),
    }
    inputs["shift"] = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
    found = equal_and_finite(case, inputs)
    torch.testing.assert_close(found["weights"], one_hot.roll(1, -1))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_not_a_number_reaches_every_slot(device: str) -> None:
    case = address_case().on(device)
    inputs = case.inputs()
    inputs["memory"][0, 2, 1] = float("nan")
    assert case.run(inputs, "triton")["weights"].isnan().all()


def test_erasing_everything_by_two_heads(device: str) -> None:
    """What two heads leave is zero: a division by it would not give their gradients."""
    case = OpCase("ntm_write", "trap", (1, 5, 2, 2)).on(device)
    inputs = case.inputs(F64)
    inputs |= {name: torch.ones_like(inputs[name]) for name in ("weights", "erase")}
    equal_and_finite(case, inputs)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shared", [False, True])
def test_every_layout(order: str, shared: bool, device: str) -> None:
    place = ORDERS.index(order)
    layout = replace(
        TINY, shift=1 + 2 * place, order=order, shared_weights=shared, add=ADDS[place], key=KEYS[place % 2],
        strength="oneplus" if shared else "softplus", eps_placement=EPS_PLACEMENTS[place + 3 * shared],
    )  # fmt: skip
    case = step_case("layout", 1, 3, layout).on(device)
    given = case.inputs(F64)
    given["memory"][:, 1] = 0
    given["interface"] *= 30  # saturates the activations
    found = []
    for backend in ("triton", "reference"):
        inputs = {name: leaf(x) for name, x in given.items()}
        outputs = case.run(inputs, backend)
        loss = sum(y.square().sum() for y in outputs.values())
        found.append(
            (*outputs.values(), *torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True))
        )
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_weights_of_all_steps_carry_gradients() -> None:
    case = step_case("trace", 1, 3, replace(TINY, order="read_write"), steps=2)
    found = []
    for backend in ("triton", "reference"):
        inputs = {name: leaf(x) for name, x in case.inputs(F64).items()}
        _, trace = ops.ntm_sequence(
            *inputs.values(), layout=case.options["layout"], trace=True, backend=backend
        )
        loss = sum(
            (i + 1) * x[..., i % 3].sum() for i, x in enumerate((*trace.read_weights, *trace.write_weights))
        )
        found.append(torch.autograd.grad(loss, list(inputs.values())))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain)


def test_same_bits_on_every_run(device: str) -> None:
    case = step_case("repeated", 2, 5, TINY).on(device)
    first, second = (case.evaluate(case.inputs(), "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_slots_than_the_kernels_take() -> None:
    memory, weights = torch.zeros(1, MOST_SLOTS + 1, 1), torch.zeros(1, MOST_SLOTS + 1)
    with pytest.raises(RuntimeError, match=rf"ntm_read: backend 'triton' .* up to {MOST_SLOTS} slots, got"):
        ops.ntm_read(memory, weights, backend="triton")


def test_most_slots(device: str) -> None:
    case = OpCase("ntm_read", "most", (1, MOST_SLOTS, 1, 1)).on(device)
    found, plain = (case.evaluate(case.inputs(F64), name) for name in ("triton", "reference"))
    for name, y in found.items():
        torch.testing.assert_close(y, plain[name])


def test_all_functions_have_kernels() -> None:
    for function in ("ntm", "ntm_address", "ntm_read", "ntm_write", "ntm_step", "ntm_sequence"):
        assert backends.why_not(function, "triton", "cuda") is None
