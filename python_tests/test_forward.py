"""The models of the package: the fast forward against the published one."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import evaluate, tensors
from small_ctm import SMALL

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.models import (
    Agent,
    ContinuousThoughtMachine,
    ContinuousThoughtMachineQAMNIST,
    ContinuousThoughtMachineRL,
    ContinuousThoughtMachineSORT,
)
from ctm_fast.testing import relative_error

NOTHING = {"backbone_type": "none", "positional_embedding_type": "none"}
IMAGE = {"backbone_type": "resnet18-1", "positional_embedding_type": "learnable-fourier"}
QAMNIST: dict[str, Any] = {
    key: value for key, value in SMALL.items() if key not in ("backbone_type", "positional_embedding_type")
} | {"iterations_per_digit": 2, "iterations_per_question_part": 2, "iterations_for_answering": 3}
RL: dict[str, Any] = {
    "iterations": 3,
    "d_model": 18,
    "d_input": 6,
    "n_synch_out": 5,
    "synapse_depth": 1,
    "memory_length": 7,
    "deep_nlms": True,
    "memory_hidden_dims": 3,
    "do_layernorm_nlm": False,
    "backbone_type": "classic-control-backbone",
}


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def signs(batch):
    return (random(batch, 6).sign(),)


def digits(batch):
    question = torch.tensor([0, 1, -1, -2, 2, 0]).expand(batch, -1)
    return random(batch, 2, 1, 8, 8).repeat_interleave(2, 1), question


def observations(model, batch, shape=(4,)):
    state = (batch, model.d_model, model.memory_length)
    x = random(batch, *shape) if shape == (4,) else torch.randint(0, 3, (batch, *shape))
    return x, (random(*state), random(*state) * 0.5)


def base(**changes):
    return lambda: ContinuousThoughtMachine(**{**SMALL, **changes})


def agreed(make, inputs):
    """(model after its lazy first call, inputs of a batch), nothing at its start value."""

    def build(batch):
        model = make()
        given = inputs(batch) if inputs is not observations_of else observations_of(model, batch)
        with torch.no_grad():
            model(*given)
            for key, parameter in model.named_parameters():
                parameter.add_(
                    torch.rand_like(parameter) if "decay" in key else 0.05 * torch.randn_like(parameter)
                )
        return model, given

    return build


def observations_of(model, batch):
    shape = (4,) if isinstance(model.backbone, ctm_fast.nn.ClassicControlBackbone) else (7, 7, 3)
    return observations(model, batch, shape)


CASES = {
    "base": agreed(base(), signs),
    "base-first-last": agreed(base(neuron_select_type="first-last", d_model=33, heads=1), signs),
    "base-pairing": agreed(base(neuron_select_type="random-pairing", n_random_pairing_self=3), signs),
    "base-unet": agreed(base(synapse_depth=3, deep_nlms=False), signs),
    "base-layernorm": agreed(base(do_layernorm_nlm=True), signs),
    "base-energy": agreed(base(energy_head_enabled=True), signs),
    "base-image": agreed(base(**IMAGE), lambda batch: (random(batch, 1, 9, 7),)),
    "base-raw-tokens": agreed(base(**NOTHING), lambda batch: (random(batch, 8, 5),)),
    "base-memory-1-tick-1": agreed(base(memory_length=1, iterations=1), signs),
    "sort": agreed(
        lambda: ContinuousThoughtMachineSORT(
            **{**SMALL, **NOTHING, "synapse_depth": 2, "prediction_reshaper": [2, -1]}
        ),
        lambda batch: (random(batch, 8),),
    ),
    "qamnist": agreed(lambda: ContinuousThoughtMachineQAMNIST(**QAMNIST), digits),
    "rl": agreed(lambda: ContinuousThoughtMachineRL(**RL), observations_of),
    "rl-grid": agreed(
        lambda: ContinuousThoughtMachineRL(**{**RL, "backbone_type": "navigation-backbone", "iterations": 9}),
        observations_of,
    ),
}


def errors(found, truth):
    assert [(k, y.shape, y.dtype) for k, y in found.items()] == [
        (k, y.shape, y.dtype) for k, y in truth.items()
    ]
    unclear = (".layers.0.bias", ".layers.4.bias")  # before a BatchNorm: their gradient is rounding alone
    return {key: relative_error(found[key], truth[key]) for key in truth if not key.endswith(unclear)}


def assert_close(found, truth, tolerance):
    wrong = {key: error for key, error in errors(found, truth).items() if not error <= tolerance}
    assert wrong == {}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_forward(name, batch):
    model, inputs = CASES[name](batch)
    found = evaluate(copy.deepcopy(model), inputs, torch.float64)
    with ctm_fast.use_backend("reference"):
        truth = evaluate(copy.deepcopy(model), inputs, torch.float64)
    assert_close(found, truth, 1e-6)
    exact = {key: y for key, y in truth.items() if y.dtype == torch.float64}
    assert_close({key: found[key] for key in exact}, exact, 1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if name != "base-layernorm"])
def test_runs_natively(name, monkeypatch):
    model, inputs = CASES[name](2)
    monkeypatch.delattr(run, "_call")
    model(*inputs)


@pytest.mark.parametrize("name", CASES)
def test_tracks(name):
    model, inputs = CASES[name](3)
    model.eval()
    found = model(*inputs, track=True)
    features = getattr(model, "kv_features", None)
    with ctm_fast.use_backend("reference"):
        truth = model(*inputs, track=True)
    arrays = [type(y) for y in found[2:]]
    assert arrays == [type(y) for y in truth[2:]] and np.ndarray in [*arrays, *map(type, found[2])]
    assert_close(tensors(found), tensors(truth), 1e-5)
    assert features is None or torch.equal(features, model.kv_features)


def test_agent_over_steps_and_episodes():
    model, _ = CASES["rl"](4)
    agent = Agent(model, 3)
    x, done = random(5 * 4, 4), (random(5 * 4) > 1).float()
    found, truth = (agent_run(agent, x, done, backend) for backend in (None, "reference"))
    assert_close(found, truth, 1e-4)


def agent_run(agent, x, done, backend):
    with ctm_fast.use_backend(backend):
        action = torch.arange(len(x)) % 3
        _, log_prob, entropy, value, state = agent.get_action_and_value(
            x, agent.get_initial_state(4), done, action
        )
        agent.zero_grad()
        (log_prob.sum() + entropy.sum() + value.square().sum()).backward()
    grads = {f"d {key}": p.grad.clone() for key, p in agent.named_parameters() if p.grad is not None}
    return tensors((log_prob.detach(), value.detach(), state[0].detach(), state[1].detach())) | grads


class Slower(ContinuousThoughtMachine):
    """Thinks otherwise."""

    def think(self, inputs, activated_state, state_trace):
        state, trace = super().think(inputs, activated_state, state_trace)
        return 0.5 * state + 0.5 * activated_state, trace


class Deaf(ContinuousThoughtMachineQAMNIST):
    """Hears half of the question."""

    def embed_question(self, tokens, step):
        return 0.5 * super().embed_question(tokens, step)


class Forgetful(ContinuousThoughtMachineRL):
    """Weighs its window otherwise."""

    def window_weights(self):
        return super().window_weights() ** 2


class Sharp(ContinuousThoughtMachineRL):
    """Synchronises otherwise."""

    def compute_synchronisation(self, activated_state_trace):
        return super().compute_synchronisation(activated_state_trace).tanh()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: Slower(**SMALL), signs),
        (lambda: Deaf(**QAMNIST), digits),
        (lambda: Forgetful(**RL), observations_of),
        (lambda: Sharp(**RL), observations_of),
    ],
    ids=["think", "embed_question", "window_weights", "compute_synchronisation"],
)
def test_redefined_methods_are_called(make, inputs):
    model, given = agreed(make, inputs)(3)
    found = tensors(model.eval()(*given))
    with ctm_fast.use_backend("reference"):
        truth = tensors(model(*given))
    plain = copy.deepcopy(model)
    plain.__class__ = type(model).__mro__[1]
    assert_close(found, truth, 1e-5)
    assert max(errors(tensors(plain(*given)), truth).values()) > 1e-3


def test_a_method_set_on_the_object_is_called():
    model, inputs = CASES["base"](2)
    model.think = lambda seen, z, trace: (z + seen.mean(), trace)
    found = tensors(model(*inputs))
    with ctm_fast.use_backend("reference"):
        assert_close(found, tensors(model(*inputs)), 1e-6)


@pytest.mark.parametrize("called", ["", "synapses", "trace_processor", "q_proj"])
@pytest.mark.parametrize(
    "sizes", [{"iterations": 1}, {"memory_length": 1}, {"iterations": 1, "memory_length": 1}], ids=str
)
def test_what_no_tick_reads_has_the_gradient_of_the_published_forward(called, sizes):
    model, inputs = agreed(base(**sizes), signs)(2)
    if called:
        model.get_submodule(called).register_forward_hook(lambda *_: None)
    found = evaluate(copy.deepcopy(model), inputs, torch.float64)
    with ctm_fast.use_backend("reference"):
        truth = evaluate(copy.deepcopy(model), inputs, torch.float64)
    assert_close(found, truth, 1e-6)  # the names of both: None is not a gradient of zeros


@pytest.mark.parametrize("name", ["base", "sort", "rl"])
def test_no_ticks(name):
    model, inputs = CASES[name](2)
    model.iterations = 0
    with pytest.raises(ValueError, match=rf"^{type(model).__name__}: iterations must be at least 1, got 0$"):
        model(*inputs)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 1)])
def test_numbers_of_a_wrong_rank(shape):
    model, _ = CASES["sort"](2)
    expected = r"^ContinuousThoughtMachineSORT: x must have shape \(B, N\), got \("
    with pytest.raises(ValueError, match=expected):
        model(random(*shape))


WRONG_STATES = {
    "fewer-histories": (
        lambda x, h: (x, (h[0][:1], h[1])),
        "must match|must be equal|Sizes of tensors",
    ),
    "fewer-neurons": (lambda x, h: (x, (h[0][:, :9], h[1])), "Sizes of tensors must match"),
    "shorter-history": (lambda x, h: (x, (h[0][:, :, 1:], h[1])), "subscript|size"),
    "double-history": (lambda x, h: (x, (h[0].double(), h[1])), "dtype|scalar type"),
    "fewer-observations": (lambda x, h: (x[:1], h), "Sizes of tensors must match"),
}


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_wrong_states_raise_as_published(wrong, batch):
    model, inputs = CASES["rl"](batch)
    change, message = WRONG_STATES[wrong]
    for backend in (None, "reference"):
        with ctm_fast.use_backend(backend), pytest.raises(RuntimeError, match=message):
            model(*change(*inputs))


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x[:, 1:], "shapes cannot be multiplied"), (lambda x: x.double(), "dtype")],
    ids=["one-number-less", "double"],
)
def test_wrong_numbers_raise_as_published(change, message, batch):
    model, (numbers,) = CASES["sort"](batch)
    for backend in (None, "reference"):
        with ctm_fast.use_backend(backend), pytest.raises(RuntimeError, match=message):
            model(change(numbers))


@pytest.mark.parametrize("name", ["base", "sort", "qamnist", "rl"])
def test_decays_out_of_bounds(name):
    model, inputs = CASES[name](3)
    with torch.no_grad():
        for key, decay in model.named_parameters():
            if "decay" in key:
                decay[:3] = torch.tensor([-1.0, 20.0, 0.5])
    fast, published = copy.deepcopy(model), copy.deepcopy(model)
    found = evaluate(fast, inputs, torch.float64)
    with ctm_fast.use_backend("reference"):
        truth = evaluate(published, inputs, torch.float64)
    assert_close(found, truth, 1e-6)
    kept = [-1.0, 20.0, 0.5] if name in ("sort", "rl") else [0.0, 15.0, 0.5]
    decays = [
        decay[:3].tolist()
        for each in (fast, published)
        for key, decay in each.named_parameters()
        if "decay" in key
    ]
    assert decays == [kept] * len(decays)


def without_samples(value):
    return tuple(map(without_samples, value)) if isinstance(value, tuple) else value[:0]


@pytest.mark.parametrize("track", [False, True], ids=["plain", "tracked"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(
    "name", ["base", "base-energy", "base-image", "base-layernorm", "sort", "qamnist", "rl"]
)
def test_an_empty_batch_gives_empty_results(name, training, track):
    model, inputs = CASES[name](2)
    model.train(training)
    whole, empty = (tensors(model(*given, track)) for given in (inputs, without_samples(inputs)))
    with ctm_fast.use_backend("reference"):
        published = tensors(model(*without_samples(inputs), track))
    shapes = {key: list(y.shape) for key, y in empty.items()}
    assert shapes == {key: list(y.shape) for key, y in published.items()}
    for key, y in whole.items():
        assert all(a == b or (a, b) == (2, 0) for a, b in zip(y.shape, shapes[key], strict=True))
        assert y.numel() == 0 or empty[key].numel() == 0


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("name", "argument"), [("base", "x"), ("sort", "x"), ("qamnist", "z"), ("rl", "hidden_states\\[1\\]")]
)
def test_what_is_no_tensor_raises(name, argument, backend):
    model, (*others, last) = CASES[name](2)
    wrong = (last[0], last[1].numpy()) if name == "rl" else last.numpy()
    expected = rf"^{type(model).__name__}: {argument} must be a torch.Tensor, got ndarray$"
    with ctm_fast.use_backend(backend), pytest.raises(TypeError, match=expected):
        model(*others, wrong)


@pytest.mark.filterwarnings("ignore")
def test_traced_models_run_the_published_forward():
    model, inputs = CASES["base"](2)
    traced = torch.jit.trace(model.eval(), inputs, check_trace=False)
    torch.testing.assert_close(traced(*inputs), model(*inputs))


@pytest.mark.filterwarnings("ignore:The tensor attribute self.kv_features was assigned during export")
@pytest.mark.parametrize("name", ["base", "base-unet", "sort", "rl"])
def test_exported_models_run_the_published_forward_with_bounded_decays(name):
    model, inputs = CASES[name](2)
    model.eval()(*inputs)
    model.decay_params_out.data[:2] = torch.tensor([-3.0, 40.0])
    exported = torch.export.export(model, inputs, strict=False).module()
    assert model.decay_params_out[1] == 40
    assert_close(tensors(exported(*inputs)), tensors(model(*inputs)), 1e-5)


@pytest.mark.parametrize("name", ["base", "base-unet", "sort"])
def test_a_loaded_model_says_nothing_and_runs_natively(name, caplog, monkeypatch):
    model, inputs = CASES[name](2)
    sizes = {"base": SMALL, "base-unet": {**SMALL, "synapse_depth": 3, "deep_nlms": False}}
    sizes["sort"] = {**SMALL, **NOTHING, "synapse_depth": 2, "prediction_reshaper": [2, -1]}
    loaded = type(model)(**sizes[name])
    loaded.load_state_dict(model.state_dict())
    monkeypatch.delattr(run, "_call")
    expected = tensors(model.eval()(*inputs))
    for _ in range(2):
        assert_close(tensors(loaded.eval()(*inputs)), expected, 1e-5)
    assert caplog.messages == []
    loaded.synapses.register_forward_hook(lambda *_: None)
    monkeypatch.undo()
    loaded(*inputs)
    assert len(caplog.messages) == 1  # of the user's own hook
