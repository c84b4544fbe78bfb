"""The engine of a model on a GPU; elsewhere with a stand-in that runs the recorded calls again."""

import copy

import numpy as np
import pytest
import torch
from engine_cases import eval_model
from engine_cases import outputs as model_outputs
from foreign_cases import CASES, inputs_for, moved
from foreign_cases import to as in_dtype
from graph_stand_in import Again, stand_in

import ctm_fast
from ctm_fast.engine import Halt, Reason, cuda, engine
from ctm_fast.engine.cuda import CudaEngine
from ctm_fast.testing import relative_error


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)])
def device(request, monkeypatch):
    if request.param == "cpu":
        stand_in(monkeypatch)
        monkeypatch.setattr(engine, "DEVICE", "cpu")
    return request.param


@pytest.fixture(name="on_cpu")
def on_cpu_fixture(monkeypatch):
    """Makes engines of the CPU whatever the stand-in says."""

    def make(model, inputs):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "DEVICE", "none")
            return ctm_fast.Engine(copy.deepcopy(model).cpu(), moved(inputs, "cpu"))

    return make


def case(name, device, batch=3, **changes):
    """A model on the device, its inputs there, and an engine of it."""
    model, inputs = eval_model(name, batch=batch, **changes)
    inputs = moved(inputs, device)
    return model.to(device), inputs, ctm_fast.Engine(model, inputs)


def found_by(made, inputs):
    """What ``engine_cases.outputs`` gives of a model."""
    found = made(*inputs)
    if found.predictions is None:
        return (found.synchronisation, *made.get_state())
    return (
        found.predictions,
        found.certainties,
        found.synchronisation if found.energies is None else found.energies,
    )


def assert_equal(found, truth):
    for ours, exact in zip(found, truth, strict=True):
        assert ours.shape == exact.shape
        assert relative_error(torch.from_numpy(np.ascontiguousarray(ours)), exact.cpu()) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_engine_equals_the_model(name, device):
    model, inputs, made = case(name, device)
    assert isinstance(made, CudaEngine)
    truth = model_outputs(copy.deepcopy(model).double(), in_dtype(inputs, torch.float64))
    assert_equal(found_by(made, inputs), truth)


@pytest.mark.parametrize("name", ["base-energy", "rl"])
def test_later_changes_of_the_model_are_not_seen(name, device):
    model, inputs, made = case(name, device)
    before = found_by(made, inputs)
    model.train()
    model.iterations += 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    for a, b in zip(before, found_by(made, inputs), strict=True):
        assert np.array_equal(a, b)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["base", "sort-unet"])
def test_shapes_have_a_graph_each(name, device, monkeypatch):
    monkeypatch.setattr(cuda, "MOST_GRAPHS", 3)
    model, _, made = case(name, device, batch=5)
    for batch in (1, 2, 3, 4, 1, 5):
        few = moved(inputs_for(model.cpu(), batch), device)
        truth = model_outputs(copy.deepcopy(model).double(), in_dtype(moved(few, "cpu"), torch.float64))
        assert_equal(found_by(made, few), truth)
    assert len(made._calls) == 3


