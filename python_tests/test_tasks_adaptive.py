"""The experiments of adaptive computation time: presets, loss and metrics, curriculum, commands, pictures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor, nn

from ctm_fast.models.adaptive import AdaptiveOutput
from tasks import checkpointing
from tasks.adaptive.addition import END, AdaptiveAddition
from tasks.adaptive.config import AdaptiveConfig
from tasks.adaptive.logic import AdaptiveLogic
from tasks.adaptive.parity import AdaptiveParity
from tasks.adaptive.pictures import Inputs, _against_each_other, _histogram, _pair, collect
from tasks.adaptive.sort import AdaptiveSort
from tasks.adaptive.task import AdaptiveTask
from tasks.command import main
from tasks.errors import UserError
from tasks.setup import make_accelerator
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
TASKS: dict[str, type[AdaptiveTask[Any]]] = {
    task.name: task for task in (AdaptiveParity, AdaptiveLogic, AdaptiveAddition, AdaptiveSort)
}
# The published counts of the published code, and the paper's sizes.
PARAMETERS = {
    ("act_parity", "published"): 4_138_002,
    ("act_logic", "published"): 486_602,
    ("act_addition", "published"): 4_480_067,
    ("act_parity", "paper"): 128 * (65 + 128 + 2) + 2 * 129,
    ("act_logic", "paper"): 4 * 128 * (103 + 128 + 2) + 2 * 129,
    ("act_addition", "paper"): 4 * 512 * (51 + 512 + 2) + 67 * 513,
    ("act_sort", "paper"): 4 * 512 * (3 + 512 + 2) + 16 * 513,
}
HARDEST = {"act_parity": 6, "act_logic": 3, "act_addition": 3, "act_sort": 3}
SMALL: dict[str, dict[str, Any]] = {
    "act_parity": {"values": 8, "most_nonzeros": 6},
    "act_logic": {"longest": 3, "most_gates": 2},
    "act_addition": {"longest": 3, "most_digits": 2},
    "act_sort": {"longest": 3, "indices": 5},
}
BEYOND = {
    "act_parity": {"more_nonzeros"},
    "act_logic": {"longer", "more_gates"},
    "act_addition": {"longer", "more_digits"},
    "act_sort": {"longer"},
}


class Answers(nn.Module):
    """A model whose answer a test chose."""

    def __init__(self, output: Tensor, ponder: Tensor, cost: Tensor) -> None:
        super().__init__()
        self.answer = AdaptiveOutput(output, ponder, ponder.long(), None, cost)

    def forward(self, inputs: Tensor, mask: Tensor) -> AdaptiveOutput:
        return self.answer


def small(name: str, **changes: Any) -> AdaptiveTask[Any]:
    """A task of a few units and samples that reads every kind of batch."""
    sizes = {"hidden_size": 8, "batch_size": 5, "batch_size_test": 6, "n_test_batches": 2, "max_steps": 4}
    settings = sizes | SMALL[name] | {"threads": 1, "cpu": True} | changes
    return TASKS[name](replace(TASKS[name].presets["paper"], **settings))


@pytest.mark.parametrize(("name", "preset"), PARAMETERS, ids="-".join)
def test_parameter_count(name: str, preset: str) -> None:
    model = TASKS[name](TASKS[name].presets[preset]).build_model()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name, preset]


def test_input_scale_is_of_what_the_cell_reads() -> None:
    states = []
    for scale in (1.0, 4.0):
        torch.manual_seed(0)
        states.append(small("act_logic", input_scale=scale).build_model().state_dict())
    for key, value in states[0].items():
        scaled = key in ("cell.weight_ih", "cell.bias_ih")
        torch.testing.assert_close(states[1][key], 4 * value if scaled else value)


@pytest.mark.parametrize("name", TASKS)
def test_presets(name: str) -> None:
    presets = TASKS[name].presets
    assert {"quick", "paper"} <= presets.keys()
    assert next(iter(presets)) == "quick"
    paper = presets["paper"]
    assert isinstance(paper, AdaptiveConfig)
    assert (paper.epsilon, paper.lr, paper.training_iterations) == (0.01, 1e-4, 1_000_000)
    assert (paper.reduction, paper.curriculum_goal, paper.weight_decay) == ("sum", None, 0.0)
    assert (paper.input_scale, paper.halting_bias) == (1.0, 1.0)
    assert paper.max_steps == (20 if name == "act_addition" else 100)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["act_logic", "act_addition"])
def test_loss_and_metrics_against_a_loop(name: str, reduction: str) -> None:
    task = small(name, reduction=reduction, time_penalty=0.1)
    batch = task.batch(0, batch_generator(0, 0))
    _, targets, mask, _ = batch
    steps, size = mask.shape
    output = torch.randn(steps, size, task.answers * (1 if task.classes == 2 else task.classes))
    ponder, cost = 5 * torch.rand(steps, size) * mask, torch.tensor(3.0)
    loss, metrics = task.loss(Answers(output, ponder, cost), batch)
    total, asked = 0.0, 0
    for b in range(size):
        wrong = counted = missed = 0
        for t, a in (targets[:, b] >= 0).nonzero().tolist():
            target = targets[t, b, a]
            if task.classes == 2:
                total += F.binary_cross_entropy_with_logits(output[t, b, 0], target.float()).item()
                miss = int((output[t, b, 0] > 0) != target)
            else:
                logits = output[t, b].view(task.answers, task.classes)[a]
                total += F.cross_entropy(logits, target).item()
                miss = int(logits.argmax() != target)
            wrong, asked = wrong + miss, asked + 1
            if target != END:
                counted, missed = counted + 1, missed + miss
        assert metrics["sequence_error"][b] == (wrong > 0) == 1 - metrics["accuracy_sequence"][b]
        assert metrics["answer_error"][b].item() == pytest.approx(missed / max(counted, 1))
        assert metrics["ponder"][b].item() == pytest.approx((ponder[:, b].sum() / mask[:, b].sum()).item())
    expected = total / (size if reduction == "sum" else asked)
    assert metrics["task_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(expected + 0.3, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_padding_changes_nothing(name: str) -> None:
    """Neither what stands at padded places nor how many there are reaches a loss, a metric or a gradient."""
    task = small(name)
    model = task.build_model()
    inputs, targets, mask, difficulty = task.batch(1, batch_generator(0, 1))
    noise = torch.where(mask[..., None], inputs, torch.randn_like(inputs))
    padded = (
        F.pad(noise, (0, 0, 0, 0, 0, 2)),
        F.pad(targets, (0, 0, 0, 0, 0, 2), value=-1),
        F.pad(mask, (0, 0, 0, 2)),
        F.pad(difficulty, (0, 0, 0, 2)),
    )
    one, two = task.loss(model, (inputs, targets, mask, difficulty)), task.loss(model, padded)
    torch.testing.assert_close(one, two)
    weights = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(one[0], weights), torch.autograd.grad(two[0], weights))


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_of_the_level(name: str) -> None:
    task = small(name, curriculum_goal=0.5)
    assert task.curriculum is not None
    assert list(task.curriculum.levels) == list(task.levels())
    for index, level in enumerate(task.levels()):
        task.curriculum.index = index
        batches = [task.batch(step, batch_generator(0, step)) for step in range(20)]
        reached = max(int(b[3].max()) if name in ("act_parity", "act_sort") else len(b[0]) for b in batches)
        assert reached == level
    assert task.curriculum.level == HARDEST[name]
    assert not torch.equal(batches[0][0][:1], batches[1][0][:1])


@pytest.mark.parametrize("name", TASKS)
def test_evaluation_sets_are_fixed_and_harder_ones_are_harder(name: str) -> None:
    task, other = small(name), small(name, seed=9, curriculum_goal=0.5)
    one, two = list(task.evaluation_batches()), list(other.evaluation_batches())
    assert len(one) == 2
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    beyond = {set_name: next(iter(batches)) for set_name, batches in task.beyond_batches().items()}
    assert beyond.keys() == BEYOND[name]
    for set_name, (_, _, mask, difficulty) in beyond.items():
        if set_name == "longer" and name != "act_sort":
            assert mask.sum(0).min() > 3
        else:
            assert difficulty[mask].min() > {"act_parity": 6, "act_sort": 3}.get(name, 2)


def test_every_evaluated_sum_has_an_answer() -> None:
    task = small("act_addition")
    assert all((targets >= 0).any(2).any(0).all() for _, targets, _, _ in task.evaluation_batches())


def test_no_harder_sets_where_the_input_ends() -> None:
    assert AdaptiveParity(AdaptiveParity.presets["paper"]).beyond() == {}
    assert AdaptiveSort(AdaptiveSort.presets["paper"]).beyond() == {}
    assert AdaptiveLogic(AdaptiveLogic.presets["paper"]).beyond().keys() == {"longer"}


@pytest.mark.parametrize("name", TASKS)
def test_one_step_per_input_without_adaptive_time(name: str) -> None:
    task = small(name, adaptive=False)
    loss, metrics = task.loss(task.build_model(), task.batch(0, batch_generator(0, 0)))
    assert metrics["steps"].tolist() == [1.0] * 5
    assert loss == metrics["task_loss"]


@pytest.mark.parametrize("name", TASKS)
def test_train_evaluate_analyse(name: str, tmp_path: Path) -> None:
    sizes = {"hidden-size": 8, "batch-size": 4, "batch-size-test": 8, "n-test-batches": 2, "max-steps": 4}
    more = {"training-iterations": 6, "track-every": 3, "log-every": 2, "curriculum-goal": 0.01}
    options = SMALL[name] | sizes | more | {"curriculum-every": 2}
    text = [part for key, value in options.items() for part in ("--" + key.replace("_", "-"), str(value))]
    folder = ["--out", str(tmp_path)]
    assert main(TASKS[name], ["train", "--preset", "quick", *text, *folder]) == 0
    rows = list(csv.DictReader((tmp_path / "train.csv").read_text().splitlines()))
    assert {"sequence_error", "answer_error", "ponder", "steps", "level"} <= rows[0].keys()
    for picture in ("ponder.png", "training.png"):
        assert imread(tmp_path / picture).std() > 0.01
    assert main(TASKS[name], ["evaluate", "--checkpoint", *folder[1:], "--cpu"]) == 0
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert {f"{beyond}/sequence_error" for beyond in BEYOND[name]} <= scores.keys()
    assert scores["sequence_error"] == pytest.approx(1 - scores["accuracy_sequence"])
    assert "curriculum_state_dict" in checkpointing.load(tmp_path)


def test_command_modules_name_their_task(tmp_path: Path) -> None:
    for name in TASKS:
        module = ROOT / "tasks" / f"{name}.py"
        assert f"main({TASKS[name].__name__})" in module.read_text()
    command = [sys.executable, "-m", "tasks.act_sort", "train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m tasks.act_sort" in done.stdout


def test_collect_leaves_out_padding() -> None:
    task = small("act_logic")
    batches = list(task.evaluation_batches())
    found = collect(task, task.build_model().eval(), batches)
    sizes = [int(mask.sum()) for _, _, mask, _ in batches]
    assert {len(column) for column in found} == {sum(sizes)}
    assert found.ponder.min() > 1
    assert set(found.place) == {1, 2, 3}


def test_no_curve_lies_on_the_frame_or_hides_another() -> None:
    figure = Figure()
    panels = figure.subplots(1, 4)
    ponder = np.array([2.0, 2.0, 3.0, 4.0])
    sets = {name: Inputs(ponder, ponder % 2, np.arange(4), np.arange(4)) for name in ("a", "b", "c")}
    _histogram(panels[0], sets)
    _pair(panels[1:3], sets, "difficulty", "x")
    _against_each_other(panels[3], sets)
    for axes, highest in zip(panels, (50, 4, 100, 100), strict=True):
        assert axes.get_ylim() == (0, pytest.approx(1.08 * highest))
    widths = [patch.get_linewidth() for patch in panels[0].patches]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 3


def test_parity_of_two_values_is_learnt() -> None:
    task = small("act_parity", values=2, most_nonzeros=2, hidden_size=16, batch_size=32)
    model = task.build_model()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(120):
        loss, _ = task.loss(model, task.batch(step, batch_generator(0, step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.evaluate(model, make_accelerator(task.config))["sequence_error"] == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("act_parity", {"most_nonzeros": 9}, r"most_nonzeros must lie in \[0, 8\], got 9"),
        ("act_parity", {"fewest_nonzeros": 7}, r"fewest_nonzeros must lie in \[0, 6\], got 7"),
        ("act_parity", {"halting_bias": float("nan")}, "halting_bias must be finite, got nan"),
        ("act_parity", {"values": 0}, "values must be at least 1, got 0"),
        ("act_logic", {"most_gates": 11}, r"most_gates must lie in \[1, 10\], got 11"),
        ("act_logic", {"shortest": 0}, r"shortest must lie in \[1, 3\], got 0"),
        ("act_addition", {"most_digits": 0}, r"most_digits must lie in \[1, 5\], got 0"),
        ("act_addition", {"longest": 11}, r"longest must lie in \[2, 10\], got 11"),
        ("act_sort", {"longest": 6}, r"longest must lie in \[1, 5\], got 6"),
        ("act_sort", {"indices": 0}, "indices must be at least 1, got 0"),
        ("act_sort", {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ("act_sort", {"time_penalty": -0.1}, "time_penalty must be finite and not negative, got -0.1"),
        ("act_sort", {"input_scale": 0.0}, "input_scale must be positive and finite, got 0.0"),
        ("act_sort", {"epsilon": 1.0}, r"epsilon must lie in \(0, 1\), got 1.0"),
        ("act_sort", {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ("act_sort", {"curriculum_goal": 1.5}, r"curriculum_goal must lie in \(0, 1\] or be None, got 1.5"),
        ("act_sort", {"curriculum_every": 0}, "curriculum_every must be at least 1, got 0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_impossible_settings_are_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(small(name).config, **changes)


def test_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(AdaptiveLogic, ["train", "--preset", "other"])
    assert caught.value.code == 2
    assert "act_logic: preset must be one of quick, published, paper" in capsys.readouterr().err
