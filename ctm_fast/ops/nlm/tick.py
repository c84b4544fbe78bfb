"""The loop form of ``nlm``: weights packed once, a write-once history, one call per tick.

Autograd keeps per tick nothing but the new pre-activation, in the history itself. The gradients of the history and
of the post-activations of all ticks travel backward through the chain of ticks in one buffer, so the weight
gradients are computed once, over all ticks, when that buffer reaches the pack.

The buffer is carried as the gradient of a stand-in tensor, the history's state after each tick: shape
(2, M + T, B, D), no memory of its own. Plane 0 of its gradient belongs to the history's rows, plane 1 to the
post-activations. That makes partial losses, retain_graph, checkpointing and interleaved forwards right by
construction: the chain is an ordinary part of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import NO_DROPOUT, Drop, drop_args
from ctm_fast.ops.nlm import autograd, reference
from ctm_fast.ops.nlm.arguments import Weights, as_seed, check_dropout, check_weights


class NlmPack:
    """Weights of neuron-level models, ready for :func:`nlm_tick`; made by :func:`nlm_pack`."""

    def __init__(self, weights: Weights, backend: str) -> None:
        self.weights = weights
        self.backend = backend
        self.memory, outputs, self.neurons = weights[0].shape
        self.hidden = outputs // 2
        self.packed: Tensor | None = _Pack.apply(*weights) if backend == "native" else None

    def history(
        self, start: Tensor, batch: int, ticks: int, *, dropout: float = 0.0, seed: int | Tensor | None = None
    ) -> NlmHistory:
        """An empty history of ``ticks`` ticks for ``batch`` samples.

        Args:
            start: pre-activations before the first tick, (D, M), newest last; of the weights' dtype.
            batch, ticks: B >= 0 and T >= 1.
            dropout, seed: as in :func:`ctm_fast.ops.nlm`; every tick draws its own mask.
        """
        start = checks.floating("nlm_tick", "start", start)
        checks.shape("nlm_tick", "start", start, (self.neurons, self.memory), "D, M")
        checks.like("nlm_tick", "start", start, "w1", self.weights[0], (self.weights[0].dtype,))
        if batch < 0 or ticks < 1:
            raise ValueError(f"nlm_tick: batch must be >= 0 and ticks >= 1, got {batch} and {ticks}")
        check_dropout(dropout)
        return NlmHistory(self, start, batch, ticks, dropout, as_seed(seed) if dropout > 0.0 else None)


class NlmHistory:
    """Pre-activations of all ticks, written once each: ``history[t] = s``, then ``nlm_tick(packed, history, t)``."""

    def __init__(
        self, packed: NlmPack, start: Tensor, batch: int, ticks: int, dropout: float, seed: Tensor | None
    ) -> None:
        self.packed, self.batch, self.ticks = packed, batch, ticks
        self.dropout, self.seed = dropout, seed
        self.drop = drop_args(dropout, seed)
        self.written: list[Tensor | None] = [None] * ticks
        self._grad_mode: list[bool | None] = [None] * ticks
        self.start = start
        self.states: list[Tensor | None] = [None] * (ticks + 1)
        if packed.backend == "native":
            self.rows = start.new_empty(packed.memory + ticks, batch, packed.neurons)
            self.rows[: packed.memory] = start.detach().t().unsqueeze(1)
            self.states[0] = _Start.apply(packed.packed, start, self)

    def __setitem__(self, t: int, pre_activation: Tensor) -> None:
        """Write the pre-activations (B, D) of tick ``t``; a checkpoint may write the same tick again."""
        if not 0 <= t < self.ticks:
            raise IndexError(f"nlm_tick: t must be in [0, {self.ticks}), got {t}")
        s = checks.floating("nlm_tick", "pre_activation", pre_activation)
        checks.shape("nlm_tick", "pre_activation", s, (self.batch, self.packed.neurons), "B, D")
        checks.like("nlm_tick", "pre_activation", s, "w1", self.packed.weights[0], (self.packed.weights[0].dtype,))
        if self._grad_mode[t] not in (None, torch.is_grad_enabled()):
            raise RuntimeError("nlm_tick: reentrant checkpointing would lose gradients, use use_reentrant=False")
        self._grad_mode[t] = torch.is_grad_enabled()
        self.written[t] = s

    def window(self, t: int) -> Tensor:
        """(B, D, M): what the neurons see at tick ``t``, through autograd; used by the reference backend."""
        start = self.start.t().unsqueeze(1).expand(-1, self.batch, -1)
        rows = [*start.unbind(0), *(x for x in self.written[: t + 1] if x is not None)]
        return torch.stack(rows[t + 1 : t + 1 + self.packed.memory], -1)

    def sizes(self, rows: int) -> autograd.Shape:
        """The kernels' size tuple for that many rows."""
        return (rows, self.packed.neurons, self.packed.memory, self.packed.hidden, self.packed.weights[3] is not None)

    def strides(self) -> tuple[int, int, int]:
        """Row, neuron and memory strides of a window of ``rows``."""
        return (self.packed.neurons, 1, self.batch * self.packed.neurons)

    def drop_at(self, t: int) -> Drop:
        """Dropout arguments of tick ``t``."""
        return (self.drop[0], self.drop[1], t * self.batch) if self.seed is not None else NO_DROPOUT


