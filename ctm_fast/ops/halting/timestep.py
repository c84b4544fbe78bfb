"""The loop over one timestep: :func:`adaptive_halting` around any step function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.halting import substeps
from ctm_fast.ops.halting.mixture import (
    check_epsilon,
    check_mask,
    halting_mean,
    halting_weights,
)
from ctm_fast.ops.halting.substeps import Limits, Step, Tensors, as_tuple, take
from ctm_fast.ops.native import compute_dtype


class AdaptiveHalting(NamedTuple):
    """What :func:`adaptive_halting` returns for B samples and the R substeps that they took together.

    Attributes:
        output: mean-field output (B, ...) in the form that ``step`` gave; zeros where padded.
        state: mean-field state in the form that was given; as it was given where padded.
        ponder: N + R (B); 0 where padded.
        steps: substeps N that each sample took, (B), int64; 0 where padded.
        weights: what every substep weighed, (R), in time's order.
        samples: which sample took it, (R), int64.
    """

    output: Any
    state: Any
    ponder: Tensor
    steps: Tensor
    weights: Tensor
    samples: Tensor


def adaptive_halting(
    step: Step,
    inputs: Tensors,
    state: Tensors,
    *,
    epsilon: float = 0.01,
    max_steps: int = 100,
    mask: Tensor | None = None,  # (B)
    compaction: bool = True,
    force_halt: bool = True,
    backend: str | None = None,
) -> AdaptiveHalting:
    """Take substeps of one timestep until every sample's halting probabilities sum to ``1 - epsilon``.

    Substep n computes ``output_n, state_n, h_n = step(inputs, state_{n-1}, n == 1)`` for the samples that
    still run; what comes out are sums over n weighted by :func:`halting_weights`. Samples that have halted
    leave the batch: ``step`` sees the others, in the same order. The host decides once per substep, on how
    many go on.

    Args:
        step: ``step(inputs, state, first) -> (output, state, probability)`` over A <= B rows: output (A, ...) or
            a tuple of such, possibly empty; a state like the given one; probability (A) in [0, 1]. ``first``
            is True at the first substep. It must treat rows independently, and accept none (A = 0).
        inputs: what stays the same over substeps: a tensor (B, ...), or a tuple or list of such, possibly empty.
        state: what to go on from: a tensor (B, ...), or a tuple or list of such.
        epsilon: in [0, 1); above 0 it lets a sample halt after one substep.
        max_steps: limit on the substeps, at least 1.
        mask: bool, False where a sample is padded: it takes no substep. None means no padding.
        compaction: False computes halted samples to the end as well: the same results, later.
        force_halt: a sample's last substep takes the remainder at the limit too, so that weights sum to one.
            Otherwise a sample that reaches the limit has no remainder.
        backend: of the weights and sums: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        TypeError, ValueError: "adaptive_halting: argument must ..., got ...".
    """
    if not callable(step):
        raise TypeError(f"adaptive_halting: step must be callable, got {type(step).__name__}")
    before, given = as_tuple("state", state), type(state)
    batch = _check(as_tuple("inputs", inputs), before, epsilon, max_steps, mask, backend)
    checks.flag("adaptive_halting", "compaction", compaction)
    checks.flag("adaptive_halting", "force_halt", force_halt)
    rows = torch.arange(batch, device=before[0].device)
    if mask is not None:
        rows = mask.nonzero().squeeze(1)
        inputs, state = take(inputs, rows), take(state, rows)
    found = substeps.run(step, inputs, state, rows, Limits(1 - epsilon, max_steps, compaction))
    samples = torch.cat(found.samples)
    weights, ponder = halting_weights(
        torch.cat(found.probabilities),
        samples,
        batch=batch,
        epsilon=epsilon,
        force_halt=force_halt,
        backend=backend,
    )

    def mean(values: Sequence[Any]) -> Any:
        if not isinstance(values[0], Tensor):
            return tuple(mean(part) for part in zip(*values, strict=True))
        joined = torch.cat(tuple(values))
        w = weights.to(compute_dtype(joined.dtype))
        return halting_mean(joined, w, samples, batch=batch, backend=backend)

    after = mean(found.states)
    if mask is not None:
        new_state = zip(as_tuple("state", after), before, strict=True)
        kept = tuple(_where(mask, new, old) for new, old in new_state)
        after = kept[0] if isinstance(state, Tensor) else kept
    after = list(after) if given is list else after
    return AdaptiveHalting(
        mean(found.outputs), after, ponder, torch.bincount(samples, minlength=batch), weights, samples
    )


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _check(
    inputs: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    epsilon: float,
    max_steps: int,
    mask: Tensor | None,
    backend: str | None,
) -> int:
    """The batch size, once all arguments have been checked."""
    op = "adaptive_halting"
    if not state:
        raise ValueError(f"{op}: state must be a tensor or a tuple of at least one, got an empty tuple")
    first = checks.floating(op, "state", state[0])
    checks.values(op, "state", first)
    for name, value in (*(("state", x) for x in state), *(("inputs", x) for x in inputs)):
        checks.tensor(op, name, value)
        if value.dim() < 1 or value.shape[0] != first.shape[0]:
            raise ValueError(
                f"{op}: {name} must have as many rows as the state, got shapes {tuple(value.shape)} and "
                f"{tuple(first.shape)}"
            )
    check_epsilon(op, epsilon)
    backends.check_name(backend, op)
    checks.integer(op, "max_steps", max_steps, 1)
    if mask is not None:
        check_mask(op, mask, first.shape[:1], "state", first)
    return first.shape[0]
