"""The memory machines under bfloat16 autocast: every controller, forward and backward, and the state it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctm_fast.models import DNC, NTM, RTNTM, AdaptiveLSTM, AdaptiveRNN

SIZES: dict[str, Any] = {"controller_size": 8, "slots": 6, "width": 4}
MACHINES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{f"ntm-{kind}": (NTM, {"controller": kind}) for kind in ("ff", "rnn", "lstm")},
    **{f"ntm-blind-{k}": (NTM, {"controller": k, "controller_sees_reads": False}) for k in ("ff", "lstm")},
    **{f"dnc-{kind}": (DNC, {"controller": kind}) for kind in ("ff", "gru", "lstm")},
    "dnc-sparse": (DNC, {"sparse": 2}),
    "adaptive-rnn": (AdaptiveRNN, {}),
    "adaptive-lstm": (AdaptiveLSTM, {"digit_classes": 3}),
    "adaptive-plain": (AdaptiveLSTM, {"adaptive": False}),
    "rtntm": (RTNTM, {"layers": 2, "state_layers": 2}),
}
every_machine = pytest.mark.parametrize("name", MACHINES)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model and inputs of six steps, steps first or, of tokens, second."""
    cls, changes = MACHINES[name]
    if cls is RTNTM:
        return cls(7, 12, 3, slots=6, window=3, **changes), torch.randint(7, (2, 6))
    if cls in (NTM, DNC):
        return cls(3, 6, **SIZES, **changes), torch.randn(6, 2, 3)
    return cls(3, 6, 8, halting_bias=-1.0, **changes), torch.randn(6, 2, 3)


def halves(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(3, 0 if x.is_floating_point() else 1)


@every_machine
def test_sixteen_bits_by_autocast(name: str) -> None:
    model, x = build(name)
    model.eval()
    expected = model(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)[0]
        loss = found.float().square().mean()
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)


@every_machine
def test_a_state_goes_into_autocast_and_out_of_it(name: str) -> None:
    model, x = build(name)
    model.eval()
    first, second = halves(x)
    expected = model(second, state=model(first).state)[0]
    with torch.autocast("cpu", torch.bfloat16):
        state = model(first).state
    torch.testing.assert_close(model(second, state=state)[0], expected, atol=0.1, rtol=0.1)
    state = model(first).state
    with torch.autocast("cpu", torch.bfloat16):
        found = model(second, state=state)[0]
        again = model(second, state=model(first).state)[0]
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    assert again.isfinite().all()
