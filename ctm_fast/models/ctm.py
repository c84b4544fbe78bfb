"""The Continuous Thought Machine (arXiv 2505.05522, section 3).

Shape letters: B batch, T ticks (``iterations``), D neurons (``d_model``), d ``d_input``, M ``memory_length``,
C ``out_dims``, S synchronised pairs, L tokens, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require
from ctm_fast.models.dispatch import run_forward
from ctm_fast.models.features import AttendedFeatures, uniform_parameter, verify_features
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.certainty import certainty
from ctm_fast.nn.nlm import NeuronLevelModels
from ctm_fast.nn.synapses import SynapseUNET, single_layer_synapses
from ctm_fast.nn.sync import clamp_decay_, decayed_update, pair_indices, pair_products
from ctm_fast.nn.sync import representation_size, select_neurons

NEURON_SELECT_TYPES = ("first-last", "random", "random-pairing")


class ContinuousThoughtMachine(AttendedFeatures):
    """Neurons with private models of their own history, read out through the synchronisation of pairs of them.

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
        dropout: in the synapses and the attention, in [0, 1).
        dropout_nlm: in the neuron-level models; None means ``dropout``.
        neuron_select_type: "first-last", "random" or "random-pairing".
        n_random_pairing_self: neurons of "random-pairing" paired with themselves.
        energy_head_enabled: add a two-layer head that gives an energy per tick from the output synchronisation.
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
        self._build_synchronisation(n_random_pairing_self)
        self.output_projector = nn.Sequential(nn.LazyLinear(out_dims))
        self.energy_head = _energy_head(energy_hidden_dim) if energy_head_enabled else None

    def _build_synchronisation(self, n_random_pairing_self: int) -> None:
        self.neuron_select_type_out, self.neuron_select_type_action = self.get_neuron_select_type()
        self.synch_representation_size_action = self.calculate_synch_representation_size(self.n_synch_action)
        self.synch_representation_size_out = self.calculate_synch_representation_size(self.n_synch_out)
        if self.synch_representation_size_action:
            self.set_synchronisation_parameters("action", self.n_synch_action, n_random_pairing_self)
        self.set_synchronisation_parameters("out", self.n_synch_out, n_random_pairing_self)

    # Construction: each piece may be overridden.

    def verify_args(self) -> None:
        """Raise ``ArgumentError`` for arguments that do not fit together."""
        require(
            self.neuron_select_type in NEURON_SELECT_TYPES,
            f"neuron_select_type must be one of {NEURON_SELECT_TYPES}, got {self.neuron_select_type!r}",
        )
        verify_features(self.backbone_type, self.positional_embedding_type)
        if self.neuron_select_type == "first-last":
            chosen = self.n_synch_out + self.n_synch_action
            require(
                self.d_model >= chosen,
                f"d_model must be at least n_synch_out + n_synch_action = {chosen} for first-last, got {self.d_model}",
            )

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

    def get_neuron_select_type(self) -> tuple[str, str | None]:
        """Selections of the output and of the action synchronisation, see ``ctm_fast.nn.select_neurons``."""
        if self.neuron_select_type == "first-last":
            return "first", "last"
        return self.neuron_select_type, self.neuron_select_type

    def calculate_synch_representation_size(self, n_synch: int) -> int:
        """Pairs that ``n_synch`` neurons give."""
        return representation_size(
            "first" if self.neuron_select_type == "first-last" else self.neuron_select_type, n_synch
        )

    def initialize_left_right_neurons(
        self, synch_type: str, d_model: int, n_synch: int, n_random_pairing_self: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw the neurons of one synchronisation, int64 (n_synch,) each."""
        return select_neurons(self._selection(synch_type), d_model, n_synch, n_random_pairing_self)

    def set_synchronisation_parameters(
        self, synch_type: str, n_synch: int, n_random_pairing_self: int = 0
    ) -> None:
        """Register the neurons and the decays of the synchronisation ``synch_type``, "action" or "out"."""
        if self.neuron_select_type == "random-pairing":
            require(
                n_synch > n_random_pairing_self,
                f"n_synch_{synch_type} must exceed n_random_pairing_self={n_random_pairing_self}, got {n_synch}",
            )
        left, right = self.initialize_left_right_neurons(
            synch_type, self.d_model, n_synch, n_random_pairing_self
        )
        self.register_buffer(f"{synch_type}_neuron_indices_left", left)
        self.register_buffer(f"{synch_type}_neuron_indices_right", right)
        size = self.calculate_synch_representation_size(n_synch)
        self.register_parameter(f"decay_params_{synch_type}", nn.Parameter(torch.zeros(size)))

    # The pieces of a tick.

    def compute_synchronisation(
        self,
        activated_state: Tensor,
        decay_alpha: Tensor | None,
        decay_beta: Tensor | None,
        r: Tensor,
        synch_type: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add one tick to a synchronisation (equations 5 to 9).

        Args:
            activated_state: post-activations (B, D).
            decay_alpha, decay_beta: (B, S) of the tick before, None before the first.
            r: decay factors (B, S).
            synch_type: "action" or "out".

        Returns:
            Synchronisation, new alpha and new beta, (B, S) each.
        """
        left, right = self._neurons(synch_type)
        pairs = pair_products(self._selection(synch_type), activated_state, left, right)
        alpha, beta = decayed_update(pairs, decay_alpha, decay_beta, r)
        return alpha / torch.sqrt(beta), alpha, beta

    def compute_certainty(self, current_prediction: Tensor) -> Tensor:
        """Normalised entropy and its complement: predictions (B, C) -> (B, 2)."""
        return certainty(current_prediction, self.prediction_reshaper)

    def synchronisation_pairs(self, synch_type: str) -> tuple[Tensor, Tensor]:
        """Flat neuron indices of every pair of "action" or "out", int64 (S,) each."""
        return pair_indices(self._selection(synch_type), *self._neurons(synch_type))

    def clamp_decays(self) -> None:
        """Bring the decays into [0, 15] in place; the gradient still reaches a decay on a bound."""
        clamp_decay_(self.decay_params_action, self.decay_params_out)

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
            Predictions (B, C, T) and certainties (B, 2, T), both float32, and the last output synchronisation (B, S);
            with an energy head the energies (B, 1, T), float32, instead of the synchronisation.
            With ``track``: predictions, certainties, (output (T, B, S) and action synchronisation), pre-activations
            (T, B, D), post-activations (T, B, D) and attention weights (T, B, h, 1, L), the last four as numpy.
        """
        return run_forward("base", self, x, track)

    def published_forward(self, x: Tensor, track: bool = False) -> Any:
        """:meth:`forward` in plain PyTorch, tick by tick in the published order and at its published cost."""
        kv = self.compute_features(x)
        state_trace, activated_state = self.start_state(x.shape[0])
        predictions, certainties, energies = self._empty_outputs(x, self.iterations, torch.float32)
        self.clamp_decays()
        r_action = torch.exp(-self.decay_params_action).unsqueeze(0).repeat(x.shape[0], 1)
        r_out = torch.exp(-self.decay_params_out).unsqueeze(0).repeat(x.shape[0], 1)
        sync_out, alpha_out, beta_out = self.compute_synchronisation(
            activated_state, None, None, r_out, "out"
        )
        alpha_action = beta_action = None
        record = TickRecord()
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
            if track:
                record.add(pre=state_trace[:, :, -1], post=activated_state, attention=weights)
                record.add(out=sync_out, action=sync_action)
        if track:
            synchronisations = (record.array("out"), record.array("action"))
            return (
                predictions,
                certainties,
                synchronisations,
                *map(record.array, ("pre", "post", "attention")),
            )
        return predictions, certainties, sync_out if self.energy_head is None else energies

    def _empty_outputs(self, x: Tensor, ticks: int, dtype: torch.dtype) -> list[Tensor]:
        return [
            torch.empty(x.shape[0], rows, ticks, device=x.device, dtype=dtype)
            for rows in (self.out_dims, 2, 1)
        ]

    def _emit(self, sync_out: Tensor, prediction: Tensor, certainty: Tensor) -> None:
        """Write one tick's prediction (B, C) and certainty (B, 2) into views of the output buffers."""
        current = self.output_projector(sync_out)
        prediction[...] = current
        certainty[...] = self.compute_certainty(current)

    def _selection(self, synch_type: str) -> str:
        require(synch_type in ("action", "out"), f"synch_type must be 'action' or 'out', got {synch_type!r}")
        return getattr(self, f"neuron_select_type_{synch_type}")

    def _neurons(self, synch_type: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"{synch_type}_neuron_indices_left"), getattr(
            self, f"{synch_type}_neuron_indices_right"
        )


def _energy_head(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(hidden), nn.SiLU(), nn.Linear(hidden, 1))
