"""Registration of the native ``ntm`` ops with torch: schemas, fake kernels, autograd.

The backward passes take the inputs alone and run forward again. The tensors are in the compute dtype, the memory
(B, N, W) of any strides; a memory that is returned has its slots innermost, as the kernels hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import CODES, kernels, threads
from ctm_fast.ops.ntm.layout import ORDERS

_ADDRESS_ONLY = len(ORDERS)
_NOTHING = (0, 0, 0, 0)

_STEP = "Tensor memory, Tensor interface, Tensor read_weights, Tensor write_weights, int[] layout, float eps"
_STEP_GRADS = "Tensor? dreads, Tensor? dafter, Tensor? dread, Tensor? dwrite"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"
_ADDRESS = "Tensor memory, Tensor values, Tensor previous, int shift, int eps_placement, float eps"
_READ = "Tensor memory, Tensor weights"
_WRITE = "Tensor memory, Tensor weights, Tensor erase, Tensor add"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
for _schema in (
    f"ntm_step_forward({_STEP}) -> {_FOUR}",
    f"ntm_step_backward({_STEP_GRADS}, {_STEP}) -> {_FOUR}",
    f"ntm_sequence_forward({_STEP}, bool trace) -> {_FOUR}",
    f"ntm_sequence_backward({_STEP_GRADS}, {_STEP}, bool trace) -> {_FOUR}",
    f"ntm_address_forward({_ADDRESS}) -> Tensor",
    f"ntm_address_backward(Tensor grad, {_ADDRESS}) -> (Tensor, Tensor, Tensor)",
    f"ntm_read_forward({_READ}) -> Tensor",
    f"ntm_read_backward(Tensor grad, {_READ}) -> (Tensor, Tensor)",
    f"ntm_write_forward({_WRITE}) -> Tensor",
    f"ntm_write_backward(Tensor grad, {_WRITE}) -> {_FOUR}",
):
    _LIBRARY.define(_schema)

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _sizes(memory: Tensor, steps: int, read: int, write: int, shift: int = 1) -> tuple[int, ...]:
    return (steps, *memory.shape, read, write, shift)


def _variant(layout: Sequence[int], eps: float) -> tuple[Any, ...]:
    return (*layout[3:7], bool(layout[7]), bool(layout[8]), True, eps)


def _strided(memory: Tensor | None) -> tuple[int, ...]:
    return _NOTHING if memory is None else (memory.data_ptr(), *memory.stride())


def _slots_innermost(like: Tensor) -> Tensor:
    """An uninitialised memory of the shape of ``like``."""
    batch, slots, width = like.shape
    return like.new_empty(batch, width, slots).transpose(1, 2)


def _rows(interface: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Interface vectors (T, B, I), or (B, I) of one step, as the kernels take them."""
    if interface.stride(-1) != 1:
        interface = interface.contiguous()
    step = interface.stride(0) if interface.dim() == 3 else 0
    return interface, (interface.data_ptr(), step, interface.stride(-2))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _step_between(weights: Tensor | None) -> int:
    """Elements from one step's weights to the next's; 0 where those of the last step are the only ones."""
    return weights.stride(0) if weights is not None and weights.dim() == 4 else 0


def _pair(read: Tensor | None, write: Tensor | None) -> tuple[int, int, int, int]:
    return (_address(read), _address(write), _step_between(read), _step_between(write))


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _forward(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    trace: bool = False,
) -> Four:  # fmt: skip
    """After one step (B, I), or after T > 0 steps (T, B, I); with ``trace`` the weights of all steps."""
    steps = interface.shape[:-2]
    batch, slots, width = memory.shape
    count, (read, write, shift) = steps[0] if steps else 1, layout[:3]
    reads, after = memory.new_empty(*steps, batch, read, width), _slots_innermost(memory)
    of = steps if trace else ()
    weights = memory.new_empty(*of, batch, read, slots), memory.new_empty(*of, batch, write, slots)
    interface, rows = _rows(interface)
    before = read_weights.contiguous(), write_weights.contiguous()
    kernels().ntm_forward(
        CODES[memory.dtype], _sizes(memory, count, read, write, shift), _variant(layout, eps), _strided(memory),
        rows, _pair(*before), reads.data_ptr(), after.data_ptr(), _pair(*weights), threads(),
    )  # fmt: skip
    return reads, after, *weights


