"""CTMs whose ticks call Triton kernels: the path that models on a GPU take, here in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign_cases import assert_close, build, copies, evaluate

import ctm_fast
from ctm_fast.ops.nlm import triton as kernels

SIZES = {
    "base": {"iterations": 2, "d_model": 6, "memory_length": 3, "n_synch_out": 3, "n_synch_action": 2},
    "base-unet": {"iterations": 2, "d_model": 6, "memory_length": 3, "n_synch_out": 3, "n_synch_action": 2},
    "sort": {"iterations": 2, "d_model": 6, "memory_length": 3, "n_synch_out": 3},
    "rl": {"iterations": 2, "d_model": 6, "memory_length": 3, "n_synch_out": 3},
}


@pytest.mark.parametrize("name", SIZES)
def test_models_on_triton_equal_the_published_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build(name, batch=2, **SIZES[name])
    original, fast = copies(model, 2)
    truth = evaluate(original, inputs, torch.float64)
    ctm_fast.accelerate(fast)
    launched: list[Any] = []
    run = kernels.run_forward
    monkeypatch.setattr(kernels, "run_forward", lambda *x: launched.append(x) or run(*x))
    with ctm_fast.use_backend("triton"):
        found = evaluate(fast, inputs, torch.float64)
    assert len(launched) >= model.iterations
    assert_close(found, truth, 1e-6)
