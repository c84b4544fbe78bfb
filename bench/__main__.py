"""``python -m bench``: times ctm_fast against plain PyTorch side by side, after checking that both agree."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import compiling, gpu_run, machine, results
from bench.gpu import Gpu
from bench.render import headings, line, machine_line
from bench.row import NO_TARGETS, DisagreementError, Json, Row, measure
from bench.table import find_rows
from bench.timing import Effort

FULL = Effort(least=3, most=25, seconds=5.0, sample_seconds=0.01)
QUICK = Effort(least=2, most=9, seconds=1.5, sample_seconds=0.003, hooks=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usage = "python -m bench [op or model ...] [options]"  # --threads takes all words behind it
    found = argparse.ArgumentParser(prog="python -m bench", description=__doc__, usage=usage)
    found.add_argument(
        "names", nargs="*", metavar="op or model", help="rows to measure, all by default; see --list"
    )
    found.add_argument(
        "--quick", action="store_true", help="a short table, few repetitions, no torch.compile"
    )
    found.add_argument(
        "--threads",
        type=int,
        nargs="+",
        help="thread counts (1, and 2 for rows with a target; with --quick 1)",
    )
    found.add_argument("--out", type=Path, help="JSON file; rows in it that are not measured now stay")
    found.add_argument(
        "--machine", help="name of this machine in the results (from the processor's by default)"
    )
    found.add_argument("--seed", type=int, help="of inputs and weights; a fresh one by default")
    found.add_argument("--device", default="cpu", help="cpu or cuda, which has rows of its own (cpu)")
    found.add_argument(
        "--budget", type=float, help="seconds after which a GPU measures no further row (none by default)"
    )
    found.add_argument(
        "--resume", action="store_true", help="of a GPU, only rows that the file does not have from --seed"
    )
    found.add_argument("--no-compile", action="store_true", help="leave the torch.compile baseline out")
    found.add_argument("--list", action="store_true", help="print the rows and stop")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for a bad argument, 1 where results disagreed."""
    command = parser()
    options = command.parse_args(arguments)
    cores = os.cpu_count() or 1
    if reason := device_reason(options.device):
        command.error(reason)
    if options.device == "cuda" and options.threads:
        command.error("--threads must be left out with --device cuda")
    if options.resume and (options.device != "cuda" or options.seed is None):
        command.error("--resume must come with --device cuda and --seed")
    if options.threads and not all(1 <= n <= cores for n in options.threads):
        command.error(
            f"--threads must be between 1 and the {cores} cores of this machine, got {options.threads}"
        )
    try:
        rows = find_rows(options.names, options.quick, options.device)
        if options.list:
            print("\n".join(row.name for row in rows))
            return 0
        if options.device == "cuda":
            return gpu_run.run(rows, options, Gpu())
        return run(schedule(rows, options), options)
    except ValueError as error:
        command.error(str(error))


def device_reason(device: str) -> str:
    """Why the rows of this device cannot be measured; empty where they can."""
    if device not in ("cpu", "cuda"):
        return f"--device must be cpu or cuda, got {device!r}"
    if device == "cuda" and not torch.cuda.is_available():
        return "--device must be cpu here, got cuda, but torch sees no GPU"
    return ""


def schedule(rows: Sequence[Row], options: argparse.Namespace) -> list[tuple[int, Row]]:
    """(threads, row) in order: as asked for, else all on one thread, and those with a target on two."""
    if options.threads:
        return [(threads, row) for threads in options.threads for row in rows]
    one = [(1, row) for row in rows]
    if options.quick or (os.cpu_count() or 1) < 2:
        return one
    return one + [(2, row) for row in rows if row.targets != NO_TARGETS]


def run(plan: Sequence[tuple[int, Row]], options: argparse.Namespace) -> int:
    """Measure the rows of ``plan``, print each as it is done, write after each."""
    about = machine.describe(options.machine)
    path = results.place(options.out, options.quick, about)
    found = results.open_results(path, about)
    seed = options.seed if options.seed is not None else time.time_ns() % 2**31
    failures, before, start = 0, torch.get_num_threads(), time.perf_counter()
    print(machine_line(about), headings(), sep="\n\n", flush=True)
    for threads, row in plan:
        torch.set_num_threads(threads)
        try:
            result = _measured(row, threads == plan[0][0], seed, options)
        except DisagreementError as error:
            failures += 1
            print(f"{row.name}: {error}; not timed", flush=True)
            continue
        results.put(found, result)
        results.write(path, found)
        print(line(result), flush=True)
    torch.set_num_threads(before)
    print(f"\n{path}, {time.perf_counter() - start:.0f} s, seed {seed}, load now {machine.load()}")
    return 1 if failures else 0


def _measured(row: Row, first_threads: bool, seed: int, options: argparse.Namespace) -> Json:
    """One result; torch.compile, which takes longest, is measured on the first thread count only."""
    if sys.stderr.isatty():
        print(f"{row.name} ...", end="\r", file=sys.stderr, flush=True)
    compiles = first_threads and not (options.quick or options.no_compile)
    return measure(row, seed, QUICK if options.quick else FULL, compiling.outcome if compiles else None)


if __name__ == "__main__":
    sys.exit(main())
