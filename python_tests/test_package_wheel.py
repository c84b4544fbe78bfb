"""A wheel from an isolated build: what it holds, and that it works without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD_SECONDS = 240  # about 60 on two idle cores, half of it the download of cmake and ninja

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(ROOT)]
    start = time.monotonic()
    subprocess.run(command, env={**os.environ, "CTM_FAST_CUDA": "off"}, check=True)
    assert time.monotonic() - start < BUILD_SECONDS
    return next(out.glob("*.whl"))


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ctm_fast"}
    libraries = [name for name in names if ".so" in name]
    assert len(libraries) == 1 and libraries[0].startswith("ctm_fast/_C.")
    assert {"ctm_fast/py.typed", "ctm_fast/_C.pyi"} <= set(names)


def test_wheel_without_torch(wheel: Path, tmp_path: Path) -> None:
    """A robot's install: `pip install --no-deps ctm_fast numpy`."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "robot")], check=True)
    python = str(tmp_path / "robot" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel), "numpy"], check=True)
    report = subprocess.run([python, "-m", "ctm_fast"], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    assert b"No module named 'torch'" in report.stdout
