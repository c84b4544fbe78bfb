"""The Triton kernels of dnc_link: what they refuse, and links at the ends of their range."""

from __future__ import annotations

import pytest
import torch

from ctm_fast import backend as backends
from ctm_fast import ops
from ctm_fast.testing import OpCase

pytest.importorskip("triton")
F64 = torch.float64


def test_functions_without_kernels_say_so() -> None:
    assert "of the functions of dnc only dnc_link has" in (backends.why_not("dnc", "triton", "cuda") or "")
    assert "dnc_step has no Triton kernel" in (backends.why_not("dnc_step", "triton", "cuda") or "")
    assert backends.why_not("dnc_link", "triton", "cuda") is None
    with pytest.raises(RuntimeError, match="dnc_allocation has no Triton kernel"):
        ops.dnc_allocation(torch.zeros(1, 2), backend="triton")


def test_sparse_links_are_refused() -> None:
    inputs = OpCase("dnc_link", "sparse", (1, 5, 1, 2)).inputs()
    with pytest.raises(RuntimeError, match=r"dnc_link: backend 'triton' .* take dense links only"):
        ops.dnc_link(**inputs, backend="triton")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_weights_at_the_ends_of_their_range(value: float, device: str) -> None:
    """Nothing or everything written: links are kept or change their sign."""
    case = OpCase("dnc_link", "ends", (1, 3, 1, 0)).on(device)
    inputs = case.inputs(F64)
    inputs["write_weights"] = torch.full_like(inputs["write_weights"], value)
    found, plain = (case.evaluate(inputs, name) for name in ("triton", "reference"))
    for name, y in found.items():
        torch.testing.assert_close(y, plain[name], rtol=1e-12, atol=1e-12)


def test_not_a_number_stays_in_its_row(device: str) -> None:
    case = OpCase("dnc_link", "nan", (1, 4, 1, 0)).on(device)
    inputs = case.inputs()
    inputs["link"][0, 1, 2] = float("nan")
    found, plain = (case.run(inputs, name) for name in ("triton", "reference"))
    for name in ("link", "forward", "backward"):
        assert torch.equal(found[name].isnan(), plain[name].isnan()), name


def test_same_bits_on_every_run(device: str) -> None:
    case = OpCase("dnc_link", "repeated", (2, 37, 2, 0)).on(device)
    first, second = (case.evaluate(case.inputs(), "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
