"""The loop form of ops.nlm: nlm_pack and nlm_tick against plain PyTorch on stacked windows."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ctm_fast.ops import NlmHistory, NlmPack, nlm_pack, nlm_tick
from ctm_fast.ops.nlm import reference
from ctm_fast.testing import Inputs, breaches, nlm_inputs

T, B, D, M = 7, 3, 37, 4
Weights = list[Tensor]
Loop = Callable[[Weights, Tensor, Tensor], list[Tensor]]


def draw(hidden: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Weights, Tensor, Tensor]:
    """Leaves: weights, start (D, M) and the first activations (B, D)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = nlm_inputs(B, D, M, hidden, dtype=dtype, generator=generator)
    start, first = (torch.randn(s, generator=generator).to(dtype) for s in ((D, M), (B, D)))
    weights = [x for name, x in inputs.items() if x is not None and name != "history"]
    return [w.requires_grad_() for w in weights], start.requires_grad_(), first.requires_grad_()


def mix(z: Tensor, t: int) -> Tensor:
    """What a model does between two ticks."""
    return torch.sin(z + t).roll(1, -1) * 1.5


def run(
    packed: NlmPack, start: Tensor, z: Tensor, ticks: int = T, dropout: float = 0.0, written: int = T
) -> list[Tensor]:
    history = packed.history(start, z.shape[0], ticks, dropout=dropout, seed=11)
    found = []
    for t in range(written):
        history[t] = mix(z, t)
        z = nlm_tick(packed, history, t)
        found.append(z)
    return found


def native(weights: Weights, start: Tensor, z: Tensor) -> list[Tensor]:
    return run(nlm_pack(*weights, backend="native"), start, z)


def windows(weights: Weights, start: Tensor, z: Tensor, dropout: float = 0.0) -> list[Tensor]:
    """The same ticks on concatenated windows, as published."""
    trace = start.expand(B, D, M)
    found = []
    for t in range(T):
        trace = torch.cat((trace[:, :, 1:], mix(z, t).unsqueeze(-1)), -1)
        z = reference.nlm(trace, *weights, dropout=dropout, seed=11, first_row=t * B)
        found.append(z)
    return found


