"""``python -m tasks`` lists the experiments; ``python -m tasks NAME ...`` runs one, as ``python -m tasks.NAME``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tasks import command
from tasks.adaptive.addition import AdaptiveAddition
from tasks.adaptive.logic import AdaptiveLogic
from tasks.adaptive.parity import AdaptiveParity
from tasks.adaptive.sort import AdaptiveSort
from tasks.dnc_babi.task import DncBabi
from tasks.dnc_copy.task import DncCopy
from tasks.dnc_graph.task import DncGraph
from tasks.ntm.copy import Copy
from tasks.ntm.ngrams import Ngrams
from tasks.ntm.priority_sort import PrioritySort
from tasks.ntm.recall import Recall
from tasks.ntm.repeat_copy import RepeatCopy
from tasks.parity.task import Parity
from tasks.rtntm.task import RTNTMAdd, RTNTMCopy, RTNTMReverse
from tasks.task import Task

_TASKS: tuple[type[Task[Any]], ...] = (
    Parity, AdaptiveParity, AdaptiveLogic, AdaptiveAddition, AdaptiveSort, Copy, RepeatCopy, Recall, Ngrams,
    PrioritySort, DncCopy, DncBabi, DncGraph, RTNTMCopy, RTNTMReverse, RTNTMAdd,
)  # fmt: skip
EXPERIMENTS = {task.name: task for task in _TASKS}


def main(arguments: Sequence[str] | None = None) -> int:
    """List the experiments, or run the one that is named first; returns the exit status, 2 for an unknown name."""
    name, *others = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h"):
        print("python -m tasks NAME train|evaluate|analyse [--preset P] [--help], where NAME is one of")
        for known, task in EXPERIMENTS.items():
            print(f"  {known:<17}{(task.__doc__ or '').splitlines()[0]}")
        return 0
    if name not in EXPERIMENTS:
        print(f"tasks: experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}", file=sys.stderr)
        return 2
    return command.main(EXPERIMENTS[name], others)


if __name__ == "__main__":
    raise SystemExit(main())
