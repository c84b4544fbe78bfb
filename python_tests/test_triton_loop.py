"""The tick loop on Triton kernels, on a GPU or in Triton's interpreter, against the native loop on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import small_ctm
import torch
from foreign_cases import build, copies, evaluate, moved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.loop.seed import Seed
from ctm_fast.ops.dropout import _signed
from ctm_fast.testing import relative_error

GridExecutor = pytest.importorskip("triton.runtime.interpreter").GridExecutor
loop = pytest.importorskip("ctm_fast.loop.triton", exc_type=ImportError)
SEED = 0x9A3F_0000_1234_5678
# What they allocate is poisoned by fill_, in tests alone.
ALLOCATES = ("aten::empty", "aten::new_empty", "aten::fill_")
TINY: dict[str, Any] = {"iterations": 3, "d_model": 8, "memory_length": 3}
MODELS = ["base", "base-shallow", "base-unet", "sort-unet", "rl"]
LARGER = ["qamnist", "base-random-one-head", "base-first-last", "base-memory-above-ticks"]


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with ctm_fast.use_backend("triton"):
        yield


@pytest.fixture(autouse=True)
def _same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed for all forwards: an int for the native loop, a tensor for Triton's."""

    def seed(backend: str | None, x: Tensor) -> Seed:
        if backend != "triton":
            return Seed(SEED)
        return Seed(torch.full((1,), _signed(SEED, 64), dtype=torch.int64, device=x.device))

    monkeypatch.setattr(run, "_seed", seed)


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every forward or backward of the loop on Triton kernels."""
    made: list[int] = []
    prepare = loop.DeviceSynapses.prepare
    monkeypatch.setattr(loop.DeviceSynapses, "prepare", lambda self: made.append(1) or prepare(self))
    return made


def both(name: str, device: str, dtype: torch.dtype = torch.float64, **sizes: Any) -> tuple[Any, Any]:
    """What a model gives by the native loop, and by the one on Triton kernels: outputs and gradients by name."""
    model, inputs = build(name, batch=2, **{**TINY, **sizes})
    native, fast = copies(ctm_fast.accelerate(model), 2)
    with ctm_fast.use_backend("native"):
        want = evaluate(native, inputs, dtype)
    found = evaluate(fast.to(device), moved(inputs, device), dtype)
    return want, {key: x.cpu() for key, x in found.items()}


def assert_same(want: dict[str, Tensor], found: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert want.keys() == found.keys()
    assert {key: relative_error(found[key], x) for key, x in want.items()} == pytest.approx(
        dict.fromkeys(want, 0.0), abs=tolerance
    )


@pytest.mark.parametrize(("name", "dropout"), [("base", 0.0), *((name, 0.4) for name in MODELS)])
def test_loop_equals_the_native_one(name: str, dropout: float, device: str, loops: list[int]) -> None:
    want, found = both(name, device, **({"dropout": dropout} if dropout else {}))
    assert len(loops) >= 2
    assert_same(want, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_loop_equals_the_native_one_on_larger_models(name: str, device: str) -> None:
    assert_same(*both(name, device, dropout=0.4))


def test_attention_over_several_blocks_of_tokens(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "tile_sizes", lambda *_: {"BLOCK_W": 16, "BLOCK_L": 4, "num_warps": 1})
    assert_same(*both("base", device, dropout=0.4))


def test_more_rows_than_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "ROW_GROUPS", 1)
    assert_same(*both("base-unet", device))


def test_float32_is_as_exact_as_the_native_loop(device: str) -> None:
    truth, _ = both("base-unet", device)
    want, found = both("base-unet", device, torch.float32)
    for key, x in truth.items():
        assert relative_error(found[key], x) <= max(3 * relative_error(want[key], x), 1e-6), key


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_what_is_not_finite_goes_where_the_native_loop_sends_it(value: float, device: str) -> None:
    model, inputs = build("base", batch=2, **TINY)
    inputs[0][0, 0] = value
    native, fast = copies(ctm_fast.accelerate(model), 2)
    with ctm_fast.use_backend("native"), torch.no_grad():
        want = native(*inputs)
    with torch.no_grad():
        found = fast.to(device)(*moved(inputs, device))
    for a, b in zip(want, found, strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_two_forwards_before_their_backwards(device: str) -> None:
    model, inputs = build("base", batch=2, dropout=0.4, **{**TINY, "iterations": 2})
    fast = ctm_fast.accelerate(model).to(device).double()
    given = [moved(inputs, device)[0].double() * factor for factor in (1.0, -0.5)]
    parameters = [p for p in fast.parameters() if p.requires_grad]

    def grads(loss: Tensor, **options: Any) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, **options))

    losses = [fast(x)[0].square().sum() for x in given]
    found = [grads(loss, retain_graph=True) for loss in losses]
    again = [grads(loss) for loss in losses]
    alone = [grads(fast(x)[0].square().sum()) for x in given]
    for a, b, c in zip(found, again, alone, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            assert x is z is None or (torch.equal(x, y) and torch.equal(x, z))  # type: ignore[arg-type]


@pytest.mark.needs_gpu
@pytest.mark.parametrize(("width", "tokens"), [(64, 64), (32, 225)], ids=["parity", "mazes"])
def test_attention_of_published_sizes_gives_the_same_bits_every_time(width: int, tokens: int) -> None:
    model = small_ctm.build(d_input=2 * width, heads=2)
    x = small_ctm.signs(batch=64, length=tokens)
    model(x)
    exact = copy.deepcopy(model).double()
    with ctm_fast.use_backend("native"):
        truth = gradients(exact, x.double())
    model.cuda()
    first = gradients(model, x.cuda())
    for _ in range(50):
        assert all(map(torch.equal, first, gradients(model, x.cuda())))
    for found, want in zip(first, truth, strict=True):
        assert relative_error(found.cpu(), want) < 1e-4


def gradients(model: Any, x: Tensor) -> list[Tensor]:
    """Predictions and the gradients of all parameters that have one."""
    predictions = model(x)[0]
    found = torch.autograd.grad(predictions.square().sum(), [*model.parameters()], allow_unused=True)
    return [predictions.detach(), *(g for g in found if g is not None)]


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: operations of torch that compute, and Triton kernels."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        patch.setattr(
            GridExecutor, "__call__", lambda *_, **__: self.add()
        )  # its own operations would count too

    def add(self) -> None:
        self.count += 1

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op.namespace == "aten" and not op.is_view and not op._schema.name.startswith(ALLOCATES)
        return op(*args, **(kwargs or {}))


def launches(ticks: int, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of a forward and a backward."""
    model = small_ctm.build(iterations=ticks)
    counter, x = Launches(patch), small_ctm.signs()
    model(x)  # makes its lazy layers
    with counter:
        loss = model(x)[0].sum()
    forward = counter.count
    with counter:
        loss.backward()
    return forward, counter.count - forward


def test_a_tick_launches_few_kernels() -> None:
    found = []
    for ticks in (5, 7):
        with pytest.MonkeyPatch.context() as patch:
            found.append(launches(ticks, patch))
    assert [(b - a) / 2 for a, b in zip(*found, strict=True)] == [9, 13]


def test_no_samples_are_called(device: str, loops: list[int]) -> None:
    model = small_ctm.build().to(device)
    assert model(small_ctm.signs(batch=0).to(device))[0].shape[0] == 0
    assert loops == []
