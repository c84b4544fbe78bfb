"""Losses over ticks against loops over samples, ticks and positions."""

import math

import pytest
import torch
from torch import Tensor

from tasks.losses import at_tick, image_classification_loss, most_certain_tick, parity_loss

SHAPES = [
    pytest.param(1, 1, 2, 1, id="B1-S1-C2-T1"),
    pytest.param(3, 5, 2, 4, id="B3-S5-C2-T4"),
    pytest.param(5, 7, 3, 9, id="B5-S7-C3-T9"),
]


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - logits[target]


def combine(
    tick_losses: list[list[float]], certainties: Tensor, use_most_certain: bool
) -> tuple[float, list[int]]:
    lowest, chosen, ticks = 0.0, 0.0, []
    for losses, certainty in zip(tick_losses, certainties[:, 1].tolist(), strict=True):
        tick = certainty.index(max(certainty)) if use_most_certain else len(losses) - 1
        ticks.append(tick)
        lowest += min(losses) / len(tick_losses)
        chosen += losses[tick] / len(tick_losses)
    return (lowest + chosen) / 2, ticks


@pytest.mark.parametrize("use_most_certain", [True, False], ids=["certain", "last"])
@pytest.mark.parametrize(("batch", "length", "classes", "ticks"), SHAPES)
def test_parity_loss(batch: int, length: int, classes: int, ticks: int, use_most_certain: bool) -> None:
    predictions = torch.randn(batch, length, classes, ticks, dtype=torch.float64)
    certainties = torch.rand(batch, 2, ticks)
    targets = torch.randint(classes, (batch, length))
    expected = [
        [
            sum(cross_entropy(predictions[b, s, :, t].tolist(), int(targets[b, s])) for s in range(length))
            / length
            for t in range(ticks)
        ]
        for b in range(batch)
    ]
    loss, chosen = parity_loss(predictions, certainties, targets, use_most_certain)
    value, where = combine(expected, certainties, use_most_certain)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert chosen.tolist() == where


@pytest.mark.parametrize("use_most_certain", [True, False], ids=["certain", "last"])
@pytest.mark.parametrize(("batch", "length", "classes", "ticks"), SHAPES)
def test_image_classification_loss(
    batch: int, length: int, classes: int, ticks: int, use_most_certain: bool
) -> None:
    predictions = torch.randn(batch, classes, ticks, dtype=torch.float64)
    certainties = torch.rand(batch, 2, ticks)
    targets = torch.randint(classes, (batch,))
    expected = [
        [cross_entropy(predictions[b, :, t].tolist(), int(targets[b])) for t in range(ticks)]
        for b in range(batch)
    ]
    loss, chosen = image_classification_loss(predictions, certainties, targets, use_most_certain)
    value, where = combine(expected, certainties, use_most_certain)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert chosen.tolist() == where


def test_gradient_reaches_only_the_two_ticks() -> None:
    predictions = torch.zeros(1, 2, 4, requires_grad=True)
    with torch.no_grad():
        predictions[0, 0] = torch.tensor([0.0, 3.0, 1.0, 2.0])
    certainties = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.9, 0.3]]], requires_grad=True)
    image_classification_loss(predictions, certainties, torch.tensor([0]))[0].backward()
    assert predictions.grad is not None
    assert certainties.grad is None
    assert predictions.grad[0].abs().sum(0).ne(0).tolist() == [False, True, True, False]


def test_ties_take_the_first_tick() -> None:
    certainties = torch.full((2, 2, 3), 0.5)
    assert most_certain_tick(certainties).tolist() == [0, 0]


def test_at_tick_of_any_rank() -> None:
    values = torch.arange(2 * 3 * 4).view(2, 3, 4)
    assert at_tick(values, torch.tensor([1, 3])).tolist() == [[1, 5, 9], [15, 19, 23]]
