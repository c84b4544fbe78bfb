"""The bAbI experiment: reading the files, damaged files, batches, scores per question."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tasks import checkpointing
from tasks.command import main
from tasks.dnc_babi.data import (
    Stories,
    chain,
    encode,
    file_name,
    make_batch,
    make_vocabulary,
    parse,
    read_task,
    rename,
    word_groups,
)
from tasks.dnc_babi.presets import PRESETS
from tasks.dnc_babi.task import DncBabi
from tasks.errors import UserError
from tasks.setup import make_accelerator
from tasks.task import batch_generator

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = """1 Mary moved to the bathroom.
2 John took the milk there.
3 Where is Mary? \tbathroom\t1
1 Sandra went back to the garden.
2 What is Sandra carrying?\tnothing,Milk\t1 2
3 Daniel got the apple.
4 Where is Daniel? \tgarden\t3
"""
OTHERS = TEXT.replace("Mary", "Fred").replace("Sandra", "Julie")
TINY = replace(
    PRESETS["quick"],
    questions=(1, 8),
    collection="en",
    curriculum=False,
    controller_size=8,
    slots=6,
    width=4,
    read_heads=1,
    batch_size=3,
    batch_size_test=4,
    validation=0.25,
    training_iterations=2,
    track_every=2,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with tasks 1 and 8, four stories in each training file."""
    place = tmp_path / "data" / "babi" / "en"
    place.mkdir(parents=True)
    for task in (1, 8):
        (place / file_name(task, "train")).write_text(TEXT + OTHERS)
        (place / file_name(task, "test")).write_text(TEXT + OTHERS)
    return tmp_path / "data"


def test_a_story_is_its_words_with_dashes_for_answers() -> None:
    first, second = parse(TEXT)
    assert " ".join(first.words) == (
        "mary moved to the bathroom . john took the milk there . where is mary ? -"
    )
    assert [answer for answer in first.answers if answer] == ["bathroom"]
    assert first.words.index("-") == first.answers.index("bathroom")
    assert [answer for answer in second.answers if answer] == ["nothing", "milk", "garden"]
    assert [q for q in second.questions if q >= 0] == [0, 0, 1]


def test_vocabulary_is_alphabetical_and_whole() -> None:
    vocabulary = make_vocabulary(parse(TEXT))
    assert list(vocabulary) == sorted(vocabulary)
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert {"-", ".", "?", "nothing", "milk", "mary"} <= vocabulary.keys()


def test_batch_against_a_loop() -> None:
    stories = parse(TEXT)
    vocabulary = make_vocabulary(stories)
    batch = make_batch([encode(story, vocabulary) for story in stories], len(vocabulary))
    steps = max(len(story.words) for story in stories)
    assert batch.inputs.shape == (steps, 2, len(vocabulary))
    for column, story in enumerate(stories):
        for step in range(steps):
            row = torch.zeros(len(vocabulary))
            if step < len(story.words):
                row[vocabulary[story.words[step]]] = 1.0
            assert torch.equal(batch.inputs[step, column], row)
    expected = [
        (step * 2 + column, vocabulary[answer])
        for column, story in enumerate(stories)
        for step, answer in enumerate(story.answers)
        if answer
    ]
    assert list(zip(batch.dashes.tolist(), batch.answers.tolist(), strict=True)) == expected
    assert batch.questions.tolist() == [0, 1, 1, 2]
    assert batch.askers.tolist() == [0, 1, 1]


