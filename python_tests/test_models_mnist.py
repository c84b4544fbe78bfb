"""The CTM of the MNIST tutorial: its keys, the fast forward, and the same parts written by somebody else."""

import copy
import math

import pytest
import torch
from foreign_cases import agree, assert_close, build, copies, evaluate
from small_ctm import pair, shapes
from torch import nn

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.models import ArgumentError, ContinuousThoughtMachineMNIST

SIZES = {
    "iterations": 3, "d_model": 20, "d_input": 8, "heads": 2, "n_synch_out": 4, "n_synch_action": 3,
    "memory_length": 5, "memory_hidden_dims": 2, "out_dims": 10,
}  # fmt: skip


def small(**changes):
    """(model after its lazy first call, its inputs)."""
    model, x = ContinuousThoughtMachineMNIST(**{**SIZES, **changes}), torch.rand(3, 1, 8, 12)
    with torch.no_grad():
        model(x)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    return model, (x,)


def test_keys_and_shapes():
    model, _ = small()
    found = {key: shape for key, shape in shapes(model).items() if "running" not in key and "num" not in key}
    assert found == {
        **pair("backbone.0", 8, 1, 3, 3), **pair("backbone.1", 8), **pair("backbone.4", 8, 8, 3, 3),
        **pair("backbone.5", 8), **pair("kv_proj.0", 8, 8), **pair("kv_proj.1", 8), **pair("q_proj", 8, 6),
        "attention.in_proj_weight": (24, 8), "attention.in_proj_bias": (24,), **pair("attention.out_proj", 8, 8),
        **pair("synapses.0", 40, 28), **pair("synapses.2", 20),
        "trace_processor.0.w1": (5, 4, 20), "trace_processor.0.b1": (1, 20, 4),
        "trace_processor.2.w1": (2, 2, 20), "trace_processor.2.b1": (1, 20, 2),
        "start_activated_state": (20,), "start_trace": (20, 5), "decay_params_action": (6,),
        "decay_params_out": (10,), **pair("output_projector.0", 10, 10),
        **{f"out_neuron_indices_{side}": (4,) for side in ("left", "right")},
        **{f"action_neuron_indices_{side}": (3,) for side in ("left", "right")},
    }  # fmt: skip


def test_fast_forward_equals_the_published_one(monkeypatch):
    model, inputs = small()
    with ctm_fast.use_backend("reference"):
        truth = evaluate(copy.deepcopy(model), inputs, torch.float64)
    monkeypatch.delattr(run, "_call")
    found = evaluate(copy.deepcopy(model), inputs, torch.float64)
    for bias in ("d backbone.0.bias", "d backbone.4.bias"):  # before a BatchNorm: rounding and nothing else
        del found[bias], truth[bias]
    assert_close(found, truth, 1e-6)


def test_first_last_needs_neurons_for_both():
    with pytest.raises(ArgumentError, match="d_model must be at least n_synch_out"):
        small(d_model=6)


class PlainPerNeuron(nn.Module):
    """One linear map per neuron and nothing else."""

    def __init__(self, in_dims, out_dims, N):
        super().__init__()
        bound = 1 / math.sqrt(in_dims + out_dims)
        self.w1 = nn.Parameter(torch.empty(in_dims, out_dims, N).uniform_(-bound, bound))
        self.b1 = nn.Parameter(torch.zeros(1, N, out_dims))

    def forward(self, x):
        return (torch.einsum("bni,ion->bno", x, self.w1) + self.b1).squeeze(-1)


def test_somebody_elses_tutorial_model_is_accelerated(monkeypatch):
    model, inputs = build("base-first-last")
    model.synapses = model.synapses[1:]
    memory, last = model.memory_length, list(model.trace_processor.modules())[-1]
    layers = [
        PlainPerNeuron(memory, 6, model.d_model),
        nn.GLU(),
        PlainPerNeuron(3, 2, model.d_model),
        nn.GLU(),
    ]
    model.trace_processor = nn.Sequential(*layers, last)
    original, fast = copies(model, 2)
    ctm_fast.accelerate(fast)
    fast(*inputs)
    monkeypatch.delattr(run, "_call")
    agree(original, fast, inputs)
