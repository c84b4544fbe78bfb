"""Models and inputs that the engine refuses, in one sentence."""

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


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(threads):
    model, inputs = eval_model("sort")
    with refuses(ValueError, f"threads must be at least 1, got {threads}"):
        ctm_fast.Engine(model, inputs, threads)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["base", "sort", "qamnist", "rl"])
def test_inputs_that_are_not_finite(name, bad):
    model, inputs = eval_model(name)
    engine = ctm_fast.Engine(model, inputs)
    read = engine._features(*inputs)
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
