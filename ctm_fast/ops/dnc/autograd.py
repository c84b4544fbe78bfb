"""Registration of the native ``dnc`` ops and the Triton ``dnc_link`` with torch: schemas, fake kernels, autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops import triton
from ctm_fast.ops.dnc.layout import DncLayout, DncState
from ctm_fast.ops.dnc.reference import check_slots
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import CODES, empty, kernels, threads

_STATE = "Tensor usage, Tensor link, Tensor precedence, Tensor write, Tensor read, Tensor columns"
_STEPS = f"Tensor memory, Tensor interface, {_STATE}, float eps, float usage_eps, bool oneplus, bool detach"
_LINK = "Tensor link, Tensor precedence, Tensor write, Tensor read, Tensor columns"


def _tensors(names: str, suffix: str = "") -> str:
    return ", ".join(f"Tensor {suffix}{name}" for name in names.split())


def _results(count: int) -> str:
    return "(" + ", ".join(["Tensor"] * count) + ")"


_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
_LIBRARY.define("dnc_allocation_forward(Tensor usage, float eps) -> Tensor")
_LIBRARY.define("dnc_allocation_backward(Tensor dallocation, Tensor usage, float eps) -> Tensor")
_LINK_GRADS = _tensors("link precedence forward backward", "d")
for _suffix in ("", triton.SUFFIX):
    _LIBRARY.define(f"dnc_link_forward{_suffix}({_LINK}) -> {_results(5)}")
    _LIBRARY.define(f"dnc_link_backward{_suffix}({_LINK_GRADS}, {_LINK}) -> {_results(4)}")
_LIBRARY.define(f"dnc_sequence_forward({_STEPS}) -> {_results(8)}")
_LIBRARY.define(
    f"dnc_sequence_backward({_tensors('reads memory usage link precedence write read', 'd')}, {_STEPS}, "
    f"{_tensors('usages writes weights')}) -> {_results(7)}"
)


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]


def _shape(steps: int, width: int, read: Tensor, link: Tensor, columns: Tensor) -> tuple[Any, ...]:
    """The kernels' sizes: T, B, N, W, R, K, sparse."""
    batch, heads, slots = read.shape
    return (steps, batch, slots, width, heads, link.shape[2], columns.shape[2] > 0)


def _allocation_forward(usage: Tensor, eps: float) -> Tensor:
    usage = usage.contiguous()
    out = empty(usage, *usage.shape)
    n = (1, *usage.shape, 0, 0, 0, False)
    kernels().dnc_allocation(CODES[usage.dtype], n, eps, usage.data_ptr(), out.data_ptr(), threads())
    return out


def _allocation_backward(gradient: Tensor, usage: Tensor, eps: float) -> Tensor:
    gradient, usage = gradient.contiguous(), usage.contiguous()
    out = empty(usage, *usage.shape)
    n = (1, *usage.shape, 0, 0, 0, False)
    kernels().dnc_allocation_backward(
        CODES[usage.dtype], n, eps, usage.data_ptr(), gradient.data_ptr(), out.data_ptr(), threads()
    )
    return out


def _link_inputs(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Any, ...], list[int]]:
    """Contiguous link, precedence, write, read and columns; the kernels' sizes and addresses of inputs."""
    found = [x.contiguous() for x in tensors]
    link, _, _, read, columns = found
    check_slots(columns)
    return found, _shape(1, 0, read, link, columns), [0, 0, 0, *_addresses(found)]


def _link_forward(*tensors: Tensor) -> tuple[Tensor, ...]:
    found, n, inputs = _link_inputs(tensors)
    link, precedence, _, read, columns = found
    out = [empty(x, *x.shape) for x in (link, precedence, read, read)]
    after = torch.empty_like(columns)
    kernels().dnc_link_forward(CODES[link.dtype], n, inputs, _addresses(out), after.data_ptr(), threads())
    return (*out, after)


def _link_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    grads = [g.contiguous() for g in tensors[:4]]
    found, n, inputs = _link_inputs(tensors[4:])
    out = [empty(x, *x.shape) for x in found[:4]]
    placed = [0, 0, 0, *_addresses(out)]
    kernels().dnc_link_backward(CODES[out[0].dtype], n, inputs, _addresses(grads), placed, threads())
    return tuple(out)


