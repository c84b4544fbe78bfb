"""Neuron-level models (arXiv 2505.05522, section 3.3): every neuron's own small MLP over its history."""

from __future__ import annotations

from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops.nlm import autograd, reference
from ctm_fast.ops.nlm.arguments import check, check_dropout, refusals
from ctm_fast.ops.nlm.tick import NlmHistory, NlmPack, nlm_pack, nlm_tick

__all__ = ["NlmHistory", "NlmPack", "nlm", "nlm_pack", "nlm_tick"]


def nlm(
    history: Tensor,  # (B, D, M)
    w1: Tensor,  # (M, 2H, D)
    b1: Tensor,  # (1, D, 2H)
    t1: Tensor,  # (1)
    w2: Tensor | None = None,  # (H, 2, D)
    b2: Tensor | None = None,  # (1, D, 2)
    t2: Tensor | None = None,  # (1)
    *,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:  # (B, D)
    """Post-activations of all neurons from their last M pre-activations.

    Equivalent to, with ``layer(x, w, b, t) = (einsum("bdm,mhd->bdh", x, w) + b) / t``::

        glu(layer(glu(layer(history, w1, b1, t1)), w2, b2, t2)).squeeze(-1)     # deep
        glu(layer(history, w1, b1, t1)).squeeze(-1)                             # linear: no w2, b2, t2; H = 1

    Args:
        history: pre-activations, newest last; any strides; float32, float64, or bfloat16 or float16, which
            the kernels accumulate in float32 (float16 not with ``"native"``).
        w1, b1, t1: first layer of every neuron; ``t1`` divides. Of the dtype of ``history``, or float32
            beside a 16-bit history.
        w2, b2, t2: second layer, all or none.
        dropout: probability in [0, 1] of dropping an input of either layer.
        seed: int, or int64 tensor with one element; None draws one from the default generator of the device.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (B, D) of the dtype of ``history``, differentiable once (twice with ``backend="reference"``).

    Raises:
        TypeError, ValueError: "nlm: argument must ..., got ...". RuntimeError if a named backend cannot run.
    """
    weights = check("nlm", history, w1, b1, t1, w2, b2, t2)
    drawn = check_dropout("nlm", dropout, seed, history.device)
    name = backends.choose("nlm", backend, history, refusals(w1, w2))
    if name != "reference":
        return autograd.fused(name, history, *weights, dropout=dropout, seed=drawn)
    weights_cast = [w.to(history.dtype) if w is not None else None for w in weights]
    return reference.nlm(history, *weights_cast, dropout=dropout, seed=drawn)  # type: ignore[arg-type]
