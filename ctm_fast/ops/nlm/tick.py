"""The loop form of ``nlm``: weights packed once, a write-once history, one call per tick.

Autograd keeps per tick nothing but the new pre-activation, in the history's rows. The gradients of the rows
and of the post-activations of all ticks travel backward through the chain of ticks in one buffer, so the
weight gradients are computed once, over all ticks, when that buffer reaches the pack.

The buffer is carried as the gradient of a stand-in tensor, the history's state after each tick: shape
(2, M + T, B, D), no memory of its own. Plane 0 of its gradient belongs to the history's rows, plane 1 to the
post-activations. That makes partial losses, retain_graph, checkpointing and interleaved forwards right by
construction: the chain is an ordinary part of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.native import NO_DROPOUT, Drop
from ctm_fast.ops.nlm import autograd, reference
from ctm_fast.ops.nlm.arguments import Weights, check_dropout, check_weights, refusals

MAX_COUNT = 2**31  # of samples and of ticks: a history beyond has no address
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class NlmPack:
    """Weights of neuron-level models, ready for :func:`nlm_tick`; made by :func:`nlm_pack`.

    Attributes:
        memory, neurons, hidden: M, D and H of the weights.
        backend: ``"native"``, ``"triton"`` or ``"reference"``.
    """

    def __init__(self, weights: Weights, backend: str) -> None:
        self.weights = weights
        self.backend = backend
        self.memory, outputs, self.neurons = weights[0].shape
        self.hidden = outputs // 2
        self.packed: Tensor | None = _Pack.apply(backend, *weights) if backend != "reference" else None

    def history(
        self, start: Tensor, batch: int, ticks: int, *, dropout: float = 0.0, seed: int | Tensor | None = None
    ) -> NlmHistory:
        """An empty history of ``ticks`` ticks for ``batch`` samples; bad arguments raise as in ``ops.nlm``.

        Args:
            start: pre-activations before the first tick, (D, M), newest last; of the weights' dtype.
            batch, ticks: B >= 0 and T >= 1.
            dropout, seed: as in :func:`ctm_fast.ops.nlm`; every tick draws its own mask.
        """
        start = checks.floating("nlm_tick", "start", start)
        checks.shape("nlm_tick", "start", start, (self.neurons, self.memory), "D, M")
        checks.like("nlm_tick", "start", start, "w1", self.weights[0], (self.weights[0].dtype,))
        checks.integer("nlm_tick", "batch", batch, 0, MAX_COUNT)
        checks.integer("nlm_tick", "ticks", ticks, 1, MAX_COUNT)
        drawn = check_dropout("nlm_tick", dropout, seed, start.device)
        return NlmHistory(self, start, batch, ticks, dropout, drawn)


class _Rows:
    """What the ticks' graph nodes share: the pre-activations and how the kernels read them.

    Holds no tensor of the graph. A node that reached one of its own outputs would never be freed.
    """

    def __init__(
        self, packed: NlmPack, start: Tensor, batch: int, ticks: int, dropout: float, seed: Tensor | None
    ) -> None:
        self.kernels = autograd.kernels_of(packed.backend, start.device)
        self.memory, self.neurons, self.hidden = packed.memory, packed.neurons, packed.hidden
        self.deep = packed.weights[3] is not None
        self.batch, self.drop = batch, self.kernels.drop_args(dropout, seed)
        self.data = self.kernels.buffer(start, self.memory + ticks, batch, self.neurons)
        self.data[: self.memory] = start.detach().t().unsqueeze(1)
        self.reached = 0  # ticks that the backward pass under way has gradients for

    def sizes(self, ticks: int = 1) -> autograd.Shape:
        """The kernels' size tuple for the windows of that many ticks."""
        return (ticks * self.batch, self.neurons, self.memory, self.hidden, self.deep)

    def drop_at(self, t: int) -> Drop:
        """Dropout arguments of tick ``t``."""
        return (self.drop[0], self.drop[1], t * self.batch) if self.drop[0] else NO_DROPOUT


