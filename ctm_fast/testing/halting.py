"""Inputs and cases of ``ops.halting_weights`` and ``ops.halting_mean``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.testing.contract import OPS, Inputs, Op, OpCase


def _samples(rows: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random samples, so some have no row and some many."""
    return torch.randint(0, max(batch, 1), (rows,), generator=generator)


def weights_inputs(rows: int, batch: int, *, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Arguments of ``ops.halting_weights``: no sum comes near a threshold of 0.99."""
    probabilities = torch.rand(rows, generator=generator) * 0.6
    probabilities[probabilities > 0.3] += 0.3  # steps of very different size
    return {"probabilities": probabilities.to(dtype), "samples": _samples(rows, batch, generator)}


def mean_inputs(
    rows: int, width: int, batch: int, *, dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    """Arguments of ``ops.halting_mean``."""
    return {
        "values": torch.randn(rows, width, generator=generator).to(dtype),
        "weights": torch.rand(rows, generator=generator).to(dtype),
        "samples": _samples(rows, batch, generator),
    }


def _weights_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*inputs.values(), options["batch"], options.get("epsilon", 0.01), options.get("force_halt", True))


def _mean_arguments(inputs: Inputs, options: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*inputs.values(), options["batch"])


OPS["halting_weights"] = Op(ops.halting_weights, weights_inputs, ("weights", "ponder"), _weights_arguments)
OPS["halting_mean"] = Op(ops.halting_mean, mean_inputs, ("mean",), _mean_arguments)

CASES = (
    OpCase("halting_weights", "forced", (40, 9), {"batch": 9}),
    OpCase("halting_weights", "unforced", (40, 9), {"batch": 9, "force_halt": False}),
    OpCase("halting_weights", "one-sample", (30, 1), {"batch": 1}),
    OpCase("halting_weights", "one-row-each", (5, 5), {"batch": 64}),
    OpCase("halting_weights", "half-is-enough", (60, 20), {"batch": 20, "epsilon": 0.5}),
    OpCase("halting_weights", "no-rows", (0, 3), {"batch": 3}),
    OpCase("halting_mean", "vectors", (30, 64, 7), {"batch": 7}),
    OpCase("halting_mean", "odd-width", (30, 37, 7), {"batch": 7}),
    OpCase("halting_mean", "two-column-blocks", (20, 261, 3), {"batch": 3}),
    OpCase("halting_mean", "one-of-all", (1, 1, 1), {"batch": 1}),
    OpCase("halting_mean", "no-rows", (0, 5, 3), {"batch": 3}),
    OpCase("halting_mean", "no-columns", (4, 0, 3), {"batch": 3}),
)

SMALL = (
    OpCase("halting_weights", "forced", (9, 3), {"batch": 3}),
    OpCase("halting_weights", "unforced", (9, 3), {"batch": 3, "force_halt": False}),
    OpCase("halting_mean", "all", (5, 3, 2), {"batch": 2}),
)

EXTREME = (OpCase("halting_mean", "all", (30, 37, 7), {"batch": 7}),)
