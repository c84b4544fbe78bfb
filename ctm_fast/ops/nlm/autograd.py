"""Registration of the native and the Triton ``nlm`` with torch: schemas, fake kernels, autograd."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops import triton
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import CODES, Drop, compute_dtype, drop_args, empty, kernels, threads, zeros

_WEIGHTS = "Tensor w1, Tensor b1, Tensor t1, Tensor? w2, Tensor? b2, Tensor? t2"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
for _suffix in ("", triton.SUFFIX):
    _LIBRARY.define(
        f"nlm_forward{_suffix}(Tensor history, {_WEIGHTS}, float dropout, Tensor? seed) -> Tensor"
    )
    _LIBRARY.define(
        f"nlm_backward{_suffix}(Tensor grad, Tensor history, {_WEIGHTS}, float dropout, Tensor? seed, "
        "bool want_history, bool want_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )

DIRECT_ROWS = 2  # with more rows packing the weights costs less than it saves
Shape = tuple[int, int, int, int, bool]  # rows, D, M, H, deep


def kernels_of(backend: str, device: torch.device) -> Any:
    """The module with ``pack``, ``unpack``, ``run_forward``, ``run_backward``, ``drop_args`` and ``buffer``."""
    if backend == "native" and device.type == "cpu":
        return sys.modules[__name__]
    return importlib.import_module(f"ctm_fast.ops.nlm.{'cuda' if backend == 'native' else 'triton'}")


def buffer(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor (..., rows, B, D) for a history or its gradients."""
    return empty(like, *shape)


