"""A small base CTM for the tests of the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models import ContinuousThoughtMachine

SMALL: dict[str, Any] = {
    "iterations": 4,
    "d_model": 20,
    "d_input": 8,
    "heads": 2,
    "n_synch_out": 5,
    "n_synch_action": 4,
    "synapse_depth": 1,
    "memory_length": 3,
    "deep_nlms": True,
    "memory_hidden_dims": 2,
    "do_layernorm_nlm": False,
    "backbone_type": "parity_backbone",
    "positional_embedding_type": "custom-rotational-1d",
    "out_dims": 6,
    "prediction_reshaper": [3, 2],
    "neuron_select_type": "random",
}


def build(**changes: Any) -> Any:
    """The small model with some arguments changed."""
    return ContinuousThoughtMachine(**{**SMALL, **changes})


def signs(batch: int = 2, length: int = 6) -> Tensor:
    """Input of the small model: +1 and -1, (batch, length)."""
    return torch.randint(0, 2, (batch, length)) * 2.0 - 1


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a module with a weight of ``shape`` and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
