"""Rows of the whole Differentiable Neural Computer and of the whole RTNTM on their copy tasks.

Training is forward, loss of the answer and backward into fresh gradients. The settings are those of the tasks'
preset "quick", the sequences of 20 vectors or symbols. The references are the models as usual PyTorch code has
them: everything in the loop, of the RTNTM the whole encoder at every step. Strong eager does once for all steps
what needs no reads, around memory steps in plain PyTorch.

Letters: T steps, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import ctm_fast
from bench.baselines import dnc_model, rtntm
from bench.memory import storages_of
from bench.row import OWN, REFERENCE, STRONG, Case, Provider, Row, inferred
from tasks.dnc_copy.task import DncCopy
from tasks.ntm import data, scores
from tasks.rtntm.data import IGNORED, copy_batch
from tasks.rtntm.task import RTNTMCopy

LENGTH = 20

Forward = Callable[[Any, Tensor], Tensor]


class Machine(NamedTuple):
    """A model, its inputs and targets, the loss of its outputs, and the forwards by provider."""

    model: Any
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    forwards: dict[str, Forward]
    compiled: Callable[..., Forward]


def dnc(batch: int) -> Machine:
    """The network of dnc_copy's preset quick."""
    config = DncCopy.presets["quick"]
    bits = data.random_bits((LENGTH, batch, config.bits), torch.default_generator)
    forwards: dict[str, Forward] = {
        REFERENCE: dnc_model.usual,
        STRONG: dnc_model.strong,
        OWN: lambda model, x: model(x).output,
    }

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return scores.bits(output[-LENGTH:], targets)[0]

    def compiled(mode: str | None = None) -> Forward:
        return partial(dnc_model.usual, advance=torch.compile(dnc_model.step, mode=mode))

    return Machine(DncCopy(config).build_model(), *data.copy_bits(bits, False), loss, forwards, compiled)


def rtntm_copy(batch: int) -> Machine:
    """The network of rtntm_copy's preset quick."""
    config = RTNTMCopy.presets["quick"]
    batches = copy_batch(batch, LENGTH, config.vocabulary, torch.default_generator)
    forwards: dict[str, Forward] = {REFERENCE: _definition, STRONG: _strong, OWN: _logits}

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def compiled(mode: str | None = None) -> Forward:
        return torch.compile(_definition, mode=mode)

    return Machine(RTNTMCopy(config).build_model(), *batches, loss, forwards, compiled)


def _logits(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits


def _definition(model: Any, tokens: Tensor) -> Tensor:
    with ctm_fast.use_backend("reference"):
        return rtntm.forward(model, tokens)[0]


def _strong(model: Any, tokens: Tensor) -> Tensor:
    with ctm_fast.use_backend("reference"):
        return _logits(model, tokens)


def case(machine: Callable[[int], Machine], batch: int, training: bool) -> Case:
    """A training step or the inference of one model."""
    m = machine(batch)
    m.model.train(training)

    def step(forward: Forward) -> list[Tensor]:
        m.model.zero_grad()
        output = forward(m.model, m.inputs)
        m.loss(output, m.targets).backward()
        return [output, *(p.grad for p in m.model.parameters() if p.grad is not None)]

    def provider(forward: Forward) -> Provider:
        run = partial(forward, m.model, m.inputs)
        whole = partial(step, forward)
        return Provider(whole, whole, run) if training else inferred(lambda: [run()])

    return Case(
        {name: provider(forward) for name, forward in m.forwards.items()},
        compiled=lambda mode=None: provider(m.compiled(mode)),
        excluded=storages_of([*m.model.parameters(), *m.model.buffers()]),
    )


def rows() -> list[Row]:
    """Training at the batch size of the tasks, inference of one sequence."""
    sizes = (("train", dnc, 16), ("infer", dnc, 1), ("train", rtntm_copy, 32), ("infer", rtntm_copy, 1))
    found = []
    for kind, machine, batch in sizes:
        word = "dnc" if machine is dnc else "rtntm"
        build = partial(case, machine, batch, kind == "train")
        found.append(Row(kind, f"{word} copy B{batch}", (word,), build))
    return found