def shape_of(rows: int, w1: Tensor, w2: Tensor | None) -> Shape:
    """The kernels' size tuple."""
    memory, outputs, neurons = w1.shape
    return (rows, neurons, memory, outputs // 2, w2 is not None)


def _unpacked(
    w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None, t2: Tensor | None
) -> tuple[list[Tensor], tuple[int | float, ...]]:
    """Weights as the kernels read them, and their addresses and divisors: those are valid while these live."""
    dtype = compute_dtype(w1.dtype)
    held = [x.to(dtype).contiguous() for x in (w1, b1, w2, b2) if x is not None]
    first, second, *rest = (x.data_ptr() for x in held)
    return held, (first, second, t1.item(), *(rest or (0, 0)), t2.item() if t2 is not None else 1.0)


def pack(
    w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None, t2: Tensor | None
) -> Tensor:
    """Weights in the kernels' blocked layout, divided by t1 and t2: one flat tensor of the compute dtype."""
    held, weights = _unpacked(w1, b1, t1, w2, b2, t2)
    code, shape = CODES[held[0].dtype], shape_of(0, w1, w2)
    packed = empty(held[0].detach(), kernels().nlm_packed_size(code, shape))
    kernels().nlm_pack(code, shape, *weights, packed.data_ptr(), threads())
    return packed


def loop_arguments(own: Any, weights: tuple[Tensor, ...], rows: int) -> tuple[Tensor, Shape]:
    """Weights packed by one of :func:`kernels_of`, and sizes of a tick of ``rows`` rows."""
    w1, b1, t1, w2, b2, t2 = (*weights, None, None, None)[:6]
    assert w1 is not None and b1 is not None and t1 is not None
    return own.pack(w1, b1, t1, w2, b2, t2), shape_of(rows, w1, w2)


def window_strides(history: Tensor) -> tuple[int, int, int]:
    """Row, neuron and memory strides of a window of ``history`` (rows, B, D)."""
    memory, row, neuron = history.stride()
    return (row, neuron, memory)


def unpack(
    packed: Tensor, grad: Tensor, w1: Tensor, t1: Tensor, w2: Tensor | None, t2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (w1, b1, t1, w2, b2, t2) from that of ``packed``; the last three are empty if linear."""
    _, outputs, neurons = w1.shape
    new = partial(empty, packed)
    first = (new(*w1.shape), new(1, neurons, outputs), new(1))
    second = (new(*w2.shape), new(1, neurons, 2), new(1)) if w2 is not None else (new(0), new(0), new(0))
    kernels().nlm_unpack(
        CODES[packed.dtype], shape_of(0, w1, w2), packed.data_ptr(), grad.data_ptr(), t1.item(),
        t2.item() if t2 is not None else 1.0, *(x.data_ptr() for x in first + second), threads(),
    )  # fmt: skip
    return first + second


def run_forward(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], z: Tensor
) -> None:
    """Native forward of ``shape[0]`` rows of ``x`` (row, neuron, memory strides) into ``z`` (rows, D)."""
    kernels().nlm_forward(
        CODES[x.dtype], shape, drop, packed.data_ptr(), x.data_ptr(), strides, z.data_ptr(), z.stride(0),
        threads(),
    )  # fmt: skip


def run_backward(
    shape: Shape,
    drop: Drop,
    packed: Tensor,
    x: Tensor,
    strides: tuple[int, ...],
    dz: Tensor,
    dx: Tensor | None,
    dx_strides: tuple[int, ...],
    dpacked: Tensor | None,
) -> None:
    """Native backward: adds to ``dx`` (at ``dx_strides``) and to ``dpacked`` where they are given."""
    kernels().nlm_backward(
        CODES[x.dtype], shape, drop, packed.data_ptr(), x.data_ptr(), strides, dz.data_ptr(), dz.stride(0),
        dx.data_ptr() if dx is not None else 0, dx_strides, dpacked.data_ptr() if dpacked is not None else 0,
        threads(),
    )  # fmt: skip


def _forward(
    history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None,
    t2: Tensor | None, dropout: float, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    z = history.new_empty(history.shape[:2])
    shape, drop = shape_of(history.shape[0], w1, w2), drop_args(dropout, seed)
    if history.shape[0] > DIRECT_ROWS:
        run_forward(shape, drop, pack(w1, b1, t1, w2, b2, t2), history, history.stride(), z)
        return z
    held, weights = _unpacked(w1, b1, t1, w2, b2, t2)
    kernels().nlm_direct(
        CODES[history.dtype], shape, drop, *weights, history.data_ptr(), history.stride(), z.data_ptr(),
        z.stride(0), threads(),
    )  # fmt: skip
    del held
    return z


def _backward(
    grad: Tensor, history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None,
    t2: Tensor | None, dropout: float, seed: Tensor | None, want_history: bool, want_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    packed = pack(w1, b1, t1, w2, b2, t2)
    dx = packed.new_zeros(history.shape) if want_history else None
    dpacked = zeros(packed, *packed.shape) if want_weights else None
    shape = shape_of(history.shape[0], w1, w2)
    dz = grad.to(packed.dtype).contiguous()
    run_backward(
        shape, drop_args(dropout, seed), packed, history, history.stride(), dz, dx,
        dx.stride() if dx is not None else (0, 0, 0), dpacked,
    )  # fmt: skip
    none = (packed.new_empty(0) for _ in range(6))  # outputs of a registered op must not alias
    weights = unpack(packed, dpacked, w1, t1, w2, t2) if dpacked is not None else none
    return (
        dx.to(history.dtype) if dx is not None else history.new_empty(0),
        *(g.to(w1.dtype) for g in weights),
    )


def _fake_forward(history: Tensor, *_: Any) -> Tensor:
    return history.new_empty(history.shape[:2])


def _fake_backward(
    _grad: Tensor, history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None,
    t2: Tensor | None, _dropout: float, _seed: Tensor | None, want_history: bool, want_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    def like(x: Tensor | None, wanted: bool) -> Tensor:
        return w1.new_empty(x.shape if x is not None and wanted else 0)

    dx = history.new_empty(history.shape if want_history else 0)
    return (dx, *(like(x, want_weights) for x in (w1, b1, t1, w2, b2, t2)))


_LIBRARY.impl("nlm_forward", _forward, "CPU")
_LIBRARY.impl("nlm_backward", _backward, "CPU")
for _name in ("nlm_forward", "nlm_backward"):
    _LIBRARY.impl(_name, triton.function("nlm", _name, "cuda"), "CUDA")
torch.library.register_fake("ctm_fast::nlm_forward", _fake_forward)
torch.library.register_fake("ctm_fast::nlm_backward", _fake_backward)
triton.register(_LIBRARY, "nlm", ("nlm_forward", "nlm_backward"), (_fake_forward, _fake_backward))


class Nlm(torch.autograd.Function):
    """Saves the inputs alone; the backward computes the hidden layer again."""

    @staticmethod
    def forward(ctx: Any, backend: str, history: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(history, *rest[:6], rest[7])
        ctx.backend, ctx.dropout = backend, rest[6]
        z: Tensor = triton.op("nlm_forward", backend)(history, *rest)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm")
        *tensors, seed = ctx.saved_tensors
        need = ctx.needs_input_grad[1:8]
        run = triton.op("nlm_backward", ctx.backend)
        grads = run(grad, *tensors, ctx.dropout, seed, need[0], any(need[1:]))
        return (None, *(g if n else None for g, n in zip(grads, need, strict=True)), None, None)


def fused(
    backend: str, history: Tensor, *weights: Tensor | None, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    """The public op on the backend "native" or "triton"."""
    return Nlm.apply(backend, history, *weights, dropout, seed)
