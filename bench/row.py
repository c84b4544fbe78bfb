"""What a row of the benchmark is, and how one is measured."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import machine, timing
from bench.flops import counted
from bench.memory import hook_bytes, live_bytes

REFERENCE, STRONG, COMPILED, OWN = "reference", "strong eager", "torch.compile", "ctm_fast"
MEMORY_LIMIT = 8e9
TOLERANCE = 2e-3
TOLERANCES = {torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 2e-2}

Json = dict[str, Any]


class Provider(NamedTuple):
    """One way to do the work of a row.

    Attributes:
        run: what is timed.
        check: the same work with fixed, smooth losses: tensors that must agree between providers.
        forward: a forward that builds a graph, for the bytes kept; None where nothing is trained.
    """

    run: Callable[[], object]
    check: Callable[[], list[Tensor]]
    forward: Callable[[], object] | None = None


def inferred(forward: Callable[[], Iterable[Tensor]]) -> Provider:
    """A forward without gradients."""
    run = torch.no_grad()(lambda: list(forward()))
    return Provider(run, run)


def trained(
    forward: Callable[[], Iterable[Tensor]], leaves: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Provider:
    """Forward and backward: the gradients of ``leaves`` from ``gradients`` of the first results."""

    def step() -> list[Tensor]:
        found = list(forward())
        return [*found, *torch.autograd.grad(found[: len(gradients)], leaves, gradients)]

    return Provider(step, step, forward)


@dataclass
class Case:
    """A row made ready on fresh random inputs.

    Attributes:
        providers: by name; REFERENCE, STRONG and OWN among them.
        compiled: makes the torch.compile provider; takes torch.compile's mode.
        ticks: times are divided by this.
        moved_bytes: bytes that the work must read and write; None where its matrix products are counted.
        needed: the share of strong eager's matrix products that the work needs.
        estimate: bytes that the reference would keep for backward, found at a smaller size.
        excluded: tensors that the saved-tensor hooks leave out.
        least_bytes: as ``moved_bytes`` where products are counted too; for the floor on a GPU.
        leaves: what gradients are left in; cleared before peak memory is taken.
        captured: makes what runs the work in a CUDA graph, after ``ctm_fast.capture``.
        exported: what ``bench.exporting`` exports of the model; None where it does not.
        native: makes what runs it on the backend "native" where that is not the default; ``RuntimeError`` where it
            cannot.
    """

    providers: dict[str, Provider]
    compiled: Callable[..., Provider]
    ticks: int = 1
    moved_bytes: float | None = None
    needed: float = 1.0
    estimate: Callable[[], float] | None = None
    excluded: Callable[[Tensor], bool] = field(default=lambda _: False)
    least_bytes: float = 0.0
    leaves: Sequence[Tensor] = ()
    captured: Callable[[], Provider] | None = None
    native: Callable[[], Provider] | None = None
    exported: Any = None


class Targets(NamedTuple):
    """What a row should reach: ratios to two baselines, share of the sgemm rate, share of the bytes kept.

    On a GPU also ratios to torch.compile and to a CUDA graph of the reference, the share of the time that the least
    work takes at the rates of the machine, and the share of the reference's peak memory.
    """

    reference: float | None = None
    strong: float | None = None
    sgemm: float | None = None
    kept: float | None = None
    compiled: float | None = None
    graph: float | None = None
    floor: float | None = None
    peak: float | None = None


NO_TARGETS = Targets()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        kind: what is done, e.g. "nlm-tick", "train".
        config: on which sizes.
        words: further words that select it on the command line.
        build: makes the case; torch's seed is set before.
        targets: what it should reach.
        quick: part of ``--quick``.
        compiles: torch.compile is among its baselines.
        graphs: on a GPU, CUDA graphs of the providers are measured beside them.
    """

    kind: str
    config: str
    words: tuple[str, ...]
    build: Callable[[], Case]
    targets: Targets = NO_TARGETS
    quick: bool = False
    compiles: bool = False
    graphs: bool = False

    @property
    def name(self) -> str:
        """How results and the command line call it."""
        return f"{self.kind}/{self.config}"

    def matches(self, word: str) -> bool:
        """Whether a word of the command line selects this row."""
        return word in (self.name, self.kind, self.config, *self.words)


class DisagreementError(AssertionError):
    """Two providers of a row gave different results, so nothing is timed."""


