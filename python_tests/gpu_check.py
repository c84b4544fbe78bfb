"""``make gpu-check``: build with CUDA, test, look for bad accesses and races, and measure, on a machine with a GPU.

``python python_tests/gpu_check.py test|bench|check`` needs the network for nothing. Results and logs go to the
folder GPU_RESULTS (by default the results to bench/results and the logs to outputs/gpu-check). Exit status: 0, 1 where
something failed, 2 where nothing could be run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_log import SANITIZER_ERROR, Finished, counted, failure, last, under_way, verdict

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 510.0
BUILD_SECONDS, TEST_SECONDS, SANITIZER_SECONDS = 240.0, 210.0, 120.0  # of tests where a benchmark follows
BENCH_KEPT, SANITIZER_KEPT = 110.0, 80.0  # of the shared time, by the steps before
OVERRUN_SECONDS = 25.0  # of a benchmark: torch is imported before, and the row under way ends
PROBE_SECONDS, LEAST_SECONDS = 40.0, 5.0
PROCESSES = 12
TOOLKIT = "/usr/local/cuda/bin"
NO_TIME = "left out: no time left (make gpu-test runs it)"
BUILD_DIR = "build/gpu"
MARKS = "(needs_gpu or needs_cuda) and not slow"
GPU_FILES = r"needs_gpu|needs_cuda|device: str"
SANITIZED = "sanitized and (needs_gpu or needs_cuda)"
SANITIZED_FILES = r"mark\.sanitized"
HANG_SECONDS = 60  # after which a test's stack is printed
BROKEN_STATUS = 3  # of a benchmark that must go on in another process
MODULES = ("numpy", "pip", "pybind11", "pytest", "scikit_build_core", "triton")
TOOLS_OF_BUILD = ("cmake", "ninja")  # modules with these names bring them too
PROBE = "import torch; print(float(torch.ones(8, device='cuda').sum()))"


class Outcome(NamedTuple):
    """How a step ended: its name, seconds, whether it failed, and a few words."""

    name: str
    seconds: float
    failed: bool
    words: str

    def __str__(self) -> str:
        return f"{self.name:12} {self.seconds:5.0f} s  {'FAILED  ' if self.failed else ''}{self.words}"


class Check:
    """One run: where its files go and when it must have ended.

    Args:
        results: folder of the JSON.
        logs: folder of everything else.
        seconds: for all steps together.
    """

    def __init__(self, results: Path, logs: Path, seconds: float = TOTAL_SECONDS) -> None:
        self.results, self.logs = results, logs
        self.end = time.monotonic() + seconds
        self.seed = time.time_ns() % 2**31
        for folder in (results, logs):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until all must have ended; negative afterwards."""
        return self.end - time.monotonic()

    def seconds(self, most: float, kept: float = 0.0) -> float:
        """How long a step may take where so much is kept for those behind it."""
        return max(min(most, self.left() - kept), 1.0)

    def run(
        self, commands: Sequence[Sequence[str]], log: str, most: float, **variables: str
    ) -> list[Finished]:
        """Run commands beside each other, stop what takes too long, and write what they print to a log."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
        end = time.monotonic() + self.seconds(most)
        found = []
        files = [self.logs / f".{log}.{i}" for i in range(len(commands))]
        started = [_start(command, file, environment) for command, file in zip(commands, files, strict=True)]
        for process, file in zip(started, files, strict=True):
            status = _wait(process, end)
            found.append(Finished(status, file.read_text(errors="replace")))
            file.unlink()
        with (self.logs / log).open("a") as whole:
            for command, finished in zip(commands, found, strict=True):
                whole.write(f"$ {' '.join(command)}\n{finished.output}\nexit status {finished.status}\n\n")
        return found

    def build(self) -> Outcome:
        """The package with its CUDA module, editable."""
        options = (
            "-v",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            f"-Cbuild-dir={BUILD_DIR}",
            "-e",
            ".",
        )
        start = time.monotonic()
        variables = {
            "CTM_FAST_CUDA": "on",
            "CUDACXX": compiler() or "nvcc",
            "PIP_BREAK_SYSTEM_PACKAGES": "1",  # a distribution's Python refuses otherwise
        }
        command = [sys.executable, "-m", "pip", "install", *options]
        (done,) = self.run([command], "build.log", BUILD_SECONDS, **variables)
        seconds = time.monotonic() - start
        if done.status == 0:
            return Outcome("build", seconds, False, "built")
        if done.status is not None:  # or CMake would not look again for what it has not found
            (ROOT / BUILD_DIR / "CMakeCache.txt").unlink(missing_ok=True)
        words, lines = failure(done)
        print(*lines, sep="\n", flush=True)
        return Outcome(
            "build", seconds, True, f"stopped after {seconds:.0f} s" if done.status is None else words
        )

    def test(self, jobs: int, kept: float = 0.0) -> Outcome:
        """All tests that need a GPU, in so many processes: Triton compiles for most of the time."""
        start = time.monotonic()
        commands = [pytest(MARKS, GPU_FILES, f"--shard={i}/{jobs}") for i in range(jobs)]
        threads = str(max((os.cpu_count() or 1) // jobs, 1))
        most = self.seconds(TOTAL_SECONDS, kept)
        found = self.run(commands, "tests.log", most, **TEST_VARIABLES, OMP_NUM_THREADS=threads)
        counts = counted(done.output for done in found)
        stopped = [under_way(done.output) for done in found if done.status is None]
        failed = any(done.status not in (0, 5) for done in found)
        words = ", ".join(f"{n} {what}" for what, n in counts.items()) or "no tests"
        lines = {line.strip("! ") for done in found for line in done.output.splitlines()}
        print(*sorted(line for line in lines if line.startswith(("FAILED", "ERROR", BROKEN))), sep="\n")
        if stopped:
            print(*(f"stopped {where}" for where in stopped), sep="\n")
            words += f"; {len(stopped)} of {jobs} processes stopped"
        return Outcome("tests", time.monotonic() - start, failed or not counts.get("passed"), words)

    def sanitize(self) -> list[Outcome]:
        """The small tests again under compute-sanitizer; says why where it cannot be run."""
        start = time.monotonic()

        def left_out(why: str) -> list[Outcome]:
            return [Outcome("sanitizer", time.monotonic() - start, False, why)]

        tool = installed("compute-sanitizer")
        if tool is None:
            return left_out(f"left out: compute-sanitizer is neither on PATH nor in {TOOLKIT}")
        if self.left() < LEAST_SECONDS:
            return left_out(NO_TIME)
        base = [tool, *COMMON, "--tool"]
        probe = [*base, "memcheck", *TOOLS["memcheck"], sys.executable, "-c", PROBE]
        (opened,) = self.run([probe], "sanitizer.log", PROBE_SECONDS)
        if opened.status is None and self.left() < LEAST_SECONDS:
            return left_out(NO_TIME)
        if opened.status != 0 or "ERROR SUMMARY: 0 errors" not in opened.output:
            why = f"not in {PROBE_SECONDS:.0f} s" if opened.status is None else last(opened)
            return left_out(f"left out: compute-sanitizer cannot open the device: {why}")
        tests = pytest(SANITIZED, SANITIZED_FILES)
        commands = [[*base, name, *options, *tests] for name, options in TOOLS.items()]
        variables = {**TEST_VARIABLES, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found = self.run(commands, "sanitizer.log", SANITIZER_SECONDS, **variables)
        seconds = time.monotonic() - start
        return [Outcome(name, seconds, *verdict(done)) for name, done in zip(TOOLS, found, strict=True)]

    def bench(self, label: str, kept: float = 0.0) -> Outcome:
        """The benchmark of the GPU, printed as it goes; after a row that breaks CUDA another process goes on."""
        start, path = time.monotonic(), self.results / f"{label}.json"
        command = [sys.executable, "-m", "bench", "--device", "cuda", f"--seed={self.seed}", f"--out={path}"]
        found: list[Finished] = []
        while not found or (found[-1].status == BROKEN_STATUS and self.left() - kept > 2 * OVERRUN_SECONDS):
            budget = max(self.left() - kept - OVERRUN_SECONDS, 1.0)
            options = [f"--budget={budget:.0f}", *(["--resume"] if found else [])]
            found += self.run([[*command, *options]], "bench.log", budget + OVERRUN_SECONDS)
            print(found[-1].output, flush=True)
        seconds = time.monotonic() - start
        words = [last(done) if done.status else "" for done in found if done.status is not None]
        if found[-1].status is None:
            words.append(f"stopped after {seconds:.0f} s in: {last(found[-1])}")
        failed = any(done.status != 0 for done in found)
        return Outcome("benchmark", seconds, failed, "; ".join(filter(None, words)) or f"written to {path}")


COMMON = ("--error-exitcode", str(SANITIZER_ERROR), "--target-processes", "application-only")
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}  # and their own options
BROKEN = "CUDA cannot be used after "
TEST_VARIABLES = {"TRITON_INTERPRET": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _start(command: Sequence[str], file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with file.open("wb") as output:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=dict(environment), process_group=0
        )


def _wait(process: subprocess.Popen[bytes], end: float) -> int | None:
    """The exit status; None for a process that was stopped at ``end``, with what it had started."""
    try:
        return process.wait(timeout=max(end - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def installed(name: str) -> str | None:
    """A tool of CUDA's toolkit, which need not be on PATH."""
    return shutil.which(name) or shutil.which(name, path=TOOLKIT)


