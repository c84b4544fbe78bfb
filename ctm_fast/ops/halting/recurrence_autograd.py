"""Registration of the native recurrence with adaptive computation time: schemas, fake kernels, autograd.

Letters as in ``recurrence``, and K substeps of all timesteps together. Forward keeps of every row its state,
gates (LSTM), probability, weight and index; backward reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.linear import Linear, outer
from ctm_fast.ops.native import CODES, empty, kernels, threads, zeros

_ROWS = "Tensor rows, Tensor row_cells, Tensor gates, Tensor probabilities, Tensor weights"
_KEPT = f"{_ROWS}, Tensor samples, Tensor parents, Tensor next, Tensor spans"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
_LIBRARY.define(
    "adaptive_recurrence_forward(Tensor inputs, Tensor hidden, Tensor? cell, Tensor flag, Tensor recurrent, "
    "Tensor halting, Tensor bias, Tensor? mask, float epsilon, int max_steps, bool keep) -> "
    f"({', '.join(['Tensor'] * 13)})"
)
_LIBRARY.define(
    "adaptive_recurrence_backward(Tensor dhidden, Tensor? dcell, Tensor dponder, Tensor? drows, "
    "Tensor? dweights, Tensor recurrent, Tensor halting, Tensor states, Tensor cells, "
    f"{_KEPT}) -> ({', '.join(['Tensor'] * 7)})"
)

SUBSTEPS = 2  # that a timestep takes at least, unless it is limited to one


class _Rows:
    """Buffers of all rows so far, in the order of ``Recurrence`` in csrc/halting.h; they grow."""

    def __init__(self, like: Tensor, capacity: int, width: int, gates: int) -> None:
        cells = width if gates else 0
        floats = [empty(like, capacity, w) for w in (width, width, cells, gates)]
        floats += [empty(like, capacity) for _ in range(2)]
        self.buffers = floats + [like.new_empty(capacity, dtype=torch.int32) for _ in range(3)]
        self.capacity = capacity
        self.addresses = tuple(x.data_ptr() for x in self.buffers)

    def reserve(self, rows: int) -> None:
        """Make room for this many rows."""
        if rows <= self.capacity:
            return
        capacity = max(rows, self.capacity * 3 // 2)
        grown = [empty(x, capacity, *x.shape[1:]) for x in self.buffers]
        for new, old in zip(grown, self.buffers, strict=True):
            new[: self.capacity] = old
        self.buffers, self.capacity = grown, capacity
        self.addresses = tuple(x.data_ptr() for x in grown)

    def first(self, rows: int) -> list[Tensor]:
        """The first rows of what backward keeps, without much unused memory behind them."""
        slack = rows * 5 < self.capacity * 4
        return [x[:rows].clone() if slack else x[:rows] for x in self.buffers[1:]]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class _Forward:
    """One call: the state of all timesteps, and the rows made so far."""

    def __init__(
        self, inputs: Tensor, hidden: Tensor, cell: Tensor | None, unit: list[Tensor], mask: Any
    ) -> None:
        steps, batch, gates = inputs.shape
        self.width, self.lstm = hidden.shape[1], cell is not None
        self.states = [empty(inputs, steps + 1, *hidden.shape) for _ in range(1 + self.lstm)]
        self.states[0][0] = hidden
        if cell is not None:
            self.states[1][0] = cell
        self.ponder = inputs.new_empty(steps, batch)
        self.steps = inputs.new_empty(steps, batch, dtype=torch.int64)
        total = inputs.new_empty(batch)
        fixed = [mask, inputs, *unit, self.states[0], self.states[1] if self.lstm else None]
        self.kept = [*fixed, total, self.ponder, self.steps]
        self.addresses = tuple(_address(x) for x in self.kept)
        self.rows = _Rows(inputs, SUBSTEPS * steps * batch + batch, self.width, gates if self.lstm else 0)
        self.sizes, self.code = (batch, self.width, self.lstm), CODES[inputs.dtype]
        self.spans: list[tuple[int, int, int]] = []

    def timestep(self, t: int, start: int, recurrent: Linear, threshold: float, max_steps: int) -> int:
        """All substeps of timestep ``t``, their rows from ``start`` on; the first row behind them."""
        rows, native, on = self.rows, kernels(), threads()
        rows.reserve(start + self.sizes[0])
        count = native.halting_begin(
            self.code, self.sizes, (t, start, 0), (*self.addresses, *rows.addresses), on
        )
        for n in range(1, max_steps + 1):
            if count == 0:
                break
            rows.reserve(start + 2 * count)
            previous, out = rows.buffers[0], rows.buffers[3 if self.lstm else 1]
            end = start + count
            recurrent(previous[start:end], out[start:end])
            span, arguments = (t, start, count), (*self.addresses, *rows.addresses)
            self.spans.append(span)
            count = native.halting_substep(
                self.code, self.sizes, span, n == max_steps, threshold, arguments, on
            )
            start = end
        return start


def _forward(
    inputs: Tensor, hidden: Tensor, cell: Tensor | None, flag: Tensor, recurrent: Tensor, halting: Tensor,
    bias: Tensor, mask: Tensor | None, epsilon: float, max_steps: int, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    unit = [x.contiguous() for x in (flag, halting, bias)]
    run = _Forward(inputs.contiguous(), hidden, cell, unit, None if mask is None else mask.contiguous())
    steps, batch, _ = inputs.shape
    product, end = Linear(recurrent, None, batch, SUBSTEPS * steps), 0
    for t in range(steps):
        end = run.timestep(t, end if keep else 0, product, 1 - epsilon, max_steps)
    end, spans = (end, run.spans) if keep else (0, [])
    states = run.states[1] if run.lstm else inputs.new_empty(0)
    return (
        run.states[0],
        states,
        run.ponder,
        run.steps,
        *run.rows.first(end),
        torch.tensor(spans, dtype=torch.int64, device=inputs.device).view(-1, 3),
    )


class _Backward:
    """One call: gradients of the mean state of the timestep at hand, and of all rows."""

    def __init__(
        self,
        grads: list[Tensor | None],
        halting: Tensor,
        cells: Tensor,
        kept: list[Tensor],
        shape: tuple[int, ...],
    ) -> None:
        dhidden, dcell, dponder, drows, dweights = grads
        steps, batch, width = shape
        gates = 4 * width if dcell is not None else width
        assert dhidden is not None
        self.hidden = zeros(dhidden, batch, width)
        self.cell = None if dcell is None else dcell.clone(memory_format=torch.contiguous_format)
        self.inputs = zeros(dhidden, steps, batch, gates)
        self.gates, self.logits = empty(dhidden, len(kept[0]), gates), dhidden.new_empty(len(kept[0]))
        self.next = [empty(dhidden, batch, width) for _ in range(3)]
        self.last = dhidden.new_empty(batch)
        self.given = [dponder, drows, dweights]
        self.sizes, self.code = (batch, width, dcell is not None), CODES[dhidden.dtype]
        self.samples = kept[5]
        fixed = [None, None, None, halting, None, None, cells, *[None] * 4]
        self.forward = tuple(_address(x) for x in (*fixed, *kept[:8]))

    def timestep(self, spans: list[tuple[int, int, int]], recurrent: Linear) -> None:
        """All substeps of a timestep, last one first; leaves the gradient of the state before it."""
        hidden, cell, cell_before = self.next
        for t, start, count in reversed(spans):
            buffers = (self.hidden, self.cell, *self.given, hidden, cell, cell_before, self.last, self.inputs)
            addresses = tuple(_address(x) for x in (*buffers, self.gates, self.logits))
            kernels().halting_substep_backward(
                self.code, self.sizes, (t, start, count), self.forward, addresses, threads()
            )
            recurrent(self.gates[start : start + count], hidden[:count])
            cell, cell_before = cell_before, cell
        if spans:
            _, start, count = spans[0]
            samples = self.samples[start : start + count].long()
            self.hidden.index_copy_(0, samples, hidden[:count])
            if self.cell is not None:
                self.cell.index_copy_(0, samples, cell[:count])


def _backward(
    dhidden: Tensor, dcell: Tensor | None, dponder: Tensor, drows: Tensor | None, dweights: Tensor | None,
    recurrent: Tensor, halting: Tensor, states: Tensor, cells: Tensor, *kept: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    grads = [None if g is None else g.contiguous() for g in (dhidden, dcell, dponder, drows, dweights)]
    halting = halting.contiguous()
    product = Linear(recurrent.t(), None, dhidden.shape[1], SUBSTEPS * len(dhidden))
    run = _Backward(grads, halting, cells, list(kept), tuple(dhidden.shape))
    spans: list[list[tuple[int, int, int]]] = [[] for _ in dhidden]
    for t, start, count in kept[8].tolist():
        spans[t].append((t, start, count))
    for t in reversed(range(len(spans))):
        run.hidden += dhidden[t]
        run.timestep(spans[t], product)
    rows, samples, parents = kept[0], kept[5], kept[6]
    first = (parents < 0).to(rows.dtype)
    previous = rows.index_select(0, parents.clamp(min=0))
    for t, start, count in (timestep[0] for timestep in spans if timestep):
        previous[start : start + count] = states[t].index_select(0, samples[start : start + count])
    dgates, dlogits = run.gates, run.logits
    return (
        run.inputs,
        run.hidden,
        dhidden.new_empty(0) if run.cell is None else run.cell,
        torch.mv(dgates.t(), first),
        outer(dgates, previous),
        torch.mv(rows.t(), dlogits),
        dlogits.sum().view(1),
    )


def _fake_forward(
    inputs: Tensor, hidden: Tensor, cell: Tensor | None, _flag: Tensor, _recurrent: Tensor, _halting: Tensor,
    _bias: Tensor, _mask: Tensor | None, _epsilon: float, _max_steps: int, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    context = torch.library.get_ctx()
    rows, spans = (context.new_dynamic_size() if keep else 0 for _ in range(2))
    steps, batch, gates = inputs.shape
    width = hidden.shape[1]
    lstm = cell is not None
    states = inputs.new_empty(steps + 1, batch, width)
    widths = ((width,), (width if lstm else 0,), (gates if lstm else 0,), (), ())
    floats = [inputs.new_empty(rows, *w) for w in widths]
    index = [inputs.new_empty(rows, dtype=torch.int32) for _ in range(3)]
    return (
        states,
        torch.empty_like(states) if lstm else inputs.new_empty(0),
        inputs.new_empty(steps, batch),
        inputs.new_empty(steps, batch, dtype=torch.int64),
        *floats,
        *index,
        inputs.new_empty(spans, 3, dtype=torch.int64),
    )


def _fake_backward(
    dhidden: Tensor, dcell: Tensor | None, _dponder: Tensor, _drows: Tensor | None, _dweights: Tensor | None,
    recurrent: Tensor, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    steps, batch, width = dhidden.shape
    gates = recurrent.shape[0]
    state = (batch, width)
    shapes = ((steps, batch, gates), state, (0,) if dcell is None else state, (gates,))
    return tuple(dhidden.new_empty(s) for s in (*shapes, tuple(recurrent.shape), (width,), (1,)))


for _name, _kernel, _shapes in (
    ("ctm_fast::adaptive_recurrence_forward", _forward, _fake_forward),
    ("ctm_fast::adaptive_recurrence_backward", _backward, _fake_backward),
):
    # not Library.impl: shapes that depend on values break a graph, and between two the kernel would be traced
    torch.library.register_kernel(_name, "cpu", _kernel, lib=_LIBRARY)
    torch.library.register_fake(_name, _shapes)


class AdaptiveRecurrence(torch.autograd.Function):
    """Keeps what the rows hold; backward computes no recurrent product again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor | None, *rest: Any) -> Any:
        found = torch.ops.ctm_fast.adaptive_recurrence_forward(inputs, hidden, cell, *rest)
        states, cells, ponder, steps, *kept = found
        _, recurrent, halting, *_ = rest
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(recurrent, halting, states, cells, *kept)
        ctx.shape, ctx.lstm = states[1:].shape, cell is not None
        ctx.mark_non_differentiable(steps, kept[5], kept[8])
        last = cells[-1].clone() if ctx.lstm else inputs.new_empty(0)
        return states[1:], last, ponder, steps, kept[0], kept[4], kept[5], kept[8]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("adaptive_recurrence")
        dhidden, dlast, dponder, _, drows, dweights, *_ = grads
        recurrent, *saved = ctx.saved_tensors
        steps, batch, width = ctx.shape
        dhidden = recurrent.new_zeros(ctx.shape) if dhidden is None else dhidden
        dponder = recurrent.new_zeros(steps, batch) if dponder is None else dponder
        if not ctx.lstm:
            dlast = None
        elif dlast is None:
            dlast = recurrent.new_zeros(batch, width)
        dinputs, dstart, dcell, *others = torch.ops.ctm_fast.adaptive_recurrence_backward(
            dhidden, dlast, dponder, drows, dweights, recurrent, *saved
        )
        return dinputs, dstart, dcell if ctx.lstm else None, *others, *[None] * 4


def adaptive_recurrence(
    inputs: Tensor, hidden: Tensor, cell: Tensor | None, flag: Tensor, recurrent: Tensor, halting: Tensor,
    bias: Tensor, mask: Tensor | None, epsilon: float, max_steps: int, rows: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """The public op on the native backend; without gradients it keeps the rows only where asked to."""
    tensors = (inputs, hidden, cell, flag, recurrent, halting, bias)
    needed = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    found = AdaptiveRecurrence.apply(*tensors, mask, epsilon, max_steps, rows or needed)
    states, last, ponder, steps, seen, weights, samples, spans = found
    cell = None if cell is None else last
    if not rows:
        return states, cell, ponder, steps, seen[:0], weights[:0], steps.new_empty(0)
    t = torch.repeat_interleave(spans[:, 0], spans[:, 2])
    return states, cell, ponder, steps, seen, weights, samples + t * inputs.shape[1]
