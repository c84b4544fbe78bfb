"""nn.TickLoop: against its ticks written out, states, modules of the user's own, bits, errors."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ctm_fast
from ctm_fast.loop import run
from ctm_fast.nn import NeuronLevelModels, SynapseUNET, TickLoop
from ctm_fast.ops.sync import reference as sync_reference
from ctm_fast.testing import cotangents, relative_error

ATTENDING = {"heads": 2, "n_synch": 5}
CASES = {
    "tokens": ({**ATTENDING}, (3, 7, 8), 4),
    "tokens-unet": ({**ATTENDING, "synapse_depth": 3, "selection": "random"}, (2, 5, 8), 3),
    "tokens-one-head-one-token": ({"heads": 1, "n_synch": 3, "selection": "last"}, (1, 1, 8), 6),
    "constant": ({}, (3, 8), 4),
    "constant-unet-shallow": ({"synapse_depth": 2, "memory_hidden_dims": 0}, (5, 8), 2),
    "one-per-tick": ({}, (4, 3, 8), None),
    "one-per-tick-unet": ({"synapse_depth": 2}, (3, 2, 8), 3),
    "long-memory": ({"memory_length": 9}, (17, 8), 3),
    "wide": ({"d_model": 131, "memory_length": 1, "memory_hidden_dims": 1}, (2, 8), 3),
}


def build(name, dtype=torch.float64, **changes):
    """(module, inputs, ticks)."""
    sizes, shape, ticks = CASES[name]
    torch.manual_seed(0)
    loop = TickLoop(
        **{"d_model": 22, "d_input": 8, "memory_length": 4, "memory_hidden_dims": 3, **sizes, **changes}
    )
    with torch.no_grad():
        for key, p in loop.named_parameters():
            p.add_(torch.rand_like(p) if "decay" in key else 0.05 * torch.randn_like(p))
    return loop.to(dtype), torch.randn(shape, dtype=dtype, requires_grad=True), ticks


def by_hand(loop, inputs, ticks, state=None):
    """Post- and pre-activations (T, B, D), tick by tick in plain PyTorch."""
    batch = inputs.shape[-2] if not loop.heads else inputs.shape[0]
    z, history = state or (
        loop.start_activated_state.expand(batch, -1), loop.start_history.expand(batch, -1, -1),
    )  # fmt: skip
    post, pre, states = [], [], [z]
    for t in range(ticks or len(inputs)):
        x = inputs[t] if inputs.dim() == 3 and not loop.heads else inputs
        if loop.heads:
            pairs, decay = loop.synchronisation.pair_indices(), loop.synchronisation.decay_params
            zeros = z.new_zeros(batch, len(decay)), z.new_zeros(len(decay))
            s = sync_reference.sync(torch.stack(states), *pairs, decay, *zeros, True)[0]
            query = loop.q_proj(s).unsqueeze(1)
            x = loop.attention(query, inputs, inputs, need_weights=False)[0].squeeze(1)
        pre.append(loop.synapses(torch.cat((x, z), -1)))
        history = torch.cat((history[:, :, 1:], pre[-1].unsqueeze(-1)), -1)
        z = loop.neuron_level_models(history)
        post.append(z)
        states.append(z)
    return torch.stack(post), torch.stack(pre), z, history


def flat(out):
    return out.activations, out.pre_activations, *out.state


def graded(loop, inputs, outputs):
    leaves = {"inputs": inputs, **dict(loop.named_parameters())}
    grads = torch.autograd.grad(outputs, [*leaves.values()], cotangents(outputs), allow_unused=True)
    return dict(zip(leaves, grads, strict=True)) | {f"out {i}": y.detach() for i, y in enumerate(outputs)}


def worst(found, truth):
    assert found.keys() == truth.keys()
    assert [k for k, g in found.items() if g is None] == [k for k, g in truth.items() if g is None]
    return max(relative_error(found[key], truth[key]) for key in truth if truth[key] is not None)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_ticks_written_out(name, monkeypatch):
    loop, inputs, ticks = build(name)
    truth = graded(loop, inputs, by_hand(loop, inputs, ticks))
    with ctm_fast.use_backend("reference"):
        assert worst(graded(loop, inputs, flat(loop(inputs, ticks))), truth) < 1e-10
    monkeypatch.delattr(run, "_call")
    assert worst(graded(loop, inputs, flat(loop(inputs, ticks))), truth) < 1e-10


@pytest.mark.parametrize("name", ["tokens-unet", "wide"])
def test_every_simd_level(name, simd_level):
    loop, inputs, ticks = build(name, torch.float32)
    found = graded(loop, inputs, flat(loop(inputs, ticks)))
    exact = copy.deepcopy(loop).double()
    inputs = inputs.detach().double().requires_grad_()
    assert worst(found, graded(exact, inputs, by_hand(exact, inputs, ticks))) < 3e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["tokens", "tokens-unet", "one-per-tick-unet", "long-memory"])
def test_the_same_bits_on_every_run(name, threads):
    loop, inputs, ticks = build(name, torch.float32, dropout=0.2, d_model=70)
    before, found = torch.get_num_threads(), []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            torch.manual_seed(6)
            found.append(graded(loop, inputs, flat(loop(inputs, ticks))))
    finally:
        torch.set_num_threads(before)
    first, again, alone = found
    assert [key for key, y in first.items() if y is not None and not torch.equal(y, again[key])] == []
    assert worst(first, alone) < 3e-5  # the vendor's matrix products split their sums by threads


def test_attention_weights_only_where_asked():
    loop, inputs, ticks = build("tokens")
    assert loop(inputs, ticks).attention is None
    weights = loop(inputs, ticks, track=True).attention
    assert weights.shape == (4, 3, 2, 1, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 3, 2, 1, dtype=torch.float64))
    with ctm_fast.use_backend("reference"):
        torch.testing.assert_close(loop(inputs, ticks, track=True).attention, weights)


def test_two_halves_equal_the_whole():
    loop, inputs, _ = build("one-per-tick")
    whole = loop(inputs)
    first = loop(inputs[:1])
    second = loop(inputs[1:], state=first.state)
    halves = (
        torch.cat((first.activations, second.activations)),
        torch.cat((first.pre_activations, second.pre_activations)),
        *second.state,
    )
    assert worst(graded(loop, inputs, halves), graded(loop, inputs, flat(whole))) < 1e-12


REACHED = {
    "last-activations": lambda post, pre, z, history: [z],
    "first-activations": lambda post, pre, z, history: [post[0]],
    "middle-pre-activations": lambda post, pre, z, history: [pre[1]],
    "history": lambda post, pre, z, history: [history],
    "both-of-one-tick": lambda post, pre, z, history: [post[1], pre[1]],
}


@pytest.mark.parametrize("name", ["tokens-unet", "one-per-tick", "long-memory"])
@pytest.mark.parametrize("reached", REACHED)
def test_only_some_ticks_reach_the_loss(name, reached):
    loop, inputs, ticks = build(name)
    truth = graded(loop, inputs, REACHED[reached](*by_hand(loop, inputs, ticks)))
    found = graded(loop, inputs, REACHED[reached](*flat(loop(inputs, ticks))))
    for key, gradient in truth.items():
        if gradient is None:  # where nothing depends on a part, the loop may say zero
            truth[key] = torch.zeros_like(found[key]) if found[key] is not None else None
    assert worst(found, truth) < 1e-10


def test_recomputed_synapses():
    loop, inputs, ticks = build("tokens-unet", dropout=0.3)
    found = []
    for recompute in (False, True):
        loop.recompute_synapses = recompute
        torch.manual_seed(2)
        found.append(graded(loop, inputs, flat(loop(inputs, ticks))))
    assert worst(*found) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["tokens", "constant", "one-per-tick"])
def test_strides_of_the_inputs_do_not_matter(name, dropout):
    loop, inputs, ticks = build(name, dropout=dropout)
    found = []
    for x in (inputs, inputs.mT.contiguous().mT, inputs.repeat_interleave(3, -1)[..., ::3]):
        torch.manual_seed(2)
        found.append(loop(x, ticks).activations)
    assert all(relative_error(other, found[0]) < 1e-12 for other in found[1:])


def test_dropout_in_training_only():
    loop, inputs, ticks = build("tokens", dropout=0.5)
    assert not torch.equal(loop(inputs, ticks).activations, loop(inputs, ticks).activations)
    loop.eval()
    assert torch.equal(loop(inputs, ticks).activations, loop(inputs, ticks).activations)


def test_dropout_of_the_neuron_level_models_alone():
    loop, inputs, ticks = build("constant", dropout_nlm=0.5)
    found = loop(inputs, ticks)
    same = loop(inputs, ticks)
    assert torch.equal(found.pre_activations[0], same.pre_activations[0])
    assert not torch.equal(found.activations[0], same.activations[0])


class Mixed(nn.Module):
    """Synapses of somebody's own."""

    def __init__(self, width, neurons):
        super().__init__()
        self.inner = nn.Linear(width + neurons, neurons)

    def forward(self, x):
        return torch.tanh(self.inner(x))


