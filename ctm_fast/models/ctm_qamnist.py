"""The CTM that answers arithmetic questions about MNIST digits it has seen.

Shape letters as in ``ctm_fast.models.ctm``; T counts all ticks, digits, question and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ctm_fast.models.checks import require_positive
from ctm_fast.models.ctm import ContinuousThoughtMachine, repeated_decay_factors
from ctm_fast.models.dispatch import run_forward
from ctm_fast.models.qamnist_inputs import QAMNISTInputs
from ctm_fast.models.tracking import TickRecord


class ContinuousThoughtMachineQAMNIST(QAMNISTInputs, ContinuousThoughtMachine):
    """A CTM that attends to digits, then reads a question, then answers.

    Arguments as for :class:`ContinuousThoughtMachine`, without its backbone and positional embedding.
    ``iterations`` has no effect: a forward takes one tick per digit image and question token given, and
    ``iterations_for_answering`` more.

    Args:
        iterations_per_digit: ticks for which the data repeats a digit.
        iterations_per_question_part: ticks for which the data repeats a digit position or an operator.
        iterations_for_answering: ticks without input at the end.
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
        out_dims: int,
        iterations_per_digit: int,
        iterations_per_question_part: int,
        iterations_for_answering: int,
        prediction_reshaper: Sequence[int] = (-1,),
        dropout: float = 0,
        dropout_nlm: float | None = None,
        neuron_select_type: str = "first-last",
        n_random_pairing_self: int = 256,
    ) -> None:
        super().__init__(
            iterations=iterations,
            d_model=d_model,
            d_input=d_input,
            heads=heads,
            n_synch_out=n_synch_out,
            n_synch_action=n_synch_action,
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
        require_positive(iterations_per_question_part=iterations_per_question_part)
        self.iterations_per_digit = iterations_per_digit
        self.iterations_per_question_part = iterations_per_question_part
        self.iterations_for_answering = iterations_for_answering

    def forward(self, x: Tensor, z: Tensor, track: bool = False) -> Any:  # type: ignore[override]
        """Run all ticks.

        Args:
            x: digits (B, digit ticks, 1, 32, 32), each already repeated for its ticks.
            z: question tokens (B, question ticks) int64: a digit's position, 0 or more, or an operator, -1
                for "+" and -2 for "-".
            track: also return what happened at every tick.

        Returns:
            Predictions (B, C, T), certainties (B, 2, T), both of the dtype of ``x``, and the last output
            synchronisation (B, S). With ``track`` also, as numpy, pre-activations (T, B, D), post-activations
            (T, B, D), attention weights (digit ticks, B, h, 1, L) and embeddings (question ticks, B, d).
        """
        return run_forward("qamnist", self, x, z, track)

    def published_forward(self, x: Tensor, z: Tensor, track: bool = False) -> Any:  # type: ignore[override]
        """:meth:`forward` in plain PyTorch, tick by tick in the published order and at its published cost."""
        ticks, batch = self.total_ticks(x, z), len(x)
        state_trace, activated_state = self.start_state(batch)
        predictions, certainties, _ = self._empty_outputs(x, ticks, x.dtype)
        self.clamp_decays()
        r_action = repeated_decay_factors(self.decay_params_action, batch)
        r_out = repeated_decay_factors(self.decay_params_out, batch)
        sync_out, alpha_out, beta_out = self.compute_synchronisation(
            activated_state, None, None, r_out, "out"
        )
        alpha_action = beta_action = seen = None
        record = TickRecord(track)
        for tick in range(ticks):
            sync_action, alpha_action, beta_action = self.compute_synchronisation(
                activated_state, alpha_action, beta_action, r_action, "action"
            )
            seen = self.tick_input(tick, x, z, seen)
            attended = self.see(seen, sync_action, record)
            activated_state, state_trace = self.think(attended, activated_state, state_trace)
            sync_out, alpha_out, beta_out = self.compute_synchronisation(
                activated_state, alpha_out, beta_out, r_out, "out"
            )
            self._emit(sync_out, predictions[..., tick], certainties[..., tick])
            record.add(pre=state_trace[:, :, -1], post=activated_state)
        if track:
            arrays = record.arrays("pre", "post", "attention", "embeddings")
            return predictions, certainties, sync_out, *arrays
        return predictions, certainties, sync_out
