"""All ticks in one CUDA kernel that stays on the GPU: inference in float32 on few samples.

Between ticks nothing is launched: blocks meet at a barrier, and keep their rows of the weights in shared memory
where those fit (csrc/cuda/ticks.h). Matrices that only the attention lies between are multiplied before.

Letters: T ticks, B batch, D neurons, M memory length, H hidden width, d input width, h heads, L tokens, K sets of
keys and values, G given inputs, P action pairs.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm_fast import backend as backends
from ctm_fast.loop.config import AttentionWeights, Loop, Parameters
from ctm_fast.loop.synapses import INPUT, Stage
from ctm_fast.ops import cuda
from ctm_fast.ops.sync.arguments import checked_pairs

KINDS = ("glu", "silu", "skip")  # of stages, in the order of csrc/cuda/ticks.h
NULL = 0
VECTOR = 16  # bytes


class Inputs(NamedTuple):
    """What the ticks read beside the parameters."""

    keys: Tensor  # (K, B, L, d)
    values: Tensor  # (K, B, L, d)
    given: Tensor  # (G, B, d)
    z0: Tensor  # (B, D)
    start: Tensor  # (M, B, D)


def takes(z0: Tensor) -> bool:
    """Whether a model may be planned for the kernel: CUDA, float32, few samples, no autograd, no compilation."""
    if (
        torch.compiler.is_compiling()
        or not z0.is_cuda
        or z0.dtype != torch.float32
        or torch.is_grad_enabled()
    ):
        return False
    if torch.is_autocast_enabled("cuda") or backends.selected() is not None:
        return False
    return cuda.limits(z0.device) is not None and 1 <= z0.shape[0] <= int(cuda.extension().MAX_BATCH)


def scratch_floats(loop: Loop, parameters: Parameters, tokens: int, z0: Tensor) -> int | None:
    """Floats of scratch memory that the kernel needs for these ticks; None where it cannot run them.

    A tick's state must fit into the shared memory of a block.
    """
    follow = all(stage.source == i - 1 for i, stage in enumerate(loop.stages) if i > 0)
    if not follow or len(loop.stages) > cuda.extension().MAX_STAGES:
        return None
    if parameters.attention is not None and not _are_pairs(loop, parameters.attention.decay):
        return None
    stages = [_stage(stage, parameters.synapses, parameters.synapses[stage.linear]) for stage in loop.stages]
    plan = cuda.extension().plan_ticks(_sizes(loop, parameters, tokens, z0), stages, cuda.limits(z0.device))
    return None if plan["reason"] else int(plan["scratch"])


def _are_pairs(loop: Loop, decay: Tensor) -> bool:
    """Whether every decay has its pair of neurons beside it on the device."""
    return all(
        x is not None and x.shape == decay.shape and x.device == decay.device for x in (loop.left, loop.right)
    )


def _sizes(loop: Loop, p: Parameters, tokens: int, z0: Tensor) -> tuple[int, ...]:
    batch, neurons = z0.shape
    memory, outputs, _ = p.nlm[0].shape
    attention = (0, 0, 0, 0)
    if p.attention is not None:
        attention = (p.attention.out.shape[0], loop.heads, tokens, p.attention.decay.numel())
    return (loop.ticks, batch, neurons, memory, outputs // 2, len(p.nlm) > 3, len(loop.stages), *attention)


def _stage(stage: Stage, parameters: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None = None) -> Any:
    """A stage as the binding takes it, with the linear map ``weight`` and ``bias``."""
    bias = parameters[stage.linear + 1] if bias is None else bias
    outer = (NULL, NULL) if stage.outer == INPUT else _addresses(*parameters[stage.outer : stage.outer + 2])
    return (
        KINDS.index(stage.kind), parameters[stage.norm].shape[0], stage.skip, *_addresses(weight, bias),
        weight.shape[1], *_addresses(*parameters[stage.norm : stage.norm + 2]), stage.eps, *outer,
        stage.outer_eps,
    )  # fmt: skip


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(NULL if x is None else x.data_ptr() for x in tensors)


def _query(a: AttentionWeights, heads: int) -> tuple[Tensor, Tensor]:
    """(d, P) and (d): from the action synchronisation to the scaled query."""
    scale = (a.out.shape[0] // heads) ** -0.5
    query, bias = a.query * scale, a.query_bias * scale
    return query @ a.q_proj, torch.addmv(bias, query, a.q_proj_bias)


def _first(a: AttentionWeights | None, weight: Tensor, bias: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """The first linear map of [heads' output | z], or of z alone without attention."""
    if a is None:
        return weight[:, d:].contiguous(), bias
    x = weight[:, :d]
    return torch.cat((x @ a.out, weight[:, d:]), 1), torch.addmv(bias, x, a.out_bias)


def packed(nlm: tuple[Tensor, ...]) -> Tensor:
    """Neuron-level models (D, columns): w1 and b1, then of deep ones w2 and b2, divided by the temperatures."""
    layers = [nlm[i : i + 3] for i in range(0, len(nlm), 3)]
    return torch.cat([x for w, b, t in layers for x in (w.permute(2, 0, 1).flatten(1) / t, b[0] / t)], 1)


@functools.cache
def _inputs(inputs: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept for good: a CUDA graph, which must not copy from the host, goes on reading it."""
    return torch.tensor(inputs, dtype=torch.int32, device=device)


def run(
    loop: Loop, parameters: Parameters, inputs: Inputs, scratch: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run the ticks: z (T + 1, B, D), history (M + T, B, D) and, tracked, attention weights (T, B, h * L).

    ``scratch`` is what :func:`scratch_floats` found. Raises ``RuntimeError`` with the sizes where CUDA refuses.
    """
    z0 = inputs.z0
    p = parameters.like(tuple(_readable(x.detach()) for x in parameters.flat()))
    tokens, (batch, neurons) = inputs.keys.shape[2], z0.shape
    z = z0.new_empty(loop.ticks + 1, batch, neurons)
    history = z0.new_empty(inputs.start.shape[0] + loop.ticks, batch, neurons)
    z[0], history[: inputs.start.shape[0]] = z0, inputs.start
    weights = z0.new_empty(loop.ticks, batch, loop.heads * tokens) if loop.track else None
    _launch(loop, p, inputs, (z, history, weights, z0.new_empty(scratch)))
    return z, history, weights


def _readable(x: Tensor) -> Tensor:
    """Contiguous and aligned for vectors of four floats: a parameter may be part of a larger vector."""
    x = x.contiguous()
    return x if x.data_ptr() % VECTOR == 0 else x.clone()


def _launch(loop: Loop, p: Parameters, inputs: Inputs, results: tuple[Tensor | None, ...]) -> None:
    z0, first = inputs.z0, p.synapses[loop.stages[0].linear]
    d, bias = first.shape[1] - z0.shape[1], p.synapses[loop.stages[0].linear + 1]
    given = torch.addmm(bias, inputs.given.flatten(0, 1), first[:, :d].t()) if inputs.given.numel() else None
    linear = [_first(p.attention, first, bias, d)]
    linear += [(p.synapses[s.linear], p.synapses[s.linear + 1]) for s in loop.stages[1:]]
    stages = [_stage(s, p.synapses, *maps) for s, maps in zip(loop.stages, linear, strict=True)]
    read: tuple[Tensor | None, ...] = (None,) * 5
    if p.attention is not None:
        assert loop.left is not None and loop.right is not None
        pairs = checked_pairs(z0.unsqueeze(0), loop.left, loop.right)
        read = (*_query(p.attention, loop.heads), *pairs, torch.exp(-p.attention.decay))
    models, order = packed(p.nlm), None
    if len(set(loop.inputs)) > 1:
        order = _inputs(loop.inputs, z0.device)
    data = _addresses(order, inputs.keys, inputs.values, given, *results)
    sizes, first_input = _sizes(loop, p, inputs.keys.shape[2], z0), loop.inputs[0] if loop.inputs else 0
    cuda.extension().run_ticks(
        sizes, stages, _addresses(*read), models.data_ptr(), first_input, data, *cuda.place(z0)
    )


def project(in_weight: Tensor, in_bias: Tensor, tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values (K, B, L, d) of every set of tokens (B, L, d), projected once for all ticks."""
    d = in_weight.shape[1]
    stacked = torch.stack(tokens) if len(tokens) > 1 else tokens[0].unsqueeze(0)
    keys, values = (F.linear(stacked, in_weight[at : at + d], in_bias[at : at + d]) for at in (d, 2 * d))
    return keys.contiguous(), values.contiguous()
