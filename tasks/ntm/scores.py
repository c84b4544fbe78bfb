"""Losses and metrics of answers, one row per sequence.

Letters: A answer steps, B batch, O outputs.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, Tensor]


def in_bits(nats: Tensor) -> Tensor:
    """Nats in bits."""
    return nats / math.log(2)


def bits(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """Cross entropy of independent bits: ``logits`` and ``targets`` (A, B, O), perhaps ``weights`` (O).

    Returns:
        mean of the cross entropies of all bits, in nats, times their output's weight; and by sequence: the
        plain sum over the answer in bits (the unit of arXiv 1410.5401), the share of bits that are right, and
        whether all are.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = ((logits > 0) == (targets > 0.5)).float()
    loss = losses if weights is None else losses * weights
    return loss.mean(), {
        "bits_per_sequence": in_bits(losses.sum((0, 2))),
        "accuracy": right.mean((0, 2)),
        "accuracy_sequence": right.amin((0, 2)),
    }


def symbols(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Metrics]:
    """Cross entropy of one symbol per step: ``logits`` and one-hot ``targets`` (A, B, O).

    Returns:
        mean cross entropy per symbol in nats with label ``smoothing``, and by sequence: the cross entropy
        without smoothing summed over the answer in bits, the share of symbols that are right, and whether all
        are.
    """
    classes = targets.argmax(-1)
    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), label_smoothing=smoothing)
    plain = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    right = (logits.argmax(-1) == classes).float()
    return loss, {
        "bits_per_sequence": in_bits(plain.sum(0)),
        "accuracy": right.mean(0),
        "accuracy_sequence": right.amin(0),
    }


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy in nats of weightings (..., N), its gradient finite where a sharp weighting underflows to 0."""
    return -(weights * weights.clamp(min=1e-12).log()).sum(-1).mean()
