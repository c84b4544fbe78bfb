"""One step, or a sequence of steps, of all heads of a Neural Turing Machine from raw interface vectors."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.ntm import autograd, reference
from ctm_fast.ops.ntm.arguments import cast, check_step, too_large
from ctm_fast.ops.ntm.layout import NtmLayout


class NtmStep(NamedTuple):
    """What a step or a sequence returns.

    Attributes:
        reads: (B, R, W), or (T, B, R, W) of a sequence.
        memory: (B, N, W) after the last step.
        read_weights: (B, R, N) of the last step.
        write_weights: (B, V, N) of the last step.
    """

    reads: Tensor
    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor


class NtmTrace(NamedTuple):
    """The weightings of all steps of a sequence, differentiable.

    Attributes:
        read_weights: (T, B, R, N).
        write_weights: (T, B, V, N).
    """

    read_weights: Tensor
    write_weights: Tensor


def ntm_step(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (B, I)
    read_weights: Tensor,  # (B, R, N)
    write_weights: Tensor,  # (B, V, N)
    *,
    layout: NtmLayout,
    backend: str | None = None,
) -> NtmStep:
    """One step of the memory of a Neural Turing Machine (arXiv 1410.5401, section 3), all heads at once.

    Equivalent to ``heads = layout.split(interface)``, then :func:`ntm_address`, :func:`ntm_write` and
    :func:`ntm_read` in the layout's order.

    Args:
        memory: any strides; float32, float64, or 16 bits (computed in float32). The others have its dtype; beside
            float32 or 16 bits each may be float32, bfloat16 or float16.
        interface: raw values of the controller; the layout's activations are applied here.
        read_weights, write_weights: weightings of the step before.
        layout: heads and variant; ``layout.size`` is I.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``, which takes up to 1024 slots.

    Returns:
        reads (B, R, W) and memory of the dtype of ``memory``, weights of the dtypes of the weights given.

    Raises:
        TypeError, ValueError: "ntm_step: argument must ..., got ...".
    """
    tensors = check_step("ntm_step", memory, interface, read_weights, write_weights, layout, steps=False)
    name = backends.choose("ntm_step", backend, memory, too_large(memory))
    if name != "reference":
        reads, new, read, write = autograd.run(name, "ntm_step", *tensors, layout.encoded, layout.eps)
    else:
        reads, new, read, write = reference.step(*tensors, layout)
    return NtmStep(
        cast(reads, memory.dtype),
        cast(new, memory.dtype),
        cast(read, read_weights.dtype),
        cast(write, write_weights.dtype),
    )


@overload
def ntm_sequence(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, *, layout: NtmLayout,
    trace: Literal[False] = False, backend: str | None = None,
) -> NtmStep: ...  # fmt: skip
@overload
def ntm_sequence(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, *, layout: NtmLayout,
    trace: Literal[True], backend: str | None = None,
) -> tuple[NtmStep, NtmTrace]: ...  # fmt: skip


def ntm_sequence(
    memory: Tensor,  # (B, N, W)
    interface: Tensor,  # (T, B, I)
    read_weights: Tensor,  # (B, R, N)
    write_weights: Tensor,  # (B, V, N)
    *,
    layout: NtmLayout,
    trace: bool = False,
    backend: str | None = None,
) -> NtmStep | tuple[NtmStep, NtmTrace]:
    """T steps of :func:`ntm_step` whose interface vectors are known beforehand, in one call.

    T calls of one step each, memory and weights carried, equal one call of T steps, values and gradients.

    Args:
        memory, read_weights, write_weights, layout, backend: as in :func:`ntm_step`.
        interface: raw values of all steps, any strides; T may be 0.
        trace: also return the weightings of all steps.

    Returns:
        reads (T, B, R, W), and memory and weights after the last step; with ``trace`` that and an ``NtmTrace``.

    Raises:
        TypeError, ValueError: "ntm_sequence: argument must ..., got ...".
    """
    op = "ntm_sequence"
    checks.flag(op, "trace", trace)
    tensors = check_step(op, memory, interface, read_weights, write_weights, layout, steps=True)
    name = backends.choose(op, backend, memory, too_large(memory))
    if name != "reference" and interface.shape[0]:
        reads, new, read, write = autograd.run(name, op, *tensors, layout.encoded, layout.eps, trace)
    else:
        reads, new, weights = reference.sequence(*tensors, layout)
        read, write = (weights[1:] if trace else weights[-1]).tensor_split([layout.read_heads], -2)
    read, write = cast(read, read_weights.dtype), cast(write, write_weights.dtype)
    reads, new = cast(reads, memory.dtype), cast(new, memory.dtype)
    if not trace:
        return NtmStep(reads, new, read, write)
    if not interface.shape[0]:
        return NtmStep(reads, new, read_weights, write_weights), NtmTrace(read, write)
    return NtmStep(reads, new, read[-1], write[-1]), NtmTrace(read, write)
