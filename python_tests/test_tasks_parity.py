"""The parity experiment: data, held-out split, model sizes, scores and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from tasks.errors import UserError
from tasks.parity.config import PRESETS
from tasks.parity.data import positions, random_sequences, sequences, split_patterns
from tasks.parity.pictures import grid_shape
from tasks.parity.task import Parity
from tasks.setup import make_accelerator, materialise
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

# Table of the paper (appendix G), reproduced from the published models.
PARAMETERS = {
    "ctm_1_1": 4_908_706,
    "ctm_10_5": 5_043_874,
    "ctm_25_10": 5_212_834,
    "ctm_50_25": 5_719_714,
    "ctm_75_25": 5_719_714,
    "ctm_100_50": 6_564_514,
    "lstm_1": 4_912_710,
    "lstm_10": 5_050_716,
    "lstm_25": 5_216_036,
    "lstm_50": 5_722_374,
    "lstm_75": 5_722_374,
    "lstm_100": 6_567_486,
    "lstm_10_certain": 5_050_716,
    "lstm_25_certain": 5_216_036,
}
TINY = replace(
    PRESETS["quick"],
    parity_sequence_length=6,
    iterations=3,
    memory_length=3,
    d_model=16,
    d_input=8,
    heads=2,
    n_synch_out=6,
    n_synch_action=4,
    batch_size=8,
    batch_size_test=4,
)


class Answers(nn.Module):
    """Predictions (B, 2 S, T) and certainties (B, 2, T) that a test chose."""

    def __init__(self, predictions: Tensor, certainties: Tensor) -> None:
        super().__init__()
        self.answer = (predictions, certainties, None)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, None]:
        return self.answer


def test_every_preset_is_known() -> None:
    assert PRESETS.keys() == {"quick", *PARAMETERS}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    task = Parity(replace(PRESETS[name], iterations=1))
    model = task.build_model()
    materialise(model, task.batch(0, batch_generator(0, 0)))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_settings(name: str) -> None:
    config = PRESETS[name]
    kind, ticks, *rest = name.split("_")
    assert config.iterations == int(ticks)
    assert config.model_type == kind
    assert config.quantile_clipping == (0.9 if kind == "ctm" else None)
    assert config.use_most_certain == (kind == "ctm" or rest == ["certain"])
    assert (config.batch_size, config.lr, config.training_iterations, config.warmup_steps) == (
        64,
        1e-4,
        200_001,
        500,
    )


def test_targets_are_running_parities() -> None:
    values, targets = random_sequences(5, 70, torch.Generator().manual_seed(1))
    assert values.dtype == torch.float32
    for sequence, parities in zip(values.tolist(), targets.tolist(), strict=True):
        assert set(sequence) <= {1.0, -1.0}
        assert parities == [sequence[: i + 1].count(-1.0) % 2 for i in range(len(sequence))]


def test_codes_are_bits_of_the_sequence() -> None:
    values, targets = sequences(torch.tensor([0b0101]), 4)
    assert values.tolist() == [[-1, 1, -1, 1]]
    assert targets.tolist() == [[1, 1, 0, 0]]


def test_a_tenth_of_all_patterns_is_held_out() -> None:
    trained, held_out = split_patterns(12, 0.1)
    assert len(held_out) == 410
    assert sorted([*trained.tolist(), *held_out.tolist()]) == list(range(2**12))
    assert torch.equal(held_out, split_patterns(12, 0.1)[1])


def test_held_out_patterns_are_never_trained_on_and_all_evaluated() -> None:
    task = Parity(TINY)
    drawn = {tuple(v) for step in range(200) for v in task.batch(step, batch_generator(0, step))[0].tolist()}
    tested = {tuple(v) for values, _ in task.evaluation_batches() for v in values.tolist()}
    assert len(tested) == 7
    assert len(drawn) == 64 - 7
    assert not drawn & tested


def test_evaluation_set_is_fixed() -> None:
    task = Parity(replace(TINY, held_out=0.0, n_test_batches=3))
    one, two = list(task.evaluation_batches()), list(task.evaluation_batches())
    assert len(one) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))
    other = Parity(replace(TINY, held_out=0.0, seed=7))
    assert torch.equal(one[0][0], next(iter(other.evaluation_batches()))[0])


def test_batches_differ_by_step_seed_and_process() -> None:
    task = Parity(replace(TINY, parity_sequence_length=20, held_out=0.0))
    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    batches = [task.batch(step, batch_generator(seed, step, process))[0] for seed, step, process in keys]
    assert len({tuple(b.flatten().tolist()) for b in batches}) == 4
    assert torch.equal(batches[0], task.batch(0, batch_generator(0, 0))[0])


def test_metrics_against_a_loop() -> None:
    batch, length, ticks = 3, 6, 4
    predictions, certainties = torch.randn(batch, 2 * length, ticks), torch.rand(batch, 2, ticks)
    values, targets = random_sequences(batch, length, torch.Generator().manual_seed(0))
    _, metrics = Parity(TINY).loss(Answers(predictions, certainties), (values, targets))
    for b in range(batch):
        best = int(certainties[b, 1].argmax())
        right = [
            [
                float(predictions[b, 2 * s + 1, t] > predictions[b, 2 * s, t]) == targets[b, s]
                for s in range(length)
            ]
            for t in range(ticks)
        ]
        assert metrics["accuracy"][b].tolist() == pytest.approx([np.mean(r) for r in right])
        assert metrics["accuracy_most_certain"][b].item() == pytest.approx(np.mean(right[best]))
        assert metrics["accuracy_most_certain_per_input"][b].item() == all(right[best])
        assert metrics["tick_most_certain"][b].item() == best + 1


def test_evaluation_is_the_mean_over_all_sequences() -> None:
    task = Parity(TINY)
    accelerator = make_accelerator(TINY)
    model = task.build_model()
    parts = list(task.evaluation_batches())
    whole = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    with torch.no_grad():
        loss, metrics = task.loss(model.eval(), whole)
    model.train()
    result = task.evaluate(model, accelerator)
    assert model.training
    assert [len(p[0]) for p in parts] == [4, 3]
    torch.testing.assert_close(result["loss"].float(), loss)
    torch.testing.assert_close(result["accuracy"].float(), metrics["accuracy"].mean(0))


@pytest.mark.parametrize(
    "changes",
    [{}, {"model_type": "lstm"}, {"iterations": 1}, {"parity_sequence_length": 64, "held_out": 0.0}],
    ids=["ctm", "lstm", "one-tick", "64-values"],
)
def test_pictures_are_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    task = Parity(replace(TINY, **changes))
    paths = task.analyse(task.build_model().eval(), tmp_path)
    assert [p.name for p in paths] == ["accuracy.png", "attention.png"]
    for path in paths:
        picture = imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 0.01


@pytest.mark.parametrize(("length", "shape"), [(64, (8, 8)), (12, (3, 4)), (7, (1, 7)), (1, (1, 1))], ids=str)
def test_grid_is_as_square_as_it_can_be(length: int, shape: tuple[int, int]) -> None:
    assert grid_shape(length) == shape


def test_positions_splits_the_outputs() -> None:
    predictions = torch.arange(12.0).view(1, 6, 2)
    assert positions(predictions)[0, 1, 1].tolist() == [6.0, 7.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide d_input=8, got 3"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"held_out": 1.0}, r"held_out must lie in \[0, 1\), got 1.0"),
        ({"held_out": 0.99}, "held_out must leave a pattern to train on, got 0.99"),
        (
            {"parity_sequence_length": 21},
            "parity_sequence_length must be at most 20 when patterns are held out, got 21",
        ),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive and finite, got nan"),
        ({"threads": 0}, "threads must be at least 1 or None, got 0"),
        ({"seed": -1}, r"seed must lie in \[0, 2\^32\), got -1"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"quantile_clipping": 1.5}, r"quantile_clipping must lie in \(0, 1\] or be None, got 1.5"),
        ({"gradient_clipping": 0.0}, "gradient_clipping must be positive or None, got 0.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(TINY, **changes)  # type: ignore[arg-type]
