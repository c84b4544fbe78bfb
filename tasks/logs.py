"""Run logs: one CSV file per split, TensorBoard, and the lists that published checkpoints carry."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ctm_fast.files import replacing
from tasks.errors import writing


class Meter:
    """Sums of per-sample metrics that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = 0

    @torch.no_grad()
    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add metrics of shape (B, ...), one row per sample; a scalar counts as the mean over the batch."""
        samples = max((len(v) for v in metrics.values() if v.dim()), default=1)
        for name, value in metrics.items():
            wide = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            total = wide.sum(0) if wide.dim() else wide * samples
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.samples += samples

    def take(self) -> dict[str, Tensor]:
        """Means over the samples added so far, float64 on the CPU; the meter is empty afterwards."""
        means = {name: (total / self.samples).cpu() for name, total in self.sums.items()}
        self.sums, self.samples = {}, 0
        return means

    def gather(self) -> None:
        """Add up the meters of all processes; some of them may be empty."""
        meters = gather_object([({name: total.cpu() for name, total in self.sums.items()}, self.samples)])
        self.samples = sum(samples for _, samples in meters)
        filled = [sums for sums, _ in meters if sums]
        self.sums = {name: torch.stack([sums[name] for sums in filled]).sum(0) for name in filled[0]}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": dict(self.sums), "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from :meth:`state_dict`."""
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.samples = state["samples"]


def published_key(split: str, metric: str) -> str:
    """The list of a published checkpoint that keeps ``metric``: "train", "loss" give "train_losses"."""
    for singular, plural in (("loss", "losses"), ("accuracy", "accuracies")):
        if metric.startswith(singular):
            return f"{split}_{plural}{metric.removeprefix(singular)}"
    return f"{split}_{metric}"


def append_history(history: dict[str, list[Any]], split: str, metrics: dict[str, Tensor]) -> None:
    """Append ``metrics`` to the published lists: floats for scalars, arrays for the rest."""
    for name, value in metrics.items():
        history.setdefault(published_key(split, name), []).append(
            value.numpy() if value.dim() else value.item()
        )


class RunLog:
    """Rows of ``train.csv`` and ``test.csv`` and the same scalars in TensorBoard, in one run folder.

    Rows after ``step`` (written by a run that was killed after its last checkpoint) are dropped when the log
    is opened.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        for path in folder.glob("*.csv"):
            _drop_rows_after(path, step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.board.flush()

    def write(self, split: str, step: int, metrics: dict[str, Tensor], **more: float) -> None:
        """Log the mean of every metric, and the numbers ``more``, for ``step`` finished updates."""
        row = {name: value.mean().item() for name, value in metrics.items()} | more
        path = self.folder / f"{split}.csv"
        with writing(path, "log"):
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, ["iteration", *row])
                if new:
                    writer.writeheader()
                writer.writerow({"iteration": step, **row})
        for name, value in row.items():
            self.board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


def _drop_rows_after(path: Path, step: int) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= step]
    if not kept:
        path.unlink()
        return
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *kept])
