"""Controllers of the Differentiable Neural Computer: those of the Neural Turing Machine, and a GRU.

Letters: I inputs, F reads that are fed back, B batch, C controller size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctm_fast.models.ntm_controller import (
    Controller,
    FeedForwardController,
    LayerWeights,
    LSTMController,
    RecurrentController,
    State,
)


class GRUController(RecurrentController):
    """Layers of ``torch.nn.GRU``, whose parameters it has."""

    kind = nn.GRU

    def weights(self) -> list[LayerWeights]:
        return [self._layer(*parameters) for parameters in self.rnn.all_weights]

    def _layer(self, inputs: Tensor, recurrent: Tensor, bias: Tensor, hidden_bias: Tensor) -> LayerWeights:
        """Four gates: the candidate takes the hidden state only after the reset gate, so each has its own."""
        keep = 2 * self.size
        blank = [matrix.new_zeros(self.size, matrix.shape[1]) for matrix in (inputs, recurrent)]
        return LayerWeights(
            torch.cat((inputs, blank[0])),
            torch.cat((recurrent[:keep], blank[1], recurrent[keep:])),
            torch.cat((bias[:keep] + hidden_bias[:keep], bias[keep:], hidden_bias[keep:])),
        )

    def activate(self, gates: Tensor, state: State) -> State:
        reset, update, candidate, remembered = gates.chunk(4, 1)
        new = torch.tanh(torch.addcmul(candidate, torch.sigmoid(reset), remembered))
        return (new + torch.sigmoid(update) * (state[0] - new),)  # torch.lerp takes one dtype alone


CONTROLLERS: dict[str, type[Controller]] = {
    "ff": FeedForwardController,
    "gru": GRUController,
    "lstm": LSTMController,
}
