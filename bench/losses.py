"""Losses of the training rows, each made for B samples with random targets.

Letters: B batch, C classes, S positions, T ticks, K environment steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.losses import image_classification_loss, parity_loss

Loss = Callable[[Any, Sequence[Tensor]], Tensor]  # model, what its forward returned -> scalar


def classes(number: int, batch: int) -> Loss:
    """Certainty loss of image classification over ``number`` classes."""
    targets = torch.randint(number, (batch,))
    return lambda _, outputs: image_classification_loss(outputs[0], outputs[1], targets)[0]


def _positions(length: int, number: int, batch: int) -> Loss:
    targets = torch.randint(number, (batch, length))

    def loss(_: Any, outputs: Sequence[Tensor]) -> Tensor:
        return parity_loss(outputs[0].unflatten(1, (length, number)), outputs[1], targets)[0]

    return loss


def parity(batch: int) -> Loss:
    """Certainty loss over 64 positions of two classes."""
    return _positions(64, 2, batch)


def mazes(length: int, batch: int) -> Loss:
    """Certainty loss over ``length`` steps of five directions; without the curriculum, so all steps count."""
    return _positions(length, 5, batch)


def sort(batch: int) -> Loss:
    """CTC loss of a random permutation of 30 numbers, blank last."""
    targets = torch.rand(batch, 30).argsort(1)

    def loss(_: Any, outputs: Sequence[Tensor]) -> Tensor:
        logs = outputs[0].permute(2, 0, 1).log_softmax(-1)  # (T, B, C)
        of_logs, of_targets = (targets.new_full((batch,), x.shape[i]) for i, x in ((0, logs), (1, targets)))
        return F.ctc_loss(logs, targets, of_logs, of_targets, blank=logs.shape[-1] - 1)

    return loss


def policy(_: int) -> Loss:
    """Policy gradient, entropy and value terms over the features (K B, S) of all steps."""
    advantage = torch.randn(())

    def loss(agent: Any, outputs: Sequence[Tensor]) -> Tensor:
        logs = agent.actor(outputs[0]).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1).mean()
        value_error = (agent.critic(outputs[0]).squeeze(-1) - advantage).square().mean()
        return -(logs[:, 0] * advantage).mean() - 0.1 * entropy + 0.125 * value_error

    return loss
