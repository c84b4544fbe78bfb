"""The CTM that sorts numbers: raw input at every tick, no attention, no action synchronisation.

Shape letters as in ``ctm_fast.models.ctm``; N numbers to sort (``d_input``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctm_fast.models.ctm import ContinuousThoughtMachine, repeated_decay_factors
from ctm_fast.models.dispatch import run_forward
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.sync import MAX_DECAY


class ContinuousThoughtMachineSORT(ContinuousThoughtMachine):
    """A CTM whose synapses read the N = ``d_input`` numbers to sort beside the post-activations.

    Arguments as for :class:`ContinuousThoughtMachine`. ``heads``, ``n_synch_action``, ``backbone_type`` and
    ``positional_embedding_type`` are accepted and have no effect: this model has none of those parts.
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
            backbone_type="none",
            positional_embedding_type="none",
            out_dims=out_dims,
            prediction_reshaper=prediction_reshaper,
            dropout=dropout,
            dropout_nlm=dropout_nlm,
            neuron_select_type=neuron_select_type,
            n_random_pairing_self=n_random_pairing_self,
        )
        self.neuron_select_type_action = None

    def clamped_decay(self) -> Tensor:
        """The output decays within [0, 15], inside autograd: no gradient outside the bounds."""
        return torch.clamp(self.decay_params_out, 0, MAX_DECAY)

    def forward(self, x: Tensor, track: bool = False) -> Any:
        """Run all ticks on numbers (B, N).

        Returns:
            Predictions (B, C, T) and certainties (B, 2, T), both of the dtype of ``x``, and the last output
            synchronisation (B, S). With ``track``: predictions, certainties, output synchronisation
            (T, B, S), pre-activations (T, B, D), post-activations (T, B, D) and an empty array, the last
            four as numpy.
        """
        return run_forward("sort", self, x, track)

    def published_forward(self, x: Tensor, track: bool = False) -> Any:
        """:meth:`forward` in plain PyTorch, tick by tick in the published order and at its published cost."""
        state_trace, activated_state = self.start_state(x.shape[0])
        predictions, certainties, _ = self._empty_outputs(x, self.iterations, x.dtype)
        r_out = repeated_decay_factors(self.clamped_decay(), x.shape[0])
        sync_out, alpha_out, beta_out = self.compute_synchronisation(
            activated_state, None, None, r_out, "out"
        )
        record = TickRecord(track)
        for tick in range(self.iterations):
            activated_state, state_trace = self.think(x, activated_state, state_trace)
            sync_out, alpha_out, beta_out = self.compute_synchronisation(
                activated_state, alpha_out, beta_out, r_out, "out"
            )
            self._emit(sync_out, predictions[..., tick], certainties[..., tick])
            record.add(out=sync_out, pre=state_trace[:, :, -1], post=activated_state)
        if track:
            return predictions, certainties, *record.arrays("out", "pre", "post", "attention")
        return predictions, certainties, sync_out
