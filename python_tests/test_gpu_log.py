"""What the logs of ``make gpu-check`` say: why a build failed, where tests hung, what left CUDA unusable."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import gpu_check
import gpu_log
import pytest
from gpu_log import Finished

ROOT = Path(__file__).resolve().parent.parent
BEGUN = "python_tests/test_x.py::test_a PASSED [ 25%]\npython_tests/test_x.py::test_b[nlm 1] "
HANGING = BEGUN + "Timeout (0:01:00)!\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "CMake Error at CMakeLists.txt:9 (message):\n  no nvcc\n\nmore",
            "CMake Error at CMakeLists.txt:9 (message): no nvcc",
        ),
        ("nvcc fatal   : Unsupported\nninja: build stopped", "nvcc fatal   : Unsupported"),
        ("error: externally-managed-environment\nhint: See PEP 668", "error: externally-managed-environment"),
        ("-- well\nkilled", "killed"),
        ("", "exit status 1"),
    ],
    ids=["cmake", "nvcc", "pip", "nothing known", "nothing"],
)
def test_what_a_build_fails_by(output, words):
    assert gpu_log.failure(Finished(1, output))[0] == words


@pytest.mark.parametrize(
    ("output", "where"),
    [
        ("collected 3 items\n", "before the first test"),
        (BEGUN + "Timeout (0:01:00)!\n  File a.py, line 3\n", "in python_tests/test_x.py::test_b[nlm 1]"),
        (BEGUN + "noise\nPASSED [ 50%]\n", "after python_tests/test_x.py::test_b[nlm 1]"),
        (BEGUN + "PASSED [ 50%]\n", "after python_tests/test_x.py::test_b[nlm 1]"),
    ],
    ids=["collecting", "stack", "noise", "between"],
)
def test_where_a_stopped_process_was(output, where):
    assert gpu_log.under_way(output) == where


HANGS = """
import os
import time
import pytest

@pytest.mark.parametrize("x", ["a 1", "b 2"])
def test_it(x):
    time.sleep(1.5 if x == "b 2" else 0)
    if x == "b 2":
        os._exit(9)
"""


def test_a_hanging_test_is_found_in_what_pytest_prints(tmp_path, monkeypatch):
    folder = tmp_path / "python_tests"
    folder.mkdir()
    (folder / "test_hang.py").write_text(HANGS)
    monkeypatch.setattr(gpu_check, "files_with", lambda pattern: ["python_tests"])
    monkeypatch.setattr(gpu_check, "HANG_SECONDS", 0.5)
    command = [*gpu_check.pytest("not skipif", ""), f"--rootdir={tmp_path}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **gpu_check.TEST_VARIABLES}
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert done.returncode == 9
    assert "Timeout (0:00:00.500000)!" in done.stdout
    assert gpu_log.under_way(done.stdout) == "in python_tests/test_hang.py::test_it[b 2]"


BREAKS = """
import torch

def test_good():
    pass

def test_breaks(monkeypatch):
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
    torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), synchronize

def test_never_run():
    pass
"""


def test_a_test_that_breaks_cuda_is_named_and_the_last(tmp_path, monkeypatch):
    (tmp_path / "test_breaks.py").write_text(BREAKS)
    monkeypatch.setattr(gpu_check, "files_with", lambda pattern: ["."])
    command = gpu_check.pytest("not skipif", "", "-p", "conftest")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python_tests'}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    why = "CUDA cannot be used after test_breaks.py::test_breaks: CUDA error: an illegal memory access was encountered"
    assert done.returncode == 2
    assert f"{why} !" in done.stdout
    assert gpu_log.counted([done.stdout]) == {"failed": 1, "passed": 1}
    assert "test_never_run" not in done.stdout


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (
            Finished(None, HANGING),
            (False, "not finished in time: stopped in python_tests/test_x.py::test_b[nlm 1]"),
        ),
        (Finished(None, "..\n========= Invalid write of size 4\n.."), (True, "Invalid write of size 4")),
        (Finished(1, "1 failed in 2.00s\n"), (True, "1 failed in 2.00s")),
    ],
)
def test_verdicts(done, expected):
    assert gpu_log.verdict(done) == expected
