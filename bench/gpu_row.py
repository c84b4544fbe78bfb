"""How a row is measured on a GPU; :mod:`bench.row` has what a row is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

import ctm_fast
from bench import timing
from bench.gpu import Gpu, Sample
from bench.row import (
    OWN,
    REFERENCE,
    Case,
    DisagreementError,
    Json,
    Provider,
    Row,
    agreed,
    check,
    compared,
    heading,
    kept_bytes,
    seed_all,
)

GRAPH_REFERENCE, GRAPH_OWN = "CUDA graph of reference", "CUDA graph of ctm_fast"
NATIVE, GRAPH_NATIVE = "native", "CUDA graph of native"
CAPTURED = "ctm_fast.capture"
WRONG = "wrong"  # begins why a form failed that ran and disagrees with the reference
GRAPHS = {GRAPH_REFERENCE: REFERENCE, GRAPH_OWN: OWN, GRAPH_NATIVE: NATIVE}
FORMS = {
    OWN: "plain",
    GRAPH_OWN: "graph",
    NATIVE: "native",
    GRAPH_NATIVE: "graph of native",
    CAPTURED: "captured",
}
"""How ctm_fast can do the work of a row, and what tables call it."""

Maker = Callable[[], Provider]


def build(row: Row, seed: int, gpu: Gpu) -> Case:
    """The row's case with everything on the GPU."""
    seed_all(seed)
    with torch.device(gpu.device):
        return row.build()


def measure(row: Row, seed: int, effort: timing.Effort, gpu: Gpu) -> Json:
    """The row's result as JSON types: what :func:`bench.row.measure` gives, and what only a GPU has.

    "seconds" and "ratios" are by events with the data in the cache; "cold" and "wall" hold the same after the cache was
    overwritten (None for whole models) and by the wall clock. "own" names the provider that the ratios are to.
    "floor" is the time of the least work at this machine's rates and its share of the time of the fastest form of
    ctm_fast ("by"), "reserved" what the captured model keeps, "failed" why a provider is missing.
    """
    result = heading(row, seed)
    with timing.only_new_garbage():
        case = build(row, seed, gpu)
        if case.estimate is not None and (estimate := case.estimate()) > gpu.memory_limit():
            return {**result, "refused": f"the reference would keep {estimate / 1e9:.1f} GB for backward"}
        checked = check(case)
        memory = {"kept": _kept(case, effort, gpu), "peak": _peak(case, gpu)}
        reserved: dict[str, int] = {}
        failed = add_forms(case, makers(row, case, gpu, reserved), checked.errors)
        rates = gpu.rates()
        samples = sampled(case.providers, row, effort, gpu)
    own = headline(case)
    hot, cold, wall = (times(samples, i, own, case.ticks) for i in range(3))
    assert hot is not None
    seconds = hot["seconds"]
    fastest = min((name for name in FORMS if name in seconds), key=lambda name: seconds[name])
    floor = {"by": fastest, **least(case, checked.flop, rates, seconds[fastest] * case.ticks)}
    return {
        **result, **hot, **memory, "cold": cold, "wall": wall, "own": own, "failed": failed,
        "errors": checked.errors, "floor": floor, "reserved": reserved,
    }  # fmt: skip


def _kept(case: Case, effort: timing.Effort, gpu: Gpu) -> Json:
    forwards = {name: p.forward for name, p in case.providers.items() if p.forward}
    return {name: kept_bytes(f, case, effort.hooks, gpu.live_bytes) for name, f in forwards.items()}


def _peak(case: Case, gpu: Gpu) -> dict[str, int]:
    """Most memory that a call takes, its results and gradients counted, parameters and inputs not."""
    found = {}
    for name, provider in case.providers.items():
        for leaf in case.leaves:
            leaf.grad = None
        found[name] = gpu.peak_bytes(provider.run)
    return found


def makers(row: Row, case: Case, gpu: Gpu, reserved: dict[str, int]) -> dict[str, Maker]:
    """What makes the other forms: the backend "native", CUDA graphs where the row has them, the captured model.

    ``reserved`` gets the bytes that the last one keeps.
    """
    found: dict[str, Maker] = {} if case.native is None else {NATIVE: case.native}
    if row.graphs:
        forms = {**case.providers, **found}
        found |= {name: partial(_graph, case, of, gpu) for name, of in GRAPHS.items() if of in forms}

    def reserving(make: Maker) -> Provider:
        provider = make()
        reserved[CAPTURED] = gpu.reserved_bytes(provider.run)
        return provider

    return {**found, **{name: partial(reserving, make) for name, make in captured(case).items()}}


def _graph(case: Case, of: str, gpu: Gpu) -> Provider:
    if of not in case.providers:
        raise RuntimeError(f"{of} cannot run")
    return gpu.graphed(case.providers[of].run)


def captured(case: Case) -> dict[str, Maker]:
    """What makes the captured model, by its name; empty where there is none."""
    if case.captured is None or getattr(ctm_fast, "capture", None) is None:
        return {}
    return {CAPTURED: case.captured}


def add_forms(case: Case, makers: Mapping[str, Maker], errors: dict[str, float]) -> dict[str, str]:
    """Make further providers, checked against the reference; why those that are missing failed."""
    failed: dict[str, str] = {}
    if not makers:
        return failed
    expected = [x.clone() for x in case.providers[REFERENCE].check()]
    for name, make in makers.items():
        try:
            provider = make()
            found = provider.check()
            provider.run()
            errors[name] = agreed(name, expected, found)
        except DisagreementError as error:
            failed[name] = f"{WRONG}: {error}"
        except (RuntimeError, ValueError, TypeError) as error:
            what = "refused" if name == NATIVE else "not captured"
            failed[name] = f"{what}: {error}".splitlines()[0]
        else:
            case.providers[name] = provider
    return failed


def wrong(result: Json) -> list[str]:
    """Why the further forms of a result are missing that ran and disagree with the reference."""
    return [why for why in result.get("failed", {}).values() if why.startswith(WRONG)]


def headline(case: Case) -> str:
    """The provider that stands for ctm_fast: of models the captured one, else the plain call."""
    return CAPTURED if CAPTURED in case.providers else OWN


def sampled(
    providers: Mapping[str, Provider], row: Row, effort: timing.Effort, gpu: Gpu
) -> dict[str, list[Sample]]:
    """Samples of all providers in turns; whole models, which need more than any cache, are not timed cold."""
    cold = not row.kind.startswith(("train", "infer"))
    runs = {name: provider.run for name, provider in providers.items()}
    return timing.interleave(runs, effort, sample=gpu.sampler(cold), duration=lambda sample: sample.wall)


def times(samples: Mapping[str, Sequence[Sample]], field: int, own: str, ticks: int) -> Json | None:
    """Median seconds per tick by one field of the samples, and the ratios of the other providers to ``own``."""
    values: dict[str, Any] = {name: [sample[field] for sample in found] for name, found in samples.items()}
    return None if None in values[own] else compared(values, own, ticks)


def least(case: Case, flop: int, rates: Mapping[str, float], seconds: float) -> Json:
    """Time of the least work at the machine's rates, what bounds it, and its share of ``seconds``."""
    work = {"sgemm": case.needed * flop, "copy": case.moved_bytes or case.least_bytes}
    floors = {name: amount / rates[name] for name, amount in work.items()}
    of = max(floors, key=lambda name: floors[name])
    return {
        "of": of, "seconds": floors[of], "share": floors[of] / seconds, "rate": work[of] / seconds,
        "machine_rate": rates[of],
    }  # fmt: skip
