"""Strong eager neuron-level models: batched matrix products over neurons, weights permuted beforehand.

Letters: B batch, D neurons, M memory length, H hidden width. Activations are (D, B, ...): neurons come first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Permuted(NamedTuple):
    """Weights with the neurons first, divided by their temperatures."""

    w1: Tensor  # (D, M, 2H)
    b1: Tensor  # (D, 1, 2H)
    w2: Tensor  # (D, H, 2)
    b2: Tensor  # (D, 1, 2)


def weights(models: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(w1, b1, t1, w2, b2, t2) of a deep ``NeuronLevelModels``, as ``ctm_fast.ops.nlm`` takes them."""
    first, second = models[0][0], models[0][2]
    return first.w1, first.b1, first.T, second.w1, second.b1, second.T


def permute(w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor, b2: Tensor, t2: Tensor) -> Permuted:
    """The once-per-forward part; arguments as ``ctm_fast.ops.nlm``."""
    return Permuted(
        (w1.permute(2, 0, 1) / t1).contiguous(),
        b1.transpose(0, 1) / t1,
        (w2.permute(2, 0, 1) / t2).contiguous(),
        b2.transpose(0, 1) / t2,
    )


def push(history: Tensor, pre_activations: Tensor) -> Tensor:
    """The history (D, B, M) after pre-activations (B, D), the newest last."""
    return torch.cat((history[:, :, 1:], pre_activations.t().unsqueeze(-1)), dim=-1)


def apply(permuted: Permuted, history: Tensor, dropout: float = 0.0) -> Tensor:
    """Post-activations (D, B) from the history (D, B, M); ``dropout`` acts on the inputs of both layers."""
    if dropout:
        history = F.dropout(history, dropout)
    hidden = F.glu(torch.baddbmm(permuted.b1, history, permuted.w1), -1)
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return F.glu(torch.baddbmm(permuted.b2, hidden, permuted.w2), -1).squeeze(-1)
