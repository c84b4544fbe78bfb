"""Models and inputs that the engine refuses, in one sentence."""

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from engine_cases import eval_model
from foreign_cases import build
from torch import nn

import ctm_fast
from ctm_fast.engine import Halt


def refuses(error, message):
    """The error with this whole sentence."""
    return pytest.raises(error, match=f"^Engine: {message}$")


def test_what_is_no_model():
    with refuses(TypeError, r"model must be a torch.nn.Module, got str"):
        ctm_fast.Engine("model", torch.zeros(1))
    with refuses(ValueError, "model must be a Continuous Thought Machine, got Linear"):
        ctm_fast.Engine(nn.Linear(2, 2), torch.zeros(1, 2))


def test_training_mode():
    model, inputs = build("sort")
    with refuses(ValueError, r"model must be in eval mode \(model.eval\(\)\), got one in training mode"):
        ctm_fast.Engine(model.train(), inputs)


def test_lazy_parameters():
    model, inputs = eval_model("sort")
    model.output_projector = nn.Sequential(nn.LazyLinear(3))
    with refuses(ValueError, "model must have run once, got one with lazy parameters"):
        ctm_fast.Engine(model, inputs)


def test_parts_of_another_kind():
    model, inputs = eval_model("base")
    model.output_projector = nn.Sequential(*model.output_projector, nn.ReLU())
    with refuses(ValueError, "model must have output_projector of the layers Linear, got others"):
        ctm_fast.Engine(model, inputs)
    model, inputs = eval_model("base")
    model.synapses.register_forward_hook(lambda *_: None)
    with refuses(ValueError, "model must have the published synapses, got hooks"):
        ctm_fast.Engine(model, inputs)


def test_methods_of_the_models_own():
    model, inputs = eval_model("base")
    model.compute_certainty = lambda x: x[:, :2]
    with refuses(ValueError, "model must have the published compute_certainty, got a method of its own"):
        ctm_fast.Engine(model, inputs)


def test_models_that_compute_something_else():
    model, inputs = eval_model("base")

    class Louder(type(model)):
        def forward(self, x, track=False):
            predictions, *rest = super().forward(x, track)
            return 2 * predictions, *rest

    model.__class__ = Louder
    message = "model must compute the published forward, got results that differ by 0.5 on the example"
    with refuses(ValueError, message):
        ctm_fast.Engine(model, inputs)


def _third_doubled(x, first, second, third):
    return first, second, 2 * third


def _slightly_louder(x, first, *rest):
    return 1.0005 * first, *rest


def _other_alone(x, first, *rest):
    return (2 if len(x) == 1 else 1) * first, *rest


def _state_halved(x, output, state):
    return output, (0.5 * state[0], state[1])


OTHERS = [
    ("base", _third_doubled), ("base-energy", _third_doubled), ("sort", _third_doubled), ("sort", _slightly_louder),
    ("sort", _other_alone), ("rl", _state_halved), ("rl", _other_alone),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), OTHERS)
def test_every_output_is_compared(name, change):
    model, inputs = eval_model(name)

    class Other(type(model)):
        def forward(self, *given):
            return change(given[0], *super().forward(*given))

    model.__class__ = Other
    with refuses(ValueError, "model must compute the published forward, got results that differ by .*"):
        ctm_fast.Engine(model, inputs)


def test_models_in_16_bits():
    model, (x,) = eval_model("sort")
    message = r"model must be in float32 or float64 \(model.float\(\)\), got torch.bfloat16"
    with refuses(ValueError, message):
        ctm_fast.Engine(model.bfloat16(), x.bfloat16())


@pytest.mark.parametrize(
    ("error", "example", "message"),
    [
        (TypeError, None, "example_inputs must be tensors or arrays, got NoneType"),
        (TypeError, [torch.zeros(1, 7)], "example_inputs must be tensors or arrays, got list"),
        (TypeError, (), "example_inputs must be x, got 0 arguments"),
        (
            TypeError,
            torch.zeros(1, 7) * 1j,
            "example_inputs must be an array of real numbers, got complex64",
        ),
        (ValueError, torch.zeros(7), r"example_inputs must hold at least one sample, got shape \(7,\)"),
        (
            ValueError,
            torch.zeros(0, 7),
            r"example_inputs must hold at least one sample, got shape \(0, 7\)",
        ),
        (
            ValueError,
            torch.zeros(2, 8),
            r"example_inputs must be what the model takes, got shape \(2, 8\): .*",
        ),
    ],
)
def test_examples_that_the_model_does_not_take(error, example, message):
    with refuses(error, message):
        ctm_fast.Engine(eval_model("sort")[0], example)


def test_an_example_of_arrays():
    model, (x,) = eval_model("sort")
    engine, other = ctm_fast.Engine(model, x.numpy().astype(np.float64)), ctm_fast.Engine(model, x)
    assert np.array_equal(engine(x).predictions, other(x).predictions)


@pytest.mark.parametrize(
    ("error", "change", "message"),
    [
        (ValueError, lambda x: x[:, 1:], r"x must have shape \(any, 7\), got \(3, 6\)"),
        (ValueError, lambda x: x[..., None], r"x must have shape \(any, 7\), got \(3, 7, 1\)"),
        (ValueError, lambda x: x[0], r"x must have shape \(any, 7\), got \(7,\)"),
        (TypeError, lambda x: x * 1j, "x must be an array of real numbers, got complex64"),
    ],
)
def test_tensors_that_do_not_fit(error, change, message):
    model, (x,) = eval_model("sort")
    engine = ctm_fast.Engine(model, x)
    for given in (change(x), change(x).numpy()):
        with refuses(error, message):
            engine(given)
    assert np.array_equal(engine(x.double()).predictions, engine(x).predictions)


