"""Synchronisation in plain torch: the meaning of ``ctm_fast.ops.sync``, any dtype and device.

Letters: T ticks, B batch, D neurons, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops import checks


def sync(
    z: Tensor,  # (T, B, D)
    left: Tensor,  # (P)
    right: Tensor,  # (P)
    decay: Tensor,  # (P)
    alpha: Tensor,  # (B, P)
    beta: Tensor,  # (P)
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence, tick by tick."""
    if not torch.compiler.is_compiling():
        checks.indices("sync", "left", left, z.shape[2])
        checks.indices("sync", "right", right, z.shape[2])
    r = torch.exp(-decay)
    ticks = []
    for activation in z:
        alpha = r * alpha + activation[:, left] * activation[:, right]
        beta = r * beta + 1
        ticks.append(alpha / torch.sqrt(beta))
    return (ticks[-1] if last else torch.stack(ticks)), alpha, beta


def sync_backward(
    ds: Tensor,  # (T, B, P)
    dalpha: Tensor,  # (B, P)
    dbeta: Tensor,  # (P)
    z: Tensor,
    left: Tensor,
    right: Tensor,
    decay: Tensor,
    alpha: Tensor,
    beta: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients that the kernels compute, derived by hand: z, decay, alpha, beta.

    ``dalpha`` and ``dbeta`` are those of the state after the last tick.
    """
    r = torch.exp(-decay)
    alphas, betas = [alpha], [beta]
    for activation in z:
        alphas.append(r * alphas[-1] + activation[:, left] * activation[:, right])
        betas.append(r * betas[-1] + 1)
    dz, dr = torch.zeros_like(z), torch.zeros_like(decay)
    for t in reversed(range(z.shape[0])):
        root = betas[t + 1] ** -0.5
        dalpha = dalpha + ds[t] * root
        dbeta = dbeta - 0.5 * root**3 * (ds[t] * alphas[t + 1]).sum(0)
        dz[t].index_add_(1, left, dalpha * z[t][:, right])
        dz[t].index_add_(1, right, dalpha * z[t][:, left])
        dr = dr + (dalpha * alphas[t]).sum(0) + dbeta * betas[t]
        dalpha, dbeta = r * dalpha, r * dbeta
    return dz, -r * dr, dalpha, dbeta
