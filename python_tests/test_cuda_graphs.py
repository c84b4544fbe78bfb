"""``capture`` and ``release``: on a GPU with CUDA graphs, elsewhere with a stand-in that runs the calls again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign_cases import assert_close, build, loss_of, tensors
from torch import Tensor, nn

import ctm_fast
from ctm_fast import cuda_graphs
from ctm_fast.models import DNC, NTM

NAMES = ("base", "base-unet", "base-first-last", "base-energy", "sort", "rl")


class Again:
    """A graph that calls again what it recorded, and writes the results where the first ones are."""

    replays = 0

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run, self.gradients = run, torch.is_grad_enabled()
        self.found = run()

    def replay(self) -> None:
        Again.replays += 1
        with torch.inference_mode(False), torch.set_grad_enabled(self.gradients):
            found = self.run()
        with torch.inference_mode(False), torch.no_grad():
            for old, new in zip(self.found, found, strict=True):
                if old is not None:
                    old.copy_(new)


def recorder(_: torch.device) -> Callable[[Callable[[], Any]], tuple[Again, Any]]:
    def record(run: Callable[[], Any]) -> tuple[Again, Any]:
        graph = Again(run)
        return graph, graph.found

    return record


def warm_up(run: Callable[[], None], _: torch.device, times: int) -> None:
    for _ in range(times):
        run()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        monkeypatch.setattr(cuda_graphs, "DEVICE", "cpu")
        monkeypatch.setattr(cuda_graphs, "_recorder", recorder)
        monkeypatch.setattr(cuda_graphs, "_warm_up", warm_up)
        monkeypatch.setattr(cuda_graphs, "_is_capturing", lambda: False)
    return str(request.param)


def moved(value: Any, device: str) -> Any:
    if isinstance(value, tuple):
        return tuple(moved(x, device) for x in value)
    return value.to(device)


def pair(name: str, device: str, **changes: Any) -> tuple[Any, Any, Any]:
    """(accelerated, the same captured, inputs)."""
    model, inputs = build(name, **changes)
    plain = ctm_fast.accelerate(model).to(device)
    inputs = moved(inputs, device)
    return plain, ctm_fast.capture(copy.deepcopy(plain), *inputs), inputs


def recordings(model: nn.Module) -> dict[Any, Any]:
    found: dict[Any, Any] = model.forward.recordings  # type: ignore[union-attr,assignment]
    return found


def learned(model: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    """Outputs, and the gradients that a backward leaves."""
    model.zero_grad()
    outputs = model(*inputs)
    loss_of(outputs).backward()
    grads = {f"d {key}": p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {key: y.detach() for key, y in tensors(outputs).items()} | grads


def refreshed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(refreshed, value))
    return torch.randn_like(value) if value.is_floating_point() else value


@pytest.mark.parametrize("name", NAMES)
def test_values_and_every_gradient(name: str, device: str) -> None:
    plain, captured, inputs = pair(name, device)
    for _ in range(3):
        assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
        inputs = refreshed(inputs)
    plain.eval(), captured.eval()
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            assert_close(captured(*inputs), plain(*inputs), 1e-5)
    assert len(recordings(captured)) == 2
    assert captured.state_dict().keys() == plain.state_dict().keys() and type(captured) is type(plain)


@pytest.mark.parametrize("machine", [NTM, DNC])
def test_memory_machines(machine: Any, device: str) -> None:
    plain = machine(3, 6, controller_size=8, slots=6, width=4).to(device)
    x = torch.randn(5, 2, 3, device=device)
    captured = ctm_fast.capture(copy.deepcopy(plain), x)
    for _ in range(2):
        found, truth = captured(x)[0], plain(x)[0]
        assert_close(found, truth, 1e-5)
        found.square().sum().backward()
        truth.square().sum().backward()
        pairs = zip(captured.parameters(), plain.parameters(), strict=True)
        assert_close(
            *([p.grad for p in side if p.grad is not None] for side in zip(*pairs, strict=True)), 1e-4
        )


def test_gradients_add_up_over_calls(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    for model in (plain, captured):
        for _ in range(3):
            loss_of(model(*inputs)).backward()
    assert_close([p.grad for p in captured.parameters()], [p.grad for p in plain.parameters()], 1e-5)


def test_training_goes_as_without(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    losses = []
    for model in (plain, captured):
        optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
        losses.append([])
        for _ in range(20):
            optimiser.zero_grad()
            loss = loss_of(model(*inputs))
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1][-1] < losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_every_replay_draws_its_masks(device: str) -> None:
    _, captured, inputs = pair("base", device, dropout=0.5)
    first, second, third = (captured(*inputs)[2].detach() for _ in range(3))
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_what_is_returned_may_be_kept(device: str) -> None:
    _, captured, inputs = pair("rl", device)
    with torch.no_grad():
        first = captured(*inputs)
        kept = copy.deepcopy(first)
        captured(*refreshed(inputs))
    assert_close(first, kept, 0.0)


def test_two_forwards_before_their_backwards(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    others = refreshed(inputs)
    for model in (plain, captured):
        (loss_of(model(*inputs)) + 2 * loss_of(model(*others))).backward()
    assert_close([p.grad for p in captured.parameters()], [p.grad for p in plain.parameters()], 1e-5)
    assert not next(iter(recordings(captured).values())).waits()


def test_a_forward_whose_loss_is_dropped_holds_nothing_up(device: str) -> None:
    _, captured, inputs = pair("sort", device)
    captured(*inputs)
    assert not next(iter(recordings(captured).values())).waits()
    outputs = captured(*inputs)
    assert next(iter(recordings(captured).values())).waits()
    del outputs


def test_backwards_that_cannot_be_right_are_refused(device: str) -> None:
    _, captured, inputs = pair("sort", device)
    loss = loss_of(captured(*inputs))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="capture: backward must run once for a forward"):
        loss.backward()
    loss = loss_of(captured(*inputs))
    with torch.no_grad():
        next(captured.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="capture: backward must run before the parameters of its forward"):
        loss.backward()
    weight = captured.trace_processor[0][0].w1
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss_of(captured(*inputs)), weight, create_graph=True)


def test_other_calls_run_without_a_graph(device: str) -> None:
    plain, captured, (x,) = pair("base", device)
    plain.eval(), captured.eval()
    with torch.no_grad():
        assert_close(captured(x[:2]), plain(x[:2]), 1e-5)
        assert_close(captured(x, track=True), plain(x, track=True), 1e-5)
        assert_close(captured(x, True), plain(x, True), 1e-5)
        assert recordings(captured) == {}
        assert_close(captured(x), plain(x), 1e-5)
    assert len(recordings(captured)) == 1


def test_changes_of_the_model_are_seen(device: str) -> None:
    plain, captured, inputs = pair("base", device)
    for model in (plain, captured):
        learned(model, *inputs)
        model.iterations -= 1
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    for model in (plain, captured):
        model.synapses.requires_grad_(False)
    found = learned(captured, *inputs)
    assert "d synapses.1.weight" not in found
    assert_close(found, learned(plain, *inputs), 1e-5)
    for parameter in captured.parameters():
        parameter.data = parameter.data.clone()
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    captured.load_state_dict(plain.state_dict())
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)


def test_autocast_is_a_mode_of_its_own(device: str) -> None:
    plain, captured, inputs = pair("base", device)
    learned(captured, *inputs)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            found, truth = captured(*inputs), plain(*inputs)
        assert [y.dtype for y in found] == [y.dtype for y in truth]
        assert_close(found, truth, 2**-6)
        loss_of(found).backward()
    assert len(recordings(captured)) == 2


def test_warm_ups_leave_no_trace(device: str) -> None:
    plain, captured, inputs = pair("base", device, dropout=0.2)
    state = torch.get_rng_state()
    captured(*inputs)
    plain(*inputs)
    for (key, own), other in zip(captured.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(own, other), key
    assert device == "cpu" or torch.equal(torch.get_rng_state(), state)


def test_copies_record_for_themselves(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    captured(*inputs)
    for made in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert made.forward.model is made
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.1)
        assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
        other = copy.deepcopy(plain)
        other.load_state_dict(made.state_dict())
        assert_close(learned(made, *inputs), learned(other, *inputs), 1e-5)


def test_release_undoes_it(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    captured(*inputs)
    assert ctm_fast.release(captured) is captured and "forward" not in vars(captured)
    assert ctm_fast.release(captured) is captured
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    ctm_fast.capture(ctm_fast.capture(captured, *inputs), *inputs)
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)


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
    "a number": (lambda: ctm_fast.capture(nn.Linear(2, 2), 1), TypeError, "must hold tensors alone, got int"),
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
