"""Inputs at the edge: nothing to see, strange strides and dtypes, sizes that do not fit, broken parameters."""

import pytest
import torch
from foreign_cases import assert_close, build, copies, pair, tensors

import ctm_fast

EDGES = {
    "one-token": ("base", lambda x: (x[:, :1],)),
    "no-token": ("base", lambda x: (x[:, :0],)),
    "no-digits": ("qamnist", lambda x, z: (x[:, :0], z)),
    "no-question": ("qamnist", lambda x, z: (x, z[:, :0])),
    "no-digits-no-question": ("qamnist", lambda x, z: (x[:, :0], z[:, :0])),
    "images-that-change-every-tick": ("qamnist", lambda x, z: (x + torch.arange(4).view(1, 4, 1, 1, 1), z)),
    "strided": ("sort", lambda x: (x.repeat_interleave(2, 1)[:, ::2],)),
    "expanded": ("sort", lambda x: (x[:1].expand(4, -1),)),
    "half": ("sort", lambda x: (x.half(),)),
    "strided-state": ("rl", lambda x, h: (x, tuple(y.mT.contiguous().mT for y in h))),
    "state-as-list": ("rl", lambda x, h: (x, list(h))),
    "no-environments": ("rl", lambda x, h: (x[:0], tuple(y[:0] for y in h))),
}


@pytest.mark.parametrize("track", [False, True], ids=["plain", "tracked"])
@pytest.mark.parametrize("edge", EDGES)
def test_edge(edge, track, caplog):
    name, change = EDGES[edge]
    original, fast, inputs = pair(name)
    inputs = change(*inputs)
    truth, found = tensors(original.eval()(*inputs, track)), tensors(fast.eval()(*inputs, track))
    described = [[(y.shape, y.dtype) for y in found.values()], [(y.shape, y.dtype) for y in truth.values()]]
    assert described[0] == described[1]
    assert_close(found, truth, 1e-3 if edge == "half" else 1e-5)
    assert caplog.messages == []


def test_no_answering_ticks():
    original, fast, inputs = pair("qamnist", iterations_for_answering=0)
    assert_close(fast(*inputs), original(*inputs))


WRONG = {
    "one-number-less": ("sort", lambda x: (x[:, 1:],)),
    "double-numbers": ("sort", lambda x: (x.double(),)),
    "three-dimensions": ("sort", lambda x: (x[None],)),
    "fewer-questions": ("qamnist", lambda x, z: (x, z[:2])),
    "question-out-of-range": ("qamnist", lambda x, z: (x, z + 100)),
    "question-of-floats": ("qamnist", lambda x, z: (x, z.float())),
    "fewer-states": ("rl", lambda x, h: (x, tuple(y[:1] for y in h))),
    "shorter-history": ("rl", lambda x, h: (x, (h[0][:, :, 1:], h[1]))),
    "fewer-neurons": ("rl", lambda x, h: (x, tuple(y[:, 1:] for y in h))),
}


@pytest.mark.parametrize("when", ["first-call", "later"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_raise_as_in_the_original(case, when):
    name, change = WRONG[case]
    original, fast, inputs = pair(name)
    if when == "later":
        fast(*inputs)
    wrong = change(*inputs)
    with pytest.raises((RuntimeError, IndexError)) as truth:
        original(*wrong)
    with pytest.raises(truth.type):
        fast(*wrong)


def spoil(model, key, value):
    with torch.no_grad():
        model.get_parameter(key)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["start_trace", "synapses.1.weight", "decay_params_out", "q_proj.bias"])
def test_broken_parameters_break_the_same_values(key, value, caplog):
    model, inputs = build("base")
    spoil(model, key, value)
    original, fast = copies(model, 2)
    truth, found = tensors(original(*inputs)), tensors(ctm_fast.accelerate(fast)(*inputs))
    assert all(torch.equal(found[k].isnan(), truth[k].isnan()) for k in truth)
    assert_close({k: y.nan_to_num() for k, y in found.items()}, {k: y.nan_to_num() for k, y in truth.items()})
    assert caplog.messages == []


@pytest.mark.parametrize("kind", ["action", "out"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_broken_wiring_raises(kind, side):
    model, inputs = build("base")
    ctm_fast.accelerate(model)(*inputs)
    getattr(model, f"{kind}_neuron_indices_{side}")[0] = model.d_model
    with pytest.raises(IndexError):
        model(*inputs)


def misfit(model, part):
    if part == "norm":
        model.synapses[3] = torch.nn.LayerNorm(model.d_model + 1)
    elif part == "linear":
        model.synapses[1] = torch.nn.Linear(9, 2 * model.d_model)
    elif part == "query":
        model.q_proj = torch.nn.Linear(3, model.d_input)
    else:
        model.start_trace = torch.nn.Parameter(model.start_trace[:, 1:])


@pytest.mark.parametrize("part", ["norm", "linear", "query", "start"])
def test_parts_that_do_not_fit_raise(part):
    model, inputs = build("base")
    ctm_fast.accelerate(model)(*inputs)
    misfit(model, part)
    with pytest.raises((RuntimeError, ValueError)):
        model(*inputs)
