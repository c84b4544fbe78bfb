"""``python -m bench --device cuda``: the rows of a GPU, those with targets first, then torch.compile."""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Sequence

from bench import gpu_compiled, results
from bench.gpu import Gpu, exact_products
from bench.gpu_render import headings, line, machine_line
from bench.gpu_row import measure, wrong
from bench.row import NO_TARGETS, DisagreementError, Json, Row, heading
from bench.timing import Effort

FULL = Effort(least=3, most=15, seconds=1.5, sample_seconds=0.02)
QUICK = Effort(least=2, most=5, seconds=0.5, sample_seconds=0.005, hooks=False)
COMPILE_SECONDS, COMPILE_SHARE = 190.0, 0.5  # kept for torch.compile, at most this share of the budget
COMPILING_SHARE = 2 / 3  # of what is left then: the rest is for timing
LEAST_COMPILING = 40.0  # seconds in which hardly any row compiles: rows that need no compiler have them
BROKEN_STATUS = 3


class _Run:
    """A run under way: what it found, where it writes, when it began."""

    def __init__(self, options: argparse.Namespace, gpu: Gpu) -> None:
        self.gpu, self.options = gpu, options
        about = gpu.describe(options.machine)
        self.path = results.place(options.out, options.quick, about)
        self.found = results.open_results(self.path, about)
        self.seed = options.seed if options.seed is not None else time.time_ns() % 2**31
        self.start = time.monotonic()
        self.failures: list[str] = []
        self.broken = ""
        print(machine_line(about), headings(), sep="\n\n", flush=True)

    def done(self) -> list[Json]:
        """Results in the file from this run's seed."""
        return [result for result in self.found["rows"] if result["seed"] == self.seed]

    def kept(self, rows: Sequence[Row]) -> float:
        """Seconds kept for torch.compile of these rows; 0 where they would be too few."""
        if self.options.budget is None or not self.compiled(rows):
            return 0.0
        seconds = min(COMPILE_SECONDS, COMPILE_SHARE * self.options.budget)
        return seconds if COMPILING_SHARE * seconds >= LEAST_COMPILING else 0.0

    def compiled(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that torch.compile is a baseline of."""
        without = self.options.quick or self.options.no_compile
        return [] if without else [row for row in rows if row.compiles]

    def left(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        budget = float("inf") if self.options.budget is None else self.options.budget
        return float(budget - (time.monotonic() - self.start))

    def keep(self, result: Json) -> None:
        """Write and print a result."""
        results.put(self.found, result)
        results.write(self.path, self.found)
        print(line(result), flush=True)

    def measure(self, rows: Sequence[Row], kept: float = 0.0) -> None:
        """Measure rows that are not done while the budget lasts but for so many seconds, and CUDA can be used."""
        names = {result["name"] for result in self.done()} if self.options.resume else set()
        for row in rows:
            if self.broken or row.name in names:
                continue
            if self.left() < kept:
                print(f"{row.name}: left out, the budget of {self.options.budget:g} s is spent", flush=True)
                continue
            print(f"{row.name} ...", end="\r", flush=True)  # what a log ends with where this row hangs
            try:
                result = measure(row, self.seed, QUICK if self.options.quick else FULL, self.gpu)
            except Exception as error:  # one row's must not cost the others'
                self._fail(row, error)
            else:
                self.keep(result)
                self.failures += [f"{row.name}: {why}" for why in wrong(result)]
            self._tidy(row)

    def _fail(self, row: Row, error: Exception) -> None:
        if not isinstance(error, DisagreementError):
            traceback.print_exc()
        first = str(error).partition("\n")[0]
        self.failures.append(f"{row.name}: {type(error).__name__}: {first}")
        print(f"{self.failures[-1]}; not timed", flush=True)

    def _tidy(self, row: Row) -> None:
        """Give memory back, unless the row has left an error that no call of this process gets rid of."""
        gc.collect()
        self.broken = self.gpu.broken()
        if self.broken:
            why = f"CUDA cannot be used after it: {self.broken}"
            self.keep({**heading(row, self.seed), "refused": why})
            self.failures.append(f"{row.name}: {why}")
        else:
            self.gpu.cuda.empty_cache()

    def compile(self, rows: Sequence[Row]) -> None:
        """Measure torch.compile beside those of ``rows`` that were measured."""
        done = {result["name"]: result for result in self.done() if "ratios" in result}
        wanted = [row for row in self.compiled(rows) if row.name in done and "compile" not in done[row.name]]
        limit = min(gpu_compiled.LIMIT_SECONDS, COMPILING_SHARE * self.left())
        if self.broken or not wanted:
            return
        if limit < LEAST_COMPILING:
            print(f"\ntorch.compile: left out, {max(limit, 0):.0f} s are too few", flush=True)
            return
        print(f"\ntorch.compile, at most {limit:.0f} s", flush=True)
        for row, mode, found in gpu_compiled.outcomes(wanted, self.seed, limit, self.left):
            gpu_compiled.merge(done[row.name], mode, found)
            if mode == gpu_compiled.MODES[-1]:
                self.keep(done[row.name])

    def close(self) -> int:
        """Print where the results are and what failed; the exit status."""
        print(f"\n{self.path}, {time.monotonic() - self.start:.0f} s, seed {self.seed}")
        if self.failures:
            print(f"failed: {', '.join(self.failures)}")
        if self.broken:
            print(f"another process must go on: --resume --seed {self.seed}; {self.failures[-1]}", flush=True)
            return BROKEN_STATUS
        return 1 if self.failures else 0


def run(rows: Sequence[Row], options: argparse.Namespace, gpu: Gpu) -> int:
    """Measure, print each row as it is done, write after each.

    Rows with targets come first, then torch.compile beside them, then the others. The exit status is 1 where a row
    failed or results disagreed, ``BROKEN_STATUS`` where a row left CUDA unusable: ``--resume`` measures the rest.
    """
    exact_products()
    under_way = _Run(options, gpu)
    aimed = [row for row in rows if row.compiles or row.targets != NO_TARGETS]
    under_way.measure(aimed, under_way.kept(aimed))
    under_way.compile(aimed)
    under_way.measure([row for row in rows if row not in aimed])
    return under_way.close()
