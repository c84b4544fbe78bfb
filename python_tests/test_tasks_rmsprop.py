"""RMSProp in Graves's form: against the equations written out, and its place in the training loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.config import TrainConfig
from tasks.errors import UserError
from tasks.rmsprop import GravesRMSprop
from tasks.setup import make_optimizer


def test_equals_the_equations() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    untouched = nn.Parameter(torch.ones(3))
    optimizer = GravesRMSprop([parameter, untouched], lr=0.1, weight_decay=0.01)
    square = mean = step = torch.zeros(2)
    expected = parameter.detach().clone()
    for gradient in (torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.0]), torch.tensor([-0.1, 3.0])):
        parameter.grad = gradient.clone()
        optimizer.step()
        square = 0.95 * square + 0.05 * gradient**2
        mean = 0.95 * mean + 0.05 * gradient
        step = 0.9 * step - 0.1 * gradient / (square - mean**2 + 1e-4).sqrt()
        expected = expected * (1 - 0.1 * 0.01) + step
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(untouched.detach(), torch.ones(3))


def test_a_loop_takes_it_by_name_and_resumes_it() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, TrainConfig(optimizer="rmsprop", lr=0.1), torch.device("cpu"))
    assert isinstance(optimizer, GravesRMSprop)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    twin = GravesRMSprop(model.parameters(), lr=0.1)
    twin.load_state_dict(optimizer.state_dict())
    for name in ("square", "mean", "step"):
        assert torch.equal(twin.state[model.weight][name], optimizer.state[model.weight][name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must lie in \[0, 1\), got -0.1"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"GravesRMSprop: {message}"):
        GravesRMSprop([nn.Parameter(torch.zeros(1))], lr=0.1, **changes)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(UserError, match="config: optimizer must be adamw or rmsprop, got 'sgd'"):
        TrainConfig(optimizer="sgd")  # type: ignore[arg-type]
