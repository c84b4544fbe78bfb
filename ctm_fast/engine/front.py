"""What lies before the recurrent part of an engine: a program over one matrix a sample.

A stage turns a matrix (rows, inputs) into (rows, width), but "turn", which transposes it. What follows a stage reads
its elements in their order, in rows of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ctm_fast.engine.limits import MOST_ELEMENTS, is_eps

KINDS = (  # in the order of csrc/engine.h
    "embed", "linear", "add", "norm", "glu", "relu", "gelu", "silu", "tanh", "turn", "attend", "keep", "residual",
)  # fmt: skip
NAMES = ("x", "features", "question")
READS = ("floats", "signs", "indices")


class FrontStage(NamedTuple):
    """One step; ``number``: heads of "attend", rows of the table of "embed"; ``eps`` of "norm"."""

    kind: str
    rows: int
    inputs: int
    width: int
    number: int = 0
    eps: float = 0.0

    @property
    def before(self) -> int:
        """Elements that it reads."""
        return self.rows * self.inputs

    @property
    def after(self) -> int:
        """Elements that it gives."""
        return self.rows * (self.inputs if self.kind == "turn" else self.width)


@dataclass(frozen=True)
class Front:
    """A program and what it reads.

    ``name`` says what that is: "x" the model's input, "features" what its backbone gives, "question" tokens of QAMNIST.
    ``reads``: "floats"; "signs", of which +1 is index 1 and everything else index 0; or "indices", whole numbers below
    ``ends``, one for each column, which choose from one part of the table after the other.
    """

    name: str
    reads: str
    shape: tuple[int, ...]  # of a sample
    ends: tuple[int, ...]
    stages: tuple[FrontStage, ...]

    def native_stages(self) -> list[tuple[int, int, int, int, int, float]]:
        """As the extension takes them."""
        return [(KINDS.index(s.kind), *s[1:]) for s in self.stages]


Shapes = dict[str, tuple[int, ...]]


def shapes_of(front: Front | None, prefix: str) -> Shapes:
    """Shape of every array of a front, by name; all are float32."""
    found: Shapes = {}
    for i, s in enumerate(front.stages if front is not None else ()):
        shapes: dict[str, Shapes] = {
            "embed": {"weight": (s.number, s.width)},
            "linear": {"weight": (s.width, s.inputs), "bias": (s.width,)},
            "add": {"weight": (s.rows, s.width)},
            "norm": {"weight": (s.width,), "bias": (s.width,)},
        }
        found |= {f"{prefix}{i}.{name}": shape for name, shape in shapes.get(s.kind, {}).items()}
    return found


def reason_against(front: Front, elements: int) -> str | None:
    """Why this is no program that gives a sample's ``elements``, or None."""
    stages = front.stages
    known = front.name in NAMES and front.reads in READS and all(s.kind in KINDS for s in stages)
    if not known or not stages:
        return "an unknown front"
    if any(min(s.rows, s.inputs, s.width) < 1 or s.number < 0 for s in stages):
        return "a front with sizes of zero"
    if any(max(s.before, s.after, s.width * max(s.inputs, s.number)) > MOST_ELEMENTS for s in stages):
        return "a front with sizes beyond any memory"
    if not all(is_eps(s.eps) for s in stages):
        return "a front with an eps out of its range"
    if any(not _fits(s) for s in stages) or any(a.after != b.before for a, b in pairwise(stages)):
        return "a front of stages that do not fit each other"
    if stages[-1].after != elements:
        return f"a front that gives {stages[-1].after} elements where {elements} belong"
    if math.prod(front.shape) != stages[0].before or min(front.shape, default=1) < 1:
        return "a front that reads another shape"
    return _against_indices(front) or _against_residuals(stages)


def _fits(s: FrontStage) -> bool:
    factor = {"glu": 2, "attend": 3}.get(s.kind, 1)
    if s.kind == "attend" and (s.number < 1 or s.width % s.number):
        return False
    if s.kind == "turn":
        return s.width == s.rows
    return s.kind in ("embed", "linear") or s.inputs == factor * s.width


def _against_indices(front: Front) -> str | None:
    first, *others = front.stages
    if (front.reads != "floats") != (first.kind == "embed") or any(s.kind == "embed" for s in others):
        return "a front with an embedding in another place"
    ends = {"floats": (), "signs": (2,)}.get(front.reads, front.ends)
    if front.ends != ends or any(end < 1 for end in ends):
        return "a front with indices of another range"
    if first.kind == "embed" and (first.inputs != len(ends) or sum(ends) > first.number):
        return "a front with a table of another size"
    return None


def _against_residuals(stages: tuple[FrontStage, ...]) -> str | None:
    kept = None
    for s in stages:
        if s.kind == "keep":
            kept = s.rows, s.width
        if s.kind == "residual" and kept != (s.rows, s.width):
            return "a front that adds what it did not keep"
    return None
