"""Foreign models with inputs for them, and what a forward and a backward of them give, by name."""

import copy
import re

import numpy as np
import torch
from foreign_models import ThoughtMachine, example
from foreign_variants import QuestionMachine, RecurrentMachine, SortingMachine

import ctm_fast
from ctm_fast.testing import cotangents, relative_error

DENSE = {"neuron_select_type": "first-last"}
SEMI_DENSE = {"neuron_select_type": "random"}
WIDE = {"d_model": 131, "d_input": 33, "heads": 3, "n_synch_out": 30, "memory_length": 17, **DENSE}
WIDE |= {"memory_hidden_dims": 9, "synapse_depth": 4, "out_dims": 70}
CASES = {
    "base": (ThoughtMachine, {}),
    "base-self-pairs": (ThoughtMachine, {"n_random_pairing_self": 2}),
    "base-first-last": (ThoughtMachine, DENSE),
    "base-random-one-head": (ThoughtMachine, {**SEMI_DENSE, "heads": 1, "d_model": 37, "d_input": 5}),
    "base-shallow": (ThoughtMachine, {"deep_nlms": False, "memory_length": 1}),
    "base-layernorm": (ThoughtMachine, {"do_layernorm_nlm": True}),
    "base-unet": (ThoughtMachine, {"synapse_depth": 3, "d_model": 40, "prediction_reshaper": (3, 2)}),
    "base-unet-two-widths": (ThoughtMachine, {**DENSE, "synapse_depth": 2}),
    "base-energy": (ThoughtMachine, {"energy_head_enabled": True}),
    "base-wide": (ThoughtMachine, WIDE),
    "base-one-tick": (ThoughtMachine, {"iterations": 1}),
    "base-memory-above-ticks": (ThoughtMachine, {"iterations": 3, "memory_length": 11}),
    "sort": (SortingMachine, {}),
    "sort-unet": (SortingMachine, {"synapse_depth": 3, "n_random_pairing_self": 2}),
    "qamnist": (QuestionMachine, DENSE),
    "qamnist-random": (QuestionMachine, {**SEMI_DENSE, "synapse_depth": 2}),
    "rl": (RecurrentMachine, {}),
    "rl-ticks-above-memory": (RecurrentMachine, {"iterations": 7, "memory_length": 4}),
    "rl-unet": (RecurrentMachine, {"synapse_depth": 2, "deep_nlms": False}),
}
SAID = {
    "synapses": "the synapses",
    "trace_processor": "the neuron-level models",
    "attention": "the attention",
    "q_proj": "the attention",
}
VARIANTS = ("base", "sort", "qamnist", "rl")


def inputs_for(model, batch=3, dtype=torch.float32):
    """Arguments of the model's forward."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    if isinstance(model, SortingMachine):
        return (random(batch, model.d_input),)
    if isinstance(model, QuestionMachine):
        digits = random(batch, 2, 1, 8, 8).repeat_interleave(2, 1)
        question = torch.tensor([1, 0, -1, -2, 3, 1]).expand(batch, -1).clone()
        return digits, question
    if isinstance(model, RecurrentMachine):
        shape = batch, model.d_model, model.memory_length
        return random(batch, 4), (random(*shape), random(*shape))
    return (example(batch, length=70 if model.d_model > 100 else 8).to(dtype),)


def build(name, batch=3, seed=0, **changes):
    """(model after its lazy first call, inputs); every parameter away from its start, everything seeded."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    kind, sizes = CASES[name]
    model = kind(**{**sizes, **changes})
    inputs = inputs_for(model, batch)
    with torch.no_grad():
        model(*inputs)
        for key, parameter in model.named_parameters():
            if "decay" in key:
                parameter.uniform_(0.01, 1.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model, inputs


def tensors(found, name="out"):
    """A nested return value as a flat dictionary of tensors; arrays too."""
    if isinstance(found, tuple | list):
        return {k: v for i, item in enumerate(found) for k, v in tensors(item, f"{name}.{i}").items()}
    return {name: torch.as_tensor(found)}


def to(value, dtype):
    """Floating-point tensors of nested arguments in ``dtype``, as leaves that require a gradient."""
    if isinstance(value, tuple | list):
        return tuple(to(item, dtype) for item in value)
    return value.detach().to(dtype).requires_grad_() if value.is_floating_point() else value


def moved(value, device):
    """Nested arguments on another device."""
    if isinstance(value, tuple | list):
        return tuple(moved(item, device) for item in value)
    return value.to(device)


def evaluate(model, inputs, dtype=torch.float32):
    """Outputs, and gradients of every parameter and floating-point input, for one fixed cotangent."""
    model = model.to(dtype)
    inputs = to(inputs, dtype)
    given = {key: x for key, x in tensors(inputs, "in").items() if x.requires_grad}
    leaves = dict(model.named_parameters()) | given
    outputs = tensors(model(*inputs))
    wanted = {name: y for name, y in outputs.items() if y.requires_grad}
    upward = cotangents(wanted.values())
    grads = torch.autograd.grad([*wanted.values()], [*leaves.values()], upward, allow_unused=True)
    found = {name: y.detach() for name, y in outputs.items()}
    grads = [None if _vanishes(key) else g for key, g in zip(leaves, grads, strict=True)]
    return found | {f"d {k}": g for k, g in zip(leaves, grads, strict=True) if g is not None}


def _vanishes(key):
    """Biases in front of a BatchNorm: their gradient is rounding and nothing else."""
    return key in ("backbone_digit.layers.0.bias", "backbone_digit.layers.4.bias")


def called(caplog):
    """What the only messages, warnings that say which parts every tick calls, name."""
    found = [
        re.fullmatch("ctm_fast: every tick calls (.*), outside the native loop", m) for m in caplog.messages
    ]
    assert all(found) and all(record.levelname == "WARNING" for record in caplog.records)
    return [match[1] for match in found]


def copies(model, count):
    """Independent copies."""
    return [copy.deepcopy(model) for _ in range(count)]


def pair(name, **changes):
    """(original, accelerated, inputs)."""
    model, inputs = build(name, **changes)
    original, fast = copies(model, 2)
    return original, ctm_fast.accelerate(fast), inputs


def assert_close(found, truth, tolerance=1e-4):
    """Every tensor of nested values, or of dictionaries, within a relative error."""
    if not isinstance(truth, dict):
        found, truth = tensors(found), tensors(truth)
    assert found.keys() == truth.keys()
    errors = {key: relative_error(found[key], truth[key]) for key in truth if not _vanishes(key)}
    assert {key: error for key, error in errors.items() if not error <= tolerance} == {}


def agree(original, fast, inputs, tolerance=1e-11):
    """Outputs and gradients in float64 (single precision where a model gives it); returns the second ones."""
    truth, found = evaluate(original, inputs, torch.float64), evaluate(fast, inputs, torch.float64)
    single = {key for key, y in truth.items() if y.dtype == torch.float32}
    assert [y.dtype for y in found.values()] == [y.dtype for y in truth.values()]
    for keys, limit in ((single, max(tolerance, 1e-6)), (truth.keys() - single, tolerance)):
        assert_close({key: found[key] for key in keys}, {key: truth[key] for key in keys}, limit)
    return found


def loss_of(found):
    """A scalar of every output."""
    return sum(y.double().square().sum() for y in tensors(found).values())


def gradients(model):
    """Gradients that a backward pass left, by name."""
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
