"""State that an engine keeps between the calls of a model for reinforcement learning."""

import numpy as np
import pytest
import torch
from engine_cases import eval_model

import ctm_fast
from ctm_fast.testing import relative_error

STEPS = 6


def walk(model, observations, state):
    """Outputs of the model on one observation after the other, and the last state."""
    outputs = []
    with torch.no_grad():
        for x in observations:
            output, state = model(x, state)
            outputs.append(output)
    return outputs, state


def case(name, batch=3):
    """A model, an engine of it, observations and the model's start."""
    model, inputs = eval_model(name, batch=batch)
    observations = torch.randn(STEPS, *inputs[0].shape, generator=torch.Generator().manual_seed(5))
    return model, ctm_fast.Engine(model, inputs), observations, inputs[1]


def close(found, truth):
    """Whether arrays are within rounding of tensors."""
    return all(
        relative_error(torch.from_numpy(np.ascontiguousarray(a)), b) < 1e-5
        for a, b in zip(found, truth, strict=True)
    )


@pytest.mark.parametrize("name", ["rl", "rl-ticks-above-memory", "rl-unet"])
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_go_on_from_the_learned_start(name, threads):
    model, inputs = eval_model(name)
    observations = torch.randn(STEPS, *inputs[0].shape)
    engine = ctm_fast.Engine(model, inputs, threads=threads)
    truth, state = walk(model, observations, model.initial_state(3))
    found = [engine.step(x) for x in observations]
    assert close([output for output, _ in found], truth)
    assert close(found[-1][1], state)
    engine.reset()
    assert np.array_equal(engine.step(observations[0])[0], found[0][0])


def test_a_state_can_be_put_back():
    _, engine, observations, start = case("rl")
    engine.set_state(start)
    first = [engine.step(x) for x in observations]
    engine.set_state(first[2][1])
    again = [engine.step(x) for x in observations[3:]]
    for (output, state), (other, other_state) in zip(first[3:], again, strict=True):
        assert np.array_equal(output, other)
        assert all(np.array_equal(a, b) for a, b in zip(state, other_state, strict=True))


def test_tensors_that_require_gradients_are_read():
    model, engine, observations, _ = case("rl")
    start = model.initial_state(3)
    assert start[0].requires_grad
    engine.set_state(start)
    first, _ = engine.step(observations[0])
    engine.reset()
    assert np.array_equal(first, engine.step(observations[0])[0])


def test_a_returned_state_is_not_written_later():
    _, engine, observations, start = case("rl")
    engine.set_state(start)
    _, state = engine.step(observations[0])
    kept = [x.copy() for x in state]
    engine.step(observations[1])
    assert all(np.array_equal(a, b) for a, b in zip(state, kept, strict=True))


def test_fewer_samples_than_the_example():
    model, engine, observations, _ = case("rl")
    engine.reset(1)
    truth, _ = walk(model, observations[:, :1], model.initial_state(1))
    assert close([engine.step(x[:1])[0] for x in observations], truth)
    with pytest.raises(ValueError, match=r"^Engine: x must have the state's batch of 1, got 3$"):
        engine.step(observations[0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "samples", [[1], [2, 0], np.array([True, False, True]), torch.tensor([False, True, True])]
)
def test_single_samples_start_anew(samples, threads):
    """As vector environments do when one of their episodes ends."""
    model, inputs = eval_model("rl-ticks-above-memory")
    observations = torch.randn(STEPS, *inputs[0].shape)
    engine = ctm_fast.Engine(model, inputs, threads=threads)
    _, state = walk(model, observations[:2], model.initial_state(3))
    state = tuple(x.clone() for x in state)
    for held, start in zip(state, model.initial_state(3), strict=True):
        held[samples] = start[samples].detach()
    truth, state = walk(model, observations[2:], state)
    for x in observations[:2]:
        engine.step(x)
    engine.reset(samples=samples)
    found = [engine.step(x) for x in observations[2:]]
    assert close([output for output, _ in found], truth)
    assert close(found[-1][1], state)


def test_no_samples_change_nothing():
    _, engine, observations, _ = case("rl")
    engine.step(observations[0])
    state = engine.get_state()
    engine.reset(samples=[])
    assert all(np.array_equal(a, b) for a, b in zip(engine.get_state(), state, strict=True))


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (TypeError, {"batch": 2, "samples": [0]}, "batch must be left out where samples are given, got both"),
        (IndexError, {"samples": [0, 3]}, r"samples must be in \[0, 3\), got 3"),
        (IndexError, {"samples": [-1]}, r"samples must be in \[0, 3\), got -1"),
        (
            ValueError,
            {"samples": np.array([True])},
            r"samples must be indices or a mask \(3,\), got shape \(1,\)",
        ),
        (TypeError, {"samples": [0.5]}, r"samples must be indices or a mask, got float64 of shape \(1,\)"),
        (TypeError, {"samples": 1}, r"samples must be indices or a mask, got int64 of shape \(\)"),
    ],
)
def test_samples_that_there_are_not(error, arguments, message):
    _, engine, *_ = case("rl")
    with pytest.raises(error, match=f"^Engine: {message}$"):
        engine.reset(**arguments)