class Fixed(nn.Module):
    """Outputs that a test chose."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> NamedTuple:
        class Found(NamedTuple):
            output: Tensor

        return Found(self.output)


def test_a_question_is_right_if_all_of_its_words_are(folder: Path) -> None:
    task = DncBabi(TINY, folder)
    stories = [encode(story, task.vocabulary) for story in parse(TEXT)]
    batch = make_batch(stories, len(task.vocabulary))
    output = torch.zeros_like(batch.inputs)
    flat = output.flatten(0, 1)
    flat[batch.dashes, batch.answers] = 3.0
    flat[batch.dashes[2]] = 0.0
    flat[batch.dashes[2], task.vocabulary["mary"]] = 3.0  # the second word of the second question
    loss, metrics = task.loss(Fixed(flat.view_as(output)), batch)
    assert metrics["accuracy"].tolist() == [1.0, 0.0, 1.0]
    wrong = batch.answers.new_tensor([task.vocabulary["mary"]])
    logits = flat[batch.dashes]
    expected = nn.functional.cross_entropy(logits, batch.answers)
    torch.testing.assert_close(loss, expected)
    assert logits[2].argmax() == wrong


def test_validation_stories_are_never_trained_on(folder: Path) -> None:
    task = DncBabi(replace(TINY, questions=(1,)), folder)
    trained, held_out = ({tuple(story.words.tolist()) for story in part} for part in task._split)
    assert (len(trained), len(held_out)) == (3, 1)
    assert not trained & held_out


def test_validation_stories_do_not_depend_on_the_seed(folder: Path) -> None:
    held_out = DncBabi(TINY, folder)._split[1]
    assert len(held_out) == 2
    again = DncBabi(replace(TINY, seed=5), folder)._split[1]
    assert all(torch.equal(a.words, b.words) for a, b in zip(held_out, again, strict=True))


def test_batches_depend_on_the_step_only(folder: Path) -> None:
    task = DncBabi(replace(TINY, word_dropout=0.5), folder)
    one, two, other = (task.batch(0, batch_generator(0, step)) for step in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[0].shape != other[0].shape or not torch.equal(one[0], other[0])


def test_hidden_words_leave_the_dashes(folder: Path) -> None:
    task = DncBabi(replace(TINY, word_dropout=0.9, batch_size=40), folder)
    batch = Stories(*task.batch(0, batch_generator(0, 0)))
    shown = batch.inputs.sum(2)
    assert shown.view(-1)[batch.dashes].eq(1).all()
    assert 0 < shown.sum() < 0.6 * 40 * len(shown)


def test_renamed_stories_exchange_people_and_places_only(folder: Path) -> None:
    task = DncBabi(replace(TINY, questions=(1,), renaming=True, batch_size=40), folder)
    words = list(task.vocabulary)
    people, places = {"mary", "fred", "daniel", "john", "sandra", "julie"}, {"bathroom", "garden"}
    told = Stories(*task.batch(0, batch_generator(0, 0)))
    plain = Stories(
        *DncBabi(replace(TINY, questions=(1,), batch_size=40), folder).batch(0, batch_generator(0, 0))
    )
    assert torch.equal(told.dashes, plain.dashes)
    assert torch.equal(told.inputs.sum(2), plain.inputs.sum(2))
    seen = set()
    for story in told.inputs.unbind(1):
        text = [words[i] for i in story[story.sum(1) > 0].argmax(1).tolist()]
        seen.add(" ".join(text))
        sense = ["who" if w in people else "where" if w in places else w for w in text]
        assert " ".join(sense[:5]) in ("who moved to the where", "who went back to the")
    assert len(seen) > 10
    assert all(words[i] in places | {"nothing", "milk"} for i in told.answers.tolist())


def test_renaming_is_consistent_within_a_story() -> None:
    first, _ = parse(TEXT)
    vocabulary = make_vocabulary(parse(TEXT))
    names = torch.arange(len(vocabulary))
    people, places = word_groups(vocabulary)
    assert len(people) == 4 and len(places) == 2
    names[people], names[places] = people.roll(1), places.roll(1)
    renamed = rename(encode(first, vocabulary), names)
    words = sorted(vocabulary)
    assert " ".join(words[i] for i in renamed.words.tolist()) == (
        "john moved to the garden . daniel took the milk there . where is john ? -"
    )
    assert [words[i] for i in renamed.answers.tolist()] == ["garden"]


def test_long_stories_are_left_out_of_training_only(folder: Path) -> None:
    task = DncBabi(replace(TINY, longest=18), folder)
    trained, _ = task._split
    assert {len(story.words) for story in trained} == {17}
    assert max(len(batch[0]) for batch in task.beyond_batches()["test_qa8"]) > 18
    with pytest.raises(UserError, match="longest must leave a story to train on, got 3"):
        DncBabi(replace(TINY, longest=3), folder).batch(0, batch_generator(0, 0))


def test_curriculum_cuts_stories_after_a_question(folder: Path) -> None:
    task = DncBabi(replace(TINY, curriculum=True, batch_size=30), folder)
    assert task.curriculum is not None and list(task.curriculum.levels) == [1, 2]
    first = Stories(*task.batch(0, batch_generator(0, 0)))
    assert len(first.askers) == 30
    assert len(first.inputs) == 17  # the first story is the longer one now
    task.curriculum.index = 1
    whole = Stories(*task.batch(0, batch_generator(0, 0)))
    assert len(whole.askers) > 30
    assert torch.equal(whole.inputs[:14], first.inputs[:14])


def test_stories_in_a_row() -> None:
    stories = parse(TEXT)
    (joined,) = chain([*stories, stories[0]], 2)
    assert joined.words == stories[0].words + stories[1].words
    assert [q for q in joined.questions if q >= 0] == [0, 1, 1, 2]


def test_evaluation_reports_every_task_and_their_mean(folder: Path) -> None:
    task = DncBabi(TINY, folder)
    figures = task.evaluate_beyond(task.build_model(), make_accelerator(TINY))
    assert "test_qa1_in_rows_of_4/accuracy" in figures
    errors = [1 - figures[f"test_qa{n}/accuracy"].item() for n in (1, 8)]
    assert figures["test/mean_error"].item() == pytest.approx(sum(errors) / 2)
    assert figures["test/failed_tasks"].item() == sum(error > 0.05 for error in errors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must end every story with a question and a line break"),
        (TEXT[:-1], "must end every story with a question and a line break"),
        (TEXT[:-4], "line 7 must be 'ID text' or 'ID question<tab>answer<tab>IDs', got '4 Where is"),
        (TEXT.splitlines()[0] + "\n", "must end every story with a question"),
        ("hello\n", "line 1 must be 'ID text'"),
        (TEXT.replace("\n3 Daniel", "\n5 Daniel"), "line 6 must have the ID 1 or 3, got '5'"),
        ("2 Mary moved.\n", "line 1 must have the ID 1 or 1, got '2'"),
        ("1 Where is Mary?\t\t1\n", "line 1 must be"),
        ("1 \n", "line 1 must be"),
    ],
    ids=[
        "empty",
        "no-last-break",
        "cut",
        "no-question",
        "prose",
        "gap",
        "late-start",
        "no-answer",
        "no-words",
    ],
)
def test_damaged_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match="babi: .*" + message):
        parse(text, "file")


def test_missing_and_foreign_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data_dir must name the folder that holds babi/<en or en-10k>/qa"):
        read_task(None, "en", 1, "train")
    with pytest.raises(UserError, match=r"got no file '.*en-10k/qa3_three-supporting-facts_train.txt'"):
        read_task(folder, "en-10k", 3, "train")
    foreign = folder / "babi" / "en" / file_name(2, "train")
    foreign.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(UserError, match="must be a readable text file"):
        read_task(folder, "en", 2, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 1}, "slots must be at least 2: .*, got 1"),
        ({"questions": ()}, r"questions must be some of 1 to 20, got \(\)"),
        ({"questions": (0, 1)}, r"questions must be some of 1 to 20, got \(0, 1\)"),
        ({"questions": (1, 1)}, r"questions must name every task once, got \(1, 1\)"),
        ({"validation": 0.0}, r"validation must lie in \(0, 1\), got 0.0"),
        ({"longest": 0}, "longest must be at least 1 or None, got 0"),
        ({"curriculum_goal": 1.1}, r"curriculum_goal must lie in \(0, 1\], got 1.1"),
        ({"curriculum_every": 0}, "curriculum_every must be at least 1, got 0"),
        ({"word_dropout": 1.0}, r"word_dropout must lie in \[0, 1\), got 1.0"),
        ({"renaming": True, "questions": (20,)}, "renaming must be off with task 20, .*, got True"),
        ({"sparse": 7}, r"sparse must be None or lie in \[1, slots=6\], got 7"),
        ({"bypass_dropout": 1.0}, r"bypass_dropout must lie in \[0, 1\), got 1.0"),
        ({"clip": 0.0}, "clip must be positive or None, got 0.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"config: {message}"):
        replace(TINY, **changes)


def test_the_command_trains_evaluates_and_draws(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "quick", TINY)
    out = tmp_path / "run"
    shared = ["--preset", "quick", "--out", str(out), "--data-dir", str(folder)]
    assert main(DncBabi, ["train", *shared]) == 0
    assert main(DncBabi, ["evaluate", *shared, "--checkpoint", str(out)]) == 0
    assert "test/mean_error" in capsys.readouterr().out
    assert {p.name for p in out.glob("*.png")} == {"memory.png", "links.png", "training.png"}
    assert main(DncBabi, ["train", *shared[:-1], str(tmp_path), "--overwrite"]) == 1
    assert "babi: data_dir must hold babi/" in capsys.readouterr().err


def test_a_checkpoint_is_of_its_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "quick", TINY)
    out = tmp_path / "run"
    run = ["--preset", "quick", "--out", str(out), "--data-dir", str(folder)]
    assert main(DncBabi, ["train", *run]) == 0
    shutil.copytree(folder, tmp_path / "other")
    for file in (tmp_path / "other").rglob("*.txt"):
        file.write_text(file.read_text().replace("bathroom", "attic"))  # as many words as before
    other = [*run[:-1], str(tmp_path / "other")]
    told = "babi: data_dir must hold the words that .*, got '2 others or missing: attic, bathroom'"
    for command in (["evaluate", *other], ["analyse", *other], ["train", *other, "--resume"]):
        capsys.readouterr()
        assert main(DncBabi, command) == 1
        assert re.search(told, capsys.readouterr().err)
    assert main(DncBabi, ["train", *run, "--resume"]) == 0


def test_a_checkpoint_without_its_words_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "quick", TINY)
    run = ["--preset", "quick", "--out", str(tmp_path / "run"), "--data-dir", str(folder)]
    assert main(DncBabi, ["train", *run]) == 0
    path = tmp_path / "run" / "checkpoint.pt"
    state = checkpointing.load(path)
    del state["args"].words
    checkpointing.save(state, path)
    assert main(DncBabi, ["evaluate", *run]) == 0
    assert main(DncBabi, ["train", *run, "--resume"]) == 0


@pytest.mark.needs_data("babi")
def test_real_files(data_dir: Path) -> None:
    """Counts of the distribution; 156 words and three signs, as in the paper."""
    tasks = {(n, s): read_task(data_dir, "en", n, s) for n in range(1, 21) for s in ("train", "test")}
    assert all(sum(max(story.questions) + 1 for story in stories) == 1000 for stories in tasks.values())
    assert len(make_vocabulary([story for stories in tasks.values() for story in stories])) == 159
    assert max(len(story.words) for story in tasks[1, "train"]) == 91
