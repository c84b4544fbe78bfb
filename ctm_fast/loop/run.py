"""Runs the ticks of a model: natively where its parts can be planned, by calling them otherwise.

Letters: T ticks, B batch, D neurons, M memory length, d input width, h heads, L tokens, P action pairs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm_fast import backend as backends
from ctm_fast.loop import persistent, plan
from ctm_fast.loop.config import AttentionWeights, Loop, Parameters, of_ticks
from ctm_fast.loop.seed import Seed
from ctm_fast.loop.synapses import SynapsePlan
from ctm_fast.loop.ticks import all_ticks
from ctm_fast.ops.native import draw_seed
from ctm_fast.ops.nlm import nlm_pack, nlm_tick
from ctm_fast.ops.nlm.rows import nlm_rows
from ctm_fast.ops.sync import sync

logger = logging.getLogger("ctm_fast")

LOOP_DTYPES = (torch.float32, torch.float64)  # of the native loop and of the neuron-level models' loop form

Synchronise = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Parts:
    """The modules of the recurrent part, and the action synchronisation that queries the attention."""

    synapses: nn.Module  # (B, d + D) -> (B, D)
    nlm: nn.Module  # (B, D, M) -> (B, D)
    q_proj: nn.Module | None = None  # (B, P) -> (B, d)
    attention: nn.Module | None = None
    left: Tensor | None = None  # (P)
    right: Tensor | None = None
    decay: Tensor | None = None  # (P), within its bounds
    synchronise: Synchronise | None = None  # a model's own recurrence: (z, alpha, beta) -> (s, alpha, beta)


@dataclass(frozen=True)
class States:
    """What the ticks leave behind."""

    z: Tensor  # (T + 1, B, D), post-activations, the start first
    rows: Tensor | list[Tensor]  # M + T pre-activations (B, D), the start first
    attention: Tensor | None  # (attending ticks, B, h, 1, L), only when tracked

    @property
    def history(self) -> Tensor:
        """Pre-activations (M + T, B, D), the start first."""
        return self.rows if isinstance(self.rows, Tensor) else torch.stack(self.rows)

    @property
    def pre(self) -> Tensor:
        """Pre-activations of the ticks, (T, B, D)."""
        return self.history[len(self.rows) - self.z.shape[0] + 1 :]

    @property
    def post(self) -> Tensor:
        """Post-activations of the ticks, (T, B, D)."""
        return self.z[1:]


def run_ticks(
    parts: Parts,
    inputs: tuple[int, ...],
    z0: Tensor,
    start: Tensor,
    tokens: list[Tensor],
    given: Tensor | None = None,
    *,
    track: bool = False,
    recompute: bool = False,
) -> States:
    """Run one tick per entry of ``inputs``.

    Args:
        parts: the recurrent part.
        inputs: k >= 0 attends to ``tokens[k]``, -1 - g takes ``given[g]``.
        z0: post-activations before the first tick, (B, D).
        start: pre-activation history before it, (B, D, M), the newest last.
        tokens: keys and values (B, L, d) each; all of one L.
        given: inputs (G, B, d).
        track: keep the attention weights.
        recompute: keep no synapse activations for the backward, compute them again there.
    """
    backend, stays = _looped(z0), persistent.takes(z0)
    planned = _plan(parts, z0, start, tokens, given) if stays or backend else None
    if planned is None:
        return _call(parts, inputs, z0, start, tokens, given, track)
    parameters, stages, nlm_dropout = planned
    attention = parts.attention
    attention_dropout = plan.attention_dropout(attention)
    drops = attention_dropout > 0 or nlm_dropout > 0 or any(s.dropout > 0 for s in stages)
    if backend is None and drops:
        return _call(parts, inputs, z0, start, tokens, given, track)
    loop = Loop(
        tuple(inputs), stages, attention.num_heads if attention is not None else 0, parts.left, parts.right,  # type: ignore[arg-type]
        attention_dropout, nlm_dropout, _seed(backend, z0) if drops else None, recompute, track, backend or "",  # type: ignore[arg-type]
    )  # fmt: skip
    if stays and not drops:
        found = _stay(loop, parameters, attention, tokens, given, z0, start)
        if found is not None:
            return found
    if backend is None:
        return _call(parts, inputs, z0, start, tokens, given, track)
    keys, values = _keys_values(attention, tokens, z0)
    given = given.contiguous() if given is not None else z0.new_zeros(0, z0.shape[0], 0)
    z, history, weights = all_ticks(
        loop, parameters, keys, values, given, z0, start.permute(2, 0, 1), *parameters.flat()
    )
    return States(z, history, _split_heads(weights, loop) if track and loop.attends else None)


def _stay(
    loop: Loop, parameters: Parameters, attention: nn.Module | None, tokens: list[Tensor],
    given: Tensor | None, z0: Tensor, start: Tensor,
) -> States | None:  # fmt: skip
    """The ticks in one kernel, or None where it cannot run them."""
    scratch = persistent.scratch_floats(loop, parameters, tokens[0].shape[1] if tokens else 0, z0)
    if scratch is None:
        return None
    keys = values = z0.new_empty(0, z0.shape[0], 0, 0)
    if isinstance(attention, nn.MultiheadAttention) and tokens:
        keys, values = persistent.project(attention.in_proj_weight, attention.in_proj_bias, tokens)
    given = given if given is not None else z0.new_empty(0, z0.shape[0], 0)
    read = persistent.Inputs(keys, values, given, z0, start.permute(2, 0, 1))
    z, history, weights = persistent.run(loop, parameters, read, scratch)
    return States(z, history, _split_heads(weights, loop) if weights is not None and loop.attends else None)


def _split_heads(weights: Tensor, loop: Loop) -> Tensor:
    return of_ticks(loop.attending, weights.unflatten(2, (loop.heads, 1, -1)))


def _plan(
    parts: Parts, z0: Tensor, start: Tensor, tokens: list[Tensor], given: Tensor | None
) -> tuple[Parameters, Any, float] | None:
    """Parameters, synapse stages and neuron-level dropout of the native loop; None if it cannot run this."""
    synapses, nlm = plan.synapse_plan(parts.synapses), plan.nlm_weights(parts.nlm)
    attends = parts.attention is not None
    called = {
        "the synapses": synapses, "the neuron-level models": nlm,
        "the attention": plan.why_attention_is_called(parts.q_proj, parts.attention) if attends else None,
        "the action synchronisation": _why_synchronisation_is_called(parts),
    }  # fmt: skip
    reasons = [f"{name} ({reason})" for name, reason in called.items() if isinstance(reason, str)]
    if isinstance(synapses, str) or isinstance(nlm, str) or reasons:
        _warn_once(parts.synapses, reasons)
        return None
    if len({x.shape for x in tokens}) > 1:
        return None
    attention = _attention_weights(parts) if parts.attention is not None else None
    parameters = Parameters(attention, nlm[0], synapses.parameters)
    read = [start, *tokens, *([] if given is None else given.unbind(0))]
    if any(x.dtype != z0.dtype or x.device != z0.device for x in (*parameters.flat(), *read)):
        return None
    if any(type(x) not in (Tensor, nn.Parameter) for x in (z0, *read)):
        return None
    if not _fits(parameters, synapses, z0, read):
        return None
    return parameters, synapses.stages, nlm[1]


def _why_synchronisation_is_called(parts: Parts) -> str | None:
    if parts.synchronise is not None:
        return "a method of the model's own"
    plain = parts.attention is None or plan.are_parameters(parts.decay)
    return None if plain else "decays of another class"


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _warn_once(model: nn.Module, reasons: list[str]) -> None:
    """Log which parts keep the ticks out of the native loop; once for a model, known by its synapses."""
    if model not in _warned:
        _warned.add(model)
        logger.warning("ctm_fast: every tick calls %s, outside the native loop", " and ".join(reasons))


def say_nothing(synapses: nn.Module) -> None:
    """Log nothing about the model with these synapses: a copy of one that speaks for itself."""
    _warned.add(synapses)


def _looped(x: Tensor) -> str | None:
    """The backend whose loop may run on tensors like this one, "native" or "triton"; raises for a selected backend
    that cannot run. torch.compile sees no further than the launch of a Triton kernel.
    """
    name, kind = _fused(x), x.device.type
    if x.dtype not in LOOP_DTYPES or torch.is_autocast_enabled(kind):
        return None
    if name == "triton":
        return name if len(x) and not torch.compiler.is_compiling() else None
    return name if kind == "cpu" else None


def _seed(backend: str | None, x: Tensor) -> Seed:
    """The seed of a forward's masks: on the GPU for Triton, whose kernels read it there."""
    drawn = draw_seed(x.device if backend == "triton" else None)
    return Seed(drawn if backend == "triton" else int(drawn.item()))


