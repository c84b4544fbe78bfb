"""One step, or a sequence of steps, of a Differentiable Neural Computer's memory from raw interface vectors."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.dnc import autograd, reference
from ctm_fast.ops.dnc.arguments import check_step
from ctm_fast.ops.dnc.layout import DncLayout, DncState


class DncStep(NamedTuple):
    """What a step or a sequence returns.

    Attributes:
        reads: (B, R, W), or (T, B, R, W) of a sequence.
        memory: (B, N, W) after the last step.
        state: a ``DncState`` to go on from.
    """

    reads: Tensor
    memory: Tensor
    state: DncState


class DncTrace(NamedTuple):
    """The weightings and usages of all steps of a sequence, differentiable.

    Attributes:
        usage: (T, B, N).
        write_weights: (T, B, N).
        read_weights: (T, B, R, N).
    """

    usage: Tensor
    write_weights: Tensor
    read_weights: Tensor


def dnc_step(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (B, I)
    state: DncState,
    *,
    layout: DncLayout,
    backend: str | None = None,
) -> DncStep:
    """One step of the memory of a Differentiable Neural Computer (Nature 538, 471-476, Methods).

    Equivalent to, with ``p = layout.split(interface)`` and the state of the step before::

        usage = (usage + write - usage * write) * prod_h(1 - p.free_gates[h] * read[h])
        write = p.write_gate * (p.allocation_gate * dnc_allocation(usage)
                                + (1 - p.allocation_gate) * content(memory, p.write_key, p.write_strength))
        memory = memory * (1 - outer(write, p.erase)) + outer(write, p.write_vector)
        link, precedence, forward, backward = dnc_link(link, precedence, write, read)
        read[h] = (p.read_modes[h, 0] * backward[h] + p.read_modes[h, 2] * forward[h]
                   + p.read_modes[h, 1] * content(memory, p.read_keys[h], p.read_strengths[h]))
        reads[h] = read[h] @ memory

    ``content`` is the softmax over the slots of strength times cosine, with ``layout.eps`` in both roots.

    Args:
        memory: any strides; float32, float64, or 16 bits (computed in float32). The others have its dtype; beside
            float32 or 16 bits each may be float32, bfloat16 or float16.
        interface: raw values of the controller; the layout's activations are applied here.
        state: of the step before; ``layout.initial_state`` gives the first.
        layout: heads and variant; ``layout.size`` is I.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        reads (B, R, W) and memory of the dtype of ``memory``; the parts of the state keep their dtypes.

    Raises:
        TypeError, ValueError: "dnc_step: argument must ..., got ...".
    """
    old, raw, start = check_step("dnc_step", memory, interface, state, layout, steps=False)
    native = backends.choose("dnc_step", backend, memory) == "native"
    found = _run("dnc_step", native, old, raw.unsqueeze(0), start, layout)
    reads, new, after = _as_given(found, memory, state)
    return DncStep(reads[0], new, after)


@overload
def dnc_sequence(
    memory: Tensor, interface: Tensor, state: DncState, *, layout: DncLayout, trace: Literal[False] = False,
    backend: str | None = None,
) -> DncStep: ...  # fmt: skip
@overload
def dnc_sequence(
    memory: Tensor, interface: Tensor, state: DncState, *, layout: DncLayout, trace: Literal[True],
    backend: str | None = None,
) -> tuple[DncStep, DncTrace]: ...  # fmt: skip


def dnc_sequence(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (T, B, I)
    state: DncState,
    *,
    layout: DncLayout,
    trace: bool = False,
    backend: str | None = None,
) -> DncStep | tuple[DncStep, DncTrace]:
    """T steps of :func:`dnc_step` whose interface vectors are known beforehand, in one call.

    T calls of one step each, memory and state carried, equal one call of T steps, values and gradients.

    Args:
        memory, state, layout, backend: as in :func:`dnc_step`.
        interface: raw values of all steps, any strides; T may be 0.
        trace: also return the weightings and usages of all steps.

    Returns:
        reads (T, B, R, W), and memory and state after the last step; with ``trace`` that and a ``DncTrace``.

    Raises:
        TypeError, ValueError: "dnc_sequence: argument must ..., got ...".
    """
    op = "dnc_sequence"
    checks.flag(op, "trace", trace)
    tensors = check_step(op, memory, interface, state, layout, steps=True)
    native = backends.choose(op, backend, memory) == "native"
    found = _as_given(_run(op, native, *tensors, layout, trace), memory, state)
    if not trace:
        return found
    traced = {name: getattr(found.state, name) for name in DncTrace._fields}
    last = {name: x[-1] if len(x) else getattr(state, name) for name, x in traced.items()}
    return found._replace(state=found.state._replace(**last)), DncTrace(**traced)


def _run(
    op: str, native: bool, memory: Tensor, interface: Tensor, state: DncState, layout: DncLayout,
    trace: bool = False,
) -> DncStep:  # fmt: skip
    """All steps on one backend; with ``trace`` the state holds usages and weightings of all of them."""
    if native and len(interface):
        return DncStep(*autograd.sequence(op, memory, interface, state, layout, trace))
    reads, memory, states = reference.sequence(memory, interface, state, layout)
    if not trace:
        return DncStep(reads, memory, states[-1])
    traced = {name: torch.stack([getattr(s, name) for s in states])[1:] for name in DncTrace._fields}
    return DncStep(reads, memory, states[-1]._replace(**traced))


def _as_given(found: DncStep, memory: Tensor, state: DncState) -> DncStep:
    """The results with the dtypes of the memory and the state that the caller gave."""
    if all(x.dtype == found.memory.dtype for x in (memory, *state[:5])):
        return found
    pairs = zip(found.state, state, strict=True)
    after = DncState._make(x if x is None or y is None else x.to(y.dtype) for x, y in pairs)
    return DncStep(found.reads.to(memory.dtype), found.memory.to(memory.dtype), after)
