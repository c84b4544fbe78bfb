"""Meters, CSV files and the names of the published lists."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import UserError
from tasks.logs import Meter, RunLog, append_history, published_key


def test_meter_weighs_batches_by_their_samples() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "accuracy": torch.ones(3, 2)})
    meter.add({"loss": torch.tensor(5.0), "accuracy": torch.zeros(1, 2)})
    means = meter.take()
    assert means["loss"].item() == 2.0
    assert means["accuracy"].tolist() == [0.75, 0.75]
    assert meter.samples == 0


def test_meter_continues_from_its_state() -> None:
    one, two = Meter(), Meter()
    one.add({"loss": torch.tensor(1.0)})
    two.load_state_dict(one.state_dict(), torch.device("cpu"))
    two.add({"loss": torch.tensor(3.0)})
    assert two.take()["loss"].item() == 2.0
    assert one.take()["loss"].item() == 1.0


def test_log_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": torch.tensor(float(step))}, lr=0.5)
    log.write("test", 3, {"loss": torch.tensor(1.0)})
    log.close()
    with (tmp_path / "train.csv").open("a") as file:
        file.write("4,0")  # cut off by a full disk
    log = RunLog(tmp_path, 2)
    log.write("train", 3, {"loss": torch.tensor(9.0)}, lr=0.5)
    log.close()
    rows = (tmp_path / "train.csv").read_text().split()
    assert rows == ["iteration,loss,lr", "1,1.0,0.5", "2,2.0,0.5", "3,9.0,0.5"]
    assert not (tmp_path / "test.csv").exists()


def test_log_in_a_folder_that_vanished(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run", 0)
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"log: .*train.csv' must be writable, got No such file"):
        log.write("train", 1, {"loss": torch.tensor(1.0)})
    (tmp_path / "moved").rename(tmp_path / "run")
    log.close()


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("loss", "test_losses"),
        ("accuracy", "test_accuracies"),
        ("accuracy_most_certain", "test_accuracies_most_certain"),
        ("accuracy_full_list", "test_accuracies_full_list"),
        ("tick_most_certain", "test_tick_most_certain"),
    ],
)
def test_published_names(metric: str, key: str) -> None:
    assert published_key("test", metric) == key


def test_history_keeps_floats_and_arrays() -> None:
    history: dict[str, list[Any]] = {}
    append_history(history, "train", {"loss": torch.tensor(1.5), "accuracy": torch.tensor([0.5, 1.0])})
    assert history["train_losses"] == [1.5]
    assert history["train_accuracies"][0].tolist() == [0.5, 1.0]
