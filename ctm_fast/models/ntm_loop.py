"""All steps of a Neural Turing Machine as one autograd function around the native memory step.

It is the loop of :class:`ctm_fast.models.NTM` with its gradient written out: autograd keeps one node instead
of dozens per step, and the gradient of a weight is one matrix product over all steps.

Letters: T steps, B batch, C controller size, L layers, G gates, K what a layer is fed back (reads or the layer
below, and its own hidden state), P interface vector, R read heads, V write heads, N slots, W width of a slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast import backend, ops
from ctm_fast.models.dispatch import is_plain
from ctm_fast.models.ntm_controller import Controller, Slope, State
from ctm_fast.models.ntm_heads import LinearHeads
from ctm_fast.models.ntm_state import MemoryState, NtmState
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.ntm.autograd import KERNELS

DTYPES = (torch.float32, torch.float64)
STEP = KERNELS["ntm_step"]


class Plan(NamedTuple):
    """What the loop knows beside its tensors; ``keeps``: whether a backward may follow."""

    controller: Controller
    layout: ops.NtmLayout
    clip: float
    keeps: bool


class Inputs(NamedTuple):
    """The tensors that the loop takes."""

    projected: Tensor  # (T, B, G)
    interface: Tensor  # (P, C)
    interface_bias: Tensor  # (P)
    memory: MemoryState
    joined: list[Tensor]  # (G, K) by layer
    biases: list[Tensor]  # (G) of all layers but the lowest
    states: list[State]  # by layer


class Record(NamedTuple):
    """What the loop went through."""

    known: list[Tensor]  # (T, B, K) by layer
    gates: list[Tensor]  # (T, B, G) by layer
    kept: list[State]  # what the activations returned, (T, B, C) by layer
    interface: Tensor  # (T, B, P), clamped
    memories: Sequence[tuple[Tensor, ...]]  # before every step: memory, read and write weights


def usable(controller: Controller, heads: nn.Module, memory: Tensor) -> bool:
    """Whether the loop can run, which calls no module: natively, eagerly, in one precision, on plain modules."""
    if type(heads) is not LinearHeads or not (
        controller.is_plain() and is_plain(nn.Linear, heads.to_interface)
    ):
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(memory.device.type):
        return False
    return memory.dtype in DTYPES and backend.choose("ntm_step", None, memory) == "native"


def run(
    controller: Controller,
    heads: LinearHeads,
    layout: ops.NtmLayout,
    clip: float | None,
    x: Tensor,
    state: NtmState,
) -> tuple[Tensor, Tensor, NtmState]:
    """Controller outputs (T, B, C), reads (T, B, R, W) and the last state of inputs (T, B, I)."""
    weights, linear = controller.joined(x), heads.to_interface
    tensors = [weights.projected, linear.weight, linear.bias, *state.memory, *weights.joined, *weights.biases]
    tensors += [part for layer in controller.split(state.controller) for part in layer]
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    plan = Plan(controller, layout, math.inf if clip is None else clip, keeps)
    hidden, reads, memory, reading, writing, *states = _Loop.apply(plan, *tensors)
    layers = _by_layer(controller, states)
    return hidden, reads, NtmState(controller.join(layers), MemoryState(memory, reads[-1], reading, writing))


def _by_layer(controller: Controller, states: Sequence[Tensor]) -> list[State]:
    count = controller.states
    return [tuple(states[i * count : (i + 1) * count]) for i in range(controller.layers)]


def _inputs(controller: Controller, tensors: Sequence[Tensor]) -> Inputs:
    layers = controller.layers
    first = 7 + layers
    last = first + layers - 1
    memory = MemoryState(*tensors[3:7])
    states = _by_layer(controller, tensors[last:])
    projected, interface, bias = tensors[:3]
    return Inputs(
        projected, interface, bias, memory, list(tensors[7:first]), list(tensors[first:last]), states
    )


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        record, reads, last = _forward(plan, _inputs(plan.controller, tensors))
        if plan.keeps:
            flat = [*record.known, *record.gates, *(part for kept in record.kept for part in kept)]
            ctx.save_for_backward(*tensors, record.interface, *flat, *(x for m in record.memories for x in m))
            ctx.plan, ctx.count, ctx.kept = plan, len(tensors), len(record.kept[0])
        ctx.set_materialize_grads(False)
        states = [part[-1].clone() for kept in record.kept for part in kept[: plan.controller.states]]
        return record.kept[-1][0], reads, *last, *states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("NTM")
        tensors, (interface, *flat) = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        layers, every = ctx.plan.controller.layers, iter(flat)
        known, gates = ([next(every) for _ in range(layers)] for _ in range(2))
        kept = [tuple(next(every) for _ in range(ctx.kept)) for _ in range(layers)]
        memories = list(zip(every, every, every, strict=True))
        record = Record(known, gates, kept, interface, memories)
        return (None, *_backward(ctx.plan, _inputs(ctx.plan.controller, tensors), record, grads))


def _forward(plan: Plan, given: Inputs) -> tuple[Record, Tensor, Sequence[Tensor]]:
    """The record, the reads (T, B, R, W), and memory, read and write weights after the last step."""
    controller, layout = plan.controller, plan.layout
    steps, batch = given.projected.shape[:2]
    known = [w.new_empty(steps, batch, w.shape[1]) for w in given.joined]
    gates = [w.new_empty(steps, batch, w.shape[0]) for w in given.joined]
    interface = given.interface.new_empty(steps, batch, layout.size)
    weights, to_interface = [w.t() for w in given.joined], given.interface.t()
    constants = [given.projected.unbind(0), *([bias] * steps for bias in given.biases)]
    memory, reads, *pair = given.memory
    states, memories, found = list(given.states), [], []
    kept: list[list[State]] = [[] for _ in weights]
    for t, row in enumerate(interface.unbind(0)):
        below = reads.flatten(1)
        for layer, weight in enumerate(weights):
            seen = torch.cat((below, *states[layer][:1]), 1, out=known[layer][t])
            torch.addmm(constants[layer][t], seen, weight, out=gates[layer][t])
            after = controller.activate(gates[layer][t], states[layer])
            kept[layer].append(after)
            states[layer], below = after[: controller.states], after[0]
        torch.addmm(given.interface_bias, below, to_interface, out=row).clamp_(-plan.clip, plan.clip)
        memories.append((memory, *pair))
        reads, memory, *pair = STEP.forward(memory, row, *pair, layout.encoded, layout.eps)
        found.append(reads)
    stacked = [tuple(torch.stack(part) for part in zip(*layer, strict=True)) for layer in kept]
    return Record(known, gates, stacked, interface, memories), torch.stack(found), (memory, *pair)


def _backward(
    plan: Plan, given: Inputs, record: Record, grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of the tensors of :class:`Inputs`, in order, from those of what the function returns."""
    hidden, reads, memory, reading, writing, *last = grads
    layout, size = plan.layout, plan.controller.size
    free = (record.interface.abs() < plan.clip).to(record.interface.dtype)
    dinterface, dgates = torch.empty_like(record.interface), [torch.empty_like(g) for g in record.gates]
    slopes = _slopes(plan.controller, given, record)
    zeros = torch.zeros_like(record.kept[-1][0][0])
    states = _by_layer(plan.controller, [zeros if x is None else x for x in last])
    seen = torch.zeros_like(given.memory.reads, memory_format=torch.contiguous_format)
    for t in reversed(range(len(free))):
        before, *pair = record.memories[t]
        memory, raw, reading, writing = STEP.backward(
            seen if reads is None else reads[t] + seen, memory, reading, writing,
            before, record.interface[t], *pair, layout.encoded, layout.eps,
        )  # fmt: skip
        torch.mul(raw, free[t], out=dinterface[t])
        above = torch.addmm(zeros if hidden is None else hidden[t], dinterface[t], given.interface)
        for layer in reversed(range(len(dgates))):
            state = states[layer]
            arrived = (above + state[0], *state[1:]) if state else (above,)
            dgates[layer][t], rest = slopes[layer](t, arrived)
            known = dgates[layer][t] @ given.joined[layer]
            above = known[:, : known.shape[1] - size] if state else known
            states[layer] = (known[:, -size:], *rest) if state else ()
        seen = above.unflatten(1, seen.shape[1:])
    projected, linear, bias, joined, biases = _weight_gradients(record, dinterface, dgates)
    start = [memory, seen, reading, writing]
    return [projected, linear, bias, *start, *joined, *biases, *(x for state in states for x in state)]


def _slopes(controller: Controller, given: Inputs, record: Record) -> list[Slope]:
    slopes = []
    for gates, kept, start in zip(record.gates, record.kept, given.states, strict=True):
        before = (torch.cat((first[None], after[:-1])) for first, after in zip(start, kept, strict=False))
        slopes.append(controller.slopes(gates, tuple(before), kept))
    return slopes


def _weight_gradients(
    record: Record, dinterface: Tensor, dgates: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Of the projected inputs, the interface's weight and bias, the joined weights and the biases."""
    linear = _over_steps(dinterface, record.kept[-1][0])
    joined = [_over_steps(gates, known) for gates, known in zip(dgates, record.known, strict=True)]
    return dgates[0], linear, dinterface.sum((0, 1)), joined, [gates.sum((0, 1)) for gates in dgates[1:]]


def _over_steps(rows: Tensor, columns: Tensor) -> Tensor:
    """The sum over all steps and samples of outer products: (T, B, G) and (T, B, K) to (G, K)."""
    return rows.flatten(0, 1).t() @ columns.flatten(0, 1)