def test_a_call_replays_its_graph(monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(engine, "DEVICE", "cpu")
    _, inputs, made = case("base", "cpu")
    before = Again.replays
    first, second = made(*inputs), made(inputs[0].numpy())
    assert Again.replays == before + 2
    assert made.computed == 3 * first.predictions.shape[2]
    for a, b in zip(first[:4], second[:4], strict=True):
        assert a is b is None or np.array_equal(a, b)


def middle(values):
    """A threshold that half the values meet, and that none is near to."""
    ranked = np.sort(values, None)
    return float(ranked[len(ranked) // 2 - 1 : len(ranked) // 2 + 1].mean())


RULES = {
    "certainty": lambda full: Halt(certainty=middle(full.certainties[:, 1])),
    "energy": lambda full: Halt(energy=middle(full.energies), min_ticks=2),
    "convergence": lambda full: Halt(delta=middle(np.abs(np.diff(full.energies))), patience=2),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_halting_is_that_of_the_cpu(rule, device, on_cpu):
    model, inputs, made = case("base-energy", device, batch=8)
    full = made(*inputs)
    halt = rule(full)
    found, expected = made(*inputs, halt=halt), on_cpu(model, inputs)(*moved(inputs, "cpu"), halt=halt)
    assert found.ticks.min() < full.ticks.min()
    assert found.reason.max() > Reason.LAST_TICK
    assert np.array_equal(found.ticks, expected.ticks)
    assert np.array_equal(found.reason, expected.reason)
    for a, b in zip(found[:4], expected[:4], strict=True):
        assert np.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["rl", "rl-unet"])
def test_steps_and_states_are_those_of_the_cpu(name, device, on_cpu):
    model, inputs, made = case(name, device, batch=4)
    other = on_cpu(model, inputs)
    walk = torch.randn(6, *inputs[0].shape).numpy()
    for batch, samples in ((4, [1, 3]), (2, [0])):
        for e in (made, other):
            e.reset(batch)
        for x in walk[:3, :batch]:
            (a, state), (b, expected) = made.step(x), other.step(torch.from_numpy(x))
            for ours, exact in zip((a, *state), (b, *expected), strict=True):
                assert np.allclose(ours, exact, atol=1e-5)
        for e in (made, other):
            e.reset(samples=samples)
        ours, exact = made.step(walk[3, :batch])[0], other.step(torch.from_numpy(walk[3, :batch]))[0]
        assert np.allclose(ours, exact, atol=1e-5)
        held = made.get_state()
        first = made.step(walk[4, :batch])[0]
        made.set_state(held)
        assert np.array_equal(made.step(walk[4, :batch])[0], first)


def test_an_input_that_is_not_finite_leaves_the_state(device):
    _, inputs, made = case("rl", device)
    made.step(inputs[0])
    before = made.get_state()
    with pytest.raises(ValueError, match="Engine: inputs must be finite, got NaN or infinity"):
        made.step(torch.full_like(inputs[0], float("inf")))
    for a, b in zip(made.get_state(), before, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["base", "rl"])
def test_inference_mode_leaves_nothing_behind(name, device):
    model, inputs = eval_model(name)
    model, inputs = model.to(device), moved(inputs, device)
    few = inputs[0][:2]
    with torch.inference_mode():
        made = ctm_fast.Engine(model, inputs)
        made.reset(2) if name == "rl" else made(few)
    first, second = (made.step(few)[0] if name == "rl" else made(few).predictions for _ in range(2))
    assert first.shape == second.shape
    with torch.inference_mode():
        found_by(made, inputs)
    assert not any(x.is_inference() for call in made._calls.values() for x in call.given)


def test_inputs_that_require_gradients_are_not_kept(device):
    _, inputs, made = case("sort", device)
    for _ in range(2):
        made(inputs[0].requires_grad_())
    assert all(x.grad_fn is None and not x.requires_grad for call in made._calls.values() for x in call.given)


def test_examples_come_from_any_device(device):
    model, inputs = eval_model("rl")
    made = ctm_fast.Engine(model.to(device), moved(inputs, "cpu"))
    truth = model_outputs(copy.deepcopy(model).double(), in_dtype(moved(inputs, device), torch.float64))
    assert_equal(found_by(made, moved(inputs, "cpu")), truth)


def test_a_file_of_it_runs_on_the_cpu(device, tmp_path):
    model, inputs, made = case("sort", device)
    made.save(tmp_path / "sort.safetensors")
    found = ctm_fast.engine.load(tmp_path / "sort.safetensors")(inputs[0].cpu().numpy())
    truth = model_outputs(copy.deepcopy(model).double(), in_dtype(inputs, torch.float64))
    assert_equal((found.predictions, found.certainties, found.synchronisation), truth)


def test_errors(device):
    model, inputs, made = case("base", device)
    x = inputs[0]
    with pytest.raises(ValueError, match="Engine: threads must be 1 for a model on a GPU, got 2"):
        ctm_fast.Engine(model, inputs, threads=2)
    with pytest.raises(TypeError, match="Engine: inputs must be x, got 2 arguments"):
        made(x, x)
    with pytest.raises(ValueError, match=r"Engine: x must have a shape from 1 to .*, got \(4, "):
        made(torch.cat((x, x[:1])))
    with pytest.raises(ValueError, match=r"Engine: x must have a shape from 1 to .*, got \(0, "):
        made(x[:0])
    with pytest.raises(TypeError, match="Engine: x must be an array of real numbers, got complex64"):
        made(np.zeros(x.shape, np.complex64))
    with pytest.raises(ValueError, match="Engine: inputs must be finite"):
        made(torch.full_like(x, float("nan")))
    with pytest.raises(ValueError, match="Engine: halt must have no rule for energies"):
        made(x, halt=Halt(energy=0.5))
    with pytest.raises(TypeError, match="Engine: step must be called for a stateful model"):
        made.step(x)
    with pytest.raises(ValueError, match="must be in eval mode"):
        ctm_fast.Engine(model.train(), inputs)


def test_a_question_of_floats_is_refused(device):
    _, inputs, made = case("qamnist", device)
    with pytest.raises(TypeError, match=r"Engine: question must be of a dtype like torch.int64, got float64"):
        made(inputs[0], inputs[1].cpu().numpy().astype(np.float64))


def test_a_step_of_another_batch_is_refused(device):
    _, inputs, made = case("rl", device)
    with pytest.raises(ValueError, match="Engine: x must have the state's batch of 3, got 2"):
        made.step(inputs[0][:2])
