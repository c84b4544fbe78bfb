"""bAbI stories as sequences of words (arXiv 1502.05698): reading the files, vocabulary, padded batches.

Letters: T words of a story, or of the longest of a batch, B stories, V words of the vocabulary, D answer
words, Q questions.

A file holds lines ``ID text`` and ``ID question<tab>answer<tab>supporting IDs``; a story ends where the ID is
1 again. A story becomes its words in lower case with ``.`` and ``?`` as words of their own, and one ``-`` for
every word of an answer; the answer's words are the targets at the dashes. Supporting IDs are not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.errors import UserError, require

NAMES = (
    *("single-supporting-fact", "two-supporting-facts", "three-supporting-facts", "two-arg-relations"),
    *("three-arg-relations", "yes-no-questions", "counting", "lists-sets", "simple-negation"),
    *("indefinite-knowledge", "basic-coreference", "conjunction", "compound-coreference", "time-reasoning"),
    *("basic-deduction", "basic-induction", "positional-reasoning", "size-reasoning", "path-finding"),
    "agents-motivations",
)
NAMED_BY_SENSE = 20
"""The one task whose stories change their sense with the names of their places."""
ALIKE = (
    ("bill", "daniel", "fred", "jeff", "john", "julie", "mary", "sandra"),
    ("bathroom", "bedroom", "cinema", "garden", "hallway", "kitchen", "office", "park", "school"),
)
"""People and places: exchanging words of a row throughout a story keeps its answers right."""
LAYOUT = "babi/<en or en-10k>/qa<1 to 20>_<name>_<train or test>.txt"
DASH = "-"
NO_ANSWER = -1


class Story(NamedTuple):
    """One story: its input words, and per word the answer's word or "" and the question's number or -1."""

    words: tuple[str, ...]
    answers: tuple[str, ...]
    questions: tuple[int, ...]


def file_name(task: int, split: str) -> str:
    """The official name of a file: task 1 to 20, split ``train`` or ``test``."""
    return f"qa{task}_{NAMES[task - 1]}_{split}.txt"


def read_task(data_dir: Path | None, collection: str, task: int, split: str) -> list[Story]:
    """The stories of one file of ``data_dir``/babi/``collection``.

    Raises:
        UserError: there is no such file, or it is damaged, cut off or of another kind.
    """
    require(data_dir is not None, "data_dir", f"name the folder that holds {LAYOUT}", None, "babi")
    assert data_dir is not None
    path = data_dir / "babi" / collection / file_name(task, split)
    if not path.is_file():
        raise UserError(f"babi: data_dir must hold {LAYOUT}, got no file {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"babi: {str(path)!r} must be a readable text file, got {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str = "text") -> list[Story]:
    """The stories of a whole file's ``text``; ``source`` names it in errors.

    Raises:
        UserError: a line is not of the format, an ID is out of order, or the end is missing.
    """
    stories: list[list[list[str]]] = []
    previous = 0
    for row, line in enumerate(text.splitlines(), 1):
        number, _, rest = line.partition(" ")
        fields = rest.split("\t")
        good = number.isdecimal() and _is_line(fields)
        where = f"{source!r} line {row}"
        require(good, where, "be 'ID text' or 'ID question<tab>answer<tab>IDs'", line[:60], "babi")
        expected = int(number) in (1, previous + 1)
        require(expected, where, f"have the ID 1 or {previous + 1}", number, "babi")
        previous = int(number)
        if previous == 1:
            stories.append([])
        stories[-1].append(fields)
    complete = text.endswith("\n") and bool(stories) and all(len(lines[-1]) > 1 for lines in stories)
    require(complete, repr(source), "end every story with a question and a line break", text[-40:], "babi")
    return [_story(lines) for lines in stories]


def _is_line(fields: Sequence[str]) -> bool:
    if len(fields) == 1:
        return bool(_words(fields[0]))
    return len(fields) == 3 and fields[0].rstrip().endswith("?") and bool(fields[1].strip())


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+|[.?]", text.lower())


def _story(lines: Sequence[Sequence[str]]) -> Story:
    words: list[str] = []
    answers: list[str] = []
    questions: list[int] = []
    asked = 0
    for text, *rest in lines:
        spoken = _words(text)
        answer = rest[0].strip().lower().split(",") if rest else []
        words += spoken + [DASH] * len(answer)
        answers += [""] * len(spoken) + answer
        questions += [NO_ANSWER] * len(spoken) + [asked] * len(answer)
        asked += bool(rest)
    return Story(tuple(words), tuple(answers), tuple(questions))


def make_vocabulary(stories: Sequence[Story]) -> dict[str, int]:
    """All words of inputs and answers, numbered in alphabetical order."""
    words = {w for s in stories for w in (*s.words, *s.answers)} - {""}
    return {word: index for index, word in enumerate(sorted(words))}


class Encoded(NamedTuple):
    """One story by vocabulary index, ready for batches.

    Attributes:
        words: int64 (T,).
        dashes: steps at which an answer's word is due, int64 (D,).
        answers: that word, int64 (D,).
        questions: the question it belongs to, counted from 0, int64 (D,).
    """

    words: Tensor
    dashes: Tensor
    answers: Tensor
    questions: Tensor


def encode(story: Story, vocabulary: dict[str, int]) -> Encoded:
    """``story`` by the indices of ``vocabulary``."""
    words = torch.tensor([vocabulary[word] for word in story.words])
    dashes = torch.tensor([step for step, word in enumerate(story.answers) if word])
    answers = torch.tensor([vocabulary[word] for word in story.answers if word])
    return Encoded(words, dashes, answers, torch.tensor(story.questions)[dashes])


def prefix(story: Encoded, questions: int) -> Encoded:
    """``story`` up to the answer of its ``questions``-th question, at least 1; whole if it has fewer."""
    asked = story.questions < questions
    end = int(story.dashes[asked][-1]) + 1
    return Encoded(story.words[:end], story.dashes[asked], story.answers[asked], story.questions[asked])


def word_groups(vocabulary: dict[str, int]) -> list[Tensor]:
    """The numbers of the words of ``vocabulary`` that may be exchanged with each other, a row per group."""
    return [torch.tensor([vocabulary[word] for word in row if word in vocabulary]).long() for row in ALIKE]


def rename(story: Encoded, names: Tensor) -> Encoded:
    """``story`` with word i written as ``names[i]``, int64 (V,), in its text and its answers."""
    return story._replace(words=names[story.words], answers=names[story.answers])


class Stories(NamedTuple):
    """A batch of stories, padded at their end; D and Q count those of all stories together.

    Attributes:
        inputs: one-hot words (T, B, V), float32; zero in the padding.
        dashes: where each answer word is due, index into T * B, int64 (D,).
        answers: that word's index, int64 (D,).
        questions: the question it belongs to, int64 (D,) in [0, Q).
        askers: the story that each question belongs to, int64 (Q,).
    """

    inputs: Tensor
    dashes: Tensor
    answers: Tensor
    questions: Tensor
    askers: Tensor


def make_batch(stories: Sequence[Encoded], words: int) -> Stories:
    """The batch of B ``stories`` over a vocabulary of ``words``."""
    batch = len(stories)
    index = torch.nn.utils.rnn.pad_sequence([s.words for s in stories], padding_value=words)
    inputs = torch.zeros(*index.shape, words + 1).scatter_(2, index[..., None], 1.0)[..., :words]
    asked = torch.tensor([int(s.questions[-1]) + 1 for s in stories])
    first = asked.cumsum(0) - asked
    return Stories(
        inputs.contiguous(),
        torch.cat([s.dashes * batch + column for column, s in enumerate(stories)]),
        torch.cat([s.answers for s in stories]),
        torch.cat([s.questions + start for s, start in zip(stories, first, strict=True)]),
        torch.arange(batch).repeat_interleave(asked),
    )


def chain(stories: Sequence[Story], links: int) -> list[Story]:
    """Every ``links`` stories told as one; a rest that does not fill a chain is left out."""
    return [join(stories[i : i + links]) for i in range(0, len(stories) - links + 1, links)]


def join(stories: Sequence[Story]) -> Story:
    """Several stories told one after another, their questions numbered through."""
    words: list[str] = []
    answers: list[str] = []
    questions: list[int] = []
    for story in stories:
        asked = max(questions, default=NO_ANSWER) + 1
        words += story.words
        answers += story.answers
        questions += [q if q == NO_ANSWER else q + asked for q in story.questions]
    return Story(tuple(words), tuple(answers), tuple(questions))
