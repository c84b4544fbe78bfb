"""Rows of the Differentiable Neural Computer's memory.

Letters: T steps, B batch, N slots, W width of a slot, R read heads, K links kept per slot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.baselines import dnc as strong
from bench.memory import storages_of
from bench.row import OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred, trained
from ctm_fast import ops
from ctm_fast.ops import DncLayout, DncState
from ctm_fast.ops.dnc import reference

Found = tuple[Tensor, Tensor, DncState]


class Sizes(NamedTuple):
    """Sizes of a row; ``K`` 0 keeps all links."""

    T: int
    B: int
    N: int
    W: int
    R: int
    K: int = 0

    @property
    def name(self) -> str:
        """As the table shows it."""
        return " ".join(f"{letter}{size}" for letter, size in self._asdict().items() if size)


SMALL = Sizes(1, 16, 64, 16, 4)


class Problem:
    """Memory, interface vectors and a state that some steps have led to, and the gradients of the results."""

    def __init__(self, n: Sizes) -> None:
        self.layout = DncLayout(n.R, n.W, sparse=n.K or None)
        warm_up = torch.randn(4, n.B, self.layout.size)
        start = self.layout.initial_state(n.B, n.N)
        found = ops.dnc_sequence(torch.randn(n.B, n.N, n.W), warm_up, start, layout=self.layout)
        self.memory = found.memory.requires_grad_()
        self.interface = torch.randn(n.T, n.B, self.layout.size).requires_grad_()
        self.state = DncState._make(
            x.requires_grad_() if x is not None and x.is_floating_point() else x for x in found.state
        )
        results = self.flat(self.own())
        self.gradients = [torch.randn_like(x) for x in results]

    @property
    def inputs(self) -> list[Tensor]:
        """Everything that takes gradients."""
        return [self.memory, self.interface, *self.state[:5]]

    @staticmethod
    def flat(found: Found) -> list[Tensor]:
        """Reads, memory and the floating-point state."""
        return [found[0], found[1], *found[2][:5]]

    def own(self) -> Found:
        """The fused op: one step's, or that of the whole sequence."""
        if len(self.interface) > 1:
            return ops.dnc_sequence(self.memory, self.interface, self.state, layout=self.layout)
        reads, memory, state = ops.dnc_step(self.memory, self.interface[0], self.state, layout=self.layout)
        return reads.unsqueeze(0), memory, state

    def published(self, step: Callable[..., Found] = reference.step) -> Found:
        """The loop over ``step``, with its interface vector parsed in every step."""
        reads, memory, state = [], self.memory, self.state
        for raw in self.interface:
            found, memory, state = step(memory, self.layout.split(raw), state, self.layout)
            reads.append(found)
        return torch.stack(reads), memory, state

    def strong(self) -> Found:
        """Strong eager, of dense links."""
        return strong.sequence(self.memory, self.interface, self.state, self.layout)

    def provider(self, forward: Callable[[], Found], train: bool) -> Provider:
        """Forward, with ``train`` also backward from all results."""

        def flat() -> list[Tensor]:
            return self.flat(forward())

        return trained(flat, self.inputs, self.gradients) if train else inferred(flat)


def case(n: Sizes, train: bool) -> Case:
    """Every provider of one row; the eager one of sparse links is the reference alone."""
    p = Problem(n)
    forwards = {REFERENCE: p.published, STRONG: p.published if n.K else p.strong, OWN: p.own}
    return Case(
        {name: p.provider(forward, train) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(
            partial(p.published, torch.compile(reference.step, mode=mode)), train
        ),
        ticks=n.T,
        moved_bytes=least_bytes(p, train),
        excluded=storages_of(p.inputs),
    )


def least_bytes(p: Problem, train: bool) -> float:
    """Forward reads and writes memory and links; backward reads them and their gradients and writes others."""
    once = p.memory.numel() + p.state.link.numel()
    return float(p.memory.element_size() * once * (5 if train else 2))


def rows() -> list[Row]:
    """All rows of the memory."""
    target = Targets(reference=8)
    found = [
        Row("dnc-infer", SMALL.name, ("dnc",), partial(case, SMALL, False), target, compiles=True),
        Row("dnc-train", SMALL.name, ("dnc",), partial(case, SMALL, True), target, quick=True, compiles=True),
    ]
    others = (
        Sizes(20, 16, 64, 16, 4),
        Sizes(40, 1, 128, 20, 1),
        Sizes(1, 4, 512, 32, 4),
        Sizes(1, 4, 512, 32, 4, 8),
    )
    for n in others:
        found += [
            Row("dnc-infer", n.name, ("dnc",), partial(case, n, False)),
            Row("dnc-train", n.name, ("dnc",), partial(case, n, True)),
        ]
    return found
