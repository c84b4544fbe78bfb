"""Registration of the native halting weights and means with torch: schemas, fake kernels, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops import checks
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import CODES, empty, kernels, threads, zeros

_WEIGHTS = "Tensor probabilities, Tensor samples, int batch, float epsilon, bool force_halt"
_MEAN = "Tensor values, Tensor weights, Tensor samples, int batch"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
_LIBRARY.define(f"halting_weights_forward({_WEIGHTS}) -> (Tensor, Tensor)")
_LIBRARY.define(f"halting_weights_backward(Tensor dweights, Tensor dponder, {_WEIGHTS}) -> Tensor")
_LIBRARY.define(f"halting_mean_forward({_MEAN}) -> Tensor")
_LIBRARY.define(f"halting_mean_backward(Tensor dout, {_MEAN}) -> (Tensor, Tensor)")


def _indices(op: str, samples: Tensor, batch: int) -> Tensor:
    """Samples as the kernels take them, int32, checked against B: a bad index never reaches native code."""
    checks.indices(op, "samples", samples, batch)
    return samples.to(torch.int32).contiguous()


def _weights(
    h: Tensor, samples: Tensor, batch: int, epsilon: float, force_halt: bool
) -> tuple[Tensor, Tensor]:
    h, samples = h.contiguous(), _indices("halting_weights", samples, batch)
    weights, ponder, total = torch.empty_like(h), zeros(h, batch), zeros(h, batch)
    left = samples.new_zeros(batch)
    kernels().halting_weights(
        CODES[h.dtype], (h.shape[0], batch, 1), 1 - epsilon, force_halt, h.data_ptr(), samples.data_ptr(),
        left.data_ptr(), total.data_ptr(), weights.data_ptr(), ponder.data_ptr(),
    )  # fmt: skip
    return weights, ponder


def _weights_backward(
    dweights: Tensor,
    dponder: Tensor,
    h: Tensor,
    samples: Tensor,
    batch: int,
    epsilon: float,
    force_halt: bool,
) -> Tensor:
    h, samples = h.contiguous(), _indices("halting_weights", samples, batch)
    dweights, dponder = dweights.contiguous(), dponder.contiguous()
    grad, total = torch.empty_like(h), zeros(h, batch)
    left, end = samples.new_zeros(batch), samples.new_empty(batch)
    kernels().halting_weights_backward(
        CODES[h.dtype], (h.shape[0], batch, 1), 1 - epsilon, force_halt, h.data_ptr(), samples.data_ptr(),
        dweights.data_ptr(), dponder.data_ptr(), left.data_ptr(), total.data_ptr(), end.data_ptr(),
        grad.data_ptr(),
    )  # fmt: skip
    return grad


def _mean(values: Tensor, weights: Tensor, samples: Tensor, batch: int) -> Tensor:
    values, weights = values.contiguous(), weights.contiguous()
    samples, out = _indices("halting_mean", samples, batch), zeros(values, batch, values.shape[1])
    kernels().halting_mean(
        CODES[values.dtype], (values.shape[0], batch, values.shape[1]), values.data_ptr(), weights.data_ptr(),
        samples.data_ptr(), out.data_ptr(), threads(),
    )  # fmt: skip
    return out


def _mean_backward(
    dout: Tensor, values: Tensor, weights: Tensor, samples: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    values, weights, dout = values.contiguous(), weights.contiguous(), dout.contiguous()
    samples, dvalues = _indices("halting_mean", samples, batch), empty(values, *values.shape)
    dweights = torch.empty_like(weights)
    kernels().halting_mean_backward(
        CODES[values.dtype], (values.shape[0], batch, values.shape[1]), values.data_ptr(), weights.data_ptr(),
        samples.data_ptr(), dout.data_ptr(), dvalues.data_ptr(), dweights.data_ptr(), threads(),
    )  # fmt: skip
    return dvalues, dweights


def _fake_weights(h: Tensor, _samples: Tensor, batch: int, *_: Any) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(batch)


def _fake_mean(values: Tensor, _weights: Tensor, _samples: Tensor, batch: int) -> Tensor:
    return values.new_empty(batch, values.shape[1])


def _fake_weights_backward(_dweights: Tensor, _dponder: Tensor, h: Tensor, *_: Any) -> Tensor:
    return h.new_empty(h.shape)


def _fake_mean_backward(_dout: Tensor, values: Tensor, weights: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), weights.new_empty(weights.shape)


_LIBRARY.impl("halting_weights_forward", _weights, "CPU")
_LIBRARY.impl("halting_weights_backward", _weights_backward, "CPU")
_LIBRARY.impl("halting_mean_forward", _mean, "CPU")
_LIBRARY.impl("halting_mean_backward", _mean_backward, "CPU")
torch.library.register_fake("ctm_fast::halting_weights_forward", _fake_weights)
torch.library.register_fake("ctm_fast::halting_weights_backward", _fake_weights_backward)
torch.library.register_fake("ctm_fast::halting_mean_forward", _fake_mean)
torch.library.register_fake("ctm_fast::halting_mean_backward", _fake_mean_backward)


class HaltingWeights(torch.autograd.Function):
    """Saves the inputs alone; the backward decides again where every sample halts."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, samples: Tensor, *rest: Any) -> Any:
        ctx.save_for_backward(h, samples)
        ctx.rest = rest
        return torch.ops.ctm_fast.halting_weights_forward(h, samples, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("halting_weights")
        grad = torch.ops.ctm_fast.halting_weights_backward(*grads, *ctx.saved_tensors, *ctx.rest)
        return grad, None, None, None, None


class HaltingMean(torch.autograd.Function):
    """Saves the inputs alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, samples: Tensor, batch: int) -> Any:
        ctx.save_for_backward(values, weights, samples)
        ctx.batch = batch
        return torch.ops.ctm_fast.halting_mean_forward(values, weights, samples, batch)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("halting_mean")
        dvalues, dweights = torch.ops.ctm_fast.halting_mean_backward(*grads, *ctx.saved_tensors, ctx.batch)
        return dvalues, dweights, None, None


def halting_weights(
    h: Tensor, samples: Tensor, batch: int, epsilon: float, force_halt: bool
) -> tuple[Tensor, Tensor]:
    """The public op on the native backend."""
    return HaltingWeights.apply(h, samples, batch, epsilon, force_halt)


def halting_mean(values: Tensor, weights: Tensor, samples: Tensor, batch: int) -> Tensor:
    """The public op on the native backend."""
    return HaltingMean.apply(values, weights, samples, batch)
