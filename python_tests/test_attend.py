"""The attention kernels of the tick loop, over raw addresses, against plain PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ctm_fast import _C
from ctm_fast.ops.dropout import keep_mask, row_keys
from ctm_fast.ops.native import CODES, NO_DROPOUT, Drop
from ctm_fast.testing import Inputs, breaches, padded

Sizes = tuple[int, int, int, int]  # batch, heads, width, tokens
SIZES = {
    "odd": (3, 3, 5, 7),
    "one-of-all": (1, 1, 1, 1),
    "whole-vectors": (2, 2, 8, 64),
    "many-tokens": (2, 1, 4, 203),
    "one-token": (4, 2, 6, 1),
    "no-batch": (0, 2, 3, 4),
}
DROP = (0.3, 5, 17)


def draw(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> Inputs:
    batch, heads, width, tokens = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (batch, heads * width),
        "keys": (batch, heads, width, tokens),
        "values": (batch, heads, width, tokens),
        "grad": (batch, heads * width),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def kernel(sizes: Sizes, inputs: Inputs, drop: Drop = NO_DROPOUT, threads: int = 1) -> dict[str, Tensor]:
    """Forward and backward; rows of q, o and their gradients lie apart."""
    batch, heads, width, tokens = sizes
    q, keys, values, grad = (x for x in inputs.values())
    q, grad, o, dq = (
        padded(q),
        padded(grad),
        padded(torch.full_like(q, torch.nan)),
        padded(torch.full_like(q, torch.nan)),
    )
    used, weights, dropped, scores = (
        torch.full((batch, heads, tokens), torch.nan, dtype=q.dtype) for _ in range(4)
    )
    code = CODES[q.dtype]
    _C.attend_forward(
        code, sizes, drop, q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr(), used.data_ptr(),
        o.data_ptr(), o.stride(0), threads,
    )  # fmt: skip
    _C.attend_backward(
        code, sizes, drop, q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr(), grad.data_ptr(),
        grad.stride(0), dropped.data_ptr() if drop[0] else 0, weights.data_ptr(), scores.data_ptr(),
        dq.data_ptr(), dq.stride(0), threads,
    )  # fmt: skip
    applied = dropped if drop[0] else weights  # what the backward found again
    split = (batch, heads, width, 1)
    dkeys, dvalues = q.reshape(split) * scores.unsqueeze(2), grad.reshape(split) * applied.unsqueeze(2)
    return {"weights": used, "again": applied, "o": o, "dq": dq, "dkeys": dkeys, "dvalues": dvalues}


def mask(sizes: Sizes, drop: Drop, dtype: torch.dtype) -> Tensor:
    batch, heads, _, tokens = sizes
    keys = row_keys(drop[1], torch.arange(drop[2], drop[2] + batch))[:, None, None]
    return keep_mask(drop[0], keys, torch.arange(heads * tokens).view(1, heads, tokens), dtype)


def plain(sizes: Sizes, inputs: Inputs, drop: Drop = NO_DROPOUT) -> dict[str, Tensor]:
    """The same through autograd."""
    batch, heads, width, _ = sizes
    q, keys, values, grad = (x.detach().requires_grad_() for x in inputs.values())
    weights = torch.softmax(torch.einsum("bhj,bhjl->bhl", q.view(batch, heads, width), keys), -1)
    weights = weights * mask(sizes, drop, q.dtype)
    o = torch.einsum("bhl,bhjl->bhj", weights, values).flatten(1)
    dq, dkeys, dvalues = torch.autograd.grad(o, (q, keys, values), grad)
    found = {"weights": weights, "again": weights, "o": o, "dq": dq, "dkeys": dkeys, "dvalues": dvalues}
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("drop", [NO_DROPOUT, DROP], ids=["", "dropout"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_error_is_at_most_twice_plain_pytorch(
    sizes: Sizes, drop: Drop, dtype: torch.dtype, simd_level: str
) -> None:
    fast, slow = (functools.partial(run, sizes, drop=drop) for run in (kernel, plain))
    assert breaches(functools.partial(draw, sizes), fast, slow, dtype) == {}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_same_bits_for_every_thread_count(sizes: Sizes, simd_level: str) -> None:
    inputs = draw(sizes, torch.float32)
    one = kernel(sizes, inputs, DROP)
    assert torch.equal(one["weights"], one["again"])
    for threads in (1, 2, 3):
        for name, value in kernel(sizes, inputs, DROP, threads).items():
            assert torch.equal(value, one[name]), (name, threads)


@pytest.mark.parametrize("scale", [1e4, 1e-39], ids=["saturated", "denormal"])
def test_extreme_scores(scale: float, simd_level: str) -> None:
    sizes = SIZES["odd"]
    inputs = draw(sizes, torch.float32)
    inputs["q"] = inputs["q"] * scale
    found, expected = kernel(sizes, inputs), plain(sizes, {k: x.double() for k, x in inputs.items()})
    for name in ("weights", "o"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["q", "keys", "values", "grad"])
def test_nan_and_infinity_spread_as_in_the_reference(name: str, value: float, simd_level: str) -> None:
    sizes = SIZES["whole-vectors"]
    inputs = draw(sizes, torch.float32)
    poisoned = inputs[name]
    poisoned.view(-1)[poisoned.numel() // 2] = value
    found, expected = kernel(sizes, inputs), plain(sizes, inputs)
    for key, y in expected.items():
        assert torch.equal(found[key].isnan(), y.isnan()), key
        assert torch.equal(found[key].isinf(), y.isinf()), key
