"""The RTNTM as its definition reads: the whole encoder over the whole context, at every step.

Letters: B batch, T steps, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.models.ntm_state import MemoryState
from ctm_fast.models.rtntm import RTNTM


def forward(model: RTNTM, tokens: Tensor) -> tuple[Tensor, MemoryState]:
    """Logits (B, T, V) and the last memory of ``model`` for tokens (B, T)."""
    steps = tokens.shape[1]
    embedded = model.embedding(tokens)
    if model.positions is not None:
        embedded = embedded + model.positions(torch.arange(steps))
    _, hidden, memory, _ = model.initial_state(len(tokens))
    states, logits = list(hidden), []
    for step in range(steps):
        seen = embedded[:, max(0, step + 1 - model.window) : step + 1]
        top = model.encoder(torch.cat((memory.reads, seen), 1))[:, -1]
        for layer, cell in enumerate(model.state):
            top = states[layer] = cell(top, states[layer])
        logits.append(model.token_head(top))
        interface = torch.cat((model.read_head(top), model.write_head(top)), 1)
        reads, *rest = ops.ntm_step(
            memory.memory, interface, memory.read_weights, memory.write_weights, layout=model.layout
        )
        memory = MemoryState(rest[0], reads, rest[1], rest[2])
    return torch.stack(logits, 1), memory
