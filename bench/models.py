"""Rows of whole models: training steps and inference.

Training is forward, loss and backward into fresh gradients; the optimiser, the same for everybody, is left
out. So are the image backbones, unless the row says "with backbone": the models are fed features of the shape
that their backbone gives, and these get gradients too.

Letters: B batch, T ticks, C outputs, K environment steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ctm_fast
from bench import losses
from bench.baselines import compiled, ctm, rl
from bench.memory import hook_bytes, storages_of
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred
from ctm_fast.models import Agent, ContinuousThoughtMachineRL, presets

RL_STEPS = 10

Forward = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Config:
    """A published model at one batch size.

    Attributes:
        title: name in the table.
        preset: name in ``ctm_fast.models.presets``.
        words: what selects its rows on the command line.
        batch: B of training, and of inference "at batch".
        loss: makes the training loss for B samples.
        features: shape of one sample's features (C, H, W) where the backbone is left out.
        overrides: arguments that differ from the preset's.
    """

    title: str
    preset: str
    words: tuple[str, ...]
    batch: int
    loss: Callable[[int], losses.Loss]
    features: tuple[int, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Which forward it has: "base", "sort" or "rl"."""
        if presets.get_preset(self.preset).actions:
            return "rl"
        return "sort" if self.preset.startswith("sort") else "base"


def _published(model: Any, *inputs: Tensor) -> Sequence[Tensor]:
    with ctm_fast.use_backend("reference"):
        return _own(model, *inputs)


def _own(model: Any, *inputs: Tensor) -> Sequence[Tensor]:
    return _steps(model.get_states, *inputs) if isinstance(model, Agent) else model(*inputs)


def _recomputing(model: Any, *inputs: Tensor) -> Sequence[Tensor]:
    model.recompute_synapses = True
    outputs = model(*inputs)
    del model.recompute_synapses
    return outputs


def _steps(run: Callable[..., Any], x: Tensor, pre: Tensor, post: Tensor, done: Tensor) -> Sequence[Tensor]:
    features, state = run(x, (pre, post), done)
    return features, *state


def _strong_rl(model: Any, *inputs: Tensor) -> Sequence[Tensor]:
    return _steps(partial(rl.steps, model), *inputs)


STRONG_FORWARDS: dict[str, Forward] = {"base": ctm.base, "sort": ctm.sort, "rl": _strong_rl}


class Problem:
    """A model with every lazy size known, a copy no forward has run on, and fresh random inputs."""

    def __init__(self, config: Config, batch: int, training: bool) -> None:
        self.config, self.batch, self.training = config, batch, training
        overrides = {**config.overrides, **({"backbone_type": "none"} if config.features else {})}
        self.model: Any = presets.build(config.preset, **overrides)
        self.inputs = self._inputs()
        with torch.no_grad(), self._iterations(1):
            _published(self.model, *self.inputs)
        self.model.train(training)
        self.pristine = deepcopy(self.model)
        self.loss = config.loss(batch)
        self.leaves = [*self.model.parameters(), *(x for x in self.inputs if x.requires_grad)]

    def _inputs(self) -> tuple[Tensor, ...]:
        if self.config.features:
            return (torch.randn(self.batch, *self.config.features, requires_grad=self.training),)
        if self.config.kind != "rl":
            return presets.example_inputs(self.config.preset, self.batch)
        rows = self.batch * (RL_STEPS if self.training else 1)
        state = (torch.randn_like(s) for s in self.model.get_initial_state(self.batch))
        return (*presets.example_inputs(self.config.preset, rows), *state, (torch.rand(rows) < 0.1).float())

    @property
    def recurrent(self) -> Any:
        """The CTM itself."""
        return self.model.recurrent_model if self.config.kind == "rl" else self.model

    @contextmanager
    def _iterations(self, ticks: int) -> Iterator[None]:
        before = self.recurrent.iterations
        self.recurrent.iterations = ticks
        yield
        self.recurrent.iterations = before

    def kept_estimate(self) -> float:
        """Bytes that the reference would keep, from the growth between two and three ticks."""

        def at(ticks: int) -> int:
            with self._iterations(ticks):
                return hook_bytes(lambda: _published(self.model, *self.inputs))

        two, three = at(2), at(3)
        return two + (three - two) * (self.recurrent.iterations - 2.0)

    def provider(self, forward: Forward) -> Provider:
        """Training step or inference with ``forward``."""
        if not self.training:
            return inferred(lambda: forward(self.model, *self.inputs))
        return Provider(
            partial(self._step, forward),
            partial(self._check, forward),
            lambda: forward(self.pristine, *self.inputs),
        )

    def captured(self) -> Provider:
        """The work in CUDA graphs by ``ctm_fast.capture``; the comparison, without dropout, has graphs of its own."""
        timed, compared = (self._twin().provider(_own) for _ in range(2))
        return Provider(timed.run, compared.check)

    def _twin(self) -> Problem:
        """The same problem on a captured copy of the model."""
        twin = copy(self)
        twin.model = ctm_fast.capture(deepcopy(self.pristine), *self.inputs)
        twin.leaves = [*twin.model.parameters(), *(x for x in self.inputs if x.requires_grad)]
        return twin

    def _step(self, forward: Forward) -> None:
        self._backward(self.loss(self.model, forward(self.model, *self.inputs)))

    def _check(self, forward: Forward) -> list[Tensor]:
        """Outputs and gradients without dropout, through a loss that chooses no tick."""
        dropped = [m for m in self.model.modules() if isinstance(m, nn.Dropout | nn.MultiheadAttention)]
        for module in dropped:
            module.eval()
        outputs = list(forward(self.model, *self.inputs))
        sums = [
            (x * torch.cos(torch.arange(x.numel(), device=x.device)).view(x.shape)).sum() for x in outputs
        ]
        self._backward(torch.stack(sums).sum())
        self.model.train()
        return [*outputs, *(torch.zeros_like(x) if x.grad is None else x.grad for x in self.leaves)]

    def _backward(self, loss: Tensor) -> None:
        for leaf in self.leaves:
            leaf.grad = None
        loss.backward()


