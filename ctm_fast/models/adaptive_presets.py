"""Published networks with adaptive computation time: the paper's (arXiv 1603.08983) and larger ones run later.

A sequence's inputs come as (T, B, I).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ctm_fast.models.adaptive import AdaptiveLSTM, AdaptiveRNN
from ctm_fast.models.preset import Preset

PARITY, LOGIC, ADDITION, SORT = (64, 1), (102, 1), (50, 66), (2, 15)  # inputs, outputs


def _preset(
    model: type[nn.Module], sizes: tuple[int, int], hidden: int, max_steps: int, length: int, **options: Any
) -> Preset:
    """A network over ``length`` timesteps, or over a single input with ``length`` 0."""
    inputs, outputs = sizes
    arguments = {"input_size": inputs, "output_size": outputs, "hidden_size": hidden, "max_steps": max_steps}
    shape = (length, inputs) if length else (inputs,)
    return Preset(model, {**arguments, **options}, (shape,), batch_dim=len(shape) - 1)


PRESETS = {
    "adaptive_parity": _preset(AdaptiveRNN, PARITY, 2000, 20, 0),
    "adaptive_parity_paper": _preset(AdaptiveRNN, PARITY, 128, 100, 0),
    "adaptive_logic": _preset(AdaptiveLSTM, LOGIC, 300, 100, 10, ponder="mean"),
    "adaptive_logic_paper": _preset(AdaptiveLSTM, LOGIC, 128, 100, 10),
    "adaptive_addition": _preset(AdaptiveLSTM, ADDITION, 1024, 20, 5, ponder="mean", digit_classes=11),
    "adaptive_addition_paper": _preset(AdaptiveLSTM, ADDITION, 512, 20, 5),
    "adaptive_sort_paper": _preset(AdaptiveLSTM, SORT, 512, 100, 15),
}
