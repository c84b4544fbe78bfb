"""Triton kernels of ``ops.sync`` in float32 and float64.

Letters: T ticks, B samples, D neurons, P pairs. The forward keeps alpha and beta of a block of pairs in
registers over all ticks. The backward writes the gradients of the pairs' products; every neuron then gathers
those of its pairs in a fixed order, so that no sum depends on which program runs first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ctm_fast.ops.device import root
from ctm_fast.ops.sync import reference
from ctm_fast.ops.sync.arguments import GatherPlan, checked_pairs, gather_plan
from ctm_fast.ops.triton import block, device_of

MOST_PAIRS = 256
MOST_NEURONS = 128


@triton.jit
def product(row, left, right, p, inside, stride_d):
    """Products of the pairs ``p`` in one row of activations."""
    i = tl.load(left + p, mask=inside, other=0).to(tl.int64)
    j = tl.load(right + p, mask=inside, other=0).to(tl.int64)
    return tl.load(row + i * stride_d, mask=inside, other=0.0) * tl.load(
        row + j * stride_d, mask=inside, other=0.0
    )


@triton.jit
def forward_kernel(
    z, left, right, rate, alpha, beta, s, alpha_after, beta_after,
    ticks, batch, pairs, stride_t, stride_b, stride_d, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample and a block of pairs over all ticks."""
    sample = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pairs
    r = tl.load(rate + p, mask=inside, other=0.0)
    a = tl.load(alpha + sample * pairs + p, mask=inside, other=0.0)
    b = tl.load(beta + p, mask=inside, other=0.0)
    row, out = z + sample * stride_b, s + sample * pairs
    for _ in range(ticks):
        a = r * a + product(row, left, right, p, inside, stride_d)
        b = r * b + 1
        if not LAST:
            tl.store(out + p, a / root(b), mask=inside)
            out += batch * pairs
        row += stride_t
    if LAST:
        tl.store(out + p, a / root(b), mask=inside)
    tl.store(alpha_after + sample * pairs + p, a, mask=inside)
    tl.store(beta_after + p, b, mask=inside & (sample == 0))


@triton.jit
def betas_kernel(rate, beta, betas, ticks, pairs, BLOCK: tl.constexpr):
    """Beta before every tick and after the last, (T + 1, P)."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pairs
    r = tl.load(rate + p, mask=inside, other=0.0)
    b = tl.load(beta + p, mask=inside, other=0.0)
    tl.store(betas + p, b, mask=inside)
    for _ in range(ticks):
        b = r * b + 1
        betas += pairs
        tl.store(betas + p, b, mask=inside)


@triton.jit
def backward_kernel(
    z, left, right, rate, alpha, betas, ds, dalpha, dbeta, products, dalpha_before, drate, dbeta_before,
    ticks, batch, pairs, stride_t, stride_b, stride_d, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample and a block of pairs: ``products`` holds alpha of every tick, then the products' gradients.

    Gradients of rate and beta are per sample, to be added up; that of the last beta enters with sample 0.
    """
    sample = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pairs
    r = tl.load(rate + p, mask=inside, other=0.0)
    start = tl.load(alpha + sample * pairs + p, mask=inside, other=0.0)
    a = start
    row, out = z + sample * stride_b, products + sample * pairs
    for _ in range(ticks):
        a = r * a + product(row, left, right, p, inside, stride_d)
        tl.store(out + p, a, mask=inside)
        out += batch * pairs
        row += stride_t
    tl.debug_barrier()  # another thread may hold these pairs below
    d = tl.load(ds + sample * pairs + p, mask=inside, other=0.0) if LAST else tl.zeros_like(a)
    ga = tl.load(dalpha + sample * pairs + p, mask=inside, other=0.0)
    gb = tl.load(dbeta + p, mask=inside & (sample == 0), other=0.0)
    gr = tl.zeros_like(a)
    gradients, before = ds + sample * pairs, betas
    for k in range(ticks):
        tick = ticks - 1 - k
        if not LAST:
            d = tl.load(gradients + tick.to(tl.int64) * batch * pairs + p, mask=inside, other=0.0)
        scale = 1 / root(tl.load(before + (tick + 1) * pairs + p, mask=inside, other=1.0))
        out -= batch * pairs
        previous = tl.load(out - batch * pairs + p, mask=inside & (tick > 0), other=0.0)
        previous = tl.where(tick > 0, previous, start)
        ga += d * scale
        gb -= 0.5 * scale * scale * scale * d * a
        gr += ga * previous + gb * tl.load(before + tick * pairs + p, mask=inside, other=0.0)
        tl.debug_barrier()  # another thread may still read what the tick before took from here
        tl.store(out + p, ga, mask=inside)
        ga *= r
        gb *= r
        a = previous
        if LAST:
            d = tl.zeros_like(a)
    tl.store(dalpha_before + sample * pairs + p, ga, mask=inside)
    tl.store(drate + sample * pairs + p, gr, mask=inside)
    tl.store(dbeta_before + sample * pairs + p, gb, mask=inside)