@pytest.mark.parametrize("own", ["synapses", "neuron_level_models", "both"])
@pytest.mark.parametrize("name", ["tokens", "constant"])
def test_own_modules(name, own):
    modules = {
        "synapses": Mixed(8, 22),
        "neuron_level_models": NeuronLevelModels(22, 4, 3, do_layernorm=True),
    }
    chosen = modules if own == "both" else {own: modules[own]}
    loop, inputs, ticks = build(name, **chosen)
    assert all(getattr(loop, key) is module for key, module in chosen.items())
    truth = graded(loop, inputs, by_hand(loop, inputs, ticks))
    assert worst(graded(loop, inputs, flat(loop(inputs, ticks))), truth) < 1e-10


def test_parameters_are_there_before_the_first_call():
    loop, inputs, ticks = build("tokens-unet")
    assert isinstance(loop.synapses, SynapseUNET) and loop.synapses.training
    optimiser = torch.optim.SGD(loop.parameters(), lr=0.1)
    before = {key: p.detach().clone() for key, p in loop.named_parameters()}
    loop(inputs, ticks).activations.square().sum().backward()
    optimiser.step()
    assert [key for key, p in loop.named_parameters() if torch.equal(p, before[key])] == []


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda loop: pickle.loads(pickle.dumps(loop))], ids=["deepcopy", "pickle"]
)
def test_copies(clone):
    loop, inputs, ticks = build("tokens")
    assert torch.equal(clone(loop)(inputs, ticks).activations, loop(inputs, ticks).activations)


