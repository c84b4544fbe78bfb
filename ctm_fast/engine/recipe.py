"""What an engine is made of: sizes, synapse stages and arrays, the contents of its file.

Letters: B batch, T ticks, D neurons, M memory length, H hidden width, d input width, L tokens, K sets of tokens,
G given inputs of width F, P action pairs, S output pairs, C predictions, E energy width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ctm_fast.engine import front
from ctm_fast.engine import weights as widths
from ctm_fast.engine.front import Front, Shapes
from ctm_fast.engine.limits import MOST_ELEMENTS, SIZE_END, is_eps

KINDS = ("base", "sort", "qamnist", "rl")
STAGES = ("glu", "silu", "skip")  # in the order of csrc/engine.h


class Sizes(NamedTuple):
    """In the order of csrc/engine.h, without the threads."""

    batch: int  # at most
    ticks: int  # at most
    neurons: int
    memory: int
    hidden: int
    deep: int
    normed: int  # whether a LayerNorm comes before each layer of the neuron-level models
    width: int  # d; 0 without attention
    heads: int
    tokens: int  # at most
    sets: int  # at most
    action: int  # P
    features: int  # F; 0 where no input is given
    given: int  # at most
    pairs: int  # S
    classes: int  # C; 0 if stateful
    group: int  # predictions of one softmax
    energy: int  # E; 0 without an energy head
    stateful: int


class Stage(NamedTuple):
    """One linear map and what follows it; ``source`` and ``skip`` are stages before, a source of -1 the input."""

    kind: str
    width: int
    inputs: int
    source: int
    skip: int
    eps: float
    outer_eps: float

    @property
    def outputs(self) -> int:
        """Rows of the linear map."""
        return self.width * (2 if self.kind == "glu" else 1)


class Question(NamedTuple):
    """Tokens of QAMNIST: digit positions and operators take turns of ``ticks`` ticks, positions first."""

    positions: int
    operators: int
    ticks: int

    @property
    def rows(self) -> int:
        """Rows of the table: positions, operators, and the silence of the answer."""
        return self.positions + self.operators + 1


class Input(NamedTuple):
    """One array that a call takes; in its shape None stands for any size, first of all the batch.

    Its name says what it is: "x" the model's input, "features" what its backbone gives, "tokens" those behind the
    key-value projection, "question" tokens or embeddings of QAMNIST.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str  # "float32", or "int64" of indices; others are converted