def compiler() -> str | None:
    """nvcc as CMake is told to find it."""
    return os.environ.get("CUDACXX") or installed("nvcc")


def files_with(pattern: str) -> list[str]:
    """The test files that hold a pattern: others may import what is not installed on a GPU's machine."""
    files = sorted((ROOT / "python_tests").glob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text())]


def pytest(marks: str, pattern: str, *options: str) -> list[str]:
    """A pytest command for these marks in files that hold a pattern: needs no plugin, warnings fail nothing.

    It prints each test's name before it begins, and its stack where it takes too long.
    """
    settings = [f"faulthandler_timeout={HANG_SECONDS}", "minversion=7", "addopts=-ra --strict-markers"]
    options = ("-p", "no:cacheprovider", *(word for x in settings for word in ("-o", x)), *options)
    command = [sys.executable, "-m", "pytest", "-v"]
    return [*command, "-W", "default", "-m", marks, *options, *files_with(pattern)]


def missing() -> list[str]:
    """What building and testing needs of Python's packages and is not there."""
    found = [name for name in MODULES if importlib.util.find_spec(name) is None]
    return found + [
        x for x in TOOLS_OF_BUILD if shutil.which(x) is None and importlib.util.find_spec(x) is None
    ]


def gpu() -> tuple[str, str]:
    """The GPU's name as a file name, or why nothing can be run; the other is empty."""
    try:
        import torch
    except ImportError as error:
        return "", f"{sys.executable} must have torch: {error}"
    if not torch.cuda.is_available():
        return "", f"{sys.executable} must have a torch that sees a GPU"
    if lacking := missing():
        return "", f"{sys.executable} must have {', '.join(lacking)}"
    if compiler() is None:
        return "", f"nvcc must be on PATH or in {TOOLKIT}, or named by CUDACXX"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"), ""


