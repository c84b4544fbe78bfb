"""Losses over all ticks of a Continuous Thought Machine (arXiv 2505.05522, section 3.5 "Loss function").

Letters: B batch, T ticks, C classes, S positions of a sequence. Every loss averages the tick of the lowest
loss and the tick of the highest certainty of each sample; both ticks are indices, so no gradient flows
through the choice, and ties take the first tick.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def most_certain_tick(certainties: Tensor, use_most_certain: bool = True) -> Tensor:
    """The tick (B,) at which ``certainties[:, 1]`` of (B, 2, T) is highest, or the last tick."""
    if use_most_certain:
        return certainties[:, 1].argmax(-1)
    last = certainties.shape[-1] - 1
    return certainties.new_full(certainties.shape[:1], last).long()


def at_tick(values: Tensor, ticks: Tensor) -> Tensor:
    """Pick one tick per sample: ``values`` (B, ..., T) and ``ticks`` (B,) give (B, ...)."""
    index = ticks.view(-1, *[1] * (values.dim() - 1)).expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


def two_tick_loss(
    tick_losses: Tensor, certainties: Tensor, use_most_certain: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean over samples of half the lowest tick loss plus half the loss at the most certain tick.

    Args:
        tick_losses: (B, T), float.
        certainties: (B, 2, T), normalised entropy and one minus it.
        use_most_certain: take the last tick instead of the most certain one if False.

    Returns:
        the loss, a scalar, and the most certain (or last) tick (B,), int64.
    """
    ticks = most_certain_tick(certainties, use_most_certain)
    lowest = at_tick(tick_losses, tick_losses.argmin(-1)).mean()
    return (lowest + at_tick(tick_losses, ticks).mean()) / 2, ticks


def image_classification_loss(
    predictions: Tensor, certainties: Tensor, targets: Tensor, use_most_certain: bool = True
) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits (B, C, T) with class indices (B,), combined by :func:`two_tick_loss`."""
    ticks = predictions.shape[-1]
    losses = F.cross_entropy(predictions, targets[:, None].expand(-1, ticks), reduction="none")
    return two_tick_loss(losses, certainties, use_most_certain)


def parity_loss(
    predictions: Tensor, certainties: Tensor, targets: Tensor, use_most_certain: bool = True
) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits (B, S, C, T) with classes (B, S), mean over S, then :func:`two_tick_loss`."""
    ticks = predictions.shape[-1]
    losses = F.cross_entropy(
        predictions.transpose(1, 2), targets[..., None].expand(-1, -1, ticks), reduction="none"
    )
    return two_tick_loss(losses.mean(1), certainties, use_most_certain)
