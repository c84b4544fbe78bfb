"""Synchronisation with decay (arXiv 2505.05522, section 3.4): how far pairs of neurons fired together."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.native import compute_dtype
from ctm_fast.ops.sync import autograd, reference

__all__ = ["sync"]


def sync(
    activations: Tensor,  # (T, B, D)
    left: Tensor,  # (P)
    right: Tensor,  # (P)
    decay: Tensor,  # (P)
    alpha: Tensor | None = None,  # (B, P)
    beta: Tensor | None = None,  # (P)
    *,
    last: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (T, B, P) or (B, P), (B, P), (P)
    """Synchronisation of P neuron pairs over T ticks.

    Equivalent to, for every tick t, with ``r = exp(-decay)``::

        alpha = r * alpha + z[t][:, left] * z[t][:, right]
        beta = r * beta + 1
        s[t] = alpha / sqrt(beta)

    T calls of one tick each, alpha and beta carried, equal one call of T ticks, values and gradients.

    Args:
        activations: post-activations z, any strides; float32, float64, or 16 bits (accumulated in float32).
        left, right: neuron indices of the pairs, int64 or int32, in [0, D).
        decay: raw decay of every pair, never clamped here; of the dtype of ``activations``, or float32 beside
            16 bits.
        alpha, beta: state to go on from, of the accumulation dtype; None means zeros. The output
            synchronisation of a CTM starts from alpha = p(z_0), beta = 1.
        last: return the last tick's synchronisation only.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        synchronisation (T, B, P), or (B, P) with ``last``, of the dtype of ``activations``; alpha (B, P) and
        beta (P) after the last tick.

    Raises:
        TypeError, ValueError, IndexError: "sync: argument must ..., got ...".
    """
    z = checks.floating("sync", "activations", activations)
    checks.rank("sync", "activations", z, "T, B, D")
    if z.shape[0] < 1:
        raise ValueError(f"sync: activations must have at least one tick (T, B, D), got {tuple(z.shape)}")
    _check_pairs(z, left, right, decay)
    state = compute_dtype(z.dtype)
    alpha = _state("alpha", alpha, (z.shape[1], decay.shape[0]), "B, P", z, state)
    beta = _state("beta", beta, (decay.shape[0],), "P", z, state)
    checks.flag("sync", "last", last)
    name = backends.choose("sync", backend, z)
    run = reference.sync if name == "reference" else partial(autograd.fused, name)
    s, alpha, beta = run(z.to(state), left, right, decay.to(state), alpha, beta, last)
    return s.to(z.dtype), alpha, beta


def _check_pairs(z: Tensor, left: Tensor, right: Tensor, decay: Tensor) -> None:
    for name, index in (("left", left), ("right", right)):
        checks.tensor("sync", name, index)
        checks.rank("sync", name, index, "P")
        checks.like("sync", name, index, "activations", z, (torch.int64, torch.int32))
    checks.floating("sync", "decay", decay)
    checks.rank("sync", "decay", decay, "P")
    checks.shape("sync", "right", right, left.shape, "P")
    checks.shape("sync", "decay", decay, left.shape, "P")
    checks.like("sync", "decay", decay, "activations", z, checks.compute_dtypes(z.dtype))


def _state(
    name: str, value: Tensor | None, shape: tuple[int, ...], letters: str, z: Tensor, dtype: torch.dtype
) -> Tensor:
    if value is None:
        return z.new_zeros(shape, dtype=dtype)
    checks.floating("sync", name, value)
    checks.shape("sync", name, value, shape, letters)
    checks.like("sync", name, value, "activations", z, (dtype,))
    return value
