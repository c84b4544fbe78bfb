"""The dense arithmetic of adaptive computation time: halting weights, weighted sums, the cost of pondering.

Letters: B samples, R rows (one per substep of a sample), T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.halting import autograd, reference
from ctm_fast.ops.native import compute_dtype

REDUCTIONS = ("sum", "mean")


def halting_weights(
    probabilities: Tensor,  # (R)
    samples: Tensor,  # (R)
    *,
    batch: int,
    epsilon: float = 0.01,
    force_halt: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # (R), (B)
    """What every substep weighs, and how long every sample pondered (arXiv 1603.08983, equations 6 to 9).

    A sample halts at its first row N where the sum of its probabilities reaches ``1 - epsilon``. Rows before
    it weigh their probability, row N the remainder ``R = 1 - sum``, rows after it nothing. ::

        ponder = N + R

    N is discrete and has no gradient: that of ``ponder`` is -1 for every probability before row N.

    Args:
        probabilities: halting probabilities in [0, 1]; float32, float64, or 16 bits (accumulated in float32).
        samples: which sample a row belongs to, int64 or int32, in [0, B); rows of one sample in time's order.
        batch: number of samples B.
        epsilon: in [0, 1).
        force_halt: the last row of a sample that never gets there takes the remainder, so that all weights
            sum to one. Otherwise it weighs its probability, and its sample has no remainder.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        weights (R) and ponder (B) in the accumulation dtype; a sample without rows ponders 0.

    Raises:
        TypeError, ValueError, IndexError: "halting_weights: argument must ..., got ...".
    """
    op = "halting_weights"
    h = checks.floating(op, "probabilities", probabilities)
    checks.rank(op, "probabilities", h, "R")
    _check_samples(op, samples, "probabilities", h)
    checks.integer(op, "batch", batch, 0)
    check_epsilon(op, epsilon)
    checks.flag(op, "force_halt", force_halt)
    return _run(op, backend, h)(h.to(compute_dtype(h.dtype)), samples, batch, epsilon, force_halt)


def halting_mean(
    values: Tensor,  # (R, ...)
    weights: Tensor,  # (R)
    samples: Tensor,  # (R)
    *,
    batch: int,
    backend: str | None = None,
) -> Tensor:  # (B, ...)
    """The mean-field output or state of every sample (arXiv 1603.08983, equation 10).

    ``out[b] = sum of weights[r] * values[r] over the rows r with samples[r] == b``

    Args:
        values: what a substep gave, any trailing shape, any strides; float32, float64 or 16 bits.
        weights: from :func:`halting_weights`; of the dtype of ``values``, or float32 beside 16 bits.
        samples: which sample a row belongs to, int64 or int32, in [0, B).
        batch: number of samples B.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (B, ...) of the dtype of ``values``; zeros for a sample without rows.

    Raises:
        TypeError, ValueError, IndexError: "halting_mean: argument must ..., got ...".
    """
    op = "halting_mean"
    checks.floating(op, "values", values)
    if values.dim() < 1:
        raise ValueError(f"{op}: values must have shape (R, ...), got ()")
    checks.floating(op, "weights", weights)
    checks.shape(op, "weights", weights, values.shape[:1], "R")
    checks.like(op, "weights", weights, "values", values, checks.compute_dtypes(values.dtype))
    _check_samples(op, samples, "values", values)
    checks.integer(op, "batch", batch, 0)
    state = compute_dtype(values.dtype)
    rows = values.to(state).reshape(values.shape[0], values.shape[1:].numel())
    out = _run(op, backend, values)(rows, weights.to(state), samples, batch)
    return out.to(values.dtype).view(batch, *values.shape[1:])


def ponder_cost(ponder: Tensor, mask: Tensor | None = None, *, reduction: str = "sum") -> Tensor:
    """The scalar that a training loss adds, times a time penalty (arXiv 1603.08983, equation 12).

    Args:
        ponder: (B), or (T, B) for a sequence; zero where padded.
        mask: bool like ``ponder``, False where padded; only ``"mean"`` reads it. None means no padding.
        reduction: ``"sum"``, the paper's: summed over time, averaged over samples; ``"mean"``: averaged over
            all that is not padded.

    Raises:
        TypeError, ValueError: "ponder_cost: argument must ..., got ...".
    """
    checks.floating("ponder_cost", "ponder", ponder)
    check_reduction("ponder_cost", "reduction", reduction)
    if ponder.dim() not in (1, 2):
        raise ValueError(f"ponder_cost: ponder must have shape (B) or (T, B), got {tuple(ponder.shape)}")
    if reduction == "sum":
        return ponder.sum() / max(ponder.shape[-1], 1)
    if mask is None:
        return ponder.sum() / max(ponder.numel(), 1)
    check_mask("ponder_cost", mask, ponder.shape, "ponder", ponder)
    return ponder.sum() / mask.sum().clamp(min=1)


def check_reduction(op: str, name: str, value: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of :data:`REDUCTIONS`."""
    if value not in REDUCTIONS:
        raise ValueError(f"{op}: {name} must be one of {REDUCTIONS}, got {value!r}")


def check_epsilon(op: str, epsilon: float) -> None:
    """``TypeError`` unless ``epsilon`` is a number, ``ValueError`` unless it is in [0, 1)."""
    checks.number(op, "epsilon", epsilon)
    if not 0 <= epsilon < 1:
        raise ValueError(f"{op}: epsilon must be in [0, 1), got {epsilon}")


def check_mask(op: str, mask: Tensor, shape: torch.Size, other_name: str, other: Tensor) -> None:
    """Raise unless ``mask`` is a bool tensor of this shape beside ``other``."""
    checks.tensor(op, "mask", mask)
    checks.shape(op, "mask", mask, shape, "B" if len(shape) == 1 else "T, B")
    checks.like(op, "mask", mask, other_name, other, (torch.bool,))


def _check_samples(op: str, samples: Tensor, other_name: str, other: Tensor) -> None:
    checks.tensor(op, "samples", samples)
    checks.shape(op, "samples", samples, other.shape[:1], "R")
    checks.like(op, "samples", samples, other_name, other, (torch.int64, torch.int32))


def _run(op: str, backend: str | None, like: Tensor) -> Callable[..., Any]:
    module = autograd if backends.choose(op, backend, like) == "native" else reference
    run: Callable[..., Any] = getattr(module, op)
    return run
