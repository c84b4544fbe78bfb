"""Recurrent networks with adaptive computation time in plain PyTorch, on the modules of this package's models.

:func:`usual` is written as most code writes it: every substep runs torch's cell on the input with the flag, for
all samples until the last one has halted. :func:`strong` is the same mathematics written well: the inputs are
projected once for all substeps, and the outputs mapped once for all timesteps.

Letters: T timesteps, B batch, I inputs, G gates, H width, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm_fast.models import AdaptiveLSTM, AdaptiveRNN

Model = AdaptiveRNN | AdaptiveLSTM
State = tuple[Tensor, ...]
Substep = Callable[[Model, Tensor, Tensor, State], tuple[Tensor, State, Tensor]]
Found = tuple[Tensor, Tensor]  # outputs (T, B, O), ponder (T, B)


def substep(model: Model, x: Tensor, flag: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
    """Output, state and halting probability after the cell has seen (B, I), the flag (B, 1) and the state."""
    cell: Any = model.cell
    found = cell(torch.cat((x, flag), 1), state if len(state) == 2 else state[0])
    state = (found,) if isinstance(found, Tensor) else found
    return model.readout(state[0]), state, torch.sigmoid(model.halting(state[0])).squeeze(1)


def usual(model: Model, inputs: Tensor, step: Substep = substep) -> Found:
    """All timesteps, input by input."""
    state, outputs, ponders = start(model, inputs), [], []
    for x in inputs:
        flag = x.new_ones(len(x), 1)

        def advance(state: State, first: bool, x: Tensor = x, flag: Tensor = flag) -> Any:
            output, state, h = step(model, x, flag if first else torch.zeros_like(flag), state)
            return (output, *state), state, h

        (output, *mean), ponder = _timestep(model, advance, state)
        state = tuple(mean)
        outputs.append(output)
        ponders.append(ponder)
    return torch.stack(outputs), torch.stack(ponders)


def strong(model: Model, inputs: Tensor) -> Found:
    """All timesteps on inputs projected before."""
    weight, flag = model.cell.weight_ih[:, :-1], model.cell.weight_ih[:, -1]
    recurrent, halting = model.cell.weight_hh.t(), model.halting.weight[0]
    state, hidden, ponders = start(model, inputs), [], []
    for gates in F.linear(inputs, weight, model.cell.bias_ih + model.cell.bias_hh):

        def advance(state: State, first: bool, gates: Tensor = gates) -> Any:
            state = cell_update(torch.addmm(gates + flag if first else gates, state[0], recurrent), state)
            return state, state, torch.sigmoid(torch.addmv(model.halting.bias, state[0], halting))

        state, ponder = _timestep(model, advance, state)
        hidden.append(state[0])
        ponders.append(ponder)
    return model.readout(torch.stack(hidden)), torch.stack(ponders)


def start(model: Model, inputs: Tensor) -> State:
    """Zeros."""
    parts = 2 if isinstance(model, AdaptiveLSTM) else 1
    return tuple(inputs.new_zeros(inputs.shape[1], model.hidden_size) for _ in range(parts))


def cell_update(gates: Tensor, state: State) -> State:
    """The state after a substep, from all gates (B, G) and the state before."""
    if len(state) == 1:
        return (torch.tanh(gates),)
    i, f, g, o = gates.chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _timestep(model: Model, advance: Callable[[State, bool], Any], state: State) -> tuple[State, Tensor]:
    """Means over the substeps of one timestep, and its ponder (B)."""
    total = state[0].new_zeros(len(state[0]))
    steps = remainder = torch.zeros_like(total)
    running = torch.ones_like(total, dtype=torch.bool)
    means: tuple[Tensor, ...] = ()
    for n in range(model.max_steps):
        values, state, h = advance(state, n == 0)
        ends = running & ((total + h >= 1 - model.epsilon) | (n == model.max_steps - 1))
        goes_on = running & ~ends
        weight = torch.where(ends, 1 - total, h * goes_on)
        scaled = tuple(weight.unsqueeze(1) * value for value in values)
        means = tuple(a + b for a, b in zip(means, scaled, strict=True)) if means else scaled
        remainder = torch.where(ends, 1 - total, remainder)
        steps = steps + running
        total = total + h * goes_on
        running = goes_on
        if not running.any():
            break
    return means, steps + remainder
