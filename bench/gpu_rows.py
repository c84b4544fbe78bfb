"""The rows that are measured on a GPU, most wanted first: a run that ends early leaves out the last ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bench import models, nlm, ntm, sync
from bench.models import CIFAR10, IMAGENET, MAZES, PARITY, Config
from bench.nlm import Size
from bench.row import NO_TARGETS, Row, Targets

SIZES = (
    Size(256, 15, 64, 512),
    Size(4096, 25, 64, 64),
    Size(2048, 25, 32, 64),
    Size(1024, 25, 16, 64),
    Size(512, 10, 16, 1),
)
BATCHES = ((PARITY, 64), (CIFAR10, 512), (MAZES, 64), (IMAGENET, 64))
COMPILED = (PARITY, CIFAR10, MAZES)  # the largest one compiles longest and shows the least
TRAIN = Targets(reference=4, compiled=1.5, peak=1 / 8)
SINGLE = Targets(reference=20, graph=2)
FORWARD = Targets(reference=8, floor=0.5)


def rows() -> list[Row]:
    """All rows of a GPU."""
    train = [_model("train", c, batch, TRAIN, c in COMPILED) for c, batch in BATCHES]
    single = [_model("infer", c, 1, SINGLE, c in COMPILED[:2]) for c, _ in BATCHES]
    batched = [_model("infer", c, batch) for c, batch in BATCHES]
    forward = [_nlm("nlm-tick", size) for size in SIZES]
    ops = [_nlm("nlm-train", size) for size in SIZES]
    found = [*train[:2], forward[0], forward[1], *single[:2], *train[2:], *single[2:], *forward[2:]]
    return [*found, *ops, *_memories(), *batched]


def _model(
    kind: str, config: Config, batch: int, targets: Targets = NO_TARGETS, compiles: bool = False
) -> Row:
    build = partial(models.case, config, batch, kind == "train")
    quick = config is PARITY
    name = f"{config.title} B{batch}"
    return Row(kind, name, config.words, build, targets, quick, compiles, graphs=batch == 1)


def _nlm(kind: str, size: Size) -> Row:
    forward = kind == "nlm-tick"
    targets = FORWARD if forward and size.B > 1 else NO_TARGETS
    build = partial(nlm.tick_case if forward else nlm.train_case, size)
    first = forward and size in SIZES[:2]
    return Row(kind, str(size), ("nlm",), build, targets, quick=first, compiles=first, graphs=forward)


def _memories() -> list[Row]:
    """The synchronisation, and single steps of the memory of a Neural Turing Machine, as on a CPU."""
    steps = [row for row in ntm.rows() if row.kind in ("ntm-step", "ntm-step-train")]
    return [replace(row, targets=NO_TARGETS, compiles=False) for row in (*sync.rows(), *steps)]
