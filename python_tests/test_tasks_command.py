"""The command line: what it writes, and one clear sentence for everything that can go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from tasks import checkpointing
from tasks.command import main
from tasks.errors import UserError
from tasks.folders import write_text
from tasks.parity.task import Parity

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SIZES = {
    "parity-sequence-length": 4, "iterations": 2, "memory-length": 2, "d-model": 8, "d-input": 4, "heads": 2,
    "n-synch-out": 4, "n-synch-action": 3, "memory-hidden-dims": 2, "batch-size": 2, "training-iterations": 3,
}  # fmt: skip
TINY = [text for name, size in SIZES.items() for text in (f"--{name}", str(size))] + ["--held-out", "0.2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert main(Parity, ["train", "--preset", "quick", *TINY, "--out", str(folder)]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    """The one sentence that a command prints which fails with the exit status ``code``."""
    assert main(Parity, arguments) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(r"\w+: .+ must .+, got .+", error), error
    return error


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints about arguments that cannot be read."""
    with pytest.raises(SystemExit) as caught:
        main(Parity, arguments)
    assert caught.value.code == 2
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", capsys.readouterr().err).split())


def test_train_writes_a_run(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        checkpointing.LAST,
        checkpointing.BEST,
        "train.csv",
        "test.csv",
        "tensorboard",
        "accuracy.png",
        "attention.png",
    }


