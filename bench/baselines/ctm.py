"""Strong eager forward of the base and the sorting CTM.

Letters: B batch, T ticks, D neurons, d input width, M memory length, C outputs, P pairs, L tokens, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.baselines import nlm
from bench.baselines.sync import Recurrence
from ctm_fast.models import ContinuousThoughtMachine, ContinuousThoughtMachineSORT
from ctm_fast.nn.certainty import certainty_over_ticks

Outputs = tuple[Tensor, Tensor, Tensor]


class Attention:
    """Attention of one query over tokens whose keys and values were projected once."""

    def __init__(self, model: ContinuousThoughtMachine, kv: Tensor) -> None:
        self.model = model
        self.attention: Any = _part(model.attention)
        d, heads = self.attention.embed_dim, self.attention.num_heads
        projected = F.linear(kv, self.attention.in_proj_weight[d:], self.attention.in_proj_bias[d:])
        shape = (*kv.shape[:2], 2, heads, d // heads)
        self.keys, self.values = projected.view(shape).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, L, d / h)

    def __call__(self, query: Tensor) -> Tensor:  # (B, P) -> (B, d)
        d = self.attention.embed_dim
        q = _part(self.model.q_proj)(query)
        q = F.linear(q, self.attention.in_proj_weight[:d], self.attention.in_proj_bias[:d])
        q = q.view(q.shape[0], self.attention.num_heads, 1, -1)
        p = self.attention.dropout if self.attention.training else 0.0
        read = F.scaled_dot_product_attention(q, self.keys, self.values, dropout_p=p)
        return self.attention.out_proj(read.flatten(1))


def base(model: ContinuousThoughtMachine, x: Tensor) -> Outputs:
    """Predictions (B, C, T), certainties (B, 2, T) and last synchronisation (B, P) of the base CTM."""
    attend = Attention(model, model.compute_features(x))
    model.clamp_decays()
    action = Recurrence(*model.synchronisation_pairs("action"), model.decay_params_action)
    out = Recurrence(*model.synchronisation_pairs("out"), model.decay_params_out)
    state = _State(model, x.shape[0])
    out.add(state.z)
    synchronisations = []
    for _ in range(model.iterations):
        state.think(attend(action.add(state.z).t()))
        synchronisations.append(out.add(state.z))
    return _outputs(model, synchronisations)


def sort(model: ContinuousThoughtMachineSORT, x: Tensor) -> Outputs:
    """As :func:`base`, for the sorting CTM."""
    out = Recurrence(*model.synchronisation_pairs("out"), model.clamped_decay())
    state = _State(model, x.shape[0])
    out.add(state.z)
    synchronisations = []
    for _ in range(model.iterations):
        state.think(x)
        synchronisations.append(out.add(state.z))
    return _outputs(model, synchronisations)


class _State:
    """Post-activations (D, B) and history (D, B, M) of a running model."""

    def __init__(self, model: ContinuousThoughtMachine, batch: int) -> None:
        self.model = model
        self.permuted = nlm.permute(*nlm.weights(model.trace_processor))
        self.dropout = nlm_dropout(model)
        self.z = model.start_activated_state.unsqueeze(1).expand(-1, batch)
        self.history = model.start_trace.unsqueeze(1).expand(-1, batch, -1)

    def think(self, inputs: Tensor) -> None:
        """One tick on inputs (B, d)."""
        pre_activations = self.model.synapses(torch.cat((inputs, self.z.t()), dim=-1))
        self.history = nlm.push(self.history, pre_activations)
        self.z = nlm.apply(self.permuted, self.history, self.dropout)


def nlm_dropout(model: ContinuousThoughtMachine) -> float:
    """The dropout probability that acts in the neuron-level models now."""
    module: Any = model.trace_processor
    module = module[0][0].dropout
    return module.p if module.training and isinstance(module, nn.Dropout) else 0.0


def _outputs(model: ContinuousThoughtMachine, synchronisations: list[Tensor]) -> Outputs:
    stacked = torch.stack(synchronisations).transpose(1, 2)  # (T, B, P)
    predictions = model.output_projector(stacked).permute(1, 2, 0)
    return predictions, certainty_over_ticks(predictions, model.prediction_reshaper), stacked[-1]


def _part(module: nn.Module | None) -> Any:
    if module is None:
        raise ValueError("strong eager: model must have attention, got heads=0")
    return module
