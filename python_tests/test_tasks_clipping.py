"""Quantile clipping against a loop over parameters."""

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from tasks.clipping import HISTORY, QuantileClip


def parameters(*shapes: tuple[int, ...]) -> list[Parameter]:
    return [Parameter(torch.zeros(shape)) for shape in shapes]


def test_equals_a_loop() -> None:
    params = parameters((3, 4), (5,), ())
    clip = QuantileClip(params, 0.7)
    histories: list[list[float]] = [[] for _ in params]
    for _ in range(30):
        expected = []
        for parameter, history in zip(params, histories, strict=True):
            parameter.grad = torch.randn(parameter.shape) * torch.rand(()) * 10
            norm = parameter.grad.norm().item()
            limit = float(np.quantile(history, 0.7)) if history else float("inf")
            expected.append(parameter.grad * min(1.0, limit / (norm + 1e-6)))
            history.append(norm)
        clip()
        for parameter, gradient in zip(params, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_forgets_norms_older_than_the_window() -> None:
    (parameter,) = parameters((1,))
    clip = QuantileClip([parameter], 1.0)
    for norm in [100.0] + [1.0] * HISTORY:
        parameter.grad = torch.tensor([norm])
        clip()
    parameter.grad = torch.tensor([50.0])
    clip()
    assert parameter.grad.item() == pytest.approx(1.0)


def test_parameter_without_gradient_is_left_out() -> None:
    used, unused = parameters((2,), (2,))
    clip = QuantileClip([used, unused], 0.5)
    for norm in (1.0, 9.0):
        used.grad = torch.tensor([norm, 0.0])
        clip()
    assert used.grad is not None
    assert used.grad[0].item() == pytest.approx(1.0)
    assert unused.grad is None


def test_infinite_norm_does_not_enter_the_quantile() -> None:
    (parameter,) = parameters((1,))
    clip = QuantileClip([parameter], 1.0)
    for norm in (1.0, float("inf"), 8.0):
        parameter.grad = torch.tensor([norm])
        clip()
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(1.0)


def test_continues_from_its_state() -> None:
    gradients = [torch.randn(4) for _ in range(6)]
    results = []
    for split in (False, True):
        (parameter,) = parameters((4,))
        clip = QuantileClip([parameter], 0.5)
        for step, gradient in enumerate(gradients):
            if split and step == 3:
                state = clip.state_dict()
                clip = QuantileClip([parameter], 0.5)
                clip.load_state_dict(state)
            parameter.grad = gradient.clone()
            clip()
        results.append(parameter.grad)
    assert results[0] is not None
    assert results[1] is not None
    assert torch.equal(results[0], results[1])


def test_wrong_quantile_and_foreign_state_are_refused() -> None:
    with pytest.raises(ValueError, match="quantile must lie in"):
        QuantileClip(parameters((1,)), 0.0)
    state = QuantileClip(parameters((1,), (1,)), 0.5).state_dict()
    with pytest.raises(ValueError, match="norms must have shape"):
        QuantileClip(parameters((1,)), 0.5).load_state_dict(state)
