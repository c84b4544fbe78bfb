"""The loop over the substeps of one timestep: samples that have halted leave the batch.

Letters: B samples, A <= B of them computed in a substep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops import checks
from ctm_fast.ops.native import compute_dtype

OP = "adaptive_halting"
Tensors = Tensor | tuple[Tensor, ...] | list[Tensor]
Step = Callable[[Any, Any, bool], tuple[Any, Any, Tensor]]


class Limits(NamedTuple):
    """When a sample halts, and whether it then leaves the batch."""

    threshold: float
    max_steps: int
    compaction: bool


class Rows(NamedTuple):
    """What the substeps gave for the samples that still ran: an entry per substep.

    Outputs and states are tensors or tuples as ``step`` gave them, the others tensors.
    """

    outputs: list[Any]
    states: list[Any]
    probabilities: list[Any]
    samples: list[Any]


def take(values: Any, rows: Tensor) -> Any:
    """These rows of a tensor, or of every tensor of a tuple."""
    if isinstance(values, Tensor):
        return values.index_select(0, rows)
    return tuple(value.index_select(0, rows) for value in values)


def as_tuple(name: str, values: object) -> tuple[Any, ...]:
    """A tensor as a tuple of one, a list as a tuple; ``TypeError`` for anything else."""
    if isinstance(values, Tensor):
        return (values,)
    if not isinstance(values, tuple | list):
        raise TypeError(f"{OP}: {name} must be a tensor or a tuple of tensors, got {type(values).__name__}")
    return tuple(values)


def run(step: Step, inputs: Tensors, state: Tensors, samples: Tensor, limits: Limits) -> Rows:
    """Take substeps until every sample has halted; ``samples`` (A) names those that ``inputs`` holds."""
    found = Rows([], [], [], [])
    running, live, total = torch.ones_like(samples, dtype=torch.bool), None, None
    for n in range(limits.max_steps):
        output, state, probability = _checked(step(inputs, state, n == 0), state, len(samples))
        _add(found, (output, state, probability, samples), live)
        h = probability.detach().to(compute_dtype(probability.dtype))
        total = h if total is None else total + h
        running = running & ~(total >= limits.threshold)
        live = running.nonzero().squeeze(1)
        if len(live) == 0:
            break
        if len(live) == len(samples):
            live = None
        elif limits.compaction:
            inputs, state = take(inputs, live), take(state, live)
            samples, total, running = (x.index_select(0, live) for x in (samples, total, running))
            live = None
    return found


def _add(found: Rows, values: Sequence[Any], live: Tensor | None) -> None:
    for rows, value in zip(found, values, strict=True):
        rows.append(value if live is None else take(value, live))


def _checked(found: object, before: Tensors, rows: int) -> tuple[Any, Any, Tensor]:
    """What ``step`` returned, if it is an output, a state like the one before, and a probability."""
    if not isinstance(found, tuple | list) or len(found) != 3:
        got = f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
        raise TypeError(f"{OP}: step must return (output, state, probability), got {got}")
    output, state, probability = found
    outputs, states = as_tuple("step's output", output), as_tuple("step's state", state)
    if isinstance(state, Tensor) != isinstance(before, Tensor) or len(states) != len(
        as_tuple("state", before)
    ):
        raise ValueError(f"{OP}: step's state must be {_form(before)} as the one given, got {_form(state)}")
    checks.floating(OP, "step's probability", probability)
    checks.shape(OP, "step's probability", probability, (rows,), "A")
    for name, value in (*(("output", x) for x in outputs), *(("state", x) for x in states)):
        checks.floating(OP, f"step's {name}", value)
        if value.shape[:1] != (rows,):
            raise ValueError(f"{OP}: step's {name} must have {rows} rows, got shape {tuple(value.shape)}")
    return output, state, probability


def _form(values: Tensors) -> str:
    return "a tensor" if isinstance(values, Tensor) else f"a tuple of {len(values)}"
