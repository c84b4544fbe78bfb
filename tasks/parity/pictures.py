"""Accuracy over ticks and positions, and where the attention walks over the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from tasks.losses import at_tick, most_certain_tick
from tasks.parity.data import positions
from tasks.pictures import Array, accuracy_per_tick, heat_map, save_figure
from tasks.task import Batch

LABELLED = 20  # positions that fit as labels on an axis


def draw(model: nn.Module, batches: list[Batch], use_most_certain: bool, folder: Path) -> list[Path]:
    """Write ``accuracy.png`` over all ``batches`` and ``attention.png`` of their first sequence."""
    values, targets = batches[0]
    figures = {
        "accuracy.png": _accuracy(model, batches, use_most_certain),
        "attention.png": _attention(model, values[:1], targets[:1], use_most_certain),
    }
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


@torch.no_grad()
def _accuracy(model: nn.Module, batches: list[Batch], use_most_certain: bool) -> Figure:
    rights, chosen = [], []
    device = next(model.parameters()).device
    for values, targets in batches:
        predictions, certainties, _ = model(values.to(device))
        rights.append((positions(predictions.cpu()).argmax(2) == targets[..., None]).float())
        chosen.append(most_certain_tick(certainties.cpu(), use_most_certain))
    right, ticks = torch.cat(rights), torch.cat(chosen)  # (N, S, T), (N,)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, middle = figure.subplots(1, 2)
    at_chosen = at_tick(right, ticks).mean().item()
    accuracy_per_tick(left, right.mean((0, 1)).numpy(), ticks.numpy() + 1, at_chosen, chance=0.5)
    left.set_title("mean over positions")
    heat_map(middle, right.mean(0).numpy(), "accuracy", 0.5, 1.0)
    middle.set(ylabel="position in the sequence", title="every position")
    title = f"Cumulative parity of {right.shape[1]} values: accuracy on {len(right):,} evaluation sequences"
    figure.suptitle(title)
    return figure


@torch.no_grad()
def _attention(model: Any, values: Tensor, targets: Tensor, use_most_certain: bool) -> Figure:
    predictions, certainties, *_, attention = model(values.to(next(model.parameters()).device), track=True)
    chosen = most_certain_tick(certainties.cpu(), use_most_certain).item() + 1
    weights = np.asarray(attention)[:, 0, :, 0]  # (T, h, S)
    truth = targets[..., None, None].expand(-1, -1, 1, len(weights))
    probability = positions(predictions.cpu()).softmax(2).gather(2, truth)[0, :, 0]  # (S, T)

    heads = weights.shape[1]
    columns = min(heads, 4)
    rows = -(-heads // columns)
    figure = Figure(figsize=(11, 4.6 + 2.2 * rows), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(4.6, 2.2 * rows))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    left, right = top.subplots(1, 2)
    heat_map(left, weights.mean(1).T, "attention weight", 0.0, float(weights.mean(1).max()), "magma")
    heat_map(right, probability.numpy(), "probability of the right parity", 0.0, 1.0, "RdYlGn")
    for axes in (left, right):
        _label_positions(axes, values[0])
        axes.axvline(chosen, color="tab:cyan", ls="--", lw=1.5)
    left.set_title("where it looks: attention, mean over heads")
    right.set_title("what it answers")
    top.suptitle("One sequence, tick by tick (dashed: the tick whose answer counts)")
    _paths(bottom.subplots(rows, columns, squeeze=False), weights, values[0].numpy())
    bottom.suptitle("most attended position of each head; the sequence runs row by row, - is dark")
    return figure


def _label_positions(axes: Axes, values: Tensor) -> None:
    axes.set_ylabel("position in the sequence")
    if len(values) <= LABELLED:
        signs = ["+" if value > 0 else "-" for value in values.tolist()]
        axes.set_yticks(range(1, len(values) + 1), [f"{i}  {sign}" for i, sign in enumerate(signs, 1)])
        axes.set_ylabel("position and value")


def _paths(grid: Any, weights: Array, values: Array) -> None:
    ticks, heads = weights.shape[:2]
    colours = Normalize(1, ticks)
    for head, axes in enumerate(grid.flat):
        if head < heads:
            dots = _path(axes, weights[:, head].argmax(-1), values, colours)
            axes.set_title(f"head {head + 1}", fontsize=9)
        else:
            axes.set_axis_off()
    figure = grid.flat[0].get_figure()
    figure.colorbar(
        dots, ax=list(grid.flat), label="internal tick", ticks=MaxNLocator(integer=True), pad=0.01
    )


def _path(axes: Axes, visited: Array, values: Array, colours: Normalize) -> Any:
    rows, columns = grid_shape(len(values))
    for i, value in enumerate(values):
        corner = (i % columns - 0.5, i // columns - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor="0.94" if value > 0 else "0.72", edgecolor="w"))
        if len(values) <= LABELLED:
            axes.text(
                corner[0] + 0.06, corner[1] + 0.08, str(i + 1), ha="left", va="top", color="0.3", fontsize=7
            )
    spread = np.linspace(-0.22, 0.22, len(visited))  # keeps repeated visits apart
    points = np.stack((visited % columns + spread, visited // columns + spread), -1)
    ticks = np.arange(1, len(visited) + 1)
    steps = list(np.stack((points[:-1], points[1:]), 1))
    axes.add_collection(LineCollection(steps, array=ticks[1:], norm=colours, lw=1.2, alpha=0.8))
    axes.set(xticks=[], yticks=[], xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    return axes.scatter(points[:, 0], points[:, 1], c=ticks, norm=colours, s=16, zorder=3)


def grid_shape(length: int) -> tuple[int, int]:
    """Rows and columns of the most square grid that ``length`` cells fill."""
    rows = max(r for r in range(1, int(length**0.5) + 1) if length % r == 0)
    return rows, length // rows
