"""``make gpu-check`` without a GPU: what it refuses, and its steps around processes that stand for the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import pytest
from gpu_check import BROKEN, Check, Finished, Outcome
from test_gpu_log import HANGING

from bench import gpu_run

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
    check.end = time.monotonic() + 8
    assert 4 < check.seconds(10, kept=3) <= 5
    check.end = 0
    assert check.seconds(10) == 1


FAILED_BUILD = """[1/2] errors.cpp.o
FAILED: nlm.cu.o
nlm.cu(7): error: identifier is undefined
error: subprocess-exited-with-error
hint: See above for details
"""


def test_building(check, monkeypatch, capsys, tmp_path):
    cache = tmp_path / "CMakeCache.txt"
    cache.write_text("CMAKE_CUDA_COMPILER=NOTFOUND")
    monkeypatch.setattr(gpu_check, "BUILD_DIR", str(tmp_path))
    commands = stand_in(
        monkeypatch, Finished(0, "ok"), Finished(1, FAILED_BUILD), Finished(None, "[3/9] a.cu")
    )
    assert not check.build().failed
    assert cache.exists()
    failed = check.build()
    assert not cache.exists()
    assert (failed.failed, failed.words) == (True, "nlm.cu(7): error: identifier is undefined")
    assert "FAILED: nlm.cu.o\nnlm.cu(7): error: identifier is undefined\n" in capsys.readouterr().out
    assert check.build().words == "stopped after 0 s"
    assert capsys.readouterr().out == "[3/9] a.cu\n"
    assert {"-v", "--no-build-isolation", "--no-deps", "--no-index"} <= set(commands[0])


def test_a_build_in_a_python_of_the_distribution_is_allowed(check, monkeypatch):
    variables = {}
    monkeypatch.setattr(Check, "run", lambda *_, **given: variables.update(given) or [Finished(0, "")])
    check.build()
    assert variables["PIP_BREAK_SYSTEM_PACKAGES"] == "1"


@pytest.mark.parametrize(
    ("second", "failed", "words"),
    [
        (Finished(0, PASSED), False, "8 passed, 2 skipped"),
        (Finished(5, "no tests ran in 0.10s\n"), False, "4 passed, 1 skipped"),
        (Finished(2, f"!! {BROKEN}a: why !!\n2 passed in 3.00s\n"), True, "6 passed, 1 skipped"),
        (Finished(1, "FAILED a\n1 failed, 2 passed in 3.00s\n"), True, "6 passed, 1 skipped, 1 failed"),
        (Finished(None, HANGING), True, "4 passed, 1 skipped; 1 of 2 processes stopped"),
    ],
    ids=["all", "none there", "broken", "failing", "stopped"],
)
def test_testing_in_shards(check, monkeypatch, capsys, second, failed, words):
    commands = stand_in(monkeypatch, Finished(0, PASSED), second)
    found = check.test(2)
    assert (found.failed, found.words) == (failed, words)
    files = gpu_check.files_with(gpu_check.GPU_FILES)
    assert "python_tests/test_triton_loop.py" in files
    assert [command[-len(files) - 1] for command in commands] == ["--shard=0/2", "--shard=1/2"]
    printed = capsys.readouterr().out
    assert ("FAILED a" in printed) == ("failed" in words)
    assert (f"{BROKEN}a: why\n" in printed) == (second.status == 2)
    assert ("stopped in python_tests/test_x.py::test_b[nlm 1]\n" in printed) == ("stopped" in words)
    assert {"-v", "faulthandler_timeout=60"} <= set(commands[0])


def test_no_test_at_all_is_a_failure(check, monkeypatch):
    stand_in(monkeypatch, Finished(5, "no tests ran in 0.10s\n"))
    assert check.test(1).failed


def test_a_missing_sanitizer_is_said(check, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    (found,) = check.sanitize()
    assert not found.failed
    assert found.words == "left out: compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin"


OPENED = Finished(0, "8.0\n========= ERROR SUMMARY: 0 errors\n")


@pytest.fixture
def _has_sanitizer(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "/bin/compute-sanitizer")


@pytest.mark.usefixtures("_has_sanitizer")
@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (Finished(1, "========= Error: Device not supported\n"), "========= Error: Device not supported"),
        (Finished(None, "========= COMPUTE-SANITIZER\n"), "not in 40 s"),
    ],
    ids=["refused", "hangs"],
)
def test_a_sanitizer_that_cannot_open_the_device_is_said(check, monkeypatch, probe, words):
    stand_in(monkeypatch, probe)
    (found,) = check.sanitize()
    assert not found.failed
    assert found.words.endswith(f"cannot open the device: {words}")


@pytest.mark.usefixtures("_has_sanitizer")
@pytest.mark.parametrize("before", [True, False], ids=["before", "during"])
def test_a_sanitizer_without_time_is_said(check, monkeypatch, before):
    def run(self, *_, **__):
        assert not before
        self.end = time.monotonic()
        return [Finished(None, "")]

    monkeypatch.setattr(Check, "run", run)
    check.end = time.monotonic() + (1 if before else 10)
    (found,) = check.sanitize()
    assert (found.failed, found.words) == (False, "left out: no time left (make gpu-test runs it)")


@pytest.mark.usefixtures("_has_sanitizer")
def test_findings_of_the_sanitizer_fail(check, monkeypatch):
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
    ("half", "steps"),
    [("test", ["build", "tests", "sanitizer"]), ("bench", ["build", "benchmark"]),
     ("check", ["build", "tests", "benchmark", "sanitizer"])],
)  # fmt: skip
def test_a_failing_half_does_not_stop_the_other(check, monkeypatch, capsys, half, steps):
    monkeypatch.setattr(Check, "build", lambda self: Outcome("build", 1.0, False, "built"))
    monkeypatch.setattr(Check, "test", lambda self, jobs, kept: Outcome("tests", 2.0, True, "1 failed"))
    monkeypatch.setattr(Check, "sanitize", lambda self: [Outcome("sanitizer", 3.0, False, "left out")])
    monkeypatch.setattr(Check, "bench", lambda self, label, kept: Outcome("benchmark", 4.0, False, "written"))
    assert gpu_check.run(half, check, "toy") == (half != "bench")
    table = capsys.readouterr().out.rpartition("\n\n")[2]
    assert [line.split()[0] for line in table.splitlines() if line][:-1] == steps
    assert ("FAILED  1 failed" in table) == (half != "bench")


def test_nothing_runs_on_a_package_that_was_not_built(check, monkeypatch, capsys):
    monkeypatch.setattr(Check, "build", lambda self: Outcome("build", 1.0, True, "no compiler"))
    assert gpu_check.run("check", check, "toy") == 1
    assert "tests" not in capsys.readouterr().out


def test_the_benchmark_is_told_where_and_how_long(check, monkeypatch, capsys):
    commands = stand_in(monkeypatch, Finished(0, "lines"), Finished(1, "broken"), Finished(None, "infer ..."))
    assert not check.bench("nvidia-h200").failed
    assert check.bench("nvidia-h200").words == "broken"
    assert check.bench("nvidia-h200").words == "stopped after 0 s in: infer ..."
    given = [f"--seed={check.seed}", f"--out={check.results / 'nvidia-h200.json'}", "--budget=485"]
    assert commands[0][-3:] == given


def test_after_a_row_that_breaks_cuda_a_new_process_measures(check, monkeypatch):
    assert gpu_check.BROKEN_STATUS == gpu_run.BROKEN_STATUS
    broken = Finished(gpu_check.BROKEN_STATUS, "another process must go on: why")
    commands = stand_in(monkeypatch, broken, Finished(0, "lines"))
    found = check.bench("nvidia-h200")
    assert (found.failed, found.words) == (True, "another process must go on: why")
    assert ["--resume" in command for command in commands] == [False, True]
    check.end = time.monotonic() + 40
    stand_in(monkeypatch, broken)
    assert check.bench("nvidia-h200").failed


def test_what_was_not_measured_ends_the_table(check):
    text = {"name": "train/parity 75/25 B64", "refused": "broken", "seed": check.seed}
    old = {"name": "infer/of an earlier run", "seed": check.seed + 1}
    (check.results / "toy.json").write_text(json.dumps({"machine": {}, "rows": [text, old]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.gpu_render.markdown", lambda found: "table")
        lines = gpu_check.write_table(check, "toy")
    assert lines[0].split(maxsplit=3)[3] == "refused: broken"
    assert lines[2] == "not measured: train/parity 75/25 B64: 4x reference, 1.5x compiled, 1/8 peak"
    assert not any("earlier" in line for line in lines)


def test_every_step_leaves_time_to_those_behind_it(check, monkeypatch):
    given = []

    def run(self, commands, log, most, **_):
        given.append(most)
        self.end -= most
        return [Finished(0, PASSED)] * len(commands)

    monkeypatch.setattr(Check, "run", run)
    gpu_check.run("check", check, "toy")
    build, tests, bench, *_ = given
    assert (build, tests) == (240, pytest.approx(80, abs=1))
    assert bench == pytest.approx(510 - 240 - 80 - gpu_check.SANITIZER_KEPT, abs=2)


NOT_THERE = (
    "accelerate",
    "gymnasium",
    "huggingface_hub",
    "imageio",
    "matplotlib",
    "psutil",
    "pytest_benchmark",
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
command = gpu_check.pytest(gpu_check.MARKS, gpu_check.GPU_FILES, "--collect-only", "-qq")
sys.exit(pytest.main(command[3:]))
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


@pytest.fixture
def gpu_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(gpu_check, "missing", list)
    monkeypatch.delenv("CUDACXX", raising=False)


def test_refusals(monkeypatch, capsys):
    assert gpu_check.main(["everything"]) == 2
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_check.main(["check"]) == 2
    assert f"gpu-check: {sys.executable} must have torch: " in capsys.readouterr().err


def test_everything_that_is_missing_is_named_at_once(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    there = {"torch", "pip", "triton", "pytest", "ninja"}
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: name if name in there else None)
    must = f"{sys.executable} must have numpy, pybind11, scikit_build_core, cmake"
    assert gpu_check.gpu() == ("", must)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, **__: f"/bin/{name}")
    assert gpu_check.missing() == ["numpy", "pybind11", "scikit_build_core"]


@pytest.mark.usefixtures("gpu_there")
def test_a_missing_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    assert gpu_check.gpu() == ("", "nvcc must be on PATH or in /usr/local/cuda/bin, or named by CUDACXX")


@pytest.mark.usefixtures("gpu_there")
def test_a_compiler_beside_path_is_found_and_used(check, monkeypatch):
    found = "/usr/local/cuda/bin/nvcc"
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path=None: found if path else None)
    assert gpu_check.gpu() == ("nvidia-h200", "")
    variables = {}
    monkeypatch.setattr(Check, "run", lambda *_, **given: variables.update(given) or [Finished(0, "")])
    check.build()
    assert variables["CUDACXX"] == found


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
