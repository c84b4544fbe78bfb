"""Whether an engine computes what its model does: asked once, of the example, with torch.

What no example shows: branches of the model that these inputs do not take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ctm_fast.engine.engine import Engine

TINY = float(np.finfo(np.float32).tiny)
AGREEMENT = 1e-4  # largest relative difference of an output; rounding alone gives about 1e-7
PRECISIONS = (torch.float32, torch.float64)

Case = tuple[tuple[Any, ...], list[Any]]  # arguments of the forward, and what it gives


def require_precision(model: nn.Module) -> None:
    """Raise ``ValueError`` where a model's own rounding would hide whether an engine computes the same."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype not in PRECISIONS:
            raise ValueError(
                f"Engine: model must be in float32 or float64 (model.float()), got {parameter.dtype}"
            )


def cases(run: Callable[..., list[Any]], example: tuple[Any, ...], batch_dim: int = 0) -> list[Case]:
    """The example and, where it holds several samples, the first of them alone, with what ``run`` gives for them.

    Raises ``ValueError`` where it takes no such arguments.
    """
    found = [example]
    if example[0].shape[batch_dim] > 1:
        found.append(_first(example, batch_dim))
    return [(arguments, _run(run, arguments)) for arguments in found]


def _first(x: Any, dim: int) -> Any:
    return tuple(_first(part, dim) for part in x) if isinstance(x, tuple) else x.narrow(dim, 0, 1)


def _run(run: Callable[..., list[Any]], arguments: tuple[Any, ...]) -> list[Any]:
    try:
        with torch.no_grad():
            return run(*arguments)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = tuple(arguments[0].shape)
        raise ValueError(
            f"Engine: example_inputs must be what the model takes, got shape {shape}: {error}"
        ) from error


def outputs(model: Any, kind: str, *arguments: Any) -> list[Any]:
    """What a model gives: for reinforcement learning output and histories after each of two steps."""
    if kind != "rl":
        return list(model(*arguments)[:3])
    x = arguments[0]
    first, state = model(x, arguments[1] if len(arguments) > 1 else model.initial_state(len(x)))
    second, last = model(x, state)
    return [first, *state, second, *last]


def verify(engine: Engine, model: Any, expected: list[Case]) -> None:
    """Raise ``ValueError`` where the engine's outputs are others: the model computes something else."""
    for arguments, wanted in expected:
        compare(wanted, _outputs_of_engine(engine, model, *arguments))


def _outputs_of_engine(engine: Engine, model: Any, *arguments: Any) -> list[np.ndarray]:
    if engine.kind == "rl":
        x = arguments[0]
        start = arguments[1] if len(arguments) > 1 else model.initial_state(len(x))
        first, state = engine(x, start).synchronisation, engine.get_state()
        second, last = engine.step(x)
        engine.reset()
        return [first, *state, second, *last]
    found = engine(*arguments)
    assert found.predictions is not None and found.certainties is not None
    third = found.synchronisation if found.energies is None else found.energies
    return [found.predictions, found.certainties, third]


def compare(expected: list[Any], found: list[Any]) -> None:
    """Raise ``ValueError`` where one of the arrays is not that tensor."""
    must = "Engine: model must compute the published forward, got"
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in expected]
    if shapes != [x.shape for x in found]:
        raise ValueError(f"{must} results {shapes} where {[x.shape for x in found]} belong")
    for wanted, got in zip(expected, found, strict=True):
        truth = wanted.detach().cpu().double().numpy()
        flushed = TINY * math.sqrt(truth.size)  # what taking denormal numbers for zero may change
        error = np.linalg.norm(got - truth) / max(float(np.linalg.norm(truth)), flushed / AGREEMENT)
        if not error <= AGREEMENT:
            raise ValueError(f"{must} results that differ by {error:.1g} on the example")
