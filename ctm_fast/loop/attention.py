"""The query path inside the tick loop: action synchronisation, query projections, attention.

Letters: T ticks, B batch, d input width, h heads, L tokens, P action pairs, R rows (tick, batch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctm_fast.loop.config import AttentionWeights, Loop
from ctm_fast.ops.linear import Linear, Product
from ctm_fast.ops.native import CODES, kernels, threads
from ctm_fast.ops.sync import autograd as sync
from ctm_fast.ops.sync.arguments import checked_pairs


class Attention:
    """Action synchronisation, query and attention of one tick, forward and backward.

    A subclass runs what lies between the linear maps elsewhere.
    """

    linear: type[Product] = Linear

    def __init__(
        self, loop: Loop, weights: AttentionWeights, keys: Tensor, values: Tensor, z: Tensor
    ) -> None:
        self.loop, self.w, self.keys, self.values, self.z = loop, weights, keys, values, z
        _, self.batch, self.neurons = z.shape
        self.width, self.tokens = keys.shape[2], keys.shape[3]
        self.scale = (self.width // loop.heads) ** -0.5
        query, query_bias = weights.query * self.scale, weights.query_bias * self.scale
        self.project = self.linear(weights.q_proj, weights.q_proj_bias, self.batch, loop.ticks)
        self.query = self.linear(query, query_bias, self.batch, loop.ticks)
        self.out = self.linear(weights.out, weights.out_bias, self.batch, loop.ticks)
        assert loop.left is not None and loop.right is not None
        self.left, self.right = checked_pairs(z, loop.left, loop.right)
        self.r = torch.exp(-weights.decay).contiguous()
        self.pairs = self.r.shape[0]
        self.beta0 = torch.zeros_like(self.r)
        self.prepare()

    def prepare(self) -> None:
        """What the kernels are told at every tick."""
        self.code, self.threads = CODES[self.z.dtype], threads()
        self.shape = (self.batch, self.loop.heads, self.width // self.loop.heads, self.tokens)
        self.root, _ = sync.roots(self._sizes(self.loop.ticks), self.r, self.beta0)

    def _sizes(self, ticks: int) -> tuple[int, int, int, int, bool]:
        return (ticks, self.batch, self.neurons, self.pairs, False)

    def synchronisation(self, first: int, ticks: int, alpha: Tensor, out: Tensor) -> None:
        """Action synchronisation of ticks [first, first + ticks) into ``out`` (ticks, B, P); moves ``alpha`` on."""
        kernels().sync_forward(
            self.code, self._sizes(ticks), self.z[first].data_ptr(), self.z.stride()[:2], self.left.data_ptr(),
            self.right.data_ptr(), self.r.data_ptr(), self.root[first].data_ptr(), alpha.data_ptr(), out.data_ptr(),
            self.threads,
        )  # fmt: skip

    def synchronisation_backward(self, t: int, ds: Tensor, galpha: Tensor, dz: Tensor) -> None:
        """Adds to ``dz`` (B, D) the gradient of tick ``t``'s action synchronisation; moves ``galpha`` back."""
        kernels().sync_backward(
            self.code, self._sizes(1), self.z[t].data_ptr(), (0, self.neurons), self.left.data_ptr(),
            self.right.data_ptr(), self.r.data_ptr(), self.root[t].data_ptr(), 0, 0, ds.data_ptr(),
            galpha.data_ptr(), dz.data_ptr(), (0, self.neurons), 0, 0, self.threads,
        )  # fmt: skip

    def decay_gradient(self, ds: Tensor) -> Tensor:
        """Gradient of the raw decay from that of the action synchronisation of all ticks (T, B, P)."""
        dr, dbeta, alpha0, galpha = (
            torch.empty_like(self.r), torch.zeros_like(self.r), self.zeros(), self.zeros(),
        )  # fmt: skip
        kernels().sync_backward(
            self.code, self._sizes(self.loop.ticks), self.z.data_ptr(), self.z.stride()[:2], self.left.data_ptr(),
            self.right.data_ptr(), self.r.data_ptr(), self.root.data_ptr(), alpha0.data_ptr(),
            self.beta0.data_ptr(), ds.data_ptr(), galpha.data_ptr(), 0, (0, 0), dr.data_ptr(), dbeta.data_ptr(),
            self.threads,
        )  # fmt: skip
        return -self.r * dr

    def zeros(self) -> Tensor:
        return self.z.new_zeros(self.batch, self.pairs)

    def queries(self, synchronisation: Tensor) -> tuple[Tensor, Tensor]:
        """(R, P) -> q_proj's output and the scaled query, (R, d) each."""
        projected = self.project(synchronisation)
        return projected, self.query(projected)

    def drop(self, t: int) -> Any:
        return self.loop.attention_drop(t * self.batch)

    def attend(self, t: int, q: Tensor, weights: Tensor, out: Tensor) -> None:
        """Heads' output (B, d) of tick ``t`` into ``out``, attention weights (B, h, L) into ``weights``."""
        k = self.loop.inputs[t]
        kernels().attend_forward(
            self.code, self.shape, self.drop(t), q.data_ptr(), q.stride(0), self.keys[k].data_ptr(),
            self.values[k].data_ptr(), weights.data_ptr(), out.data_ptr(), out.stride(0), self.threads,
        )  # fmt: skip

    def attend_backward(
        self, t: int, q: Tensor, grad: Tensor, weights: tuple[Tensor, Tensor], dscores: Tensor, dq: Tensor
    ) -> None:
        """Of tick ``t``: weights after and before dropout again, gradients of the scores and of the query."""
        k, (dropped, plain) = self.loop.inputs[t], weights
        kernels().attend_backward(
            self.code, self.shape, self.drop(t), q.data_ptr(), q.stride(0), self.keys[k].data_ptr(),
            self.values[k].data_ptr(), grad.data_ptr(), grad.stride(0), dropped.data_ptr(), plain.data_ptr(),
            dscores.data_ptr(), dq.data_ptr(), dq.stride(0), self.threads,
        )  # fmt: skip