def case(config: Config, batch: int, training: bool, own: Forward = _own) -> Case:
    """A training step or the inference of one model, ``own`` against the baselines."""
    p = Problem(config, batch, training)
    forwards = {REFERENCE: _published, STRONG: STRONG_FORWARDS[config.kind], OWN: own}
    return Case(
        {name: p.provider(forward) for name, forward in forwards.items()},
        compiled=lambda mode=None: p.provider(compiled_forward(config.kind, mode)),
        estimate=p.kept_estimate if training and config.kind != "rl" else None,
        excluded=storages_of([*p.pristine.parameters(), *p.pristine.buffers()]),
        leaves=p.leaves,
        captured=p.captured,
    )


def compiled_forward(kind: str, mode: str | None = None) -> Forward:
    """The published forward around a compiled tick body, or for RL (T <= 10) the whole loop compiled."""
    if kind == "base":
        return partial(compiled.base, tick=torch.compile(compiled.base_tick, mode=mode))
    if kind == "sort":
        return partial(compiled.sort, tick=torch.compile(compiled.sort_tick, mode=mode))
    whole = torch.compile(ContinuousThoughtMachineRL.published_forward, mode=mode)

    def steps(agent: Any, *inputs: Tensor) -> Sequence[Tensor]:
        return _own(compiled.with_forward(agent, whole), *inputs)

    return steps


PARITY = Config("parity 75/25", "parity_ctm_75_25", ("parity",), 8, losses.parity)
CIFAR10 = Config("cifar10", "cifar10_ctm", ("cifar10",), 16, partial(losses.classes, 10), (64, 16, 16))
MAZES_SMALL = Config(
    "mazes small", "mazes_small", ("mazes",), 8, partial(losses.mazes, 50), (64, 8, 8), {"dropout": 0.0}
)
SORT = Config("sort", "sort_ctm", ("sort",), 32, losses.sort)
CIFAR10_IMAGES = Config("cifar10 with backbone", "cifar10_ctm", ("cifar10",), 16, partial(losses.classes, 10))
MAZES = Config("mazes published", "mazes_large", ("mazes",), 4, partial(losses.mazes, 100), (128, 10, 10))
IMAGENET = Config(
    "imagenet recurrent part", "imagenet_ctm", ("imagenet",), 2, partial(losses.classes, 1000), (2048, 14, 14)
)
CARTPOLE = Config("cartpole", "cartpole_ctm_2", ("rl",), 64, losses.policy)
FOUR_ROOMS = Config("4rooms", "4rooms_ctm_2", ("rl",), 64, losses.policy)

TARGETS = {  # training step, inference at batch 1
    PARITY.title: (Targets(reference=10, kept=1 / 20), Targets(reference=10)),
    CIFAR10.title: (Targets(reference=6, kept=1 / 10), Targets(reference=8)),
    MAZES_SMALL.title: (Targets(reference=6, kept=1 / 12), Targets(reference=8)),
    SORT.title: (Targets(reference=3), Targets(reference=5)),
}


def rows() -> list[Row]:
    """All rows of whole models; at the published batch the reference keeps more than is allowed."""
    aimed = (PARITY, CIFAR10, MAZES_SMALL, SORT)
    others = (CIFAR10_IMAGES, MAZES, IMAGENET, CARTPOLE, FOUR_ROOMS)
    return [
        *(_row("train", c, c.batch, TARGETS[c.title][0]) for c in aimed),
        _recomputing_row(MAZES_SMALL, Targets(kept=1 / 20)),
        *(_row("train", c, c.batch) for c in others),
        *(_row("train", c, batch) for c, batch in ((CIFAR10, 512), (MAZES, 64))),
        *(_row("infer", c, 1, TARGETS[c.title][1]) for c in aimed),
        *(_row("infer", c, 1) for c in others),
        *(_row("infer", c, c.batch) for c in (*aimed, *others)),
    ]


def _row(kind: str, config: Config, batch: int, targets: Targets = NO_TARGETS) -> Row:
    build = partial(case, config, batch, kind == "train")
    aimed = targets != NO_TARGETS
    name = f"{config.title} B{batch}"
    return Row(kind, name, config.words, build, targets, quick=aimed, compiles=aimed or config is CARTPOLE)


def _recomputing_row(config: Config, targets: Targets) -> Row:
    """Training that keeps no synapse activations: pays where the synapses are a deep U-Net."""
    build = partial(case, config, config.batch, True, _recomputing)
    return Row("train-recompute", f"{config.title} B{config.batch}", config.words, build, targets)
