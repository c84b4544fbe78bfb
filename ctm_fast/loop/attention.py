"""The query path inside the native tick loop: action synchronisation, query projections, attention.

Letters: T ticks, B batch, d input width, h heads, L tokens, P action pairs, R rows (tick, batch).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.loop.config import AttentionWeights, Loop
from ctm_fast.ops.linear import Linear
from ctm_fast.ops.native import CODES, Drop, kernels, threads
from ctm_fast.ops.sync import autograd as sync
from ctm_fast.ops.sync.arguments import checked_pairs


class Attention:
    """Action synchronisation, query and attention of one tick, forward and backward."""

    def __init__(
        self, loop: Loop, weights: AttentionWeights, keys: Tensor, values: Tensor, z: Tensor
    ) -> None:
        self.loop, self.w, self.keys, self.values, self.z = loop, weights, keys, values, z
        self.code, self.threads = CODES[z.dtype], threads()
        _, self.batch, self.neurons = z.shape
        self.width, self.tokens = keys.shape[2], keys.shape[3]
        self.shape = (self.batch, loop.heads, self.width // loop.heads, self.tokens)
        self.scale = (self.width // loop.heads) ** -0.5
        query, query_bias = weights.query * self.scale, weights.query_bias * self.scale
        self.project = Linear(weights.q_proj, weights.q_proj_bias, self.batch, loop.ticks)
        self.query = Linear(query, query_bias, self.batch, loop.ticks)
        self.out = Linear(weights.out, weights.out_bias, self.batch, loop.ticks)
        assert loop.left is not None and loop.right is not None
        self.left, self.right = checked_pairs(z, loop.left, loop.right)
        self.r = torch.exp(-weights.decay).contiguous()
        self.pairs = self.r.shape[0]
        self.beta0 = torch.zeros_like(self.r)
        self.root, _ = sync.roots(
            (loop.ticks, self.batch, self.neurons, self.pairs, False), self.r, self.beta0
        )

    def synchronisation(self, first: int, ticks: int, alpha: Tensor, out: Tensor) -> None:
        """Action synchronisation of ticks [first, first + ticks) into ``out`` (ticks, B, P); moves ``alpha`` on."""
        shape = (ticks, self.batch, self.neurons, self.pairs, False)
        kernels().sync_forward(
            self.code, shape, self.z[first].data_ptr(), self.z.stride()[:2], self.left.data_ptr(),
            self.right.data_ptr(), self.r.data_ptr(), self.root[first].data_ptr(), alpha.data_ptr(), out.data_ptr(),
            self.threads,
        )  # fmt: skip

    def zeros(self) -> Tensor:
        return self.z.new_zeros(self.batch, self.pairs)

    def queries(self, synchronisation: Tensor) -> tuple[Tensor, Tensor]:
        """(R, P) -> q_proj's output and the scaled query, (R, d) each."""
        projected = self.project(synchronisation)
        return projected, self.query(projected)

    def drop(self, t: int) -> Drop:
        return self.loop.attention_drop(t * self.batch)

    def attend(self, t: int, q: Tensor, weights: Tensor, out: Tensor) -> None:
        """Heads' output (B, d) of tick ``t`` into ``out``, attention weights (B, h, L) into ``weights``."""
        k = self.loop.inputs[t]
        kernels().attend_forward(
            self.code, self.shape, self.drop(t), q.data_ptr(), q.stride(0), self.keys[k].data_ptr(),
            self.values[k].data_ptr(), weights.data_ptr(), out.data_ptr(), out.stride(0), self.threads,
        )  # fmt: skip
