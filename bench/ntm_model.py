"""Rows of the whole Neural Turing Machine on the copy task (arXiv 1410.5401): training steps and inference.

Training is forward, loss of the answer and backward into fresh gradients. Every sequence has 20 vectors, 41
steps. The reference is the model as usual PyTorch code has it, one head and one operation after the other;
strong eager is this package's model, inputs projected and outputs mapped once for all steps, heads together,
on the plain PyTorch backend of the memory ops.

Letters: T steps, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import ctm_fast
from bench.baselines import ntm_model
from bench.memory import storages_of
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred
from ctm_fast.models import NTM, presets
from tasks.ntm import data, scores

LENGTH = 20

Forward = Callable[[NTM, Tensor], Tensor]


def _own(model: NTM, x: Tensor) -> Tensor:
    return model(x).output


def _strong(model: NTM, x: Tensor) -> Tensor:
    with ctm_fast.use_backend("reference"):
        return _own(model, x)


class Problem:
    """The copy model of the paper with an LSTM, and sequences to copy."""

    def __init__(self, batch: int, training: bool) -> None:
        self.model: NTM = presets.build("ntm_copy_lstm")
        vectors = data.random_bits((LENGTH, batch, self.model.output_size), torch.default_generator)
        self.inputs, self.targets = data.copy_bits(vectors, start_marker=False)
        self.training = training

    def provider(self, forward: Forward) -> Provider:
        """Training step or inference with ``forward``."""
        if not self.training:
            return inferred(lambda: [forward(self.model, self.inputs)])
        step = partial(self._step, forward)
        return Provider(step, step, lambda: forward(self.model, self.inputs))

    def _step(self, forward: Forward) -> list[Tensor]:
        self.model.zero_grad()
        output = forward(self.model, self.inputs)
        loss, _ = scores.bits(output[-LENGTH:], self.targets)
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return [output, *gradients]


def case(batch: int, training: bool) -> Case:
    """The copy model, this package's against both baselines."""
    p = Problem(batch, training)
    forwards: dict[str, Forward] = {REFERENCE: ntm_model.forward, STRONG: _strong, OWN: _own}
    return Case(
        {name: p.provider(forward) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(
            partial(ntm_model.run, step=torch.compile(ntm_model.step, mode=mode))
        ),
        excluded=storages_of([*p.model.parameters(), *p.model.buffers()]),
    )


def rows() -> list[Row]:
    """Training at three batch sizes and inference at batch 1."""
    return [_row("train", 16, Targets(reference=4)), *(_row("train", b) for b in (1, 64)), _row("infer", 1)]


def _row(kind: str, batch: int, targets: Targets = NO_TARGETS) -> Row:
    build = partial(case, batch, kind == "train")
    aimed = targets != NO_TARGETS
    return Row(kind, f"ntm copy B{batch}", ("ntm",), build, targets, quick=aimed, compiles=aimed)
