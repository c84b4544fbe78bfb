"""Rows of the synchronisation.

Letters: T ticks, B batch, D neurons, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.baselines import sync as strong
from bench.memory import storages_of
from bench.row import OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, trained
from ctm_fast import ops
from ctm_fast.nn.sync import decayed_update, pair_indices, pair_products, select_neurons

T, B, D = 50, 64, 1024


class Selection(NamedTuple):
    """A selection of n neurons and the P pairs that it gives."""

    kind: str
    n: int
    P: int


SELECTIONS = (
    Selection("random-pairing", 32, 32),
    Selection("random", 32, 528),
    Selection("random-pairing", 2048, 2048),
)


class Problem:
    """Post-activations of all ticks, neurons, decays, and the gradient of the result."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.z = torch.randn(T, B, D).requires_grad_()
        self.neurons = select_neurons(selection.kind, D, selection.n)
        self.pairs = pair_indices(selection.kind, *self.neurons)
        self.decay = torch.rand(selection.P).requires_grad_()
        self.gradient = torch.randn(T, B, selection.P)

    def published_tick(
        self, z: Tensor, alpha: Tensor | None, beta: Tensor | None, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One published tick: dense kinds through the full outer product, beta with a batch dimension."""
        pairs = pair_products(self.selection.kind, z, *self.neurons)
        alpha, beta = decayed_update(pairs, alpha, beta, r)
        return alpha / torch.sqrt(beta), alpha, beta

    def published(self, tick: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The published recurrence around ``tick``: (T, B, P)."""
        r = torch.exp(-self.decay).unsqueeze(0).repeat(self.z.shape[1], 1)
        alpha = beta = None
        out = []
        for z in self.z:
            s, alpha, beta = tick(z, alpha, beta, r)
            out.append(s)
        return torch.stack(out)

    def own(self) -> Tensor:
        """The fused op."""
        return ops.sync(self.z, *self.pairs, self.decay)[0]

    def provider(self, forward: Callable[[], Tensor]) -> Provider:
        """Forward and backward."""
        return trained(lambda: [forward()], (self.z, self.decay), [self.gradient])


def case(selection: Selection) -> Case:
    """Forward and backward over all ticks."""
    p = Problem(selection)
    forwards = {
        REFERENCE: lambda: p.published(p.published_tick),
        STRONG: lambda: strong.all_ticks(p.z, *p.pairs, p.decay),
        OWN: p.own,
    }
    return Case(
        {name: p.provider(forward) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(
            partial(p.published, torch.compile(p.published_tick, mode=mode))
        ),
        moved_bytes=least_bytes(p),
        excluded=storages_of((p.z, p.decay)),
    )


def least_bytes(p: Problem) -> float:
    """Forward reads z and writes s; backward reads z and the gradient of s and writes that of z."""
    return float(p.z.element_size() * (3 * p.z.numel() + 2 * p.gradient.numel()))


def rows() -> list[Row]:
    """All rows of the synchronisation."""
    found = []
    for s in SELECTIONS:
        name, middle = f"P{s.P} T{T} B{B} D{D}", s.P == 528
        found.append(
            Row("sync", name, (), partial(case, s), Targets(reference=8), quick=middle, compiles=middle)
        )
    return found
