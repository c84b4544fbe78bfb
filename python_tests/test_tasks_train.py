"""The training loop: same seed same run, exact resume, logs, and nothing that waits for the device."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctm_fast.backend import use_backend
from tasks import checkpointing
from tasks.command import main
from tasks.config import TrainConfig
from tasks.errors import UserError
from tasks.parity.config import PRESETS, ParityConfig
from tasks.parity.task import Parity
from tasks.setup import make_optimizer
from tasks.task import batch_generator
from tasks.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SIZES: dict[str, Any] = {
    "parity_sequence_length": 5, "iterations": 3, "memory_length": 3, "d_model": 16, "d_input": 8, "heads": 2,
    "n_synch_out": 6, "n_synch_action": 4, "memory_hidden_dims": 2, "batch_size": 4, "batch_size_test": 4,
    "warmup_steps": 2, "log_every": 3, "track_every": 4, "save_every": 5,
}  # fmt: skip
TINY = replace(PRESETS["quick"], **SIZES, dropout=0.2, training_iterations=10)


def as_options(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    return [text for name, value in settings.items() for text in ("--" + name.replace("_", "-"), str(value))]


def run(config: ParityConfig, folder: Path, resume: bool = False) -> Trainer:
    folder.mkdir(exist_ok=True)
    trainer = Trainer(Parity(config), folder, resume)
    trainer.fit()
    return trainer


def assert_same(one: Any, two: Any, where: str = "checkpoint") -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, Tensor):
        torch.testing.assert_close(
            one, two, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}"
        )
    else:
        assert np.array_equal(one, two), where


def assert_same_run(one: Path, two: Path) -> None:
    for name in (checkpointing.LAST, checkpointing.BEST):
        assert_same(checkpointing.load(one / name), checkpointing.load(two / name), name)
    for name in ("train.csv", "test.csv"):
        assert (one / name).read_text() == (two / name).read_text(), name


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the loop fail like a killed process once `steps` updates are done."""
    update = Trainer._update

    def dying(self: Trainer, batch: Any) -> None:
        if self.step == steps:
            raise MemoryError("killed")
        update(self, batch)

    monkeypatch.setattr(Trainer, "_update", dying)


def test_same_seed_same_run_and_workers_change_nothing(tmp_path: Path) -> None:
    run(TINY, tmp_path / "one")
    run(replace(TINY, num_workers=1), tmp_path / "two")
    first, second = (checkpointing.load(tmp_path / name) for name in ("one", "two"))
    assert_same(first["model_state_dict"], second["model_state_dict"])
    run(replace(TINY, seed=1), tmp_path / "three")
    assert first["train_losses"] != checkpointing.load(tmp_path / "three")["train_losses"]


