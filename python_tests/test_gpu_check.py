"""``make gpu-check`` without a GPU: what it refuses, and its steps around processes that stand for the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import pytest
from gpu_check import Check, Finished, Outcome

ROOT = Path(__file__).resolve().parent.parent
PASSED = "....\n4 passed, 1 skipped in 2.50s\n"


@pytest.fixture
def check(tmp_path):
    return Check(tmp_path / "results", tmp_path / "logs")


def stand_in(monkeypatch, *finished):
    """Let the steps find these processes instead of starting some; the commands that they would have started."""
    commands, left = [], list(finished)

    def run(self, wanted, log, most, **variables):
        commands.extend(wanted)
        return [left.pop(0) for _ in wanted]

    monkeypatch.setattr(Check, "run", run)
    return commands


def test_processes_run_beside_each_other_and_are_stopped_in_time(check):
    codes = ["print('one')", "import time; time.sleep(60)", "raise SystemExit(3)"]
    start = time.monotonic()
    found = check.run([[sys.executable, "-c", code] for code in codes], "some.log", 1.5)
    assert time.monotonic() - start < 30
    assert [done.status for done in found] == [0, None, 3]
    assert found[0].output == "one\n"
    assert "exit status 3" in (check.logs / "some.log").read_text()
    assert [path.name for path in check.logs.iterdir()] == ["some.log"]


def test_variables_reach_the_processes(check):
    code = "import os; print(os.environ['CTM_FAST_CUDA'])"
    assert check.run([[sys.executable, "-c", code]], "some.log", 30, CTM_FAST_CUDA="on")[0].output == "on\n"


def test_a_step_has_what_is_left(check):
    assert check.seconds(10) == 10
    check.end = time.monotonic() + 3
    assert 2 < check.seconds(10) <= 3
    check.end = 0
    assert check.seconds(10) == 1


def test_building(check, monkeypatch):
    commands = stand_in(monkeypatch, Finished(0, "ok"), Finished(1, "lots\nnvcc fatal : no\n"))
    assert not check.build().failed
    failed = check.build()
    assert (failed.failed, failed.words) == (True, "nvcc fatal : no")
    assert {"--no-build-isolation", "--no-deps", "--no-index"} <= set(commands[0])


@pytest.mark.parametrize(
    ("second", "failed", "words"),
    [
        (Finished(0, PASSED), False, "8 passed, 2 skipped"),
        (Finished(5, "no tests ran in 0.10s\n"), False, "4 passed, 1 skipped"),
        (Finished(1, "FAILED a\n1 failed, 2 passed in 3.00s\n"), True, "6 passed, 1 skipped, 1 failed"),
        (Finished(None, "...."), True, "4 passed, 1 skipped; 1 of 2 processes stopped"),
    ],
    ids=["all", "none there", "failing", "stopped"],
)
def test_testing_in_shards(check, monkeypatch, capsys, second, failed, words):
    commands = stand_in(monkeypatch, Finished(0, PASSED), second)
    found = check.test(2)
    assert (found.failed, found.words) == (failed, words)
    assert [command[-len(gpu_check.files_for_gpus()) - 1] for command in commands] == [
        "--shard=0/2",
        "--shard=1/2",
    ]
    assert ("FAILED a" in capsys.readouterr().out) == ("failed" in words)


def test_no_test_at_all_is_a_failure(check, monkeypatch):
    stand_in(monkeypatch, Finished(5, "no tests ran in 0.10s\n"))
    assert check.test(1).failed


def test_a_missing_sanitizer_is_said(check, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    (found,) = check.sanitize()
    assert (found.failed, found.words) == (False, "left out: compute-sanitizer is not on PATH")


OPENED = Finished(0, "8.0\n========= ERROR SUMMARY: 0 errors\n")


def test_a_sanitizer_that_cannot_open_the_device_is_said(check, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "/bin/compute-sanitizer")
    stand_in(monkeypatch, Finished(1, "========= Error: Device not supported\n"))
    (found,) = check.sanitize()
    assert not found.failed
    assert found.words.endswith("cannot open the device: ========= Error: Device not supported")


def test_findings_of_the_sanitizer_fail(check, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "/bin/compute-sanitizer")
    memory = Finished(86, "========= Invalid write\n========= ERROR SUMMARY: 3 errors\n")
    races = Finished(0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")
    commands = stand_in(monkeypatch, OPENED, memory, races)
    found = check.sanitize()
    assert [(x.name, x.failed, x.words) for x in found] == [
        ("memcheck", True, "3 errors"),
        ("racecheck", False, "0 hazards displayed (0 errors, 0 warnings)"),
    ]
    assert commands[1][:6] == [
        "/bin/compute-sanitizer", "--error-exitcode", "86", "--target-processes", "application-only", "--tool"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (Finished(None, ""), (False, "not finished in time")),
        (Finished(1, "1 failed in 2.00s\n"), (True, "1 failed in 2.00s")),
    ],
)
def test_verdicts(done, expected):
    assert gpu_check.verdict(done) == expected


@pytest.mark.parametrize(
    ("half", "steps"),
    [("test", ["build", "tests", "sanitizer"]), ("bench", ["build", "benchmark"]),
     ("check", ["build", "tests", "benchmark", "sanitizer"])],
)  # fmt: skip
def test_a_failing_half_does_not_stop_the_other(check, monkeypatch, capsys, half, steps):
    monkeypatch.setattr(Check, "build", lambda self: Outcome("build", 1.0, False, "built"))
    monkeypatch.setattr(Check, "test", lambda self, jobs: Outcome("tests", 2.0, True, "1 failed"))
    monkeypatch.setattr(Check, "sanitize", lambda self: [Outcome("sanitizer", 3.0, False, "left out")])
    monkeypatch.setattr(Check, "bench", lambda self, label: Outcome("benchmark", 4.0, False, "written"))
    assert gpu_check.run(half, check, "toy") == (half != "bench")
    table = capsys.readouterr().out.rpartition("\n\n")[2]
    assert [line.split()[0] for line in table.splitlines() if line][:-1] == steps
    assert ("FAILED  1 failed" in table) == (half != "bench")


def test_nothing_runs_on_a_package_that_was_not_built(check, monkeypatch, capsys):
    monkeypatch.setattr(Check, "build", lambda self: Outcome("build", 1.0, True, "no compiler"))
    assert gpu_check.run("check", check, "toy") == 1
    assert "tests" not in capsys.readouterr().out


def test_the_benchmark_is_told_where_and_how_long(check, monkeypatch, capsys):
    commands = stand_in(monkeypatch, Finished(0, "lines"), Finished(1, "broken"))
    assert not check.bench("nvidia-h200").failed
    assert check.bench("nvidia-h200").words == "broken"
    assert commands[0][-2:] == ["--budget=230", f"--out={check.results / 'nvidia-h200.json'}"]


NOT_THERE = (
    "accelerate",
    "gymnasium",
    "huggingface_hub",
    "imageio",
    "matplotlib",
    "psutil",
    "safetensors",
    "tqdm",
    "tyro",
)
COLLECTS = """
import sys
for name in {names}: sys.modules[name] = None
import pytest, bench.__main__, bench.gpu_compiled, gpu_check
from bench.table import find_rows
assert find_rows([], device="cuda")
sys.exit(pytest.main(gpu_check.pytest(gpu_check.MARKS, "--collect-only")[3:]))
"""


def test_torch_triton_and_pytest_are_enough():
    """Nothing on the way to a GPU's tests and rows imports another package."""
    code = COLLECTS.format(names=NOT_THERE)
    environment = {**os.environ, **gpu_check.TEST_VARIABLES, "PYTHONPATH": f"{ROOT}:{ROOT / 'python_tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu_ops.py::test_other_streams[nlm-deep]" in done.stdout


def make(target, folder, **variables):
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", **variables}
    return subprocess.run(
        ["make", "-s", target, f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
@pytest.mark.parametrize("target", ["gpu-check", "gpu-test", "gpu-bench"])
def test_without_a_gpu_nothing_is_built(target, tmp_path):
    done = make(target, tmp_path)
    assert done.returncode == 2
    assert "must have a torch that sees a GPU" in done.stderr


def test_refusals():
    assert gpu_check.main(["everything"]) == 2
    assert gpu_check.refusal("").endswith("must have a torch that sees a GPU")


def test_a_missing_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    assert gpu_check.refusal("nvidia-h200") == "nvcc must be on PATH"


def test_shards_hold_every_test_once():
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "python_tests/test_gpu_ops.py"]
    collected = []
    for options in ([], ["--shard=0/2"], ["--shard=1/2"]):
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True)
        collected.append({line for line in done.stdout.splitlines() if "::" in line})
    whole, first, second = collected
    assert first
    assert second
    assert first | second == whole
    assert not first & second
