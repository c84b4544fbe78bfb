"""The recurrent transformer with NTM memory: published sizes, its definition step by step, state, edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.baselines.rtntm import forward as plain
from ctm_fast.models import RTNTM

SMALL: dict[str, Any] = {"vocabulary": 7, "d_model": 12, "heads": 3, "slots": 5, "window": 3}
PUBLISHED = {
    "copy": ({"vocabulary": 100, "d_model": 104, "heads": 4, "slots": 60, "window": 4}, 262_818),
    "add-64": ({"vocabulary": 14, "d_model": 64, "heads": 8, "read_heads": 2}, 97_143),
    "add-104": ({"vocabulary": 14, "d_model": 104, "heads": 4, "read_heads": 2}, 251_363),
    "add-200": ({"vocabulary": 14, "d_model": 200, "heads": 4, "layers": 2, "read_heads": 2}, 1_397_851),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "window1": {"window": 1},
    "window-beyond-sequence": {"window": 20},
    "heads": {"read_heads": 2, "write_heads": 3},
    "two-layers": {"layers": 2, "read_heads": 2},
    "three-layers": {"layers": 3},
    "state-layers": {"state_layers": 2},
    "positions": {"positions": 16},
    "write-read": {"order": "write_read"},
    "one-slot": {"slots": 1},
    "one-head": {"heads": 1},
}


def make(**changes: Any) -> RTNTM:
    return RTNTM(**{**SMALL, **changes}).double()


def some_tokens(batch: int = 3, steps: int = 8) -> Tensor:
    return torch.randint(SMALL["vocabulary"], (batch, steps))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name: str) -> None:
    arguments, count = PUBLISHED[name]
    assert sum(p.numel() for p in RTNTM(**arguments).parameters()) == count


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_equals_its_definition(changes: dict[str, Any]) -> None:
    """Values and every gradient, with the whole encoder run over every step's whole context."""
    model, tokens = make(**changes), some_tokens()
    expected, memory = plain(model, tokens)
    output = model(tokens)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.state.memory, memory)
    weight = torch.randn_like(expected)
    sums = [
        (logits * weight).sum() + last.memory.square().sum()
        for logits, last in ((expected, memory), (output.logits, output.state.memory))
    ]
    wanted, found = (torch.autograd.grad(total, list(model.parameters())) for total in sums)
    for (name, _), one, other in zip(model.named_parameters(), wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("cut", [1, 2, 5], ids=lambda n: f"after-{n}")
@pytest.mark.parametrize(
    "changes", [{}, {"layers": 2}, {"positions": 16}], ids=["one", "two-layers", "positions"]
)
def test_carried_state_continues(changes: dict[str, Any], cut: int) -> None:
    """A sequence in two calls equals it in one."""
    model, tokens = make(**changes).eval(), some_tokens()
    whole = model(tokens, trace=True)
    first = model(tokens[:, :cut], trace=True)
    second = model(tokens[:, cut:], first.state, trace=True)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), 1), whole.logits)
    torch.testing.assert_close(second.state, whole.state)
    for one, *parts in zip(whole.trace, first.trace, second.trace, strict=True):
        torch.testing.assert_close(torch.cat(parts), one)


def test_evaluation_is_causal() -> None:
    model, tokens = make().eval(), some_tokens()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % SMALL["vocabulary"]
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert (before[:, 5:] != after[:, 5:]).any()


def test_weightings_are_distributions_and_start_on_the_first_slot() -> None:
    model = make(read_heads=2)
    start = model.initial_state(3).memory
    assert torch.equal(start.read_weights[..., 0], torch.ones(3, 2, dtype=torch.float64))
    assert not start.memory.any()
    trace = model(some_tokens(), trace=True).trace
    assert trace.memory.shape == (8, 3, 5, 12)
    for weights, heads in ((trace.read_weights, 2), (trace.write_weights, 1)):
        assert weights.shape == (8, 3, heads, 5)
        assert not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(8, 3, heads, dtype=torch.float64))


def test_slots_come_apart() -> None:
    """Equal slots under the same weighting would stay equal for ever."""
    model = make()
    state = model(some_tokens()).state.memory.memory
    assert (state[:, 0] - state[:, 2]).abs().max() > 1e-3


def test_no_parameter_depends_on_the_slots() -> None:
    model, tokens = make().eval(), some_tokens()
    assert model(tokens, slots=9).state.memory.memory.shape == (3, 9, 12)
    model.slots = 9
    torch.testing.assert_close(model(tokens).logits, model(tokens, slots=9).logits)
    assert sum(p.numel() for p in make(slots=9).parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_acts_in_training_only(layers: int) -> None:
    model, tokens = make(dropout=0.5, layers=layers), some_tokens()
    model.embedding.eval()
    assert (model(tokens).logits != model(tokens).logits).any()
    model.eval()
    torch.testing.assert_close(model(tokens).logits, plain(model, tokens)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads must divide d_model=12, got 5"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"write_heads": 0}, "write_heads must be at least 1, got 0"),
        ({"state_layers": 0}, "state_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"positions": -1}, "positions must not be negative, got -1"),
        ({"order": "never"}, "NtmLayout: order must be one of .*, got 'never'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("shape", [(8,), (3, 0), (3, 8, 1)], ids=str)
def test_tokens_must_be_sequences(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"RTNTM: tokens must have shape \(B, T\), T >= 1, got"):
        make()(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_empty_batch(training: bool) -> None:
    model = make().train(training)
    found = model(torch.zeros(0, 8, dtype=torch.int64))
    assert found.logits.shape == (0, 8, 7) and found.state.memory.memory.shape == (0, 5, 12)
    found.logits.sum().backward()
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", ["dropout", "positions"])
def test_arguments_of_another_kind(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number, got str"):
        make(**{name: "1"})


def wrong_calls() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    tokens = torch.zeros(3, 6, dtype=torch.int64)
    other = make().initial_state(2)
    return {
        "large": ({"tokens": tokens + 100}, IndexError, r"tokens must be in \[0, .*, got values from 100"),
        "negative": ({"tokens": tokens - 1}, IndexError, r"tokens must be in \[0, .*, got values from -1"),
        "float": ({"tokens": tokens.float()}, TypeError, "tokens must be torch.int64, got torch.float32"),
        "list": ({"tokens": [1]}, TypeError, "tokens must be a torch.Tensor, got list"),
        "slots-negative": ({"tokens": tokens, "slots": -3}, ValueError, "slots must be at least 1, got -3"),
        "slots-zero": ({"tokens": tokens, "slots": 0}, ValueError, "slots must be at least 1, got 0"),
        "batch": ({"tokens": tokens, "state": other}, ValueError, "state must be of batch 3, got 2"),
        "state": ({"tokens": tokens, "state": 5}, TypeError, "state must be of type RtntmState, got int"),
        "slots-beside": (
            {"tokens": tokens[:2], "state": other, "slots": 8},
            ValueError,
            "slots must be None beside a state, got 8",
        ),
    }


@pytest.mark.parametrize(("arguments", "error", "message"), wrong_calls().values(), ids=wrong_calls().keys())
def test_wrong_calls(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^RTNTM: {message}"):
        make()(**arguments)


def test_a_sequence_beyond_the_code_of_the_step() -> None:
    model, tokens = make(positions=4), some_tokens(steps=6)
    with pytest.raises(ValueError, match=r"^RTNTM: tokens must end within positions=4 steps, got 6"):
        model(tokens)
    state = model(tokens[:, :3]).state
    with pytest.raises(ValueError, match=r"^RTNTM: tokens must end within positions=4 steps, got 5"):
        model(tokens[:, 3:5], state)
