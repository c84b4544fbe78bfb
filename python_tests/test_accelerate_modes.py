"""Accelerated models under autograd's modes, frozen parts, dropout, autocast and other precisions."""

import copy

import pytest
import torch
from foreign_cases import VARIANTS, assert_close, evaluate, gradients, loss_of, pair, tensors
from torch.nn.utils import parameters_to_vector

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.testing import relative_error


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "inference"])
@pytest.mark.parametrize("name", VARIANTS)
def test_without_gradients_then_training(name, mode):
    original, fast, inputs = pair(name)
    for model in (original.eval(), fast.eval()):
        with mode():
            found = tensors(model(*inputs))
    with mode():
        truth = tensors(original(*inputs))
    assert not any(y.requires_grad for y in found.values())
    assert_close(found, truth, 1e-5)
    assert_close(evaluate(fast.train(), inputs), evaluate(original.train(), inputs), 1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_forwards_then_both_backwards(name):
    original, fast, inputs = pair(name)
    for model in (original.double(), fast.double()):
        inputs = tuple(map(doubled, inputs))
        first, second = model(*inputs), model(*inputs)
        (loss_of(first) + 3 * loss_of(second)).backward()
    assert_close(gradients(fast), gradients(original), 1e-6)


def doubled(x):
    if isinstance(x, tuple):
        return tuple(map(doubled, x))
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", VARIANTS)
def test_retain_graph(name):
    _, fast, inputs = pair(name)
    loss = loss_of(fast(*inputs))
    loss.backward(retain_graph=True)
    once = gradients(fast)
    fast.zero_grad()
    loss.backward()
    twice = gradients(fast)
    assert all(torch.equal(once[key], twice[key]) for key in once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("name", VARIANTS)
def test_double_backward_is_refused_and_reference_allows_it(name):
    _, fast, inputs = pair(name)
    weight = fast.trace_processor[0][0].w1
    loss = loss_of(fast(*inputs))
    with pytest.raises(RuntimeError, match="create_graph=True needs the differentiable backend"):
        torch.autograd.grad(loss, weight, create_graph=True)
    with ctm_fast.use_backend("reference"):
        (grad,) = torch.autograd.grad(loss_of(fast(*inputs)), weight, create_graph=True)
        assert torch.autograd.grad(grad.sum(), weight)[0].abs().sum() > 0


def test_double_backward_of_the_certainty_is_refused():
    _, fast, inputs = pair("base")
    certainties = fast(*inputs)[1]
    with pytest.raises(RuntimeError, match="certainty: create_graph=True needs the differentiable backend"):
        torch.autograd.grad(certainties[:, 0].sum(), fast.output_projector[0].weight, create_graph=True)


FROZEN = [
    "backbone",
    "kv_proj",
    "synapses",
    "trace_processor",
    "attention",
    "start",
    "decay",
    "output_projector",
]


@pytest.mark.parametrize("part", FROZEN)
def test_frozen_part(part):
    original, fast, inputs = pair("base-unet")
    for model in (original, fast):
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(not key.startswith(part))
        loss_of(model.double()(*inputs)).backward()
    assert_close(gradients(fast), gradients(original), 1e-6)


def test_only_the_head_is_trained():
    original, fast, inputs = pair("base")
    for model in (original, fast):
        model.requires_grad_(False)
        model.output_projector.requires_grad_(True)
        loss_of(model.double()(*inputs)).backward()
    assert gradients(fast).keys() == {"output_projector.0.weight", "output_projector.0.bias"}
    assert_close(gradients(fast), gradients(original), 1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_nan_reaches_its_sample_alone(name):
    original, fast, inputs = pair(name)
    original.eval(), fast.eval()
    first = inputs[0].clone()
    first[1] = float("nan")
    inputs = (first, *inputs[1:])
    with torch.no_grad():
        truth, found = tensors(original(*inputs)), tensors(fast(*inputs))
    assert all(torch.equal(found[key].isnan(), truth[key].isnan()) for key in truth)
    assert name == "base" or found["out.0"][1].isnan().all()


@pytest.mark.parametrize("name", [*VARIANTS, "base-unet", "base-energy"])
def test_autocast(name):
    original, fast, inputs = pair(name)
    truth = evaluate(copy.deepcopy(original), inputs, torch.float64)
    found = []
    for model in (original, fast):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = tensors(model.train()(*inputs))
        (sum(y.float().sum() for y in outputs.values())).backward()
        found.append(outputs)
    assert [y.dtype for y in found[1].values()] == [y.dtype for y in found[0].values()]
    assert gradients(original).keys() == gradients(fast).keys()
    for key in found[0]:
        expected, error = (relative_error(outputs[key], truth[key]) for outputs in found)
        assert error <= max(2 * expected, 2**-6)
    assert relative_error(*(parameters_to_vector(gradients(m).values()) for m in (fast, original))) < 0.1


def test_first_call_under_autocast_with_half_inputs_then_full_precision(monkeypatch, caplog):
    original, fast, (x,) = pair("sort")
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(x.bfloat16())[2]
        torch.testing.assert_close(found, original(x.bfloat16())[2], rtol=0.05, atol=0.05)
    monkeypatch.delattr(run, "_call")
    assert_close(tensors(fast(x)), tensors(original(x)), 1e-4)
    assert caplog.messages == []


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_model(name):
    original, fast, inputs = pair(name)
    original, fast = original.eval().bfloat16(), fast.eval().bfloat16()
    low = tuple(
        tuple(y.bfloat16() for y in x)
        if isinstance(x, tuple)
        else x.bfloat16()
        if x.is_floating_point()
        else x
        for x in inputs
    )
    with torch.no_grad():
        truth, found = tensors(original(*low)), tensors(fast(*low))
    assert [y.dtype for y in found.values()] == [y.dtype for y in truth.values()]
    assert_close(found, truth, 2**-5)


def test_decays_are_clamped_in_their_storage():
    original, fast, inputs = pair("base")
    fast(*inputs)
    for model in (original, fast):
        with torch.no_grad():
            model.decay_params_out[:3] = torch.tensor([-1.0, 20.0, 0.0])
            model.decay_params_action[:2] = torch.tensor([-0.5, 16.0])
    address = fast.decay_params_out.data_ptr()
    truth, found = evaluate(original, inputs), evaluate(fast, inputs)
    assert fast.decay_params_out.data_ptr() == address
    assert fast.decay_params_out[:3].tolist() == [0.0, 15.0, 0.0]
    assert fast.decay_params_action[:2].tolist() == [0.0, 15.0]
    assert_close(found, truth, 1e-4)
    assert found["d decay_params_out"][0] != 0 and found["d decay_params_out"][2] != 0


@pytest.mark.parametrize(("name", "bound"), [("sort", 15), ("rl", 4)])
def test_decays_are_clamped_inside_the_graph(name, bound):
    original, fast, inputs = pair(name)
    for model in (original, fast):
        with torch.no_grad():
            model.decay_params_out[:3] = torch.tensor([-1.0, bound + 1.0, 0.5])
    truth, found = evaluate(original, inputs), evaluate(fast, inputs)
    assert fast.decay_params_out[:2].tolist() == [-1.0, bound + 1.0]
    assert_close(found, truth, 1e-4)
    assert found["d decay_params_out"][:2].tolist() == [0.0, 0.0] and found["d decay_params_out"][2] != 0
