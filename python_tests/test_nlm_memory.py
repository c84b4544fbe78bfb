"""What the loop form of ops.nlm keeps between forward and backward, and for how long."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from nlm_loops import TRITON, B, M, T, assert_same, draw, gradients, mix, native, run, width, windows
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ctm_fast.ops import nlm_pack, nlm_tick


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_retain_graph_gives_the_same_gradients_twice(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    z = run(nlm_pack(*weights, backend=backend), start, first)
    once, again = (gradients(z, [*weights, start, first], [3, 6]) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
    partial = gradients(z, weights, [2])
    assert_same(partial, gradients(windows(weights, start, first), weights, [2]), rtol=1e-4)


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_checkpoint_recomputes_ticks(backend: str) -> None:
    weights, start, first = draw(dtype=torch.float64, neurons=width(backend))
    leaves = [*weights, start, first]
    packed = nlm_pack(*weights, backend=backend)
    history = packed.history(start, B, T)

    def tick(z: Tensor, t: int) -> Tensor:
        history[t] = mix(z, t)
        return nlm_tick(packed, history, t)

    z, found = first, []
    for t in range(T):
        z = checkpoint(tick, z, t, use_reentrant=False)
        found.append(z)
    ticks = [1, 6]
    assert_same(gradients(found, leaves, ticks), gradients(windows(weights, start, first), leaves, ticks))


def test_checkpoint_of_the_whole_loop() -> None:
    weights, start, first = draw(dtype=torch.float64)
    leaves = [*weights, start, first]
    last = checkpoint(lambda *x: native(list(x[:-2]), x[-2], x[-1])[-1], *leaves, use_reentrant=False)
    expected = windows(weights, start, first)
    assert_same(
        list(torch.autograd.grad(last.sum(), leaves)), list(torch.autograd.grad(expected[-1].sum(), leaves))
    )


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_reentrant_checkpoint_raises(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)
    history = packed.history(start, B, T)

    def tick(z: Tensor) -> Tensor:
        history[0] = mix(z, 0)
        return nlm_tick(packed, history, 0)

    z = checkpoint(tick, first, use_reentrant=True)
    with pytest.raises(
        RuntimeError, match="nlm_tick: reentrant checkpointing would lose gradients, use use_reentrant="
    ):
        z.sum().backward()


def test_backward_after_an_optimiser_step_raises_as_plain_pytorch_does() -> None:
    weights, start, first = draw()
    optimiser = torch.optim.SGD(weights, lr=0.1)
    early, late = native(weights, start, first), native(weights, start, first)
    late[-1].sum().backward()
    optimiser.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        early[-1].sum().backward()
    weights2 = [w.detach().clone().requires_grad_() for w in weights]
    assert torch.equal(native(weights, start, first)[-1], native(weights2, start, first)[-1])


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_create_graph_names_the_reference(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    z = run(nlm_pack(*weights, backend=backend), start, first, 1, written=1)
    with pytest.raises(RuntimeError, match=r"create_graph=True needs .* backend='reference'"):
        torch.autograd.grad(z[-1].sum(), first, create_graph=True)


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_autograd_keeps_one_pre_activation_per_tick(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    kept: set[tuple[int, int]] = set()

    def note(x: Tensor) -> Tensor:
        kept.add((x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()))
        return x

    packed = nlm_pack(*weights, backend=backend)
    history = packed.history(start, B, T)
    z = first
    with saved_tensors_hooks(note, lambda x: x):
        for t in range(T):
            s = (z * 0.5).detach().requires_grad_()
            history[t] = s
            z = nlm_tick(packed, history, t)
    assert history.rows is not None and packed.packed is not None
    assert kept == {(packed.packed.data_ptr(), packed.packed.untyped_storage().nbytes())}
    assert history.rows.data.numel() == (M + T) * B * width(backend)
    assert len(history.states) == T + 1
    assert all(state.untyped_storage().nbytes() <= 4 for state in history.states.values())
    assert history.written == {}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("backend", ["native", TRITON])
def test_a_forward_is_freed_with_its_outputs(backend: str, backward: bool) -> None:
    def forward() -> list[weakref.ref[object]]:
        weights, start, first = draw(neurons=width(backend))
        packed = nlm_pack(*weights, backend=backend)
        history = packed.history(start, B, 1)
        history[0] = first
        z = nlm_tick(packed, history, 0)
        if backward:
            z.sum().backward()
        return [weakref.ref(x) for x in (history, history.rows, packed)]

    gc.disable()  # freed by reference counts alone: nothing waits for the collector
    try:
        assert [alive() for alive in forward()] == [None, None, None]
    finally:
        gc.enable()
