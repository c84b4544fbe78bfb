"""``capture`` and ``release``: on a GPU with CUDA graphs, elsewhere with a stand-in that runs the calls again."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from foreign_cases import assert_close, build, loss_of, moved, tensors
from graph_stand_in import stand_in
from torch import Tensor, nn

import ctm_fast
from ctm_fast.models import DNC, NTM
from ctm_fast.nn import TickLoop

NAMES = ("base", "base-unet", "base-first-last", "base-energy", "sort", "rl")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu":
        stand_in(monkeypatch)
    return str(request.param)


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


def test_replaced_parameters_and_parts_are_seen(device: str) -> None:
    plain, captured, inputs = pair("sort", device)
    learned(captured, *inputs)
    weights = {key: x + 0.1 if x.is_floating_point() else x for key, x in plain.state_dict().items()}
    for model in (plain, captured):
        model.load_state_dict({key: x.clone() for key, x in weights.items()}, assign=True)
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    own = torch.nn.Parameter(torch.ones_like(plain.start_activated_state))
    plain.start_activated_state, captured.start_activated_state = own, nn.Parameter(own.detach().clone())
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    made = nn.Linear(plain.output_projector[0].in_features, plain.output_projector[0].out_features).to(device)
    plain.output_projector[0], captured.output_projector[0] = made, copy.deepcopy(made)
    assert_close(learned(captured, *inputs), learned(plain, *inputs), 1e-5)
    assert len(recordings(captured)) == 1


def test_a_captured_model_is_freed_with_its_last_reference(device: str) -> None:
    _, captured, inputs = pair("sort", device)
    captured(*inputs)
    forward, model = captured.forward, weakref.ref(captured)
    gc.collect()
    gc.disable()
    try:
        del captured
        assert model() is None
    finally:
        gc.enable()
    with pytest.raises(RuntimeError, match="capture: model must be kept as long as its forward is called"):
        forward(*inputs)


class Named(nn.Linear):
    """Takes its input out of a dictionary, and writes to that."""

    def forward(self, given: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(given.pop("x")) * given["by"][0]


def test_dictionaries_agree_in_every_shape(device: str) -> None:
    model = Named(3, 2).to(device)

    def given(rows: int) -> dict[str, Any]:
        return {"x": torch.randn(rows, 3, device=device), "by": [torch.randn(rows, 1, device=device)]}

    captured = ctm_fast.capture(copy.deepcopy(model), given(4))
    for rows in (4, 1, 4):
        x = given(rows)
        assert_close(captured(copy.copy(x)), model(copy.copy(x)), 1e-6)
        assert len(recordings(captured)) == 1
    x = given(4)
    x["by"][0] = x["by"][0].double()
    assert captured(x).dtype == torch.float64


def test_a_tick_loop_with_its_ticks(device: str) -> None:
    plain = TickLoop(12, 8, 3, heads=2, n_synch=4).to(device)
    tokens = torch.randn(2, 5, 8, device=device)
    captured = ctm_fast.capture(copy.deepcopy(plain), tokens, 3)
    for ticks, count in ((2, 0), (3, 1), (3, 1), (2, 1)):
        found, truth = captured(tokens, ticks), plain(tokens, ticks)
        assert found._fields == truth._fields and found.attention is None
        assert_close((*found[:2], *found.state), (*truth[:2], *truth.state), 1e-5)
        assert len(recordings(captured)) == count


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
