"""Loops over ticks as models run them: on nlm_pack and nlm_tick, and in plain PyTorch on stacked windows."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctm_fast.ops import NlmPack, nlm_pack, nlm_tick
from ctm_fast.ops.nlm import reference
from ctm_fast.testing.nlm import nlm_inputs

T, B, D, M = 7, 3, 37, 4
FEW = 2  # neurons in Triton's interpreter, which takes milliseconds for each
Weights = list[Tensor]
INTERPRETS = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
TRITON = pytest.param(
    "triton", marks=pytest.mark.skipif(not INTERPRETS, reason="needs Triton and its interpreter")
)
Loop = Callable[[Weights, Tensor, Tensor], list[Tensor]]


def width(backend: str) -> int:
    """Neurons that a test of this backend takes."""
    return FEW if backend == "triton" else D


def draw(
    hidden: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0, neurons: int = D
) -> tuple[Weights, Tensor, Tensor]:
    """Leaves: weights, start (D, M) and the first activations (B, D)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = nlm_inputs(B, neurons, M, hidden, dtype=dtype, generator=generator)
    start, first = (torch.randn(s, generator=generator).to(dtype) for s in ((neurons, M), (B, neurons)))
    weights = [x for name, x in inputs.items() if name != "history"]
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


def windows(weights: Weights, start: Tensor, z: Tensor, dropout: float = 0.0, ticks: int = T) -> list[Tensor]:
    """The same ticks on concatenated windows, as published."""
    trace = start.expand(B, -1, M)
    found = []
    for t in range(ticks):
        trace = torch.cat((trace[:, :, 1:], mix(z, t).unsqueeze(-1)), -1)
        z = reference.nlm(trace, *weights, dropout=dropout, seed=11, first_row=t * B)
        found.append(z)
    return found


def gradients(found: list[Tensor], leaves: Weights, ticks: list[int]) -> list[Tensor]:
    loss = torch.stack(
        [(found[t] * torch.linspace(-1, 1, found[t].shape[1])).sum() * (t + 1) for t in ticks]
    ).sum()
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)
