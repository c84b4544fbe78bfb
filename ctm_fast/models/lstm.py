"""The LSTM baseline for images, mazes and parity: the CTM's attention, an LSTM in place of its neurons.

Shape letters: B batch, T ticks (``iterations``), D width (``d_model``), C ``out_dims``, L tokens, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require_positive
from ctm_fast.models.features import AttendedFeatures, uniform_parameter, verify_features
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.certainty import certainty


class LSTMBaseline(AttendedFeatures):
    """An LSTM that attends to the input at every tick with a query from its top layer.

    Args:
        iterations: ticks T; may be changed afterwards.
        d_model: width D of the LSTM.
        d_input: width of the attended input.
        heads: attention heads, at least 1.
        backbone_type, positional_embedding_type: as for ``ContinuousThoughtMachine``.
        num_layers: layers of the LSTM.
        out_dims: predictions C per tick.
        prediction_reshaper: how the certainty reads a prediction; its last dimension are the classes.
        dropout: in the attention, in [0, 1].
    """

    def __init__(
        self,
        iterations: int,
        d_model: int,
        d_input: int,
        heads: int,
        backbone_type: str,
        num_layers: int,
        positional_embedding_type: str,
        out_dims: int,
        prediction_reshaper: Sequence[int] = (-1,),
        dropout: float = 0,
    ) -> None:
        super().__init__()
        require_positive(iterations=iterations, d_model=d_model, d_input=d_input, heads=heads)
        require_positive(num_layers=num_layers, out_dims=out_dims)
        self.iterations, self.d_model, self.d_input, self.out_dims = iterations, d_model, d_input, out_dims
        self.backbone_type, self.positional_embedding_type = backbone_type, positional_embedding_type
        self.prediction_reshaper = list(prediction_reshaper)
        verify_features(backbone_type, positional_embedding_type)
        self.build_features()
        self.build_attention(heads, dropout)
        self.lstm = nn.LSTM(d_input, d_model, num_layers, batch_first=True)
        self.start_hidden_state = uniform_parameter(num_layers, d_model, fan=d_model)
        self.start_cell_state = uniform_parameter(num_layers, d_model, fan=d_model)
        self.output_projector = nn.Sequential(nn.LazyLinear(out_dims))

    def compute_certainty(self, current_prediction: Tensor) -> Tensor:
        """Normalised entropy and its complement: predictions (B, C) -> (B, 2)."""
        return certainty(current_prediction, self.prediction_reshaper)

    def forward(self, x: Tensor, track: bool = False) -> Any:
        """Run all ticks on an input batch (B, ...).

        Returns:
            Predictions (B, C, T) and certainties (B, 2, T), both float32, and None. With ``track`` also, as
            numpy, zeros (T, B, D), hidden states (T, B, D) and attention weights (T, B, h, 1, L).
        """
        kv = self.compute_features(x)
        batch = x.shape[0]
        hidden = self.start_hidden_state.unsqueeze(1).repeat(1, batch, 1)
        cell = self.start_cell_state.unsqueeze(1).repeat(1, batch, 1)
        predictions, certainties = [], []
        record = TickRecord(track)
        for _ in range(self.iterations):
            attended, weights = self.attend(hidden[-1], kv)
            _, (hidden, cell) = self.lstm(attended.unsqueeze(1), (hidden, cell))
            prediction = self.output_projector(hidden[-1])
            predictions.append(prediction.float())
            certainties.append(self.compute_certainty(prediction).float())
            record.add(post=hidden[-1], attention=weights)
        stacked = torch.stack(predictions, dim=-1), torch.stack(certainties, dim=-1)
        if track:
            post, attention = record.arrays("post", "attention")
            return *stacked, None, np.zeros_like(post), post, attention
        return *stacked, None
