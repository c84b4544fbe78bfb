"""Pictures that several experiments share, made without pyplot: no display or global state is needed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from tasks.errors import writing

Array = NDArray[np.floating]

FEW = 20
"""Points of a curve up to which each has a marker: a single one has no line."""


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path``; the ending decides the format."""
    with writing(path, "analyse"):
        figure.savefig(path, dpi=150)
    return path


def accuracy_per_tick(axes: Axes, accuracy: Array, chosen: Array, at_chosen: float, chance: float) -> None:
    """Accuracy (T,) over ticks 1 to T, with the spread of the most certain ticks (N,) of the samples."""
    ticks = np.arange(1, len(accuracy) + 1)
    low, middle, high = np.percentile(chosen, (10, 50, 90))
    axes.axvspan(low, high, color="tab:orange", alpha=0.15, lw=0, label="10 to 90 % of most certain ticks")
    axes.axvline(middle, color="tab:orange", lw=1, label=f"median most certain tick: {middle:.0f}")
    axes.axhline(
        at_chosen,
        color="tab:green",
        ls="--",
        lw=1.2,
        label=f"at the most certain tick: {100 * at_chosen:.1f} %",
    )
    axes.axhline(chance, color="0.6", ls=":", lw=1.2, label="chance")
    axes.plot(ticks, accuracy, color="tab:blue", marker="o", ms=3, label="at every tick")
    axes.set(
        xlabel="internal tick",
        ylabel="accuracy",
        xlim=(0.5, len(ticks) + 0.5),
        ylim=(chance - 0.15, 1.02),
    )
    axes.legend(loc="lower right", fontsize=8)


def show_image(axes: Axes, values: Array, vmin: float, vmax: float, cmap: str) -> AxesImage:
    """``values`` (rows, columns) as an image, both counted from 1, rows downwards."""
    rows, columns = values.shape
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    return axes.imshow(
        values, aspect="auto", cmap=cmap, vmin=vmin, vmax=vmax, extent=extent, interpolation="nearest"
    )


def heat_map(axes: Axes, values: Array, label: str, vmin: float, vmax: float, cmap: str = "viridis") -> None:
    """``values`` (rows, T): ticks 1 to T to the right, rows 1 to n downwards, with a colour bar ``label``."""
    image = show_image(axes, values, vmin, vmax, cmap)
    axes.set(xlabel="internal tick")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label=label, pad=0.02)


def training_curves(run: Path, metrics: Sequence[str], path: Path) -> list[Path]:
    """Draw ``metrics`` over the steps, from the logs of the folder ``run``, and the curriculum's level.

    Returns the file written; nothing where ``run`` holds no log.
    """
    logs = {name: _columns(file) for name in ("train", "test") if (file := run / f"{name}.csv").is_file()}
    level = [name for name in ("level",) if any(name in columns for columns in logs.values())]
    panels = [name for name in (*metrics, *level) if any(name in columns for columns in logs.values())]
    if not panels:
        return []
    figure = Figure(figsize=(3.8 * len(panels), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for log, columns in logs.items():
            if name in columns:
                label = "training" if log == "train" else "evaluation"
                few = len(columns[name]) <= FEW
                axes.plot(
                    columns["iteration"], columns[name], "o-" if few else "-", lw=1.2, ms=4, label=label
                )
        axes.set(xlabel="step", title=name.replace("_", " "))
        axes.legend(fontsize=8)
    return [save_figure(figure, path)]


def _columns(path: Path) -> dict[str, Array]:
    with path.open(newline="") as file:
        names, *rows = list(csv.reader(file))
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True))
