"""Thresholds for a wanted accuracy, and the curve of accuracy against ticks or time. Letters: B samples, T ticks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine import Engine, Halt
from ctm_fast.halting.heldout import HeldOut, batches
from ctm_fast.halting.rule import RULES, scores_of
from ctm_fast.halting.sweep import Candidates, Sweep

GRID = 8  # thresholds tried of every rule of a mix but one, of which all are
TIMED_POINTS = 12
ROUNDS = 5

Ints = int | Sequence[int]


class Point(NamedTuple):
    """A rule, and what it gives on held-out samples.

    Attributes:
        halt: the rule.
        accuracy: at the tick at which each sample halts.
        ticks: used by a sample, the mean.
        milliseconds: of a call of the engine, the mean over the batches; None where nothing was timed.
    """

    halt: Halt
    accuracy: float
    ticks: float
    milliseconds: float | None = None


def calibrate(
    data: HeldOut,
    accuracy: float | None = None,
    *,
    within: float | None = None,
    rules: Sequence[str] | None = None,
    min_ticks: Ints = 1,
    patience: Ints = 1,
) -> Halt:
    """The rule with the fewest mean ticks whose accuracy on held-out samples is at least the wanted one.

    A rule of one threshold is searched over all thresholds that make a difference on these samples. In a mix, where the
    first rule that is met stops a sample, one is, for each of eight thresholds of every other. The accuracy on other
    samples scatters around the one found here: give thousands of samples, or ask for a little more than you need.

    Args:
        data: samples that the model was not trained on.
        accuracy: the least accuracy, in [0, 1]; or
        within: the most that may be lost against the accuracy at the last tick, at least 0.
        rules: which may be used: "certainty", "energy", "delta" (convergence), alone and mixed; by default all that
            the data allows.
        min_ticks: of :class:`ctm_fast.engine.Halt`, or several to search.
        patience: likewise.

    Returns:
        The rule. Where only the last tick is accurate enough, one with that as ``min_ticks``: nothing stops early.

    Raises:
        TypeError, ValueError: "calibrate: argument must ..., got ..."; and where no rule, nor the last tick, reaches
            ``accuracy`` on the data, with the highest that was found.
    """
    if (accuracy is None) == (within is None):
        raise ValueError("calibrate: one of accuracy and within must be given, got both or none")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"calibrate: accuracy must be in [0, 1], got {accuracy}")
    if within is not None and not within >= 0:
        raise ValueError(f"calibrate: within must be at least 0, got {within}")
    found = _searched("calibrate", data, rules, min_ticks, patience)
    if accuracy is not None:
        enough = found.right / data.total >= accuracy
    else:
        enough = (data.right[:, -1].sum() - found.right) / data.total <= within
    if not enough.any():
        raise ValueError(
            f"calibrate: accuracy must be at most {found.right.max() / data.total:.4f} here, got {accuracy}"
        )
    return _halt(found.rules[enough.argmax()])


def pareto(
    data: HeldOut,
    engine: Engine | None = None,
    inputs: Any = None,
    *,
    batch: int | None = None,
    rules: Sequence[str] | None = None,
    min_ticks: Ints = 1,
    patience: Ints = 1,
    points: int = TIMED_POINTS,
) -> list[Point]:
    """The rules of which no other is as accurate in fewer ticks, the fewest first; with an engine, in less time.

    Args:
        data: samples that the model was not trained on.
        engine: to time on ``inputs``, an argument of its call or a tuple of them. The rules take turns, every one runs
            all inputs five times, and the median round counts. Of the curve over ticks only ``points`` are timed,
            evenly spread, the first and the last among them; those that another beats in time are left out again.
        batch: samples of a timed call; by default as many as the engine takes, 1 is what a control loop sees.
        rules, min_ticks, patience: as for :func:`calibrate`.
        points: at least 2.

    Raises:
        TypeError, ValueError: "pareto: argument must ..., got ...".
    """
    if (engine is None) != (inputs is None):
        raise ValueError("pareto: engine and inputs must be given together, got one of them")
    if batch is not None and batch < 1:
        raise ValueError(f"pareto: batch must be at least 1, got {batch}")
    if points < 2:
        raise ValueError(f"pareto: points must be at least 2, got {points}")
    found = _searched("pareto", data, rules, min_ticks, patience)
    curve = [
        Point(_halt(rule), float(right / data.total), float(ticks / len(data.right)))
        for rule, ticks, right in zip(*found, strict=True)
    ]
    if engine is None:
        return curve
    if len(curve) > points:
        curve = [curve[i] for i in np.linspace(0, len(curve) - 1, points).round().astype(int)]
    timed = _milliseconds(engine, list(batches(engine, inputs, batch)), curve)
    order = sorted(zip(timed, curve, strict=True), key=lambda x: (x[0], -x[1].accuracy))
    best, kept = -1.0, []
    for milliseconds, point in order:
        if point.accuracy > best:
            best = point.accuracy
            kept.append(point._replace(milliseconds=milliseconds))
    return kept


def _milliseconds(engine: Engine, calls: list[tuple[Any, ...]], curve: Sequence[Point]) -> list[float]:
    """Mean duration of a call under every rule, of the median round."""
    rounds = []
    for _ in range(1 + ROUNDS):
        seconds = []
        for point in curve:
            start = time.perf_counter()
            for inputs in calls:
                engine(*inputs, halt=point.halt)
            seconds.append((time.perf_counter() - start) / len(calls))
        rounds.append(seconds)
    return [statistics.median(found) * 1e3 for found in zip(*rounds[1:], strict=True)]  # the first warms up


def _searched(
    op: str, data: HeldOut, rules: Sequence[str] | None, min_ticks: Ints, patience: Ints
) -> Candidates:
    """The undominated rules, the fewest ticks first; the last tick for everybody is among the candidates."""
    if isinstance(rules, str):
        raise TypeError(f"{op}: rules must be a sequence of names, got {rules!r}")
    scores = scores_of(op, data.certainties, data.energies)
    names = [name for name in RULES if name in (scores if rules is None else rules)]
    if rules is not None and (unknown := [name for name in rules if name not in scores] or not rules):
        raise ValueError(
            f"{op}: rules must be some of {', '.join(scores)}, got {unknown if rules else 'none'}"
        )
    options = [
        _options(op, name, values) for name, values in (("min_ticks", min_ticks), ("patience", patience))
    ]
    last = Candidates(
        np.array([[1.0, np.nan, np.nan, data.ticks, 1]]),
        np.array([data.right.size]),
        data.right[:, -1:].sum(0),
    )
    found = [last]
    for least, row in product(*options):
        if max(least, row) <= data.ticks:
            sweeps = [Sweep(name, scores[name], least, row) for name in names]
            found += _mixes(sweeps, data)
    return Candidates(*(np.concatenate(x) for x in zip(*found, strict=True))).undominated()


def _options(op: str, name: str, values: Ints) -> tuple[int, ...]:
    found = tuple(np.atleast_1d(values).tolist())
    if any(type(value) is not int for value in found):
        raise TypeError(f"{op}: {name} must be an integer or several, got {values!r}")
    if not found or min(found) < 1:
        raise ValueError(f"{op}: {name} must be at least 1, got {values}")
    return found


def _mixes(sweeps: Sequence[Sweep], data: HeldOut) -> Iterator[Candidates]:
    """Every rule alone, then every two, then all: of the first all thresholds, of the others a grid."""
    right, never = data.right, np.full(len(data.right), data.ticks - 1)
    alone = {sweep.rule: sweep.candidates(right, {}, never) for sweep in sweeps}
    yield from alone.values()
    grids = {name: _spread(found.rules[:, RULES.index(name)]) for name, found in alone.items()}
    for count in range(2, len(sweeps) + 1):
        for first, *others in combinations(sweeps, count):
            for thresholds in product(*(grids[other.rule] for other in others)):
                stops = [other.stops(x) for other, x in zip(others, thresholds, strict=True)]
                given = {other.rule: x for other, x in zip(others, thresholds, strict=True)}
                yield first.candidates(right, given, np.minimum.reduce(stops))


def _spread(thresholds: np.ndarray) -> list[float]:
    """At most ``GRID`` of them, evenly along their curve."""
    at = np.linspace(0, len(thresholds) - 1, min(GRID, len(thresholds)))
    return [float(thresholds[i]) for i in at.round().astype(int)]


def _halt(rule: np.ndarray) -> Halt:
    certainty, energy, delta = (None if math.isnan(x) else float(x) for x in rule[: len(RULES)])
    return Halt(certainty, energy, delta, int(rule[-2]), int(rule[-1]))
