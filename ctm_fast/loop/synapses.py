"""The synapse network inside the tick loop: linear maps by torch, everything between them fused.

A network is a list of stages, each a linear map and what follows it. The input is the concatenation [x | z] of the
tick's input and the post-activations; it is never built, its two halves are multiplied separately. What autograd
would save is reduced to the output of every linear map. Letters: R rows (tick, batch), w width of a stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast.loop.seed import Seed
from ctm_fast.ops.linear import Linear, Product, outer
from ctm_fast.ops.native import CODES, empty, kernels, threads

INPUT = -1


class Stage(NamedTuple):
    """One linear map and the fused pointwise part behind it."""

    kind: str  # "glu": LN(GLU(y)); "silu": SiLU(LN(y)); "skip": LN'(SiLU(LN(y)) + output of stage `skip`)
    linear: int  # index of its weight among the parameters; the bias follows
    norm: int  # index of its LayerNorm's weight; the bias follows
    eps: float
    source: int  # the stage whose output it reads, or INPUT
    dropout: float = 0.0  # on what it reads
    skip: int = INPUT
    outer: int = INPUT  # index of the weight of LN'
    outer_eps: float = 0.0


class SynapsePlan(NamedTuple):
    """Stages and the parameters that they index."""

    stages: tuple[Stage, ...]
    parameters: tuple[Tensor, ...]

    @property
    def inputs(self) -> int:
        """Width of the input [x | z]."""
        return self.parameters[self.stages[0].linear].shape[1]

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return self.parameters[self.stages[-1].norm].shape[0]

    def sizes_agree(self) -> bool:
        """Whether every stage fits those that it reads."""
        widths = [self.parameters[stage.norm].shape[0] for stage in self.stages]
        for stage, width in zip(self.stages, widths, strict=True):
            rows, columns = self.parameters[stage.linear].shape
            if rows != width * (2 if stage.kind == "glu" else 1):
                return False
            if columns != (self.inputs if stage.source == INPUT else widths[stage.source]):
                return False
            if stage.kind == "skip" and {widths[stage.skip], *self.parameters[stage.outer].shape} != {width}:
                return False
        return True


class Synapses:
    """One forward's (and its backward's) view of a plan: parameters resolved to addresses, one seed per stage.

    A subclass runs the parts between the linear maps elsewhere.

    Args:
        stages: the plan's stages.
        parameters: detached parameters, contiguous, float32 or float64.
        split: width of x in the input [x | z].
        seed: dropout seed, or None where no dropout acts.
        batch, ticks: rows of a call and number of calls of the forward; no ticks, no forward.
    """

    linear: type[Product] = Linear

    def __init__(
        self,
        stages: tuple[Stage, ...],
        parameters: list[Tensor],
        split: int,
        seed: Seed | None,
        batch: int,
        ticks: int,
    ) -> None:
        self.stages, self.parameters, self.split, self.seed = stages, parameters, split, seed
        self.batch = batch
        first = parameters[stages[0].linear]
        self.from_x = self.linear(first[:, :split], None, batch, ticks if split else 0)
        self.linears = [
            self.linear(
                first[:, split:] if s.source == INPUT else parameters[s.linear],
                parameters[s.linear + 1],
                batch,
                ticks,
            )
            for s in stages
        ]
        self.widths = [parameters[s.norm].shape[0] for s in stages]
        self.keep = [s for s in range(len(stages)) if any(other.skip == s for other in stages)]
        self.prepare()

    def prepare(self) -> None:
        """What the kernels are told at every tick."""
        stages = self.stages
        self.code, self.threads = CODES[self.parameters[0].dtype], threads()
        self.norms = [self._norm(s.norm, s.eps) for s in stages]
        self.outers = [self._norm(s.outer, s.outer_eps) if s.outer >= 0 else (0, 0, 0.0) for s in stages]

    def _norm(self, index: int, eps: float) -> tuple[int, int, float]:
        return self.parameters[index].data_ptr(), self.parameters[index + 1].data_ptr(), eps

    def linear_width(self, i: int) -> int:
        """Width of the linear map of stage ``i``: twice its output before a GLU."""
        return self.widths[i] * (2 if self.stages[i].kind == "glu" else 1)

    def dropped(self, i: int, x: Tensor, first_row: int, part: int = 0) -> Tensor:
        """``x`` (R, w) under the dropout of stage ``i``'s input; ``part`` tells the halves of the input apart."""
        p = self.stages[i].dropout
        if self.seed is None or p == 0.0:
            return x
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.drop((p, self.seed.of(2 * i + part), first_row), x, out)
        return out

    def drop(self, drop: Any, x: Tensor, out: Tensor) -> None:
        """``x`` (R, w) under the masks of (probability, seed, number of row 0) into ``out``."""
        kernels().dropout(
            self.code,
            tuple(x.shape),
            drop,
            x.data_ptr(),
            x.stride(0),
            out.data_ptr(),
            out.stride(0),
            self.threads,
        )

    def constant(self, x: Tensor) -> Tensor | None:
        """The part of the first linear map that an input ``x`` (B, split) gives at every tick, or None if dropout
        redraws it.
        """
        if self.seed is not None and self.stages[0].dropout > 0.0:
            return None
        return torch.addmm(self.parameters[self.stages[0].linear + 1], x, self.from_x.weight.t())

    def input_map(
        self, x: Tensor | None, z: Tensor, constant: Tensor | None, first_row: int, out: Tensor
    ) -> None:
        """First linear map of [x | z] into ``out`` (R, w)."""
        self.linears[0](self.dropped(0, z, first_row, 1), out, constant)
        if constant is None and x is not None and self.split:
            self.from_x(self.dropped(0, x, first_row), out, out)

    def pointwise(self, i: int, linear: Tensor, skip: Tensor | None, out: Tensor) -> None:
        """The part of stage ``i`` behind its linear map: (R, linear width) -> ``out`` (R, w)."""
        rows = (linear.shape[0], self.widths[i])
        kind = self.stages[i].kind
        if kind == "skip":
            assert skip is not None
            kernels().skip_norm(
                self.code, rows, linear.data_ptr(), linear.stride(0), self.norms[i], skip.data_ptr(), skip.stride(0),
                self.outers[i], out.data_ptr(), out.stride(0), self.threads,
            )  # fmt: skip
            return
        run = kernels().glu_norm if kind == "glu" else kernels().silu_norm
        run(
            self.code,
            rows,
            linear.data_ptr(),
            linear.stride(0),
            self.norms[i],
            out.data_ptr(),
            out.stride(0),
            self.threads,
        )

    def forward(
        self,
        linear: list[Tensor],
        x: Tensor | None,
        z: Tensor,
        constant: Tensor | None,
        first_row: int,
        out: Tensor,
    ) -> None:
        """[x | z] (R, split), (R, D) -> ``out`` (R, D); leaves every linear map's output in ``linear``."""
        outputs: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            y = linear[i]
            if stage.source == INPUT:
                self.input_map(x, z, constant, first_row, y)
            else:
                source = self.dropped(i, outputs[stage.source], first_row)
                self.linears[i](source, y)
            result = out if i == len(self.stages) - 1 else y.new_empty(y.shape[0], self.widths[i])
            self.pointwise(i, y, outputs[stage.skip] if stage.kind == "skip" else None, result)
            outputs.append(result)

    def outputs(self, linear: list[Tensor], only: list[int]) -> dict[int, Tensor]:
        """Outputs of the stages ``only``, computed again from what was kept."""
        found: dict[int, Tensor] = {}
        for i in only:
            y = linear[i]
            skip = found.get(self.stages[i].skip) if self.stages[i].kind == "skip" else None
            found[i] = empty(y, y.shape[0], self.widths[i])
            self.pointwise(i, y, skip, found[i])
        return found


