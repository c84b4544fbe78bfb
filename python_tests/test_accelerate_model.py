"""An accelerated model stays the object it was: parameters, signature, saving, wrapping, restoring."""

import copy
import inspect
import io
import logging
import pickle

import numpy as np
import pytest
import torch
from foreign_cases import CASES, VARIANTS, assert_close, build, copies, evaluate, inputs_for, tensors
from foreign_models import ThoughtMachine, example
from foreign_variants import RecurrentMachine
from torch import nn

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.models import Agent, ContinuousThoughtMachineSORT


@pytest.fixture
def native_calls(monkeypatch):
    """Counts the native tick loops that run."""
    calls = []
    all_ticks = run.all_ticks
    monkeypatch.setattr(run, "all_ticks", lambda *args: calls.append(1) or all_ticks(*args))
    return calls


@pytest.mark.parametrize("name", [name for name in CASES if name != "base-layernorm"])
def test_all_ticks_run_in_the_native_loop(name, native_calls):
    model, inputs = build(name)
    ctm_fast.accelerate(model)(*inputs)
    native_calls.clear()
    model(*inputs)
    assert native_calls == [1]


@pytest.mark.parametrize("name", CASES)
def test_lazy_first_call_draws_as_the_original(name):
    kind, sizes = CASES[name]
    models = []
    for prepare in (lambda model: model, ctm_fast.accelerate):
        torch.manual_seed(11)
        np.random.seed(11)
        model = prepare(kind(**sizes))
        model(*inputs_for(model))
        models.append(model)
    original, fast = (model.state_dict() for model in models)
    assert original.keys() == fast.keys()
    assert all(torch.equal(original[key], fast[key]) for key in original)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_optimiser_made_before_keeps_working(name):
    model, inputs = build(name)
    losses = []
    for each in copies(model, 2):
        optimiser = torch.optim.AdamW(each.parameters(), lr=1e-2)
        parameters = dict(each.named_parameters())
        if losses:
            ctm_fast.accelerate(each)
        assert all(parameters[key] is p for key, p in each.named_parameters())
        run_of = []
        for _ in range(6):
            optimiser.zero_grad()
            loss = sum(y.square().mean() for y in tensors(each(*inputs)).values())
            loss.backward()
            optimiser.step()
            run_of.append(loss.item())
        losses.append(run_of)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_signature_class_and_keys_stay(name):
    model, _ = build(name)
    kind, keys = type(model), list(model.state_dict())
    ctm_fast.accelerate(model)
    assert isinstance(model, kind) and type(model).__name__ == kind.__name__
    assert inspect.signature(model.forward) == inspect.signature(kind.forward.__get__(model))
    assert list(model.state_dict()) == keys


def test_keyword_arguments():
    model, inputs = build("base")
    ctm_fast.accelerate(model).eval()
    assert len(model(track=True, x=inputs[0])) == 6
    with pytest.raises(TypeError, match="missing a required argument"):
        model()


@pytest.mark.parametrize("ticks", [1, 2, 13])
def test_iterations_may_change(ticks):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)(*inputs)
    original.iterations = fast.iterations = ticks
    found = fast(*inputs)
    assert found[0].shape[-1] == ticks
    assert_close(found, original(*inputs))