class NlmHistory:
    """Pre-activations of all ticks, written once: ``history[t] = s`` before ``nlm_tick`` of tick ``t``.

    Made by :meth:`NlmPack.history`. ``s`` is (B, D), of the dtype and device of the weights; it is copied, so
    that the caller may write the next tick's numbers over it. Writing raises
    ``IndexError`` for a tick outside [0, T), ``TypeError`` or ``ValueError`` for an unfit ``s``, and
    ``ValueError`` for other numbers in a tick that was computed.
    """

    def __init__(
        self, packed: NlmPack, start: Tensor, batch: int, ticks: int, dropout: float, seed: Tensor | None
    ) -> None:
        self.packed, self.start, self.batch, self.ticks = packed, start, batch, ticks
        self.dropout, self.seed = dropout, seed
        self.computed = 0
        self.written: dict[int, Tensor] = {}
        self._grad_mode: dict[int, bool] = {}
        self.rows: _Rows | None = None
        self.states: dict[int, Tensor] = {}
        if packed.backend != "reference" and not torch.compiler.is_compiling():
            self.rows = _Rows(packed, start, batch, ticks, dropout, seed)
            self.states[0] = _Start.apply(packed.packed, start, self.rows)

    def __setitem__(self, t: int, pre_activation: Tensor) -> None:
        """Write the pre-activations (B, D) of tick ``t``; a checkpoint may write the same numbers again."""
        _check_tick(t, self.ticks)
        s = checks.floating("nlm_tick", "pre_activation", pre_activation)
        checks.shape("nlm_tick", "pre_activation", s, (self.batch, self.packed.neurons), "B, D")
        checks.like(
            "nlm_tick", "pre_activation", s, "w1", self.packed.weights[0], (self.packed.weights[0].dtype,)
        )
        if self._grad_mode.get(t) not in (None, torch.is_grad_enabled()):
            raise RuntimeError(
                "nlm_tick: reentrant checkpointing would lose gradients, use use_reentrant=False"
            )
        row = None if self.rows is None else self.rows.data[self.packed.memory + t]
        if t < self.computed and row is not None and not _same_bits(s, row):
            raise ValueError(
                f"nlm_tick: history[{t}] must be written once, got other values for a computed tick"
            )
        self._grad_mode[t] = torch.is_grad_enabled()
        self.written[t] = s.clone() if row is None else _write(s, row)

    def window(self, t: int) -> Tensor:
        """(B, D, M): what the neurons see at tick ``t``, through autograd; used by the reference backend."""
        start = self.start.t().unsqueeze(1).expand(-1, self.batch, -1)
        rows = [*start.unbind(0), *(x for x in map(self.written.get, range(t + 1)) if x is not None)]
        return torch.stack(rows[t + 1 : t + 1 + self.packed.memory], -1)


def _check_tick(t: int, ticks: int) -> None:
    if not isinstance(t, int) or isinstance(t, bool):
        raise TypeError(f"nlm_tick: t must be an int, got {type(t).__name__}")
    if not 0 <= t < ticks:
        raise IndexError(f"nlm_tick: t must be in [0, {ticks}), got {t}")


def nlm_pack(
    w1: Tensor,
    b1: Tensor,
    t1: Tensor,
    w2: Tensor | None = None,
    b2: Tensor | None = None,
    t2: Tensor | None = None,
    *,
    backend: str | None = None,
) -> NlmPack:
    """Pack the weights of neuron-level models once for many ticks. Arguments and errors as in ``ops.nlm``.

    float32 and float64 run in kernels; inside ``torch.compile`` the loop form is traced as plain PyTorch. One
    pack serves any number of histories and of backward passes; pack again after an optimiser step.
    """
    weights = check_weights("nlm_pack", w1, b1, t1, w2, b2, t2)
    name, reason = backends.choose("nlm", backend, weights[0], refusals(w1, w2)), None
    if name != "reference" and weights[0].dtype not in _BITS:
        reason = f"the loop form takes float32 and float64, got {weights[0].dtype}"
    elif name != "reference" and torch.compiler.is_compiling():
        reason = "torch.compile cannot trace the loop form's history"
    if reason is not None and name in (backend, backends.selected()):
        raise RuntimeError(f"nlm_pack: backend {name!r} cannot run here: {reason}")
    return NlmPack(weights, "reference" if reason is not None else name)


