"""A linear map applied at every tick: packed once for the native kernel where that pays, torch's product elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops.native import CODES, empty, kernels, threads

PACK_ROWS = 96  # rows over all ticks from which packing costs less than it saves
PACK_TICKS = 12


class Product:
    """y = init + x w^T by torch's product.

    Args:
        weight: (N, K), any strides, outside autograd.
        bias: (N), or None for zeros.
        batch, ticks: how it will be used.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, batch: int, ticks: int) -> None:
        self.weight, self.bias = weight, bias
        self.outputs, self.inputs = weight.shape

    def __call__(self, x: Tensor, out: Tensor | None = None, init: Tensor | None = None) -> Tensor:
        """X (R, K) -> (R, N), into ``out`` if given. ``init`` (R, N) replaces the bias and may be ``out`` itself."""
        if out is None:
            out = x.new_empty(x.shape[0], self.outputs)
        start = init if init is not None else self.bias
        if start is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(start, x, self.weight.t(), out=out)


class Linear(Product):
    """y = init + x w^T for x of ``batch`` rows at each of ``ticks`` ticks.

    Args:
        weight: (N, K), any strides, outside autograd.
        bias: (N), or None for zeros.
        batch, ticks: how it will be used; decides whether the weight is packed. torch's product, unlike the
            kernel's, may round otherwise for another number of threads.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, batch: int, ticks: int) -> None:
        super().__init__(weight, bias, batch, ticks)
        self.code, self.threads = CODES[weight.dtype], threads()
        self.packed: Tensor | None = None
        if batch * ticks >= PACK_ROWS or ticks >= PACK_TICKS:
            self.packed = pack(weight)

    def __call__(self, x: Tensor, out: Tensor | None = None, init: Tensor | None = None) -> Tensor:
        """As :meth:`Product.__call__`."""
        if self.packed is None:
            return super().__call__(x, out, init)
        if out is None:
            out = x.new_empty(x.shape[0], self.outputs)
        start = init if init is not None else self.bias
        kernels().linear(
            self.code, x.shape[0], self.outputs, self.inputs, x.data_ptr(), x.stride(0), self.packed.data_ptr(),
            start.data_ptr() if start is not None else 0, init.stride(0) if init is not None else 0, out.data_ptr(),
            out.stride(0), self.threads,
        )  # fmt: skip
        return out


def pack(weight: Tensor) -> Tensor:
    """The kernel's panels of a weight (N, K) of any strides."""
    code, (outputs, inputs) = CODES[weight.dtype], weight.shape
    packed = empty(weight, kernels().linear_packed_size(code, outputs, inputs))
    kernels().linear_pack(
        code,
        outputs,
        inputs,
        weight.data_ptr(),
        weight.stride(0),
        weight.stride(1),
        packed.data_ptr(),
        threads(),
    )
    return packed


def outer(upward: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """upward^T x: gradients (R, N) and inputs (R, K) of a linear map -> the gradient (N, K) of its weight."""
    result = empty(x, upward.shape[1], x.shape[1]) if out is None else out
    code, rows = CODES[x.dtype], upward.t().contiguous()
    packed = pack(x.t())
    kernels().linear(
        code, rows.shape[0], x.shape[1], x.shape[0], rows.data_ptr(), rows.stride(0), packed.data_ptr(), 0, 0,
        result.data_ptr(), result.stride(0), threads(),
    )  # fmt: skip
    return result


def outer_product(upward: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`outer` by torch's product."""
    return torch.mm(upward.t(), x) if out is None else torch.mm(upward.t(), x, out=out)