def write_table(check: Check, label: str) -> list[str]:
    """The Markdown table beside the logs; its targets, a line for every row of this run, for the end of the output."""
    sys.path.insert(0, str(ROOT))
    from bench import gpu_render, gpu_rows, results
    from bench.render import duration, times
    from bench.row import REFERENCE

    path = check.results / f"{label}.json"
    found = results.read(path) if path.exists() else {"rows": []}
    if found["rows"]:
        (check.logs / "table.md").write_text(gpu_render.markdown(found) + "\n")
    rows = [row for row in found["rows"] if row["seed"] == check.seed]
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append(f"{row['name']:36} refused: {row['refused']}")
            continue
        taken, ratio = duration(row["seconds"][row["own"]]), times(row["ratios"][REFERENCE]["median"])
        lines.append(f"{row['name']:36} {taken:>9} {ratio:>7}  {gpu_render.targets(row)}")
    left_out = gpu_render.unmeasured(rows, gpu_rows.rows())
    return [*lines, "", *(f"not measured: {line}" for line in left_out)] if left_out else lines


def main(arguments: Sequence[str]) -> int:
    """Run the halves named: "test", "bench", or "check" for both."""
    if len(arguments) != 1 or arguments[0] not in ("test", "bench", "check"):
        print("usage: gpu_check.py test|bench|check", file=sys.stderr)
        return 2
    label, reason = gpu()
    if reason:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    chosen = os.environ.get("GPU_RESULTS")
    folders = (Path(chosen), Path(chosen)) if chosen else (ROOT / "bench/results", ROOT / "outputs/gpu-check")
    return run(arguments[0], Check(*(folder.resolve() for folder in folders)), label)


def run(half: str, check: Check, label: str) -> int:
    """Build, then what was asked for; a failing half does not stop the other."""
    tests, bench = half in ("test", "check"), half in ("bench", "check")
    found = [_shown(check.build())]
    lines: list[str] = []
    if not found[0].failed:
        kept = SANITIZER_KEPT if tests else 0.0
        if tests:
            jobs = max(min((os.cpu_count() or 1) * 3 // 4, PROCESSES), 1)
            later = max(BENCH_KEPT, check.left() - kept - TEST_SECONDS) if bench else 0.0
            found.append(_shown(check.test(jobs, kept + later)))
        if bench:
            found.append(_shown(check.bench(label, kept)))
            lines = write_table(check, label)
        if tests:  # last: what it can do depends on the time that is left
            found += [_shown(outcome) for outcome in check.sanitize()]
    print("", *lines, "", *found, f"logs in {check.logs}", sep="\n", flush=True)
    return int(any(outcome.failed for outcome in found))


def _shown(outcome: Outcome) -> Outcome:
    print(outcome, flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
