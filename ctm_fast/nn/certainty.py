"""Certainty: one minus the normalised entropy of a prediction (arXiv 2505.05522, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(logits)`` over the last dimension divided by its maximum, in [0, 1].

    Args:
        logits: (B, ..., classes), floating point. Dimensions between the first and the last are averaged.

    Returns:
        (B,), dtype of ``logits``; NaN for a single class.
    """
    entropy = -torch.sum(F.softmax(logits, dim=-1) * F.log_softmax(logits, dim=-1), dim=-1)
    entropy = entropy / torch.log(torch.tensor(logits.shape[-1], dtype=torch.float64))
    return entropy.flatten(1).mean(-1) if logits.dim() > 2 else entropy


def certainty(prediction: Tensor, prediction_reshaper: Sequence[int] = (-1,)) -> Tensor:
    """One tick: logits (B, C), read as (B, *prediction_reshaper), -> (B, 2) = [entropy, 1 - entropy]."""
    entropy = normalised_entropy(prediction.reshape(prediction.shape[0], *prediction_reshaper))
    return torch.stack((entropy, 1 - entropy), dim=-1)


def certainty_over_ticks(predictions: Tensor, prediction_reshaper: Sequence[int] = (-1,)) -> Tensor:
    """All ticks at once: logits (B, C, T) -> (B, 2, T), equal to :func:`certainty` of each tick."""
    batch, classes, ticks = predictions.shape
    flat = predictions.movedim(-1, 1).reshape(batch * ticks, classes)
    return certainty(flat, prediction_reshaper).view(batch, ticks, 2).movedim(1, -1)
