"""Rows of the engine: the recurrent part of a CTM in inference. ``python -m bench.engine`` also measures latencies.

Every provider is fed what the recurrent part reads: tokens behind the key-value projection, or features behind the
backbone. Letters: B batch, T ticks, D neurons, M memory length, L tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ctm_fast
from bench import exporting, models
from bench.baselines import compiled, ctm, rl
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Provider, Row, Targets, inferred
from ctm_fast.models import Agent, ContinuousThoughtMachineRL, presets

BATCH = 16  # that a server may collect
CARTPOLE_5 = models.Config("cartpole 5 ticks", "cartpole_ctm_5", ("rl",), 64, models.CARTPOLE.loss)
AIMED = (
    (models.PARITY, Targets(reference=15)), (models.CIFAR10, Targets(reference=20)),
    (models.MAZES_SMALL, Targets(reference=12)), (models.CARTPOLE, Targets(reference=30)),
    (models.FOUR_ROOMS, Targets(reference=15)), (CARTPOLE_5, NO_TARGETS),
)  # fmt: skip


class Problem:
    """A model whose features are its input, an engine of it, and one input for all providers."""

    def __init__(self, config: models.Config, batch: int) -> None:
        overrides = {**config.overrides, **({"backbone_type": "none"} if config.features else {})}
        built: Any = presets.build(config.preset, **overrides).eval()
        self.stateful = isinstance(built, Agent)
        self.model: Any = built.recurrent_model if self.stateful else built
        given = (torch.randn(batch, *config.features),) if config.features else None
        (x,) = given or presets.example_inputs(config.preset, batch)
        with torch.no_grad(), ctm_fast.use_backend("reference"):
            self.state: Any = self.model.initial_state(batch) if self.stateful else None
            self.model(x, *self._more())
            x = self.model.compute_features(x)
        self.x: Tensor = x.contiguous()
        if self.stateful:
            self.model.backbone = nn.Identity()
        else:
            self.model.compute_features = _itself
        self.engine = ctm_fast.Engine(self.model, (self.x, *self._more()))
        self.array = self.x.numpy()

    def _more(self) -> tuple[Any, ...]:
        return (self.state,) if self.stateful else ()

    def reference(self) -> Sequence[Tensor]:
        """The published forward."""
        with ctm_fast.use_backend("reference"):
            return _flat(self.model(self.x, *self._more()))

    def strong(self) -> Sequence[Tensor]:
        """The same mathematics as plain PyTorch does it well."""
        if not self.stateful:
            return ctm.base(self.model, self.x)
        agent: Any = _AgentOf(self.model)
        output, state = rl.steps(agent, self.x, self.state, torch.zeros(len(self.x)))
        return _flat((output, state))

    def own(self) -> Sequence[Tensor]:
        """The engine, with its results as tensors."""
        if self.stateful:
            self.engine.set_state(self.state)
            output, state = self.engine.step(self.array)
            return [torch.from_numpy(x) for x in (output, *state)]
        found = self.engine(self.array)
        return [torch.from_numpy(x) for x in (found.predictions, found.certainties, found.synchronisation)]

    def call(self, engine: ctm_fast.Engine | None = None) -> Callable[[], object]:
        """One call of this engine, or of another, as a control loop makes it."""
        called = engine or self.engine
        return partial(called.step if self.stateful else called, self.array)

    def narrow(self, weights: str) -> ctm_fast.Engine:
        """An engine with weights of this width."""
        return ctm_fast.Engine(self.model, (self.x, *self._more()), weights=weights)

    def compiled(self) -> Sequence[Tensor]:
        """torch.compile of the reference's tick, for RL of its forward."""
        if not self.stateful:
            return compiled.base(self.model, self.x, tick=_compiled_tick())
        forward = torch.compile(ContinuousThoughtMachineRL.published_forward)
        return _flat(forward(self.model, self.x, self.state))

    def exported(self) -> exporting.Exportable:
        """The reference's tick, the loop around it as published; of a model for RL the whole forward."""
        if self.stateful:
            arguments = (self.x, *(x.detach() for x in self.state))
            return exporting.Exportable(
                _Whole(self.model), arguments, lambda run: inferred(lambda: run(*arguments))
            )
        given: list[tuple[Tensor, ...]] = []

        def first(model: Any, kv: Tensor, z: Tensor, trace: Tensor, action: Any, out: Any, r: Any) -> Any:
            given.append((kv, z, trace, *action, *out, *r))
            return compiled.base_tick(model, kv, z, trace, action, out, r)

        def provider(run: exporting.Run) -> Provider:
            def tick(_: Any, kv: Tensor, z: Tensor, trace: Tensor, action: Any, out: Any, r: Any) -> Any:
                z, trace, a0, a1, o0, o1, *read = run(kv, z, trace, *action, *out, *r)
                return z, trace, (a0, a1), (o0, o1), *read

            return inferred(lambda: compiled.base(self.model, self.x, tick=tick))

        with torch.no_grad(), ctm_fast.use_backend("reference"):
            compiled.base(self.model, self.x, tick=first)
        return exporting.Exportable(_Tick(self.model), tuple(x.detach().clone() for x in given[0]), provider)

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of weights that a call reads, tick by tick, and bytes of all weights."""
        recipe = self.engine._recipe
        arrays = {name: x.nbytes for name, x in recipe.arrays.items()}
        once = sum(arrays[name] for name in ("from_given", "keys_values", "project") if name in arrays)
        every = sum(arrays.values())
        return once + recipe.sizes.ticks * (every - once), every


class _AgentOf:
    """What strong eager reads of an agent."""

    def __init__(self, model: Any) -> None:
        self.recurrent_model = model


class _Whole(nn.Module):
    """A step of a model for RL: output and histories."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, pre: Tensor, post: Tensor) -> list[Tensor]:
        return _flat(self.model.published_forward(x, (pre, post)))