@pytest.mark.parametrize("killed_at", [1, 5, 7], ids=lambda n: f"killed_at_{n}")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantile_clipping": None, "gradient_clipping": 0.1, "scheduler_type": "none"},
        {"model_type": "lstm"},
    ],
    ids=["quantile-cosine", "norm-constant", "lstm"],
)
def test_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], killed_at: int
) -> None:
    config = replace(TINY, **changes)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, killed_at)
        with pytest.raises(MemoryError):
            run(config, tmp_path / "resumed")
    torch.manual_seed(999)
    run(config, tmp_path / "resumed", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


KILLING = """
import csv, io, os, signal
import torch
from ctm_fast import checkpoint
from tasks import logs
from tasks.command import main
from tasks.parity.task import Parity

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def saving(state, path):
    if state["iteration"] == 10:
        whole = io.BytesIO()
        save(state, whole)
        path.write_bytes(whole.getvalue()[: whole.tell() // 2])
        die()
    save(state, path)

class Writer(csv.DictWriter):
    def __init__(self, file, names):
        super().__init__(file, names)
        self.file = file

    def writerow(self, row):
        if row["iteration"] == 6:
            self.file.write("6,0.")
            self.file.flush()
            die()
        return super().writerow(row)

save = torch.save
"""
MOMENTS = {"checkpoint": "checkpoint.torch.save = saving", "log": "logs.csv.DictWriter = Writer"}


@pytest.mark.parametrize("half_written", MOMENTS)
def test_sigkill_then_resume_equals_the_uninterrupted_run(tmp_path: Path, half_written: str) -> None:
    """The process kills itself halfway through a checkpoint or a row of a log, after the checkpoint of step 5."""
    options = as_options(SIZES | {"training_iterations": 10, "dropout": 0.2})
    command = ["train", "--preset", "quick", *options, "--out"]
    program = "\n".join((KILLING, MOMENTS[half_written], "main(Parity)"))
    process = subprocess.run(
        [sys.executable, "-c", program, *command, str(tmp_path / "killed")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert checkpointing.load(tmp_path / "killed")["iteration"] == 5
    assert main(Parity, [*command, str(tmp_path / "killed"), "--resume"]) == 0
    assert main(Parity, [*command, str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*"))


def test_ctrl_c_keeps_a_checkpoint_of_the_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TINY, tmp_path / "whole")
    update = Trainer._update

    def interrupted(self: Trainer, batch: Any) -> None:
        update(self, batch)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        (tmp_path / "stopped").mkdir()
        assert not Trainer(Parity(TINY), tmp_path / "stopped").fit()
    assert checkpointing.load(tmp_path / "stopped")["iteration"] == 3
    run(TINY, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(Parity(TINY), tmp_path)
    batch = trainer.task.batch(0, batch_generator(0, 0))
    trainer._update(batch)

    def waits(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the step waits for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, waits)
    with use_backend("reference"):  # the native ops check index ranges, which is free on the CPU
        trainer._update(batch)


def test_logs_hold_one_row_per_interval(tmp_path: Path) -> None:
    run(TINY, tmp_path)
    rows = {
        split: list(csv.DictReader((tmp_path / f"{split}.csv").read_text().splitlines()))
        for split in ("train", "test")
    }
    assert [row["iteration"] for row in rows["train"]] == ["3", "6", "9", "10"]
    assert [row["iteration"] for row in rows["test"]] == ["4", "8", "10"]
    assert float(rows["train"][0]["lr"]) == TINY.learning_rate(2)
    assert list((tmp_path / "tensorboard").iterdir())


def test_checkpoint_has_the_published_layout(tmp_path: Path) -> None:
    run(TINY, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    keys = ["model", "optimizer", "scheduler", "scaler"]
    assert {f"{key}_state_dict" for key in keys} <= state.keys()
    assert state["optimizer_state_dict"].keys() == {"optimizer", "clipper"}
    assert state["iteration"] == 10
    assert state["iters"] == [4, 8, 10]
    for split in ("train", "test"):
        assert all(isinstance(v, float) for v in state[f"{split}_losses"])
        assert [v.shape for v in state[f"{split}_accuracies"]] == [(3,)] * 3
        assert len(state[f"{split}_accuracies_most_certain"]) == 3
        assert len(state[f"{split}_accuracies_most_certain_per_input"]) == 3
    assert vars(state["args"])["d_model"] == 16
    assert {"torch_rng_state", "numpy_rng_state", "random_rng_state"} <= state.keys()


def test_best_checkpoint_is_the_one_with_the_highest_score(tmp_path: Path) -> None:
    run(TINY, tmp_path)
    last, best = checkpointing.load(tmp_path), checkpointing.load(tmp_path / "checkpoint_best.pt")
    scores = last["test_accuracies_most_certain"]
    assert best["best_score"] == last["best_score"] == max(scores)
    assert best["iteration"] == last["iters"][scores.index(max(scores))]


@pytest.mark.parametrize("log_every", [3, 100], ids=["seen-in-log", "seen-when-saving"])
def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    loss = Parity.loss

    def diverging(self: Parity, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = loss(self, model, batch)
        return value * math.nan, metrics

    monkeypatch.setattr(Parity, "loss", diverging)
    with pytest.raises(UserError, match=r"must stay finite .the last checkpoint is kept., got"):
        run(replace(TINY, log_every=log_every), tmp_path)
    assert checkpointing.load(tmp_path)["iteration"] == 0


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    run(TINY, tmp_path)
    with pytest.raises(UserError, match=r"resume: lr must be 0.001 as in the checkpoint, got 0.5"):
        Trainer(Parity(replace(TINY, lr=0.5)), tmp_path, resume=True)
    state = checkpointing.load(tmp_path)
    del state["meters"]
    checkpointing.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"resume: checkpoint must hold .'meters'., got"):
        Trainer(Parity(TINY), tmp_path, resume=True)


def test_decay_leaves_out_the_named_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    config = TrainConfig(weight_decay=0.1, weight_decay_exclusion_list=("bias", "1."))
    decayed, kept = make_optimizer(model, config, torch.device("cpu")).param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 3
    assert kept["weight_decay"] == 0.0
    for without in (
        replace(config, weight_decay=0.0),
        replace(config, weight_decay_exclusion_list=("absent",)),
    ):
        assert len(make_optimizer(model, without, torch.device("cpu")).param_groups) == 1


KILLED_PROCESS = """
from tasks.command import main
from tasks.parity.task import Parity
from tasks.train import Trainer

update = Trainer._update

def dying(self, batch):
    if self.step == 6:
        raise SystemExit(9)
    update(self, batch)

Trainer._update = dying
main(Parity)
"""


@pytest.mark.slow
def test_two_processes_resume_to_the_same_run(tmp_path: Path) -> None:
    """With one tick, which leaves a parameter without gradient, and one evaluation batch for the two."""
    (tmp_path / "killed.py").write_text(KILLED_PROCESS)
    sizes = SIZES | {"iterations": 1, "training_iterations": 10, "dropout": 0.2}

    def launch(program: list[str], out: str, *more: str) -> tuple[int, str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        settings = ["--cpu", *as_options(sizes), "--out", str(tmp_path / out)]
        command = [*torchrun, *program, "train", *settings, *more]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return run.returncode, run.stderr

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    status, errors = launch(["-m", "tasks.parity"], "whole")
    assert status == 0, errors
    assert launch([str(tmp_path / "killed.py")], "resumed")[0] != 0
    assert checkpointing.load(tmp_path / "resumed")["iteration"] == 5
    status, errors = launch(["-m", "tasks.parity"], "resumed", "--resume")
    assert status == 0, errors
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    with pytest.raises(UserError, match=r"resume: processes must be 2, got 1"):
        Trainer(Parity(replace(TINY, **sizes, cpu=True)), tmp_path / "resumed", resume=True)
