"""The loop form of ops.nlm, nlm_pack and nlm_tick, against plain PyTorch on stacked windows."""

from __future__ import annotations

import functools

import pytest
import torch
from nlm_loops import TRITON, B, Loop, T, assert_same, draw, gradients, mix, native, run, width, windows
from torch import Tensor

from ctm_fast import _C
from ctm_fast.ops import NlmPack, nlm_pack, nlm_tick
from ctm_fast.testing import Inputs, breaches, leaf


@pytest.mark.parametrize("hidden", [3, 0], ids=["deep", "linear"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("ticks", [list(range(T)), [T - 1], [2], [1, 4]], ids=str)
def test_equals_windows_where_some_ticks_reach_the_loss(
    hidden: int, dropout: float, ticks: list[int]
) -> None:
    weights, start, first = draw(hidden, torch.float64)
    leaves = [*weights, start, first]
    expected = windows(weights, start, first, dropout)
    for backend in ("native", "reference"):
        found = run(nlm_pack(*weights, backend=backend), start, first, dropout=dropout)
        assert_same(found, expected)
        assert_same(gradients(found, leaves, ticks), gradients(expected, leaves, ticks))


@pytest.mark.parametrize("backend", [TRITON])
@pytest.mark.parametrize("hidden", [3, 0], ids=["deep", "linear"])
def test_triton_equals_windows(hidden: int, backend: str) -> None:
    ticks = 3
    weights, start, first = draw(hidden, torch.float64, neurons=width(backend))
    leaves = [*weights, start, first]
    expected = windows(weights, start, first, 0.3, ticks)
    found = run(nlm_pack(*weights, backend=backend), start, first, ticks, 0.3, ticks)
    assert_same(found, expected)
    for reached in ([0, 1, 2], [1]):
        assert_same(gradients(found, leaves, reached), gradients(expected, leaves, reached))


def test_error_is_at_most_twice_plain_pytorch(simd_level: str) -> None:
    def inputs(dtype: torch.dtype, seed: int) -> Inputs:
        weights, start, first = draw(dtype=dtype, seed=seed)
        return {str(i): x.detach() for i, x in enumerate([*weights, start, first])}

    def evaluate(loop: Loop, inputs: Inputs) -> dict[str, Tensor]:
        leaves = [leaf(x) for x in inputs.values()]
        z = loop(leaves[:-2], leaves[-2], leaves[-1])
        return {str(i): x for i, x in enumerate([*z, *gradients(z, leaves, list(range(T)))])}

    fast, plain = (functools.partial(evaluate, loop) for loop in (native, windows))
    assert breaches(inputs, fast, plain, torch.float32) == {}


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_interleaved_forwards_share_a_pack(backend: str) -> None:
    weights, start, first = draw(dtype=torch.float64, neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)
    seconds = (first.detach() * -2).requires_grad_()
    histories = [packed.history(start, B, T) for _ in range(2)]
    z: list[Tensor] = [first, seconds]
    found: list[list[Tensor]] = [[], []]
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


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_one_pack_serves_forwards_of_any_size(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)
    short, wide = run(packed, start, first, 2, written=2), run(packed, start, first.repeat(5, 1))
    assert torch.equal(wide[1][:B], short[1])
    assert all(g.isfinite().all() for g in gradients(short, weights, [0, 1]))


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_ticks_that_were_not_computed_add_nothing(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)
    halted, full = run(packed, start, first, ticks=20, written=3), run(packed, start, first)
    expected = gradients(full, weights, [2])
    for a, b in zip(gradients(halted, weights, [2]), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(len(_C.simd_levels()) < 2, reason="this processor runs one SIMD level")
def test_a_pack_is_bound_to_its_simd_level(simd_level: str) -> None:
    weights, start, first = draw()
    packed = nlm_pack(*weights, backend="native")
    found = run(packed, start, first)
    history = packed.history(start, B, T)
    history[0] = mix(first, 0)
    _C.set_simd_level(next(level for level in _C.simd_levels() if level != simd_level))
    refused = functools.partial(
        pytest.raises, ValueError, match="nlm: packed must be of the SIMD level in use"
    )
    with refused():
        nlm_tick(packed, history, 0)
    with refused():
        gradients(found, weights, [T - 1])
    _C.set_simd_level(simd_level)
    assert torch.equal(nlm_tick(packed, history, 0), found[0])


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_nan_after_the_last_tick_of_the_loss_stays_out(backend: str) -> None:
    weights, start, first = draw(neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)
    history = packed.history(start, B, 2)
    history[0] = first
    z = nlm_tick(packed, history, 0)
    history[1] = z * torch.nan
    assert nlm_tick(packed, history, 1).isnan().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(z.sum(), weights))


@pytest.mark.parametrize("backend", ["native", TRITON])
def test_one_tensor_may_be_the_pre_activation_of_several_ticks(backend: str) -> None:
    weights, start, first = draw(dtype=torch.float64, neurons=width(backend))

    def twice(loop: NlmPack) -> list[Tensor]:
        history = loop.history(start, B, 2)
        history[0] = first
        a = nlm_tick(loop, history, 0)
        history[1] = first
        return [a, nlm_tick(loop, history, 1)]

    fast, plain = (twice(nlm_pack(*weights, backend=b)) for b in (backend, "reference"))
    assert_same(gradients(fast, [first, start], [0, 1]), gradients(plain, [first, start], [0, 1]))


@pytest.mark.parametrize("backend", ["native", "reference", TRITON])
def test_one_buffer_may_serve_all_ticks(backend: str) -> None:
    weights, start, first = draw(dtype=torch.float64, neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)

    def ticks(buffer: Tensor | None) -> list[Tensor]:
        history, found = packed.history(start, B, T), []
        for t in range(T):
            s = mix(first.detach(), t)
            history[t] = s if buffer is None else buffer.copy_(s)
            found.append(nlm_tick(packed, history, t))
        return found

    expected = ticks(None)
    assert_same(ticks(torch.empty_like(first)), expected)
    leaves = [*weights, start]
    assert_same(
        gradients(ticks(torch.empty_like(first)), leaves, [2, 6]), gradients(expected, leaves, [2, 6])
    )


@pytest.mark.parametrize("backend", ["native", "reference", TRITON])
def test_a_change_after_writing_changes_nothing(backend: str) -> None:
    weights, start, first = draw(dtype=torch.float64, neurons=width(backend))
    packed = nlm_pack(*weights, backend=backend)

    def tick(change: bool) -> list[Tensor]:
        history, s = packed.history(start, B, 1), mix(first, 0)
        history[0] = s
        if change:
            s.mul_(5)
        return [nlm_tick(packed, history, 0)]

    expected, found = tick(False), tick(True)
    assert torch.equal(found[0], expected[0])
    assert_same(gradients(found, [first, *weights], [0]), gradients(expected, [first, *weights], [0]))


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch.compile does so itself
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
def test_compiles_in_one_graph(dropout: float) -> None:
    weights, start, first = draw(dtype=torch.float64)
    leaves = [*weights, start, first]

    def loop(*x: Tensor) -> list[Tensor]:
        return run(nlm_pack(*x[:-2]), x[-2], x[-1], dropout=dropout, ticks=3, written=3)

    found, expected = torch.compile(loop, fullgraph=True, backend="aot_eager")(*leaves), loop(*leaves)
    assert_same(found, expected)
    assert_same(gradients(found, leaves, [0, 2]), gradients(expected, leaves, [0, 2]))


def test_same_bits_for_every_thread_count() -> None:
    weights, start, first = draw()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        z = native(weights, start, first)
        found.append([*z, *gradients(z, [*weights, start, first], [2, 6])])
    torch.set_num_threads(before)
    for values in zip(*found, strict=True):
        assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
