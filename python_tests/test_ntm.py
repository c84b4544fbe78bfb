"""The ntm ops against the definitions written out in NumPy, and T steps against one call."""

from __future__ import annotations

from dataclasses import replace

import ntm_truth as truth
import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.ops.ntm.layout import EPS_PLACEMENTS, ORDERS
from ctm_fast.testing import OpCase
from ctm_fast.testing.ntm import step_case

BACKENDS = ("reference", "native")
F64 = torch.float64


def distributions(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64).softmax(-1)


def address_arguments(batch: int, slots: int, width: int, heads: int, shift: int) -> list[Tensor]:
    return [
        torch.randn(batch, slots, width, dtype=F64),
        torch.randn(batch, heads, width, dtype=F64),
        torch.rand(batch, heads, dtype=F64) * 5,
        torch.rand(batch, heads, dtype=F64),
        distributions(batch, heads, shift),
        1 + torch.rand(batch, heads, dtype=F64) * 3,
        distributions(batch, heads, slots),
    ]


@pytest.mark.parametrize("eps", [1e-6, 0.3], ids=str)
@pytest.mark.parametrize("placement", EPS_PLACEMENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_address_equals_its_definition(placement: str, eps: float, backend: str) -> None:
    arguments = address_arguments(2, 7, 5, 3, 3)
    arguments[0][:, 2] = 0
    found = ops.ntm_address(*arguments, eps=eps, eps_placement=placement, backend=backend)
    memory, *parts = (x.numpy() for x in arguments)
    for b in range(2):
        for h in range(3):
            expected = truth.address(memory[b], *(x[b, h] for x in parts), eps, placement)
            np.testing.assert_allclose(found[b, h].numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [1, 3, 5, 7, 13], ids=lambda s: f"S{s}")
@pytest.mark.parametrize("slots", [1, 2, 5], ids=lambda n: f"N{n}")
def test_shifts_wrap_around(slots: int, shift: int, backend: str) -> None:
    memory, *parts = address_arguments(1, slots, 2, 1, shift)
    found = ops.ntm_address(memory, *parts, backend=backend)
    expected = truth.address(memory[0].numpy(), *(x[0, 0].numpy() for x in parts), 1e-6, "root")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_head_is_the_first_of_several(backend: str) -> None:
    memory, *parts = address_arguments(3, 6, 4, 1, 3)
    single = [x.squeeze(1) for x in parts]
    torch.testing.assert_close(
        ops.ntm_address(memory, *single, backend=backend),
        ops.ntm_address(memory, *parts, backend=backend)[:, 0],
    )
    weights = single[-1]
    assert ops.ntm_read(memory, weights, backend=backend).shape == (3, 4)
    assert ops.ntm_write(memory, weights, single[0], single[0], backend=backend).shape == memory.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_and_write_equal_their_definition(backend: str) -> None:
    memory, weights = torch.randn(2, 7, 5, dtype=F64), distributions(2, 3, 7)
    erase, add = torch.rand(2, 3, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    written = ops.ntm_write(memory, weights, erase, add, backend=backend)
    reads = ops.ntm_read(memory, weights, backend=backend)
    for b in range(2):
        heads = [(weights[b, h].numpy(), erase[b, h].numpy(), add[b, h].numpy()) for h in range(3)]
        np.testing.assert_allclose(written[b].numpy(), truth.write(memory[b].numpy(), heads), rtol=1e-12)
        np.testing.assert_allclose(reads[b].numpy(), weights[b].numpy() @ memory[b].numpy(), rtol=1e-12)


PLAIN = NtmLayout(read_heads=2, write_heads=2, width=5, shift=3)
LAYOUTS = {
    **{order: replace(PLAIN, order=order) for order in ORDERS},
    "one-of-each": NtmLayout(1, 1, 4, 3),
    "shared": replace(PLAIN, order="read_write", shared_weights=True),
    "shared-previous-read": replace(PLAIN, order="previous_read", shared_weights=True),
    "shared-write-read": replace(PLAIN, shared_weights=True),
    "bounded": replace(PLAIN, key="tanh", add="tanh", strength="oneplus"),
    "sigmoid-add": replace(PLAIN, add="sigmoid", eps=1e-12, eps_placement="norm"),
    "no-shift": replace(PLAIN, shift=1),
    "wide-shift": replace(PLAIN, shift=11),
}


def step_arguments(layout: NtmLayout, batch: int = 2, slots: int = 7, steps: int = 1) -> list[Tensor]:
    return [
        torch.randn(batch, slots, layout.width, dtype=F64),
        torch.randn(steps, batch, layout.size, dtype=F64),
        distributions(batch, layout.read_heads, slots),
        distributions(batch, layout.write_heads, slots),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_steps_equal_their_definition(layout: NtmLayout, backend: str) -> None:
    arguments = step_arguments(layout, steps=3)
    found, trace = ops.ntm_sequence(*arguments, layout=layout, trace=True, backend=backend)
    for b in range(2):
        memory, interface, read, written = (x.numpy() for x in arguments)
        state = (memory[b], list(read[b]), list(written[b]))
        for t in range(3):
            reads, *state = truth.step(state[0], interface[t, b], *state[1:], layout)
            np.testing.assert_allclose(found.reads[t, b].numpy(), reads, rtol=1e-10)
            np.testing.assert_allclose(trace.read_weights[t, b].numpy(), state[1], rtol=1e-10)
            np.testing.assert_allclose(trace.write_weights[t, b].numpy(), state[2], rtol=1e-10)
        np.testing.assert_allclose(found.memory[b].numpy(), state[0], rtol=1e-10)
    assert torch.equal(found.read_weights, trace.read_weights[-1])
    assert torch.equal(found.write_weights, trace.write_weights[-1])


def stepped(arguments: list[Tensor], layout: NtmLayout, lengths: list[int], backend: str) -> list[Tensor]:
    """Calls of some steps each, one step through ntm_step, with memory and weights carried."""
    memory, interface, *weights = arguments
    reads = []
    for part in interface.split(lengths):
        if len(part) == 1:
            found, memory, *weights = ops.ntm_step(memory, part[0], *weights, layout=layout, backend=backend)
            found = found.unsqueeze(0)
        else:
            found, memory, *weights = ops.ntm_sequence(memory, part, *weights, layout=layout, backend=backend)
        reads.append(found)
    return [torch.cat(reads), memory, *weights]


@pytest.mark.parametrize("lengths", [[1] * 4, [2, 2], [3, 1]], ids=["steps", "halves", "uneven"])
@pytest.mark.parametrize("layout", [LAYOUTS[k] for k in (*ORDERS, "shared")], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_carried_state_equals_one_call(layout: NtmLayout, lengths: list[int], backend: str) -> None:
    arguments = [x.requires_grad_() for x in step_arguments(layout, steps=4)]
    whole, parts = (stepped(arguments, layout, n, backend) for n in ([4], lengths))
    cotangents = [torch.randn_like(y) for y in whole]
    expected, found = (
        torch.autograd.grad(y, arguments, cotangents, materialize_grads=True) for y in (whole, parts)
    )
    for a, b in zip((*parts, *found), (*whole, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", [LAYOUTS[k] for k in (*ORDERS, "shared")], ids=str)
def test_gradients_through_the_weights_of_all_steps(layout: NtmLayout) -> None:
    arguments = [x.requires_grad_() for x in step_arguments(layout, steps=3)]
    found = []
    for backend in BACKENDS:
        _, trace = ops.ntm_sequence(*arguments, layout=layout, trace=True, backend=backend)
        entropy = sum((-w * w.log()).sum() for w in trace)
        found.append(torch.autograd.grad(entropy, arguments, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1, 2, 3], ids=["reads", "memory", "read_weights", "write_weights"])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_of_one_result_alone(used: int, steps: int) -> None:
    arguments = [x.requires_grad_() for x in step_arguments(PLAIN, steps=steps)]
    found = []
    for backend in BACKENDS:
        results = stepped(arguments, PLAIN, [steps], backend)
        found.append(torch.autograd.grad(results[used].square().sum(), arguments, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interface_in_16_bits_beside_float32(backend: str) -> None:
    """As a linear layer under autocast hands it over."""
    memory, interface, read, write = (x.float() for x in step_arguments(PLAIN))
    found = ops.ntm_step(memory, interface[0].bfloat16(), read, write.half(), layout=PLAIN, backend=backend)
    exact = ops.ntm_step(
        memory, interface[0].bfloat16().float(), read, write.half().float(), layout=PLAIN, backend=backend
    )
    assert [y.dtype for y in found] == [torch.float32, torch.float32, torch.float32, torch.float16]
    for a, b in zip(found, exact, strict=True):
        assert torch.equal(a, b.to(a.dtype))


LARGE = (
    OpCase("ntm_address", "large", (16, 128, 20, 2, 3)),
    OpCase("ntm_read", "large", (16, 128, 20, 2)),
    OpCase("ntm_write", "large", (16, 128, 20, 2)),
    step_case("large", 16, 128, LAYOUTS["one-of-each"]),
    step_case("large", 5, 128, LAYOUTS["one-of-each"], steps=4),
)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_samples_shared_among_threads_give_the_same_bits(case: OpCase) -> None:
    """Sizes that the kernels do give to several threads."""
    inputs, before = case.inputs(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(case.evaluate(inputs, "native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(y, other[name]) for name, y in found[0].items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_step_returns_the_state(backend: str) -> None:
    memory, interface, *weights = step_arguments(PLAIN, steps=0)
    found, trace = ops.ntm_sequence(memory, interface, *weights, layout=PLAIN, trace=True, backend=backend)
    assert found.reads.shape == (0, 2, 2, 5) and trace.write_weights.shape == (0, 2, 2, 7)
    for a, b in zip(found[1:], (memory, *weights), strict=True):
        assert torch.equal(a, b)
