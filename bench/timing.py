"""Interleaved timing: providers take turns in one process, and only ratios of neighbours count."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

Run = Callable[[], object]


class Effort(NamedTuple):
    """How long to measure a row.

    Attributes:
        least, most: bounds of the number of rounds.
        seconds: rounds stop after this long once ``least`` are done.
        sample_seconds: a sample repeats a fast call until it takes this long.
        hooks: also count what saved-tensor hooks see, which costs another forward.
    """

    least: int
    most: int
    seconds: float
    sample_seconds: float
    hooks: bool = True


class Ratio(NamedTuple):
    """Paired ratios of two providers: the median, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float
    pairs: int


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Collections within look at objects made within: those of an imported torch take half a second each."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seconds_per_call(run: Run, repetitions: int) -> float:
    """Mean duration of ``repetitions`` calls in a row."""
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    return (time.perf_counter() - start) / repetitions


def interleave(
    runs: Mapping[str, Run],
    effort: Effort,
    expected: Mapping[str, float] | None = None,
    sample: Callable[[Run, int], Any] = seconds_per_call,
    duration: Callable[[Any], float] = float,
) -> dict[str, list[Any]]:
    """Seconds per call of every provider, A B A B: sample i of each was taken in round i.

    Garbage is collected between rounds and never inside a sample. Every provider should have run before;
    ``expected`` are rough seconds of a call that save a trial call of slow ones. ``sample`` takes a sample of so
    many calls, from which ``duration`` gives the seconds of one.
    """

    def repetitions_of(name: str, run: Run) -> int:
        return _repetitions(lambda: duration(sample(run, 1)), effort, (expected or {}).get(name, 0.0))

    repetitions = {name: repetitions_of(name, run) for name, run in runs.items()}
    samples: dict[str, list[Any]] = {name: [] for name in runs}
    enabled = gc.isenabled()
    start = time.perf_counter()
    try:
        for done in range(effort.most):
            if done >= effort.least and time.perf_counter() - start > effort.seconds:
                break
            gc.enable()
            gc.collect()
            gc.disable()
            for name, run in runs.items():
                samples[name].append(sample(run, repetitions[name]))
    finally:
        (gc.enable if enabled else gc.disable)()
    return samples


def _repetitions(trial: Callable[[], float], effort: Effort, expected: float) -> int:
    if expected > 10 * effort.sample_seconds:
        return 1
    once = max(trial(), 1e-7)
    return max(1, math.ceil(effort.sample_seconds / once))


def quantile(values: Sequence[float], q: float) -> float:
    """Linearly interpolated ``q``-quantile, 0 <= q <= 1, of at least one value."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (position - lower) * (ordered[upper] - ordered[lower])


def paired_ratio(baseline: Sequence[float], own: Sequence[float]) -> Ratio:
    """Ratios baseline / own, round by round: above 1 where ``own`` is faster."""
    if not baseline or len(baseline) != len(own):
        raise ValueError(
            f"paired_ratio: both must have as many samples, at least one, got {len(baseline)} and {len(own)}"
        )
    ratios = [a / b for a, b in zip(baseline, own, strict=True)]
    return Ratio(statistics.median(ratios), quantile(ratios, 0.2), quantile(ratios, 0.8), len(ratios))
