"""What ``capture`` and ``release`` refuse."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_cases import build
from graph_stand_in import stand_in
from torch import Tensor, nn

import ctm_fast
from ctm_fast import cuda_graphs


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        stand_in(monkeypatch)
    return str(request.param)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def taught() -> nn.Module:
    model = nn.Linear(2, 2)
    model.weight.register_hook(lambda g: g)
    return model


def overridden() -> nn.Module:
    model = nn.Linear(2, 2)
    model.forward = lambda x: x  # type: ignore[method-assign]
    return model


X = torch.ones(1, 2)
ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: ctm_fast.capture(3, X), TypeError, "capture: model must be a torch.nn.Module, got int"),
    "released": (lambda: ctm_fast.release(3), TypeError, "release: model must be a torch.nn.Module, got int"),
    "warmups": (lambda: ctm_fast.capture(nn.Linear(2, 2), X, warmups=0), ValueError, "warmups must be at least 1"),
    "no inputs": (lambda: ctm_fast.capture(nn.Linear(2, 2)), ValueError, "example_inputs must hold a tensor"),
    "no tensor": (lambda: ctm_fast.capture(nn.Linear(2, 2), 1), ValueError, "must hold a tensor, got none"),
    "a number": (lambda: ctm_fast.capture(nn.Linear(2, 2), X, 0.5), TypeError, "bools and None alone, got float"),
    "a deque": (lambda: ctm_fast.capture(nn.Linear(2, 2), deque([X])), TypeError, "None alone, got deque"),
    "elsewhere": (
        lambda: ctm_fast.capture(nn.Linear(2, 2), X.to("meta")), ValueError, "on the device of model, cpu, got meta",
    ),
    "no parameters": (lambda: ctm_fast.capture(nn.Identity(), X), ValueError, "on a CUDA device, got a model without"),
    "hooks": (lambda: ctm_fast.capture(hooked(), X), ValueError, "no hooks on its parts, got one on Linear"),
    "gradient hooks": (lambda: ctm_fast.capture(taught(), X), ValueError, "no hooks on its parameters"),
    "own forward": (lambda: ctm_fast.capture(overridden(), X), ValueError, "must run the forward of its class"),
    "qamnist": (lambda: ctm_fast.capture(build("qamnist")[0], X), ValueError, "must not decide by values"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "DEVICE", "cpu")
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_a_model_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="capture: model must be on a CUDA device, got cpu"):
        ctm_fast.capture(nn.Linear(2, 2), X)


def test_a_model_that_returns_more_than_tensors_is_refused(device: str) -> None:
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), 3

    captured = ctm_fast.capture(Counts(2, 2).to(device), X.to(device))
    with pytest.raises(ValueError, match="capture: model must return tensors alone, got int"):
        captured(X.to(device))


def broken_off(_: torch.device) -> Callable[[Callable[[], Any]], Any]:
    def record(_: Callable[[], Any]) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("operation failed due to a previous error")

    return record


def test_what_cuda_refuses_to_record_is_explained(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "recorder", broken_off)
    captured = ctm_fast.capture(nn.Linear(2, 2).to(device), X.to(device))
    must = "capture: model must neither wait for the GPU .* got Linear: operation not permitted when"
    try:
        raise KeyError("of the caller, which explains nothing")
    except KeyError:
        with pytest.raises(RuntimeError, match=must) as found:
            captured(X.to(device))
    assert str(found.value.__cause__) == "operation failed due to a previous error"


WAITS = """
import torch
from torch import nn
import ctm_fast

class Waits(nn.Linear):
    def forward(self, x):
        return super().forward(x) * x.sum().item()

x = torch.ones(2, 2, device="cuda")
try:
    ctm_fast.capture(Waits(2, 2).cuda(), x)(x)
except RuntimeError as error:
    print(error, flush=True)
"""


@pytest.mark.needs_gpu
def test_a_model_that_waits_for_the_gpu_is_refused() -> None:
    """In a process of its own: torch may refuse random numbers after a recording that was broken off."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, check=False)
    assert "capture: model must neither wait for the GPU" in done.stdout, done.stdout + done.stderr