def test_train_runs_on_its_own_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def analyse(self: Parity, model: torch.nn.Module, folder: Path) -> list[Path]:
        seen.append(torch.get_num_threads())
        return []

    monkeypatch.setattr(Parity, "analyse", analyse)
    assert main(Parity, ["train", *TINY, "--threads", "3", "--out", str(tmp_path)]) == 0
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_evaluate_writes_the_scores(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(Parity, ["evaluate", "--checkpoint", str(trained), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(scores["accuracy"]) == 2
    assert f"{scores['accuracy_most_certain']:.4f}" in printed
    saved = checkpointing.load(trained)["test_accuracies_most_certain"][-1]
    assert scores["accuracy_most_certain"] == pytest.approx(saved)


def test_evaluate_reads_the_run_in_its_out_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "own")
    assert main(Parity, ["evaluate", "--preset", "quick", "--out", "own"]) == 0
    assert capsys.readouterr().out.startswith(f"checkpoint {Path('own', 'checkpoint.pt')}")
    assert main(Parity, ["evaluate", "--preset", "quick", "--out", "other"]) == 1
    assert "named by --checkpoint or --out, got" in capsys.readouterr().err


def test_analyse_draws_the_pictures(trained: Path, tmp_path: Path) -> None:
    assert (
        main(Parity, ["analyse", "--checkpoint", str(trained / "checkpoint_best.pt"), "--out", str(tmp_path)])
        == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["accuracy.png", "attention.png"]


def test_default_folder_is_named_after_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(Parity, ["train", *TINY]) == 0
    assert main(Parity, ["evaluate", "--preset", "quick"]) == 0
    assert (tmp_path / "outputs" / "parity" / "quick" / "evaluation.json").exists()


def test_published_checkpoint_is_read(trained: Path, tmp_path: Path) -> None:
    """The reference's settings have names of their own, and loop settings that mean something else."""
    state = checkpointing.load(trained)
    args = {k: v for k, v in vars(state["args"]).items() if k not in ("task", "held_out", "num_workers")}
    published = {
        "model_state_dict": state["model_state_dict"],
        "args": Namespace(**args, log_dir="logs", device=[-1]),
    }
    vars(published["args"])["gradient_clipping"] = -1
    torch.save(published, tmp_path / "checkpoint_10.pt")
    torch.save({}, tmp_path / "checkpoint_9.pt")
    assert main(Parity, ["evaluate", "--checkpoint", str(tmp_path)]) == 0


def test_resume_and_overwrite(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(Parity, ["train", *TINY, *out, "--resume"]) == 0
    assert "must be new or empty" in fails(capsys, "train", *TINY, *out)
    first = (tmp_path / "run" / "test.csv").read_text()
    assert main(Parity, ["train", *TINY, *out, "--resume"]) == 0
    assert (tmp_path / "run" / "test.csv").read_text() == first
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(Parity, ["train", *TINY, *out, "--overwrite", "--seed", "5"]) == 0
    assert (tmp_path / "run" / "test.csv").read_text() != first
    assert (tmp_path / "run" / "notes.txt").exists()
    assert "be one of --resume and --overwrite" in fails(
        capsys, "train", *TINY, *out, "--resume", "--overwrite", code=2
    )


def test_refused_settings_cost_no_earlier_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    more = ["--out", str(run), "--overwrite", "--neuron-select-type", "first-last", "--n-synch-action", "7"]
    assert main(Parity, ["train", *TINY, *more]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r".*n_synch_action.*\n", error), error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.fixture
def _another_precision() -> Iterator[None]:
    """Accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_another_precision")
def test_bfloat16_run_is_trained_evaluated_and_drawn(tmp_path: Path) -> None:
    assert main(Parity, ["train", *TINY, "--mixed-precision", "bf16", "--out", str(tmp_path)]) == 0
    assert main(Parity, ["evaluate", "--checkpoint", str(tmp_path)]) == 0
    assert main(Parity, ["analyse", "--checkpoint", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train", "--preset"]], ids=["none", "unknown", "no-value"]
)
def test_incomplete_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert "--help" in refused(capsys, *arguments)


def test_switches_read_as_they_act(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(Parity, ["train", "--help"])
    lines = [" ".join(line.strip("\u2502 ").split()) for line in capsys.readouterr().out.splitlines()]
    text = " ".join(lines)
    assert "--tf32, --no-tf32 Allow TF32 matrix products on CUDA. (default: True)" in text
    assert "--cpu, --no-cpu Stay on the CPU although an accelerator is there. (default: False)" in text


def test_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train", "--preset", "quickest").startswith(
        "parity: preset must be one of quick, ctm_1_1,"
    )
    assert "got 'x'" in refused(capsys, "evaluate", "--preset=x")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lr", "fast", "Error parsing --lr: could not convert string to float: 'fast'"),
        ("--neuron-select-type", "all", "invalid choice 'all' for argument '--neuron-select-type'"),
        ("--colour", "red", "Unrecognized options: --colour"),
    ],
)  # fmt: skip
def test_bad_value(capsys: pytest.CaptureFixture[str], option: str, value: str, message: str) -> None:
    assert message in refused(capsys, "train", "--preset", "quick", option, value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lr", "-1", "lr must be positive and finite, got -1.0"),
        ("--lr", "nan", "lr must be positive and finite, got nan"),
        ("--batch-size", "0", "batch_size must be at least 1, got 0"),
        ("--heads", "7", "heads must divide d_input=64, got 7"),
        ("--iterations", "0", "iterations must be at least 1, got 0"),
    ],
)
def test_value_out_of_range(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    found = fails(capsys, "train", "--preset", "quick", option, value, code=2)
    assert found == f"config: {message}\n"


def test_missing_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = fails(capsys, "evaluate", "--checkpoint", str(tmp_path / "absent"))
    assert "checkpoint must be a file or a run folder that holds one" in message
    assert "absent" in message


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "code"])
def test_damaged_checkpoint(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, damage: str
) -> None:
    whole, path = (trained / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    if damage == "code":
        torch.save({"model_state_dict": Path}, path)
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    assert "file must be a whole PyTorch checkpoint" in fails(capsys, "analyse", "--checkpoint", str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["args"].__dict__.update(task="sort"), "checkpoint must be of parity, got 'sort'"),
        (
            lambda s: s["args"].__dict__.update(d_model=10),
            "must fit ContinuousThoughtMachine, got other shapes",
        ),
        (
            lambda s: s["model_state_dict"].pop("q_proj.bias"),
            "must fit ContinuousThoughtMachine, got no q_proj.bias",
        ),
        (lambda s: s.pop("model_state_dict"), "file must hold a state dict"),
        (
            lambda s: s["model_state_dict"].update({"synapses.1.weight": torch.zeros(16, 3)}),
            "must fit ContinuousThoughtMachine, got other shapes: synapses.1.weight",
        ),
        (lambda s: s["args"].__dict__.update(lr=-1.0), "must hold valid settings, got config: lr must be"),
        (lambda s: s["args"].__dict__.update(heads=5), "must hold valid settings, got config: heads must"),
        (lambda s: s.pop("args"), "checkpoint must hold its settings 'args'"),
        (lambda s: s["args"].__dict__.pop("heads"), "checkpoint must hold the settings heads, got"),
    ],
    ids=[
        "other-task",
        "other-size",
        "missing-key",
        "no-model",
        "lazy-width",
        "bad-rate",
        "bad-heads",
        "no-settings",
        "no-heads",
    ],
)
def test_foreign_checkpoint(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, change: Any, message: str
) -> None:
    state = checkpointing.load(trained)
    change(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    assert message in fails(capsys, "evaluate", "--checkpoint", str(tmp_path))


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A folder in which nothing can be created, also by root."""
    if os.geteuid() == 0:
        return Path("/proc/sys/kernel")
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.parametrize("inside", ["", "new"], ids=["existing", "new"])
def test_read_only_folder(
    capsys: pytest.CaptureFixture[str], trained: Path, read_only: Path, inside: str
) -> None:
    out = ["--out", str(read_only / inside)]
    assert "must be writable" in fails(capsys, "train", *TINY, *out)
    assert "must be writable" in fails(capsys, "evaluate", "--checkpoint", str(trained), *out)


def test_folder_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "must be writable" in fails(capsys, "train", *TINY, "--out", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpointing.save({"iteration": 1, "model_state_dict": {"w": torch.zeros(2)}}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"save: .*checkpoint.pt' must be writable, got No space left on device"
    ):
        checkpointing.save({"iteration": 2, "model_state_dict": {"w": torch.zeros(2)}}, path)
    assert checkpointing.load(path)["iteration"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_whole_or_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    with pytest.raises(UserError, match=r"out: .*absent/a.json' must be writable"):
        write_text(tmp_path / "absent" / "a.json", "{}")


def test_ctrl_c_ends_with_one_sentence_and_a_checkpoint(tmp_path: Path) -> None:
    command = [
        "train",
        *TINY,
        "--training-iterations",
        "1000000",
        "--save-every",
        "5",
        "--out",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.parity", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "train.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    step = re.search(r"interrupted at step (\d+): .*checkpoint.pt is kept, see --resume", output)
    assert step is not None, output
    assert checkpointing.load(tmp_path / "run")["iteration"] == int(step[1])


def test_ctrl_c_before_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def interrupt(self: Parity) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Parity, "build_model", interrupt)
    assert main(Parity, ["train", *TINY, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "interrupted: the checkpoints written so far are kept\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "analyse"])
def test_help_names_options_and_presets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(Parity, [command, "--help"])
    assert caught.value.code == 0
    assert "--preset" in capsys.readouterr().out
