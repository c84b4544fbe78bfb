"""A Differentiable Neural Computer in plain PyTorch, on the modules of this package's model with one LSTM layer.

:func:`usual` is written as most code writes it: one step after the other, everything in the loop.
:func:`strong` projects the inputs and maps the outputs once for all steps, around the strong eager memory.

Letters: T steps, B batch, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.baselines import dnc as memory
from ctm_fast.models import DNC
from ctm_fast.models.dnc import DncNetworkState
from ctm_fast.ops.dnc import reference

Step = Callable[[DNC, Tensor, DncNetworkState], tuple[Tensor, DncNetworkState]]


def step(model: DNC, x: Tensor, state: DncNetworkState) -> tuple[Tensor, DncNetworkState]:
    """One step: output (B, O) of an input (B, I)."""
    rnn, heads = model.controller.rnn, model.heads
    assert isinstance(rnn, nn.LSTM)
    hidden, cell = (part[0] for part in state.controller)
    hidden, cell = torch.lstm_cell(
        torch.cat((x, state.reads.flatten(1)), 1), (hidden, cell), *rnn.all_weights[0]
    )
    parts = model.layout.split(heads.to_interface(hidden))
    reads, slots, addressing = reference.step(state.memory, parts, state.addressing, model.layout)
    output = heads.to_output(torch.cat((hidden, reads.flatten(1)), 1))
    return output, DncNetworkState((hidden[None], cell[None]), slots, reads, addressing)


def usual(model: DNC, x: Tensor, advance: Step = step) -> Tensor:
    """Outputs (T, B, O) of inputs (T, B, I)."""
    state, outputs = model.initial_state(x.shape[1]), []
    for inputs in x:
        output, state = advance(model, inputs, state)
        outputs.append(output)
    return _bounded(model, torch.stack(outputs))


def strong(model: DNC, x: Tensor) -> Tensor:
    """Outputs (T, B, O) of inputs (T, B, I)."""
    start = model.initial_state(x.shape[1])
    advance, layers = model.controller.stepper(x), model.controller.split(start.controller)
    steps, read = memory.Steps(model.layout, start.memory, start.addressing), start.reads
    outputs, reads = [], []
    for t in range(len(x)):
        hidden, layers = advance(t, read.flatten(1), layers)
        read = steps.add(model.layout.split(model.heads.interface(hidden)))
        outputs.append(hidden)
        reads.append(read)
    return _bounded(model, model.heads.output(torch.stack(outputs), torch.stack(reads)))


def _bounded(model: DNC, output: Tensor) -> Tensor:
    return output if model.clip is None else output.clamp(-model.clip, model.clip)
