"""Pieces that users changed keep their say: methods, hooks, parametrizations, modules of their own."""

import copy

import pytest
import torch
from foreign_cases import SAID, agree, build, called, copies, evaluate, pair
from foreign_models import ThoughtMachine
from foreign_variants import QuestionMachine, RecurrentMachine, SortingMachine
from torch import nn

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.testing import relative_error

OTHER_LAYERS = "layers other than the published ones"


def doubled(cls, name):
    """A subclass of ``cls`` whose method ``name`` gives twice as much."""

    def method(self, *args, **kwargs):
        found = getattr(super(made, self), name)(*args, **kwargs)
        return (2 * found[0], *found[1:]) if isinstance(found, tuple) else 2 * found

    made = type(f"Doubled{cls.__name__}", (cls,), {name: method})
    return made


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (ThoughtMachine, "compute_features"),
        (ThoughtMachine, "compute_certainty"),
        (ThoughtMachine, "compute_synchronisation"),
        (SortingMachine, "compute_certainty"),
        (SortingMachine, "compute_synchronisation"),
        (QuestionMachine, "compute_certainty"),
        (QuestionMachine, "compute_synchronisation"),
        (RecurrentMachine, "compute_synchronisation"),
    ],
)
def test_overridden_method(cls, name, caplog):
    kind = {
        ThoughtMachine: "base",
        SortingMachine: "sort",
        QuestionMachine: "qamnist",
        RecurrentMachine: "rl",
    }
    model, inputs = build(kind[cls])
    plain = evaluate(copy.deepcopy(model), inputs, torch.float64)
    model.__class__ = doubled(cls, name)
    original, fast = copies(model, 2)
    found = agree(original, ctm_fast.accelerate(fast), inputs)
    assert any(relative_error(found[key], plain[key]) > 1e-3 for key in plain)
    attends = getattr(model, "attention", None) is not None
    own = attends and name == "compute_synchronisation"
    assert called(caplog) == (["the action synchronisation (a method of the model's own)"] if own else [])


def test_method_set_on_the_object(caplog):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)(*inputs)
    for each in (original, fast):
        each.compute_certainty = lambda y: torch.stack((y.sum(1), y.mean(1)), -1)
    agree(original, fast, inputs)
    assert caplog.messages == []


class Residual(nn.Module):
    """Synapses of somebody's own."""

    def __init__(self, d_input, d_model):
        super().__init__()
        self.inner = nn.Linear(d_input + d_model, d_model)

    def forward(self, x):
        return x[:, -self.inner.out_features :] + torch.tanh(self.inner(x))


class SharedNeurons(nn.Module):
    """One network for all neurons instead of one each."""

    def __init__(self, memory_length):
        super().__init__()
        self.inner = nn.Linear(memory_length, 1)

    def forward(self, history):
        return self.inner(history).squeeze(-1)


class LinearAttention(nn.Module):
    """Attention of somebody's own behind the interface of torch's."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, query, key, value, average_attn_weights, need_weights):
        weights = torch.softmax(self.inner(query) @ key.transpose(1, 2), -1)
        return weights @ value, weights.unsqueeze(1)


REPLACEMENTS = {
    "synapses": lambda m: Residual(m.d_input, m.d_model),
    "trace_processor": lambda m: SharedNeurons(m.memory_length),
    "attention": lambda m: LinearAttention(m.d_input),
    "output_projector": lambda m: nn.Sequential(
        nn.Dropout(0.0), nn.Linear(m.decay_params_out.numel(), m.out_dims)
    ),
    "q_proj": lambda m: nn.Sequential(nn.Linear(m.decay_params_action.numel(), m.d_input), nn.Tanh()),
    "backbone": lambda m: nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (8, 2))),
}


@pytest.mark.parametrize("part", REPLACEMENTS)
def test_own_module(part, caplog):
    model, inputs = build("base")
    setattr(model, part, REPLACEMENTS[part](model))
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    for _ in range(2):
        agree(original, fast, inputs)
    assert called(caplog) == ([f"{SAID[part]} ({OTHER_LAYERS})"] if part in SAID else [])


class Louder(nn.Linear):
    """A Linear by inheritance alone."""

    def forward(self, x):
        return 3 * super().forward(x)


def with_weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.synapses[1])


def with_subclass(model):
    linear = model.synapses[1]
    linear.__class__ = Louder


def with_own_forward(model):
    linear = model.synapses[1]
    linear.forward = lambda x: nn.functional.linear(x, 2 * linear.weight, linear.bias)


def with_spectral_norm_query(model):
    nn.utils.parametrizations.spectral_norm(model.q_proj)


def without_bias(model):
    model.synapses[1] = nn.Linear(model.synapses[1].in_features, 2 * model.d_model, bias=False)


def without_affine_norm(model):
    model.synapses[3] = nn.LayerNorm(model.d_model, elementwise_affine=False)


def with_normalised_history(model):
    model.trace_processor[0][0].layernorm = nn.LayerNorm(model.memory_length)


def with_other_gate(model):
    model.trace_processor[0][1] = Gate()


class Gate(nn.GLU):
    def forward(self, x):
        a, b = x.chunk(2, self.dim)
        return a * torch.tanh(b)


CHANGES = {
    with_weight_norm: "the synapses (parametrizations)",
    with_subclass: f"the synapses ({OTHER_LAYERS})",
    with_spectral_norm_query: "the attention (parametrizations)",
    without_bias: f"the synapses ({OTHER_LAYERS})",
    without_affine_norm: f"the synapses ({OTHER_LAYERS})",
    with_normalised_history: "the neuron-level models (a LayerNorm)",
    with_other_gate: f"the neuron-level models ({OTHER_LAYERS})",
}


@pytest.mark.parametrize(("change", "said"), CHANGES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_changed_module(change, said, caplog):
    model, inputs = build("base")
    original, fast = copies(model.eval(), 2)
    for each in (original, fast):
        change(each)
    fast.load_state_dict(original.state_dict())
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert called(caplog) == [said]


class Labelled(nn.Parameter):
    """A parameter that may not be what its memory says."""


READ = (
    "synapses.1.weight", "trace_processor.0.0.w1", "q_proj.weight", "attention.in_proj_weight",
    "attention.out_proj.bias", "decay_params_action",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_parameter_of_another_class(name, monkeypatch):
    original, fast, inputs = pair("base")
    fast(*inputs)
    for each in (original, fast):
        owner, _, key = name.rpartition(".")
        setattr(each.get_submodule(owner), key, Labelled(each.get_parameter(name).detach()))
    monkeypatch.delattr(run, "all_ticks")
    agree(original, fast, inputs)


def test_hook_of_all_modules():
    original, fast, inputs = pair("base")
    fast(*inputs)
    called = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module)))
    counts = []
    try:
        for each in (original, fast):
            called.clear()
            each(*inputs)
            counts.append([called.count(part) for part in (nn.Linear, nn.LayerNorm, nn.GLU)])
    finally:
        hook.remove()
    assert counts[0] == counts[1]
    called.clear()
    fast(*inputs)
    assert called == []


def test_forward_set_on_a_submodule(caplog):
    original, inputs = build("base")
    fast, _ = build("base")
    for each in (original, fast):
        with_own_forward(each)
    found = {
        key: evaluate(each, inputs)["out.0"]
        for key, each in (("original", original), ("fast", ctm_fast.accelerate(fast)))
    }
    torch.testing.assert_close(found["fast"], found["original"], rtol=1e-5, atol=1e-6)
    assert called(caplog) == ["the synapses (a forward set on the object)"]
