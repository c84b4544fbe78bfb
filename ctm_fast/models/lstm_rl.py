"""The LSTM baseline for reinforcement learning.

Shape letters: B batch, D hidden width (``d_model``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ctm_fast.models.checks import require, require_positive
from ctm_fast.models.features import uniform_parameter
from ctm_fast.models.hub import HubMixin
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.backbones import RL_BACKBONES, build_backbone

GRID_CELLS = 49


class LSTMBaselineRL(nn.Module, HubMixin):
    """An LSTM cell that reads the same features for ``iterations`` ticks at every environment step.

    Args:
        iterations: ticks per environment step.
        d_model: width D of the cell.
        d_input: feature width of the backbone.
        backbone_type: "classic-control-backbone" or "navigation-backbone".
    """

    def __init__(self, iterations: int, d_model: int, d_input: int, backbone_type: str) -> None:
        super().__init__()
        require_positive(iterations=iterations, d_model=d_model, d_input=d_input)
        require(
            backbone_type in RL_BACKBONES,
            f"backbone_type must be one of {RL_BACKBONES}, got {backbone_type!r}",
        )
        self.iterations, self.d_model, self.d_input = iterations, d_model, d_input
        self.backbone_type = backbone_type
        self.backbone = build_backbone(backbone_type, d_input)
        features = d_input * (GRID_CELLS if backbone_type == "navigation-backbone" else 1)
        self.lstm_cell = nn.LSTMCell(features, d_model)
        self.start_hidden_state = uniform_parameter(d_model)
        self.start_cell_state = uniform_parameter(d_model)

    @property
    def features_dim(self) -> int:
        """Width of what the forward returns."""
        return self.d_model

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The learned hidden and cell state (B, D)."""
        return self.start_hidden_state.expand(batch, -1), self.start_cell_state.expand(batch, -1)

    def forward(self, x: Tensor, hidden_states: tuple[Tensor, Tensor], track: bool = False) -> Any:
        """Run all ticks on observations (B, ...) from the hidden and cell state (B, D).

        Returns:
            Hidden state (B, D) and the new pair; with ``track`` also, as numpy, the hidden state of every
            tick twice, (ticks, B, D) each, where the CTM gives pre- and post-activations.
        """
        features = self.backbone(x).flatten(1)
        hidden, cell = hidden_states
        record = TickRecord(track)
        for _ in range(self.iterations):
            hidden, cell = self.lstm_cell(features, (hidden, cell))
            record.add(post=hidden)
        if track:
            return hidden, (hidden, cell), *record.arrays("post", "post")
        return hidden, (hidden, cell)
