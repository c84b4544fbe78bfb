"""A Neural Turing Machine as it is usually written in PyTorch: one step after the other, one head after the
other, one tensor operation after the other (arXiv 1410.5401).

It is kinder than much of that code: the circular shift is three rolls of the whole batch, not a loop over
samples.

Letters: T steps, B batch, I inputs, O outputs, N slots, W width of a slot, C controller size, R read heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm_fast.models import NTM

Maps = list[tuple[Tensor, Tensor]]

BOUND = 20.0
EPS = 1e-6


class Parameters(NamedTuple):
    """What a step needs of the model."""

    cell: Sequence[Tensor]  # of torch.lstm_cell
    heads: Maps  # weight and bias of every head's own linear layer, read heads first
    output: tuple[Tensor, Tensor]
    readers: int  # R
    width: int  # W


class State(NamedTuple):
    """What a step hands to the next."""

    hidden: Tensor  # (B, C)
    cell: Tensor  # (B, C)
    memory: Tensor  # (B, N, W)
    reads: list[Tensor]  # R times (B, W)
    weights: list[Tensor]  # (B, N) for every head, read heads first


class Head(NamedTuple):
    """A head's linear layer, cut into its parts."""

    key: Tensor  # (B, W)
    beta: Tensor  # (B, 1)
    gate: Tensor  # (B, 1)
    shift: Tensor  # (B, 3)
    gamma: Tensor  # (B, 1)
    rest: Tensor  # (B, 2 W) of a write head, erase and add; (B, 0) of a read head


Step = Callable[[Parameters, Tensor, State], tuple[Tensor, State]]


def parameters(model: NTM) -> Parameters:
    """The parameters of ``model``: one LSTM layer, shift 3, the default layout and bounds."""
    layout, rnn, heads = model.layout, model.controller.rnn, model.heads
    assert isinstance(rnn, nn.LSTM)
    assert isinstance(heads.to_interface, nn.Linear) and isinstance(heads.to_output, nn.Linear)
    size = layout.width + 6
    sizes = [size] * layout.read_heads + [size + 2 * layout.width] * layout.write_heads
    maps = zip(heads.to_interface.weight.split(sizes), heads.to_interface.bias.split(sizes), strict=True)
    output = (heads.to_output.weight, heads.to_output.bias)
    return Parameters(rnn.all_weights[0], list(maps), output, layout.read_heads, layout.width)


def forward(model: NTM, x: Tensor) -> Tensor:
    """Outputs (T, B, O) of inputs (T, B, I)."""
    return run(model, x, step)


def run(model: NTM, x: Tensor, step: Step) -> Tensor:
    """The loop around ``step``, which may be a compiled :func:`step`."""
    known, start = parameters(model), model.initial_state(x.shape[1])
    memory, reads, reading, writing = start.memory
    hidden, cell = (part[0] for part in start.controller)
    state = State(hidden, cell, memory, list(reads.unbind(1)), [*reading.unbind(1), *writing.unbind(1)])
    outputs = []
    for inputs in x:
        output, state = step(known, inputs, state)
        outputs.append(output)
    return torch.stack(outputs)


def step(known: Parameters, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """One step: output (B, O) of an input (B, I), write heads before read heads."""
    hidden, cell = torch.lstm_cell(
        torch.cat([inputs, *state.reads], 1), (state.hidden, state.cell), *known.cell
    )
    heads = [_head(F.linear(hidden, *layer), known.width) for layer in known.heads]
    memory, weights = state.memory, list(state.weights)
    kept, added = torch.ones_like(memory), torch.zeros_like(memory)
    for index in range(known.readers, len(heads)):
        weights[index] = address(memory, heads[index], weights[index])
        erase, add = heads[index].rest.chunk(2, 1)
        column = weights[index].unsqueeze(2)
        kept = kept * (1 - column * torch.sigmoid(erase).unsqueeze(1))
        added = added + column * torch.tanh(add).unsqueeze(1)
    memory = memory * kept + added
    reads = []
    for index in range(known.readers):
        weights[index] = address(memory, heads[index], weights[index])
        reads.append(torch.bmm(weights[index].unsqueeze(1), memory).squeeze(1))
    output = F.linear(torch.cat([hidden, *reads], 1), *known.output).clamp(-BOUND, BOUND)
    return output, State(hidden, cell, memory, reads, weights)


def _head(values: Tensor, width: int) -> Head:
    values = values.clamp(-BOUND, BOUND)
    return Head(*values.split([width, 1, 1, 3, 1, values.shape[1] - width - 6], 1))


def address(memory: Tensor, head: Head, previous: Tensor) -> Tensor:
    """The new weighting (B, N) of one head (equations 5 to 9)."""
    key = torch.tanh(head.key).unsqueeze(1)
    similarity = (key * memory).sum(-1)
    similarity = similarity / torch.sqrt(key.square().sum(-1) + EPS)
    similarity = similarity / torch.sqrt(memory.square().sum(-1) + EPS)
    content = torch.softmax(F.softplus(head.beta) * similarity, 1)
    gate = torch.sigmoid(head.gate)
    gated = gate * content + (1 - gate) * previous
    back, stay, ahead = torch.softmax(head.shift, 1).split(1, 1)
    shifted = back * gated.roll(-1, 1) + stay * gated + ahead * gated.roll(1, 1)
    sharp = shifted ** (1 + F.softplus(head.gamma))
    return sharp / (sharp.sum(1, keepdim=True) + 1e-16)
