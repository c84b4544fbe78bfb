"""Certainty: one minus the normalised entropy of a prediction (arXiv 2505.05522, section 3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm_fast.ops.grad import refuse_double_backward


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(logits)`` over the last dimension divided by its maximum, in [0, 1].

    Args:
        logits: (B, ..., classes), floating point. Dimensions between the first and the last are averaged.

    Returns:
        (B,), dtype of ``logits``; NaN for a single class.
    """
    entropy = -torch.sum(F.softmax(logits, dim=-1) * F.log_softmax(logits, dim=-1), dim=-1)
    entropy = entropy / math.log(logits.shape[-1])
    return entropy.flatten(1).mean(-1) if logits.dim() > 2 else entropy


def certainty(prediction: Tensor, prediction_reshaper: Sequence[int] = (-1,)) -> Tensor:
    """One tick: logits (B, C), read as (B, *prediction_reshaper), -> (B, 2) = [entropy, 1 - entropy].

    Floating point in and out, values in [0, 1]. Torch raises ``RuntimeError`` where C does not fit.
    """
    entropy = normalised_entropy(prediction.unflatten(-1, tuple(prediction_reshaper)))
    return torch.stack((entropy, 1 - entropy), dim=-1)


def certainty_over_ticks(predictions: Tensor, prediction_reshaper: Sequence[int] = (-1,)) -> Tensor:
    """All ticks at once: logits (B, C, T) -> (B, 2, T), equal to :func:`certainty` of each tick."""
    batch, classes, ticks = predictions.shape
    flat = predictions.movedim(-1, 1).reshape(batch * ticks, classes)
    return certainty(flat, prediction_reshaper).view(batch, ticks, 2).movedim(1, -1)


def certainties_of(ticks: Tensor, reshaper: tuple[int, ...]) -> Tensor:
    """Certainties of all ticks, keeping no more than the logits: (T, B, C) -> (B, 2, T)."""
    if torch.compiler.is_compiling():
        return _ticks_last(ticks, reshaper)  # the compiler itself decides what to keep
    found: Tensor = CertaintyOverTicks.apply(ticks, reshaper)
    return found


class CertaintyOverTicks(torch.autograd.Function):
    """Certainties of all ticks: logits (T, B, C) -> (B, 2, T).

    Keeps the logits alone for a backward that is rarely asked for: the published losses take an index only.
    """

    @staticmethod
    def forward(ctx: Any, ticks: Tensor, reshaper: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(ticks)
        ctx.reshaper = reshaper
        return _ticks_last(ticks, reshaper)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        refuse_double_backward("certainty")
        (ticks,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = ticks.detach().requires_grad_()
            (found,) = torch.autograd.grad(_ticks_last(leaf, ctx.reshaper), leaf, grad)
        return found, None


def _ticks_last(ticks: Tensor, reshaper: tuple[int, ...]) -> Tensor:
    flat = certainty(ticks.flatten(0, 1), reshaper)
    return flat.unflatten(0, ticks.shape[:2]).permute(1, 2, 0)