def test_other_arguments_than_the_models():
    model, (x,) = eval_model("sort")
    with refuses(TypeError, "inputs must be x, got 2 arguments"):
        ctm_fast.Engine(model, x)(x, x)
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    with refuses(TypeError, "inputs must be x and question, got 1 arguments"):
        engine(digits)
    with refuses(ValueError, r"x must have shape \(any, any, any, any, any\), got \(3, 6\)"):
        engine(question, digits)
    model, (x, state) = eval_model("rl")
    engine = ctm_fast.Engine(model, (x, state))
    with refuses(ValueError, r"x must have shape \(any, 4\), got \(3, 3\)"):
        engine.step(x[:, 1:])


def test_shapes_that_the_model_does_not_take():
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    message = r"x must have a shape that the model takes, as \(4, 1, 8, 8\) of a sample, got \(4, 2, 8, 8\)"
    with refuses(ValueError, message):
        engine(digits.expand(-1, -1, 2, -1, -1), question)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(threads):
    model, inputs = eval_model("sort")
    with refuses(ValueError, f"threads must be at least 1, got {threads}"):
        ctm_fast.Engine(model, inputs, threads)


@pytest.mark.parametrize("threads", [1.5, "2", None])
def test_threads_that_are_no_integer(threads):
    model, inputs = eval_model("sort")
    with refuses(TypeError, f"threads must be an integer, got {type(threads).__name__}"):
        ctm_fast.Engine(model, inputs, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_fork_is_told_from_its_parent(threads, monkeypatch):
    model, (x,) = eval_model("sort")
    engine = ctm_fast.Engine(model, x, threads)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    if threads == 1:
        assert engine(x).ticks.all()
        return
    with refuses(
        RuntimeError, "an engine with threads must run in the process that made it, got a fork of it"
    ):
        engine(x)


def test_engines_are_copied_by_save_and_load(tmp_path):
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with refuses(TypeError, "an engine must be copied by save and load, got copy or pickle"):
            way(engine)
    with pytest.raises(IsADirectoryError, match=r"^save: path must be a file's, got the folder '.*'$"):
        engine.save(tmp_path)


@pytest.mark.parametrize(
    ("error", "rules", "message"),
    [
        (TypeError, {"certainty": "0.9"}, "certainty must be a number, got str"),
        (TypeError, {"energy": [1]}, "energy must be a number, got list"),
        (TypeError, {"delta": 1.0, "min_ticks": 1.5}, "min_ticks must be an integer, got float"),
        (TypeError, {"delta": 1.0, "patience": "2"}, "patience must be an integer, got str"),
        (
            ValueError,
            {"delta": 1.0, "min_ticks": 2**70},
            f"min_ticks must be at most 2147483647, got {2**70}",
        ),
    ],
)
def test_rules_that_are_no_numbers(error, rules, message):
    with pytest.raises(error, match=f"^Halt: {message}$"):
        Halt(**rules)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["base", "sort", "qamnist", "rl"])
def test_inputs_that_are_not_finite(name, bad):
    model, inputs = eval_model(name)
    engine = ctm_fast.Engine(model, inputs)
    read = engine._features(*inputs[: len(engine.inputs)])
    for x in (read.tokens, read.given):
        if x.size and x.dtype == np.float32:
            x.flat[-1] = bad
            with refuses(ValueError, "inputs must be finite, got NaN or infinity"):
                engine._run(read, Halt(certainty=1.0).native(), _outputs(engine, read))
            x.flat[-1] = 0.0


def _outputs(engine, read):
    n, batch, ticks = engine._recipe.sizes, read.batch, len(read.schedule)
    synchronisation = np.empty((batch, n.pairs), np.float32)
    if n.stateful:
        return None, None, None, synchronisation, None, None, None, None
    rows = np.empty((ticks, batch, n.classes), np.float32), np.empty((ticks, batch, 2), np.float32)
    return *rows, None, synchronisation, np.empty(batch, np.int32), np.empty(batch, np.int32), None, None


def test_shapes_of_arrays():
    model, inputs = eval_model("base")
    compute = model.compute_features
    model.compute_features = lambda x: compute(x) + 1.0  # no front is known for this
    engine = ctm_fast.Engine(model, inputs)
    tokens = engine._features(*inputs).tokens[0]
    width = tokens.shape[2]
    assert engine.inputs == (("tokens", (None, None, width), "float32"),)
    with refuses(ValueError, rf"tokens must have shape \(any, any, {width}\), got \(3, 8\)"):
        engine(np.zeros((3, 8), np.float32))
    with refuses(ValueError, "batch must be at most 3, that of the example, got 4"):
        engine(np.zeros((4, 8, width), np.float32))
    with refuses(ValueError, "tokens must be at most 8, that of the example, got 9"):
        engine(np.zeros((3, 9, width), np.float32))
    with refuses(ValueError, "inputs must hold at least one sample, got none"):
        engine(tokens[:0])
    with refuses(TypeError, "tokens must be an array of real numbers, got complex128"):
        engine(tokens.astype(complex))
    with refuses(TypeError, "inputs must be tokens, got 2 arrays"):
        engine(tokens, tokens)
    np.testing.assert_array_equal(engine(tokens.astype(float)).predictions, engine(tokens).predictions)
    assert np.isfinite(engine(tokens[:, :5]).predictions).all()


def test_halting_without_predictions():
    model, inputs = eval_model("rl")
    with refuses(ValueError, "halt must be None for a model without predictions, got rules"):
        ctm_fast.Engine(model, inputs)(*inputs, halt=Halt(certainty=0.5))
    with refuses(TypeError, "inputs must be an observation and a state, got 1 arguments"):
        ctm_fast.Engine(model, inputs)(inputs[0])
