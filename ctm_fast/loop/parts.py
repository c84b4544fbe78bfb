"""What the tick loop is made of on each backend."""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import torch

from ctm_fast.loop.attention import Attention
from ctm_fast.loop.synapses import SynapseGradients, Synapses
from ctm_fast.ops.linear import outer, outer_product
from ctm_fast.ops.nlm import autograd as nlm

FUSED_ROWS = 16  # with fewer rows a tick, weight gradients of the neuron-level models wait for all ticks


class LoopParts(NamedTuple):
    """The classes and modules that run the parts of a tick."""

    attention: type[Attention]
    synapses: type[Synapses]
    gradients: type[SynapseGradients]
    nlm: Any  # a module with the functions of ``ctm_fast.ops.nlm.autograd.kernels_of``
    outer: Any  # the product that gives a weight's gradient
    fused_rows: float  # rows of a tick from which it adds to the weight gradients of the neuron-level models


@functools.cache
def loop_parts(backend: str, device: torch.device) -> LoopParts:
    """Those of "native" or "triton", the latter imported when it is first asked for."""
    if backend == "native":
        return LoopParts(Attention, Synapses, SynapseGradients, nlm, outer, FUSED_ROWS)
    own = importlib.import_module("ctm_fast.loop.triton")
    return LoopParts(
        own.DeviceAttention, own.DeviceSynapses, own.DeviceSynapseGradients, nlm.kernels_of(backend, device),
        outer_product, float("inf"),
    )  # fmt: skip
