"""Where the heads read and write while a question is given and answered, what the memory then holds, and how
far beyond the trained length the answers stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from tasks.pictures import heat_map, save_figure
from tasks.rtntm.data import IGNORED
from tasks.task import Batch

LABELLED = 48  # steps that fit as labels under an axis


@torch.no_grad()
def draw(
    model: nn.Module, batch: Batch, slots: int, word: Callable[[int], str], title: str, folder: Path
) -> list[Path]:
    """Write ``weightings.png`` and ``memory.png`` of the first sequence of ``batch``; returns the files.

    Args:
        model: an ``RTNTM``.
        batch: tokens and targets (B, T).
        slots: N.
        word: how a token is written.
        title: what the sequence is.
        folder: where the pictures go.
    """
    tokens, targets = (part[:1] for part in batch)
    output = model(tokens.to(next(model.parameters()).device), slots=slots, trace=True)
    answers = output.logits.argmax(-1).cpu()
    figures = {
        "weightings.png": _weightings(output.trace, tokens[0], targets[0], answers[0], word),
        "memory.png": _memory(output.trace.memory[:, 0].cpu(), int((targets[0] != IGNORED).int().argmax())),
    }
    for figure in figures.values():
        figure.suptitle(title)
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def draw_lengths(scores: Mapping[int, float], trained: int, unit: str, folder: Path) -> list[Path]:
    """Write ``lengths.png``: the share of wholly right answers by length, and where training ended."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0, trained, color="tab:green", alpha=0.12, lw=0, label=f"trained: up to {trained}")
    axes.plot(list(scores), list(scores.values()), marker="o")
    axes.set(xlabel=unit, ylabel="whole answers right", ylim=(-0.03, 1.03), xlim=(0, None))
    axes.legend()
    return [save_figure(figure, folder / "lengths.png")]


def _weightings(
    trace: Any, tokens: Tensor, targets: Tensor, answers: Tensor, word: Callable[[int], str]
) -> Figure:
    heads = {
        f"{name} head {head + 1}": weights[:, 0, head].cpu()
        for name, weights in (("write", trace.write_weights), ("read", trace.read_weights))
        for head in range(weights.shape[2])
    }
    figure = Figure(figsize=(11, 2.8 * len(heads)), layout="constrained")
    for axes, (name, weights) in zip(
        figure.subplots(len(heads), 1, squeeze=False)[:, 0], heads.items(), strict=True
    ):
        heat_map(axes, weights.T.numpy(), "weight", 0.0, 1.0)
        axes.set(xlabel="step", ylabel="slot", title=name)
        _label_steps(axes, tokens, targets, answers, word)
    return figure


def _label_steps(
    axes: Axes, tokens: Tensor, targets: Tensor, answers: Tensor, word: Callable[[int], str]
) -> None:
    """Inputs below the axis and, where one is expected, the answer below that; wrong ones are red."""
    if len(tokens) > LABELLED:
        return
    scored = targets != IGNORED
    labels = [
        f"{word(token)}\n{word(answer)}" if due else word(token)
        for token, answer, due in zip(tokens.tolist(), answers.tolist(), scored.tolist(), strict=True)
    ]
    axes.set_xticks(range(1, len(labels) + 1), labels, fontsize=8)
    for label, wrong in zip(axes.get_xticklabels(), (scored & (answers != targets)).tolist(), strict=True):
        label.set_color("tab:red" if wrong else "black")
    axes.set_xlabel("input of every step and, from the question's end on, the answer below it")


def _memory(memory: Tensor, question: int) -> Figure:
    """Slots and their contents (T, N, D) after the question's ``question`` steps and after the last step."""
    moments = {"after the question": memory[question - 1], "after the answer": memory[-1]}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    most = float(memory.abs().max())
    for axes, (name, contents) in zip(figure.subplots(1, 2), moments.items(), strict=True):
        heat_map(axes, contents.numpy(), "value", -most, most, "RdBu")
        axes.set(xlabel="element", ylabel="slot", title=name)
    return figure
