"""The curve of accuracy against ticks or time as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctm_fast.halting.search import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(points: Sequence[Point]) -> Figure:
    """Accuracy of every rule that ``pareto`` gave, against its milliseconds, or its mean ticks where nothing was timed.

    Raises ``ValueError`` where there is no point.
    """
    from matplotlib.figure import Figure

    if not points:
        raise ValueError("draw: points must hold at least one, got none")
    timed = all(point.milliseconds is not None for point in points)
    costs = np.array([point.milliseconds if timed else point.ticks for point in points], np.float64)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.step(costs, [point.accuracy for point in points], where="post", marker="o", markersize=3)
    axes.set(
        xlabel="milliseconds of a call" if timed else "mean ticks", ylabel="accuracy on held-out samples"
    )
    return figure