def nlm_tick(packed: NlmPack, history: NlmHistory, t: int) -> Tensor:
    """Post-activations (B, D) of tick ``t`` from the last M pre-activations of ``history``.

    Ticks are computed in order, each after ``history[t]`` was written. Same mathematics, dtypes and gradients
    as ``ops.nlm`` on the window; the weight gradients are computed once for all ticks.

    Raises:
        TypeError: ``packed``, ``history`` or ``t`` is something else.
        ValueError: ``history`` belongs to another pack, or tick ``t`` or an earlier one was not written.
        IndexError: ``t`` is outside [0, T).
    """
    for name, value, kind in (("packed", packed, NlmPack), ("history", history, NlmHistory)):
        if not isinstance(value, kind):
            raise TypeError(f"nlm_tick: {name} must be an {kind.__name__}, got {type(value).__name__}")
    if history.packed is not packed:
        raise ValueError("nlm_tick: history must come from packed.history(), got one of another pack")
    _check_tick(t, history.ticks)
    s = history.written.get(t)
    if s is None:
        raise ValueError(f"nlm_tick: history[{t}] must be written before tick {t} is computed")
    if t > history.computed:
        raise ValueError(f"nlm_tick: ticks must be computed in order, got {t} before {history.computed}")
    history.computed = max(history.computed, t + 1)
    if history.rows is None:
        window, first_row = history.window(t), t * history.batch
        return reference.nlm(
            window, *packed.weights, dropout=history.dropout, seed=history.seed, first_row=first_row
        )
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "nlm_tick: history must be made inside the compiled function, got one made outside"
        )
    z, history.states[t + 1] = _tick(packed.packed, history.states[t], s, history.rows, t)
    del history.written[t]
    return z


def _write(s: Tensor, row: Tensor) -> Tensor:
    """Copy pre-activations into their row; what stands for them in the autograd graph."""
    if torch.is_grad_enabled() and s.requires_grad:
        return _Write.apply(s, row)
    row.copy_(s)
    return s


def _tick(packed: Any, state: Tensor, s: Tensor, rows: _Rows, t: int) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (state.requires_grad or s.requires_grad or packed.requires_grad):
        return _Tick.apply(packed, state, s, rows, t)
    return _post_activations(packed, s, rows, t), state.detach()


def _post_activations(packed: Tensor, s: Tensor, rows: _Rows, t: int) -> Tensor:
    z = torch.empty_like(s, memory_format=torch.contiguous_format)
    rows.kernels.run_forward(
        rows.sizes(), rows.drop_at(t), packed, rows.data[t + 1 :], autograd.window_strides(rows.data), z
    )
    return z


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included."""
    bits = _BITS[a.dtype]
    return torch.equal(a.detach().contiguous().view(bits), b.view(bits))


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *weights: Tensor | None) -> Tensor:
        ctx.kernels = autograd.kernels_of(backend, weights[0].device)  # type: ignore[union-attr]
        packed: Tensor = ctx.kernels.pack(*weights)
        w1, _, t1, w2, _, t2 = weights
        ctx.save_for_backward(packed, w1, t1, w2, t2)
        return packed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_pack")
        packed, w1, t1, w2, t2 = ctx.saved_tensors
        grads = (None, *ctx.kernels.unpack(packed, grad.contiguous(), w1, t1, w2, t2))
        return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


class _Start(torch.autograd.Function):
    """The state before the first tick; its backward ends the chain: gradients of weights and start."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, _start: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.rows = rows
        return packed.new_empty(()).expand(2, *rows.data.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_tick")
        (packed,) = ctx.saved_tensors
        rows: _Rows = ctx.rows
        reached, rows.reached = rows.reached, 0
        dpacked = None
        if ctx.needs_input_grad[0]:
            dpacked = torch.zeros_like(packed)
            dz = grad[1, :reached].flatten(0, 1)
            rows.kernels.run_backward(
                rows.sizes(reached), rows.drop_at(0), packed, rows.data[1:], autograd.window_strides(rows.data), dz,
                None, (0, 0, 0), dpacked,
            )  # fmt: skip
        dstart = grad[0, : rows.memory].sum(1).t() if ctx.needs_input_grad[1] else None
        return dpacked, dstart, None


class _Write(torch.autograd.Function):
    """Copies pre-activations into their row; gives a stand-in for them without memory of its own."""

    @staticmethod
    def forward(_ctx: Any, s: Tensor, row: Tensor) -> Tensor:
        row.copy_(s)
        return s.new_empty(()).expand(s.shape)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class _Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, state: Tensor, s: Tensor, rows: _Rows, t: int) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(packed)
        ctx.rows, ctx.t = rows, t
        return _post_activations(packed, s, rows, t), state.new_empty(()).expand(state.shape)

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("nlm_tick")
        (packed,) = ctx.saved_tensors
        rows: _Rows = ctx.rows
        t = ctx.t
        if grad is None:
            grad = rows.kernels.buffer(packed, 2, *rows.data.shape).zero_()
            rows.reached = max(rows.reached, t + 1)
        if dz is not None:
            grad[1, t].copy_(dz)
            rows.kernels.run_backward(
                rows.sizes(), rows.drop_at(t), packed, rows.data[t + 1 :], autograd.window_strides(rows.data),
                grad[1, t], grad[0, t + 1 :], autograd.window_strides(grad[0]), None,
            )  # fmt: skip
        return None, grad, grad[0, rows.memory + t], None, None