def nlm_pack(
    w1: Tensor,
    b1: Tensor,
    t1: Tensor,
    w2: Tensor | None = None,
    b2: Tensor | None = None,
    t2: Tensor | None = None,
    *,
    backend: str | None = None,
) -> NlmPack:
    """Pack the weights of neuron-level models once for many ticks. Arguments and errors as in ``ops.nlm``.

    float32 and float64 run natively. One pack serves any number of histories and of backward passes; pack again
    after an optimiser step.
    """
    weights = check_weights("nlm_pack", w1, b1, t1, w2, b2, t2)
    name = backends.choose("nlm", backend, weights[0])
    if weights[0].dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        name = "reference"
    return NlmPack(weights, name)


def nlm_tick(packed: NlmPack, history: NlmHistory, t: int) -> Tensor:
    """Post-activations (B, D) of tick ``t`` from the last M pre-activations of ``history``.

    Ticks are computed in order, each after ``history[t]`` was written. Same mathematics, dtypes and gradients as
    ``ops.nlm`` on the window; the weight gradients are computed once for all ticks.

    Raises:
        ValueError: ``history`` belongs to another pack, or tick ``t`` or an earlier one was not written.
    """
    if history.packed is not packed:
        raise ValueError("nlm_tick: history must come from packed.history(), got one of another pack")
    if not 0 <= t < history.ticks:
        raise IndexError(f"nlm_tick: t must be in [0, {history.ticks}), got {t}")
    s = history.written[t]
    if s is None:
        raise ValueError(f"nlm_tick: history[{t}] must be written before tick {t} is computed")
    if packed.backend == "reference":
        seed = history.drop[1]
        window, first_row = history.window(t), t * history.batch
        return reference.nlm(window, *packed.weights, dropout=history.dropout, seed=seed, first_row=first_row)
    if history.states[t] is None:
        raise ValueError(f"nlm_tick: ticks must be computed in order, tick {t - 1} is missing")
    z, history.states[t + 1] = _Tick.apply(packed.packed, history.states[t], s, history, t)
    return z


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *weights: Tensor | None) -> Tensor:
        packed = autograd.pack(*weights)  # type: ignore[arg-type]
        w1, _, t1, w2, _, t2 = weights
        ctx.save_for_backward(packed, w1, t1, w2, t2)
        return packed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_pack")
        packed, w1, t1, w2, t2 = ctx.saved_tensors
        grads = autograd.unpack(packed, grad.contiguous(), w1, t1, w2, t2)
        return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


class _Start(torch.autograd.Function):
    """The state before the first tick; its backward ends the chain with the weights' and the start's gradients."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, start: Tensor, history: NlmHistory) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.history = history
        return packed.new_empty(()).expand(2, *history.rows.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_tick")
        (packed,) = ctx.saved_tensors
        history: NlmHistory = ctx.history
        dpacked = None
        if ctx.needs_input_grad[0]:
            dpacked = torch.zeros_like(packed)
            shape, drop = history.sizes(history.ticks * history.batch), history.drop_at(0)
            dz = grad[1, : history.ticks].flatten(0, 1)
            autograd.run_backward(
                shape, drop, packed, history.rows[1:], history.strides(), dz, None, (0, 0, 0), dpacked
            )
        dstart = grad[0, : history.packed.memory].sum(1).t() if ctx.needs_input_grad[1] else None
        return dpacked, dstart, None


class _Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, state: Tensor, s: Tensor, history: NlmHistory, t: int) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(packed)
        ctx.history, ctx.t = history, t
        history.rows[history.packed.memory + t].copy_(s)
        z = torch.empty_like(s, memory_format=torch.contiguous_format)
        autograd.run_forward(
            history.sizes(history.batch), history.drop_at(t), packed, history.rows[t + 1 :], history.strides(), z
        )
        return z, state.new_empty(()).expand(state.shape)

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_tick")
        (packed,) = ctx.saved_tensors
        history: NlmHistory = ctx.history
        t = ctx.t
        if grad is None:
            grad = packed.new_zeros(2, *history.rows.shape)
        if dz is not None:
            grad[1, t].copy_(dz)
            autograd.run_backward(
                history.sizes(history.batch), history.drop_at(t), packed, history.rows[t + 1 :], history.strides(),
                grad[1, t], grad[0, t + 1 :], history.strides(), None,
            )  # fmt: skip
        return None, grad, grad[0, history.packed.memory + t], None, None