def _backward(
    dreads: Tensor | None, dafter: Tensor | None, dread: Tensor | None, dwrite: Tensor | None, memory: Tensor,
    interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    *_: Any,
) -> Four:  # fmt: skip
    count, (read, write, shift) = interface.shape[0] if interface.dim() == 3 else 1, layout[:3]
    interface, rows = _rows(interface)
    before = read_weights.contiguous(), write_weights.contiguous()
    dreads, dread, dwrite = _dense(dreads), _dense(dread), _dense(dwrite)
    dmemory = _slots_innermost(memory)
    dinterface = torch.empty_like(interface, memory_format=torch.contiguous_format)
    dprevious = torch.empty_like(before[0]), torch.empty_like(before[1])
    kernels().ntm_backward(
        CODES[memory.dtype], _sizes(memory, count, read, write, shift), _variant(layout, eps), _strided(memory),
        rows, _pair(*before), _address(dreads), _strided(dafter), _pair(dread, dwrite), dmemory.data_ptr(),
        dinterface.data_ptr(), _pair(*dprevious), threads(),
    )  # fmt: skip
    return dmemory, dinterface, *dprevious


def _address_arguments(
    memory: Tensor, values: Tensor, previous: Tensor, shift: int, eps_placement: int, eps: float
) -> Any:
    """The kernels' arguments in front of what they write; the tensors must outlive the call."""
    values, previous = values.contiguous(), previous.contiguous()
    heads = previous.shape[1]
    variant = (_ADDRESS_ONLY, eps_placement, 0, 0, False, False, False, eps)
    rows = (values.data_ptr(), 0, heads * values.shape[2])
    sizes = _sizes(memory, 1, heads, 0, shift)
    return (values, previous), (
        CODES[memory.dtype],
        sizes,
        variant,
        _strided(memory),
        rows,
        _pair(previous, None),
    )


def _address_forward(memory: Tensor, values: Tensor, previous: Tensor, *rest: Any) -> Tensor:
    _kept, arguments = _address_arguments(memory, values, previous, *rest)
    weights = torch.empty_like(previous, memory_format=torch.contiguous_format)
    kernels().ntm_forward(*arguments, 0, 0, _pair(weights, None), threads())
    return weights