def _sequence_shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the results: reads, memory, usage, link, precedence, write, read."""
    memory, interface, _, link, precedence, _, read = tensors[:7]
    steps, (batch, heads, slots) = interface.shape[0], read.shape
    reads, weights = (steps, batch, heads, memory.shape[2]), (steps, batch, slots)
    return reads, memory.shape, weights, link.shape, precedence.shape, weights, (steps, batch, heads, slots)


def _sequence_forward(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, options = [x.contiguous() for x in arguments[:8]], arguments[8:]
    memory, interface, _, link, _, _, read, columns = tensors
    check_slots(columns)
    n = _shape(interface.shape[0], memory.shape[2], read, link, columns)
    out = [empty(memory, *shape) for shape in _sequence_shapes(tensors)]
    after = torch.empty_like(columns)
    kernels().dnc_forward(
        CODES[memory.dtype], n, options, _addresses(tensors), _addresses(out), after.data_ptr(), threads()
    )
    return (*out, after)


def _sequence_backward(*arguments: Any) -> tuple[Tensor, ...]:
    grads, tensors = ([x.contiguous() for x in part] for part in (arguments[:7], arguments[7:15]))
    options, (usages, writes, weights) = arguments[15:19], (x.contiguous() for x in arguments[19:])
    memory, interface, _, link, _, _, read, columns = tensors
    check_slots(columns)
    out = [empty(x, *x.shape) for x in tensors[:7]]
    n = _shape(interface.shape[0], memory.shape[2], read, link, columns)
    saved = [0, 0, usages.data_ptr(), 0, 0, writes.data_ptr(), weights.data_ptr()]
    kernels().dnc_backward(
        CODES[memory.dtype], n, options, _addresses(tensors), saved, _addresses(grads), _addresses(out),
        threads(),
    )  # fmt: skip
    return tuple(out)


def _fake(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in tensors)


def _fake_sequence_forward(*arguments: Any) -> tuple[Tensor, ...]:
    memory, columns = arguments[0], arguments[7]
    return (*(memory.new_empty(shape) for shape in _sequence_shapes(arguments)), *_fake(columns))


_KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dnc_allocation_forward": (_allocation_forward, lambda usage, _eps: usage.new_empty(usage.shape)),
    "dnc_allocation_backward": (_allocation_backward, lambda _, usage, _eps: usage.new_empty(usage.shape)),
    "dnc_link_forward": (_link_forward, lambda *x: _fake(*x[:2], x[3], x[3], x[4])),
    "dnc_link_backward": (_link_backward, lambda *x: _fake(*x[4:8])),
    "dnc_sequence_forward": (_sequence_forward, _fake_sequence_forward),
    "dnc_sequence_backward": (_sequence_backward, lambda *x: _fake(*x[7:14])),
}
for _name, (_kernel, _shapes) in _KERNELS.items():
    _LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"ctm_fast::{_name}", _shapes)
_LINKS = ("dnc_link_forward", "dnc_link_backward")
triton.register(_LIBRARY, "dnc", _LINKS, [_KERNELS[_name][1] for _name in _LINKS])


class _Allocation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, usage: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(usage)
        ctx.eps = eps
        return torch.ops.ctm_fast.dnc_allocation_forward(usage, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        refuse_double_backward("dnc_allocation")
        return torch.ops.ctm_fast.dnc_allocation_backward(*grads, *ctx.saved_tensors, ctx.eps), None


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.backend = backend
        found = triton.op("dnc_link_forward", backend)(*tensors)
        ctx.mark_non_differentiable(found[4])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("dnc_link")
        found = triton.op("dnc_link_backward", ctx.backend)(*grads[:4], *ctx.saved_tensors)
        return (None, *_wanted(found, ctx.needs_input_grad[1:]), None)


class _Steps(torch.autograd.Function):
    """Saves the inputs, usages and weightings; the backward replays memory and links.

    Returns what the registered op does; of usages and weightings those of the last step alone, unless ``trace``.
    """

    @staticmethod
    def forward(ctx: Any, op: str, trace: bool, options: tuple[Any, ...], *tensors: Tensor) -> Any:
        found = torch.ops.ctm_fast.dnc_sequence_forward(*tensors, *options)
        _, _, usage, _, _, write, read, columns = found
        ctx.save_for_backward(*tensors, usage, write, read)
        ctx.op, ctx.trace, ctx.options = op, trace, options
        ctx.mark_non_differentiable(columns)
        return found if trace else _last(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward(ctx.op)
        inputs, saved = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        dreads, dmemory, dusage, dlink, dprecedence, dwrite, dread = grads[:7]
        if not ctx.trace:
            dusage, dwrite, dread = (_of_last(g, inputs[1].shape[0]) for g in (dusage, dwrite, dread))
        found = torch.ops.ctm_fast.dnc_sequence_backward(
            dreads, dmemory, dusage, dlink, dprecedence, dwrite, dread, *inputs, *ctx.options, *saved
        )
        return (None, None, None, *_wanted(found, ctx.needs_input_grad[3:]), None)


def _wanted(found: Sequence[Tensor], need: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(g if wanted else None for g, wanted in zip(found, need, strict=False))


def _last(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results with usage and weightings of the last step alone."""
    reads, memory, usage, link, precedence, write, read, columns = found
    usage, write, read = (x[0] if len(reads) == 1 else x[-1].clone() for x in (usage, write, read))
    return reads, memory, usage, link, precedence, write, read, columns


def _of_last(gradient: Tensor, steps: int) -> Tensor:
    """The gradient of the values of all steps, from that of the last one's."""
    if steps == 1:
        return gradient.unsqueeze(0)
    before = gradient.new_zeros(steps - 1, *gradient.shape)
    return torch.cat((before, gradient.unsqueeze(0)))


def _columns(slots: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(*like.shape[:2], 0, dtype=torch.int64) if slots is None else slots


def allocation(usage: Tensor, eps: float) -> Tensor:
    """As ``reference.allocation``, on the native backend."""
    return _Allocation.apply(usage, eps)


def links(
    backend: str, link: Tensor, precedence: Tensor, write: Tensor, read: Tensor, slots: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """As ``reference.links``, on the backend "native" or, with dense links, "triton"."""
    tensors = (link, precedence, write, read, _columns(slots, link))
    link, last, forward, backward, columns = _Link.apply(backend, *tensors)
    return link, None if slots is None else columns, last, forward, backward


def sequence(
    op: str, memory: Tensor, interface: Tensor, state: DncState, layout: DncLayout, trace: bool
) -> tuple[Tensor, Tensor, DncState]:
    """Reads (T, B, R, W), memory and state after T > 0 steps, on the native backend.

    With ``trace`` the state holds usages and weightings of all steps.
    """
    options = (layout.eps, layout.usage_eps, layout.strength == "oneplus", layout.detach_writes)
    tensors = (memory, interface, *state[:5], _columns(state.link_slots, memory))
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        found = _Steps.apply(op, trace, options, *tensors)
    else:
        found = torch.ops.ctm_fast.dnc_sequence_forward(*tensors, *options)
        found = found if trace else _last(found)
    reads, memory, *after, columns = found
    return reads, memory, DncState._make((*after, None if state.link_slots is None else columns))
