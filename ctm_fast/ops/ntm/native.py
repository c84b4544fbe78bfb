"""Calls of the native kernels of the ``ntm`` ops, forward and backward.

The backward passes take the inputs alone and run forward again. The tensors are in the compute dtype, the memory
(B, N, W) of any strides; a memory that is returned has its slots innermost, as the kernels hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops.native import CODES, kernels, threads
from ctm_fast.ops.ntm.layout import ORDERS

Four = tuple[Tensor, Tensor, Tensor, Tensor]

_ADDRESS_ONLY = len(ORDERS)
_NOTHING = (0, 0, 0, 0)


def _sizes(memory: Tensor, steps: int, read: int, write: int, shift: int = 1) -> tuple[int, ...]:
    return (steps, *memory.shape, read, write, shift)


def _variant(layout: Sequence[int], eps: float) -> tuple[Any, ...]:
    return (*layout[3:7], bool(layout[7]), bool(layout[8]), True, eps)


def _strided(memory: Tensor | None) -> tuple[int, ...]:
    return _NOTHING if memory is None else (memory.data_ptr(), *memory.stride())


def slots_innermost(like: Tensor) -> Tensor:
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


def step_forward(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    trace: bool = False,
) -> Four:  # fmt: skip
    """Reads, memory, read and write weights after one step (B, I), or after T > 0 steps (T, B, I).

    With ``trace`` the weights are those of all steps.
    """
    steps = interface.shape[:-2]
    batch, slots, width = memory.shape
    count, (read, write, shift) = steps[0] if steps else 1, layout[:3]
    reads, after = memory.new_empty(*steps, batch, read, width), slots_innermost(memory)
    of = steps if trace else ()
    weights = memory.new_empty(*of, batch, read, slots), memory.new_empty(*of, batch, write, slots)
    interface, rows = _rows(interface)
    before = read_weights.contiguous(), write_weights.contiguous()
    kernels().ntm_forward(
        CODES[memory.dtype], _sizes(memory, count, read, write, shift), _variant(layout, eps), _strided(memory),
        rows, _pair(*before), reads.data_ptr(), after.data_ptr(), _pair(*weights), threads(),
    )  # fmt: skip
    return reads, after, *weights


def step_backward(
    dreads: Tensor | None, dafter: Tensor | None, dread: Tensor | None, dwrite: Tensor | None, memory: Tensor,
    interface: Tensor, read_weights: Tensor, write_weights: Tensor, layout: Sequence[int], eps: float,
    *_: Any,
) -> Four:  # fmt: skip
    """Gradients of memory, interface, read and write weights."""
    count, (read, write, shift) = interface.shape[0] if interface.dim() == 3 else 1, layout[:3]
    interface, rows = _rows(interface)
    before = read_weights.contiguous(), write_weights.contiguous()
    dreads, dread, dwrite = _dense(dreads), _dense(dread), _dense(dwrite)
    dmemory = slots_innermost(memory)
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
    first = (CODES[memory.dtype], sizes, variant, _strided(memory), rows, _pair(previous, None))
    return (values, previous), first


def address_forward(memory: Tensor, values: Tensor, previous: Tensor, *rest: Any) -> Tensor:
    """Weights (B, H, N) from activated values (B, H, W + S + 3), in the order of an interface vector."""
    _kept, arguments = _address_arguments(memory, values, previous, *rest)
    weights = torch.empty_like(previous, memory_format=torch.contiguous_format)
    kernels().ntm_forward(*arguments, 0, 0, _pair(weights, None), threads())
    return weights


def address_backward(
    grad: Tensor, memory: Tensor, values: Tensor, previous: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of memory, values and previous weights."""
    (values, previous), arguments = _address_arguments(memory, values, previous, *rest)
    grad, dmemory = grad.contiguous(), slots_innermost(memory)
    dvalues, dprevious = torch.empty_like(values), torch.empty_like(previous)
    kernels().ntm_backward(
        *arguments, 0, _NOTHING, _pair(grad, None), dmemory.data_ptr(), dvalues.data_ptr(), _pair(dprevious, None),
        threads(),
    )  # fmt: skip
    return dmemory, dvalues, dprevious


def read_forward(memory: Tensor, weights: Tensor) -> Tensor:
    """Reads (B, H, W)."""
    weights, heads = weights.contiguous(), weights.shape[1]
    reads = memory.new_empty(memory.shape[0], heads, memory.shape[2])
    kernels().ntm_read(
        CODES[memory.dtype], _sizes(memory, 1, heads, 0), _strided(memory), weights.data_ptr(), reads.data_ptr(),
        threads(),
    )  # fmt: skip
    return reads


def read_backward(grad: Tensor, memory: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of memory and weights."""
    grad, weights = grad.contiguous(), weights.contiguous()
    dmemory, dweights = slots_innermost(memory), torch.empty_like(weights)
    kernels().ntm_read_backward(
        CODES[memory.dtype], _sizes(memory, 1, weights.shape[1], 0), _strided(memory), weights.data_ptr(),
        grad.data_ptr(), dmemory.data_ptr(), dweights.data_ptr(), threads(),
    )  # fmt: skip
    return dmemory, dweights


def write_forward(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """The memory after all heads wrote."""
    given = [x.contiguous() for x in (weights, erase, add)]
    after = slots_innermost(memory)
    kernels().ntm_write(
        CODES[memory.dtype], _sizes(memory, 1, 0, weights.shape[1]), _strided(memory), *(x.data_ptr() for x in given),
        after.data_ptr(), threads(),
    )  # fmt: skip
    return after


def write_backward(grad: Tensor, memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Four:
    """Gradients of memory, weights, erase and add."""
    given = [x.contiguous() for x in (weights, erase, add)]
    found = (slots_innermost(memory), *(torch.empty_like(x) for x in given))
    kernels().ntm_write_backward(
        CODES[memory.dtype], _sizes(memory, 1, 0, weights.shape[1]), _strided(memory), *(x.data_ptr() for x in given),
        _strided(grad), *(x.data_ptr() for x in found), threads(),
    )  # fmt: skip
    return found  # type: ignore[return-value]
