"""What the output of builds, tests and compute-sanitizer says, for ``gpu_check.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

SHOWN_LINES = 30
WORDS_LENGTH = 160
SANITIZER_ERROR = 86
ERROR = re.compile(r"\b(?:error|fatal)\s*:|CMake Error", re.IGNORECASE)
OF_PIP = "subprocess-exited-with-error"
TEST = re.compile(r"^(python_tests/\S+?\.py(?:::\w+)+(?:\[.*?\](?= |$))?) ?(.*)$")
ENDED = re.compile(r"(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


class Finished(NamedTuple):
    """A process that has ended: exit status (None where it was stopped), and what it printed."""

    status: int | None
    output: str


def last(done: Finished) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in done.output.splitlines() if line.strip()]
    return lines[-1][:WORDS_LENGTH] if lines else f"exit status {done.status}"


def failure(done: Finished) -> tuple[str, list[str]]:
    """What a build fails by in one line, and the lines from there on; the last ones where no line names an error."""
    lines = [line.rstrip() for line in done.output.splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if ERROR.search(line) and OF_PIP not in line), None)
    if done.status is None or at is None:
        return last(done), lines[-SHOWN_LINES:]
    words = " ".join(line.strip() for line in lines[at : at + (2 if lines[at].endswith(":") else 1)])
    return words[:WORDS_LENGTH], lines[max(at - 2, 0) :][:SHOWN_LINES]


def counted(outputs: Iterable[str]) -> dict[str, int]:
    """Sums of the numbers in pytest's closing lines: {"passed": 10, "skipped": 2}."""
    total: dict[str, int] = {}
    for output in outputs:
        closing = next(
            (line for line in reversed(output.splitlines()) if re.search(r" in [\d.]+s", line)), ""
        )
        for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", closing):
            total[what.rstrip("s") if what == "errors" else what] = total.get(what, 0) + int(number)
    return total


def under_way(output: str) -> str:
    """Where ``pytest -v`` was when it was stopped: the test that had begun and not ended, or the one before."""
    name, ended = "", True
    for line in output.splitlines():
        if found := TEST.match(line):
            name, ended = found[1], ENDED.match(found[2]) is not None
        elif ENDED.match(line):  # after what the test itself has printed
            ended = True
    if not name:
        return "before the first test"
    return f"after {name}" if ended else f"in {name}"


def verdict(done: Finished) -> tuple[bool, str]:
    """Whether a run under compute-sanitizer failed, and its summary."""
    if done.status is None:
        errors = re.findall(r"^=+ (Invalid .*|Error: .*|Warning: Race .*)", done.output, re.MULTILINE)
        return bool(errors), errors[
            0
        ] if errors else f"not finished in time: stopped {under_way(done.output)}"
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", done.output)
    return done.status != 0, summary[-1] if summary and done.status in (0, SANITIZER_ERROR) else last(done)