@pytest.mark.parametrize("called", [False, True], ids=["before-first-call", "after"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(way, called, native_calls):
    model, inputs = build("base")
    ctm_fast.accelerate(model)
    if called:
        with torch.no_grad():
            model(*inputs)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is type(model)
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
    native_calls.clear()
    assert_close(other(*inputs), model(*inputs), 0.0)
    assert len(native_calls) >= 2


def test_state_dict_goes_both_ways():
    first, inputs = build("base-unet", seed=1)
    second, _ = build("base-unet", seed=2)
    ctm_fast.accelerate(first)
    second.load_state_dict(first.state_dict())
    assert_close(first(*inputs), second(*inputs))
    third = ctm_fast.accelerate(ThoughtMachine(**CASES["base-unet"][1]))
    third.load_state_dict(second.state_dict())
    assert_close(third(*inputs), second(*inputs))


def test_moves_between_precisions(native_calls):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert_close(evaluate(fast, inputs, dtype), evaluate(original, inputs, dtype))
    assert len(native_calls) == 4


def test_inside_sequential():
    model, inputs = build("sort")
    outer = nn.Sequential(nn.Linear(7, 7), model)
    truth = outer(*inputs)
    assert ctm_fast.accelerate(outer) is outer
    assert_close(outer(*inputs), truth)
    assert ctm_fast.restore(outer)[1] is model
    assert type(model).__name__ == "SortingMachine" and type(model) is CASES["sort"][0]


def test_agent_with_a_foreign_model():
    model, (x, _) = build("rl")
    model.features_dim = model.decay_params_out.numel()
    agent = Agent(model, 3)
    done = torch.tensor([0.0, 1.0, 0.0] * 2)
    steps = torch.cat((x, -x))
    truth = agent.get_states(steps, agent.get_initial_state(3), done)
    ctm_fast.accelerate(agent)
    assert_close(agent.get_states(steps, agent.get_initial_state(3), done), truth)
    assert isinstance(agent.recurrent_model, RecurrentMachine)


def test_distributed_data_parallel(tmp_path):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(ctm_fast.accelerate(fast))
        sum(y.square().sum() for y in tensors(wrapped(*inputs)).values()).backward()
        inner = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        ctm_fast.accelerate(inner)
        sum(y.square().sum() for y in tensors(inner(*inputs)).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    sum(y.square().sum() for y in tensors(original(*inputs)).values()).backward()
    truth = {key: p.grad for key, p in original.named_parameters()}
    for each in (fast, inner.module):
        assert_close([p.grad for p in each.parameters()], list(truth.values()))


@pytest.mark.parametrize("order", ["compile-accelerated", "accelerate-compiled"])
def test_torch_compile(order, native_calls):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    if order == "compile-accelerated":
        compiled = torch.compile(ctm_fast.accelerate(fast), backend="eager")
    else:
        compiled = ctm_fast.accelerate(torch.compile(fast, backend="eager"))
    compiled(*inputs)
    native_calls.clear()
    assert_close(compiled(*inputs), original(*inputs))
    assert len(native_calls) == 1


def test_reference_backend_runs_the_original(native_calls):
    model, inputs = build("base")
    truth = model(*inputs)
    ctm_fast.accelerate(model)
    with ctm_fast.use_backend("reference"):
        assert_close(model(*inputs), truth, 0.0)
    assert native_calls == []


@pytest.mark.parametrize("name", VARIANTS)
def test_restore_undoes_everything(name):
    model, inputs = build(name)
    kind, attributes = type(model), set(vars(model))
    truth = model(*inputs)
    assert ctm_fast.restore(model) is model and type(model) is kind
    assert ctm_fast.accelerate(ctm_fast.accelerate(model)) is model
    model(*inputs)
    assert ctm_fast.restore(model) is model
    assert type(model) is kind and set(vars(model)) == attributes
    assert_close(model(*inputs), truth, 0.0)


def test_models_of_the_package_are_left_alone():
    model = ContinuousThoughtMachineSORT(2, 16, 5, 0, 3, 0, 1, 3, True, 2, False, "none", "none", 6)
    assert ctm_fast.accelerate(model) is model
    assert type(model) is ContinuousThoughtMachineSORT


def without(name):
    model, _ = build("base")
    delattr(model, name)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "got Linear without iterations, synapses, trace_processor"),
        (lambda: without("start_trace"), "got ThoughtMachine without start_trace"),
        (lambda: without("kv_proj"), "got ThoughtMachine without kv_proj"),
    ],
    ids=["no-ctm", "no-start-trace", "no-kv-proj"],
)
def test_what_is_no_ctm_raises_with_what_is_missing(make, message):
    with pytest.raises(ValueError, match=message):
        ctm_fast.accelerate(make())


@pytest.mark.parametrize("function", [ctm_fast.accelerate, ctm_fast.restore])
def test_wrong_type(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        function({})


def test_a_forward_set_on_the_object_raises():
    model, _ = build("base")
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="ThoughtMachine with another forward set on the object"):
        ctm_fast.accelerate(model)


def test_other_shapes_after_the_first_call(caplog):
    model, _ = build("base")
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    with caplog.at_level(logging.WARNING, "ctm_fast"):
        for batch, length in ((2, 8), (5, 3), (1, 1)):
            assert_close(fast(example(batch, length)), original(example(batch, length)))
    assert caplog.messages == []
