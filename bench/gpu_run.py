"""``python -m bench --device cuda``: the rows of a GPU, the most wanted first, torch.compile last."""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Sequence

from bench import gpu_compiled, results
from bench.gpu import Gpu, exact_products
from bench.gpu_render import headings, line, machine_line
from bench.gpu_row import measure
from bench.row import DisagreementError, Json, Row
from bench.timing import Effort

FULL = Effort(least=3, most=15, seconds=1.5, sample_seconds=0.02)
QUICK = Effort(least=2, most=5, seconds=0.5, sample_seconds=0.005, hooks=False)
COMPILE_SHARE = 0.4  # of the budget that is kept for torch.compile
COMPILING_SHARE = 0.6  # of what is left then: the rest is for timing


class _Run:
    """A run under way: what it found, where it writes, when it began."""

    def __init__(self, options: argparse.Namespace, gpu: Gpu) -> None:
        self.gpu, self.options = gpu, options
        about = gpu.describe(options.machine)
        self.path = results.place(options.out, options.quick, about)
        self.found = results.open_results(self.path, about)
        self.seed = options.seed if options.seed is not None else time.time_ns() % 2**31
        self.start = time.monotonic()
        self.failures = 0
        print(machine_line(about), headings(), sep="\n\n", flush=True)

    @property
    def compiles(self) -> bool:
        return not (self.options.quick or self.options.no_compile)

    def left(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        budget = float("inf") if self.options.budget is None else self.options.budget
        return float(budget - (time.monotonic() - self.start))

    def keep(self, result: Json) -> None:
        """Write and print a result."""
        results.put(self.found, result)
        results.write(self.path, self.found)
        print(line(result), flush=True)

    def measure(self, rows: Sequence[Row]) -> list[Json]:
        """Measure rows while the budget lasts."""
        reserve = (self.options.budget or 0.0) * (COMPILE_SHARE if self.compiles else 0.0)
        done = []
        for row in rows:
            if self.left() < reserve:
                print(f"{row.name}: left out, the budget of {self.options.budget:g} s is spent", flush=True)
                continue
            try:
                result = measure(row, self.seed, QUICK if self.options.quick else FULL, self.gpu)
            except Exception as error:  # one row's must not cost the others'
                self.failures += 1
                if not isinstance(error, DisagreementError):
                    traceback.print_exc()
                print(f"{row.name}: {type(error).__name__}: {error}; not timed", flush=True)
                continue
            finally:
                gc.collect()
                self.gpu.cuda.empty_cache()
            self.keep(result)
            done.append(result)
        return done

    def compile(self, rows: Sequence[Row], done: Sequence[Json]) -> None:
        """Measure torch.compile beside those of ``rows`` that were measured."""
        measured = {result["name"]: result for result in done if "ratios" in result}
        wanted = [row for row in rows if row.compiles and row.name in measured]
        limit = min(gpu_compiled.LIMIT_SECONDS, COMPILING_SHARE * self.left())
        if not (wanted and self.compiles and limit > 0):
            return
        print(f"\ntorch.compile, at most {limit:.0f} s", flush=True)
        for row, mode, found in gpu_compiled.outcomes(wanted, self.seed, limit, self.left):
            gpu_compiled.merge(measured[row.name], mode, found)
            if mode == gpu_compiled.MODES[-1]:
                self.keep(measured[row.name])


def run(rows: Sequence[Row], options: argparse.Namespace, gpu: Gpu) -> int:
    """Measure, print each row as it is done, write after each; 1 where a row failed or results disagreed."""
    exact_products()
    under_way = _Run(options, gpu)
    done = under_way.measure(rows)
    under_way.compile(rows, done)
    print(f"\n{under_way.path}, {time.monotonic() - under_way.start:.0f} s, seed {under_way.seed}")
    return 1 if under_way.failures else 0
