"""Pieces that users changed keep their say: methods, hooks, parametrizations, modules of their own."""

import copy
import logging

import pytest
import torch
from foreign_cases import build, copies, evaluate, tensors
from foreign_models import ThoughtMachine, example
from foreign_variants import QuestionMachine, RecurrentMachine, SortingMachine
from torch import nn

import ctm_fast
from ctm_fast.testing import relative_error


def agree(original, fast, inputs, tolerance=1e-11):
    """Outputs and gradients in float64; returns them."""
    truth, found = evaluate(original, inputs, torch.float64), evaluate(fast, inputs, torch.float64)
    assert truth.keys() == found.keys()
    errors = {key: relative_error(found[key], truth[key]) for key in truth}
    limits = {key: 1e-6 if truth[key].dtype == torch.float32 else tolerance for key in truth}
    assert {key: error for key, error in errors.items() if not error <= limits[key]} == {}
    return found


@pytest.fixture
def warnings(caplog):
    """What the package logged."""
    with caplog.at_level(logging.WARNING, "ctm_fast"):
        yield caplog


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
def test_overridden_method(cls, name, warnings):
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
    assert warnings.messages == []


def test_method_set_on_the_object(warnings):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)(*inputs)
    for each in (original, fast):
        each.compute_certainty = lambda y: torch.stack((y.sum(1), y.mean(1)), -1)
    agree(original, fast, inputs)
    assert warnings.messages == []


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
def test_own_module(part, warnings):
    model, inputs = build("base")
    setattr(model, part, REPLACEMENTS[part](model))
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert warnings.messages == []


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


CHANGES = (
    with_weight_norm, with_subclass, with_spectral_norm_query, without_bias, without_affine_norm,
    with_normalised_history, with_other_gate,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_module(change, warnings):
    model, inputs = build("base")
    original, fast = copies(model.eval(), 2)
    for each in (original, fast):
        change(each)
    fast.load_state_dict(original.state_dict())
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert warnings.messages == []


def test_forward_set_on_a_submodule(warnings):
    original, inputs = build("base")
    fast, _ = build("base")
    for each in (original, fast):
        with_own_forward(each)
    found = {
        key: evaluate(each, inputs)["out.0"]
        for key, each in (("original", original), ("fast", ctm_fast.accelerate(fast)))
    }
    torch.testing.assert_close(found["fast"], found["original"], rtol=1e-5, atol=1e-6)
    assert warnings.messages == []


HOOKED = [
    "synapses",
    "synapses.1",
    "trace_processor",
    "trace_processor.0.0",
    "q_proj",
    "attention",
    "output_projector.0",
]


@pytest.mark.parametrize("kind", ["forward", "pre", "backward"])
@pytest.mark.parametrize("path", HOOKED)
def test_hooks_fire_every_tick(path, kind, warnings):
    model, inputs = build("base")
    counts = []
    original, fast = copies(model, 2)
    for each in (original, ctm_fast.accelerate(fast)):
        calls = []
        part = each.get_submodule(path)
        if kind == "forward":
            part.register_forward_hook(lambda module, args, out, calls=calls: calls.append(1))
        elif kind == "pre":
            part.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        else:
            part.register_full_backward_hook(lambda module, grad_in, grad_out, calls=calls: calls.append(1))
        evaluate(each, inputs)
        counts.append(len(calls))
    assert counts[0] == counts[1] >= model.iterations
    assert warnings.messages == []


def test_hook_that_changes_the_output(warnings):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    for each in (original, fast):
        each.synapses.register_forward_hook(lambda module, args, out: 0.5 * out)
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert warnings.messages == []


class Impatient(ThoughtMachine):
    """Computes something else in its forward."""

    def forward(self, x, track=False):
        predictions, *rest = super().forward(x, track)
        return 0.5 * predictions, *rest


def test_other_forward_keeps_itself_and_says_so_once(warnings):
    model, inputs = build("base")
    model.__class__ = Impatient
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    agree(original, fast, inputs, 0.0)
    agree(original, fast, inputs, 0.0)
    assert len(warnings.messages) == 1
    assert "Impatient keeps its own forward" in warnings.messages[0]


class Fork(ThoughtMachine):
    """Gives its features together with something else, and knows a further argument."""

    def compute_features(self, x):
        return super().compute_features(x), x.mean()

    def attend(self, synchronisation, kv):
        return super().attend(synchronisation, kv[0])

    def forward(self, x, track=False, *, scale=1.0, **others):
        predictions, *rest = super().forward(x, track)
        return scale * predictions, *rest


def test_fork_that_the_fast_forward_cannot_read_goes_on(warnings):
    model, inputs = build("base")
    model.__class__ = Fork
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    agree(original, fast, inputs, 0.0)
    agree(original, fast, inputs, 0.0)
    assert len(warnings.messages) == 1
    assert (
        "Fork keeps its own forward, the fast one of the base CTM raised AttributeError"
        in warnings.messages[0]
    )


class Scaled(ThoughtMachine):
    """Knows further arguments."""

    def forward(self, x, track=False, *, scale=1.0, **others):
        predictions, *rest = super().forward(x, track)
        return scale * predictions, *rest


def test_further_arguments_run_the_original(warnings, monkeypatch):
    model, inputs = build("base")
    model.__class__ = Scaled
    ctm_fast.accelerate(model)
    plain = model(*inputs)[0]
    torch.testing.assert_close(model(*inputs, scale=2.0)[0], 2 * plain)
    torch.testing.assert_close(model(*inputs, anything=1)[0], plain)
    monkeypatch.delattr(ThoughtMachine, "think")
    torch.testing.assert_close(model(*inputs)[0], plain)
    assert warnings.messages == []


def test_first_call_leaves_no_trace():
    model, inputs = build("base", dropout=0.2)
    ctm_fast.accelerate(model)
    torch.manual_seed(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        first = tensors(model(*inputs))
        torch.manual_seed(3)
        second = tensors(model(*inputs))
    assert model.training and model.iterations == 6 and model.attention.training
    assert {
        key: torch.equal(value, before[key]) for key, value in model.state_dict().items()
    } == dict.fromkeys(before, True)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert model.kv_features.shape[0] == example().shape[0]
