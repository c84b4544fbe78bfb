"""The packed linear maps of the tick loop, over raw addresses, against plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ctm_fast import _C
from ctm_fast.ops.linear import PACK_TICKS, Linear
from ctm_fast.ops.native import CODES
from ctm_fast.testing import Inputs, breaches, padded

Sizes = tuple[int, int, int]  # rows, outputs, inputs
SIZES = {
    "odd": (5, 37, 19),
    "one-of-all": (1, 1, 1),
    "whole-panels": (8, 64, 32),
    "many-inputs": (3, 33, 700),
    "many-rows": (67, 10, 7),
    "no-rows": (0, 4, 3),
    "no-inputs": (2, 5, 0),
}
STARTS = ("nothing", "bias", "rows", "itself")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "inputs-innermost": torch.Tensor.contiguous,
    "outputs-innermost": lambda w: w.t().contiguous().t(),
    "neither": lambda w: w.repeat_interleave(2, 1)[:, ::2],
}


def draw(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> Inputs:
    rows, outputs, inputs = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (rows, inputs), "w": (outputs, inputs), "bias": (outputs,), "start": (rows, outputs)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def kernel(start: str, layout: str, inputs: Inputs, threads: int = 1) -> dict[str, Tensor]:
    x, w, bias, rows = (v for v in inputs.values())
    x, w, code = padded(x), LAYOUTS[layout](w), CODES[x.dtype]
    packed = torch.full((_C.linear_packed_size(code, *w.shape),), torch.nan, dtype=x.dtype)
    (outputs, depth), (w_out, w_in) = w.shape, w.stride()
    _C.linear_pack(code, outputs, depth, w.data_ptr(), w_out, w_in, packed.data_ptr(), threads)
    y = padded(rows if start == "itself" else torch.full_like(rows, torch.nan))
    init = {"nothing": (0, 0), "bias": (bias.data_ptr(), 0), "rows": (rows.data_ptr(), rows.stride(0))}
    begin = init.get(start, (y.data_ptr(), y.stride(0)))
    _C.linear(
        code, len(x), outputs, depth, x.data_ptr(), x.stride(0), packed.data_ptr(), *begin, y.data_ptr(),
        y.stride(0), threads,
    )  # fmt: skip
    return {"y": y}


def plain(start: str, inputs: Inputs) -> dict[str, Tensor]:
    x, w, bias, rows = (v for v in inputs.values())
    y = x @ w.t()
    return {"y": y if start == "nothing" else y + (bias if start == "bias" else rows)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_error_is_at_most_twice_plain_pytorch(
    sizes: Sizes, layout: str, dtype: torch.dtype, simd_level: str
) -> None:
    for start in STARTS:
        fast, slow = functools.partial(kernel, start, layout), functools.partial(plain, start)
        assert breaches(functools.partial(draw, sizes), fast, slow, dtype) == {}, start


def test_same_bits_for_every_thread_count(simd_level: str) -> None:
    for sizes in SIZES.values():
        inputs = draw(sizes, torch.float32)
        one = kernel("rows", "neither", inputs)["y"]
        for threads in (1, 2, 3):
            assert torch.equal(kernel("rows", "inputs-innermost", inputs, threads)["y"], one), (
                sizes,
                threads,
            )


@pytest.mark.skipif(len(_C.simd_levels()) < 2, reason="this processor runs one SIMD level")
def test_packed_weights_are_bound_to_their_simd_level(simd_level: str) -> None:
    inputs = draw(SIZES["odd"], torch.float32)
    linear = Linear(inputs["w"], None, batch=5, ticks=PACK_TICKS)
    _C.set_simd_level(next(level for level in _C.simd_levels() if level != simd_level))
    with pytest.raises(ValueError, match="linear: packed must be of the SIMD level in use"):
        linear(inputs["x"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["x", "w", "start"])
def test_nan_and_infinity_spread_as_in_the_reference(name: str, value: float, simd_level: str) -> None:
    inputs = draw(SIZES["odd"], torch.float32)
    poisoned = inputs[name]
    poisoned.view(-1)[poisoned.numel() // 2] = value
    found, expected = kernel("rows", "inputs-innermost", inputs)["y"], plain("rows", inputs)["y"]
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
