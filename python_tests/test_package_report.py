"""`python -m ctm_fast`: text and JSON, with and without torch, and CTM_FAST_SIMD."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ctm_fast import _C, backend
from ctm_fast.__main__ import gather, main, render

# Runs the report in an interpreter that cannot import the module named first: torch is missing on a robot.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("ctm_fast", run_name="__main__")
"""


def run(*command: str, **environment: str) -> dict[str, Any]:
    everything = {**os.environ, **environment}
    out = subprocess.run(
        [sys.executable, *command], env=everything, stdout=subprocess.PIPE, check=True
    ).stdout
    report: dict[str, Any] = json.loads(out)
    return report


def test_json_is_what_gather_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gather()


def test_text_names_versions_level_threads_and_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for word in ("ctm_fast", "torch", "numpy", "SIMD", "threads", "OpenMP", "CUDA", _C.simd_level()):
        assert word in text
    assert len(text[text.index("op ") :].splitlines()) == len(backend.table()) + 1


def test_a_row_that_cannot_run_has_a_reason() -> None:
    rows = gather()["ops"]
    assert any(row["runs"] for row in rows)
    assert all(row["reason"] for row in rows if not row["runs"])


def test_works_without_torch() -> None:
    report = run("-c", WITHOUT, "torch", "--json")
    assert report["versions"]["torch"].startswith("none")
    assert report["threads"]["count"] == os.cpu_count()
    assert not any(row["runs"] for row in report["ops"])


def test_works_without_the_extension() -> None:
    report = run("-c", WITHOUT, "ctm_fast._C", "--json")
    assert report["simd"]["level"] == "none"
    native = [row for row in report["ops"] if (row["device"], row["backend"]) == ("cpu", "native")]
    assert all("ctm_fast._C" in row["reason"] for row in native)


@pytest.mark.parametrize("level", _C.simd_levels())
def test_simd_cap(level: str) -> None:
    simd = run("-m", "ctm_fast", "--json", CTM_FAST_SIMD=level)["simd"]
    assert simd["level"] == level
    assert f"CTM_FAST_SIMD={level}" in simd["reason"]


def test_unknown_simd_cap_is_named() -> None:
    simd = run("-m", "ctm_fast", "--json", CTM_FAST_SIMD="mmx")["simd"]
    assert simd["level"] == simd["levels"][-1]
    assert "mmx" in simd["reason"]


def test_an_empty_simd_cap_is_none() -> None:
    simd = run("-m", "ctm_fast", "--json", CTM_FAST_SIMD="")["simd"]
    assert simd["reason"] == "the highest level compiled in that this processor has"


@pytest.mark.parametrize("cap", ["mmx", "", "baseline"])
def test_an_unknown_simd_cap_warns_where_the_kernels_are_imported(cap: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import ctm_fast.ops"],
        env={**os.environ, "CTM_FAST_SIMD": cap}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("CTM_FAST_SIMD must be one of ('baseline', 'avx2', 'avx512'), got 'mmx'" in found.stderr) == (
        cap == "mmx"
    )


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        found = subprocess.run(
            [sys.executable, "-m", "ctm_fast"], stdout=closed, stderr=subprocess.PIPE, check=True
        )
    assert found.stderr == b""


def test_two_openmp_runtimes_are_said() -> None:
    report = {**gather(), "openmp": ["/a/libgomp.so.1", "/b/libgomp-a34b3233.so.1"]}
    assert "2 are loaded" in render(report)


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--bogus"])
    assert "--bogus" in capsys.readouterr().err
