"""The published forward around a compiled tick body.

Letters: B batch, C outputs, T ticks, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models import (
    Agent,
    ContinuousThoughtMachine,
    ContinuousThoughtMachineRL,
    ContinuousThoughtMachineSORT,
)
from ctm_fast.models.ctm import repeated_decay_factors

Outputs = tuple[Tensor, Tensor, Tensor]
Sync = tuple[Tensor, Tensor]


def base_tick(
    model: ContinuousThoughtMachine, kv: Tensor, z: Tensor, trace: Tensor, action: Sync, out: Sync, r: Sync
) -> Any:
    """A published tick: new z, history, states and value of synchronisation, prediction, certainty."""
    query, *action_state = model.compute_synchronisation(z, *action, r[0], "action")
    attended, _ = model.attend(query, kv)
    z, trace = model.think(attended, z, trace)
    sync_out, *out_state = model.compute_synchronisation(z, *out, r[1], "out")
    prediction = model.output_projector(sync_out)
    certainty = model.compute_certainty(prediction)
    return z, trace, tuple(action_state), tuple(out_state), sync_out, prediction, certainty


def sort_tick(
    model: ContinuousThoughtMachineSORT, x: Tensor, z: Tensor, trace: Tensor, out: Sync, r: Tensor
) -> Any:
    """As :func:`base_tick`, for the sorting CTM."""
    z, trace = model.think(x, z, trace)
    sync_out, *out_state = model.compute_synchronisation(z, *out, r, "out")
    prediction = model.output_projector(sync_out)
    return z, trace, tuple(out_state), sync_out, prediction, model.compute_certainty(prediction)


def base(model: ContinuousThoughtMachine, x: Tensor, tick: Callable[..., Any] = base_tick) -> Outputs:
    """The published loop of the base CTM around ``tick``; returns what the model's forward returns."""
    kv = model.compute_features(x)
    batch = x.shape[0]
    trace, z = model.start_state(batch)
    predictions, certainties = _empty(model, z)
    model.clamp_decays()
    r = tuple(repeated_decay_factors(d, batch) for d in (model.decay_params_action, model.decay_params_out))
    # alpha = beta = 0 makes the first tick's state (p, 1), so that every tick is the same function.
    action = (torch.zeros_like(r[0]), torch.zeros_like(r[0]))
    sync_out, *out = model.compute_synchronisation(z, None, None, r[1], "out")
    for t in range(model.iterations):
        z, trace, action, out, sync_out, prediction, certainty = tick(
            model, kv, z, trace, action, tuple(out), r
        )
        predictions[..., t], certainties[..., t] = prediction, certainty
    return predictions, certainties, sync_out


def sort(model: ContinuousThoughtMachineSORT, x: Tensor, tick: Callable[..., Any] = sort_tick) -> Outputs:
    """As :func:`base`, for the sorting CTM."""
    batch = x.shape[0]
    trace, z = model.start_state(batch)
    predictions, certainties = _empty(model, z)
    r = repeated_decay_factors(model.clamped_decay(), batch)
    sync_out, *out = model.compute_synchronisation(z, None, None, r, "out")
    for t in range(model.iterations):
        z, trace, out, sync_out, prediction, certainty = tick(model, x, z, trace, tuple(out), r)
        predictions[..., t], certainties[..., t] = prediction, certainty
    return predictions, certainties, sync_out


def _empty(model: ContinuousThoughtMachine, z: Tensor) -> tuple[Tensor, Tensor]:
    shape = z.shape[0], model.out_dims, model.iterations
    return z.new_empty(shape), z.new_empty(shape[0], 2, shape[2])


class _Recurrent(nn.Module):
    def __init__(self, model: ContinuousThoughtMachineRL, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.compiled = model, forward
        self.features_dim = model.features_dim

    def initial_state(self, batch: int) -> Any:
        return self.model.initial_state(batch)

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.compiled(self.model, x, state)


def with_forward(agent: Agent, forward: Callable[..., Any]) -> Agent:
    """``agent``'s recurrent model in a new agent that calls ``forward(model, x, state)``."""
    return Agent(_Recurrent(agent.recurrent_model, forward), n_actions=1)
