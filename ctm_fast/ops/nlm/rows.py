"""``nlm`` on a window that is given as its M rows, the registered ops of a tick that keeps no window.

Neighbouring ticks share all rows but one: the autograd graph, and what ``torch.compile`` keeps for a backward
pass, hold every row once, where windows would hold it M times.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks, triton
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.nlm import reference
from ctm_fast.ops.nlm.arguments import check_dropout, check_weights, refusals

_REST = "Tensor w1, Tensor b1, Tensor t1, Tensor? w2, Tensor? b2, Tensor? t2, float dropout, Tensor? seed"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")


def _forward(backend: str, rows: Sequence[Tensor], *rest: Any) -> Tensor:
    z: Tensor = triton.op("nlm_forward", backend)(torch.stack(tuple(rows), -1), *rest)
    return z


def _backward(backend: str, grad: Tensor, rows: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = triton.op("nlm_backward", backend)(grad, torch.stack(tuple(rows), -1), *rest)
    return found


def _fake_forward(rows: Sequence[Tensor], *_: Any) -> Tensor:
    return rows[0].new_empty(rows[0].shape)


def _fake_backward(_grad: Tensor, rows: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    *weights, _dropout, _seed, want_rows, want_weights = rest
    w1 = weights[0]
    dx = rows[0].new_empty((*rows[0].shape, len(rows)) if want_rows else 0)
    return (dx, *(w1.new_empty(0 if x is None or not want_weights else x.shape) for x in weights))


for _backend, _suffix in (("native", ""), ("triton", triton.SUFFIX)):
    _LIBRARY.define(f"nlm_rows_forward{_suffix}(Tensor[] rows, {_REST}) -> Tensor")
    _LIBRARY.define(
        f"nlm_rows_backward{_suffix}(Tensor grad, Tensor[] rows, {_REST}, bool want_rows, bool want_weights) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    for _name, _run, _fake in (("forward", _forward, _fake_forward), ("backward", _backward, _fake_backward)):
        _LIBRARY.impl(f"nlm_rows_{_name}{_suffix}", partial(_run, _backend), "CompositeExplicitAutograd")
        torch.library.register_fake(f"ctm_fast::nlm_rows_{_name}{_suffix}", _fake)


class NlmRows(torch.autograd.Function):
    """Saves the rows and the weights; the backward computes window and hidden layer again."""

    @staticmethod
    def forward(ctx: Any, backend: str, dropout: float, seed: Tensor | None, count: int, *x: Any) -> Tensor:
        ctx.save_for_backward(seed, *x)
        ctx.backend, ctx.dropout, ctx.count = backend, dropout, count
        z: Tensor = triton.op("nlm_rows_forward", backend)(x[:count], *x[count:], dropout, seed)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm")
        seed, *x = ctx.saved_tensors
        rows, weights = x[: ctx.count], x[ctx.count :]
        need = ctx.needs_input_grad[4:]
        want_rows, want_weights = any(need[: ctx.count]), any(need[ctx.count :])
        run = triton.op("nlm_rows_backward", ctx.backend)
        dx, *dweights = run(grad, rows, *weights, ctx.dropout, seed, want_rows, want_weights)
        drows = dx.unbind(-1) if want_rows else [None] * ctx.count
        found = (g if n else None for g, n in zip((*drows, *dweights), need, strict=True))
        return (None, None, None, None, *found)


def nlm_rows(rows: Sequence[Tensor], *weights: Tensor, dropout: float = 0.0) -> Tensor:
    """Post-activations (B, D) of neuron-level models from the M rows (B, D) of their window, the newest last.

    Args:
        rows: pre-activations of one shape, dtype and device.
        weights: w1, b1, t1 and for deep models w2, b2, t2 as ``ops.nlm`` takes them, of the dtype of the rows.
        dropout: as there; every call draws masks of its own.

    Raises:
        TypeError, ValueError: "nlm: argument must ..., got ...".
    """
    held = check_weights("nlm", *weights, *(None,) * (6 - len(weights)))
    w1 = held[0]
    for x in rows:
        checks.shape("nlm", "history", x, (x.shape[0], w1.shape[2]), "B, D")
        checks.like("nlm", "history", x, "w1", w1, (w1.dtype,))
    if len(rows) != w1.shape[0]:
        raise ValueError(f"nlm: history must have {w1.shape[0]} rows, got {len(rows)}")
    seed = check_dropout("nlm", dropout, None, w1.device)
    name = backends.choose("nlm", None, w1, refusals(w1, held[3]))
    if name == "reference":
        return reference.nlm(torch.stack(tuple(rows), -1), *held, dropout=dropout, seed=seed)
    found: Tensor = NlmRows.apply(name, dropout, seed, len(rows), *rows, *held)
    return found
