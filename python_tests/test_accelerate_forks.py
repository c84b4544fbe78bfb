"""Hooks fire as before, and models that compute something else keep their own forward."""

import pickle

import pytest
import torch
from foreign_cases import SAID, agree, build, called, copies, evaluate, tensors, to
from foreign_models import ThoughtMachine, example
from small_ctm import SMALL, signs

import ctm_fast
from ctm_fast.models import ContinuousThoughtMachine

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
def test_hooks_fire_every_tick(path, kind, caplog):
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
    assert called(caplog) == ([] if path.startswith("output") else [f"{SAID[path.split('.')[0]]} (hooks)"])


def test_hook_that_changes_the_output(caplog):
    model, inputs = build("base")
    original, fast = copies(model, 2)
    for each in (original, fast):
        each.synapses.register_forward_hook(lambda module, args, out: 0.5 * out)
    agree(original, ctm_fast.accelerate(fast), inputs)
    assert called(caplog) == ["the synapses (hooks)"]


class Impatient(ThoughtMachine):
    """Computes something else in its forward."""

    def forward(self, x, track=False):
        predictions, *rest = ThoughtMachine.forward(self, x, track)
        return 0.5 * predictions, *rest


class Patient(ThoughtMachine):
    """Wraps the inherited forward: counts, remembers, and changes what it returns in training."""

    calls = 0

    def forward(self, x, track=False):
        self.calls += 1
        predictions, *rest = super().forward(x, track)
        self.seen.append(predictions.detach().sum().item())
        return predictions * (2 if self.training else 1), *rest


def test_a_wrapped_forward_keeps_its_wrapper(caplog, monkeypatch):
    model, inputs = build("base")
    model.__class__, model.seen = Patient, []
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    for mode in (True, False):
        agree(original.train(mode), fast.train(mode), inputs)
    assert fast.calls == original.calls == 2
    assert fast.seen == pytest.approx(original.seen)
    copied, expected = pickle.loads(pickle.dumps(fast)), original(*to(inputs, torch.float64))[0]
    monkeypatch.delattr(ThoughtMachine, "think")  # the published forward cannot run from here on
    for each in (fast, copied):
        torch.testing.assert_close(each(*to(inputs, torch.float64))[0], expected)
    assert type(ctm_fast.restore(fast)) is Patient
    assert caplog.messages == []


def cautious(cls):
    """A subclass that wraps the forward and redefines a method that the fast one contains."""

    class Cautious(cls):
        def compute_certainty(self, prediction):
            return 0.5 * super().compute_certainty(prediction)

        def forward(self, x, track=False):
            return super().forward(x, track)

    return Cautious


def test_a_wrapper_may_redefine_a_method_too(caplog):
    model, inputs = build("base")
    model.__class__ = cautious(ThoughtMachine)
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs)
    ours, x = cautious(ContinuousThoughtMachine)(**SMALL), signs()
    with torch.no_grad():
        ours(x)
        found, expected = ours(x), ours.published_forward(x)
    torch.testing.assert_close(found, expected)
    assert caplog.messages == []


class Rewritten(ThoughtMachine):
    """A forward of its own with the published result, and one more effect, by name."""

    effect = "calls"

    def forward(self, x, track=False):
        predictions, *rest = ThoughtMachine.forward(self, x, track)
        if self.effect == "calls":
            self.calls = getattr(self, "calls", 0) + 1
        elif self.effect == "seen":
            self.seen.append(x.shape)
        elif self.effect == "steps":
            self.steps += 1
        elif self.effect == "training" and self.training:
            predictions = 2 * predictions
        return predictions, *rest


@pytest.mark.parametrize("effect", ["calls", "seen", "steps", "training"])
def test_other_effects_keep_the_forward(effect, caplog):
    model, inputs = build("base", dropout=0.1)
    model.__class__, model.effect, model.seen = Rewritten, effect, []
    model.register_buffer("steps", torch.zeros(1))
    ctm_fast.accelerate(model)
    for _ in range(2):
        model(*inputs)
    done = {"calls": getattr(model, "calls", 0), "seen": len(model.seen), "steps": model.steps.item()}
    assert done == {"calls": 0, "seen": 0, "steps": 0} | ({effect: 2} if effect in done else {})
    assert len(caplog.messages) == 1
    reason = "computes something else" if effect == "training" else f"not write the same attributes: {effect}"
    assert reason in caplog.messages[0] and caplog.messages[0].endswith("(training mode)")
    model.eval()(*inputs)
    assert len(caplog.messages) == (1 if effect == "training" else 2)


def test_batch_norm_sees_the_first_call_once():
    model, inputs = build("qamnist")
    original, fast = copies(model, 2)
    for each in (original, ctm_fast.accelerate(fast)):
        each(*inputs)
    expected = dict(original.named_buffers())
    for name, buffer in fast.named_buffers():
        torch.testing.assert_close(buffer, expected[name], msg=name)


class Fork(ThoughtMachine):
    """Gives its features together with something else, and knows a further argument."""

    def compute_features(self, x):
        return super().compute_features(x), x.mean()

    def attend(self, synchronisation, kv):
        return super().attend(synchronisation, kv[0])

    def forward(self, x, track=False, *, scale=1.0, **others):
        predictions, *rest = super().forward(x, track)
        return scale * predictions, *rest


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Impatient, "it computes something else than the published base CTM"),
        (Fork, "the fast one of the base CTM raised AttributeError"),
    ],
)
def test_other_mathematics_keeps_its_forward_and_says_so_once(cls, reason, caplog):
    model, inputs = build("base")
    model.__class__ = cls
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    agree(original, fast, inputs, 0.0)
    agree(original, fast, inputs, 0.0)
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelname == "WARNING"
    assert f"{cls.__name__} keeps its own forward, {reason}" in caplog.messages[0]


class Scaled(ThoughtMachine):
    """Knows further arguments."""

    def forward(self, x, track=False, *, scale=1.0, **others):
        predictions, *rest = super().forward(x, track)
        return scale * predictions, *rest


def test_further_arguments_run_the_original(caplog, monkeypatch):
    model, inputs = build("base")
    model.__class__ = Scaled
    ctm_fast.accelerate(model)
    plain = model(*inputs)[0]
    torch.testing.assert_close(model(*inputs, scale=2.0)[0], 2 * plain)
    torch.testing.assert_close(model(*inputs, anything=1)[0], plain)
    monkeypatch.delattr(ThoughtMachine, "think")
    torch.testing.assert_close(model(*inputs)[0], plain)
    assert caplog.messages == []


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
