"""The baselines compute what the published forward computes, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ctm_fast
from bench.baselines import compiled, ctm, nlm, ntm, rl, sync
from ctm_fast.models import (
    Agent,
    ContinuousThoughtMachine,
    ContinuousThoughtMachineRL,
    ContinuousThoughtMachineSORT,
)
from ctm_fast.nn.nlm import NeuronLevelModels
from ctm_fast.ops.sync import reference

SMALL: dict[str, Any] = {
    "iterations": 4, "d_model": 12, "synapse_depth": 2, "memory_length": 3, "deep_nlms": True,
    "memory_hidden_dims": 2, "do_layernorm_nlm": False,
}  # fmt: skip


def build_base(selection="random-pairing"):
    model = ContinuousThoughtMachine(
        **SMALL, d_input=8, heads=2, n_synch_out=5, n_synch_action=4, out_dims=6, prediction_reshaper=[3, 2],
        backbone_type="none", positional_embedding_type="none", neuron_select_type=selection,
    )  # fmt: skip
    return model, (torch.randn(3, 7, 5).requires_grad_(),)


def build_sort():
    model = ContinuousThoughtMachineSORT(
        **SMALL, d_input=5, heads=0, n_synch_out=4, n_synch_action=0, out_dims=6, backbone_type="none",
        positional_embedding_type="none",
    )  # fmt: skip
    return model, (torch.randn(3, 5).requires_grad_(),)


def ready(model, inputs):
    """Lazy sizes known, decays off their starting point."""
    with torch.no_grad():
        model(*inputs)
        for name, parameter in model.named_parameters():
            if "decay" in name:
                parameter.uniform_(0, 0.7)
    return model, inputs


def values_and_gradients(run, model, inputs):
    outputs = [x for x in run(model, *inputs) if x is not None]
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in outputs)
    wanted = [*model.parameters(), *(x for x in inputs if x.requires_grad)]
    return [*outputs, *torch.autograd.grad(loss, wanted)]


def published(model, x):
    with ctm_fast.use_backend("reference"):
        return model(x)


@pytest.mark.parametrize("selection", ["first-last", "random", "random-pairing"])
@pytest.mark.parametrize("run", [ctm.base, compiled.base], ids=["strong eager", "tick body"])
def test_base(selection, run):
    model, inputs = ready(*build_base(selection))
    torch.testing.assert_close(
        values_and_gradients(run, model, inputs), values_and_gradients(published, model, inputs)
    )


@pytest.mark.parametrize("run", [ctm.sort, compiled.sort], ids=["strong eager", "tick body"])
def test_sort(run):
    model, inputs = ready(*build_sort())
    torch.testing.assert_close(
        values_and_gradients(run, model, inputs), values_and_gradients(published, model, inputs)
    )


def test_rl_steps():
    recurrent = ContinuousThoughtMachineRL(
        **{**SMALL, "synapse_depth": 1}, d_input=6, n_synch_out=3, backbone_type="classic-control-backbone"
    )
    agent = Agent(recurrent, 2)
    x, done = torch.randn(3 * 2, 4), torch.tensor([0.0, 0, 1, 0, 0, 1])
    state = agent.get_initial_state(2)
    agent.get_states(x, state, done)
    with torch.no_grad():
        recurrent.decay_params_out.uniform_(0, 0.7)

    def flat(run):
        features, state = run()
        loss = sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in (features, *state))
        gradients = torch.autograd.grad(loss, list(recurrent.parameters()))
        return [features, *state, *gradients]

    with ctm_fast.use_backend("reference"):
        expected = flat(lambda: agent.get_states(x, agent.get_initial_state(2), done))
    found = flat(lambda: rl.steps(agent, x, agent.get_initial_state(2), done))
    torch.testing.assert_close(found, expected)


def test_strong_eager_nlm():
    models = NeuronLevelModels(6, 4, 3)
    history = torch.randn(5, 6, 4)
    found = nlm.apply(nlm.permute(*nlm.weights(models)), history.transpose(0, 1))
    torch.testing.assert_close(found.t(), models(history))


def test_strong_eager_nlm_drops_in_training_only():
    model, _ = build_base()
    model.trace_processor[0][0].dropout = torch.nn.Dropout(0.25)
    assert ctm.nlm_dropout(model) == 0.25
    assert ctm.nlm_dropout(model.eval()) == 0.0


def test_strong_eager_sync():
    z, decay = torch.randn(6, 3, 8), torch.rand(5)
    left, right = torch.randint(8, (2, 5))
    expected, *_ = reference.sync(z, left, right, decay, torch.zeros(3, 5), torch.zeros(5))
    torch.testing.assert_close(sync.all_ticks(z, left, right, decay), expected)
    recurrence = sync.Recurrence(left, right, decay)
    ticks = torch.stack([recurrence.add(activations.t()).t() for activations in z])
    torch.testing.assert_close(ticks, expected)


@pytest.mark.parametrize("step", [ntm.usual, ntm.strong])
@pytest.mark.parametrize("heads", [(1, 1), (2, 3)], ids=["one", "several"])
def test_plain_ntm_memory(step, heads):
    layout = ntm.layout(*heads, width=5)
    memory, interface = torch.randn(2, 9, 5), torch.randn(4, 2, layout.size)
    read, write = (torch.randn(2, n, 9).softmax(-1) for n in heads)
    leaves = [x.requires_grad_() for x in (memory, interface, read, write)]
    expected = ctm_fast.ops.ntm_sequence(*leaves, layout=layout, backend="reference")
    found = ntm.run(step, interface, (memory, read, write), layout)
    grads = (torch.autograd.grad([y.square().sum() for y in ys], leaves) for ys in (found, expected))
    for a, b in zip((*found, *next(grads)), (*expected, *next(grads)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