def test_autocast_and_bfloat16():
    loop, inputs, ticks = build("tokens", torch.float32)
    truth = loop(inputs, ticks).activations
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(loop(inputs, ticks).activations, truth) < 0.05
    low = loop.bfloat16()(inputs.bfloat16(), ticks).activations
    assert low.dtype == torch.bfloat16 and relative_error(low, truth) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"d_input": -2}, "d_input must be at least 1, got -2"),
        ({"memory_length": 0}, "memory_length must be at least 1, got 0"),
        ({"synapse_depth": 0}, "synapse_depth must be at least 1, got 0"),
        ({"memory_hidden_dims": -1}, "memory_hidden_dims must be at least 0, got -1"),
        ({"heads": -1}, "heads must be at least 0, got -1"),
        ({"heads": 3, "n_synch": 2}, "heads must divide d_input=8, got 3"),
        ({"heads": 2}, "n_synch must be at least 1 for heads=2, got 0"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=f"TickLoop: {message}"):
        TickLoop(**{"d_model": 6, "d_input": 8, "memory_length": 2, **changes})


@pytest.mark.parametrize(
    ("name", "shape", "ticks", "message"),
    [
        ("tokens", (3, 8), 4, r"inputs must be \(B, L, d\) with d = 8, got \(3, 8\)"),
        ("tokens", (3, 7, 9), 4, r"inputs must be \(B, L, d\) with d = 8, got \(3, 7, 9\)"),
        ("constant", (3, 7), 4, r"inputs must be \(B, d\) or \(T, B, d\) with d = 8, got \(3, 7\)"),
        ("constant", (8,), 4, r"inputs must be \(B, d\) or \(T, B, d\) with d = 8, got \(8,\)"),
        ("constant", (3, 8), None, "ticks must be at least 1, got None"),
        ("tokens", (3, 7, 8), 0, "ticks must be at least 1, got 0"),
        ("one-per-tick", (4, 3, 8), 3, r"ticks must be the 4 of inputs \(T, B, d\), got 3"),
    ],
)
def test_wrong_inputs(name, shape, ticks, message):
    loop, _, _ = build(name)
    with pytest.raises(ValueError, match=f"TickLoop: {message}"):
        loop(torch.zeros(shape, dtype=torch.float64), ticks)


def test_wrong_states():
    loop, inputs, ticks = build("constant")
    z, history = loop(inputs, ticks).state
    with pytest.raises(ValueError, match=r"state\[0\] must have shape \(3, 22\), got \(2, 22\)"):
        loop(inputs, ticks, state=(z[:2], history))
    with pytest.raises(ValueError, match=r"state\[1\] must have shape \(3, 22, 4\), got \(3, 22, 3\)"):
        loop(inputs, ticks, state=(z, history[:, :, 1:]))
