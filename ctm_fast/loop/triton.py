"""The parts of the tick loop on Triton kernels: what :mod:`ctm_fast.loop.parts` names for a GPU.

Letters: R rows (samples), w width of a stage, d input width, h heads, L tokens, P action pairs, D neurons.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from ctm_fast.loop import device
from ctm_fast.loop.attention import Attention
from ctm_fast.loop.synapses import SynapseGradients, Synapses
from ctm_fast.ops.linear import Product, outer_product
from ctm_fast.ops.sync.arguments import GatherPlan, gather_plan
from ctm_fast.ops.sync.triton import MOST_PAIRS, all_betas, gather, pair_gradients
from ctm_fast.ops.triton import block, device_of, masks

ROW_GROUPS = 128  # programs that share a backward's rows, each with its own sums of the norms' gradients
LARGEST_TILE = 4096  # elements of keys or values that a program holds at once; half as many of 64 bits


def row_sizes(width: int) -> dict[str, int]:
    """Block and warps of a program that holds a row of ``width``."""
    size = block(width, 32, 1 << 30)
    return {"BLOCK": size, "num_warps": block(size // 256, 1, 8) if size <= 2048 else 32}


def tile_sizes(width: int, tokens: int, wide: bool) -> dict[str, int]:
    """Blocks of a head's width and of tokens, and warps; ``wide`` elements have 64 bits."""
    most, head = LARGEST_TILE // (2 if wide else 1), block(width, 16, 1 << 30)
    size = block(tokens, 16, max(most // head, 16))
    return {
        "BLOCK_W": head,
        "BLOCK_L": size,
        "num_warps": block(head * size * (2 if wide else 1) // 512, 1, 8),
    }


class DeviceSynapses(Synapses):
    """The pointwise halves by Triton, the linear maps by torch."""

    linear = Product

    def drop(self, drop: Any, x: Tensor, out: Tensor) -> None:
        """``x`` (R, w) under the masks of (probability, seed, number of row 0) into ``out``."""
        size, (seed, *masked, _) = block(x.shape[1], 32, 1024), masks(drop, x.device)
        with device_of(x):
            device.dropout_kernel[x.shape[0], triton.cdiv(x.shape[1], size)](
                x, seed, out, *masked, x.shape[1], x.stride(0), out.stride(0), BLOCK=size
            )

    def pointwise(self, i: int, linear: Tensor, skip: Tensor | None, out: Tensor) -> None:
        """The part of stage ``i`` behind its linear map: (R, linear width) -> ``out`` (R, w), of any strides."""
        stage = self.stages[i]
        if not out.numel():
            return
        with device_of(linear):
            device.pointwise_kernel[linear.shape[0],](
                linear, *self.norm_pairs[i][0], skip, *self.norm_pairs[i][1], out, self.widths[i],
                linear.stride(0), skip.stride(0) if skip is not None else 0, *out.stride(), KIND=stage.kind,
                EPS=stage.eps, OUTER_EPS=stage.outer_eps, **self.sizes[i],
            )  # fmt: skip

    def prepare(self) -> None:
        """Norms and compile-time sizes of every stage."""
        p = self.parameters
        self.norm_pairs = [
            (p[s.norm : s.norm + 2], p[s.outer : s.outer + 2] if s.outer >= 0 else (None, None))
            for s in self.stages
        ]
        self.sizes = [row_sizes(width) for width in self.widths]


class DeviceSynapseGradients(SynapseGradients):
    """The backward of :class:`DeviceSynapses`."""

    linear = Product
    outer = staticmethod(outer_product)

    def row_groups(self) -> int:
        """Groups of rows that sum the norms' gradients apart."""
        return ROW_GROUPS

    def pointwise(
        self, i: int, linear: Tensor, skip: Tensor | None, grad: Tensor, out: Tensor
    ) -> Tensor | None:
        """Gradient of stage ``i``'s linear map into ``out``; returns that of ``skip``."""
        s = self.synapses
        assert isinstance(s, DeviceSynapses)
        dskip = torch.empty_like(skip) if skip is not None else None
        if grad.numel() and skip is not None:
            self._skip(i, linear, skip, grad, dskip)
        if grad.numel():
            self._inner(i, linear, grad if dskip is None else dskip, out)
        return dskip

    def _skip(self, i: int, linear: Tensor, skip: Tensor, grad: Tensor, dskip: Any) -> None:
        """Through the outer norm: the gradient of both that it adds."""
        s, rows = self.synapses, linear.shape[0]
        assert isinstance(s, DeviceSynapses)
        (weight, bias), (outer_weight, _) = s.norm_pairs[i]
        eps = {"EPS": s.stages[i].eps, "OUTER_EPS": s.stages[i].outer_eps}
        with device_of(linear):
            device.skip_backward_kernel[min(rows, ROW_GROUPS),](
                linear, weight, bias, skip, outer_weight, grad, dskip, *self.norms[s.stages[i].outer], rows,
                s.widths[i], linear.stride(0), skip.stride(0), *grad.stride(), dskip.stride(0), **eps, **s.sizes[i],
            )  # fmt: skip

    def _inner(self, i: int, linear: Tensor, grad: Tensor, out: Tensor) -> None:
        s, rows = self.synapses, linear.shape[0]
        assert isinstance(s, DeviceSynapses)
        stage, norm = s.stages[i], s.norm_pairs[i][0]
        kind = "glu" if stage.kind == "glu" else "silu"
        with device_of(linear):
            device.pointwise_backward_kernel[min(rows, ROW_GROUPS),](
                linear, *norm, grad, out, *self.norms[stage.norm], rows, s.widths[i], linear.stride(0), *grad.stride(),
                out.stride(0), KIND=kind, EPS=stage.eps, **s.sizes[i],
            )  # fmt: skip


class DeviceAttention(Attention):
    """The query path by Triton: one kernel for a tick's pairs, one for what its queries read."""

    linear = Product

    def prepare(self) -> None:
        """Roots of beta of every tick, block sizes."""
        table = all_betas(self.r, self.beta0, self.loop.ticks)
        self.root = 1 / torch.sqrt(table[1:])
        self.tile = tile_sizes(self.width // self.loop.heads, self.tokens, self.z.dtype == torch.float64)
        self.size = block(self.pairs, 32, MOST_PAIRS)
        self.grid = self.batch, triton.cdiv(self.pairs, self.size)

    @cached_property
    def plan(self) -> GatherPlan:
        """The pairs of every neuron; only a backward asks."""
        return gather_plan(self.left, self.right, self.neurons)

    def synchronisation(self, first: int, ticks: int, alpha: Tensor, out: Tensor) -> None:
        """Action synchronisation of ticks [first, first + ticks) into ``out`` (ticks, B, P); moves ``alpha`` on."""
        with device_of(out):
            device.pairs_kernel[self.grid](
                self.z[first], self.left, self.right, self.r, self.root[first], alpha, out, ticks, self.batch,
                self.neurons, self.pairs, BLOCK=self.size,
            )  # fmt: skip

    def synchronisation_backward(self, t: int, ds: Tensor, galpha: Tensor, dz: Tensor) -> None:
        """Adds to ``dz`` (B, D) the gradient of tick ``t``'s action synchronisation; moves ``galpha`` back."""
        products = torch.empty_like(ds)
        with device_of(ds):
            device.pairs_backward_kernel[self.grid](
                ds, self.r, self.root[t], galpha, products, self.pairs, BLOCK=self.size
            )
        gather(products.unsqueeze(0), self.z[t : t + 1], self.plan, dz, add=True)

    def decay_gradient(self, ds: Tensor) -> Tensor:
        """Gradient of the raw decay from that of the action synchronisation of all ticks (T, B, P)."""
        zeros, none, z = self.zeros(), torch.zeros_like(self.r), self.z[: self.loop.ticks]
        _, _, dr, _ = pair_gradients(
            ds, zeros, none, z, self.left, self.right, self.r, zeros, none, last=False
        )
        return -self.r * dr.sum(0)

    def attend(self, t: int, q: Tensor, weights: Tensor, out: Tensor) -> None:
        """Heads' output (B, d) of tick ``t`` into ``out``, attention weights (B, h, L) into ``weights``."""
        k, drop = self.loop.inputs[t], self.drop(t)
        seed, *masked = masks(drop, q.device)
        with device_of(q):
            device.attend_kernel[self.batch * self.loop.heads,](
                q, self.keys[k], self.values[k], weights, out, seed, *masked[:3], self.loop.heads,
                self.width // self.loop.heads, self.tokens, q.stride(0), out.stride(0), DROP=masked[3], **self.tile,
            )  # fmt: skip

    def attend_backward(
        self, t: int, q: Tensor, grad: Tensor, weights: tuple[Tensor, Tensor], dscores: Tensor, dq: Tensor
    ) -> None:
        """Of tick ``t``: weights after and before dropout again, gradients of the scores and of the query."""
        k, drop = self.loop.inputs[t], self.drop(t)
        seed, *masked = masks(drop, q.device)
        dropped, plain = weights
        with device_of(q):
            device.attend_backward_kernel[self.batch * self.loop.heads,](
                q, self.keys[k], self.values[k], grad, plain, dropped, dscores, dq, seed, *masked[:3],
                self.loop.heads, self.width // self.loop.heads, self.tokens, q.stride(0), grad.stride(0),
                dq.stride(0), DROP=masked[3], **self.tile,
            )  # fmt: skip
