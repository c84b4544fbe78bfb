"""The pointwise kernels of the synapse layers, over raw addresses, against plain PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ctm_fast import _C
from ctm_fast.ops.native import CODES
from ctm_fast.testing import Inputs, breaches, padded

Sizes = tuple[int, int]  # rows, width
SIZES = {
    "odd": (5, 37),
    "one-row": (1, 16),
    "narrow": (9, 3),
    "whole-vectors": (8, 64),
    "more-rows-than-groups": (67, 19),
    "threaded": (40, 259),
    "no-rows": (0, 5),
}
KINDS = ("glu_norm", "silu_norm", "skip_norm")
EPS = 1e-5


def draw(kind: str, sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> Inputs:
    rows, width = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (rows, 2 * width if kind == "glu_norm" else width), "weight": (width,), "bias": (width,)}
    if kind == "skip_norm":
        shapes |= {"skip": (rows, width), "outer_weight": (width,), "outer_bias": (width,)}
    shapes["grad"] = (rows, width)
    return {name: (torch.randn(shape, generator=generator) + 0.5).to(dtype) for name, shape in shapes.items()}


def at(x: Tensor) -> tuple[int, int]:
    """Address and row stride."""
    return x.data_ptr(), x.stride(0)


def empty(rows: Tensor, width: int) -> Tensor:
    return padded(torch.full((rows.shape[0], width), torch.nan, dtype=rows.dtype))


def kernel(kind: str, inputs: Inputs, threads: int = 1) -> dict[str, Tensor]:
    """Forward and backward; the rows of every matrix lie apart."""
    x, weight, bias, *rest, grad = (v for v in inputs.values())
    x, grad = padded(x), padded(grad)
    code, sizes = CODES[x.dtype], (x.shape[0], weight.shape[0])
    y, dx = empty(x, sizes[1]), empty(x, x.shape[1])
    norm = (weight.data_ptr(), bias.data_ptr(), EPS)
    dweight, dbias, outer_dweight, outer_dbias = torch.zeros(4, _C.ROW_GROUPS, sizes[1], dtype=x.dtype)
    dnorm = (dweight.data_ptr(), dbias.data_ptr())
    forward, backward = getattr(_C, kind), getattr(_C, f"{kind}_backward")
    found = {"y": y, "dx": dx}
    if not rest:
        forward(code, sizes, *at(x), norm, *at(y), threads)
        backward(code, sizes, *at(x), norm, *at(grad), *at(dx), dnorm, threads)
    else:
        skip, dskip = padded(rest[0]), empty(x, sizes[1])
        outer = (rest[1].data_ptr(), rest[2].data_ptr(), EPS)
        douter = (outer_dweight.data_ptr(), outer_dbias.data_ptr())
        forward(code, sizes, *at(x), norm, *at(skip), outer, *at(y), threads)
        backward(
            code,
            sizes,
            *at(x),
            norm,
            *at(skip),
            outer,
            *at(grad),
            *at(dx),
            *at(dskip),
            dnorm,
            douter,
            threads,
        )
        found |= {"dskip": dskip, "outer_dweight": outer_dweight.sum(0), "outer_dbias": outer_dbias.sum(0)}
    return found | {"dweight": dweight.sum(0), "dbias": dbias.sum(0)}


def plain(kind: str, inputs: Inputs) -> dict[str, Tensor]:
    """The same through autograd."""
    leaves = {name: v.detach().requires_grad_() for name, v in inputs.items()}
    grad = leaves.pop("grad").detach()
    x, weight, bias, *rest = leaves.values()
    if kind == "glu_norm":
        y = F.layer_norm(F.glu(x), weight.shape, weight, bias, EPS)
    else:
        y = F.silu(F.layer_norm(x, weight.shape, weight, bias, EPS))
    if rest:
        y = F.layer_norm(y + rest[0], weight.shape, rest[1], rest[2], EPS)
    names = ("dx", "dweight", "dbias", "dskip", "outer_dweight", "outer_dbias")
    grads = torch.autograd.grad(y, list(leaves.values()), grad)
    return {"y": y.detach(), **dict(zip(names, grads, strict=False))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_at_most_twice_plain_pytorch(
    kind: str, sizes: Sizes, dtype: torch.dtype, simd_level: str
) -> None:
    fast, slow = (functools.partial(run, kind) for run in (kernel, plain))
    assert breaches(functools.partial(draw, kind, sizes), fast, slow, dtype) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_every_thread_count(kind: str, simd_level: str) -> None:
    for sizes in SIZES.values():
        inputs = draw(kind, sizes, torch.float32)
        one = kernel(kind, inputs)
        for threads in (1, 2, 3):
            for name, value in kernel(kind, inputs, threads).items():
                assert torch.equal(value, one[name]), (name, threads, sizes)


def test_parameter_gradients_are_added_to(simd_level: str) -> None:
    rows, width = SIZES["odd"]
    x, weight, bias, grad = (v for v in draw("silu_norm", (rows, width), torch.float64).values())
    norm = (weight.data_ptr(), bias.data_ptr(), EPS)
    sums = torch.zeros(2, _C.ROW_GROUPS, width, dtype=torch.float64)
    totals = []
    for _ in range(2):
        dx = grad.clone()  # in place: dx may be dy
        parameters = (sums[0].data_ptr(), sums[1].data_ptr())
        _C.silu_norm_backward(1, (rows, width), *at(x), norm, *at(dx), *at(dx), parameters, 1)
        totals.append(sums.clone())
    torch.testing.assert_close(totals[1], 2 * totals[0])
    torch.testing.assert_close(dx, plain("silu_norm", draw("silu_norm", (rows, width), torch.float64))["dx"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_spread_as_in_the_reference(kind: str, value: float, simd_level: str) -> None:
    names = draw(kind, (6, 16), torch.float32)
    for name in names:
        inputs = draw(kind, (6, 16), torch.float32)
        poisoned = inputs[name]
        poisoned.view(-1)[poisoned.numel() // 2] = value
        found, expected = kernel(kind, inputs), plain(kind, inputs)
        for key, y in expected.items():
            assert torch.equal(found[key].isfinite(), y.isfinite()), (name, key)


@pytest.mark.parametrize("scale", [1e4, 1e15, 1e-30], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_values(kind: str, scale: float, simd_level: str) -> None:
    inputs = draw(kind, SIZES["odd"], torch.float32)
    inputs["x"] = inputs["x"] * scale
    found, expected = kernel(kind, inputs), plain(kind, {k: v.double() for k, v in inputs.items()})
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value, rtol=1e-4, atol=1e-5 * value.abs().max().item()
        )


def test_constant_rows_have_no_variance(simd_level: str) -> None:
    inputs = draw("silu_norm", (3, 7), torch.float32)
    inputs["x"] = torch.full((3, 7), 2.5)
    found, expected = kernel("silu_norm", inputs), plain("silu_norm", inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
