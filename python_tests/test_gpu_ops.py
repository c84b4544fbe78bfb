"""What only a GPU shows of the ops: realistic sizes, streams, devices, memory in use, the same bits."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from nlm_loops import FEW, D, T, draw, gradients, run, windows
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import NtmLayout
from ctm_fast.testing import INTERPRETED, OPS, SMALL, OpCase, breaches, moved, relative_error
from ctm_fast.testing.ntm import step_case

pytest.importorskip("triton")
needs_gpu = pytest.mark.needs_gpu
DROPOUT = {"dropout": 0.3, "seed": 7}
REALISTIC = (
    OpCase("nlm", "cifar10", (128, 64, 15, 64)),
    OpCase("nlm", "imagenet", (64, 128, 25, 64)),
    OpCase("nlm", "mazes", (64, 128, 25, 32), DROPOUT),
    OpCase("nlm", "parity", (64, 1024, 25, 16)),
    OpCase("nlm", "batch-1", (1, 512, 10, 16)),
    OpCase("nlm", "odd", (67, 129, 23, 33), DROPOUT),
    OpCase("nlm", "linear", (64, 1024, 25, 0)),
    OpCase("sync", "dense", (50, 16, 1024, 528)),
    OpCase("sync", "pairing-last-tick", (75, 16, 512, 2048), {"last": True}),
    OpCase("ntm_address", "published", (32, 128, 20, 1, 3)),
    step_case("published", 32, 128, NtmLayout(1, 1, 20)),
    step_case("published", 8, 128, NtmLayout(2, 2, 20), steps=20),
    OpCase("dnc_link", "published", (8, 128, 4, 0)),
)
OF_EVERY_OP = tuple({case.op: case for case in reversed(INTERPRETED)}.values())
cases = functools.partial(pytest.mark.parametrize, "case", ids=str)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, y in expected.items() if not torch.equal(found[name], y)] == []


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@cases(REALISTIC)
def test_realistic_sizes_keep_the_contract(case: OpCase, dtype: torch.dtype) -> None:
    there = case.on("cuda")
    triton, plain = (functools.partial(there.evaluate, backend=name) for name in ("triton", "reference"))
    assert breaches(case.inputs, triton, plain, dtype, draws=4) == {}


@cases(OF_EVERY_OP)
def test_the_same_bits_twice(case: OpCase, device: str) -> None:
    inputs, there = case.inputs(), case.on(device)
    assert_equal(*(there.evaluate(inputs, "triton") for _ in range(2)))


@needs_gpu
@cases(REALISTIC)
def test_realistic_sizes_give_the_same_bits_twice(case: OpCase) -> None:
    inputs, there = case.inputs(), case.on("cuda")
    assert_equal(*(there.evaluate(inputs, "triton") for _ in range(2)))


@needs_gpu
@pytest.mark.sanitized
@cases(OF_EVERY_OP)
def test_without_a_backend_triton_runs(case: OpCase) -> None:
    """Small and every op once, forward and backward: what compute-sanitizer runs again."""
    inputs, there = case.inputs(), case.on("cuda")
    assert_equal(there.evaluate(inputs), there.evaluate(inputs, "triton"))


@needs_gpu
@cases(OF_EVERY_OP)
def test_other_streams(case: OpCase) -> None:
    """The work waits for what the stream holds before it, as it would not on another stream."""
    inputs, there = case.inputs(), case.on("cuda")
    expected = there.run(inputs, "triton")
    placed = there.placed(inputs)
    late = {name: torch.zeros_like(x) for name, x in placed.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds
        for name, x in placed.items():
            late[name].copy_(x)
        found = there.run(late, "triton")
    stream.synchronize()
    assert_equal(found, expected)


@needs_gpu
@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
@cases(OF_EVERY_OP)
def test_other_devices(case: OpCase) -> None:
    inputs = case.inputs()
    first, second = (case.on(f"cuda:{i}").evaluate(inputs, "triton") for i in range(2))
    assert_equal(first, second)
    assert torch.cuda.current_device() == 0


@needs_gpu
@cases(OF_EVERY_OP)
def test_outputs_are_where_the_inputs_are(case: OpCase) -> None:
    inputs = case.on("cuda").placed(case.inputs())
    found = OPS[case.op].run(*inputs.values(), **case.options)
    outputs = found if isinstance(found, tuple) else (found,)
    assert {y.device for y in outputs} == {torch.device("cuda", torch.cuda.current_device())}


@needs_gpu
@cases(OF_EVERY_OP)
def test_memory_that_was_used_before(case: OpCase) -> None:
    """Blocks that the caching allocator gives again hold other numbers, and few are left."""
    inputs, there = case.inputs(), case.on("cuda")
    expected = there.evaluate(inputs, "triton")
    for _ in range(5):
        full = [torch.full((2**size,), float("nan"), device="cuda") for size in range(1, 22)]
        del full
        assert_equal(there.evaluate(inputs, "triton"), expected)


@needs_gpu
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_full_device_says_so_and_goes_on() -> None:
    free, _ = torch.cuda.mem_get_info()
    case = OpCase("nlm", "full", (64, 64, 5, 4), device="cuda")
    inputs = case.inputs()
    expected = case.evaluate(inputs, "triton")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
    assert_equal(case.evaluate(inputs, "triton"), expected)


@pytest.mark.parametrize("hidden", [3, 0], ids=["deep", "linear"])
def test_loops_over_ticks(hidden: int, device: str) -> None:
    """Values and gradients of the loop form, dropout and its masks included, against windows on the CPU."""
    neurons = FEW if device == "cpu" else D
    leaves = draw(hidden, torch.float64, neurons=neurons)
    weights, start, first = leaves
    ticks = list(range(T if device == "cuda" else 3))
    expected = windows(weights, start, first, 0.3, len(ticks))
    placed = [x.detach().to(device).requires_grad_() for x in (*weights, start, first)]
    packed = ops.nlm_pack(*placed[:-2], backend="triton")
    found = run(packed, placed[-2], placed[-1], len(ticks), 0.3, len(ticks))
    grads = gradients([z.cpu() for z in found], placed, ticks)
    truth = gradients(expected, [*weights, start, first], ticks)
    for a, b in itertools.chain(zip(found, expected, strict=True), zip(grads, truth, strict=True)):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-11)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ticks_at_published_sizes(dtype: torch.dtype) -> None:
    """T ticks of 256 neurons with M 15 and H 64, the loop that a training step runs."""
    case = OpCase("nlm", "cifar10", (32, 256, 15, 64))
    inputs = case.inputs(torch.float64)
    history = inputs.pop("history")
    packed = ops.nlm_pack(*(x.to("cuda", dtype) for x in inputs.values()))
    assert packed.backend == "triton"
    rows = packed.history(history[0].to("cuda", dtype), 32, 4)
    window = history[:1].expand(32, -1, -1)
    for t in range(4):
        s = torch.randn(32, 256, dtype=torch.float64)
        rows[t] = s.to("cuda", dtype)
        window = torch.cat((window[:, :, 1:], s.to(dtype).double().unsqueeze(-1)), -1)
        truth = ops.nlm(window, *inputs.values(), backend="reference")
        found = ops.nlm_tick(packed, rows, t)
        assert relative_error(found.cpu(), truth) <= 32 * torch.finfo(dtype).eps


def test_products_are_not_rounded_to_tf32(device: str) -> None:
    """TF32 keeps ten bits: an error a thousand times that of float32, whatever torch is allowed."""
    case = OpCase("nlm", "tf32", (16, 4, 25, 8) if device == "cuda" else (4, 1, 5, 2), device=device)
    inputs = case.inputs()
    truth = case.evaluate({k: x.double() for k, x in inputs.items()}, "reference")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = case.evaluate(inputs, "triton")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert all(relative_error(found[name], y) < 1e-5 for name, y in truth.items())


@cases([case for case in SMALL if not case.op.startswith(("dnc", "halting", "adaptive"))][:3])
def test_strides_move_along(case: OpCase, device: str) -> None:
    for x in case.inputs().values():
        wide = x.new_zeros(*x.shape, 2)[..., 0]
        assert moved(wide, device).stride() == wide.stride()


@cases([case for case in SMALL if case.op in ("nlm", "sync", "ntm_step", "ntm_sequence", "dnc_link")])
def test_the_default_device_does_not_show(case: OpCase) -> None:
    """After ``torch.set_default_device("cuda")`` the ops on the CPU still make their tensors there."""
    inputs = case.inputs()
    expected = case.evaluate(inputs)
    with torch.device("meta"):
        found = case.evaluate(inputs)
    assert_equal(found, expected)
