"""The copy experiment with a Differentiable Neural Computer: lengths, curriculum, presets, pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from ctm_fast.models import DNC
from tasks.command import main
from tasks.dnc.pictures import dense_links
from tasks.dnc_babi.presets import PRESETS as BABI
from tasks.dnc_copy.config import PRESETS
from tasks.dnc_copy.task import DncCopy
from tasks.dnc_graph.config import PRESETS as GRAPHS
from tasks.errors import UserError
from tasks.setup import make_accelerator
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(
    PRESETS["quick"],
    longest=4,
    beyond=(6,),
    controller_size=8,
    slots=6,
    slots_beyond=9,
    width=4,
    batch_size=3,
    batch_size_test=2,
    training_iterations=2,
    track_every=2,
)


def test_the_answer_is_the_sequence() -> None:
    task = DncCopy(TINY)
    inputs, targets = task.batch(0, batch_generator(0, 4))
    length = len(targets)
    assert inputs.shape == (2 * length + 1, 3, 9)
    assert torch.equal(inputs[:length, :, :8], targets)
    assert inputs[length, :, 8].eq(1).all()
    assert not inputs[length + 1 :].any()


def test_every_length_is_evaluated_and_some_beyond() -> None:
    task = DncCopy(TINY)
    assert [len(targets) for _, targets in task.evaluation_batches()] == [1, 2, 3, 4]
    beyond = {
        name: [len(targets) for _, targets in batches] for name, batches in task.beyond_batches().items()
    }
    assert beyond == {"length_4": [4] * 4, "length_6": [6] * 4}


def test_longer_sequences_get_more_memory() -> None:
    task = DncCopy(TINY)
    model, used = task.build_model(), []
    model.register_forward_hook(lambda module, _, found: used.append(found.state.memory.shape[1]))
    accelerator = make_accelerator(TINY)
    task.evaluate(model, accelerator)
    task.evaluate_beyond(model, accelerator)
    assert used == [6] * 4 + [9] * 8
    assert model.slots == 6


def test_curriculum_bounds_the_length() -> None:
    task = DncCopy(replace(TINY, longest=6, curriculum_start=1, curriculum_step=2, beyond=()))
    assert task.curriculum is not None
    assert list(task.curriculum.levels) == [1, 3, 5, 6]
    assert {len(task.batch(0, batch_generator(0, s))[1]) for s in range(9)} == {1}
    task.curriculum.index = 1
    assert {len(task.batch(0, batch_generator(0, s))[1]) for s in range(40)} == {1, 2, 3}


@pytest.mark.parametrize("sparse", [None, 3], ids=["dense", "sparse"])
def test_pictures_are_drawn(tmp_path: Path, sparse: int | None) -> None:
    task = DncCopy(replace(TINY, sparse=sparse, read_heads=2))
    paths = task.analyse(task.build_model().eval(), tmp_path)
    assert [p.name for p in paths] == ["memory.png", "links.png"]
    for path in paths:
        assert min(imread(path).shape[:2]) > 400
        assert imread(path).std() > 0.01


def test_sparse_links_are_drawn_where_they_are() -> None:
    x, models = torch.randn(6, 2, 3), []
    for sparse in (None, 4):
        torch.manual_seed(0)
        models.append(DNC(3, 2, slots=4, sparse=sparse))
    found = [dense_links(model(x).state.addressing) for model in models]
    torch.testing.assert_close(*found)


def test_the_papers_settings() -> None:
    """Extended data table 2 of Nature 538, 471-476."""
    rows = {
        "dnc1": (BABI["paper"], 1, 256, 1, 1e-4, 256, 64, 4),
        "dnc2": (BABI["paper_dnc2"], 1, 256, 1, 1e-4, 256, 32, 8),
        "traversal": (GRAPHS["paper"], 3, 256, 2, 1e-5, 256, 50, 5),
        "shortest": (GRAPHS["paper_shortest_path"], 2, 256, 1, 3e-6, 128, 50, 5),
        "inference": (GRAPHS["paper_inference"], 3, 256, 32, 1e-5, 128, 50, 5),
    }
    for name, (c, layers, size, batch, lr, slots, width, heads) in rows.items():
        assert (c.controller, c.controller_layers, c.controller_size) == ("lstm", layers, size), name
        assert (c.batch_size, c.lr, c.optimizer) == (batch, lr, "rmsprop"), name
        assert (c.slots, c.width, c.read_heads) == (slots, width, heads), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longest": 7}, "slots must be at least longest=7, one per vector, got 6"),
        ({"shortest": 5}, "longest must be at least 5, got 4"),
        ({"beyond": (4,)}, r"beyond must be above longest=4, got \(4,\)"),
        ({"curriculum_start": 5}, r"curriculum_start must be None or lie in \[1, 4\], got 5"),
        ({"curriculum_goal": 1.5}, r"curriculum_goal must lie in \(0, 1\], got 1.5"),
        ({"slots_beyond": 5}, "slots_beyond must be None or at least 6, got 5"),
        ({"bits": 0}, "bits must be at least 1, got 0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(TINY, **changes)


def test_the_command_trains_resumes_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "quick", TINY)
    out = str(tmp_path / "run")
    assert main(DncCopy, ["train", "--preset", "quick", "--out", out]) == 0
    assert main(DncCopy, ["train", "--preset", "quick", "--out", out, "--resume"]) == 0
    assert main(DncCopy, ["evaluate", "--preset", "quick", "--checkpoint", out]) == 0
    assert "length_6/accuracy" in capsys.readouterr().out
