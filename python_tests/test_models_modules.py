"""What users do to the modules below the memory machines: hooks, parametrizations and modules of their own count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctm_fast.models import DNC, NTM, AdaptiveLSTM, AdaptiveRNN

SIZES: dict[str, Any] = {"controller_size": 8, "slots": 6, "width": 4}
MACHINES = {
    "ntm-lstm": (NTM, {}, "heads.to_interface"),
    "ntm-rnn": (NTM, {"controller": "rnn", "controller_layers": 2}, "controller.rnn"),
    "ntm-ff": (NTM, {"controller": "ff", "controller_layers": 2}, "controller.linears.1"),
    "ntm-blind": (NTM, {"controller_sees_reads": False}, "controller.rnn"),
    "dnc-lstm": (DNC, {}, "controller.rnn"),
    "dnc-gru": (DNC, {"controller": "gru", "controller_layers": 2}, "controller.rnn"),
    "dnc-ff": (DNC, {"controller": "ff"}, "controller.linears.0"),
}
every_machine = pytest.mark.parametrize(("cls", "changes", "name"), MACHINES.values(), ids=MACHINES.keys())
ADAPTIVE = [(cls, options) for cls in (AdaptiveRNN, AdaptiveLSTM) for options in ({}, {"digit_classes": 3})]
every_adaptive = pytest.mark.parametrize(("cls", "options"), ADAPTIVE, ids=lambda value: str(value)[:40])


class Wrapped(nn.Module):
    """What adapters do: another map beside the one whose weight and bias are still shown."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = 2 * self.linear(x)
        return found


def build(cls: type[nn.Module], changes: dict[str, Any]) -> nn.Module:
    return cls(3, 5, **SIZES, **changes).double()


def values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, last memory and all gradients of a call, and of one that goes on from it."""
    first = model(x[:2])
    second = model(x[2:], first.state)
    output = torch.cat((first.output, second.output))
    loss = (output * torch.cos(torch.arange(output.numel())).view(output.shape)).sum()
    parameters = list(model.parameters())
    return [output, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)]


@every_machine
def test_a_hook_runs_and_changes_no_number(cls: Any, changes: dict[str, Any], name: str) -> None:
    model, x = build(cls, changes), torch.randn(4, 2, 3).double()
    expected, calls = values(model, x), []
    hook = model.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(values(model, x), expected)
    assert calls
    hook.remove()
    torch.testing.assert_close(values(model, x), expected, rtol=0, atol=0)


@every_machine
def test_a_hook_that_changes_the_result_counts(cls: Any, changes: dict[str, Any], name: str) -> None:
    model, x = build(cls, changes), torch.randn(4, 2, 3).double()
    expected = model(x).output

    def double(_module: nn.Module, _arguments: Any, found: Any) -> Any:
        return 2 * found if isinstance(found, Tensor) else (2 * found[0], *found[1:])

    model.get_submodule(name).register_forward_hook(double)
    assert not torch.allclose(model(x).output, expected)


@pytest.mark.parametrize("cls", [NTM, DNC])
@pytest.mark.parametrize("name", ["heads.to_interface", "controller.linears.0"])
def test_a_module_of_the_users_own_counts(cls: Any, name: str) -> None:
    changes = {"controller": "ff"}
    model, x = build(cls, changes), torch.randn(4, 2, 3).double()
    linear, (parent, _, child) = model.get_submodule(name), name.rpartition(".")
    model.get_submodule(parent)._modules[child] = wrapped = Wrapped(linear)
    found = model(x)
    assert wrapped.calls == 4
    torch.testing.assert_close(found.output, model(x, trace=True).output)
    model.get_submodule(parent)._modules[child] = linear
    with torch.no_grad():
        linear.weight.mul_(2)
        linear.bias.mul_(2)
    torch.testing.assert_close(found.output, model(x).output)


@pytest.mark.parametrize("cls", [NTM, DNC])
def test_a_parametrized_interface_counts(cls: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model, x = build(cls, {}), torch.randn(4, 2, 3).double()
    expected = build(cls, {})
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected.heads.to_interface.weight.mul_(2)
    parametrize.register_parametrization(model.heads.to_interface, "weight", Doubled())
    torch.testing.assert_close(model(x).output, expected(x).output)


@every_adaptive
@pytest.mark.parametrize("name", ["cell", "halting"])
def test_adaptive_modules_with_hooks_are_called(
    cls: type[AdaptiveRNN], options: dict[str, Any], name: str
) -> None:
    model = cls(3, 6, 8, halting_bias=-1.0, **options).double()
    x, mask = torch.randn(4, 5, 3).double(), torch.rand(4, 5) < 0.8
    expected, calls = model(x, mask), []
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    found = model(x, mask)
    assert len(calls) == expected.steps.amax(1).sum()
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(y.output.square().sum() + y.cost, list(model.parameters()))
        for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


@every_adaptive
def test_an_adaptive_cell_of_the_users_own_counts(cls: type[AdaptiveRNN], options: dict[str, Any]) -> None:
    class Other(nn.Module):
        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor, state: Any) -> Any:
            return self.cell(2 * x, state)

    model = cls(3, 6, 8, halting_bias=-1.0, **options).double()
    x = torch.randn(4, 5, 3).double()
    before = model.cell
    model.cell = Other(before)  # type: ignore[assignment]
    found = model(x).output
    model.cell = before
    with torch.no_grad():
        model.cell.weight_ih.mul_(2)
    torch.testing.assert_close(found, model(x).output)
