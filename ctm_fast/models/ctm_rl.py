"""The CTM for reinforcement learning: a recurrent model whose histories are carried over environment steps.

Shape letters as in ``ctm_fast.models.ctm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require
from ctm_fast.models.ctm import ContinuousThoughtMachine
from ctm_fast.models.dispatch import run_forward
from ctm_fast.models.features import uniform_parameter
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.backbones import RL_BACKBONES
from ctm_fast.nn.synapses import SynapseUNET, two_layer_synapses

History = tuple[Tensor, Tensor]


class ContinuousThoughtMachineRL(ContinuousThoughtMachine):
    """A CTM without attention, synchronised over its window of the last M post-activations.

    Arguments as for :class:`ContinuousThoughtMachine`; ``backbone_type`` is "classic-control-backbone" for
    flat observations or "navigation-backbone" for MiniGrid's, ``neuron_select_type`` must be "first-last".
    The synchronised neurons are the last ``n_synch_out``.
    """

    MAX_DECAY = 4.0

    diagonal_mask_out: Tensor

    def __init__(
        self,
        iterations: int,
        d_model: int,
        d_input: int,
        n_synch_out: int,
        synapse_depth: int,
        memory_length: int,
        deep_nlms: bool,
        memory_hidden_dims: int,
        do_layernorm_nlm: bool,
        backbone_type: str,
        prediction_reshaper: Sequence[int] = (-1,),
        dropout: float = 0,
        neuron_select_type: str = "first-last",
    ) -> None:
        super().__init__(
            iterations=iterations,
            d_model=d_model,
            d_input=d_input,
            heads=0,
            n_synch_out=n_synch_out,
            n_synch_action=0,
            synapse_depth=synapse_depth,
            memory_length=memory_length,
            deep_nlms=deep_nlms,
            memory_hidden_dims=memory_hidden_dims,
            do_layernorm_nlm=do_layernorm_nlm,
            backbone_type=backbone_type,
            positional_embedding_type="none",
            out_dims=0,
            prediction_reshaper=prediction_reshaper,
            dropout=dropout,
            neuron_select_type=neuron_select_type,
        )
        self.neuron_select_type_action = None
        del self.start_activated_state, self.output_projector
        self.start_activated_trace = uniform_parameter(d_model, memory_length)
        mask = torch.ones(n_synch_out, n_synch_out, dtype=torch.bool).triu()
        self.register_buffer("diagonal_mask_out", mask)

    @property
    def features_dim(self) -> int:
        """Width of what the forward returns."""
        return self.synch_representation_size_out

    def verify_args(self) -> None:
        """Raise ``ArgumentError`` for arguments that do not fit together."""
        require(
            self.neuron_select_type == "first-last",
            f"neuron_select_type must be 'first-last', got {self.neuron_select_type!r}",
        )
        require(
            self.backbone_type in RL_BACKBONES,
            f"backbone_type must be one of {RL_BACKBONES}, got {self.backbone_type!r}",
        )
        self.verify_selection()

    def get_d_backbone(self) -> int | None:
        """Channels of the backbone's features."""
        return self.d_input

    def get_synapses(self, synapse_depth: int, d_model: int, dropout: float) -> nn.Module:
        """The synapse model: two gated layers for depth 1, a U-Net otherwise."""
        if synapse_depth == 1:
            return two_layer_synapses(d_model, dropout)
        return SynapseUNET(d_model, synapse_depth, minimum_width=16, dropout=dropout)

    def synchronisation_pairs(self, synch_type: str) -> tuple[Tensor, Tensor]:
        """Flat neuron indices of every pair, int64 (S,) each, among the last ``n_synch_out`` neurons."""
        left, right = super().synchronisation_pairs(synch_type)
        offset = self.d_model - self.n_synch_out
        return left + offset, right + offset

    def initial_state(self, batch: int) -> History:
        """The learned histories (B, D, M) of pre- and post-activations."""
        return self.start_trace.expand(batch, -1, -1), self.start_activated_trace.expand(batch, -1, -1)

    def window_weights(self) -> Tensor:
        """Weights (M, S), oldest first: exp(-age * decay) with the decay clamped to [0, 4] in the graph."""
        decay = torch.clamp(self.decay_params_out, 0.0, self.MAX_DECAY)
        age = torch.arange(self.memory_length - 1, -1, -1, device=decay.device, dtype=decay.dtype)
        return torch.exp(-age.unsqueeze(1) * decay)

    def compute_synchronisation(self, activated_state_trace: Tensor) -> Tensor:  # type: ignore[override]
        """Synchronisation (B, S) over the window of post-activations (B, D, M)."""
        window = activated_state_trace[:, -self.n_synch_out :].transpose(1, 2)
        outer = window.unsqueeze(-1) * window.unsqueeze(-2)
        pairs = outer[:, :, self.diagonal_mask_out]
        weights = self.window_weights()
        return (weights * pairs).sum(1) / torch.sqrt(weights.sum(0))

    def forward(self, x: Tensor, hidden_states: History, track: bool = False) -> Any:  # type: ignore[override]
        """Run all ticks on one observation.

        Args:
            x: observations (B, ...).
            hidden_states: pre- and post-activation histories (B, D, M), see :meth:`initial_state`.
            track: also return what happened at every tick.

        Returns:
            Synchronisation (B, S) and the new histories; with ``track`` also pre- and post-activations
            (T, B, D) as numpy.
        """
        return run_forward("rl", self, x, hidden_states, track)

    def published_forward(  # type: ignore[override]
        self, x: Tensor, hidden_states: History, track: bool = False
    ) -> Any:
        """:meth:`forward` in plain PyTorch, tick by tick in the published order and at its published cost."""
        state_trace, activated_trace = hidden_states
        features = self.compute_features(x)
        record = TickRecord(track)
        for _ in range(self.iterations):
            activated_state, state_trace = self.think(features, activated_trace[:, :, -1], state_trace)
            activated_trace = torch.cat((activated_trace[:, :, 1:], activated_state.unsqueeze(-1)), dim=-1)
            record.add(pre=state_trace[:, :, -1], post=activated_state)
        synchronisation = self.compute_synchronisation(activated_trace)
        hidden_states = (state_trace, activated_trace)
        if track:
            return synchronisation, hidden_states, *record.arrays("pre", "post")
        return synchronisation, hidden_states

    def compute_features(self, x: Tensor) -> Tensor:
        """Observations (B, ...) -> flat features (B, F)."""
        features: Tensor = self.backbone(x)
        self.kv_features = features.detach()
        return features.flatten(1)
