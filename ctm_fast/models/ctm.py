"""The Continuous Thought Machine (arXiv 2505.05522, section 3).

Shape letters: B batch, T ticks (``iterations``), D neurons (``d_model``), d ``d_input``, M ``memory_length``,
C ``out_dims``, S synchronised pairs, L tokens, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require, require_positive
from ctm_fast.models.dispatch import run_forward
from ctm_fast.models.features import AttendedFeatures, uniform_parameter, verify_features
from ctm_fast.models.synchronised import Synchronised
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.certainty import certainty
from ctm_fast.nn.nlm import NeuronLevelModels
from ctm_fast.nn.synapses import SynapseUNET, single_layer_synapses
from ctm_fast.nn.sync import decay_factors


class ContinuousThoughtMachine(AttendedFeatures, Synchronised):
    """Neurons with private models of their own history, read out through the synchronisation of pairs.

    Args:
        iterations: ticks T; may be changed afterwards.
        d_model: neurons D.
        d_input: width d of the attended input.
        heads: attention heads; 0 leaves the attention out (for subclasses that bring their input otherwise).
        n_synch_out, n_synch_action: neurons selected for the output and the action synchronisation.
        synapse_depth: 1 for one gated layer, more for a U-Net of that many widths.
        memory_length: history M that each neuron-level model sees.
        deep_nlms: two layers per neuron-level model instead of one.
        memory_hidden_dims: hidden width of a deep neuron-level model.
        do_layernorm_nlm: LayerNorm on the history.
        backbone_type: one of ``ctm_fast.nn.BACKBONES``.
        positional_embedding_type: one of ``ctm_fast.nn.POSITIONAL_EMBEDDINGS``; "none" without a backbone.
        out_dims: predictions C per tick.
        prediction_reshaper: how the certainty reads a prediction; its last dimension are the classes.
        dropout: in the synapses and the attention, in [0, 1].
        dropout_nlm: in the neuron-level models; None means ``dropout``.
        neuron_select_type: "first-last", "random" or "random-pairing".
        n_random_pairing_self: neurons of "random-pairing" paired with themselves.
        energy_head_enabled: add a two-layer head: an energy per tick from the output synchronisation.
        energy_hidden_dim: its hidden width.

    Raises:
        ArgumentError: (a ValueError and AssertionError) for an argument outside these.

    Sizes that depend on the input appear with the first forward or when a complete state dict is loaded.
    """

    def __init__(
        self,
        iterations: int,
        d_model: int,
        d_input: int,
        heads: int,
        n_synch_out: int,
        n_synch_action: int,
        synapse_depth: int,
        memory_length: int,
        deep_nlms: bool,
        memory_hidden_dims: int,
        do_layernorm_nlm: bool,
        backbone_type: str,
        positional_embedding_type: str,
        out_dims: int,
        prediction_reshaper: Sequence[int] = (-1,),
        dropout: float = 0,
        dropout_nlm: float | None = None,
        neuron_select_type: str = "random-pairing",
        n_random_pairing_self: int = 0,
        energy_head_enabled: bool = False,
        energy_hidden_dim: int = 64,
    ) -> None:
        super().__init__()
        require_positive(iterations=iterations, d_model=d_model, d_input=d_input, n_synch_out=n_synch_out)
        require_positive(synapse_depth=synapse_depth, memory_length=memory_length)
        require(n_synch_action >= bool(heads), f"n_synch_action must select neurons for heads={heads}, got 0")
        self.iterations, self.d_model, self.d_input, self.out_dims = iterations, d_model, d_input, out_dims
        self.memory_length, self.prediction_reshaper = memory_length, list(prediction_reshaper)
        self.n_synch_out, self.n_synch_action = n_synch_out, n_synch_action
        self.backbone_type, self.positional_embedding_type = backbone_type, positional_embedding_type
        self.neuron_select_type = neuron_select_type
        self.verify_args()
        self.build_features()
        self.build_attention(heads, dropout)
        self.synapses = self.get_synapses(synapse_depth, d_model, dropout)
        dropout_nlm = dropout if dropout_nlm is None else dropout_nlm
        self.trace_processor = self.get_neuron_level_models(
            deep_nlms, do_layernorm_nlm, memory_length, memory_hidden_dims, d_model, dropout_nlm
        )
        self.start_activated_state = uniform_parameter(d_model)
        self.start_trace = uniform_parameter(d_model, memory_length)
        self.build_synchronisation(n_random_pairing_self)
        self.output_projector = nn.Sequential(nn.LazyLinear(out_dims))
        self.energy_head = _energy_head(energy_hidden_dim) if energy_head_enabled else None

    # Construction: each piece may be overridden.

    def verify_args(self) -> None:
        """Raise ``ArgumentError`` for arguments that do not fit together."""
        self.verify_selection()
        verify_features(self.backbone_type, self.positional_embedding_type)

    def get_synapses(self, synapse_depth: int, d_model: int, dropout: float) -> nn.Module:
        """The synapse model, (B, d + D) -> (B, D)."""
        if synapse_depth == 1:
            return single_layer_synapses(d_model, dropout)
        return SynapseUNET(d_model, synapse_depth, minimum_width=16, dropout=dropout)

    def get_neuron_level_models(
        self,
        deep_nlms: bool,
        do_layernorm_nlm: bool,
        memory_length: int,
        memory_hidden_dims: int,
        d_model: int,
        dropout: float,
    ) -> nn.Module:
        """The neuron-level models, (B, D, M) -> (B, D)."""
        return NeuronLevelModels(
            d_model, memory_length, memory_hidden_dims, deep_nlms, do_layernorm_nlm, dropout
        )

    # The pieces of a tick.

    def compute_certainty(self, current_prediction: Tensor) -> Tensor:
        """Normalised entropy and its complement: predictions (B, C) -> (B, 2)."""
        return certainty(current_prediction, self.prediction_reshaper)

    def start_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The learned pre-activation history (B, D, M) and post-activations (B, D)."""
        return self.start_trace.expand(batch, -1, -1), self.start_activated_state.expand(batch, -1)

    def think(self, inputs: Tensor, activated_state: Tensor, state_trace: Tensor) -> tuple[Tensor, Tensor]:
        """Synapses, history and neuron-level models (equations 1 to 3).

        Args:
            inputs: what this tick sees, (B, d).
            activated_state: post-activations (B, D).
            state_trace: pre-activation history (B, D, M), the newest last.

        Returns:
            New post-activations (B, D) and new history (B, D, M).
        """
        state = self.synapses(torch.cat((inputs, activated_state), dim=-1))
        state_trace = torch.cat((state_trace[:, :, 1:], state.unsqueeze(-1)), dim=-1)
        return self.trace_processor(state_trace), state_trace

    def forward(self, x: Tensor, track: bool = False) -> Any:
        """Run all ticks on an input batch (B, ...).

        Returns:
            Predictions (B, C, T) and certainties (B, 2, T), both float32, and the last output synchronisation
            (B, S); with an energy head the energies (B, 1, T), float32, instead of the synchronisation.
            With ``track``: predictions, certainties, (output, action) synchronisation (T, B, S) each,
            pre-activations (T, B, D), post-activations (T, B, D) and attention weights (T, B, h, 1, L), the
            last four as numpy.
        """
        return run_forward("base", self, x, track)

    def published_forward(self, x: Tensor, track: bool = False) -> Any:
        """:meth:`forward` in plain PyTorch, tick by tick in the published order and at its published cost."""
        kv = self.compute_features(x)
        batch = x.shape[0]
        state_trace, activated_state = self.start_state(batch)
        predictions, certainties, energies = self._empty_outputs(x, self.iterations, torch.float32)
        self.clamp_decays()
        r_action = repeated_decay_factors(self.decay_params_action, batch)
        r_out = repeated_decay_factors(self.decay_params_out, batch)
        sync_out, alpha_out, beta_out = self.compute_synchronisation(
            activated_state, None, None, r_out, "out"
        )
        alpha_action = beta_action = None
        record = TickRecord(track)
        for tick in range(self.iterations):
            sync_action, alpha_action, beta_action = self.compute_synchronisation(
                activated_state, alpha_action, beta_action, r_action, "action"
            )
            attended, weights = self.attend(sync_action, kv)
            activated_state, state_trace = self.think(attended, activated_state, state_trace)
            sync_out, alpha_out, beta_out = self.compute_synchronisation(
                activated_state, alpha_out, beta_out, r_out, "out"
            )
            self._emit(sync_out, predictions[..., tick], certainties[..., tick])
            if self.energy_head is not None:
                energies[..., tick] = self.energy_head(sync_out)
            record.add(pre=state_trace[:, :, -1], post=activated_state, attention=weights)
            record.add(out=sync_out, action=sync_action)
        if track:
            synchronisations = record.arrays("out", "action")
            return predictions, certainties, synchronisations, *record.arrays("pre", "post", "attention")
        return predictions, certainties, sync_out if self.energy_head is None else energies

    def _empty_outputs(self, x: Tensor, ticks: int, dtype: torch.dtype) -> list[Tensor]:
        rows = (self.out_dims, 2, 1)
        return [torch.empty(x.shape[0], row, ticks, device=x.device, dtype=dtype) for row in rows]

    def _emit(self, sync_out: Tensor, prediction: Tensor, certainty: Tensor) -> None:
        """Write one tick's prediction (B, C) and certainty (B, 2) into views of the output buffers."""
        current = self.output_projector(sync_out)
        prediction[...] = current
        certainty[...] = self.compute_certainty(current)


def repeated_decay_factors(decay: Tensor, batch: int) -> Tensor:
    """The published factors exp(-decay) (S,), repeated over the batch, (B, S)."""
    return decay_factors(decay).unsqueeze(0).repeat(batch, 1)


def _energy_head(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(hidden), nn.SiLU(), nn.Linear(hidden, 1))