@triton.jit
def gather_kernel(
    products,
    z,
    dz,
    starts,
    pair,
    other,
    batch,
    neurons,
    pairs,
    stride_t,
    stride_b,
    stride_d,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of a block of neurons in one row (tick, sample), sums over the pairs that each is in: written, or
    added.
    """
    index = tl.program_id(0).to(tl.int64)
    row = z + index // batch * stride_t + index % batch * stride_b
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = n < neurons
    first = tl.load(starts + n, mask=inside, other=0)
    count = tl.load(starts + n + 1, mask=inside, other=0) - first
    total = tl.zeros((BLOCK,), z.dtype.element_ty)
    for k in range(tl.max(count, 0)):
        there = k < count
        p = tl.load(pair + first + k, mask=there, other=0)
        i = tl.load(other + first + k, mask=there, other=0).to(tl.int64)
        g = tl.load(products + index * pairs + p, mask=there, other=0.0)
        total += g * tl.load(row + i * stride_d, mask=there, other=0.0)
    if ADD:
        total += tl.load(dz + index * neurons + n, mask=inside, other=0.0)
    tl.store(dz + index * neurons + n, total, mask=inside)


def all_betas(r: Tensor, beta: Tensor, ticks: int) -> Tensor:
    """Beta (T + 1, P) before every tick and after the last, from ``beta`` (P) before the first."""
    pairs = r.shape[0]
    found, size = r.new_empty(ticks + 1, pairs), block(pairs, 32, MOST_PAIRS)
    with device_of(r):
        betas_kernel[triton.cdiv(pairs, size),](r, beta.contiguous(), found, ticks, pairs, BLOCK=size)
    return found


def gather(products: Tensor, z: Tensor, plan: GatherPlan, dz: Tensor, add: bool) -> None:
    """Gradients (T, B, D) of the activations from those of the pairs' products (T, B, P), into ``dz``, contiguous."""
    ticks, batch, neurons = z.shape
    size = block(neurons, 32, MOST_NEURONS)
    with device_of(z):
        gather_kernel[ticks * batch, triton.cdiv(neurons, size)](
            products, z, dz, *plan, batch, neurons, products.shape[2], *z.stride(), ADD=add, BLOCK=size
        )


def sync_forward(
    z: Tensor, left: Tensor, right: Tensor, decay: Tensor, alpha: Tensor, beta: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The registered forward; shapes as those of the public op."""
    left, right = checked_pairs(z, left, right)
    ticks, batch, _ = z.shape
    pairs = decay.shape[0]
    if not batch * pairs:
        return reference.sync(z, left.long(), right.long(), decay, alpha.clone(), beta.clone(), last)
    s = z.new_empty((batch, pairs) if last else (ticks, batch, pairs))
    after = z.new_empty(batch, pairs), z.new_empty(pairs)
    size = block(pairs, 32, MOST_PAIRS)
    with device_of(z):
        forward_kernel[batch, triton.cdiv(pairs, size)](
            z, left, right, torch.exp(-decay).contiguous(), alpha.contiguous(), beta.contiguous(), s, *after,
            ticks, batch, pairs, *z.stride(), LAST=last, BLOCK=size,
        )  # fmt: skip
    return s, *after


def pair_gradients(
    ds: Tensor, dalpha: Tensor, dbeta: Tensor, z: Tensor, left: Tensor, right: Tensor, r: Tensor, alpha: Tensor,
    beta: Tensor, last: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the products (T, B, P) and, of every sample (B, P), of alpha, rate and beta; checked pairs."""
    (ticks, batch, _), pairs = z.shape, r.shape[0]
    size, products = block(pairs, 32, MOST_PAIRS), z.new_empty(ticks, batch, pairs)
    found = [z.new_empty(batch, pairs) for _ in range(3)]
    betas = all_betas(r, beta, ticks)
    with device_of(z):
        backward_kernel[batch, triton.cdiv(pairs, size)](
            z, left, right, r, alpha.contiguous(), betas, ds.contiguous(), dalpha.contiguous(), dbeta.contiguous(),
            products, *found, ticks, batch, pairs, *z.stride(), LAST=last, BLOCK=size,
        )  # fmt: skip
    return products, *found


def sync_backward(
    ds: Tensor, dalpha: Tensor, dbeta: Tensor, z: Tensor, left: Tensor, right: Tensor, decay: Tensor,
    alpha: Tensor, beta: Tensor, last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The registered backward: gradients of z, decay, alpha and beta."""
    left, right = checked_pairs(z, left, right)
    ticks, batch, neurons = z.shape
    r = torch.exp(-decay).contiguous()
    if not alpha.numel():
        ds = z.new_zeros(ticks, batch, r.shape[0])
        return reference.sync_backward(ds, dalpha, dbeta, z, left.long(), right.long(), decay, alpha, beta)
    products, galpha, gr, gbeta = pair_gradients(ds, dalpha, dbeta, z, left, right, r, alpha, beta, last)
    dz = z.new_empty(z.shape)
    gather(products, z, gather_plan(left, right, neurons), dz, add=False)
    return dz, -r * gr.sum(0), galpha, gbeta.sum(0)
