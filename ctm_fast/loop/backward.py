"""The backward pass of the tick loop, tick by tick, then all weight gradients over all ticks at once.

Letters: T ticks, B batch, D neurons, M memory length, d input width, h heads, L tokens, P action pairs, K sets of
keys and values, G given inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.loop.config import Loop, Parameters, of_ticks
from ctm_fast.loop.parts import loop_parts
from ctm_fast.ops.native import empty, zeros
from ctm_fast.ops.nlm.autograd import loop_arguments, window_strides


class LoopBackward:
    """The backward pass over all ticks; ``need`` follows the order keys, values, given, z0, start, parameters."""

    def __init__(
        self, loop: Loop, p: Parameters, keys: Tensor, values: Tensor, given: Tensor, z: Tensor, history: Tensor,
        heads: Tensor, linear: list[Tensor], need: tuple[bool, ...],
    ) -> None:  # fmt: skip
        self.loop, self.p, self.need = loop, p, need
        self.given, self.z, self.history, self.heads = given, z, history, heads
        self.ticks, (_, self.batch, self.neurons) = loop.ticks, z.shape
        self.memory = history.shape[0] - self.ticks
        self.parts = loop_parts(loop.backend, z.device)
        has = p.attention is not None
        self.attention = self.parts.attention(loop, p.attention, keys, values, z) if has else None  # type: ignore[arg-type]
        self.width = p.synapses[loop.stages[0].linear].shape[1] - self.neurons
        forward_ticks = 0 if linear else self.ticks  # without a forward to repeat nothing is packed for it
        self.synapses = self.parts.synapses(
            loop.stages, list(p.synapses), self.width, loop.seed, self.batch, forward_ticks
        )
        self.gradients = self.parts.gradients(self.synapses, self.ticks)
        self.packed, self.nlm_shape = loop_arguments(self.parts.nlm, p.nlm, self.batch)
        self.dpacked = zeros(self.packed, *self.packed.shape)
        if self.attention:
            self._recompute_queries()
        self.inputs = self._all_inputs()
        self.linear = linear or self._recompute_synapses()
        self.dlinear = [empty(y, *y.shape) for y in self.linear]

    def _recompute_queries(self) -> None:
        a = self.attention
        assert a is not None
        self.action = empty(self.z, self.ticks, self.batch, a.pairs)
        a.synchronisation(0, self.ticks, a.zeros(), self.action)
        self.projected, q = a.queries(self.action.flatten(0, 1))
        self.q = q.view(self.ticks, self.batch, self.width)
        self.from_out = a.linear(a.w.out.t(), None, self.batch, self.ticks)
        self.from_query = a.linear(a.query.weight.t(), None, self.batch, self.ticks)
        self.from_project = a.linear(a.w.q_proj.t(), None, self.batch, self.ticks)
        self.dq, self.dheads = torch.zeros_like(self.q), torch.zeros_like(self.q)
        self.daction, self.dattended = torch.zeros_like(self.action), torch.zeros_like(self.q)
        tokens = self.ticks, self.batch, self.loop.heads * a.tokens
        self.dscores = zeros(self.z, *tokens)
        self.weights = zeros(self.z, *tokens)
        self.alpha_gradient = a.zeros()
        self.scratch = self.z.new_empty(tokens[1:])

    def _all_inputs(self) -> Tensor:
        """What the synapses read at every tick besides z, (T, B, d)."""
        if self.attention is None:
            return torch.stack([self.given[-1 - i] for i in self.loop.inputs])
        attended = self.attention.out(self.heads.flatten(0, 1)).view(self.ticks, self.batch, self.width)
        for t, i in enumerate(self.loop.inputs):
            if i < 0:
                attended[t] = self.given[-1 - i]
        return attended

    def _recompute_synapses(self) -> list[Tensor]:
        rows = self.ticks * self.batch
        linear = [empty(self.z, rows, self.synapses.linear_width(i)) for i in range(len(self.loop.stages))]
        unused = self.z.new_empty(rows, self.neurons)
        self.synapses.forward(linear, self.inputs.flatten(0, 1), self.z[:-1].flatten(0, 1), None, 0, unused)
        return [y.view(self.ticks, self.batch, -1) for y in linear]

    def run(self, dz_all: Tensor | None, dhistory: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of keys, values, given, z0, start and all parameters."""
        self.dhistory = self.parts.nlm.buffer(self.z, *self.history.shape).zero_()
        if dhistory is not None:
            self.dhistory += dhistory
        self.dz_kept = None if self._fused() else empty(self.z, self.ticks, self.batch, self.neurons)
        self.dx = self.z.new_zeros(self.given.shape)
        carry = self.z.new_zeros(self.batch, self.neurons)
        for t in reversed(range(self.ticks)):
            if dz_all is not None:
                carry = carry + dz_all[t + 1]
            carry = self._tick(t, carry)
        if dz_all is not None:
            carry = carry + dz_all[0]
        keys, values = self._keys_values()
        given = self.dx if self.need[2] else None
        return (keys, values, given, carry, self.dhistory[: self.memory], *self._parameters())

    def _fused(self) -> bool:
        return self.batch >= self.parts.fused_rows

    def _tick(self, t: int, dz: Tensor) -> Tensor:
        """One tick backwards: gradient of z[t + 1] -> of z[t], without what reaches z[t] from outside the loop."""
        if self.dz_kept is not None:
            self.dz_kept[t] = dz
        drop = self.loop.nlm_drop(t * self.batch)
        self.parts.nlm.run_backward(
            self.nlm_shape, drop, self.packed, self.history[t + 1 :], window_strides(self.history), dz.contiguous(),
            self.dhistory[t + 1 :], window_strides(self.dhistory), self.dpacked if self._fused() else None,
        )  # fmt: skip
        attends = self.loop.inputs[t] >= 0
        dx, below = self.gradients.backward(
            [y[t] for y in self.linear], [g[t] for g in self.dlinear], self.dhistory[self.memory + t],
            t * self.batch, attends or self.need[2],
        )  # fmt: skip
        if dx is not None and not attends:
            self.dx[-1 - self.loop.inputs[t]] += dx
        if self.attention:
            self._attention_tick(t, dx if attends else None, below)
        return below

    def _attention_tick(self, t: int, dx: Tensor | None, dz: Tensor) -> None:
        """From the attended input's gradient to that of z[t], added to ``dz``."""
        a = self.attention
        assert a is not None
        if dx is not None:
            self.dattended[t] = dx
            self.from_out(dx, self.dheads[t])
            plain = self.scratch if a.drop(t)[0] > 0.0 else self.weights[t]
            weights = self.weights[t], plain
            a.attend_backward(t, self.q[t], self.dheads[t], weights, self.dscores[t], self.dq[t])
            self.from_project(self.from_query(self.dq[t]), self.daction[t])
        a.synchronisation_backward(t, self.daction[t], self.alpha_gradient, dz)

    def _keys_values(self) -> tuple[Tensor | None, Tensor | None]:
        """Sums over the ticks as one batched product: dk = q^T ds, dv = dheads^T w, per head."""
        a = self.attention
        if a is None or not (self.need[0] or self.need[1]):
            return None, None
        dkeys, dvalues = torch.zeros_like(a.keys), torch.zeros_like(a.values)
        for k in range(a.keys.shape[0]):
            ticks = [t for t, i in enumerate(self.loop.inputs) if i == k]
            if ticks:
                dkeys[k] = self._over_ticks(self.q, self.dscores, ticks)
                dvalues[k] = self._over_ticks(self.dheads, self.weights, ticks)
        return dkeys, dvalues

    def _over_ticks(self, left: Tensor, right: Tensor, ticks: list[int]) -> Tensor:
        left, right = of_ticks(ticks, left), of_ticks(ticks, right)
        n, heads = len(ticks), self.loop.heads
        left = left.view(n, self.batch, heads, -1).permute(1, 2, 3, 0)
        right = right.view(n, self.batch, heads, -1).permute(1, 2, 0, 3)
        return torch.matmul(left, right).reshape(self.batch, self.width, -1)

    def _parameters(self) -> tuple[Tensor | None, ...]:
        attention = self._attention_parameters() if self.attention else ()
        first = 5 + len(attention) + len(self.p.nlm)
        flat = [y.flatten(0, 1) for y in self.linear]
        grads = [g.flatten(0, 1) for g in self.dlinear]
        synapses = self.gradients.weights(
            flat, grads, self.inputs.flatten(0, 1), self.z[:-1].flatten(0, 1), lambda i: self.need[first + i]
        )
        return (*attention, *self._nlm_parameters(), *synapses)

    def _nlm_parameters(self) -> tuple[Tensor, ...]:
        if self.dz_kept is not None:
            rows = self.ticks * self.batch
            self.parts.nlm.run_backward(
                (rows, *self.nlm_shape[1:]), self.loop.nlm_drop(0), self.packed,
                self.history[1:], window_strides(self.history), self.dz_kept.flatten(0, 1), None, (0, 0, 0),
                self.dpacked,
            )  # fmt: skip
        w1, _, t1, w2, _, t2 = (*self.p.nlm, None, None, None)[:6]
        assert w1 is not None and t1 is not None
        return self.parts.nlm.unpack(self.packed, self.dpacked, w1, t1, w2, t2)[: len(self.p.nlm)]

    def _attention_parameters(self) -> tuple[Tensor | None, ...]:
        a = self.attention
        assert a is not None
        dq, projected = self.dq.flatten(0, 1), self.projected
        dprojected = self.from_query(dq)
        dout = self.dattended.flatten(0, 1)
        attending = self.loop.attending
        heads, dheads = (of_ticks(attending, x).flatten(0, 1) for x in (self.heads, self.dattended))
        outer = self.parts.outer
        return (
            outer(dprojected, self.action.flatten(0, 1)), dprojected.sum(0), outer(dq, projected) * a.scale,
            dq.sum(0) * a.scale, outer(dheads, heads), dout.sum(0),
            # Nothing has decayed at the first tick.
            a.decay_gradient(self.daction) if max(attending, default=0) > 0 else None,
        )  # fmt: skip