def gradients(found: list[Tensor], leaves: Weights, ticks: list[int]) -> list[Tensor]:
    loss = sum((found[t] * torch.linspace(-1, 1, D)).sum() * (t + 1) for t in ticks)
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("hidden", [3, 0], ids=["deep", "linear"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("ticks", [list(range(T)), [T - 1], [2], [1, 4]], ids=str)
def test_equals_windows_where_some_ticks_reach_the_loss(hidden: int, dropout: float, ticks: list[int]) -> None:
    weights, start, first = draw(hidden, torch.float64)
    leaves = [*weights, start, first]
    expected = windows(weights, start, first, dropout)
    for backend in ("native", "reference"):
        found = run(nlm_pack(*weights, backend=backend), start, first, dropout=dropout)
        assert_same(found, expected)
        assert_same(gradients(found, leaves, ticks), gradients(expected, leaves, ticks))


def test_error_is_at_most_twice_plain_pytorch(simd_level: str) -> None:
    def inputs(dtype: torch.dtype, seed: int) -> Inputs:
        weights, start, first = draw(dtype=dtype, seed=seed)
        return {str(i): x.detach() for i, x in enumerate([*weights, start, first])}

    def evaluate(loop: Loop, inputs: Inputs) -> dict[str, Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs.values() if x is not None]
        z = loop(leaves[:-2], leaves[-2], leaves[-1])
        return dict(enumerate([*z, *gradients(z, leaves, list(range(T)))]))  # type: ignore[arg-type]

    fast, plain = (functools.partial(evaluate, loop) for loop in (native, windows))
    assert breaches(inputs, fast, plain, torch.float32) == {}


def test_retain_graph_gives_the_same_gradients_twice() -> None:
    weights, start, first = draw()
    z = native(weights, start, first)
    once, again = (gradients(z, [*weights, start, first], [3, 6]) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
    partial = gradients(z, weights, [2])
    assert_same(partial, gradients(windows(weights, start, first), weights, [2]), rtol=1e-4)


def test_checkpoint_recomputes_ticks() -> None:
    weights, start, first = draw(dtype=torch.float64)
    leaves = [*weights, start, first]
    packed = nlm_pack(*weights, backend="native")
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


def test_reentrant_checkpoint_raises() -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    history = packed.history(start, B, T)

    def tick(z: Tensor) -> Tensor:
        history[0] = mix(z, 0)
        return nlm_tick(packed, history, 0)

    z = checkpoint(tick, first, use_reentrant=True)
    with pytest.raises(RuntimeError, match="nlm_tick: reentrant checkpointing would lose gradients, use use_reentrant="):
        z.sum().backward()


def test_interleaved_forwards_share_a_pack() -> None:
    weights, start, first = draw(dtype=torch.float64)
    packed = nlm_pack(*weights, backend="native")
    seconds = (first.detach() * -2).requires_grad_()
    histories = [packed.history(start, B, T) for _ in range(2)]
    z, found = [first, seconds], [[], []]
    for t in range(T):
        for i in range(2):
            histories[i][t] = mix(z[i], t)
            z[i] = nlm_tick(packed, histories[i], t)
            found[i].append(z[i])
    leaves = [*weights, start, first, seconds]
    both = [windows(weights, start, x) for x in (first, seconds)]
    ticks = list(range(T))
    joined = [[a + 2 * b for a, b in zip(*pair, strict=True)] for pair in (found, both)]
    assert_same(gradients(joined[0], leaves, ticks), gradients(joined[1], leaves, ticks))


def test_one_pack_serves_forwards_of_any_size() -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    short, wide = run(packed, start, first, 2, written=2), run(packed, start, first.repeat(5, 1))
    assert torch.equal(wide[1][:B], short[1])
    assert all(g.isfinite().all() for g in gradients(short, weights, [0, 1]))


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


def test_ticks_that_were_not_computed_add_nothing() -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    halted, full = run(packed, start, first, ticks=20, written=3), run(packed, start, first)
    expected = gradients(full, weights, [2])
    for a, b in zip(gradients(halted, weights, [2]), expected, strict=True):
        assert torch.equal(a, b)


def test_nan_after_the_last_tick_of_the_loss_stays_out() -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    history = packed.history(start, B, 2)
    history[0] = first
    z = nlm_tick(packed, history, 0)
    history[1] = z * torch.nan
    assert nlm_tick(packed, history, 1).isnan().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(z.sum(), weights))


def test_one_tensor_may_be_the_pre_activation_of_several_ticks() -> None:
    weights, start, first = draw(dtype=torch.float64)

    def twice(loop: NlmPack) -> list[Tensor]:
        history = loop.history(start, B, 2)
        history[0] = first
        a = nlm_tick(loop, history, 0)
        history[1] = first
        return [a, nlm_tick(loop, history, 1)]

    fast, plain = (twice(nlm_pack(*weights, backend=b)) for b in ("native", "reference"))
    assert_same(gradients(fast, [first, start], [0, 1]), gradients(plain, [first, start], [0, 1]))


def test_create_graph_names_the_reference() -> None:
    weights, start, first = draw()
    z = native(weights, start, first)
    with pytest.raises(RuntimeError, match="create_graph=True needs .* backend='reference'"):
        torch.autograd.grad(z[-1].sum(), first, create_graph=True)


def test_autograd_keeps_one_pre_activation_per_tick() -> None:
    weights, start, first = draw()
    kept: set[tuple[int, int]] = set()

    def note(x: Tensor) -> Tensor:
        kept.add((x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()))
        return x

    packed = nlm_pack(*weights, backend="native")
    history = packed.history(start, B, T)
    z, steps = first, []
    with saved_tensors_hooks(note, lambda x: x):
        for t in range(T):
            s = (z * 0.5).detach().requires_grad_()
            steps.append(weakref.ref(s))
            history[t] = s
            z = nlm_tick(packed, history, t)
            del s
    assert history.rows is not None and packed.packed is not None
    assert kept == {(packed.packed.data_ptr(), packed.packed.untyped_storage().nbytes())}
    assert history.rows.data.numel() == (M + T) * B * D
    assert all(state is not None and state.untyped_storage().nbytes() <= 4 for state in history.states)
    assert history.written == [None] * T


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_forward_is_freed_with_its_outputs(backward: bool) -> None:
    def forward() -> tuple[weakref.ref[NlmHistory], weakref.ref[NlmPack]]:
        weights, start, first = draw()
        packed = nlm_pack(*weights, backend="native")
        history = packed.history(start, B, 1)
        history[0] = first
        z = nlm_tick(packed, history, 0)
        if backward:
            z.sum().backward()
        return weakref.ref(history), weakref.ref(packed)

    gc.disable()  # freed by reference counts alone: nothing waits for the collector
    try:
        assert [r() for r in forward()] == [None, None]
    finally:
        gc.enable()
