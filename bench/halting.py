"""Rows of recurrent networks with adaptive computation time: training steps and inference.

Training is forward, a loss of outputs and ponder, and backward into fresh gradients. The sizes are those of
arXiv 1603.08983, parity's also that of a larger network run later. The halting unit is not at its start, where
all samples take two substeps: they take two to nine, four or five in the mean.

Letters: T timesteps, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.baselines import halting as plain
from bench.flops import counted
from bench.memory import storages_of
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred
from ctm_fast import ops
from ctm_fast.models import presets

HALTING_BIAS, HALTING_SCALE, MAX_STEPS = -1.0, 3.0, 20

Forward = Callable[[Any, Tensor], plain.Found]


class Config(NamedTuple):
    """A preset at its published batch size."""

    title: str
    preset: str
    batch: int


PARITY = Config("parity RNN128", "adaptive_parity_paper", 128)
LOGIC = Config("logic LSTM128", "adaptive_logic_paper", 16)
ADDITION = Config("addition LSTM512", "adaptive_addition_paper", 32)
SORT = Config("sort LSTM512", "adaptive_sort_paper", 16)
LARGE = Config("parity RNN2000", "adaptive_parity", 128)


def own(model: Any, x: Tensor) -> plain.Found:
    """This package's forward."""
    found = model(x)
    return found.output, found.ponder


def timestep(model: Any, x: Tensor) -> plain.Found:
    """One timestep (1, B, I) around ``ops.adaptive_halting``, written as strong eager is."""
    weight, flag = model.cell.weight_ih[:, :-1], model.cell.weight_ih[:, -1]
    recurrent, halting = model.cell.weight_hh.t(), model.halting.weight[0]

    def step(gates: Tensor, state: plain.State, first: bool) -> tuple[tuple[()], plain.State, Tensor]:
        state = plain.cell_update(torch.addmm(gates + flag if first else gates, state[0], recurrent), state)
        return (), state, torch.sigmoid(torch.addmv(model.halting.bias, state[0], halting))

    gates = F.linear(x[0], weight, model.cell.bias_ih + model.cell.bias_hh)
    limits = {"epsilon": model.epsilon, "max_steps": model.max_steps}
    found = ops.adaptive_halting(step, gates, plain.start(model, x), **limits)
    return model.readout(found.state[0]).unsqueeze(0), found.ponder.unsqueeze(0)


class Problem:
    """A network whose samples take different numbers of substeps, and random inputs (T, B, I)."""

    def __init__(self, config: Config, training: bool, **overrides: Any) -> None:
        overrides = {"halting_bias": HALTING_BIAS, "max_steps": MAX_STEPS, **overrides}
        self.model: Any = presets.build(config.preset, **overrides)
        with torch.no_grad():
            self.model.halting.weight.mul_(HALTING_SCALE)
        shape = presets.example_inputs(config.preset, config.batch)[0].shape
        self.inputs = 1.5 * torch.randn(shape if len(shape) == 3 else (1, *shape))
        self.training = training

    def provider(self, forward: Forward) -> Provider:
        """Training step or inference with ``forward``."""
        if not self.training:
            return inferred(lambda: forward(self.model, self.inputs))
        step = partial(self._step, forward)
        return Provider(step, step, lambda: forward(self.model, self.inputs))

    def _step(self, forward: Forward) -> list[Tensor]:
        self.model.zero_grad()
        output, ponder = forward(self.model, self.inputs)
        (output.square().mean() + 0.01 * ponder.mean()).backward()
        return [output, ponder, *(p.grad for p in self.model.parameters())]

    def needed(self) -> float:
        """Products of every sample up to its own halt, beside those of all samples up to the last one's."""
        samples = self.inputs.split(1, dim=1)
        return sum(map(self._products, samples)) / self._products(self.inputs)

    def _products(self, inputs: Tensor) -> int:
        with torch.no_grad():
            return counted(lambda: plain.strong(self.model, inputs))[1]


def case(config: Config, training: bool, forward: Forward = own, **overrides: Any) -> Case:
    """A training step or the inference of one network; with :func:`timestep` of its first timestep alone."""
    p = Problem(config, training, **overrides)
    if forward is timestep:
        p.inputs = p.inputs[:1]
    forwards: dict[str, Forward] = {REFERENCE: plain.usual, STRONG: plain.strong, OWN: forward}
    return Case(
        {name: p.provider(forward) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(
            partial(plain.usual, step=torch.compile(plain.substep, mode=mode))
        ),
        needed=p.needed(),
        excluded=storages_of([*p.model.parameters(), *p.model.buffers()]),
    )


def rows() -> list[Row]:
    """Training of all networks and inference of two; and one timestep of two around the op itself."""
    aimed = Targets(reference=3)
    return [
        *(_row("train", config, aimed) for config in (PARITY, LOGIC, ADDITION, SORT)),
        _row("train", LARGE),
        *(_row("infer", config) for config in (PARITY, LOGIC)),
        *(_row(f"adaptive-halting{way}", config) for config in (PARITY, LOGIC) for way in ("", "-train")),
    ]


def _row(kind: str, config: Config, targets: Targets = NO_TARGETS) -> Row:
    forward = timestep if kind.startswith("adaptive-halting") else own
    build = partial(case, config, kind.endswith("train"), forward)
    name = f"adaptive {config.title} B{config.batch}"
    short = kind == "train" and config is LOGIC
    return Row(kind, name, ("halting", "adaptive"), build, targets, quick=short, compiles=short)
