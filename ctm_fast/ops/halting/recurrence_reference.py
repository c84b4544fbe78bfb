"""Recurrent cells with adaptive computation time in plain torch: the meaning of ``ops.adaptive_recurrence``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops.halting.timestep import adaptive_halting

State = tuple[Tensor, ...]


def update(gates: Tensor, state: State) -> State:
    """Hidden state, and cell state of an LSTM, from all gates (A, G) and the state before."""
    if len(state) == 1:
        return (torch.tanh(gates),)
    i, f, g, o = gates.chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def adaptive_recurrence(
    inputs: Tensor, hidden: Tensor, cell: Tensor | None, flag: Tensor, recurrent: Tensor, halting: Tensor,
    bias: Tensor, mask: Tensor | None, epsilon: float, max_steps: int, rows: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """The loop over timesteps, each with its own loop over substeps; shapes as in the public op."""
    seen = []

    def step(x: Tensor, state: State, first: bool) -> tuple[tuple[()], State, Tensor]:
        state = update(torch.addmm(x + flag if first else x, state[0], recurrent.t()), state)
        seen.append(state[0])
        return (), state, torch.sigmoid(state[0] @ halting + bias)

    state: State = (hidden,) if cell is None else (hidden, cell)
    found, states = [], []
    for t, x in enumerate(inputs):
        padding = None if mask is None else mask[t]
        options: dict[str, Any] = {"epsilon": epsilon, "max_steps": max_steps, "mask": padding}
        found.append(adaptive_halting(step, x, state, **options, backend="reference"))
        state = found[-1].state
        states.append(state[0])
    hidden, ponder, steps = (
        torch.stack(values) for values in (states, [f.ponder for f in found], [f.steps for f in found])
    )
    last = None if cell is None else state[1]
    if not rows:
        none = hidden.new_empty(0, hidden.shape[2]), hidden.new_empty(0), steps.new_empty(0)
        return hidden, last, ponder, steps, *none
    samples = torch.cat([f.samples + t * inputs.shape[1] for t, f in enumerate(found)])
    return hidden, last, ponder, steps, torch.cat(seen), torch.cat([f.weights for f in found]), samples
