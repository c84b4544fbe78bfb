"""Pictures of one sequence: what is written where and when, what is read, which memory is free, and the links.

Letters: T steps, N slots, R read heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models.dnc import DncTrace
from tasks.pictures import Array, save_figure, show_image

HEADS_SHOWN = 4
MODES = ("backward", "content", "forward")
PANEL_HEIGHT = 1.5
WIDTH = 11.0

Panels = list[tuple[str, str, Tensor]]
"""Title, name of the rows and values (rows, T) of every heat map."""


@torch.no_grad()
def draw(
    model: nn.Module,
    inputs: Tensor,
    folder: Path,
    words: Sequence[str] | None = None,
    shown: Callable[[Tensor], Tensor] | None = None,
) -> list[Path]:
    """Write ``memory.png`` and ``links.png`` of one sequence.

    Args:
        model: a ``DNC`` in eval mode.
        inputs: (T, 1, I).
        folder: where the files go.
        words: T labels of the steps; None shows the inputs themselves.
        shown: makes values in [0, 1] of the outputs (T, O), which are then shown too.
    """
    found = model(inputs.to(next(model.parameters()).device), trace=True)
    trace = DncTrace(*(part[:, 0].cpu() for part in found.trace))
    panels: Panels = [] if words else [("input", "channel", inputs[:, 0].T)]
    panels += [("written to", "slot", trace.write_weights.T)]
    heads = trace.read_weights.unbind(1)[:HEADS_SHOWN]
    panels += [(f"read by head {number}", "slot", weights.T) for number, weights in enumerate(heads, 1)]
    if shown:
        panels += [("output", "channel", shown(found.output[:, 0].cpu()).T)]
    panels += [("usage", "slot", trace.usage.T), ("allocation", "slot", trace.allocation.T)]
    return [
        save_figure(_memory(panels, trace, words), folder / "memory.png"),
        save_figure(_links(found.state.addressing), folder / "links.png"),
    ]


def _memory(panels: Panels, trace: DncTrace, words: Sequence[str] | None) -> Figure:
    """All panels under one another over the same steps: the heat maps, then gates and read modes."""
    rows = len(panels) + 2
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * rows), layout="constrained")
    grid = list(figure.subplots(rows, 1, sharex=True))
    for axes, (title, name, values) in zip(grid, panels, strict=False):
        image = show_image(axes, values.numpy(), 0.0, 1.0, "magma")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylabel(name)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.colorbar(image, ax=grid[: len(panels)], pad=0.01, aspect=60)
    _gates(grid[-2], trace)
    _modes(grid[-1], trace.read_modes[:, 0].numpy())
    if words is None:
        grid[-1].set_xlabel("step")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        grid[-1].set_xticks(range(1, len(words) + 1), words, rotation=90, fontsize=6)
    return figure


def _gates(axes: Axes, trace: DncTrace) -> None:
    steps = range(1, len(trace.write_gate) + 1)
    axes.plot(steps, trace.write_gate, label="write", color="tab:red")
    axes.plot(steps, trace.allocation_gate, label="allocation", color="tab:blue")
    axes.plot(steps, trace.free_gates[:, 0], label="free, head 1", color="tab:green")
    axes.set_ylim(-0.05, 1.05)
    axes.set_title("gates", fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _modes(axes: Axes, modes: Array) -> None:
    axes.stackplot(range(1, len(modes) + 1), modes.T, labels=MODES, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.set_title("read mode of head 1", fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _links(state: ops.DncState) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    matrix = dense_links(state)[0].cpu().numpy()
    edge = len(matrix) + 0.5
    image: Any = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="magma", extent=(0.5, edge, edge, 0.5))
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
