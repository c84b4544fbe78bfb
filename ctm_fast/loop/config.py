"""What a tick loop is told: its trainable tensors, and what to do at which tick.

Letters: T ticks, d input width, P action pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast.loop.seed import Seed
from ctm_fast.loop.synapses import Stage
from ctm_fast.ops.native import NO_DROPOUT

# Added to the seed: masks of different parts must not repeat each other. The synapses' layers count from 0.
ATTENTION_STREAM, NLM_STREAM = 1001, 2002


class AttentionWeights(NamedTuple):
    """Query path of the attention; keys and values are projected before the loop."""

    q_proj: Tensor  # (d, P)
    q_proj_bias: Tensor  # (d)
    query: Tensor  # (d, d), the query rows of the attention's input projection
    query_bias: Tensor  # (d)
    out: Tensor  # (d, d)
    out_bias: Tensor  # (d)
    decay: Tensor  # (P), raw decay of the action synchronisation


class Parameters(NamedTuple):
    """Everything trainable in the loop, in the order in which the autograd function takes it."""

    attention: AttentionWeights | None
    nlm: tuple[Tensor, ...]  # w1, b1, t1 and for deep models w2, b2, t2
    synapses: tuple[Tensor, ...]

    def flat(self) -> tuple[Tensor, ...]:
        return (*(self.attention or ()), *self.nlm, *self.synapses)

    def like(self, values: tuple[Tensor, ...]) -> Parameters:
        """The same structure around other tensors."""
        first = len(self.attention or ())
        second = first + len(self.nlm)
        attention = AttentionWeights(*values[:first]) if first else None
        return Parameters(attention, tuple(values[first:second]), tuple(values[second:]))


@dataclass(frozen=True)
class Loop:
    """What a forward does, apart from tensors that need gradients.

    ``inputs`` has one entry a tick: k >= 0 attends to the k-th keys and values, -1 - g takes the g-th given input.
    """

    inputs: tuple[int, ...]
    stages: tuple[Stage, ...]
    heads: int = 0
    left: Tensor | None = None  # (P) action pairs
    right: Tensor | None = None
    attention_dropout: float = 0.0
    nlm_dropout: float = 0.0
    seed: Seed | None = None  # None outside training
    recompute: bool = False  # keep no synapse activations
    track: bool = False
    backend: str = "native"  # or "triton"

    @property
    def ticks(self) -> int:
        return len(self.inputs)

    @property
    def attending(self) -> list[int]:
        """The ticks that attend."""
        return [t for t, i in enumerate(self.inputs) if i >= 0]

    @property
    def attends(self) -> bool:
        return any(i >= 0 for i in self.inputs)

    def attention_drop(self, first_row: int) -> Any:
        """The kernels' dropout arguments for the attention weights of rows from ``first_row``."""
        return self._drop(self.attention_dropout, ATTENTION_STREAM, first_row)

    def nlm_drop(self, first_row: int) -> Any:
        """The kernels' dropout arguments for the neuron-level models of rows from ``first_row``."""
        return self._drop(self.nlm_dropout, NLM_STREAM, first_row)

    def _drop(self, p: float, stream: int, first_row: int) -> Any:
        if self.seed is None or p == 0.0:
            return NO_DROPOUT
        return (p, self.seed.of(stream), first_row)


def of_ticks(ticks: list[int], x: Tensor) -> Tensor:
    """``x`` (T, ...) of these ticks, without an index that a GPU would wait for."""
    if len(ticks) == x.shape[0]:
        return x
    return torch.stack([x[t] for t in ticks]) if ticks else x[:0]
