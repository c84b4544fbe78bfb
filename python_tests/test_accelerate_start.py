"""Forks that a model at its start, where decays and biases are 0, does not tell from the published one."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import agree, assert_close, build, copies, evaluate, tensors
from foreign_models import PerNeuronLinear, ThoughtMachine, example
from foreign_variants import SortingMachine
from torch import nn
from torch.nn.utils import parametrize

import ctm_fast

published = ThoughtMachine.forward


class LateBias(PerNeuronLinear):
    """Adds the bias after the division."""

    def forward(self, x):
        return (torch.einsum("bni,ion->bno", x, self.w1) / self.T + self.b1).squeeze(-1)


class LateBiases(ThoughtMachine):
    """Neuron-level models of its own."""

    def get_nlms(self, deep, norm, hidden, dropout):
        nlms = super().get_nlms(deep, norm, hidden, dropout)
        for part in nlms.modules():
            if type(part) is PerNeuronLinear:
                part.__class__ = LateBias
        return nlms


class InverseDecay(ThoughtMachine):
    """Decays hyperbolically."""

    def clamped_factors(self, kind, batch):
        decay = getattr(self, f"decay_params_{kind}")
        decay.data = torch.clamp(decay, 0, 15)
        return (1 / (1 + decay)).unsqueeze(0).repeat(batch, 1)


class FreeDecay(ThoughtMachine):
    """Does not bound its decays."""

    def clamped_factors(self, kind, batch):
        return torch.exp(-getattr(self, f"decay_params_{kind}")).unsqueeze(0).repeat(batch, 1)


class LowDecay(ThoughtMachine):
    """Bounds its decays otherwise, within the graph."""

    def clamped_factors(self, kind, batch):
        return (
            torch.exp(-torch.clamp(getattr(self, f"decay_params_{kind}"), 0, 4)).unsqueeze(0).repeat(batch, 1)
        )


class Truncated(ThoughtMachine):
    """Cuts the gradient between ticks."""

    def think(self, seen, z, trace):
        return super().think(seen, z.detach(), trace)


class GradientScaled(ThoughtMachine):
    """Lets a tenth of the gradient through."""

    def think(self, seen, z, trace):
        return super().think(0.1 * seen + 0.9 * seen.detach(), z, trace)


class Gated(ThoughtMachine):
    """Has a residual that starts with nothing."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.gate, self.adapter = nn.Parameter(torch.zeros(1)), nn.Linear(self.d_model, self.d_model)

    def think(self, seen, z, trace):
        z, trace = super().think(seen, z, trace)
        return z + self.gate * self.adapter(z), trace


class Fainter(ThoughtMachine):
    """Attends a little less."""

    def attend(self, synchronisation, kv):
        seen, weights = super().attend(synchronisation, kv)
        return 0.9 * seen, weights


class ShortSighted(ThoughtMachine):
    """Sees half of the tokens."""

    def attend(self, synchronisation, kv):
        return super().attend(synchronisation, kv[:, ::2])


FORKS = [
    LateBiases,
    InverseDecay,
    FreeDecay,
    LowDecay,
    Truncated,
    GradientScaled,
    Gated,
    Fainter,
    ShortSighted,
]


def fresh(cls: type, **sizes: Any) -> tuple[Any, tuple[torch.Tensor]]:
    """A model after its lazy first call, otherwise at its start, and its input."""
    torch.manual_seed(0)
    np.random.seed(0)
    model, x = cls(**sizes), example(3)
    with torch.no_grad():
        model(x)
    return model, (x,)


def trained_away(model: nn.Module) -> None:
    """Parameters far from their start, decays on both sides of their bounds."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise) if "decay" not in name else parameter.copy_(3 * noise + 2)
            if name.endswith(".T"):
                parameter.fill_(1.7)


@pytest.mark.parametrize("cls", [*FORKS, ThoughtMachine])
def test_models_give_their_own_numbers_from_the_start_and_later(cls, caplog):
    model, inputs = fresh(cls)
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    agree(original, fast, inputs)
    for each in (original, fast):
        trained_away(each)
    agree(original, fast, inputs)
    assert (caplog.messages == []) == (cls is ThoughtMachine)


class Dropping(ThoughtMachine):
    """Has dropout of its own on what it saw."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.drop = nn.Dropout(0.5)

    def attend(self, synchronisation, kv):
        seen, weights = super().attend(synchronisation, kv)
        return self.drop(seen), weights


