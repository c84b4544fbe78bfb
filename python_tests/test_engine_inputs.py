"""What an engine takes of each model: its input, features of its backbone, or tokens; and bad values in them."""

from functools import partial

import numpy as np
import pytest
import small_ctm
import torch
from engine_cases import assert_as_exact, engine_outputs, eval_model
from front_cases import attending, finished
from torch import nn

import ctm_fast
from ctm_fast.models import presets
from ctm_fast.testing import relative_error


def refuses(error, message):
    """The error with this whole sentence."""
    return pytest.raises(error, match=f"^Engine: {message}$")


def preset(name, batch=2, **changes):
    """A published model away from its start, and inputs for it."""
    torch.manual_seed(0)
    model, inputs = presets.build(name, **changes), presets.example_inputs(name, batch)
    if hasattr(model, "recurrent_model"):
        model = model.recurrent_model
        inputs = (*inputs, tuple(torch.randn(2, batch, model.d_model, model.memory_length)))
    return finished(model, inputs)


def ours(x, **changes):
    """The small model away from its start, and its input."""
    torch.manual_seed(0)
    return finished(small_ctm.build(**changes), (x,))


NATIVE = {
    "parity": (lambda: ours(small_ctm.signs(3)), (6,), "float32"),
    "parity-without-position": (
        lambda: ours(small_ctm.signs(3), positional_embedding_type="none"), (6,), "float32"
    ),
    "no-backbone": (
        lambda: ours(torch.randn(3, 5, 4, 2), backbone_type="none", positional_embedding_type="none"),
        (5, 4, 2), "float32",
    ),
    "sort": (lambda: preset("sort_ctm"), (30,), "float32"),
    "cartpole": (lambda: preset("cartpole_ctm_2"), (4,), "float32"),
    "acrobot": (lambda: preset("acrobot_ctm_1", 5), (6,), "float32"),
    "4rooms": (lambda: preset("4rooms_ctm_1"), (7, 7, 3), "int64"),
    "rl-foreign": (lambda: eval_model("rl"), (4,), "float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_engines_that_take_the_models_input(name):
    build, shape, dtype = NATIVE[name]
    model, inputs = build()
    engine = ctm_fast.Engine(model, inputs)
    assert engine.inputs == (("x", (None, *shape), dtype),)
    assert_as_exact(engine, model, inputs)
    arrays = (inputs[0].numpy(), *inputs[1:])
    for a, b in zip(engine_outputs(engine, inputs), engine_outputs(engine, arrays), strict=True):
        assert torch.equal(a, b)


def test_features_of_ones_own_are_what_the_engine_takes():
    """Here the backbone and the embedding could not even read the input."""
    model, (x,) = ours(small_ctm.signs(3))
    with torch.no_grad():
        tokens = model.compute_features(x)
    model.compute_features = lambda given: given
    engine = ctm_fast.Engine(model, tokens)
    assert engine.inputs == (("tokens", (None, None, tokens.shape[2]), "float32"),)
    found = torch.from_numpy(engine(tokens.numpy()).predictions)
    assert relative_error(found, model(tokens)[0]) < 1e-5


CHANGING = {
    "images": lambda: ours(
        torch.randn(3, 2, 12, 9), backbone_type="resnet18-1", positional_embedding_type="learnable-fourier"
    ),
    **{name: partial(eval_model, name) for name in ("base-energy", "sort", "qamnist", "rl")},
}


@pytest.mark.parametrize("name", CHANGING)
def test_later_changes_of_the_model_are_not_seen(name):
    model, inputs = CHANGING[name]()
    engine = ctm_fast.Engine(model, inputs)
    before = engine_outputs(engine, inputs)
    model.train()
    for attribute in ("iterations", "iterations_for_answering", "iterations_per_question_part"):
        if hasattr(model, attribute):
            setattr(model, attribute, getattr(model, attribute) + 1)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1)
    kept = [x.clone() for x in model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, engine_outputs(engine, inputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, model.buffers(), strict=True))
    assert all(x.requires_grad for x in model.parameters())


def test_a_model_whose_last_call_had_gradients():
    """The published forward keeps its features, which no copy takes while autograd holds them."""
    model, inputs = eval_model("base")
    model(*inputs)
    assert model.kv_features.grad_fn is not None
    assert_as_exact(ctm_fast.Engine(model, inputs), eval_model("base")[0], inputs)


GRIDS = ["learnable-fourier", "multi-learnable-fourier", "custom-rotational", "none"]


@pytest.mark.parametrize("position", GRIDS)
def test_engines_that_take_the_backbones_features(position):
    images = torch.randn(3, 2, 12, 9)
    model, inputs = ours(images, backbone_type="resnet18-1", positional_embedding_type=position)
    engine = ctm_fast.Engine(model, inputs)
    with torch.no_grad():
        features = model.backbone(model.initial_rgb(images)).numpy()
    assert engine.inputs == (("features", (None, *features.shape[1:]), "float32"),)
    assert_as_exact(engine, model, inputs)
    same = zip(engine_outputs(engine, inputs), engine_outputs(engine, (features,)), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize("name", ["qamnist", "qamnist-random"])
def test_digits_and_questions(name):
    model, (digits, question) = eval_model(name)
    engine = ctm_fast.Engine(model, (digits, question))
    with torch.no_grad():
        maps = torch.stack([model.backbone_digit(x) for x in digits.unbind(1)], 1).numpy()
    features, asked = engine.inputs
    assert (*features, *asked) == (
        "features",
        (None, None, *maps.shape[2:]),
        "float32",
        "question",
        (None, None),
        "int64",
    )
    assert_as_exact(engine, model, (digits, question))
    arrays = maps, question.numpy()
    same = zip(engine_outputs(engine, (digits, question)), engine_outputs(engine, arrays), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_tensors_of_another_shape_go_through_the_model():
    model, (x,) = ours(small_ctm.signs(3))
    engine = ctm_fast.Engine(model, (x,))
    shorter = x[:, :4]
    assert_as_exact(engine, model, (shorter,))
    with refuses(ValueError, r"x must have shape \(any, 6\), got \(3, 4\)"):
        engine(shorter.numpy())
    images = torch.randn(3, 2, 12, 9)
    model, inputs = ours(images, backbone_type="resnet18-1", positional_embedding_type="learnable-fourier")
    assert_as_exact(ctm_fast.Engine(model, inputs), model, (images[:, :, :8],))
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    assert_as_exact(engine, model, (digits[..., :4], question))


def test_fewer_digits_and_questions():
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    for inputs in ((digits[:, :2], question), (digits, question[:, :3]), (digits[:1, :1], question[:1, :0])):
        assert_as_exact(engine, model, inputs)


@pytest.mark.parametrize(
    ("token", "at", "kind", "low", "high"),
    [(50, 0, "positions", 0, 49), (-1, 1, "positions", 0, 49), (-3, 2, "operators", -2, -1),
     (0, 3, "operators", -2, -1)],
)  # fmt: skip
def test_questions_out_of_range(token, at, kind, low, high):
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    question = question.clone()
    question[1, at] = token
    for asked in (question, question.double()):
        with refuses(IndexError, rf"question must hold {kind} in \[{low}, {high}\], got {token}"):
            engine(digits, asked)


def test_questions_of_another_kind():
    model, (digits, question) = eval_model("qamnist")
    engine = ctm_fast.Engine(model, (digits, question))
    with refuses(ValueError, "question must hold whole numbers, got others"):
        engine(digits, question + 0.5)
    with refuses(ValueError, "question must have the batch of 3, got 2"):
        engine(digits, question[:2])
    with refuses(TypeError, "inputs must be features and question, got 1 arrays"):
        engine(np.zeros(3))


@pytest.mark.parametrize(
    ("column", "value", "end"), [(0, 11, 11), (1, 6, 6), (2, 3, 3), (2, -1, 3), (0, 2**40, 11)]
)
def test_observations_out_of_range(column, value, end):
    model, inputs = preset("4rooms_ctm_1", 1)
    engine = ctm_fast.Engine(model, inputs)
    x = inputs[0].clone()
    x[0, 3, 2, column] = value
    for observation in (x, x.numpy()):
        with refuses(IndexError, rf"x must hold indices in \[0, {end}\), got {value}"):
            engine.step(observation)
    x[0, 3, 2, column] = end - 1
    outputs = [engine.step(y)[0] for y in (x.numpy(), x.numpy().astype(np.float32)) if not engine.reset()]
    assert np.array_equal(*outputs)
    with refuses(ValueError, "x must hold whole numbers, got others"):
        engine.step(x.numpy() + 0.5)
    with refuses(ValueError, "x must hold whole numbers, got others"):
        engine.step(np.full(x.shape, np.nan))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["parity", "no-backbone", "cartpole"])
def test_inputs_that_are_not_finite(name, bad):
    model, inputs = NATIVE[name][0]()
    engine = ctm_fast.Engine(model, inputs)
    x = inputs[0].numpy().copy()
    x.flat[-1] = bad
    with refuses(ValueError, "inputs must be finite, got NaN or infinity"):
        engine(x, *inputs[1:])
    x.flat[-1] = 1.0
    assert np.isfinite(engine(x, *inputs[1:]).synchronisation).all()


def test_signs_of_any_dtype():
    model, (x,) = ours(small_ctm.signs(3))
    engine = ctm_fast.Engine(model, (x,))
    truth = engine(x).predictions
    for dtype in (np.int8, np.int64, np.float64, np.float16):
        assert np.array_equal(engine(x.numpy().astype(dtype)).predictions, truth)
    assert np.array_equal(engine(x.numpy() == 1).predictions, truth)


def test_largest_values():
    """Numbers near the end of the range: what the model makes of them, without a crash."""
    model, inputs = attending(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), torch.randn(2, 3, 4))
    engine = ctm_fast.Engine(model, inputs)
    x = torch.full((2, 3, 4), 1e30)
    with torch.no_grad():
        np.testing.assert_allclose(engine(x).predictions, model(x)[0], rtol=1e-3, atol=1e-5)


def test_batches_that_do_not_fit():
    model, inputs = preset("cartpole_ctm_2")
    engine = ctm_fast.Engine(model, inputs)
    with refuses(ValueError, r"x must have shape \(any, 4\), got \(4,\)"):
        engine.step(np.zeros(4))
    with refuses(ValueError, "batch must be at most 2, that of the example, got 3"):
        engine.step(np.zeros((3, 4)))
    with refuses(ValueError, "inputs must hold at least one sample, got none"):
        engine.step(np.zeros((0, 4)))
