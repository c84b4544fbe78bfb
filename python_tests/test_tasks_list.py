"""``python -m tasks``: the list of the experiments, and each by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.__main__ import EXPERIMENTS, main

ROOT = Path(__file__).parents[1]


def test_every_experiment_is_listed() -> None:
    folder = ROOT / "tasks"
    packages = {path.parent.name for path in folder.glob("*/__main__.py")}
    modules = {path.stem for path in folder.glob("act_*.py")}
    assert packages | modules == EXPERIMENTS.keys()
    done = subprocess.run(
        [sys.executable, "-m", "tasks"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[1:])
    assert listed == {name: str(task.__doc__).splitlines()[0] for name, task in EXPERIMENTS.items()}


def test_an_experiment_is_run_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ntm_copy", "evaluate", "--help"])
    assert caught.value.code == 0
    assert "python -m tasks.ntm_copy" in capsys.readouterr().out


def test_an_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nope", "train"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"tasks: experiment must be one of parity, .*, rtntm_add, got 'nope'\n", error), error