class DroppingSort(SortingMachine):
    """Has dropout of its own on its input."""

    def forward(self, x, track=False):
        return SortingMachine.forward(self, nn.functional.dropout(x, 0.5, self.training), track)


@pytest.mark.parametrize("cls", [Dropping, DroppingSort])
def test_dropout_of_a_forks_own_is_kept(cls, caplog):
    model, inputs = fresh(cls) if cls is Dropping else build("sort")
    if cls is DroppingSort:
        model.__class__ = cls
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    for _ in range(2):
        found = []
        for each in (original, fast):
            torch.manual_seed(7)
            found.append(each(*inputs))
        assert_close(*found, 0.0)
    assert "computes something else" in caplog.messages[0]
    assert_close(fast.eval()(*inputs), original.eval()(*inputs))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_stays_without(guard):
    model, inputs = fresh(type("Guarded", (ThoughtMachine,), {"forward": guard()(published)}))
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    for _ in range(2):
        assert_close(fast(*inputs), original(*inputs), 0.0)
        assert not fast(*inputs)[0].requires_grad


RETURNS = {
    "dict": lambda found: {"predictions": found[0]},
    "none": lambda found: (*found[:2], None),
    "text": lambda found: (*found, "done"),
    "longer": lambda found: (*found, found[0]),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_other_returns_are_kept(kind, caplog):
    def forward(self, x, track=False):
        return RETURNS[kind](published(self, x, track))

    model, inputs = fresh(type("Returning", (ThoughtMachine,), {"forward": forward}))
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    expected, found = original(*inputs), fast(*inputs)
    assert type(found) is type(expected) and len(found) == len(expected)
    assert "computes something else" in caplog.messages[0]


def test_all_random_generators_are_left_alone():
    model, inputs = fresh(ThoughtMachine, dropout=0.2)
    ctm_fast.accelerate(model)
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    with torch.no_grad():
        model.eval()(*inputs)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


class Reduced(ThoughtMachine):
    """Pickles itself otherwise."""

    lock: Any = None

    def __reduce__(self):
        return _rebuilt, (self.state_dict(),)


def _rebuilt(state: Any) -> Reduced:
    made = Reduced()
    made.load_state_dict(state)
    return made


def test_pickling_of_a_forks_own():
    model, inputs = fresh(Reduced)
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    fast.lock = lambda: None  # what no pickle takes
    again = pickle.loads(pickle.dumps(fast))
    assert type(again) is type(fast) and again.lock is None
    agree(original, again, inputs)


class Positive(nn.Module):
    """A parametrization."""

    def forward(self, x):
        return 20 * torch.exp(x)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_parametrizations_of_the_model_itself(first):
    model, inputs = fresh(ThoughtMachine)
    original, fast = copies(model, 2)
    if not first:
        fast(*ctm_fast.accelerate(fast) and inputs)
    for each in (original, fast):
        parametrize.register_parametrization(each, "decay_params_action", Positive())
    ctm_fast.accelerate(fast)
    agree(original, fast, inputs)
    ctm_fast.restore(fast)
    for each in (original, fast):
        parametrize.remove_parametrizations(each, "decay_params_action")
    assert type(fast) is ThoughtMachine
    agree(original, fast, inputs)


class Named(ThoughtMachine):
    """Takes names that nobody passes."""

    def forward(self, x, **_names):
        return published(self, x)


class Starred(ThoughtMachine):
    """Takes anything."""

    def forward(self, *args):
        return published(self, *args)


@pytest.mark.parametrize(("cls", "is_fast"), [(Named, True), (Starred, False)])
def test_signatures_without_names(cls, is_fast, caplog, monkeypatch):
    model, inputs = fresh(cls)
    original, fast = copies(model, 2)
    expected = evaluate(original, inputs)
    assert_close(evaluate(ctm_fast.accelerate(fast), inputs), expected)
    assert len(caplog.messages) == (not is_fast)
    monkeypatch.setattr(ThoughtMachine, "think", None)
    if is_fast:
        assert tensors(fast(*inputs))
    else:
        assert "takes fewer arguments by name" in caplog.messages[0]
