"""Latencies of an engine at batch 1: calls in a row, and calls at a fixed rate with their deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from bench import timing
from bench.row import Json

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
LEAST_CALLS = 10_000  # for a p99.9
RATES = (10, 50, 100, 1000)  # Hz
SPIN_SECONDS = 2e-4  # a paced loop sleeps until this long before a call is due, and spins from there on

Run = Callable[[], object]


def microseconds(seconds: np.ndarray) -> Json:
    """Quantiles; the last but one only where there are enough calls."""
    named = {name: q for name, q in QUANTILES.items() if q != 0.999 or len(seconds) >= LEAST_CALLS}
    return {name: float(np.quantile(seconds, q)) * 1e6 for name, q in named.items()}


def typical(run: Run) -> float:
    """Median seconds of a call, after a few that warm up."""
    timing.seconds_per_call(run, 3)
    return float(np.median([timing.seconds_per_call(run, 1) for _ in range(9)]))


def calls_within(run: Run, seconds: float, most: int) -> int:
    """Calls that :func:`latencies` makes in about so many seconds, at most ``most`` and at least 100."""
    return max(min(100, most), min(most, int(seconds / (2 * typical(run)))))


def latencies(run: Run, calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every call, and of an empty loop of the same median length between them, (calls,) each."""
    timing.seconds_per_call(run, max(3, calls // 100))
    length = typical(run)
    own, empty = np.empty(calls), np.empty(calls)
    with timing.only_new_garbage():
        for i in range(calls):
            own[i] = timing.seconds_per_call(run, 1)
            empty[i] = timing.seconds_per_call(partial(_spin, length), 1)
    return own, empty


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def full_rate(run: Run, calls: int) -> Json:
    """Quantiles of :func:`latencies` in microseconds, and the spread of the engine's over that of the empty loop."""
    found = dict(zip(("engine", "spin"), map(microseconds, latencies(run, calls)), strict=True))
    spread = {name: x["p99"] / x["p50"] for name, x in found.items()}
    return {"calls": calls, **found, "spread": spread["engine"] / spread["spin"]}


def paced(
    run: Run,
    rate: int,
    seconds: float,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Json:
    """Calls at ``rate`` Hz, each due at the start of its period and to be done before the next one starts.

    Returns:
        "calls" made; "misses", those that ended after their period; "late", the misses whose computation alone would
        have been in time, so that the wake-up was late; "skipped" periods that passed by meanwhile; and in
        microseconds "wake" (begun after due), "compute" and "response" (ended after due).
    """
    period, count = 1 / rate, max(1, round(rate * seconds))
    times: list[tuple[float, float, float]] = []
    with timing.only_new_garbage():
        start, i = now() + period, 0
        while i < count:
            due = start + i * period
            if (left := due - now() - SPIN_SECONDS) > 0:
                sleep(left)
            while (begun := now()) < due:
                pass
            run()
            ended = now()
            times.append((begun - due, ended - begun, ended - due))
            i = max(i + 1, int((ended - start) / period))
    wake, compute, response = np.array(times).T
    missed = response > period
    quantiles = {"wake": wake, "compute": compute, "response": response}
    return {
        "rate": rate, "seconds": seconds, "calls": len(times), "misses": int(missed.sum()),
        "late": int((missed & (compute <= period)).sum()), "skipped": count - len(times),
        **{name: microseconds(x) for name, x in quantiles.items()},
    }  # fmt: skip


def read_rate(count: int) -> float:
    """Bytes/s at which this thread sums ``count`` bytes, again and again: what a cache of that size gives."""
    x = torch.zeros(max(count // 4, 1))
    repetitions = max(3, 20_000_000 // count)
    return count / min(timing.seconds_per_call(x.sum, repetitions) for _ in range(5))
