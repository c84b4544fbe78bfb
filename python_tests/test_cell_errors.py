"""Recurrent cells and inputs that the engine refuses, in one sentence."""

import numpy as np
import pytest
import torch
from cell_cases import build
from torch import nn
from torch.nn.utils import parametrizations

import ctm_fast

NAMES = ["lstm", "adaptive-rnn"]


def refuses(error, message):
    """The error with this whole sentence."""
    return pytest.raises(error, match=f"^Engine: {message}$")


@pytest.mark.parametrize("name", NAMES)
def test_training_mode(name):
    model, x = build(name)
    with refuses(ValueError, r"model must be in eval mode \(model.eval\(\)\), got one in training mode"):
        ctm_fast.Engine(model.train(), x)


@pytest.mark.parametrize("name", NAMES)
def test_examples_that_are_not_one_tensor(name):
    model, x = build(name)
    for example, found in (((), ""), ((x, x), "Tensor, Tensor")):
        with refuses(TypeError, rf"example_inputs must be one tensor, got \({found}\)"):
            ctm_fast.Engine(model, example)
    with refuses(ValueError, r"example_inputs must have shape \(T, B, I\) or \(B, I\), got \(6,\)"):
        ctm_fast.Engine(model, x[0, 0])
    with refuses(ValueError, r"example_inputs must be what the model takes, got shape \(4, 3, 5\): .*"):
        ctm_fast.Engine(model, x[..., 1:])
    with refuses(TypeError, "example_inputs must be tensors or arrays, got NoneType"):
        ctm_fast.Engine(model, None)
    assert np.array_equal(
        ctm_fast.Engine(model, x.numpy().astype(float))(x).output, ctm_fast.Engine(model, x)(x).output
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_threads(threads):
    model, x = build("lstm")
    with refuses(ValueError, f"threads must be 1 for a model of kind ntm, got {threads}"):
        ctm_fast.Engine(model, x, threads=threads)


def test_weights():
    model, x = build("adaptive-rnn")
    with refuses(ValueError, "weights must be float32 for a model of kind adaptive, got int8"):
        ctm_fast.Engine(model, x, weights="int8")


class Own(nn.Linear):
    """A layer of somebody's own."""


def test_parts_of_another_kind():
    plain = "without hooks and parametrizations"
    model, x = build("lstm")
    model.controller.rnn.register_forward_hook(lambda *_: None)
    with refuses(ValueError, f"model must have a controller of torch's layers {plain}, got LSTMController"):
        ctm_fast.Engine(model, x)
    model, x = build("ff")
    model.heads.to_output = Own(21 + 4, 5)
    with refuses(ValueError, f"model must have heads of torch.nn.Linear {plain}, got another"):
        ctm_fast.Engine(model, x)
    for part, name in {"cell": "a cell", "halting": "a halting unit", "readout": "a readout"}.items():
        model, x = build("adaptive-lstm")
        getattr(model, part).register_forward_hook(lambda *_: None)
        kind = "LSTMCell" if part == "cell" else "Linear"
        with refuses(ValueError, f"model must have {name} of torch.nn.{kind} {plain}, got another"):
            ctm_fast.Engine(model, x)
    model, x = build("adaptive-rnn")
    parametrizations.weight_norm(model.halting)
    with refuses(ValueError, f"model must have a halting unit of torch.nn.Linear {plain}, got another"):
        ctm_fast.Engine(model.eval(), x)


@pytest.mark.parametrize("name", NAMES)
def test_models_that_compute_something_else(name):
    model, x = build(name)

    class Louder(type(model)):
        def forward(self, *inputs):
            found = super().forward(*inputs)
            return found._replace(output=2 * found.output)

    model.__class__ = Louder
    message = "model must compute the published forward, got results that differ by 0.5 on the example"
    with refuses(ValueError, message):
        ctm_fast.Engine(model, x)


OTHERS = [
    ("adaptive-rnn", lambda x, found: found._replace(steps=found.steps + 1)),
    ("adaptive-lstm", lambda x, found: found._replace(ponder=found.ponder + 0.01)),
    ("adaptive-rnn", lambda x, found: found._replace(state=2 * found.state)),
    ("lstm", lambda x, found: found._replace(output=found.output * (2 if x.shape[1] == 1 else 1))),
]


@pytest.mark.parametrize(("name", "change"), OTHERS)
def test_every_output_is_compared(name, change):
    model, x = build(name)

    class Other(type(model)):
        def forward(self, x, *rest):
            return change(x, super().forward(x, *rest))

    model.__class__ = Other
    with refuses(ValueError, "model must compute the published forward, got results that differ by .*"):
        ctm_fast.Engine(model, x)


def test_models_in_16_bits():
    model, x = build("adaptive-rnn")
    message = r"model must be in float32 or float64 \(model.float\(\)\), got torch.float16"
    with refuses(ValueError, message):
        ctm_fast.Engine(model.half(), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_are_not_finite_change_nothing(name, bad):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    before = engine.get_state()
    x[1, -1, -1] = bad
    with refuses(ValueError, "x must be finite, got NaN or infinity"):
        engine.step(x[1])
    assert all(np.array_equal(a, b) for a, b in zip(engine.get_state(), before, strict=True))
    with refuses(ValueError, "x must be finite, got NaN or infinity"):
        engine(x)


def test_shapes_of_inputs():
    model, x = build("lstm")
    engine = ctm_fast.Engine(model, x)
    with refuses(ValueError, r"x must have shape \(T, B, 6\), got \(4, 3, 5\)"):
        engine(x[:, :, 1:])
    with refuses(ValueError, r"x must have shape \(T, B, 6\), got \(3, 6\)"):
        engine(x[0])
    with refuses(ValueError, r"x must have shape \(T, B, 6\), got \(0, 3, 6\)"):
        engine(x[:0])
    with refuses(ValueError, r"x must have shape \(B, 6\), got \(4, 3, 6\)"):
        engine.step(x)
    with refuses(ValueError, r"batch must be in \[1, 3\], that of the example, got 4"):
        engine(torch.zeros(2, 4, 6))
    with refuses(ValueError, r"batch must be in \[1, 3\], that of the example, got 0"):
        engine(x[:, :0])
    with refuses(TypeError, "x must be an array of real numbers, got complex64"):
        engine(x.to(torch.complex64))
    model, x = build("adaptive-rnn")
    with refuses(ValueError, r"x must have shape \(B, 6\) or \(T, B, 6\), got \(6,\)"):
        ctm_fast.Engine(model, x)(x[0, 0])


def test_states_that_do_not_fit():
    model, x = build("lstm")
    engine = ctm_fast.Engine(model, x)
    state = engine.get_state()
    with refuses(TypeError, "state must be a tuple of 6 arrays, got NoneType"):
        engine.set_state(None)
    with refuses(TypeError, "state's reads must be an array of real numbers, got object"):
        engine.set_state((*state[:3], None, *state[4:]))
    with refuses(ValueError, r"state's hidden must hold numbers of float32, got 1e\+300"):
        engine.set_state((np.full(state[0].shape, 1e300), *state[1:]))
    with refuses(TypeError, "batch must be an integer, got float"):
        engine.reset(1.5)
    with refuses(ValueError, "state must be 6 arrays, got 5"):
        engine.set_state(state[:5])
    with refuses(ValueError, r"state's memory must have shape \(3, 19, 4\), got \(3, 18, 4\)"):
        engine.set_state((*state[:2], state[2][:, 1:], *state[3:]))
    with refuses(ValueError, "state's cell must be finite, got NaN or infinity"):
        engine.set_state((state[0], state[1] * np.nan, *state[2:]))
    with refuses(ValueError, r"batch must be in \[1, 3\], that of the example, got 6"):
        engine.set_state([np.concatenate((part, part), part.shape.index(3)) for part in state])
    with refuses(ValueError, r"state's hidden must have shape \(1, 0, 21\), got \(\)"):
        engine.set_state((0.0, *state[1:]))
