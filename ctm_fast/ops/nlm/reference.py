"""Neuron-level models in plain torch: the meaning of ``ctm_fast.ops.nlm``, any dtype and device.

Letters: B batch, D neurons, M memory length, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm_fast.ops.dropout import keep_mask, row_keys

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def masks(
    history: Tensor, hidden: int, p: float, seed: int | Tensor | None, first_row: int = 0
) -> tuple[Tensor, Tensor]:
    """Dropout masks of the input (B, D, M) and of the hidden layer (B, D, H); a seed of None counts as 0."""
    batch, neurons, memory = history.shape
    device = history.device
    keys = row_keys(0 if seed is None else seed, torch.arange(first_row, first_row + batch, device=device))[
        :, None, None
    ]
    slots = torch.arange(memory + hidden, device=device)[None, None, :] * neurons
    indices = slots + torch.arange(neurons, device=device)[None, :, None]
    mask = keep_mask(p, keys, indices, history.dtype)
    return mask[..., :memory], mask[..., memory:]


def layer(x: Tensor, w: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """(B, D, in) -> (B, D, out): one linear map per neuron, divided by the learnable ``t``."""
    return (torch.einsum("bdm,mhd->bdh", x, w) + b) / t


def nlm(
    history: Tensor,  # (B, D, M)
    w1: Tensor,  # (M, 2H, D), or (M, 2, D) for linear models
    b1: Tensor,  # (1, D, 2H)
    t1: Tensor,  # (1)
    w2: Tensor | None = None,  # (H, 2, D)
    b2: Tensor | None = None,  # (1, D, 2)
    t2: Tensor | None = None,  # (1)
    *,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    first_row: int = 0,
) -> Tensor:  # (B, D)
    """GLU(layer(history)), and for deep models GLU(layer(...)) once more."""
    mask1 = mask2 = None
    if dropout > 0.0:
        mask1, mask2 = masks(history, w1.shape[1] // 2, dropout, seed, first_row)
        history = history * mask1
    x = F.glu(layer(history, w1, b1, t1), -1)
    if w2 is None or b2 is None or t2 is None:
        return x.squeeze(-1)
    if mask2 is not None:
        x = x * mask2
    return F.glu(layer(x, w2, b2, t2), -1).squeeze(-1)


def _glu_backward(grad: Tensor, u: Tensor) -> Tensor:
    a, g = u.chunk(2, -1)
    gate = torch.sigmoid(g)
    return torch.cat([grad * gate, grad * a * gate * (1 - gate)], -1)


def _layer_backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w, b, t of ``y = layer(x, w, b, t)``."""
    scaled = grad / t
    dx = torch.einsum("bdh,mhd->bdm", scaled, w)
    dw = torch.einsum("bdm,bdh->mhd", x, scaled)
    return dx, dw, scaled.sum(0, keepdim=True), -(scaled * y).sum().reshape(1)


def nlm_backward(
    grad: Tensor,
    history: Tensor,
    w1: Tensor,
    b1: Tensor,
    t1: Tensor,
    w2: Tensor | None = None,
    b2: Tensor | None = None,
    t2: Tensor | None = None,
    *,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    first_row: int = 0,
) -> Grads:
    """The gradients that the kernels compute, derived by hand: history, w1, b1, t1, w2, b2, t2."""
    mask1 = mask2 = torch.ones((), dtype=history.dtype, device=history.device)
    if dropout > 0.0:
        mask1, mask2 = masks(history, w1.shape[1] // 2, dropout, seed, first_row)
    x = history * mask1
    u = layer(x, w1, b1, t1)
    top = grad.unsqueeze(-1)
    dw2 = db2 = dt2 = None
    if w2 is not None and b2 is not None and t2 is not None:
        hidden = F.glu(u, -1) * mask2
        o = layer(hidden, w2, b2, t2)
        top, dw2, db2, dt2 = _layer_backward(_glu_backward(top, o), hidden, w2, o, t2)
        top = top * mask2
    dx, dw1, db1, dt1 = _layer_backward(_glu_backward(top, u), x, w1, u, t1)
    return dx * mask1, dw1, db1, dt1, dw2, db2, dt2