def _address_backward(
    grad: Tensor, memory: Tensor, values: Tensor, previous: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    (values, previous), arguments = _address_arguments(memory, values, previous, *rest)
    grad, dmemory = grad.contiguous(), _slots_innermost(memory)
    dvalues, dprevious = torch.empty_like(values), torch.empty_like(previous)
    kernels().ntm_backward(
        *arguments, 0, _NOTHING, _pair(grad, None), dmemory.data_ptr(), dvalues.data_ptr(), _pair(dprevious, None),
        threads(),
    )  # fmt: skip
    return dmemory, dvalues, dprevious


def _read_forward(memory: Tensor, weights: Tensor) -> Tensor:
    weights, heads = weights.contiguous(), weights.shape[1]
    reads = memory.new_empty(memory.shape[0], heads, memory.shape[2])
    kernels().ntm_read(
        CODES[memory.dtype], _sizes(memory, 1, heads, 0), _strided(memory), weights.data_ptr(), reads.data_ptr(),
        threads(),
    )  # fmt: skip
    return reads


def _read_backward(grad: Tensor, memory: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    grad, weights = grad.contiguous(), weights.contiguous()
    dmemory, dweights = _slots_innermost(memory), torch.empty_like(weights)
    kernels().ntm_read_backward(
        CODES[memory.dtype], _sizes(memory, 1, weights.shape[1], 0), _strided(memory), weights.data_ptr(),
        grad.data_ptr(), dmemory.data_ptr(), dweights.data_ptr(), threads(),
    )  # fmt: skip
    return dmemory, dweights


def _write_forward(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    given = [x.contiguous() for x in (weights, erase, add)]
    after = _slots_innermost(memory)
    kernels().ntm_write(
        CODES[memory.dtype], _sizes(memory, 1, 0, weights.shape[1]), _strided(memory), *(x.data_ptr() for x in given),
        after.data_ptr(), threads(),
    )  # fmt: skip
    return after


def _write_backward(grad: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Four:
    given = [x.contiguous() for x in (weights, erase, add)]
    found = (_slots_innermost(memory), *(torch.empty_like(x) for x in given))
    kernels().ntm_write_backward(
        CODES[memory.dtype], _sizes(memory, 1, 0, weights.shape[1]), _strided(memory), *(x.data_ptr() for x in given),
        _strided(grad), *(x.data_ptr() for x in found), threads(),
    )  # fmt: skip
    return found  # type: ignore[return-value]


def _fake_forward(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    steps = interface.shape[:-2]
    of = steps if rest[2:] == (True,) else ()
    reads = memory.new_empty(*steps, *read_weights.shape[:2], memory.shape[2])
    weights = (memory.new_empty(*of, *x.shape) for x in (read_weights, write_weights))
    return reads, _slots_innermost(memory), *weights


def _fake_gradients(memory: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    return (_slots_innermost(memory), *(x.new_empty(x.shape) for x in others))


class Kernel(NamedTuple):
    """Forward and backward of a registered op, and how many tensors it takes."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    fake: Callable[..., Any]
    tensors: int


KERNELS = {
    "ntm_step": Kernel(_forward, _backward, _fake_forward, 4),
    "ntm_sequence": Kernel(_forward, _backward, _fake_forward, 4),
    "ntm_address": Kernel(
        _address_forward, _address_backward, lambda _, __, p, *___: p.new_empty(p.shape), 3
    ),
    "ntm_read": Kernel(
        _read_forward, _read_backward, lambda m, w: m.new_empty(m.shape[0], w.shape[1], m.shape[2]), 2
    ),
    "ntm_write": Kernel(_write_forward, _write_backward, lambda m, *_: _slots_innermost(m), 4),
}


def _register(name: str, kernel: Kernel) -> None:
    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grads = 4 if kernel.fake is _fake_forward else 1
        return _fake_gradients(*arguments[grads : grads + kernel.tensors])

    _LIBRARY.impl(f"{name}_forward", kernel.forward, "CPU")
    _LIBRARY.impl(f"{name}_backward", kernel.backward, "CPU")
    torch.library.register_fake(f"ctm_fast::{name}_forward", kernel.fake)
    torch.library.register_fake(f"ctm_fast::{name}_backward", fake_backward)


for _name, _kernel in KERNELS.items():
    _register(_name, _kernel)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, *arguments: Any) -> Any:
        count = KERNELS[name].tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:count])
        ctx.name, ctx.rest = name, arguments[count:]
        return _call(name, "forward", arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward(ctx.name)
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        found = _call(ctx.name, "backward", (*grads, *ctx.saved_tensors, *ctx.rest))
        return (None, *found, *(None for _ in ctx.rest))


def _call(name: str, way: str, arguments: tuple[Any, ...]) -> Any:
    """Through torch's dispatcher only where somebody traces: it costs more than a step."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.ctm_fast, f"{name}_{way}")(*arguments)
    return getattr(KERNELS[name], way)(*arguments)


def native(name: str, *arguments: Any) -> Any:
    """The op ``name`` on the native backend: tensors in the compute dtype, then the rest of its schema."""
    tensors = arguments[: KERNELS[name].tensors]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _Native.apply(name, *arguments)
    return _call(name, "forward", arguments)
