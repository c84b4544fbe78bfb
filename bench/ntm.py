"""Rows of the Neural Turing Machine's memory: sequences in one call, and one call per step.

The memory is 128 slots of width 20 with one read and one write head (arXiv 1410.5401, table 1), 40 steps.

Letters: T steps, B batch, N slots, W width of a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.baselines import ntm as plain
from bench.memory import storages_of
from bench.row import OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred, trained
from ctm_fast import ops

T, N, W = 40, 128, 20

Forward = Callable[[], list[Tensor]]


class Problem:
    """Raw interface vectors of all steps, the state before them, and gradients of the results."""

    def __init__(self, batch: int) -> None:
        self.layout = plain.layout(width=W)
        self.interface = torch.randn(T, batch, self.layout.size).requires_grad_()
        read, write = torch.randn(2, batch, 1, N).softmax(3).unbind(0)
        memory = torch.randn(batch, N, W)
        self.state: plain.State = (
            memory.requires_grad_(), read.detach().requires_grad_(), write.detach().requires_grad_(),
        )  # fmt: skip
        self.leaves = (self.interface, *self.state)
        self.gradients = (torch.randn(T, batch, 1, W), torch.ones_like(memory))

    def sequence(self) -> list[Tensor]:
        """All steps in one call."""
        memory, read, write = self.state
        return list(ops.ntm_sequence(memory, self.interface, read, write, layout=self.layout))

    def own_step(self, raw: Tensor, state: plain.State, heads: ops.NtmLayout) -> tuple[Tensor, plain.State]:
        """One call of the step op."""
        memory, read, write = state
        reads, *after = ops.ntm_step(memory, raw, read, write, layout=heads)
        return reads, (after[0], after[1], after[2])

    def loop(self, step: plain.Step) -> Forward:
        """The loop of all steps around ``step``."""
        return lambda: plain.run(step, self.interface, self.state, self.layout)

    def provider(self, forward: Forward, training: bool) -> Provider:
        """Forward, with ``training`` also backward from the reads and the last memory."""
        return trained(forward, self.leaves, self.gradients) if training else inferred(forward)


def case(batch: int, training: bool, whole: bool) -> Case:
    """All steps in one call (``whole``) or one call each, against loops over one step."""
    p = Problem(batch)
    forwards = {
        REFERENCE: p.loop(plain.usual),
        STRONG: p.loop(plain.strong),
        OWN: p.sequence if whole else p.loop(p.own_step),
    }
    return Case(
        {name: p.provider(forward, training) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(p.loop(torch.compile(plain.usual, mode=mode)), training),
        ticks=T,
        moved_bytes=least_bytes(p, training),
        excluded=storages_of(p.leaves),
    )


def least_bytes(p: Problem, training: bool) -> float:
    """A step reads and writes the memory; its backward reads it and reads and writes its gradient."""
    passes = 5 if training else 2
    return float(p.interface.element_size() * passes * len(p.interface) * p.state[0].numel())


def rows() -> list[Row]:
    """Sequences and single steps, forward and training, at batch 1 and 32."""
    batched = Targets(reference=6, strong=3)
    return [
        _row("sequence", 1, False, Targets(reference=15, strong=8)),
        _row("sequence", 32, False, batched),
        _row("sequence-train", 1, True, Targets(reference=10, strong=5)),
        _row("sequence-train", 32, True, batched),
        _row("step", 1, False, Targets(reference=5, strong=3)),
        _row("step", 32, False, batched),
        _row("step-train", 1, True, Targets(reference=5, strong=3)),
        _row("step-train", 32, True, batched),
    ]


def _row(kind: str, batch: int, training: bool, targets: Targets) -> Row:
    build = partial(case, batch, training, kind.startswith("sequence"))
    short = kind == "sequence-train" and batch == 1
    return Row(
        f"ntm-{kind}", f"N{N} W{W} T{T} B{batch}", ("ntm",), build, targets, quick=short, compiles=short
    )
