"""The CUDA kernel of all ticks, on a GPU and, emulated, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import emulation
import pytest
import torch
from foreign_cases import CASES, build, copies, moved, to
from torch import Tensor

import ctm_fast
from ctm_fast.loop import persistent
from ctm_fast.ops import cuda
from ctm_fast.testing import relative_error

NOT_PLANNED = "base-layernorm"  # neuron-level models with a LayerNorm are called
PLANNED = [name for name in CASES if name != NOT_PLANNED]
LARGER_BATCHES = [("base", 2), ("base-unet", 3), ("sort", 8), ("qamnist-random", 3), ("rl", 5)]
HARD = {"zeros": 0.0, "large": 1e4, "infinite": float("inf"), "nan": float("nan")}


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulation in the place of the GPU."""
    module = emulation.build()
    module.set_limits(*emulation.SMALL)
    monkeypatch.setattr(cuda, "extension", lambda: module)
    monkeypatch.setattr(cuda, "limits", lambda _: tuple(module.tick_limits(0)))
    monkeypatch.setattr(persistent, "takes", _takes)
    yield module
    module.schedule(0)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernel runs: "cuda", or "cpu" with the emulation in the place of the GPU."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    return "cuda"


def _takes(z0: Tensor) -> bool:
    return z0.dtype == torch.float32 and not torch.is_grad_enabled() and 1 <= len(z0) <= 8


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every run of the kernel."""
    made: list[int] = []
    run = persistent.run
    monkeypatch.setattr(persistent, "run", lambda *x: made.append(1) or run(*x))
    return made


def tensors(x: Any) -> list[Tensor]:
    """All tensors and arrays of nested returns."""
    if isinstance(x, (tuple, list)):
        return [y for part in x for y in tensors(part)]
    return [] if x is None else [torch.as_tensor(x).cpu()]


def outputs(model: Any, inputs: Any, device: str, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model.to(device).eval()(*moved(inputs, device), **options))


def assert_as_exact(fast: list[Tensor], eager: list[Tensor], truth: list[Tensor]) -> None:
    """The error against float64 at most 1e-5 or twice that of the published model."""
    assert len(fast) == len(truth)
    for a, b, c in zip(fast, eager, truth, strict=True):
        assert relative_error(a, c) <= max(1e-5, 2 * relative_error(b, c))


@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in PLANNED), *LARGER_BATCHES])
def test_models_equal_the_published_forward(name: str, batch: int, device: str, launches: list[int]) -> None:
    model, inputs = build(name, batch=batch)
    eager, exact, fast = copies(model, 3)
    options = {} if name == "base-energy" else {"track": True}
    truth = outputs(exact.double(), to(inputs, torch.float64), "cpu", **options)
    found = outputs(ctm_fast.accelerate(fast), inputs, device, **options)
    assert launches == [1]
    assert_as_exact(found, outputs(eager, inputs, "cpu", **options), truth)


@pytest.mark.parametrize("name", ["base", "base-unet", "rl"])
def test_result_depends_on_no_schedule(name: str, emulated: Any) -> None:
    model, inputs = build(name, batch=2)
    ctm_fast.accelerate(model)
    found = []
    for order in (0, 1, 2, 3):
        emulated.schedule(order)
        found.append(outputs(model, inputs, "cpu"))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "limits", [(3, 4 << 10, 8), (1, 100 << 10, 8), (16, 100 << 10, 9), (40, 100 << 10, 9)],
    ids=["weights-streamed", "one-block", "cluster", "more-blocks-than-rows"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["base", pytest.param("sort-unet", marks=pytest.mark.slow)])
def test_result_depends_on_no_launch(
    name: str, limits: tuple[int, ...], emulated: Any, launches: list[int]
) -> None:
    model, inputs = build(name, batch=1)
    ctm_fast.accelerate(model)
    found = []
    for wanted in (emulation.SMALL, limits):
        emulated.set_limits(*wanted)
        found.append(outputs(model, inputs, "cpu"))
    assert launches == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.sanitized
@pytest.mark.parametrize("value", HARD.values(), ids=HARD)
def test_hard_values_come_out_as_published(value: float, device: str) -> None:
    model, inputs = build("base", batch=2)
    inputs[0][0, 0] = value
    eager, fast = copies(model, 2)
    found, want = (outputs(m, inputs, d) for m, d in ((ctm_fast.accelerate(fast), device), (eager, "cpu")))
    for a, b in zip(found, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_dropout_and_gradients_stay_with_the_ticks(device: str, launches: list[int]) -> None:
    model, inputs = build("base", batch=2)
    ctm_fast.accelerate(model).to(device)
    model(*moved(inputs, device))
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.5
        model.train()(*moved(inputs, device))
    assert launches == []


def test_more_samples_than_it_takes_stay_with_the_ticks(device: str, launches: list[int]) -> None:
    model, inputs = build("base", batch=9)
    outputs(ctm_fast.accelerate(model), inputs, device)
    assert launches == []


def test_no_room_for_the_state_leaves_the_ticks_to_themselves(
    device: str, launches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("base", batch=2)
    eager, fast = copies(model, 2)
    plan = cuda.extension().plan_ticks
    monkeypatch.setattr(
        cuda.extension(), "plan_ticks", lambda sizes, stages, _: plan(sizes, stages, (3, 512, 9))
    )
    found, want = (outputs(m, inputs, d) for m, d in ((ctm_fast.accelerate(fast), device), (eager, "cpu")))
    assert launches == []
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, want, strict=True))


def stage(kind: str, width: int, columns: int, skip: int = -1) -> tuple[Any, ...]:
    """A stage as the binding takes it, without weights."""
    return (persistent.KINDS.index(kind), width, skip, 0, 0, columns, 0, 0, 1e-5, 0, 0, 1e-5)


def sizes(ticks: int, batch: int, model: tuple[int, ...], stages: int, attention: tuple[int, ...]) -> Any:
    """(D, M, H) and (d, h, L, P) in the order of the binding."""
    return (ticks, batch, *model, True, stages, *attention)


PARITY = (sizes(75, 1, (1024, 25, 16), 1, (512, 8, 64, 32)), [stage("glu", 1024, 1536)], 4 * 2048 * 1536)
CARTPOLE = (sizes(2, 1, (128, 10, 4), 1, (0, 0, 0, 0)), [stage("glu", 128, 128)], 4 * 256 * 128)


@pytest.mark.parametrize("batch", [1, 8])
def test_parity_keeps_its_weights_on_the_multiprocessors(batch: int) -> None:
    n, stages, weights = PARITY
    plan = emulation.build().plan_ticks((n[0], batch, *n[2:]), stages, emulation.H200)
    assert plan["reason"] == ""
    assert (plan["blocks"], plan["cluster"]) == (132, False)
    assert plan["resident"] * plan["blocks"] >= weights
    assert plan["shared"] <= emulation.H200[1]


def test_smaller_device_streams_what_does_not_fit() -> None:
    n, stages, weights = PARITY
    plan = emulation.build().plan_ticks(n, stages, emulation.A100)
    assert (plan["blocks"], plan["cluster"], plan["reason"]) == (108, False, "")
    assert plan["resident"] * 108 >= weights  # rather than the smaller neuron-level models
    few = emulation.build().plan_ticks(n, stages, (60, emulation.A100[1], 8))
    assert 0 < few["resident"] * 60 < weights


def test_small_models_run_in_one_cluster_where_the_device_has_clusters() -> None:
    n, stages, _ = CARTPOLE
    plans = [emulation.build().plan_ticks(n, stages, x) for x in (emulation.H200, emulation.A100)]
    assert [(x["blocks"], x["cluster"]) for x in plans] == [(16, True), (108, False)]


def test_launch_that_does_not_fit_names_its_sizes(emulated: Any) -> None:
    n, stages, _ = PARITY
    emulated.set_limits(3, 512, 8)
    with pytest.raises(
        ValueError, match=r"ticks: the state .* got \(ticks 75, batch 1, neurons 1024, memory 25"
    ):
        emulated.run_ticks(n, stages, (0,) * 5, 0, 0, (0,) * 8, 0, 0)
    with pytest.raises(RuntimeError, match=r"device 7: CUDA says"):
        emulated.run_ticks(n, stages, (0,) * 5, 0, 0, (0,) * 8, 7, 0)
    with pytest.raises(ValueError, match="stages must be as many as the sizes say and at most 32"):
        emulated.plan_ticks(n, stages * 2, emulation.H200)


def test_older_devices_are_refused() -> None:
    n, stages, _ = PARITY
    plan = emulation.build().plan_ticks(n, stages, (40, 64 << 10, 7))
    assert (plan["blocks"], plan["reason"]) == (0, "the device must have compute capability 8.0 or newer")


@pytest.mark.parametrize("major", [7, 8])
def test_module_that_cannot_run_on_a_device_is_left_out(major: int, caplog: Any) -> None:
    module = emulation.build()
    module.set_limits(40, 64 << 10, major)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "extension", lambda: module)
        cuda._limits.cache_clear()
        assert cuda.limits(0) == (None if major == 7 else (40, 64 << 10, 8))
    cuda._limits.cache_clear()
    assert all("are not used" in message for message in caplog.messages)
    assert bool(caplog.messages) == (major == 7)


def test_parameters_that_are_parts_of_one_vector(emulated: Any, launches: list[int]) -> None:
    emulated.set_limits(3, 8 << 10, 8)  # most weights are read where they lie
    model, inputs = build("base-unet", batch=1)
    ctm_fast.accelerate(model)
    want = outputs(model, inputs, "cpu")
    vector = torch.zeros(1 + sum(x.numel() for x in model.parameters()))
    at = 1
    for x in model.parameters():
        part = vector[at : at + x.numel()].view_as(x)
        part.copy_(x.detach())
        x.data, at = part, at + x.numel()
    found = outputs(model, inputs, "cpu")
    assert launches == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))


@pytest.mark.parametrize("fault", ["outside", "divergent"])
def test_emulation_shows_faults(fault: str) -> None:
    said = {"outside": "wrote behind its shared memory", "divergent": "not all threads reached a barrier"}
    with pytest.raises(RuntimeError, match=said[fault]):
        getattr(emulation.build(), f"run_{fault}")()


def test_emulation_shows_a_missing_barrier() -> None:
    module, found = emulation.build(), {True: set(), False: set()}
    for order in range(4):
        module.schedule(order)
        for barrier, results in found.items():
            results.add(str(module.run_unordered(barrier)))
    module.schedule(0)
    assert len(found[True]) == 1
    assert len(found[False]) > 1


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", ["base", "base-unet", "sort", "rl"])
def test_kernel_on_another_stream_and_in_a_graph_gives_the_same_bits(name: str) -> None:
    model, inputs = build(name, batch=1)
    ctm_fast.accelerate(model).cuda().eval()
    inputs = moved(inputs, "cuda")
    with torch.no_grad():
        want = tensors(model(*inputs))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            elsewhere = model(*inputs)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(*inputs)
        graph.replay()
        torch.cuda.synchronize()
    for found in (tensors(elsewhere), tensors(captured)):
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True))
