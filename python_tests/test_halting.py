"""ops.adaptive_halting: a naive loop per sample, limits, padding, compaction. Dense ops: test_contract.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_fast import ops

BACKENDS = ("reference", "native")
B, D, OUT = 7, 5, 3
EPSILON = 0.01


class Problem:
    """A small cell in float64; ``bias`` moves its halting probabilities."""

    def __init__(self, batch: int = B, bias: float = -0.5) -> None:
        self.w = torch.randn(D, D).double().requires_grad_()
        self.flag = torch.randn(D).double().requires_grad_()
        self.halt = torch.randn(D).double().requires_grad_()
        self.readout = torch.randn(OUT, D).double().requires_grad_()
        self.x = torch.randn(batch, D).double().requires_grad_()
        self.state = torch.randn(batch, D).double().requires_grad_()
        self.memory = torch.randn(batch, 2, 2).double().requires_grad_()
        self.bias = torch.full((), bias, dtype=torch.float64)
        self.rows: list[int] = []

    @property
    def leaves(self) -> list[Tensor]:
        return [self.w, self.flag, self.halt, self.readout, self.x, self.state, self.memory]

    def step(self, x: Tensor, state: Any, first: bool) -> tuple[Tensor, Any, Tensor]:
        hidden, memory = state
        self.rows.append(len(x))
        hidden = torch.tanh(x + hidden @ self.w.t() + (self.flag if first else 0))
        memory = memory * 0.9 + hidden[:, :4].view(-1, 2, 2)
        return hidden @ self.readout.t(), (hidden, memory), torch.sigmoid(hidden @ self.halt + self.bias)

    def run(self, **options: Any) -> ops.AdaptiveHalting:
        return ops.adaptive_halting(self.step, self.x, (self.state, self.memory), **options)


def naive(
    p: Problem, b: int, max_steps: int, force_halt: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """One sample, substep by substep: output, hidden state, memory, ponder, steps."""
    state: Any = (p.state[b : b + 1], p.memory[b : b + 1])
    output, hidden, memory = torch.zeros(OUT).double(), torch.zeros(D).double(), torch.zeros(2, 2).double()
    total = torch.zeros(()).double()
    for n in range(1, max_steps + 1):
        y, state, h = p.step(p.x[b : b + 1], state, n == 1)
        crossed = total + h[0] >= 1 - EPSILON
        ends = crossed or (force_halt and n == max_steps)
        weight = 1 - total if ends else h[0]
        output, hidden, memory = (
            a + weight * v[0] for a, v in zip((output, hidden, memory), (y, *state), strict=True)
        )
        if ends:
            return output, hidden, memory, n + weight, n
        total = total + h[0]
    return output, hidden, memory, torch.tensor(float(max_steps)).double(), max_steps


def results(found: ops.AdaptiveHalting) -> list[Tensor]:
    return [found.output, *found.state, found.ponder]


def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    loss = torch.stack([(y * torch.cos(torch.arange(y.numel())).view(y.shape)).sum() for y in outputs]).sum()
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compaction", [True, False], ids=["compact", "whole"])
@pytest.mark.parametrize(
    ("bias", "max_steps", "force_halt"),
    [
        (-0.5, 100, True),
        (-2.0, 100, True),
        (-2.0, 6, True),
        (-2.0, 6, False),
        (-0.5, 1, True),
        (-0.5, 1, False),
    ],
    ids=["few", "many", "limit", "limit-unforced", "one-substep", "one-substep-unforced"],
)
def test_equals_a_loop_over_samples(
    bias: float, max_steps: int, force_halt: bool, compaction: bool, backend: str
) -> None:
    p = Problem(bias=bias)
    options: dict[str, Any] = {"max_steps": max_steps, "force_halt": force_halt}
    found = p.run(**options, compaction=compaction, backend=backend)
    singles = [naive(p, b, max_steps, force_halt) for b in range(B)]
    expected = [torch.stack([s[i] for s in singles]) for i in range(4)]
    assert found.steps.tolist() == [s[4] for s in singles]
    assert_same(results(found), expected)
    assert_same(gradients(results(found), p.leaves), gradients(expected, p.leaves))


@pytest.mark.parametrize("bias", [-0.5, -3.0], ids=["few", "many"])
def test_compaction_changes_nothing_but_the_rows_computed(bias: float) -> None:
    p = Problem(bias=bias)
    compact = p.run(max_steps=20)
    assert sum(p.rows) == int(compact.steps.sum()) < B * len(p.rows)
    p.rows.clear()
    whole = p.run(max_steps=20, compaction=False)
    assert p.rows == [B] * int(compact.steps.max())
    assert torch.equal(compact.steps, whole.steps) and torch.equal(compact.samples, whole.samples)
    assert_same(results(compact), results(whole))
    assert_same(gradients(results(compact), p.leaves), gradients(results(whole), p.leaves))


@pytest.mark.parametrize("bias", [-0.5, -4.0, -60.0, 60.0], ids=["few", "many", "never", "at-once"])
def test_weights_sum_to_one(bias: float) -> None:
    found = Problem(bias=bias).run(max_steps=9)
    sums = torch.zeros(B).double().index_add(0, found.samples, found.weights)
    assert_same([sums], [torch.ones(B).double()])
    if bias == -60.0:
        assert found.steps.tolist() == [9] * B
        assert_same([found.ponder], [torch.full((B,), 10.0).double()])
    if bias == 60.0:
        assert found.steps.tolist() == [1] * B
        assert_same([found.ponder], [torch.full((B,), 2.0).double()])


def test_unforced_samples_that_never_halt_have_no_remainder() -> None:
    found = Problem(bias=-60.0).run(max_steps=4, force_halt=False)
    assert found.ponder.tolist() == [4.0] * B
    assert found.weights.sum() < 1e-20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compaction", [True, False], ids=["compact", "whole"])
def test_padded_samples_take_no_substep(compaction: bool, backend: str) -> None:
    p = Problem()
    mask = torch.tensor([True, False, True, True, False, False, True])
    with torch.no_grad():
        p.x[~mask] = math.nan
    found = p.run(mask=mask, compaction=compaction, backend=backend)
    assert p.rows[0] == int(mask.sum())
    assert found.steps[~mask].tolist() == found.ponder[~mask].tolist() == [0.0] * 3
    assert torch.equal(found.output[~mask], torch.zeros(3, OUT).double())
    assert torch.equal(found.state[0][~mask], p.state[~mask]) and torch.equal(
        found.state[1][~mask], p.memory[~mask]
    )
    expected = [
        torch.stack(values) for values in zip(*(naive(p, b, 100)[:4] for b in mask.nonzero()), strict=True)
    ]
    assert_same([y[mask] for y in results(found)], expected)
    grads = gradients(results(found), p.leaves)
    assert all(g.isfinite().all() for g in grads)
    assert not grads[4][~mask].any()


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_small_batches(batch: int, backend: str) -> None:
    p = Problem(batch)
    found = p.run(backend=backend)
    assert found.output.shape == (batch, OUT) and found.state[1].shape == (batch, 2, 2)
    assert found.ponder.shape == found.steps.shape == (batch,)
    for grad, leaf in zip(gradients(results(found), p.leaves), p.leaves, strict=True):
        assert grad.shape == leaf.shape and grad.isfinite().all()


def test_all_padded() -> None:
    p = Problem()
    found = p.run(mask=torch.zeros(B, dtype=torch.bool))
    assert p.rows == [0]
    assert not found.steps.any() and not found.output.any() and torch.equal(found.state[0], p.state)


def test_ponder_has_the_gradient_of_the_paper() -> None:
    h = torch.tensor([0.2, 0.3, 0.7, 0.4], dtype=torch.float64, requires_grad=True)
    weights, ponder = ops.halting_weights(h, torch.zeros(4, dtype=torch.int64), batch=1)
    assert_same([weights, ponder], [h.new_tensor([0.2, 0.3, 0.5, 0.0]), h.new_tensor([3.5])])
    (grad,) = torch.autograd.grad(ponder.sum(), h)
    assert grad.tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_tensors_in_tensors_out() -> None:
    p = Problem()

    def step(x: tuple[()], hidden: Tensor, first: bool) -> tuple[tuple[()], Tensor, Tensor]:
        hidden = torch.tanh(hidden @ p.w)
        return (), hidden, torch.sigmoid(hidden @ p.halt)

    found = ops.adaptive_halting(step, (), p.state)
    assert found.output == () and found.state.shape == (B, D)


def test_nan_runs_to_the_limit() -> None:
    p = Problem()
    with torch.no_grad():
        p.x[2] = math.nan
    found = p.run(max_steps=11)
    assert found.steps[2] == 11 and found.output[2].isnan().all()
    others = torch.arange(B) != 2
    assert found.output[others].isfinite().all()


@pytest.mark.parametrize(
    ("reduction", "mask", "expected"),
    [("sum", None, 3.5), ("mean", None, 7 / 4), ("mean", torch.tensor([[True, True], [True, False]]), 7 / 3)],
    ids=["sum", "mean", "mean-padded"],
)
def test_ponder_cost(reduction: str, mask: Tensor | None, expected: float) -> None:
    ponder = torch.tensor([[2.0, 3.0], [2.0, 0.0]])
    assert ops.ponder_cost(ponder, mask, reduction=reduction).item() == pytest.approx(expected)


def test_ponder_cost_of_no_samples_is_zero() -> None:
    for reduction in ("sum", "mean"):
        assert ops.ponder_cost(torch.zeros(3, 0), reduction=reduction) == 0
    assert ops.ponder_cost(torch.zeros(2), torch.zeros(2, dtype=torch.bool), reduction="mean") == 0


X, STATE = torch.randn(4, 2), torch.randn(4, 3)


def fine(x: Tensor, state: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x, state, torch.full((len(x),), 0.5)


def wide(x: Tensor, state: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x, state, x


def short(x: Tensor, state: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x[:1], state, torch.ones(len(x))


def returning(found: object) -> Callable[..., object]:
    return lambda x, state, first: found


HALF, BOTH = torch.full((4,), 0.5), (STATE, STATE)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epsilon": ({"epsilon": 1.0}, ValueError, r"epsilon must be in \[0, 1\), got 1"),
    "epsilon-text": ({"epsilon": "x"}, TypeError, "epsilon must be a number, got str"),
    "compaction": ({"compaction": 1}, TypeError, "compaction must be a bool, got int"),
    "force_halt": ({"force_halt": None}, TypeError, "force_halt must be a bool, got NoneType"),
    "max_steps-bool": ({"max_steps": True}, TypeError, "max_steps must be an int, got bool"),
    "state-meta": ({"state": STATE.to("meta")}, ValueError, "state must hold numbers, got a meta tensor"),
    "max_steps": ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
    "rows": ({"inputs": X[:3]}, ValueError, "inputs must have as many rows as the state"),
    "no-state": ({"state": ()}, ValueError, "state must be a tensor or a tuple of at least one"),
    "state-type": ({"state": [1.0]}, TypeError, "state must be a torch.Tensor, got float"),
    "mask-shape": ({"mask": X[:3, 0] > 0}, ValueError, r"mask must have shape \(B\) = \(4,\)"),
    "mask-dtype": ({"mask": X[:, 0]}, TypeError, "mask must be torch.bool"),
    "probability": ({"step": wide}, ValueError, r"step's probability must have shape \(A\)"),
    "output": ({"step": short}, ValueError, "step's output must have 4 rows"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be None or one of"),
    "inputs-none": ({"inputs": None}, TypeError, "inputs must be a tensor or a tuple of tensors, got None"),
    "state-none": ({"state": None}, TypeError, "state must be a tensor or a tuple of tensors, got NoneType"),
    "step": ({"step": 5}, TypeError, "step must be callable, got int"),
    "step-none": ({"step": returning(None)}, TypeError, r"step must return \(output, .*\), got NoneType"),
    "step-two": ({"step": returning((X, STATE))}, TypeError, r"step must return \(.*\), got 2 values"),
    "step-state-none": (
        {"step": returning((X, None, HALF))},
        TypeError,
        "step's state must be a tensor or a tuple of tensors, got NoneType",
    ),
    "step-state-one": (
        {"step": returning((X, STATE, HALF)), "state": BOTH},
        ValueError,
        "step's state must be a tuple of 2 as the one given, got a tensor",
    ),
    "step-state-count": (
        {"step": returning((X, (STATE,), HALF)), "state": BOTH},
        ValueError,
        "step's state must be a tuple of 2 as the one given, got a tuple of 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    changed, error, message = BAD[name]
    arguments: dict[str, Any] = {"step": fine, "inputs": X, "state": STATE, **changed}
    with pytest.raises(error, match=f"adaptive_halting: {message}"):
        ops.adaptive_halting(**arguments)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_a_state_comes_back_in_its_form(padded: bool) -> None:
    mask = torch.tensor([True, False, True, True]) if padded else None
    for form in (list, tuple):
        found = ops.adaptive_halting(fine, X, form(BOTH), mask=mask)
        assert type(found.state) is form and len(found.state) == 2
