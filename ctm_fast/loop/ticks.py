"""All ticks of a CTM as one autograd function: forward tick by tick, backward written by hand.

Kept for the backward: the history of pre-activations, the post-activations, the heads' output of the attention, and
what every synapse layer's linear map put out (or not even that, with ``recompute``). Everything else is computed
again from them. Weight gradients are computed over all ticks at once, as products with T * B rows.

Letters: T ticks, B batch, D neurons, M memory length, d input width, h heads, L tokens, K sets of keys and values,
G given inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.loop.backward import LoopBackward
from ctm_fast.loop.config import Loop, Parameters
from ctm_fast.loop.parts import loop_parts
from ctm_fast.loop.synapses import Synapses
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import empty
from ctm_fast.ops.nlm.autograd import loop_arguments, window_strides


def _forward_ticks(
    loop: Loop,
    p: Parameters,
    keys: Tensor,
    values: Tensor,
    given: Tensor,
    z: Tensor,
    history: Tensor,
    keep: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Fills ``z`` and ``history``; returns heads' outputs, the linear maps' outputs and the attention weights."""
    ticks, (_, batch, neurons) = loop.ticks, z.shape
    memory, parts = history.shape[0] - ticks, loop_parts(loop.backend, z.device)
    attention = parts.attention(loop, p.attention, keys, values, z) if p.attention is not None else None
    width = p.synapses[loop.stages[0].linear].shape[1] - neurons
    synapses = parts.synapses(loop.stages, list(p.synapses), width, loop.seed, batch, ticks)
    kept = ticks if keep and not loop.recompute else 1
    linear = [empty(z, kept, batch, synapses.linear_width(i)) for i in range(len(loop.stages))]
    heads = empty(z, ticks if keep else 1, batch, width if attention else 0)
    tokens = loop.heads * (attention.tokens if attention else 0)
    weights = z.new_empty(ticks if loop.track else 1, batch, tokens)
    packed, shape = loop_arguments(parts.nlm, p.nlm, batch)
    strides = window_strides(history)
    constant = _constant(loop, synapses, given)
    if attention:
        alpha, action = attention.zeros(), z.new_empty(batch, attention.pairs)
        attended = z.new_empty(batch, width)
    for t in range(ticks):
        x = given[-1 - loop.inputs[t]] if loop.inputs[t] < 0 else None
        if attention:
            attention.synchronisation(t, 1, alpha, action)
            if x is None:
                row = heads[t if keep else 0]
                attention.attend(t, attention.queries(action)[1], weights[t if loop.track else 0], row)
                x = attention.out(row, attended)
        synapses.forward([y[t % kept] for y in linear], x, z[t], constant, t * batch, history[memory + t])
        drop = loop.nlm_drop(t * batch)
        parts.nlm.run_forward(shape, drop, packed, history[t + 1 :], strides, z[t + 1])
    return heads, linear if kept == ticks else [], weights


def _constant(loop: Loop, synapses: Synapses, given: Tensor) -> Tensor | None:
    """The first linear map's part of an input that is the same at every tick."""
    if all(i == -1 for i in loop.inputs):
        return synapses.constant(given[0])
    return None


def _forward(
    keep: bool, loop: Loop, parameters: Parameters, keys: Tensor, values: Tensor, given: Tensor, z0: Tensor,
    start: Tensor, *flat: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """What :func:`all_ticks` returns, and the heads' and linear maps' outputs; all ticks of these with ``keep``."""
    (batch, neurons), memory = z0.shape, start.shape[0]
    z = empty(z0, loop.ticks + 1, batch, neurons)
    history = loop_parts(loop.backend, z0.device).nlm.buffer(z0, memory + loop.ticks, batch, neurons)
    z[0], history[:memory] = z0, start
    p = parameters.like(tuple(x.contiguous() for x in flat))
    heads, linear, weights = _forward_ticks(loop, p, keys, values, given, z, history, keep)
    return z, history, weights, heads, linear


class TickLoopFunction(torch.autograd.Function):
    """The loop where gradients may be wanted: arguments as :func:`_forward` takes them behind ``keep``."""

    @staticmethod
    def forward(
        ctx: Any, loop: Loop, parameters: Parameters, keys: Tensor, values: Tensor, given: Tensor, z0: Tensor,
        start: Tensor, *flat: Tensor,
    ) -> Any:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.loop, ctx.structure = loop, parameters
        keep = any(ctx.needs_input_grad)
        z, history, weights, heads, linear = _forward(
            keep, loop, parameters, keys, values, given, z0, start, *flat
        )
        if keep:
            ctx.save_for_backward(keys, values, given, z, history, heads, *linear, *flat)
            ctx.linear = len(linear)
        ctx.mark_non_differentiable(weights)
        return z, history, weights

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dhistory: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("TickLoop")
        keys, values, given, z, history, heads, *rest = ctx.saved_tensors
        linear, flat = rest[: ctx.linear], rest[ctx.linear :]
        p = ctx.structure.like(tuple(x.contiguous() for x in flat))
        run = LoopBackward(
            ctx.loop, p, keys, values, given, z, history, heads, linear, ctx.needs_input_grad[2:]
        )
        return (None, None, *run.run(dz, dhistory))


def all_ticks(loop: Loop, parameters: Parameters, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(keys, values (K, B, d, L), given (G, B, d), z0 (B, D), start (M, B, D), parameters) -> z (T + 1, B, D),
    history (M + T, B, D), attention weights (T, B, h * L) with ``track`` and (1, ...) without.
    """
    if torch.is_grad_enabled():
        found: tuple[Tensor, Tensor, Tensor] = TickLoopFunction.apply(loop, parameters, *tensors)
        return found
    return _forward(False, loop, parameters, *tensors)[:3]