class _Tick(nn.Module):
    """``bench.baselines.compiled.base_tick`` on flat tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        kv: Tensor,
        z: Tensor,
        trace: Tensor,
        a0: Tensor,
        a1: Tensor,
        o0: Tensor,
        o1: Tensor,
        r0: Tensor,
        r1: Tensor,
    ) -> list[Tensor]:
        z, trace, action, out, *read = compiled.base_tick(
            self.model, kv, z, trace, (a0, a1), (o0, o1), (r0, r1)
        )
        return [z, trace, *action, *out, *read]


def _itself(x: Tensor) -> Tensor:
    return x


def _compiled_tick() -> Any:
    return torch.compile(compiled.base_tick)


def _flat(found: Any) -> list[Tensor]:
    """The first tensors of a forward: predictions, certainties, synchronisation; or output and histories."""
    first, second, *rest = found
    return [first, *second] if isinstance(second, tuple) else [first, second, *rest]


def case(config: models.Config, batch: int) -> Case:
    """Inference of one model's recurrent part."""
    p = Problem(config, batch)
    providers = {name: inferred(run) for name, run in ((REFERENCE, p.reference), (STRONG, p.strong))}
    own = Provider(p.call(), lambda: [*p.own()])
    return Case({**providers, OWN: own}, lambda: inferred(p.compiled), exported=p.exported())


def rows() -> list[Row]:
    """One sample, where a control loop is, and the batch that a server may collect."""
    one = [_row(config, 1, targets) for config, targets in AIMED]
    return one + [_row(config, BATCH, NO_TARGETS) for config, _ in AIMED]


def _row(config: models.Config, batch: int, targets: Targets) -> Row:
    name, words = f"{config.title} B{batch}", (*config.words, "engine")
    return Row("engine", name, words, partial(case, config, batch), targets, compiles=batch == 1)


if __name__ == "__main__":
    from bench import engine_run

    sys.exit(engine_run.main())
