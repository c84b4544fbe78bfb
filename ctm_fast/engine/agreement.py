"""Whether an engine computes what its model does: asked once, on the example, with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from ctm_fast.engine.engine import Engine

AGREEMENT = 1e-3  # largest relative difference


def verify(engine: Engine, model: nn.Module, example: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` where the results for the example differ: the model computes something else."""
    with torch.no_grad():
        if engine.kind == "rl":
            batch = len(example[0])
            state = example[1] if len(example) > 1 else model.initial_state(batch)  # type: ignore[operator]
            expected = [model(example[0], state)[0]]
            found: list[Any] = [engine(example[0], state).synchronisation]
            engine.reset()
        else:
            expected = list(model(*example)[:2])
            found = list(engine(*example)[:2])
    compare(expected, found)


def compare(expected: list[Any], found: list[Any]) -> None:
    """Raise ``ValueError`` where one of the arrays is not that tensor."""
    for wanted, got in zip(expected, found, strict=True):
        truth = wanted.detach().cpu().double().numpy()
        error = np.linalg.norm(got - truth) / max(np.linalg.norm(truth), np.finfo(np.float64).tiny)
        if not error <= AGREEMENT:
            reason = f"results that differ by {error:.1g} on the example"
            raise ValueError(f"Engine: model must compute the published forward, got {reason}")
