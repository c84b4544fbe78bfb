"""How long a trained model ponders and where it errs, against difficulty and place in the sequence."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import nn

from tasks.adaptive.sequences import UNASKED
from tasks.pictures import Array, save_figure
from tasks.task import Batch

if TYPE_CHECKING:
    from tasks.adaptive.task import AdaptiveTask

Indices = NDArray[np.integer]

STYLES: tuple[dict[str, Any], ...] = (
    {"lw": 4.0, "ms": 8.0, "alpha": 0.5},
    {"lw": 2.0, "ms": 5.0},
    {"lw": 0.8, "ms": 2.5},
)
"""Of the sets in turn, the widest below: curves that coincide all show."""
HEADROOM = 1.08


class Inputs(NamedTuple):
    """All n inputs of a set of batches, padding left out, each (n,): ponder N + R, whether an answer was wrong
    (NaN where none is asked), difficulty and place in the sequence from 1.
    """

    ponder: Array
    wrong: Array
    difficulty: Indices
    place: Indices


def draw(task: AdaptiveTask[Any], model: nn.Module, folder: Path) -> list[Path]:
    """Write ``ponder.png`` over the evaluation set and the sets beyond training."""
    sets = {"as trained": task.evaluation_batches(), **task.beyond_batches()}
    found = {name.replace("_", " "): collect(task, model, batches) for name, batches in sets.items()}
    sequential = any(inputs.place.max() > 1 for inputs in found.values())
    figure = Figure(figsize=(12, 7.2 if sequential else 3.8), layout="constrained")
    axes = figure.subplots(1 + sequential, 3, squeeze=False)
    _histogram(axes[0, 0], found)
    _pair(axes[0, 1:], found, "difficulty", task.difficulty)
    if sequential:
        _pair(axes[1, 1:], found, "place", "place in the sequence")
        _against_each_other(axes[1, 0], found)
    axes[0, 0].legend(fontsize=8)
    return [save_figure(figure, folder / "ponder.png")]


@torch.no_grad()
def collect(task: AdaptiveTask[Any], model: nn.Module, batches: Iterable[Batch]) -> Inputs:
    """Run ``model`` over ``batches`` and list what happened at every input."""
    device = next(model.parameters()).device
    parts = []
    for batch in batches:
        _, targets, mask, difficulty = batch
        found = task.answer(model, tuple(part.to(device) for part in batch))
        asked = (targets != UNASKED).any(-1)
        wrong = found.wrong.any(-1).cpu().float().where(asked, torch.nan)
        place = torch.arange(1, len(mask) + 1)[:, None].expand_as(mask)
        parts.append([part.cpu()[mask] for part in (found.ponder, wrong, difficulty, place)])
    return Inputs(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def _histogram(axes: Axes, sets: dict[str, Inputs]) -> None:
    longest = max(inputs.ponder.max() for inputs in sets.values())
    bins = np.linspace(0, np.ceil(longest), 41).tolist()
    for (name, inputs), style in zip(sets.items(), cycle(STYLES), strict=False):
        share = np.full(len(inputs.ponder), 100 / len(inputs.ponder))
        label = f"{name}: mean {inputs.ponder.mean():.2f}"
        line = {key: value for key, value in style.items() if key != "ms"}
        axes.hist(inputs.ponder, bins, weights=share, histtype="step", label=label, **line)
    axes.set(xlabel="ponder of an input", ylabel="share of the inputs, %")
    _from_zero(axes)


def _pair(axes: Any, sets: dict[str, Inputs], against: str, label: str) -> None:
    """Ponder (mean, and the band from 10 to 90 %) and error against a field of :class:`Inputs`."""
    for (name, inputs), style in zip(sets.items(), cycle(STYLES), strict=False):
        groups = getattr(inputs, against)
        values = np.unique(groups)
        parts = [inputs.ponder[groups == value] for value in values]
        [line] = axes[0].plot(values, [part.mean() for part in parts], marker="o", label=name, **style)
        low, high = np.array([np.percentile(part, (10, 90)) for part in parts]).T
        axes[0].fill_between(values, low, high, color=line.get_color(), alpha=0.15, lw=0)
        asked = [(value, wrong) for value in values if len(wrong := _asked(inputs, groups == value))]
        errors = [100 * wrong.mean() for _, wrong in asked]
        axes[1].plot([value for value, _ in asked], errors, marker="o", label=name, **style)
    axes[0].set_ylabel("ponder: mean, 10 to 90 %")
    axes[1].set_ylabel("inputs answered wrongly, %")
    for panel in axes:
        panel.set(xlabel=label)
        _from_zero(panel)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _asked(inputs: Inputs, chosen: Array) -> Array:
    wrong = inputs.wrong[chosen]
    return wrong[~np.isnan(wrong)]


def _against_each_other(axes: Axes, sets: dict[str, Inputs]) -> None:
    """Error of the inputs by how long the model pondered them, in tenths of all."""
    for (name, inputs), style in zip(sets.items(), cycle(STYLES), strict=False):
        keep = ~np.isnan(inputs.wrong)
        order = np.argsort(inputs.ponder[keep])
        tenths = [part for part in np.array_split(order, 10) if len(part)]
        ponder = [inputs.ponder[keep][part].mean() for part in tenths]
        wrong = [100 * inputs.wrong[keep][part].mean() for part in tenths]
        axes.plot(ponder, wrong, marker="o", label=name, **style)
    axes.set(xlabel="ponder, mean of each tenth of the inputs", ylabel="inputs answered wrongly, %")
    _from_zero(axes)


def _from_zero(axes: Axes) -> None:
    """Limits from zero to a little above all that is drawn."""
    highest = axes.dataLim.y1
    axes.set_ylim(0, HEADROOM * highest if highest > 0 else 1.0)
