"""``python -m bench.engine``: the engine's rows against every baseline, its latencies, and calls at fixed rates.

All of it goes into the results of this machine, beside the rows of ``python -m bench``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import compiling, engine_render, exporting, machine, render, results, timing
from bench.__main__ import FULL
from bench.engine import AIMED, Problem, rows
from bench.engine_latency import LEAST_CALLS, RATES, calls_within, full_rate, paced, read_rate, typical
from bench.models import Config
from bench.row import DisagreementError, Json, Row, heading, measure, seed_all
from ctm_fast.engine.weights import WIDTHS

SECONDS = 20.0
PACED_SECONDS = 60.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    found.add_argument("names", nargs="*", help="models by their word or title, all by default")
    found.add_argument(
        "--calls", type=int, default=LEAST_CALLS, help="calls of each model at full rate, at most"
    )
    found.add_argument("--seconds", type=float, default=SECONDS, help="that these take a model, about")
    found.add_argument(
        "--paced", nargs="*", metavar="MODEL", help="call these at fixed rates too, all without names"
    )
    found.add_argument("--paced-seconds", type=float, default=PACED_SECONDS, help="for each rate")
    found.add_argument(
        "--prepare", action="store_true", help="only compile and export the baselines, which needs no quiet"
    )
    found.add_argument("--no-rows", action="store_true", help="leave the comparison with the baselines out")
    found.add_argument("--out", type=Path, help="JSON file; what is in it and not measured now stays")
    found.add_argument(
        "--machine", help="name of this machine in the results (from the processor's by default)"
    )
    found.add_argument("--seed", type=int, default=0, help="of inputs and weights; exports are made for one")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = parser()
    options = command.parse_args(arguments)
    chosen, aimed = _chosen(options.names), _chosen(options.paced or ()) if options.paced is not None else []
    if (
        not chosen
        or (options.paced and not aimed)
        or min(options.calls, options.seconds, options.paced_seconds) <= 0
    ):
        command.error("names must be titles or words of models, --calls and seconds above 0")
    torch.set_num_threads(1)
    if options.prepare:
        return _prepare(chosen, options.seed)
    about = machine.describe(options.machine)
    path = results.place(options.out, False, about)
    found, start = results.open_results(path, about), time.perf_counter()
    for config in chosen:
        entry = _latency(config, options, config in aimed)
        latency = found.setdefault("latency", [])
        latency[:] = [*(old for old in latency if old["name"] != entry["name"]), entry]
        results.write(path, found)
        print(engine_render.line(entry), flush=True)
    failures = 0
    for row in [] if options.no_rows else _rows(chosen):
        try:
            result = _compared(row, options.seed)
        except DisagreementError as error:
            failures += 1
            print(f"{row.name}: {error}; not timed", flush=True)
            continue
        results.put(found, result)
        results.write(path, found)
        print(render.line(result), flush=True)
    print(f"\n{path}, {time.perf_counter() - start:.0f} s, load now {machine.load()}")
    return 1 if failures else 0


def _chosen(names: Sequence[str]) -> list[Config]:
    return [c for c, _ in AIMED if not names or {c.title, *c.words} & {*names}]


def _rows(chosen: Sequence[Config]) -> list[Row]:
    return [row for row in rows() if any(row.config.startswith(f"{c.title} B") for c in chosen)]


def _prepare(chosen: Sequence[Config], seed: int) -> int:
    for row in _rows(chosen):
        if row.compiles:
            print(
                row.name,
                {"torch.compile": compiling.outcome(row, seed), **exporting.outcomes(row, seed)},
                flush=True,
            )
    return 0


def _compared(row: Row, seed: int) -> Json:
    """The row with all baselines that could be made ready."""
    if not row.compiles:
        return measure(row, seed, FULL)
    exports = exporting.outcomes(row, seed)
    found = measure(row, seed, FULL, compiling.outcome, lambda case: exporting.providers(case, exports))
    return {**found, "exports": exports}


def _latency(config: Config, options: argparse.Namespace, is_paced: bool) -> Json:
    """Latency of one model, its share of what reading its weights takes, and its calls at fixed rates."""
    (row,) = (row for row in _rows([config]) if row.config == f"{config.title} B1")
    seed_all(options.seed)
    problem = Problem(config, 1)
    run = problem.call()
    total, every = problem.weight_bytes()
    floor = total / read_rate(every)
    found = {**heading(row, options.seed), "weight_bytes": total, "floor": floor * 1e6}
    found |= full_rate(run, calls_within(run, options.seconds, options.calls))
    found["share"] = floor * 1e6 / found["engine"]["p50"]
    found["narrow"] = _narrow(problem)
    if is_paced:
        length = typical(run)
        found["paced"] = [paced(run, rate, options.paced_seconds) for rate in RATES if length * rate < 1]
        found["too_fast"] = [rate for rate in RATES if length * rate >= 1]
    return found


def _narrow(problem: Problem) -> Json:
    """How many times faster narrow weights make a call, and how much they change its result."""
    engines = {width: problem.narrow(width) for width in WIDTHS[1:]}
    runs = {WIDTHS[0]: problem.call(), **{width: problem.call(x) for width, x in engines.items()}}
    samples = timing.interleave(runs, FULL)
    found = {}
    for width, one in engines.items():
        assert one.difference is not None
        changed = one.difference.synchronisation if problem.stateful else one.difference.predictions
        ratio = timing.paired_ratio(samples[WIDTHS[0]], samples[width])
        found[width] = {"ratio": ratio._asdict(), "difference": changed}
    return found


if __name__ == "__main__":
    sys.exit(main())
