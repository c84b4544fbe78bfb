"""Experiments of the Neural Turing Machine: every command, curricula, presets, and one sentence per mistake."""

import dataclasses
import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from ctm_fast.models import presets as models
from tasks import checkpointing
from tasks.adaptive.sort import AdaptiveSort
from tasks.command import main
from tasks.dnc_copy.task import DncCopy
from tasks.errors import UserError
from tasks.ntm import data
from tasks.ntm.copy import Copy, CopyConfig
from tasks.ntm.ngrams import Ngrams, NgramsConfig
from tasks.ntm.pictures import used_slots
from tasks.ntm.priority_sort import PrioritySort, PrioritySortConfig
from tasks.ntm.recall import Recall, RecallConfig
from tasks.ntm.repeat_copy import RepeatCopy, RepeatCopyConfig
from tasks.task import EVALUATION_SEED, batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "controller-size": 6, "slots": 33, "width": 4, "batch-size": 2, "batch-size-test": 2, "n-test-batches": 2,
    "training-iterations": 2,
}  # fmt: skip
SMALL = [text for name, size in SIZES.items() for text in (f"--{name}", str(size))]
TASKS = {
    Copy: ["--longest", "3", "--beyond", "5"],
    RepeatCopy: ["--longest", "2", "--most", "2", "--curriculum-start", "3", "1"],
    Recall: ["--most", "3", "--beyond", "4"],
    Ngrams: ["--length", "12", "--beyond", "14"],
    PrioritySort: ["--given", "4", "--kept", "3"],
}
every_task = pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])


@every_task
def test_train_evaluate_analyse(task, tmp_path, capsys):
    assert main(task, ["train", *SMALL, *TASKS[task], "--out", str(tmp_path)]) == 0
    first = f"_{next(iter(task(checkpointed(tmp_path, task)).beyond()))}"
    pictures = {f"{name}{suffix}.png" for name in ("weightings", "memory") for suffix in ("", first)}
    extra = {"predictions.png"} if task is Ngrams else set()
    assert {path.name for path in tmp_path.glob("*.png")} == pictures | extra | {"training.png"}
    assert main(task, ["evaluate", "--checkpoint", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert {f"{first[1:]}/accuracy", "accuracy", "accuracy_sequence", "bits_per_sequence"} <= found.keys()
    assert task.score in found
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] in found)
    assert printed == {name: f"{value:.4f}" for name, value in found.items()}