@pytest.mark.parametrize("batch", [0, 4])
def test_a_batch_that_does_not_fit(batch):
    _, engine, *_ = case("rl")
    with pytest.raises(
        ValueError, match=rf"^Engine: batch must be in \[1, 3\], that of the example, got {batch}$"
    ):
        engine.reset(batch)


def test_states_of_other_shapes_and_nan_are_refused():
    _, engine, _, (pre, post) = case("rl")
    with pytest.raises(ValueError, match=r"^Engine: state\[1\] must have shape \(3, \d+, \d+\), got"):
        engine.set_state((pre, post[:, :, 1:]))
    with pytest.raises(ValueError, match=r"^Engine: state\[0\] must be finite, got NaN or infinity$"):
        engine.set_state((pre * float("nan"), post))


@pytest.mark.parametrize(
    ("error", "change", "message"),
    [
        (TypeError, lambda pre, post: None, "state must be a tuple of 2 arrays, got NoneType"),
        (TypeError, lambda pre, post: {0: pre, 1: post}, "state must be a tuple of 2 arrays, got dict"),
        (ValueError, lambda pre, post: (pre,), "state must be 2 arrays, got 1"),
        (ValueError, lambda pre, post: (pre, post, post), "state must be 2 arrays, got 3"),
        (
            TypeError,
            lambda pre, post: (pre, None),
            r"state\[1\] must be an array of real numbers, got object",
        ),
        (
            TypeError,
            lambda pre, post: (1j * pre, post),
            r"state\[0\] must be an array of real numbers, got complex64",
        ),
        (
            ValueError,
            lambda pre, post: (np.full(pre.shape, -1e300), post),
            r"state\[0\] must hold numbers of float32, got 1e\+300",
        ),
    ],
)
def test_states_that_are_none(error, change, message):
    _, engine, _, state = case("rl")
    with pytest.raises(error, match=f"^Engine: {message}$"):
        engine.set_state(change(*state))


@pytest.mark.parametrize("batch", [1.5, "a"])
def test_a_batch_that_is_no_integer(batch):
    _, engine, *_ = case("rl")
    with pytest.raises(TypeError, match=f"^Engine: batch must be an integer, got {type(batch).__name__}$"):
        engine.reset(batch)


def test_a_call_sets_the_state_that_steps_go_on_from():
    model, engine, observations, start = case("rl")
    engine.step(observations[0])
    engine(observations[1], start)
    truth, _ = walk(model, observations[1:3], start)
    assert close([engine.step(observations[2])[0]], truth[1:])


def test_models_without_state_have_none():
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs)
    for call in (
        engine.reset,
        engine.get_state,
        lambda: engine.step(inputs[0]),
        lambda: engine.set_state((0, 0)),
    ):
        with pytest.raises(TypeError, match=r"must be called for a stateful model, got one of kind sort$"):
            call()