@dataclass(frozen=True)
class Recipe:
    """An engine before it is packed. ``iterations``: ticks of a call, for QAMNIST of the answer.

    Fronts are what an engine computes of the tokens and of the given inputs itself; None where these are given.
    """

    kind: str
    iterations: int
    sizes: Sizes
    stages: tuple[Stage, ...]
    arrays: dict[str, np.ndarray]
    weights: str = widths.FLOAT32
    tokens_front: Front | None = None
    given_front: Front | None = None
    question: Question | None = None

    def narrowed(self, width: str) -> Recipe:
        """The same with weights of this width.

        Raises:
            ValueError: they are narrow already, or not finite.
        """
        if width == self.weights:
            return self
        if self.weights != widths.FLOAT32:
            raise ValueError(
                f"Engine: weights must be {self.weights}, as they are in its file, got {width!r}"
            )
        return replace(self, weights=width, arrays=widths.narrowed(self.arrays, width))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in self.arrays.values())

    @property
    def fronts(self) -> dict[str, Front | None]:
        """By the prefix of their arrays' names."""
        return {"tokens_front": self.tokens_front, "given_front": self.given_front}

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The arrays that a call takes."""
        n, ticks = self.sizes, (None,) if self.kind == "qamnist" else ()
        tokens = _input(self.tokens_front, Input("tokens", (None, *ticks, None, n.width), "float32"), ticks)
        given = Input(
            {"sort": "x", "rl": "features"}.get(self.kind, "question"), (None, *ticks, n.features), "float32"
        )
        if self.question is not None:
            given = Input("question", (None, None), "int64")
        elif self.kind != "qamnist":
            given = _input(self.given_front, given, ticks)
        return {"base": (tokens,), "qamnist": (tokens, given)}.get(self.kind, (given,))

    def native_stages(self) -> list[tuple[int, int, int, int, int, float, float]]:
        """As the extension takes them."""
        return [(STAGES.index(s.kind), *s[1:]) for s in self.stages]


def _input(front: Front | None, behind: Input, ticks: tuple[None, ...]) -> Input:
    if front is None:
        return behind
    return Input(front.name, (None, *ticks, *front.shape), "int64" if front.reads == "indices" else "float32")


def shapes_of(sizes: Sizes, stages: tuple[Stage, ...]) -> Shapes:
    """Shape of every array by name, without scales; those of ``INDICES`` are int32."""
    n = sizes
    found: Shapes = {"start": (n.memory, n.neurons), "w1": (n.memory, 2 * n.hidden, n.neurons)}
    found |= {"b1": (n.neurons, 2 * n.hidden), "factor": (n.pairs,), "left": (n.pairs,), "right": (n.pairs,)}
    if n.deep:
        found |= {"w2": (n.hidden, 2, n.neurons), "b2": (n.neurons, 2)}
    if n.normed:
        found["eps"] = (2 if n.deep else 1,)
    if n.heads:
        found |= {"query": (n.width, n.action), "query_bias": (n.width,), "action_factor": (n.action,)}
        found |= {
            "keys_values": (2 * n.width, n.width),
            "action_left": (n.action,),
            "action_right": (n.action,),
        }
    if n.features:
        found |= {"from_given": (stages[0].outputs, n.features), "given_bias": (stages[0].outputs,)}
    if n.stateful:
        found["start_post"] = (n.memory, n.neurons)
    else:
        found |= {"z0": (n.neurons,), "project": (n.classes, n.pairs), "project_bias": (n.classes,)}
    if n.energy:
        found |= {"energy": (n.energy, n.pairs), "energy_bias": (n.energy,), "head": (n.energy,)}
        found["head_bias"] = (1,)
    for i, s in enumerate(stages):
        rows = {
            "weight": (s.outputs, s.inputs),
            "bias": (s.outputs,),
            "norm": (s.width,),
            "norm_bias": (s.width,),
        }
        if s.kind == "skip":
            rows |= {"outer": (s.width,), "outer_bias": (s.width,)}
        found |= {f"stage{i}.{name}": shape for name, shape in rows.items()}
    return found


INDICES = ("action_left", "action_right", "left", "right")


def reason_against(recipe: Recipe) -> str | None:
    """Why no engine can be made of this, or None."""
    n, stages = recipe.sizes, recipe.stages
    if recipe.kind not in KINDS or recipe.iterations < 1 or not all(0 <= x < SIZE_END for x in n):
        return "unknown kinds or sizes out of their range"
    if min(n.batch, n.ticks, n.neurons, n.memory, n.hidden, n.pairs) < 1 or not stages:
        return "sizes of zero"
    if reason := _against_kind(recipe):
        return reason
    return _against_stages(n, stages) or _against_fronts(recipe) or _against_arrays(recipe)


def _against_arrays(recipe: Recipe) -> str | None:
    n = recipe.sizes
    shapes = shapes_of(n, recipe.stages)
    for prefix, found_front in recipe.fronts.items():
        shapes |= front.shapes_of(found_front, prefix)
    if recipe.weights not in widths.WIDTHS:
        return "weights of an unknown width"
    if recipe.weights == widths.INT8:
        shapes |= widths.scale_shapes(shapes)
    if shapes.keys() != recipe.arrays.keys():
        different = sorted(shapes.keys() ^ recipe.arrays.keys())
        return f"missing or further arrays: {', '.join(different[:5])}"
    for name, shape in shapes.items():
        dtype = np.dtype(np.int32) if name in INDICES else widths.dtype_of(name, recipe.weights)
        found = recipe.arrays[name]
        if found.shape != shape or found.dtype != dtype:
            return f"{name} of shape {found.shape} and {found.dtype} where {shape} and {dtype} belong"
        if name == "eps" and not all(is_eps(x) for x in found):
            return "an eps out of its range"
        if name in INDICES and found.size and (found.min() < 0 or found.max() >= n.neurons):
            return f"{name} outside [0, {n.neurons})"
    return widths.reason_against_scales(recipe.arrays)


def _against_kind(recipe: Recipe) -> str | None:
    n, attends = recipe.sizes, recipe.kind in ("base", "qamnist")
    given, stateful = recipe.kind != "base", recipe.kind == "rl"
    parts = [(size, attends) for size in (n.heads, n.width, n.action, n.tokens, n.sets)]
    parts += [(n.features, given), (n.given, given), (n.stateful, stateful)]
    parts += [(n.classes, not stateful), (n.group, not stateful)]
    if any(bool(size) != wanted for size, wanted in parts) or max(n.deep, n.normed, n.stateful) > 1:
        return f"sizes of another kind than {recipe.kind}"
    if attends and n.width % n.heads:
        return "sizes of an attention that do not fit each other"
    if (n.classes and n.classes % n.group) or (n.energy and stateful):
        return "predictions that do not fit their softmax"
    asked = n.given if recipe.kind == "qamnist" else 0  # ticks of the question, and at least one of a digit
    if n.ticks < recipe.iterations + asked or (not asked and n.ticks != recipe.iterations):
        return "ticks that do not fit its iterations"
    return "sizes beyond any memory" if _elements(n, recipe.stages) > MOST_ELEMENTS else None


def _elements(n: Sizes, stages: tuple[Stage, ...]) -> int:
    """About as many numbers as an engine works in, see csrc/engine_samples.h."""
    widths = n.width + n.neurons + n.pairs + n.action + n.classes + n.energy + sum(s.outputs for s in stages)
    histories = 2 * n.memory * n.neurons * (1 + n.stateful)
    sample = widths + histories + 2 * n.sets * n.tokens * n.width + n.given * stages[0].outputs
    return n.batch * sample + n.ticks * (n.pairs + n.action)


def _against_stages(n: Sizes, stages: tuple[Stage, ...]) -> str | None:
    for i, s in enumerate(stages):
        known = s.kind in STAGES and 0 < s.width < SIZE_END and 0 < s.inputs < SIZE_END
        if not known or not -1 <= s.source < i or (s.source == -1) != (i == 0):
            return f"an unknown synapse stage {i}"
        if not (is_eps(s.eps) and is_eps(s.outer_eps)):
            return f"synapse stage {i} with an eps out of its range"
        expected = n.width + n.neurons if i == 0 else stages[s.source].width
        if s.inputs != expected:
            return f"synapse stage {i} with {s.inputs} inputs where {expected} belong"
        if s.kind == "skip" and not (0 <= s.skip < i and stages[s.skip].width == s.width):
            return f"synapse stage {i} with a skip from a stage of another width"
    return None if stages[-1].width == n.neurons else "a last synapse stage of another width than the neurons"


def _against_fronts(recipe: Recipe) -> str | None:
    n, question, given = recipe.sizes, recipe.question, recipe.given_front
    for part, elements in ((recipe.tokens_front, n.tokens * n.width), (given, n.features)):
        if part is not None and (reason := front.reason_against(part, elements)):
            return reason
    if question is None:
        return "a question without its range" if recipe.kind == "qamnist" and given is not None else None
    fits = min(question) >= 1 and recipe.kind == "qamnist" and given is not None
    return None if fits and given is not None and given.ends == (question.rows,) else "another question"