def checkpointed(folder, task):
    saved = vars(checkpointing.load(folder)["args"])
    return task.config_class(
        **{f.name: saved[f.name] for f in dataclasses.fields(task.config_class) if f.name in saved}
    )


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    """With symbols, entropy in the loss and a curriculum that rises at every look."""
    more = ["--alphabet", "symbols", "--bits", "5", "--entropy-weight", "0.1", "--label-smoothing", "0.1"]
    more += ["--curriculum", "--curriculum-goal", "0", "--curriculum-every", "1", "--longest", "4"]
    more += ["--beyond", "--save-every", "1", *SMALL]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = more.index("--training-iterations") + 1
    more[steps] = "4"
    assert main(Copy, ["train", *more, "--out", str(whole)]) == 0
    state = checkpointing.load(whole)
    assert state["curriculum_state_dict"]["index"] == 1  # levels 2 and 4

    class Stopping(Copy):
        def batch(self, step, generator):
            if step == 2:
                raise KeyboardInterrupt
            return super().batch(step, generator)

    assert main(Stopping, ["train", *more, "--out", str(parts)]) == 130
    assert main(Copy, ["train", *more, "--out", str(parts), "--resume"]) == 0
    resumed = checkpointing.load(parts)
    for name, value in state["model_state_dict"].items():
        assert torch.equal(value, resumed["model_state_dict"][name]), name


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        (Copy, "published"),
        (Copy, "paper_lstm"),
        (Copy, "collier"),
        (RepeatCopy, "published"),
        (RepeatCopy, "paper_ff"),
        (Recall, "paper_ff"),
        (Ngrams, "paper_lstm"),
        (PrioritySort, "paper_lstm"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_presets_train_the_published_models(config, preset):
    task = config(config.presets[preset])
    name = f"{task.name}_{'split' if preset == 'published' else preset.removeprefix('paper_')}"
    found = {key: value.shape for key, value in task.build_model().state_dict().items()}
    assert found == {key: value.shape for key, value in models.build(name).state_dict().items()}
    assert task.build_model().layout == models.build(name).layout


def test_batches_have_lengths_of_the_range():
    task = Copy(CopyConfig(shortest=2, longest=4, beyond=(6,), n_test_batches=30))
    lengths = {len(targets) for _, targets in task.evaluation_batches()}
    assert lengths == {2, 3, 4}
    ((name, batches),) = task.beyond_batches().items()
    assert name == "length_6"
    assert {len(targets) for _, targets in batches} == {6}


@pytest.mark.parametrize("task", [Copy, RepeatCopy, DncCopy, AdaptiveSort], ids=lambda task: task.name)
def test_no_training_seed_draws_an_evaluation_batch(task, monkeypatch):
    """Every generator of a fixed set has the entropy of EVALUATION_SEED, which no configuration can have."""
    made = []

    def recorded(seed, step, process=0):
        made.append((seed, step, process))
        return batch_generator(seed, step, process)

    for module in {sys.modules[base.__module__] for base in task.__mro__ if base.__module__ != "tasks.task"}:
        if hasattr(module, "batch_generator"):
            monkeypatch.setattr(module, "batch_generator", recorded)
    quick = task(task.presets["quick"])
    for batches in (quick.evaluation_batches(), *quick.beyond_batches().values()):
        next(iter(batches))
    assert made
    assert {seed for seed, _, _ in made} == {EVALUATION_SEED}
    with pytest.raises(UserError, match=r"seed must lie in \[0, 2\^32\), got 4294967296"):
        dataclasses.replace(quick.config, seed=EVALUATION_SEED)
    states = {batch_generator(*key).initial_seed() for key in {*made, *((0, *key[1:]) for key in made)}}
    assert len(states) == 2 * len(set(made))


@pytest.mark.parametrize(("level", "longest"), [(2, 2), (20, 20)])
def test_copy_curriculum(level, longest):
    task = Copy(CopyConfig(curriculum=True))
    assert list(task.curriculum.levels) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    drawn = [task.draw_difficulty(batch_generator(0, step), level) for step in range(100)]
    assert max(drawn) == (longest,)


def test_repeat_copy_curriculum_lets_both_grow():
    task = RepeatCopy(RepeatCopyConfig(curriculum=True, curriculum_end_goal=0.7))
    assert list(task.curriculum.levels) == list(range(9))
    assert task.curriculum.at_least == {"accuracy": 0.99, "accuracy_end": 0.7}
    hardest = []
    for level in (0, 4, 8):
        drawn = [task.draw_difficulty(batch_generator(0, step), level) for step in range(200)]
        hardest.append(tuple(max(values) for values in zip(*drawn, strict=True)))
    assert hardest == [(3, 2), (7, 6), (10, 10)]


def test_repeat_copy_curriculum_may_start_with_longer_sequences():
    task = RepeatCopy(RepeatCopyConfig(curriculum=True, curriculum_start=(14, 1), longest=12, most=6))
    assert list(task.curriculum.levels) == list(range(6))
    hardest = []
    for level in (0, 1, 3, 5):
        drawn = [task.draw_difficulty(batch_generator(0, step), level) for step in range(200)]
        hardest.append(tuple(max(values) for values in zip(*drawn, strict=True)))
    assert hardest == [(14, 1), (13, 2), (12, 4), (12, 6)]


@pytest.mark.parametrize("alphabet", ["bits", "symbols"])
def test_the_end_of_repeat_copy_is_scored(alphabet):
    task = RepeatCopy(RepeatCopyConfig(alphabet=alphabet, bits=3))
    _, targets = task.make((2, 2), 2, batch_generator(0, 0))
    logits = 20 * targets - 10
    assert task.answer_loss(logits, targets)[1]["accuracy_end"].tolist() == [1.0, 1.0]
    logits[1, 0] = -10
    logits[1, 0, 3] = 10  # the first sequence says the end too soon
    assert task.answer_loss(logits, targets)[1]["accuracy_end"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("alphabet", ["bits", "symbols"])
def test_the_accuracy_of_repeat_copy_is_of_what_is_asked(alphabet):
    """A free output is no merit: silence is right at half of the bits, and at no symbol."""
    task = RepeatCopy(RepeatCopyConfig(alphabet=alphabet, bits=50))
    _, targets = task.make((10, 2), 8, batch_generator(0, 0))
    silence = torch.full_like(targets, -10.0)
    accuracy = task.answer_loss(silence, targets)[1]["accuracy"]
    expected = 1 - targets[:-1, :, :50].mean((0, 2)) if alphabet == "bits" else torch.zeros(8)
    torch.testing.assert_close(accuracy, expected)
    right = 20 * targets - 10
    right[-1, 0] = silence[-1, 0]
    right[-1, 0, 0] = 10  # the first sequence answers on in place of the end
    metrics = task.answer_loss(right, targets)[1]
    assert metrics["accuracy"].tolist() == [1.0] * 8
    assert metrics["accuracy_end"].tolist() == metrics["accuracy_sequence"].tolist() == [0.0] + [1.0] * 7


def test_some_batches_are_told_more_copies_than_they_are_shown():
    config = RepeatCopyConfig(training_iterations=1, longest=3, most=4, most_told=9, bits=5, batch_size=2)
    task = RepeatCopy(config)
    cut = 0
    for step in range(200):
        inputs, targets = task.batch(step, batch_generator(0, step))
        length = int(inputs[:, 0, 5].argmax())
        told, shown = inputs[length, 0, 6].item(), (len(targets) - 1) // length
        more = told > data.normalised_count(4, 4) + 1e-6
        cut += more
        assert told <= data.normalised_count(9, 4) + 1e-6
        assert bool(targets[-1, :, 5].all()) != more
        assert (
            torch.equal(targets[:-1], targets[:length].repeat(shown, 1, 1)) and not targets[-1, :, :5].any()
        )
    assert 5 <= cut <= 40
    with pytest.raises(UserError, match="most_told must be None or above most=4, got 4"):
        replace(config, most_told=4)


def test_beside_the_end_of_repeat_copy_no_vector_is_asked_for():
    task = RepeatCopy(RepeatCopyConfig(bits=3, end_weight=0.5))
    _, targets = task.make((2, 2), 2, batch_generator(0, 0))
    logits = (20 * targets - 10).requires_grad_()
    logits.data[-1, :, :3] = 10
    loss, metrics = task.answer_loss(logits, targets)
    assert metrics["accuracy_sequence"].tolist() == [1.0, 1.0]
    loss.backward()
    assert not logits.grad[-1, :, :3].any()
    assert logits.grad[-1, :, 3].all()


def test_the_weight_of_the_end_of_repeat_copy():
    whole, half = (RepeatCopy(RepeatCopyConfig(bits=3, end_weight=weight)) for weight in (1.0, 0.5))
    _, targets = whole.make((2, 2), 2, batch_generator(0, 0))
    logits = torch.zeros_like(targets)
    losses = [task.answer_loss(logits, targets)[0].item() for task in (whole, half)]
    assert losses[0] - losses[1] == pytest.approx(0.5 * torch.tensor(2.0).log().item() / 4)


def test_ngrams_are_scored_beside_the_optimum():
    task = Ngrams(NgramsConfig(length=50))
    _, targets, best = task.make((50,), 4, batch_generator(0, 0))
    _, metrics = task.answer_loss(torch.logit(best, eps=1e-6), targets, best)
    torch.testing.assert_close(metrics["share_of_optimum"], torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([], list(range(10))),
        ([4], [2, 3, 4, 5, 6]),
        ([9, 0], [7, 8, 9, 0, 1, 2]),
        ([0, 3, 6, 9], list(range(7, 10)) + list(range(7))),
    ],
    ids=["none", "one", "around the ring", "all over"],
)
def test_used_slots(used, expected):
    most = torch.zeros(10).numpy()
    most[used] = 1
    assert sorted(used_slots(most)) == sorted(expected)
    if len(used) == 2:
        assert used_slots(most).tolist() == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CopyConfig(weights_init="uniform"),
            "weights_init must not be uniform beside memory_init='const",
        ),
        (lambda: CopyConfig(slots=64), "slots must be at least 100, one for each vector of the longest sequ"),
        (lambda: RepeatCopyConfig(slots=16), "slots must be at least 20, one for each vector of the longest"),
        (lambda: RecallConfig(slots=19), "slots must be at least 20, one for each item of the longest list"),
        (lambda: NgramsConfig(slots=31), "slots must be at least 32, one for each context of five bits"),
        (lambda: PrioritySortConfig(slots=29), "slots must be at least 30, one for each vector given"),
        (lambda: CopyConfig(read_heads=0), "read_heads must be at least 1, got 0"),
        (lambda: CopyConfig(write_heads=-1), "write_heads must be at least 1, got -1"),
        (lambda: CopyConfig(shift=4), "shift must be odd, got 4"),
        (lambda: RecallConfig(most=2, beyond=(), slots=2), "slots must be at least shift=3, got 2"),
        (lambda: CopyConfig(shortest=5, longest=4), "longest must be at least shortest=5, got 4"),
        (lambda: CopyConfig(controller_size=None), "controller_size must be None with split_hidden only"),
        (lambda: CopyConfig(split_hidden=True), "controller_size must be None with split_hidden only"),
        (lambda: CopyConfig(alphabet="symbols", bits=1), "bits must be at least 2, got 1"),
        (lambda: CopyConfig(clip=-1.0), "clip must be positive or None, got -1.0"),
        (lambda: RecallConfig(fewest=1), "fewest must be at least 2, for one must come after another, got 1"),
        (lambda: CopyConfig(beyond=(0,)), "beyond must hold lengths from 1 on, got (0,)"),
        (
            lambda: RepeatCopyConfig(beyond=((5, 0),)),
            "beyond must hold lengths and copies from 1 on, got ((5, 0),)",
        ),
        (lambda: CopyConfig(curriculum_goal=7.0), "curriculum_goal must lie in [0, 1], got 7.0"),
        (lambda: RepeatCopyConfig(curriculum_end_goal=-1.0), "curriculum_end_goal must lie in [0, 1], got"),
        (
            lambda: CopyConfig(label_smoothing=0.1),
            "label_smoothing must be 0 with the alphabet bits, got 0.1",
        ),
        (lambda: RepeatCopyConfig(end_weight=0.0), "end_weight must be positive, got 0.0"),
        (
            lambda: RepeatCopyConfig(curriculum_start=(0, 1)),
            "curriculum_start must be at least 1, got (0, 1)",
        ),
        (lambda: NgramsConfig(length=5), "length must be at least 6, got 5"),
        (lambda: PrioritySortConfig(kept=21), "kept must lie between 1 and given=20, got 21"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_impossible_settings(make, message):
    with pytest.raises(UserError, match=re.escape(f"config: {message}")):
        make()
