"""Recurrent cells with adaptive computation time over a whole sequence (arXiv 1603.08983, section 2).

Letters: T timesteps, B samples, H width, G gates (H of an RNN, 4H of an LSTM), R rows (one per substep of a
sample).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.halting import recurrence_autograd, recurrence_reference
from ctm_fast.ops.halting.mixture import check_epsilon, check_mask
from ctm_fast.ops.native import compute_dtype

OP = "adaptive_recurrence"
_LETTERS = {
    "hidden": "B, H", "cell": "B, H", "flag": "G", "recurrent": "G, H", "halting": "H", "bias": "1"
}  # fmt: skip


class AdaptiveRecurrence(NamedTuple):
    """What :func:`adaptive_recurrence` returns.

    Attributes:
        hidden: mean-field hidden state of every timestep (T, B, H).
        cell: mean-field cell state of an LSTM after the last one (B, H), otherwise None.
        ponder: N + R (T, B); 0 where padded.
        steps: substeps taken (T, B), int64; 0 where padded.
        rows: hidden state of every substep (R, H), in time's order; no rows unless asked for.
        weights: what it weighs (R).
        samples: where it belongs (R), int64: t * B + b.
    """

    hidden: Tensor
    cell: Tensor | None
    ponder: Tensor
    steps: Tensor
    rows: Tensor
    weights: Tensor
    samples: Tensor


def adaptive_recurrence(
    inputs: Tensor,  # (T, B, G)
    hidden: Tensor,  # (B, H)
    cell: Tensor | None,  # (B, H)
    flag: Tensor,  # (G)
    recurrent: Tensor,  # (G, H)
    halting: Tensor,  # (H)
    bias: Tensor,  # (1)
    *,
    epsilon: float = 0.01,
    max_steps: int = 100,
    mask: Tensor | None = None,  # (T, B)
    rows: bool = False,
    backend: str | None = None,
) -> AdaptiveRecurrence:
    """A tanh RNN or an LSTM that takes :func:`adaptive_halting`'s substeps at every timestep.

    Equivalent to, for every timestep t and its substeps n, with means over n between the timesteps::

        gates = inputs[t] + recurrent @ hidden + (flag if n == 1)
        hidden, cell = tanh(gates) or the LSTM's update by gates (input, forget, cell, output)
        h = sigmoid(halting @ hidden + bias)

    Substeps of one timestep differ in the flag alone, so the caller projects the inputs once for all.

    Args:
        inputs: the gates' part that stays the same over substeps, biases included: G = H for an RNN, 4H for
            an LSTM; float32, float64, or 16 bits (computed in float32).
        hidden: the state to start from.
        cell: that of an LSTM's cell; None makes it an RNN.
        flag: weights of the flag that is 1 at the first substep and 0 afterwards.
        recurrent: weights of the hidden state.
        halting, bias: the unit that gives the halting probability.
        epsilon: in [0, 1).
        max_steps: limit on the substeps of a timestep, at least 1; the last one takes the remainder.
        mask: bool, False where padded: no substep, the state stays. None means no padding.
        rows: also return the hidden state of every substep.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    All tensors have one dtype; so have the results, with ``ponder`` and ``weights`` in float32 beside 16 bits.

    Raises:
        TypeError, ValueError: "adaptive_recurrence: argument must ..., got ...".
    """
    given = {"hidden": hidden, "cell": cell, "flag": flag, "recurrent": recurrent}
    given |= {"halting": halting, "bias": bias}
    tensors = {name: value for name, value in given.items() if value is not None or name != "cell"}
    _check(inputs, tensors, mask)
    check_epsilon(OP, epsilon)
    checks.integer(OP, "max_steps", max_steps, 1)
    checks.flag(OP, "rows", rows)
    module = recurrence_autograd if backends.choose(OP, backend, inputs) == "native" else recurrence_reference
    state = compute_dtype(inputs.dtype)
    x, *values = (None if value is None else value.to(state) for value in (inputs, *given.values()))
    found = module.adaptive_recurrence(x, *values, mask, epsilon, max_steps, rows)
    if state == inputs.dtype:
        return AdaptiveRecurrence(*found)
    hidden, cell, ponder, steps, given_rows, weights, samples = found
    cell = None if cell is None else cell.to(inputs.dtype)
    return AdaptiveRecurrence(
        hidden.to(inputs.dtype), cell, ponder, steps, given_rows.to(inputs.dtype), weights, samples
    )


def _check(inputs: Tensor, tensors: dict[str, Tensor | None], mask: Tensor | None) -> None:
    checks.floating(OP, "inputs", inputs)
    checks.values(OP, "inputs", inputs)
    checks.rank(OP, "inputs", inputs, "T, B, G")
    steps, batch, gates = inputs.shape
    if steps < 1:
        raise ValueError(f"{OP}: inputs must have at least one timestep, got {tuple(inputs.shape)}")
    width = gates // 4 if "cell" in tensors else gates
    if "cell" in tensors and gates % 4:
        raise ValueError(f"{OP}: inputs must have 4 gates of one width beside a cell, got {gates}")
    sizes = {"B": batch, "H": width, "G": gates, "1": 1}
    for name, value in tensors.items():
        found = checks.floating(OP, name, value)
        expected = [sizes[letter] for letter in _LETTERS[name].split(", ")]
        checks.shape(OP, name, found, expected, _LETTERS[name])
        checks.like(OP, name, found, "inputs", inputs, checks.compute_dtypes(inputs.dtype))
    if mask is not None:
        check_mask(OP, mask, inputs.shape[:2], "inputs", inputs)
