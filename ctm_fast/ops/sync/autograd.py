"""Registration of the native and the Triton ``sync`` with torch: schemas, fake kernels, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops import triton
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import CODES, empty, kernels, threads, zeros
from ctm_fast.ops.sync.arguments import checked_pairs

_ARGUMENTS = "Tensor z, Tensor left, Tensor right, Tensor decay, Tensor alpha, Tensor beta, bool last"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
_GRADS = "Tensor ds, Tensor dalpha, Tensor dbeta"
for _suffix in ("", triton.SUFFIX):
    _LIBRARY.define(f"sync_forward{_suffix}({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
    _LIBRARY.define(f"sync_backward{_suffix}({_GRADS}, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")


def rows(z: Tensor) -> Tensor:
    """``z`` with its neurons innermost."""
    return z if z.stride(2) == 1 or z.shape[2] <= 1 else z.contiguous()


def roots(n: tuple[int, ...], r: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """1 / sqrt(beta_t) (T, P) and beta after the last tick (P)."""
    root, after = empty(r, n[0], n[3]), torch.empty_like(r)
    kernels().sync_roots(CODES[r.dtype], n, r.data_ptr(), beta.data_ptr(), after.data_ptr(), root.data_ptr())
    return root, after


def _forward(
    z: Tensor, left: Tensor, right: Tensor, decay: Tensor, alpha: Tensor, beta: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    left, right = checked_pairs(z, left, right)
    z, r, beta = rows(z), torch.exp(-decay).contiguous(), beta.contiguous()
    n = (*z.shape, r.shape[0], last)
    root, after = roots(n, r, beta)
    state = alpha.clone(memory_format=torch.contiguous_format)
    s = empty(z, *(n[1:2] + n[3:4] if last else (n[0], n[1], n[3])))
    kernels().sync_forward(
        CODES[z.dtype], n, z.data_ptr(), z.stride()[:2], left.data_ptr(), right.data_ptr(), r.data_ptr(),
        root.data_ptr(), state.data_ptr(), s.data_ptr(), threads(),
    )  # fmt: skip
    return s, state, after


def _backward(
    ds: Tensor, dalpha: Tensor, dbeta: Tensor, z: Tensor, left: Tensor, right: Tensor, decay: Tensor,
    alpha: Tensor, beta: Tensor, last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    left, right = checked_pairs(z, left, right)
    z, r = rows(z), torch.exp(-decay).contiguous()
    alpha, beta, ds = alpha.contiguous(), beta.contiguous(), ds.contiguous()
    n = (*z.shape, r.shape[0], last)
    root, _ = roots(n, r, beta)
    galpha = dalpha.clone(memory_format=torch.contiguous_format)
    gbeta = dbeta.clone(memory_format=torch.contiguous_format)
    dz, dr = zeros(z, *z.shape), torch.empty_like(r)
    kernels().sync_backward(
        CODES[z.dtype], n, z.data_ptr(), z.stride()[:2], left.data_ptr(), right.data_ptr(), r.data_ptr(),
        root.data_ptr(), alpha.data_ptr(), beta.data_ptr(), ds.data_ptr(), galpha.data_ptr(), dz.data_ptr(),
        dz.stride()[:2], dr.data_ptr(), gbeta.data_ptr(), threads(),
    )  # fmt: skip
    return dz, -r * dr, galpha, gbeta


def _fake_forward(
    z: Tensor, _left: Tensor, _right: Tensor, decay: Tensor, _alpha: Tensor, _beta: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    ticks, batch, _ = z.shape
    s = z.new_empty((batch, decay.shape[0]) if last else (ticks, batch, decay.shape[0]))
    return s, z.new_empty(batch, decay.shape[0]), z.new_empty(decay.shape[0])


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, _, z, _, _, decay, alpha, beta, _ = arguments
    return tuple(z.new_empty(x.shape) for x in (z, decay, alpha, beta))


_LIBRARY.impl("sync_forward", _forward, "CPU")
_LIBRARY.impl("sync_backward", _backward, "CPU")
torch.library.register_fake("ctm_fast::sync_forward", _fake_forward)
torch.library.register_fake("ctm_fast::sync_backward", _fake_backward)
triton.register(_LIBRARY, "sync", ("sync_forward", "sync_backward"), (_fake_forward, _fake_backward))


class Sync(torch.autograd.Function):
    """Saves the inputs alone; the backward runs the recurrence again."""

    @staticmethod
    def forward(ctx: Any, backend: str, z: Tensor, left: Tensor, right: Tensor, *rest: Any) -> Any:
        ctx.save_for_backward(z, left, right, *rest[:3])
        ctx.backend, ctx.last = backend, rest[3]
        return triton.op("sync_forward", backend)(z, left, right, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("sync")
        run = triton.op("sync_backward", ctx.backend)
        dz, ddecay, dalpha, dbeta = run(*grads, *ctx.saved_tensors, ctx.last)
        found = (None, dz, None, None, ddecay, dalpha, dbeta, None)
        return tuple(g if n else None for g, n in zip(found, ctx.needs_input_grad, strict=True))


def fused(
    backend: str,
    z: Tensor,
    left: Tensor,
    right: Tensor,
    decay: Tensor,
    alpha: Tensor,
    beta: Tensor,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The public op on the backend "native" or "triton"."""
    if right is left:
        right = right.view_as(right)  # a compiled autograd function refuses the same tensor twice
    if not torch.is_grad_enabled():  # the autograd function alone takes as long as a small op
        found: tuple[Tensor, Tensor, Tensor] = triton.op("sync_forward", backend)(
            z, left, right, decay, alpha, beta, last
        )
        return found
    return Sync.apply(backend, z, left, right, decay, alpha, beta, last)
