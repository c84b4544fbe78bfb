"""Where the heads read and write over time, what the memory holds, and N-gram predictions beside the best.

Letters: T input steps, A answer steps, N slots, W width of a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.pictures import Array, save_figure, show_image
from tasks.task import Batch

Slots = NDArray[np.integer]

USED = 0.3
"""A slot counts as used if a head ever stands on it with at least this weight."""
MARGIN = 2
"""Unused slots that are drawn around the used ones."""


@torch.no_grad()
def draw(
    model: nn.Module,
    batch: Batch,
    probabilities: Callable[[Tensor], Tensor],
    title: str,
    folder: Path,
    suffix: str = "",
) -> list[Path]:
    """Write ``weightings.png`` and ``memory.png`` of the batch's first sequence; returns the files.

    Args:
        model: an ``NTM``.
        batch: inputs (T, B, I) and targets (A, B, O) first.
        probabilities: makes them from outputs (A, O).
        title: what the sequence is.
        folder, suffix: files are called ``weightings{suffix}.png`` and ``memory{suffix}.png``.
    """
    inputs, targets = (part[:, :1] for part in batch[:2])
    found = model(inputs.to(next(model.parameters()).device), trace=True)
    answer = probabilities(found.output[-len(targets) :, 0]).cpu()
    written, read = (w[:, 0].cpu() for w in (found.trace.write_weights, found.trace.read_weights))
    slots = used_slots(torch.cat((written, read), 1).amax((0, 1)).numpy())
    weightings = _weightings(inputs[:, 0], targets[:, 0], answer, written, read, slots, title)
    memory = _memory(found.trace.memory[:, 0].cpu(), len(inputs) - len(targets), slots, title)
    return [
        save_figure(weightings, folder / f"weightings{suffix}.png"),
        save_figure(memory, folder / f"memory{suffix}.png"),
    ]


def used_slots(most: Array) -> Slots:
    """Indices of a run of slots, around the ring, that holds all used ones; ``most`` (N) are highest weights."""
    count = len(most)
    used = np.flatnonzero(most >= USED)
    if len(used) == 0:
        return np.arange(count)
    gaps = np.diff(np.append(used, used[0] + count))
    widest = int(gaps.argmax())
    first = int(used[(widest + 1) % len(used)]) - MARGIN
    length = min(count, count - int(gaps[widest]) + 1 + 2 * MARGIN)
    return (first + np.arange(length)) % count


def _weightings(
    inputs: Tensor, targets: Tensor, found: Tensor, written: Tensor, read: Tensor, slots: Slots, title: str
) -> Figure:
    """Inputs, targets and outputs above, write and read weightings (T, heads, N) of every head below."""
    heads = [("write", written[:, head]) for head in range(written.shape[1])]
    heads += [("read", read[:, head]) for head in range(read.shape[1])]
    figure = Figure(figsize=(11, 4.4 + 2.4 * (len(heads) + 1) // 2), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 0.8 * ((len(heads) + 1) // 2)))
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    steps, answer = len(inputs), len(targets)
    panels = above.subplots(3, 1, sharex=True)
    before = torch.zeros(steps - answer, targets.shape[1])
    rows = (
        ("input", inputs),
        ("target", torch.cat((before, targets))),
        ("output", torch.cat((before, found))),
    )
    for axes, (name, values) in zip(panels, rows, strict=True):
        show_image(axes, values.T.numpy(), 0.0, 1.0, "Greys")
        axes.set(ylabel=name, yticks=[])
        axes.axvline(steps - answer + 0.5, color="tab:cyan", ls="--", lw=1.2)
    above.suptitle(f"{title} (dashed: the answer begins)")
    grids = below.subplots((len(heads) + 1) // 2, 2, squeeze=False)
    for axes, (name, weights) in zip(grids.flat, heads, strict=False):
        image = show_image(axes, weights[:, slots].T.numpy(), 0.0, 1.0, "magma")
        _label_slots(axes, slots)
        axes.set(title=f"{name} weighting", xlabel="step")
        axes.axvline(steps - answer + 0.5, color="tab:cyan", ls="--", lw=1.2)
    for axes in grids.flat[len(heads) :]:
        axes.set_axis_off()
    below.colorbar(image, ax=list(grids.flat), label="weight", pad=0.01)
    return figure


def _memory(memory: Tensor, given: int, slots: Slots, title: str) -> Figure:
    """The memory (T, N, W) when the answer begins and at the end."""
    shown = memory[[given - 1, -1]][:, slots].numpy()
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    bound = float(np.abs(shown).max())
    panels = figure.subplots(1, 2)
    for axes, values, name in zip(panels, shown, ("when the answer begins", "at the end"), strict=True):
        image = show_image(axes, values, -bound, bound, "RdBu_r")
        _label_slots(axes, slots)
        axes.set(title=f"memory {name}", xlabel="element of the slot")
    figure.colorbar(image, ax=list(panels), label="value", pad=0.02)
    figure.suptitle(title)
    return figure


def _label_slots(axes: Axes, slots: Slots) -> None:
    """The numbers of the slots, from 1, at some of the rows."""
    every = max(1, len(slots) // 6)
    rows = np.arange(0, len(slots), every)
    axes.set_yticks(rows + 1, [str(slots[row] + 1) for row in rows])
    axes.set_ylabel("slot")


@torch.no_grad()
def draw_predictions(model: nn.Module, batch: Batch, folder: Path) -> list[Path]:
    """Write ``predictions.png``: the model's predictions beside the best (A, B, 1), the third of ``batch``."""
    inputs, targets, best = batch
    output = model(inputs.to(next(model.parameters()).device)).output
    found = torch.sigmoid(output[-len(targets) :]).cpu()
    figure = Figure(figsize=(11, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    steps = np.arange(len(targets)) + 1
    above.plot(steps, best[:, 0, 0], color="tab:orange", lw=1.2, label="best prediction")
    above.plot(steps, found[:, 0, 0], color="tab:blue", lw=1.2, label="prediction")
    above.plot(steps, targets[:, 0, 0] * 1.1 - 0.05, "k.", ms=3, label="bit")
    above.set(ylabel="probability of 1", xlabel="bit predicted", title="one sequence")
    above.legend(loc="center right", fontsize=8)
    for values, colour, name in ((best, "tab:orange", "best prediction"), (found, "tab:blue", "prediction")):
        cost = -torch.where(targets > 0.5, values, 1 - values).log2().mean((1, 2))
        total = float(cost.sum())
        below.plot(steps, cost, color=colour, lw=1.2, label=f"{name}: {total:.1f} bits per sequence")
    below.set(ylabel="bits paid", xlabel="bit predicted", title=f"mean over {targets.shape[1]} sequences")
    below.legend(fontsize=8)
    return [save_figure(figure, folder / "predictions.png")]