def _fused(x: Tensor) -> str | None:
    """The backend of fused neuron-level models for tensors like this one: "native", "triton" or None."""
    name = backends.choose("nlm", None, x)
    return None if name == "reference" else name


def _fits(p: Parameters, synapses: SynapsePlan, z0: Tensor, read: list[Tensor]) -> bool:
    """Whether all sizes agree; where they do not, calling the modules raises what they raise."""
    (batch, neurons), (start, *inputs) = z0.shape, read
    memory, _, models = p.nlm[0].shape
    d = synapses.inputs - neurons
    if start.shape != (batch, neurons, memory) or models != neurons or synapses.outputs != neurons:
        return False
    if p.attention is not None and p.attention.q_proj.shape != (d, p.attention.decay.numel()):
        return False
    return all(x.shape[0] == batch and x.shape[1] > 0 and x.shape[-1] == d for x in inputs)


def _attention_weights(parts: Parts) -> AttentionWeights:
    attention, q_proj, decay = parts.attention, parts.q_proj, parts.decay
    assert isinstance(attention, nn.MultiheadAttention) and isinstance(q_proj, nn.Linear)
    assert decay is not None
    d = attention.embed_dim
    return AttentionWeights(
        q_proj.weight, q_proj.bias, attention.in_proj_weight[:d], attention.in_proj_bias[:d],
        attention.out_proj.weight, attention.out_proj.bias, decay,
    )  # fmt: skip


