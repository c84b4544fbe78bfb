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

Tensors = Tensor | tuple[Tensor, ...]
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


def as_tuple(values: Tensors) -> tuple[Tensor, ...]:
    """A tensor as a tuple of one."""
    return (values,) if isinstance(values, Tensor) else tuple(values)


def run(step: Step, inputs: Tensors, state: Tensors, samples: Tensor, limits: Limits) -> Rows:
    """Take substeps until every sample has halted; ``samples`` (A) names those that ``inputs`` holds."""
    found = Rows([], [], [], [])
    running, live, total = torch.ones_like(samples, dtype=torch.bool), None, None
    for n in range(limits.max_steps):
        output, state, probability = step(inputs, state, n == 0)
        _check(as_tuple(output), as_tuple(state), probability, len(samples))
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


def _check(output: tuple[Tensor, ...], state: tuple[Tensor, ...], probability: Tensor, rows: int) -> None:
    op = "adaptive_halting"
    checks.floating(op, "step's probability", probability)
    checks.shape(op, "step's probability", probability, (rows,), "A")
    for name, value in (*(("output", x) for x in output), *(("state", x) for x in state)):
        checks.floating(op, f"step's {name}", value)
        if value.shape[:1] != (rows,):
            raise ValueError(f"{op}: step's {name} must have {rows} rows, got shape {tuple(value.shape)}")