def disagreement(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest relative error of a tensor in the Euclidean norm; NaN if there is one.

    A tensor that is tiny beside the largest one is measured against a thousandth of that: rounding of what it
    was summed up from decides its digits.
    """
    if len(expected) != len(found):
        raise DisagreementError(f"{len(found)} results instead of {len(expected)}")
    norms = torch.stack([x.detach().norm() for x in expected])
    scale = norms.clamp(min=max(1e-3 * float(norms.max()), 1e-30))
    errors = torch.stack([(a.detach() - b.detach()).norm() for a, b in zip(expected, found, strict=True)])
    return float((errors / scale).max())


def tolerance(expected: Sequence[Tensor]) -> float:
    """The largest error that is rounding in the least precise dtype among the results."""
    return max((TOLERANCES.get(x.dtype, TOLERANCE) for x in expected), default=TOLERANCE)


def agreed(name: str, expected: list[Tensor], found: list[Tensor]) -> float:
    """The error of ``name`` against the reference; raises if it is no rounding error."""
    error, allowed = disagreement(expected, found), tolerance(expected)
    if not error <= allowed:
        raise DisagreementError(f"{name} differs from the reference by {error:.1e}, over {allowed:.0e}")
    return error


class Checked(NamedTuple):
    """What the comparison of all providers gave: errors, its duration, matrix products of strong eager."""

    errors: dict[str, float]
    seconds: dict[str, float]
    flop: int


def check(case: Case) -> Checked:
    """Compare every provider with the reference, one after the other; this also warms them up."""
    seconds, errors, flop = {}, {}, 0
    expected: list[Tensor] = []
    for name, provider in case.providers.items():
        start = time.perf_counter()
        if name == STRONG:
            found, flop = counted(provider.check)
        else:
            found = provider.check()
        seconds[name] = time.perf_counter() - start
        if name == REFERENCE:
            expected = found
        else:
            errors[name] = agreed(name, expected, found)
    return Checked(errors, seconds, flop)


def heading(row: Row, seed: int) -> Json:
    """What every result begins with: the row, and the circumstances."""
    return {
        "name": row.name, "kind": row.kind, "config": row.config, "threads": torch.get_num_threads(),
        "seed": seed, "commit": machine.commit(), "load": machine.load(), "targets": row.targets._asdict(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def seed_all(seed: int) -> None:
    """Seed what draws weights and inputs, and NumPy's generator, which draws the neurons of pairs."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def measure(
    row: Row,
    seed: int,
    effort: timing.Effort,
    compile_outcome: Callable[[Row, int], Json] | None = None,
    exported: Callable[[Case], dict[str, Provider]] | None = None,
) -> Json:
    """The row's result as JSON types; a refused row carries "refused" with the estimate and no times.

    Args:
        row: what to measure.
        seed: of the inputs and weights.
        effort: how long.
        compile_outcome: compiles the row's baseline elsewhere, see ``bench.compiling``; None leaves it out.
        exported: further providers of a case, see ``bench.exporting``.
    """
    result = heading(row, seed)
    with timing.only_new_garbage():
        seed_all(seed)
        case = row.build()
        if case.estimate is not None and (estimate := case.estimate()) > MEMORY_LIMIT:
            return {**result, "refused": f"the reference would keep {estimate / 1e9:.1f} GB for backward"}
        checked = check(case)
        kept = {
            name: kept_bytes(p.forward, case, effort.hooks) for name, p in case.providers.items() if p.forward
        }
        if compile_outcome is not None and row.compiles:
            result["compile"] = compile_outcome(row, seed)
            if "seconds" in result["compile"]:
                _add(case, checked, COMPILED, case.compiled())
        for name, provider in (exported(case) if exported else {}).items():
            _add(case, checked, name, provider)
        rates = machine.rates()
        runs = {name: provider.run for name, provider in case.providers.items()}
        samples = timing.interleave(runs, effort, checked.seconds)
    times = compared(samples, OWN, case.ticks)
    achieved = _achieved(case, checked.flop, times["seconds"][OWN] * case.ticks, rates)
    return {**result, **times, "errors": checked.errors, "achieved": achieved, "kept": kept}


def kept_bytes(
    forward: Callable[[], object],
    case: Case,
    hooks: bool,
    live_of: Callable[[Callable[[], object]], int] = live_bytes,
) -> Json:
    """Live memory first, before the forward under hooks could leave caches behind."""
    live = live_of(forward)
    return {"live": live, "hooks": hook_bytes(forward, case.excluded) if hooks else None}


def _add(case: Case, checked: Checked, name: str, provider: Provider) -> None:
    expected = case.providers[REFERENCE].check()
    checked.errors[name] = agreed(name, expected, provider.check())
    provider.run()  # where it compiles otherwise than the check, that must not be timed
    start = time.perf_counter()
    provider.run()
    checked.seconds[name] = time.perf_counter() - start
    case.providers[name] = provider


def compared(samples: Mapping[str, Sequence[float]], own: str, ticks: int) -> Json:
    """Median seconds per tick of every provider, and the ratios of the others to ``own``."""
    others = {name: values for name, values in samples.items() if name != own}
    return {
        "seconds": {name: timing.quantile(values, 0.5) / ticks for name, values in samples.items()},
        "ratios": {name: timing.paired_ratio(v, samples[own])._asdict() for name, v in others.items()},
    }


def _achieved(case: Case, flop: int, seconds: float, rates: Mapping[str, float]) -> Json:
    """Rate of ctm_fast over a whole call, and its share of this machine's sgemm or copy just before."""
    of, work = ("copy", case.moved_bytes) if case.moved_bytes is not None else ("sgemm", case.needed * flop)
    rate = work / seconds
    return {"rate": rate, "of": of, "machine_rate": rates[of], "share": rate / rates[of]}