def _keys_values(attention: nn.Module | None, tokens: list[Tensor], z0: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (K, B, d, L) of every set of tokens, projected once for all ticks."""
    if not isinstance(attention, nn.MultiheadAttention) or not tokens:
        empty = z0.new_zeros(0, z0.shape[0], attention.embed_dim if attention is not None else 0, 0)  # type: ignore[arg-type]
        return empty, empty
    d, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    stacked = torch.stack(tokens) if len(tokens) > 1 else tokens[0].unsqueeze(0)
    keys, values = (F.linear(stacked, weight[at : at + d], bias[at : at + d]) for at in (d, 2 * d))
    return keys.transpose(2, 3).contiguous(), values.transpose(2, 3).contiguous()


class _Query:
    """Attention of one query a tick over projected keys and values, by autograd, on any device and dtype."""

    def __init__(self, parts: Parts, tokens: list[Tensor], track: bool) -> None:
        self.parts, self.tokens, self.track = parts, tokens, track
        self.plain = plan.why_attention_is_called(parts.q_proj, parts.attention) is None
        self.projected: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, synchronisation: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """(B, P) -> what the query reads (B, d) and the weights (B, h, 1, L), or None unless tracked."""
        q = self.parts.q_proj(synchronisation).unsqueeze(1)  # type: ignore[misc]
        attention = self.parts.attention
        if not self.plain or not isinstance(attention, nn.MultiheadAttention):
            kv = self.tokens[k]
            out, weights = attention(q, kv, kv, average_attn_weights=False, need_weights=True)  # type: ignore[misc]
            return out.squeeze(1), weights
        if k not in self.projected:
            self.projected[k] = self._project(attention, self.tokens[k])
        keys, values = self.projected[k]
        d = attention.embed_dim
        q = F.linear(q, attention.in_proj_weight[:d], attention.in_proj_bias[:d]) * attention.head_dim**-0.5
        q = q.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        weights = F.dropout(torch.softmax(q @ keys, -1), attention.dropout, attention.training)
        out = attention.out_proj((weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)).squeeze(1)
        return out, weights if self.track else None

    @staticmethod
    def _project(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, d/h, L) and (B, h, L, d/h)."""
        d = attention.embed_dim
        both = F.linear(tokens, attention.in_proj_weight[d:], attention.in_proj_bias[d:])
        keys, values = (x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in both.chunk(2, -1))
        return keys.transpose(2, 3), values


class _NeuronLevelModels:
    """The neuron-level models on a growing history: fused where planned, packed where all samples start alike.

    Fused they run in the dtype of their weights, under autocast too: the kernels accumulate in float32 whatever
    they read, so that 16 bits would lose digits of the history and nothing else.
    """

    def __init__(self, module: nn.Module, start: Tensor, ticks: int) -> None:
        self.module = module
        self.weights: tuple[Tensor, ...] | None = None
        self.rows = list(start.unbind(2))
        self.window = start
        self.history = None
        weights = plan.nlm_weights(module) if _fused(start) else "another device or dtype"
        if isinstance(weights, str) or any(w.dtype != start.dtype for w in weights[0]):
            return
        w1 = weights[0][0]
        if start.shape[1:] != (w1.shape[2], w1.shape[0]):
            return  # the modules raise what they raise
        if _is_loop(start):
            self.packed = nlm_pack(*weights[0])
            self.history = self.packed.history(start[0], start.shape[0], ticks, dropout=weights[1])
        else:
            self.weights, self.dropout = weights

    def __call__(self, t: int, s: Tensor) -> Tensor:
        s = s.to(torch.promote_types(s.dtype, self.rows[-1].dtype))
        self.rows.append(s)
        if self.history is not None:
            self.history[t] = s
            return nlm_tick(self.packed, self.history, t)
        if self.weights is not None and s.shape == self.rows[0].shape:
            return nlm_rows(self.rows[-self.window.shape[2] :], *self.weights, dropout=self.dropout)
        # As published, so that it raises and has gradients as published.
        self.window = torch.cat((self.window[:, :, 1:], s.unsqueeze(-1)), -1)
        return self.module(self.window)  # type: ignore[no-any-return]


def _is_loop(start: Tensor) -> bool:
    """Whether the loop form runs: for samples that start alike, and where its history need not be traced."""
    alike = start.shape[0] > 0 and start.stride(0) == 0 and start.dtype in LOOP_DTYPES
    return alike and not torch.compiler.is_compiling()


def _call(
    parts: Parts,
    inputs: tuple[int, ...],
    z0: Tensor,
    start: Tensor,
    tokens: list[Tensor],
    given: Tensor | None,
    track: bool,
) -> States:
    """The ticks through autograd, calling every module: any device, dtype, autocast and module."""
    models = _NeuronLevelModels(parts.nlm, start, len(inputs))
    query = _Query(parts, tokens, track)
    z, states, attention = z0, [z0], []
    alpha = beta = None
    for t, i in enumerate(inputs):
        if parts.attention is not None:
            action, alpha, beta = _synchronise(parts, z, alpha, beta)
        if i >= 0:
            x, weights = query(action, i)
            if track and weights is not None:
                attention.append(weights)
        else:
            assert given is not None
            x = given[-1 - i]
        z = models(t, parts.synapses(torch.cat((x, z), dim=-1)))
        states.append(z)
    return States(_stack(states), models.rows, torch.stack(attention) if attention else None)


def _stack(states: list[Tensor]) -> Tensor:
    """Stacked in the dtype of the ticks: under autocast the start differs from them."""
    dtype = torch.promote_types(states[0].dtype, states[-1].dtype)
    return torch.stack([x.to(dtype) for x in states])


def _synchronise(
    parts: Parts, z: Tensor, alpha: Tensor | None, beta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if parts.synchronise is not None:
        return parts.synchronise(z, alpha, beta)
    assert parts.left is not None and parts.right is not None and parts.decay is not None
    ticks = z.unsqueeze(0).to(parts.decay.dtype)
    decay = (
        parts.decay.detach() if alpha is None else parts.decay
    )  # nothing has decayed before the first tick
    return sync(ticks, parts.left, parts.right, decay, alpha, beta, last=True)
