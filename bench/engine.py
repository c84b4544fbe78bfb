"""Rows of the engine: the recurrent part of a CTM in inference; and the latency of a call, ``python -m bench.engine``.

Every provider is fed what the recurrent part reads: tokens behind the key-value projection, or features behind the
backbone. Letters: B batch, T ticks, D neurons, M memory length, L tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ctm_fast
from bench import machine, models, timing
from bench.baselines import compiled, ctm, rl
from bench.row import NO_TARGETS, OWN, REFERENCE, STRONG, Case, Json, Provider, Row, Targets, inferred
from ctm_fast.models import Agent, ContinuousThoughtMachineRL, presets

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
LEAST_CALLS = 10_000  # for a p99.9
RESULTS = Path("outputs") / "bench-engine.json"

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

    def call(self) -> Callable[[], object]:
        """One call as a control loop makes it."""
        return partial(self.engine.step if self.stateful else self.engine, self.array)

    def compiled(self) -> Sequence[Tensor]:
        """torch.compile of the reference's tick, for RL of its forward."""
        if not self.stateful:
            return compiled.base(self.model, self.x, tick=_compiled_tick())
        forward = torch.compile(ContinuousThoughtMachineRL.published_forward)
        return _flat(forward(self.model, self.x, self.state))

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
    return Case({**providers, OWN: own}, lambda: inferred(p.compiled))


def rows() -> list[Row]:
    """One sample, where a control loop is, and the batch that a server may collect."""
    one = [_row(config, 1, targets) for config, targets in AIMED]
    return one + [_row(config, 16, NO_TARGETS) for config, _ in AIMED]


def _row(config: models.Config, batch: int, targets: Targets) -> Row:
    name, words = f"{config.title} B{batch}", (*config.words, "engine")
    return Row("engine", name, words, partial(case, config, batch), targets)


def latencies(run: Callable[[], object], calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every call, and of an empty loop of the same median length between them, (calls,) each."""
    for _ in range(max(3, calls // 100)):
        run()
    length = float(np.median([timing.seconds_per_call(run, 1) for _ in range(max(5, calls // 100))]))
    own, empty = np.empty(calls), np.empty(calls)
    with timing.only_new_garbage():
        for i in range(calls):
            own[i] = timing.seconds_per_call(run, 1)
            empty[i] = timing.seconds_per_call(partial(_spin, length), 1)
    return own, empty


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def read_rate(count: int) -> float:
    """Bytes/s at which this thread sums ``count`` bytes, again and again: what a cache of that size gives."""
    x = torch.zeros(max(count // 4, 1))
    repetitions = max(3, 20_000_000 // count)
    return count / min(timing.seconds_per_call(x.sum, repetitions) for _ in range(5))


def measure(config: models.Config, calls: int) -> Json:
    """Latency of one model at batch 1, in microseconds, and its share of what reading its weights takes."""
    torch.manual_seed(0)
    problem = Problem(config, 1)
    own, empty = latencies(problem.call(), calls)
    total, every = problem.weight_bytes()
    floor = total / read_rate(every)
    found: Json = {"name": config.title, "calls": calls, "load": machine.load(), "weight_bytes": total}
    names = {name: q for name, q in QUANTILES.items() if q != 0.999 or calls >= LEAST_CALLS}
    for kind, seconds in (("engine", own), ("spin", empty)):
        found[kind] = {name: float(np.quantile(seconds, q)) * 1e6 for name, q in names.items()}
    return {**found, "floor": floor * 1e6, "share": floor / float(np.median(own))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a model and write all as JSON."""
    command = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    command.add_argument("names", nargs="*", help="models by their word or title, all by default")
    command.add_argument("--calls", type=int, default=LEAST_CALLS, help="calls of each model")
    command.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    options = command.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [c for c, _ in AIMED if not options.names or {c.title, *c.words} & {*options.names}]
    if not chosen or options.calls < 1:
        command.error("names must be titles or words of models, calls at least 1")
    results = []
    for config in chosen:
        results.append(measure(config, options.calls))
        sys.stdout.write(line(results[-1]) + "\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine.describe(None), "rows": results}, indent=1) + "\n")
    return 0


def line(result: Json) -> str:
    """One model's latencies as text."""
    times = ", ".join(f"{name} {value:.1f}" for name, value in result["engine"].items())
    spread = ", ".join(f"{name} {value:.1f}" for name, value in result["spin"].items())
    return (
        f"{result['name']}: {times} us over {result['calls']} calls (empty loop: {spread}); reading the weights "
        f"takes {result['floor']:.1f} us, {result['share']:.0%} of it"
    )


if __name__ == "__main__":
    sys.exit(main())
