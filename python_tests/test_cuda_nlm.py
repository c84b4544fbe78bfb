"""The CUDA forward of neuron-level models, on a GPU and, emulated, on the CPU."""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast import ops
from ctm_fast.ops import cuda
from ctm_fast.ops.nlm import reference
from ctm_fast.testing import relative_error

pytest.importorskip("triton")
EPS = torch.finfo(torch.float32).eps
# B, D: one warp for rows of one neuron, tiles that two and four warps share, parts of tiles and of neurons
SIZES = {"one": (1, 1), "odd": (3, 5), "one-tile": (33, 6), "two-tiles": (65, 3), "many-tiles": (321, 2)}
MODELS = {"parity": (25, 16), "cifar10": (15, 64), "sort": (25, 4), "mazes": (25, 32), "rl": (50, 4)}


@pytest.fixture(
    params=["emulated", pytest.param("cuda", marks=[pytest.mark.needs_cuda, pytest.mark.sanitized])]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernel runs: "cuda", or "cpu" with the emulation in the place of the GPU."""
    if request.param == "cuda":
        return "cuda"
    module = emulation.build()
    module.set_limits(*emulation.H200)
    monkeypatch.setattr(cuda, "extension", lambda: module)
    return "cpu"


def weights(model: tuple[int, int], neurons: int, device: str) -> list[Tensor]:
    memory, hidden = model
    shapes = (memory, 2 * hidden, neurons), (1, neurons, 2 * hidden), (hidden, 2, neurons), (1, neurons, 2)
    w1, b1, w2, b2 = (torch.randn(x) for x in shapes)
    made = w1 / memory**0.5, b1, torch.tensor([1.3]), w2 / hidden**0.5, b2, torch.tensor([0.7])
    return [x.to(device) for x in made]


def forward(history: Tensor, given: list[Tensor]) -> Tensor:
    """The kernel, past the choice of a backend, which knows no emulation."""
    from ctm_fast.ops.nlm import cuda as kernels

    return kernels.nlm_forward(history, *given, 0.0, None)


def assert_exact(found: Tensor, history: Tensor, given: list[Tensor]) -> None:
    truth = reference.nlm(history.double(), *(x.double() for x in given))
    eager = relative_error(reference.nlm(history, *given), truth)
    assert relative_error(found, truth) <= max(2 * eager, 4 * EPS)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_forward_is_as_exact_as_torch(model: tuple[int, int], size: tuple[int, int], device: str) -> None:
    batch, neurons = size
    given = weights(model, neurons, device)
    history = torch.randn(batch, neurons, model[0], device=device)
    assert_exact(forward(history, given), history, given)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_strides(order: tuple[int, ...], device: str) -> None:
    given = weights((10, 16), 5, device)
    inverse = [order.index(i) for i in range(3)]
    shape = (7, 5, 10)
    history = torch.randn(*(shape[i] for i in order), device=device).permute(inverse)
    assert history.shape == shape
    assert_exact(forward(history, given), history, given)
    apart = torch.randn(14, 10, 30, device=device)[::2, 5:, ::3]
    assert_exact(forward(apart, given), apart, given)


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")], ids=str)
def test_hard_values_come_out_as_in_the_reference(value: float, device: str) -> None:
    given = weights((5, 4), 3, device)
    history = torch.randn(4, 3, 5, device=device)
    history[1, 2, 3] = value
    found, want = forward(history, given), reference.nlm(history, *given)
    assert torch.allclose(found, want, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int], device: str) -> None:
    given = weights((5, 4), shape[1], device)
    assert forward(torch.randn(*shape, 5, device=device), given).shape == shape


def test_other_models_are_refused(device: str) -> None:
    with pytest.raises(
        ValueError, match=r"one of nlm_models\(\), got \(rows 2, neurons 3, memory 7, hidden 4\)"
    ):
        cuda.extension().nlm_forward((2, 3, 7, 4), 0, 0, (1, 1, 1), 0, 0, 0)


def test_backend_says_what_it_takes() -> None:
    reasons = [backends.why_not("nlm", "native", "cuda", dtype) for dtype in ("float32", "float64")]
    assert reasons[1] == "the CUDA kernels of nlm take float32"
    assert cuda.extension() is not None or "built without CUDA" in str(reasons[0])


@pytest.mark.needs_cuda
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_backend_native_on_a_gpu(model: tuple[int, int]) -> None:
    given = [x.requires_grad_() for x in weights(model, 70, "cuda")]
    history = torch.randn(64, 70, model[0], device="cuda", requires_grad=True)
    results: dict[str, Any] = {}
    for name in ("native", "triton"):
        z = ops.nlm(history, *given, backend=name)
        results[name] = z, torch.autograd.grad(z.square().sum(), [history, *given])
    assert_exact(results["native"][0], history, given)
    for a, b in zip(results["native"][1], results["triton"][1], strict=True):
        assert relative_error(a, b.double()) < 1e-5
    linear = torch.randn(3, 2, 4, device="cuda"), torch.randn(1, 4, 2, device="cuda"), given[2]
    with pytest.raises(RuntimeError, match="no CUDA kernel for linear models of M = 3, H = 1"):
        ops.nlm(torch.randn(2, 4, 3, device="cuda"), *linear, backend="native")
