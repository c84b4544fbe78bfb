"""Rows of the neuron-level models.

Letters: B batch, D neurons, M memory length, H hidden width, T ticks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import ctm_fast
from bench.baselines import nlm as strong
from bench.memory import hook_bytes, storages_of
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred, trained
from ctm_fast import ops
from ctm_fast.nn.nlm import NeuronLevelModels
from ctm_fast.ops.native import NO_DROPOUT
from ctm_fast.ops.nlm import autograd

TICKS = 50


class Size(NamedTuple):
    """Sizes of one configuration."""

    D: int
    M: int
    H: int
    B: int

    def __str__(self) -> str:
        return f"D{self.D} M{self.M} H{self.H} B{self.B}"


BATCHED = (Size(256, 15, 64, 64), Size(1024, 25, 16, 64), Size(2048, 25, 32, 16))
SINGLE = Size(512, 10, 16, 1)


class Problem:
    """Models with random weights and the pre-activations of T ticks."""

    def __init__(self, size: Size, ticks: int) -> None:
        self.size, self.ticks = size, ticks
        self.models = NeuronLevelModels(size.D, size.M, size.H)
        with torch.no_grad():
            for name, parameter in self.models.named_parameters():
                if name.endswith(("b1", "T")):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self.weights = strong.weights(self.models)
        self.start = torch.randn(size.D, size.M).requires_grad_()
        self.inputs = [torch.randn(size.B, size.D).requires_grad_() for _ in range(ticks)]
        self.window = torch.randn(size.B, size.D, size.M)

    def published_ticks(self, body: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The published loop around ``body``: (history, pre-activations) -> (history, post-activations)."""
        history = self.start.expand(self.size.B, -1, -1)
        out = []
        for s in self.inputs:
            history, z = body(history, s)
            out.append(z)
        return out

    def published_body(self, history: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """One published tick: the history is concatenated anew."""
        history = torch.cat((history[:, :, 1:], s.unsqueeze(-1)), dim=-1)
        return history, self.models(history)

    def reference_ticks(self) -> list[Tensor]:
        """All ticks as published."""
        with ctm_fast.use_backend("reference"):
            return self.published_ticks(self.published_body)

    def compiled_ticks(self, mode: str | None = None) -> Callable[[], list[Tensor]]:
        """All ticks with a compiled tick body."""
        return partial(self.published_ticks, torch.compile(self.published_body, mode=mode))

    def strong_ticks(self, permuted: strong.Permuted | None = None) -> list[Tensor]:
        """The strong eager loop; permutes the weights where they are not given."""
        permuted = permuted or strong.permute(*self.weights)
        history = self.start.unsqueeze(1).expand(-1, self.size.B, -1)
        out = []
        for s in self.inputs:
            history = strong.push(history, s)
            out.append(strong.apply(permuted, history).t())
        return out

    def own_ticks(self, packed: ops.NlmPack | None = None) -> list[Tensor]:
        """The loop form of ``ctm_fast.ops.nlm``; packs the weights where they are not given."""
        packed = packed or ops.nlm_pack(*self.weights)
        history = packed.history(self.start, self.size.B, self.ticks)
        out = []
        for t, s in enumerate(self.inputs):
            history[t] = s
            out.append(ops.nlm_tick(packed, history, t))
        return out

    def reference_window(self) -> list[Tensor]:
        """One published call on a window of the history."""
        with ctm_fast.use_backend("reference"):
            return [self.models(self.window)]

    def compiled_window(self, mode: str | None = None) -> Callable[[], list[Tensor]]:
        """The published call compiled."""
        models = torch.compile(self.models, mode=mode)
        return lambda: [models(self.window)]


def tick_bytes(size: Size) -> float:
    """A tick reads its weights and the window of every neuron, and writes the post-activations."""
    weights = size.D * ((size.M + 1) * 2 * size.H + 2 * size.H + 2)
    return 4.0 * (weights + size.B * size.D * (size.M + 1))


def tick_case(size: Size) -> Case:
    """Forward of all ticks, weights packed or permuted beforehand."""
    p = Problem(size, TICKS)
    with torch.no_grad():
        permuted, packed = strong.permute(*p.weights), ops.nlm_pack(*p.weights)
    providers = {
        REFERENCE: inferred(p.reference_ticks),
        STRONG: inferred(lambda: p.strong_ticks(permuted)),
        OWN: inferred(lambda: p.own_ticks(packed)),
    }

    def native() -> Provider:
        with torch.no_grad():
            packed = ops.nlm_pack(*p.weights, backend="native")
        return inferred(lambda: p.own_ticks(packed))

    return Case(
        providers,
        compiled=lambda mode=None: inferred(p.compiled_ticks(mode)),
        ticks=TICKS,
        least_bytes=TICKS * tick_bytes(size),
        native=native,
    )


def call_case(size: Size) -> Case:
    """One native call as a tick makes it, nothing of torch around it, against one call of the others."""
    p = Problem(size, ticks=1)
    with torch.no_grad():
        permuted, packed = strong.permute(*p.weights), autograd.pack(*p.weights)
    history = p.window.transpose(0, 1).contiguous()
    rows = p.window.permute(2, 0, 1).contiguous()
    shape = autograd.shape_of(size.B, p.weights[0], p.weights[3])
    strides = (size.D, 1, size.B * size.D)
    z = torch.empty(size.B, size.D)

    def own() -> list[Tensor]:
        autograd.run_forward(shape, NO_DROPOUT, packed, rows, strides, z)
        return [z]

    return _window_case(p, lambda: [strong.apply(permuted, history).t()], own)


def op_case(size: Size) -> Case:
    """The public op on a window, packing and dispatch included."""
    p = Problem(size, ticks=1)

    def strong_eager() -> list[Tensor]:
        return [strong.apply(strong.permute(*p.weights), p.window.transpose(0, 1)).t()]

    return _window_case(p, strong_eager, lambda: [ops.nlm(p.window, *p.weights)])


def _window_case(
    p: Problem, strong_eager: Callable[[], list[Tensor]], own: Callable[[], list[Tensor]]
) -> Case:
    runs = {REFERENCE: p.reference_window, STRONG: strong_eager, OWN: own}
    return Case(
        {name: inferred(run) for name, run in runs.items()},
        compiled=lambda mode=None: inferred(p.compiled_window(mode)),
    )


def train_case(size: Size) -> Case:
    """Forward and backward of all ticks, packing or permuting included; every tick has a gradient."""
    p = Problem(size, TICKS)
    gradients = [torch.randn(size.B, size.D) for _ in range(TICKS)]
    leaves = [*p.weights, p.start, *p.inputs]
    runs = {REFERENCE: p.reference_ticks, STRONG: p.strong_ticks, OWN: p.own_ticks}
    return Case(
        {name: trained(run, leaves, gradients) for name, run in runs.items()},
        compiled=lambda mode=None: trained(p.compiled_ticks(mode), leaves, gradients),
        ticks=TICKS,
        estimate=lambda: float(TICKS * hook_bytes(Problem(size, ticks=1).reference_ticks)),
        excluded=storages_of(leaves),
    )


def rows() -> list[Row]:
    """All rows of the neuron-level models."""
    found = []
    for size in BATCHED:
        long = size.M >= 25
        quick = size.B == 64
        tick = Targets(reference=20, strong=3, sgemm=0.5 if long else None)
        train = Targets(reference=15, strong=3)
        middle = quick and long
        found += [
            _row("nlm-tick", size, tick_case, tick, quick, compiles=middle),
            _row("nlm-op", size, op_case),
            _row("nlm-train", size, train_case, train, quick=middle, compiles=middle),
        ]
    return [
        *found,
        _row("nlm-call", SINGLE, call_case, Targets(reference=25, strong=15), quick=True, compiles=True),
        _row("nlm-tick", SINGLE, tick_case),
        _row("nlm-op", SINGLE, op_case, Targets(reference=10, strong=6), quick=True, compiles=True),
    ]


def _row(
    kind: str,
    size: Size,
    case: Callable[[Size], Case],
    targets: Targets = NO_TARGETS,
    quick: bool = False,
    compiles: bool = False,
) -> Row:
    return Row(kind, str(size), ("nlm",), partial(case, size), targets, quick, compiles)
