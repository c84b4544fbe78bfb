"""The LSTM baseline for QAMNIST.

Shape letters: B batch, T ticks, D width (``d_model``), C ``out_dims``, d ``d_input``, L tokens, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require_positive
from ctm_fast.models.features import uniform_parameter
from ctm_fast.models.qamnist_inputs import QAMNISTInputs
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.certainty import certainty


class LSTMBaselineQAMNIST(QAMNISTInputs):
    """An LSTM cell that sees what the QAMNIST CTM sees; question embeddings pass the key-value projection.

    Arguments as for ``ContinuousThoughtMachineQAMNIST``, as far as an LSTM has them.
    """

    def __init__(
        self,
        iterations: int,
        d_model: int,
        d_input: int,
        heads: int,
        out_dims: int,
        iterations_per_digit: int,
        iterations_per_question_part: int,
        iterations_for_answering: int,
        prediction_reshaper: Sequence[int] = (-1,),
        dropout: float = 0,
    ) -> None:
        super().__init__()
        require_positive(d_model=d_model, d_input=d_input, heads=heads, out_dims=out_dims)
        require_positive(iterations_per_question_part=iterations_per_question_part)
        self.iterations, self.d_model, self.d_input, self.out_dims = iterations, d_model, d_input, out_dims
        self.prediction_reshaper = list(prediction_reshaper)
        self.iterations_per_digit = iterations_per_digit
        self.iterations_per_question_part = iterations_per_question_part
        self.iterations_for_answering = iterations_for_answering
        self.build_features()
        self.build_attention(heads, dropout)
        self.lstm_cell = nn.LSTMCell(d_input, d_model)
        self.start_hidden_state = uniform_parameter(d_model)
        self.start_cell_state = uniform_parameter(d_model)
        self.output_projector = nn.Sequential(nn.LazyLinear(out_dims))

    def embed_question(self, tokens: Tensor, step: int) -> Tensor:
        """Tokens (B,) of question tick ``step`` -> (B, d), projected like the digits' features."""
        projected: Tensor = self._part("kv_proj")(super().embed_question(tokens, step))
        return projected

    def compute_certainty(self, current_prediction: Tensor) -> Tensor:
        """Normalised entropy and its complement: predictions (B, C) -> (B, 2)."""
        return certainty(current_prediction, self.prediction_reshaper)

    def forward(self, x: Tensor, z: Tensor, track: bool = False) -> Any:
        """Run all ticks on digits ``x`` and question ``z``, see ``ContinuousThoughtMachineQAMNIST.forward``.

        Returns:
            Predictions (B, C, T), certainties (B, 2, T), both of the dtype of ``x``, and None. With ``track``
            also, as numpy, zeros (T, B, D), hidden states (T, B, D), attention weights
            (digit ticks, B, h, 1, L) and embeddings (question ticks, B, d).
        """
        hidden, cell = (
            start.expand(len(x), -1) for start in (self.start_hidden_state, self.start_cell_state)
        )
        predictions, certainties = [], []
        seen = None
        record = TickRecord(track)
        for tick in range(self.total_ticks(x, z)):
            seen = self.tick_input(tick, x, z, seen)
            hidden, cell = self.lstm_cell(self.see(seen, hidden, record), (hidden, cell))
            prediction = self.output_projector(hidden)
            predictions.append(prediction.to(x.dtype))
            certainties.append(self.compute_certainty(prediction).to(x.dtype))
            record.add(post=hidden)
        stacked = torch.stack(predictions, dim=-1), torch.stack(certainties, dim=-1)
        if track:
            post, *arrays = record.arrays("post", "attention", "embeddings")
            return *stacked, None, np.zeros_like(post), post, *arrays
        return *stacked, None
