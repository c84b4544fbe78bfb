"""The rules of conftest.py hold: unwritten memory reads as NaN, missing data fail where they are promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

ALLOCATE = """
def allocate():
    x = torch.ones(2)
    return [torch.empty(3), torch.empty_like(x), torch.empty_strided((2,), (1,)), x.new_empty(4)]
"""

SKIPS = """
import pytest

@pytest.mark.needs_data("no_such_folder")
def test_needs_data():
    pass

def test_other_skip():
    pytest.skip("no GPU")
"""


@pytest.mark.parametrize(("module", "nan"), [("ctm_fast.ops.example", True), ("somebody.else", False)])
def test_unwritten_memory_of_the_package_is_nan(module: str, nan: bool) -> None:
    scope = {"__name__": module, "torch": torch}
    exec(ALLOCATE, scope)
    assert all(bool(tensor.isnan().all()) for tensor in scope["allocate"]()) is nan


def test_integers_are_left_alone() -> None:
    scope = {"__name__": "ctm_fast.ops.example", "torch": torch}
    exec("def allocate(): return torch.empty(3, dtype=torch.int64)", scope)
    assert scope["allocate"]().dtype == torch.int64


@pytest.mark.parametrize(("data", "outcome"), [(None, "2 skipped"), ("set", "1 error")])
def test_missing_data(data: str | None, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    environment.pop("CTM_FAST_DATA", None)
    if data is not None:
        environment["CTM_FAST_DATA"] = str(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "test_skips.py"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert outcome in result.stdout
