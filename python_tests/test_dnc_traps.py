"""ops.dnc_*: values at which known implementations give NaN or lose the gradient, and odd calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ctm_fast import _C, ops
from ctm_fast.ops import DncLayout, DncState
from ctm_fast.testing import Inputs, OpCase, breaches, cotangents, leaf

Trap = Callable[[Inputs], None]

BATCH, SLOTS, WIDTH, HEADS, STEPS = 2, 19, 5, 2, 3
LAYOUTS = {"dense": DncLayout(HEADS, WIDTH), "sparse": DncLayout(HEADS, WIDTH, sparse=4)}
BACKENDS = ("reference", "native")
KEYS, STRENGTHS = slice(0, HEADS * WIDTH), slice(HEADS * WIDTH, HEADS * (WIDTH + 1))
WRITE_KEY = slice(STRENGTHS.stop, STRENGTHS.stop + WIDTH)
WRITE_STRENGTH = slice(WRITE_KEY.stop, WRITE_KEY.stop + 1)


def sequence_case(layout: DncLayout, steps: int = STEPS, slots: int = SLOTS) -> OpCase:
    sizes = (steps, BATCH, slots, layout.width, layout.read_heads, layout.sparse or 0)
    return OpCase("dnc_sequence", "trap", sizes, {"layout": layout})


def zero_memory(inputs: Inputs) -> None:
    inputs["memory"].zero_()


def zero_keys(inputs: Inputs) -> None:
    for part in (KEYS, WRITE_KEY):
        inputs["interface"][..., part] = 0


def zero_state(inputs: Inputs) -> None:
    for name in ("usage", "link", "precedence", "write_weights", "read_weights"):
        inputs[name].zero_()


def equal_usage(inputs: Inputs) -> None:
    for name in ("write_weights", "read_weights"):
        inputs[name].zero_()
    inputs["usage"].fill_(0.25)


def used_or_not(inputs: Inputs) -> None:
    for name in ("write_weights", "read_weights"):
        inputs[name].zero_()
    inputs["usage"].round_()


def full(inputs: Inputs) -> None:
    inputs["usage"].fill_(1.0)
    inputs["read_weights"].zero_()


def strong_keys(inputs: Inputs) -> None:
    for part in (STRENGTHS, WRITE_STRENGTH):
        inputs["interface"][..., part] = 1e3


def identical_rows(inputs: Inputs) -> None:
    inputs["memory"].copy_(inputs["memory"][:, :1].clone())


def saturated(inputs: Inputs) -> None:
    inputs["interface"] *= 60


TRAPS = (
    zero_memory, zero_keys, zero_state, equal_usage, used_or_not, full, strong_keys, identical_rows, saturated
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_trap_is_finite_and_exact(trap: Trap, layout: DncLayout, dtype: torch.dtype) -> None:
    """One step: later ones sort usages that differ by rounding alone."""
    case = sequence_case(layout, steps=1)

    def draw(dtype: torch.dtype, seed: int) -> Inputs:
        inputs = case.inputs(torch.float32, seed)
        trap(inputs)
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}

    native, plain = (functools.partial(case.evaluate, backend=backend) for backend in ("native", "reference"))
    assert all(x.isfinite().all() for x in native(draw(dtype, 0)).values())
    assert breaches(draw, native, plain, dtype) == {}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_trap_stays_finite(trap: Trap, layout: DncLayout, simd_level: str) -> None:
    case = sequence_case(layout, steps=12)
    inputs = case.inputs()
    trap(inputs)
    for name, x in case.evaluate(inputs, "native").items():
        assert x.isfinite().all(), name


def test_slots_of_identical_rows_separate() -> None:
    case = sequence_case(LAYOUTS["dense"])
    inputs = case.inputs()
    identical_rows(inputs)
    gradient = case.evaluate(inputs, "native")["d memory"]
    assert (gradient[:, 1:] - gradient[:, :1]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("slots", [5, 300], ids=["counted", "sorted"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_usage_is_allocated_in_the_order_of_the_slots(slots: int, backend: str) -> None:
    usage = torch.full((1, slots), 0.5)
    usage[:, slots // 2] = 0.25
    found = ops.dnc_allocation(usage, eps=0.0, backend=backend)[0]
    order = [slots // 2, *(n for n in range(slots) if n != slots // 2)]
    assert found[order[0]] == 0.75
    assert torch.equal(found[order[1:20]], 0.125 * 0.5 ** torch.arange(min(19, slots - 1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_allocation_of_unused_slots_without_squeeze(backend: str) -> None:
    """Zero factors: the gradient of a product that a division would make NaN."""
    usage = torch.tensor([[0.0, 0.5, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    found = ops.dnc_allocation(usage, eps=0.0, backend=backend)
    assert found.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    (gradient,) = torch.autograd.grad(found @ torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), usage)
    assert gradient.tolist() == [[2.0, 0.0, 0.0, 0.0]]


def agree(case: OpCase) -> None:
    inputs = case.inputs(torch.float64)
    found, expected = (case.evaluate(inputs, backend) for backend in ("native", "reference"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("steps", [2, 7, 10], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_replayed_segments_give_the_gradients_of_one_pass(layout: DncLayout, steps: int) -> None:
    agree(sequence_case(layout, steps))


@pytest.mark.parametrize("sparse", [None, 8], ids=["dense", "sparse"])
def test_many_slots_are_sorted_as_few_are(sparse: int | None) -> None:
    layout = DncLayout(1, WIDTH, sparse=sparse)
    agree(sequence_case(layout, steps=2, slots=300))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_detached_writes_cut_one_path_alone(layout: DncLayout, backend: str) -> None:
    memory, interface, *state = sequence_case(layout, steps=2).inputs(torch.float64).values()
    state = [x.detach().requires_grad_(x.is_floating_point()) for x in state]
    grads = {}
    for detach in (False, True):
        option = replace(layout, detach_writes=detach)
        first = ops.dnc_step(memory, interface[0], DncState(*state), layout=option, backend=backend)
        usage, write = first.state.usage, state[3]
        (grads[detach],) = torch.autograd.grad(
            usage.sum(), write, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        (reads,) = torch.autograd.grad(usage.sum(), state[4])
        assert reads.any()
    assert grads[False].any()
    assert not grads[True].any()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_detached_writes_are_those_of_the_reference(layout: DncLayout) -> None:
    case = sequence_case(replace(layout, detach_writes=True))
    inputs = {name: x for name, x in case.inputs(torch.float64).items() if name != "write_weights"}
    last = case.inputs(torch.float64)["write_weights"]
    found = []
    for backend in ("native", "reference"):
        leaves = {name: leaf(x) for name, x in inputs.items()}
        order = [*list(leaves)[:5], "write_weights", *list(leaves)[5:]]
        outputs = case.run({name: leaves.get(name, last) for name in order}, backend)
        wanted = [x for x in leaves.values() if x.requires_grad]
        found.append(torch.autograd.grad(list(outputs.values()), wanted, cotangents(outputs.values())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weightings_of_all_steps_carry_gradients(layout: DncLayout) -> None:
    memory, interface, *state = sequence_case(layout).inputs(torch.float64).values()
    found = []
    for backend in BACKENDS:
        leaves = [memory.clone().requires_grad_(), interface.clone().requires_grad_()]
        _, trace = ops.dnc_sequence(*leaves, DncState(*state), layout=layout, trace=True, backend=backend)
        found.append([*trace, *torch.autograd.grad(trace, leaves, cotangents(trace))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_steps_change_nothing(layout: DncLayout, backend: str) -> None:
    memory, interface, *state = sequence_case(layout, steps=1).inputs().values()
    found, trace = ops.dnc_sequence(
        memory, interface[:0], DncState(*state), layout=layout, trace=True, backend=backend
    )
    assert found.reads.shape == (0, BATCH, HEADS, WIDTH)
    assert trace.read_weights.shape == (0, BATCH, HEADS, SLOTS)
    assert torch.equal(found.memory, memory)
    assert all(torch.equal(a, b) for a, b in zip(found.state, state, strict=False) if a is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_interface_of_autocast_goes_with_a_float32_state(dtype: torch.dtype) -> None:
    layout = LAYOUTS["dense"]
    memory, interface, *state = sequence_case(layout, steps=1).inputs().values()
    found, expected = (
        ops.dnc_step(memory, x, DncState(*state), layout=layout)
        for x in (interface[0].to(dtype), interface[0].to(dtype).float())
    )
    assert found.reads.dtype == found.state.link.dtype == torch.float32
    assert torch.equal(found.reads, expected.reads)


def test_state_apart_from_its_history() -> None:
    layout = LAYOUTS["sparse"]
    memory, interface, *state = sequence_case(layout, steps=1).inputs().values()
    found = ops.dnc_step(memory, interface[0].requires_grad_(), DncState(*state), layout=layout)
    assert found.state.usage.requires_grad
    assert not any(x.requires_grad for x in found.state.detach() if x is not None)


ROOM = 1 << 50  # elements beyond any address space
ONE = 8  # an address that only a kernel that went on would read
SHAPES = {"dense": (1, 64, 1 << 26, 1, 1, 1 << 26, False), "sparse": (1, 64, ROOM, 1, 1, 8, True)}
FLAGS = (1e-6, 1e-6, True, False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_too_large_raises_memory_error(shape, threads: int, simd_level: str) -> None:
    inputs, outputs, links = [ONE] * 8, [ONE] * 7, [ONE] * 4
    with pytest.raises(MemoryError):
        _C.dnc_forward(0, shape, FLAGS, inputs, outputs, ONE, threads)
    with pytest.raises(MemoryError):
        _C.dnc_backward(1, shape, FLAGS, inputs, outputs, outputs, outputs, threads)
    with pytest.raises(MemoryError):
        _C.dnc_link_forward(0, shape, inputs, links, ONE, threads)
    with pytest.raises(MemoryError):
        _C.dnc_link_backward(0, shape, inputs, links, outputs, threads)
    with pytest.raises(MemoryError):
        _C.dnc_allocation(0, (1, 64, ROOM, 0, 0, 0, False), 0.0, ONE, ONE, threads)
