"""Pictures of one sequence: what is written where and when, what is read, which memory is free, and the links.

Letters: T steps, N slots, R read heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models.dnc import DncTrace
from tasks.pictures import Array, heat_map, save_figure

HEADS_SHOWN = 4
MODES = ("backward", "content", "forward")


@torch.no_grad()
def draw(model: nn.Module, inputs: Tensor, folder: Path, words: Sequence[str] | None = None) -> list[Path]:
    """Write ``memory.png`` and ``links.png`` of one sequence.

    Args:
        model: a ``DNC`` in eval mode.
        inputs: (T, 1, I).
        folder: where the files go.
        words: T labels of the steps; None shows the inputs themselves.
    """
    found = model(inputs.to(next(model.parameters()).device), trace=True)
    trace = DncTrace(*(part[:, 0].cpu() for part in found.trace))
    first = None if words else inputs[:, 0].T.numpy()
    return [
        save_figure(_memory(trace, first, words), folder / "memory.png"),
        save_figure(_links(found.state.addressing), folder / "links.png"),
    ]


def _memory(trace: DncTrace, inputs: Array | None, words: Sequence[str] | None) -> Figure:
    heads = min(trace.read_weights.shape[1], HEADS_SHOWN)
    panels: list[tuple[str, Array]] = [] if inputs is None else [("input", inputs)]
    panels.append(("written to", trace.write_weights.T.numpy()))
    panels += [(f"read by head {head + 1}", trace.read_weights[:, head].T.numpy()) for head in range(heads)]
    panels += [("usage", trace.usage.T.numpy()), ("allocation", trace.allocation.T.numpy())]
    rows = -(-(len(panels) + 2) // 2)
    figure = Figure(figsize=(13, 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, (title, values) in zip(grid, panels, strict=False):
        heat_map(axes, values, "value" if title == "input" else "weight", 0.0, 1.0, "magma")
        axes.set(title=title, ylabel="channel" if title == "input" else "slot")
    _gates(grid[len(panels)], trace)
    _modes(grid[len(panels) + 1], trace.read_modes[:, 0].numpy())
    for axes in grid[len(panels) + 2 :]:
        axes.set_axis_off()
    for axes in grid[: len(panels) + 2]:
        _label_steps(axes, words)
    return figure


def _gates(axes: Axes, trace: DncTrace) -> None:
    steps = range(1, len(trace.write_gate) + 1)
    axes.plot(steps, trace.write_gate, label="write", color="tab:red")
    axes.plot(steps, trace.allocation_gate, label="allocation", color="tab:blue")
    axes.plot(steps, trace.free_gates[:, 0], label="free, head 1", color="tab:green")
    axes.set(title="gates", ylim=(-0.05, 1.05), xlim=(0.5, len(steps) + 0.5))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _modes(axes: Axes, modes: Array) -> None:
    axes.stackplot(range(1, len(modes) + 1), modes.T, labels=MODES, alpha=0.8)
    axes.set(title="read mode of head 1", ylim=(0, 1), xlim=(0.5, len(modes) + 0.5))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _label_steps(axes: Axes, words: Sequence[str] | None) -> None:
    if words is None:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xlabel("")
    axes.set_xticks(range(1, len(words) + 1), words, rotation=90, fontsize=4)


def _links(state: ops.DncState) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    matrix = dense_links(state)[0].cpu().numpy()
    image: Any = axes.imshow(matrix, vmin=0.0, vmax=max(float(matrix.max()), 1e-6), cmap="magma")
    figure.colorbar(image, ax=axes, label="link")
    axes.set(
        title="temporal links after the last step",
        xlabel="slot that was written before",
        ylabel="slot that was written next",
    )
    return figure


def dense_links(state: ops.DncState) -> Tensor:
    """The links of ``state`` as matrices (B, N, N), whether it keeps them so or only the largest."""
    if state.link_slots is None:
        return state.link
    batch, slots, _ = state.link.shape
    whole = state.link.new_zeros(batch, slots, slots)
    return whole.scatter(2, state.link_slots, state.link)
