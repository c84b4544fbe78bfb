"""Models on a GPU: every output and gradient against float64 on the CPU, through the Triton kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from foreign_cases import build, copies, evaluate, moved, tensors, to
from torch import Tensor, nn

import ctm_fast
from ctm_fast.models import DNC, NTM
from ctm_fast.testing import cotangents, error_bound, relative_error

pytest.importorskip("triton")
NAMES = ("base", "base-unet", "base-layernorm", "base-wide", "sort", "sort-unet", "qamnist", "rl", "rl-unet")
SMALL = {"iterations": 2, "d_model": 6, "memory_length": 3, "n_synch_out": 3}
SIZES: dict[str, dict[str, Any]] = {"base": {**SMALL, "n_synch_action": 2}, "sort": SMALL, "rl": SMALL}
SLACK = 8.0  # rounding grows over ticks
NETWORKS = {
    "ntm": (NTM, {"slots": 128, "width": 20, "controller_size": 32}),
    "dnc": (DNC, {"slots": 16, "width": 8, "read_heads": 2, "controller_size": 32}),
}


def close_to(
    found: dict[str, Tensor], truth: dict[str, Tensor], plain: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """The numerical contract with the slack that ticks need; ``plain`` is in float32, as its error is scaled."""
    assert found.keys() == truth.keys()
    beyond = {}
    for name, y in truth.items():
        of = (
            dtype if y.dtype == torch.float64 else torch.float32
        )  # some outputs are single whatever the model is
        scale = torch.finfo(of).eps / torch.finfo(torch.float32).eps
        bound = SLACK * error_bound(scale * relative_error(plain[name].cpu(), y), of)
        error = relative_error(found[name].cpu(), y)
        if not error <= bound:
            beyond[name] = (error, bound)
    assert beyond == {}


@pytest.mark.needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accelerated_models_equal_the_published_forward(name: str, dtype: torch.dtype) -> None:
    compare(name, dtype, "cuda", {})


@pytest.mark.parametrize("name", SIZES)
def test_small_models_in_the_interpreter(name: str) -> None:
    with ctm_fast.use_backend("triton"):
        compare(name, torch.float64, "cpu", SIZES[name])


def compare(name: str, dtype: torch.dtype, device: str, sizes: dict[str, Any]) -> None:
    model, inputs = build(name, **sizes)
    truth_model, plain_model, fast = copies(model, 3)
    with ctm_fast.use_backend("reference"):
        truth = evaluate(truth_model, inputs, torch.float64)
    ctm_fast.accelerate(fast.to(device))
    there = moved(inputs, device)
    with ctm_fast.use_backend("reference"):
        plain = evaluate(plain_model.to(device), there, torch.float32)
    found = evaluate(fast, there, dtype)
    close_to(found, truth, plain, dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_machines(name: str, device: str) -> None:
    kind, sizes = NETWORKS[name]
    if device == "cpu":
        sizes = {**sizes, "slots": 5, "width": 3, "controller_size": 4}
    torch.manual_seed(0)
    model = kind(input_size=6, output_size=5, **sizes)
    x = torch.randn(4 if device == "cuda" else 2, 3, 6)
    truth = gradients_of(copy.deepcopy(model).double(), x.double())
    plain = gradients_of(copy.deepcopy(model).to(device), x.to(device), "reference")
    found = gradients_of(model.to(device), x.to(device), "triton" if name == "ntm" else None)
    close_to(found, truth, plain, torch.float32)


def gradients_of(model: nn.Module, x: Tensor, backend: str | None = "reference") -> dict[str, Tensor]:
    """Outputs of a memory machine, and the gradients of its parameters and input."""
    (x,) = to((x,), x.dtype)
    leaves = {"x": x, **dict(model.named_parameters())}
    with ctm_fast.use_backend(backend):
        outputs = {"output": model(x).output}
        upward = cotangents(outputs.values())
        grads = torch.autograd.grad([*outputs.values()], [*leaves.values()], upward, allow_unused=True)
    return outputs | {f"d {k}": g for k, g in zip(leaves, grads, strict=True) if g is not None}


@pytest.mark.needs_gpu
def test_a_training_step_of_a_model_moved_to_the_gpu() -> None:
    """Dropout, an optimiser and the evaluation after it: nothing asks for another device or leaves its own."""
    model, inputs = build("base-unet", dropout=0.2)
    ctm_fast.accelerate(model.to("cuda"))
    there = moved(inputs, "cuda")
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        loss = sum(y.square().sum() for y in tensors(model(*there)).values())
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        assert all(y.device.type == "cuda" for y in tensors(model(*there)).values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
