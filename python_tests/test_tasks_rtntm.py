"""Copying, reversing and adding with the RTNTM: data, sizes, scores, training, pictures, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from ctm_fast.backend import use_backend
from ctm_fast.models import RTNTM
from tasks import checkpointing
from tasks.command import main
from tasks.errors import UserError
from tasks.rtntm.config import ADD_PRESETS, COPY_PRESETS
from tasks.rtntm.data import ALPHABET, DELIMITER, FED, FIRST_SYMBOL, IGNORED, copy_batch, sum_batch, text
from tasks.rtntm.task import RTNTMAdd, RTNTMCopy, RTNTMReverse
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"d_model": 8, "heads": 2, "batch_size": 4, "batch_size_test": 4, "n_test_batches": 2}
COPY = replace(COPY_PRESETS["quick"], **TINY, length=6, slots=6, start=2, rise=2, vocabulary=9, beyond=(9,))
ADD = replace(ADD_PRESETS["quick"], **TINY, digits=3, slots=12, ahead=0, beyond=(5,))
TASKS = {"copy": (RTNTMCopy, COPY), "reverse": (RTNTMReverse, COPY), "add": (RTNTMAdd, ADD)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sums(tokens: Tensor, targets: Tensor) -> Iterator[tuple[str, str, str, str]]:
    """First number, second number, answer and the whole line of every sample, as they are read from the text."""
    for line, answer in zip(tokens, targets, strict=True):
        first, rest = text(line).split("+")
        yield first, rest.split("=")[0], text(answer).strip("_"), text(line)


@pytest.mark.parametrize("reverse", [False, True], ids=["copy", "reverse"])
def test_copy_targets(reverse: bool) -> None:
    tokens, targets = copy_batch(5, 7, 20, generator(), reverse)
    assert tokens.shape == targets.shape == (5, 15)
    symbols = tokens[:, :7]
    assert symbols.min() >= FIRST_SYMBOL
    assert (tokens[:, 7] == DELIMITER).all()
    assert (tokens[:, 8:] == FED).all()
    assert (targets[:, :8] == IGNORED).all()
    assert targets[:, 8:].tolist() == (symbols.flip(1) if reverse else symbols).tolist()


def test_every_sum_is_right_and_written_backwards() -> None:
    lengths = torch.randint(1, 30, (2, 64), generator=generator())
    batch = sum_batch(lengths, generator())
    for (first, second, answer, _), a, b in zip(sums(*batch), *lengths.tolist(), strict=True):
        assert (len(first), len(second)) == (a, b)
        assert answer == str(int(first[::-1]) + int(second[::-1]))[::-1] + " "
        assert not (a > 1 and first.endswith("0"))


def test_answers_follow_their_question_whatever_the_others_need() -> None:
    """The answer is due from the step after `=`, where `0` is fed; only `_` comes after it."""
    tokens, targets = sum_batch(torch.tensor([[1, 12, 3], [2, 1, 9]]), generator())
    for line, due, (first, second, answer, whole) in zip(tokens, targets, sums(tokens, targets), strict=True):
        start = len(first) + len(second) + 2
        assert (due != IGNORED).nonzero()[:, 0].tolist() == list(range(start, start + len(answer)))
        assert line[start : start + len(answer)].tolist() == [FED] * len(answer)
        assert set(whole[start + len(answer) :]) <= {"_"}


def test_carries_run_through() -> None:
    """999 + 1 among random draws of the same form."""
    drawn = [item for seed in range(40) for item in sums(*sum_batch(torch.full((2, 64), 2), generator(seed)))]
    longer = [item for item in drawn if len(item[2]) == 4]
    assert len(drawn) > len(longer) > 0
    assert all(int(first[::-1]) + int(second[::-1]) > 99 for first, second, *_ in longer)


@pytest.mark.parametrize(("task_class", "config"), TASKS.values(), ids=TASKS)
def test_batches_depend_on_step_and_level(task_class: Any, config: Any) -> None:
    task = task_class(config)
    one = task.batch(3, batch_generator(0, 3))
    assert torch.equal(one[0], task.batch(3, batch_generator(0, 3))[0])
    longest = []
    for index in range(len(task.curriculum.levels)):
        task.curriculum.index = index
        longest.append(max(task.batch(s, batch_generator(0, s))[0].shape[1] for s in range(60)))
    assert longest == sorted(set(longest))
    assert longest[-1] <= config.steps_for(config.longest)


def test_samples_of_a_batch_share_their_digits_unless_mixed() -> None:
    for mixed in (False, True):
        task = RTNTMAdd(replace(ADD, digits=9, slots=20, start=9, mixed=mixed, batch_size=16))
        questions = [(len(f), len(s)) for f, s, *_ in sums(*task.batch(0, batch_generator(0, 0)))]
        assert (len(set(questions)) > 1) == mixed


def test_one_number_may_be_ahead_of_the_level() -> None:
    task = RTNTMAdd(replace(ADD, digits=9, slots=20, start=2, ahead=3, batch_size=256))
    lengths = {(len(f), len(s)) for f, s, *_ in sums(*task.batch(0, batch_generator(0, 0)))}
    assert lengths == {(a, b) for a in range(1, 6) for b in range(1, 6) if min(a, b) <= 2}


@pytest.mark.parametrize(("task_class", "config"), TASKS.values(), ids=TASKS)
def test_evaluation_sets_are_fixed_and_of_full_length(task_class: Any, config: Any) -> None:
    task, other = task_class(config), task_class(replace(config, seed=5))
    batches = list(task.evaluation_batches())
    assert len(batches) == 2
    for batch, same in zip(batches, other.evaluation_batches(), strict=True):
        assert torch.equal(batch[0], same[0])
        assert config.steps_for(config.longest) - batch[0].shape[1] in (0, 1)
    assert not torch.equal(batches[0][0], batches[1][0])
    [(name, beyond)] = task.beyond_batches().items()
    assert name == f"longest_{config.beyond[0]}"
    assert next(iter(beyond))[0].shape[1] > batches[0][0].shape[1]


@pytest.mark.parametrize(("task_class", "config"), TASKS.values(), ids=TASKS)
def test_metrics_against_a_loop(task_class: Any, config: Any) -> None:
    task = task_class(config)
    model = task.build_model().eval()
    tokens, targets = next(iter(task.evaluation_batches()))
    targets[0] = model(tokens).logits.argmax(-1)[0].where(targets[0] != IGNORED, IGNORED)
    loss, metrics = task.loss(model, (tokens, targets))
    logits = model(tokens).logits
    terms = []
    for sample, line in enumerate(targets.tolist()):
        due = [step for step, target in enumerate(line) if target != IGNORED]
        right = [int(logits[sample, step].argmax()) == line[step] for step in due]
        terms += [-logits[sample, step].log_softmax(-1)[line[step]] for step in due]
        assert metrics["accuracy"][sample].item() == pytest.approx(sum(right) / len(right))
        assert metrics["accuracy_whole"][sample].item() == all(right)
    assert metrics["accuracy_whole"][0] == 1
    assert loss.item() >= torch.stack(terms).mean().item()
    plain, _ = task_class(replace(config, entropy=0.0)).loss(model, (tokens, targets))
    assert plain.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_gradients_are_finite_where_sharp_weightings_underflow(backend: str) -> None:
    """With the published eps; the entropy in the loss meets weights that are exactly 0."""
    task = RTNTMCopy(replace(COPY, eps=1e-12))
    model = task.build_model()
    assert isinstance(model, RTNTM)
    with torch.no_grad():
        model.read_head[-1].bias[-1] = 500.0  # gamma of the only read head
    batch = task.batch(0, generator())
    with use_backend(backend):
        assert not model(batch[0]).state.memory.read_weights.all()
        task.loss(model, batch)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_longer_sequences_get_the_slots_that_they_need() -> None:
    task = RTNTMCopy(COPY)
    assert task.slots(torch.zeros(1, 13, dtype=torch.int64)) == 6
    assert task.slots(torch.zeros(1, 19, dtype=torch.int64)) == 9


PUBLISHED_ADD = {"published": 251_363, "published_64": 97_143, "published_200": 1_397_851}


@pytest.mark.parametrize("name", PUBLISHED_ADD)
def test_published_addition(name: str) -> None:
    config = ADD_PRESETS[name]
    assert sum(p.numel() for p in RTNTMAdd(config).build_model().parameters()) == PUBLISHED_ADD[name]
    assert (config.lr, config.warmup_steps, config.batch_size, config.dropout) == (3e-4, 1000, 32, 0.1)
    assert (config.slots, config.window, config.digits, config.entropy) == (128, 8, 20, 0.001)
    assert list(RTNTMAdd(config).curriculum.levels) == list(range(1, 21))
    assert len(ALPHABET) == 14


def test_published_copy() -> None:
    config = COPY_PRESETS["published"]
    assert sum(p.numel() for p in RTNTMCopy(config).build_model().parameters()) == 262_818
    assert (config.lr, config.weight_decay, config.slots, config.window) == (1e-3, 1e-4, 60, 4)
    assert list(RTNTMCopy(config).curriculum.levels) == list(range(2, 51, 2))
    assert config.learning_rate(999) == pytest.approx(1e-3)
    assert config.learning_rate(50_000) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(("task_class", "config"), TASKS.values(), ids=TASKS)
def test_pictures_are_drawn(tmp_path: Path, task_class: Any, config: Any) -> None:
    task = task_class(config)
    paths = task.analyse(task.build_model().eval(), tmp_path)
    assert [path.name for path in paths] == ["weightings.png", "memory.png", "lengths.png"]
    for path in paths:
        assert imread(path).std() > 0.01


@pytest.mark.parametrize(("task_class", "config"), TASKS.values(), ids=TASKS)
def test_command_trains_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_class: Any, config: Any
) -> None:
    small = replace(config, training_iterations=4, log_every=2, track_every=4, save_every=2, cpu=True)
    monkeypatch.setattr(task_class, "presets", {"quick": small})
    assert main(task_class, ["train", "--out", str(tmp_path)]) == 0
    assert checkpointing.load(tmp_path)["iteration"] == 4
    assert main(task_class, ["evaluate", "--checkpoint", str(tmp_path), "--cpu"]) == 0
    assert "longest_" in (tmp_path / "evaluation.json").read_text()


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (COPY, {"heads": 3}, "heads must divide d_model=8, got 3"),
        (COPY, {"slots": 5}, "slots must be at least 6 to keep the question, got 5"),
        (ADD, {"slots": 7}, "slots must be at least 8 to keep the question, got 7"),
        (COPY, {"window": 0}, "window must be at least 1, got 0"),
        (COPY, {"vocabulary": 2}, "vocabulary must be at least 3, got 2"),
        (COPY, {"start": 7}, "start must be at most 6, got 7"),
        (ADD, {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        (ADD, {"beyond": (0,)}, r"beyond must hold numbers of at least 1, got \(0,\)"),
        (ADD, {"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        (ADD, {"ahead": -1}, "ahead must not be negative, got -1"),
        (ADD, {"digits": 0}, "digits must be at least 1, got 0"),
        (COPY, {"length": 0}, "length must be at least 1, got 0"),
        (ADD, {"final_lr": 2.0}, r"final_lr must lie in \[0, 1\], got 2.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_impossible_settings_are_refused(base: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(base, **changes)