class SynapseGradients:
    """The backward pass of a :class:`Synapses`: per tick down to the input, weights over all ticks at the end."""

    linear: type[Product] = Linear
    outer = staticmethod(outer)

    def __init__(self, synapses: Synapses, ticks: int) -> None:
        self.synapses = synapses
        groups = self.row_groups()
        self.norms = {
            index: tuple(synapses.parameters[index].new_zeros(groups, width) for _ in range(2))
            for stage, width in zip(synapses.stages, synapses.widths, strict=True)
            for index in (stage.norm, stage.outer)
            if index >= 0
        }
        first = synapses.parameters[synapses.stages[0].linear]
        self.to_x = self.linear(first[:, : synapses.split].t(), None, synapses.batch, ticks)
        self.downward = [
            self.linear(
                (first[:, synapses.split :] if s.source == INPUT else synapses.parameters[s.linear]).t(),
                None,
                synapses.batch,
                ticks,
            )
            for s in synapses.stages
        ]

    def row_groups(self) -> int:
        """Groups of rows that sum the norms' gradients apart."""
        return int(kernels().ROW_GROUPS)

    def _norm(self, index: int) -> tuple[int, int]:
        weight, bias = self.norms[index]
        return weight.data_ptr(), bias.data_ptr()

    def pointwise(
        self, i: int, linear: Tensor, skip: Tensor | None, grad: Tensor, out: Tensor
    ) -> Tensor | None:
        """Gradient of stage ``i``'s linear map into ``out``; returns that of ``skip``."""
        s = self.synapses
        rows = (linear.shape[0], s.widths[i])
        stage = s.stages[i]
        if stage.kind == "skip":
            assert skip is not None
            dskip = torch.empty_like(skip)
            kernels().skip_norm_backward(
                s.code, rows, linear.data_ptr(), linear.stride(0), s.norms[i], skip.data_ptr(), skip.stride(0),
                s.outers[i], grad.data_ptr(), grad.stride(0), out.data_ptr(), out.stride(0), dskip.data_ptr(),
                dskip.stride(0), self._norm(stage.norm), self._norm(stage.outer), s.threads,
            )  # fmt: skip
            return dskip
        run = kernels().glu_norm_backward if stage.kind == "glu" else kernels().silu_norm_backward
        run(
            s.code, rows, linear.data_ptr(), linear.stride(0), s.norms[i], grad.data_ptr(), grad.stride(0),
            out.data_ptr(), out.stride(0), self._norm(stage.norm), s.threads,
        )  # fmt: skip
        return None

    def backward(
        self, linear: list[Tensor], grads: list[Tensor], grad: Tensor, first_row: int, want_x: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Gradients of x and z from that of the output (R, D); leaves every linear map's gradient in ``grads``."""
        s = self.synapses
        kept = s.outputs(linear, s.keep)
        pending: dict[int, Tensor] = {len(s.stages) - 1: grad}
        for i in reversed(range(len(s.stages))):
            stage = s.stages[i]
            dskip = self.pointwise(i, linear[i], kept.get(stage.skip), pending.pop(i), grads[i])
            if dskip is not None:
                pending[stage.skip] = dskip
            if stage.source == INPUT:
                continue
            below = s.dropped(i, self.downward[i](grads[i]), first_row)
            if stage.source in pending:
                pending[stage.source] += below
            else:
                pending[stage.source] = below
        dz = s.dropped(0, self.downward[0](grads[0]), first_row, 1)
        dx = s.dropped(0, self.to_x(grads[0]), first_row) if want_x and s.split else None
        return dx, dz

    def weights(
        self,
        linear: list[Tensor],
        grads: list[Tensor],
        x: Tensor | None,
        z: Tensor,
        wanted: Callable[[int], bool],
    ) -> list[Tensor | None]:
        """Gradients of all parameters from all rows at once: one product per linear map."""
        s = self.synapses
        result: list[Tensor | None] = [None] * len(s.parameters)
        for index, (weight, bias) in self.norms.items():
            result[index], result[index + 1] = weight.sum(0), bias.sum(0)
        kept = s.outputs(linear, s.keep)
        for i, stage in enumerate(s.stages):
            if wanted(stage.linear + 1):
                result[stage.linear + 1] = grads[i].sum(0)
            if not wanted(stage.linear):
                continue
            if stage.source == INPUT:
                out = empty(grads[i], *s.parameters[stage.linear].shape)
                self.outer(grads[i], s.dropped(0, z, 0, 1), out[:, s.split :])
                if x is not None and s.split:
                    self.outer(grads[i], s.dropped(0, x, 0), out[:, : s.split])
                result[stage.linear] = out
                continue
            source = stage.source
            if source not in kept:
                skip = kept.get(s.stages[source].skip) if s.stages[source].kind == "skip" else None
                value = empty(linear[source], linear[source].shape[0], s.widths[source])
                s.pointwise(source, linear[source], skip, value)
            else:
                value = kept[source]
            result[stage.linear] = self.outer(grads[i], s.dropped(i, value, 0))
        return result
